package engine

import (
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"

	ort "github.com/yalue/onnxruntime_go"

	"github.com/vigie/vigie/engine/kernel"
)

// LibraryVariable names the environment variable that points at an ONNX Runtime
// shared library to use instead of the embedded one, for development and for
// builds of ONNX Runtime with other execution providers. It is not checked
// against the pinned digest.
const LibraryVariable = "VIGIE_ONNXRUNTIME"

// ErrNoRuntime says that this build has no ONNX Runtime to run a graph with.
// The message names the command that cures it.
var ErrNoRuntime = errors.New("this build has no ONNX Runtime embedded: run `make runtime` and build again, or set " +
	LibraryVariable + " to the path of libonnxruntime.so")

// Notice is the licence notice of the embedded ONNX Runtime, to be shown with
// the notices of every other part.
//
//go:embed runtime/LICENSE-onnxruntime.txt
var Notice string

// start loads the library and creates ONNX Runtime's environment, once for the
// process: ONNX Runtime allows one, and its thread pools and allocators live
// in it until the process ends.
var start = sync.OnceValue(func() error {
	name := os.Getenv(LibraryVariable)
	if name == "" {
		library, err := unpack(packed, runtime.GOOS, runtime.GOARCH)
		if err != nil {
			return err
		}
		// The loader keeps its own mapping; the file is not needed afterwards.
		defer library.Close()
		name = library.path
	} else if _, err := os.Stat(name); err != nil {
		return fmt.Errorf("engine: loading ONNX Runtime named by %s: %w", LibraryVariable, err)
	}
	ort.SetSharedLibraryPath(name)
	// Errors come back to the caller as such; ONNX Runtime need not also print
	// them.
	if err := ort.InitializeEnvironment(ort.WithLogLevelFatal()); err != nil {
		return fmt.Errorf("engine: starting ONNX Runtime: %w", err)
	}
	// Whether there are kernels is not an error: Kernels tells who asks.
	_ = kernel.Prepare(name)
	if err := ort.DisableTelemetry(); err != nil {
		return fmt.Errorf("engine: switching ONNX Runtime's telemetry off: %w", err)
	}
	return nil
})

// Ready loads ONNX Runtime if that has not happened yet and reports whether
// graphs can be run in this process: nil, [ErrNoRuntime], or what went wrong.
// A program calls it at start so as not to find out with the first case.
func Ready() error { return start() }

// Version returns the version of the ONNX Runtime in use, such as "1.30.0".
func Version() (string, error) {
	if err := start(); err != nil {
		return "", err
	}
	return ort.GetVersion(), nil
}

// unpacked is a library laid out where the dynamic loader can open it.
type unpacked struct {
	path  string
	close func() error
}

func (u *unpacked) Close() error { return u.close() }

// unpack decompresses the library for a platform from files, checks it against
// the digest beside it, and only then hands out its path.
func unpack(files fs.FS, goos, goarch string) (*unpacked, error) {
	stem := "libonnxruntime-" + goos + "-" + goarch
	var compressed fs.File
	for _, suffix := range []string{".so.gz", ".dylib.gz"} {
		f, err := files.Open(path.Join("runtime", stem+suffix))
		if err == nil {
			compressed = f
			break
		}
	}
	if compressed == nil {
		return nil, fmt.Errorf("engine: looking for ONNX Runtime for %s/%s: %w", goos, goarch, ErrNoRuntime)
	}
	defer compressed.Close()
	pin, err := fs.ReadFile(files, path.Join("runtime", stem+".sha256"))
	if err != nil {
		return nil, fmt.Errorf("engine: reading the digest ONNX Runtime must have: %w", err)
	}
	want, _, _ := strings.Cut(strings.TrimSpace(string(pin)), " ")

	plain, err := gzip.NewReader(compressed)
	if err != nil {
		return nil, fmt.Errorf("engine: unpacking ONNX Runtime: %w", err)
	}
	file, release, err := libraryFile()
	if err != nil {
		return nil, fmt.Errorf("engine: making room for ONNX Runtime: %w", err)
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(file, sum), plain); err != nil {
		release()
		return nil, fmt.Errorf("engine: unpacking ONNX Runtime: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		release()
		return nil, fmt.Errorf("engine: unpacking ONNX Runtime: the library's SHA-256 is %s, want %s: run `make runtime` and build again", got, want)
	}
	name, err := sealLibrary(file)
	if err != nil {
		release()
		return nil, fmt.Errorf("engine: sealing ONNX Runtime: %w", err)
	}
	return &unpacked{path: name, close: release}, nil
}
