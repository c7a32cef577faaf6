package engine

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/vigie/vigie/onnx"
)

// library returns the embedded files as they would be with that library.
func library(t *testing.T, content []byte, digest string) fstest.MapFS {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return fstest.MapFS{
		"runtime/libonnxruntime-linux-amd64.so.gz":  {Data: packed.Bytes()},
		"runtime/libonnxruntime-linux-amd64.sha256": {Data: []byte(digest + "  linux/x64/libonnxruntime.so.1\n")},
	}
}

func TestABuildWithoutTheLibrarySaysWhatToRun(t *testing.T) {
	for name, files := range map[string]fs.FS{
		"only the digest": fstest.MapFS{"runtime/libonnxruntime-linux-amd64.sha256": {}},
		"nothing":         fstest.MapFS{},
	} {
		_, err := unpack(files, "linux", "amd64")
		if !errors.Is(err, ErrNoRuntime) || !strings.Contains(err.Error(), "make runtime") || !strings.Contains(err.Error(), "linux/amd64") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheLibraryIsUnpackedOnlyIfItHasItsDigest(t *testing.T) {
	content := bytes.Repeat([]byte("library"), 1000)
	sum := sha256.Sum256(content)
	good := hex.EncodeToString(sum[:])
	u, err := unpack(library(t, content, good), "linux", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(u.path)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("the unpacked library: %v, %d bytes", err, len(got))
	}
	if runtime.GOOS == "linux" {
		if err := os.WriteFile(u.path, []byte("planted"), 0); err == nil {
			if after, _ := os.ReadFile(u.path); !bytes.Equal(after, content) {
				t.Error("the unpacked library can be changed before it is loaded")
			}
		}
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
	if _, err := unpack(library(t, append(content, 'x'), good), "linux", "amd64"); err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("a library with another digest: %v", err)
	}
	files := library(t, content, good)
	files["runtime/libonnxruntime-linux-amd64.so.gz"].Data = []byte("not gzip")
	if _, err := unpack(files, "linux", "amd64"); err == nil {
		t.Error("a library that is not compressed is taken")
	}
}

// TestTheVariableIsHonoured runs itself with the variable set, for the library
// is loaded once per process.
func TestTheVariableIsHonoured(t *testing.T) {
	if os.Getenv("ENGINE_TEST_CHILD") != "" {
		if err := Ready(); err != nil {
			os.Stdout.WriteString(err.Error())
		}
		return
	}
	child := func(path string) string {
		command := exec.Command(os.Args[0], "-test.run", "^TestTheVariableIsHonoured$")
		command.Env = append(os.Environ(), "ENGINE_TEST_CHILD=1", LibraryVariable+"="+path)
		out, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := child("/nowhere/libonnxruntime.so"); !strings.Contains(out, LibraryVariable) || !strings.Contains(out, "/nowhere/libonnxruntime.so") {
		t.Errorf("an absent library gives %q", out)
	}
	text := filepath.Join(t.TempDir(), "libonnxruntime.so")
	if err := os.WriteFile(text, []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := child(text); !strings.Contains(out, "starting ONNX Runtime") {
		t.Errorf("a file that is no library gives %q", out)
	}
}

func TestTheEmbeddedLibraryIsThePinnedVersion(t *testing.T) {
	version, err := Version()
	if errors.Is(err, ErrNoRuntime) {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	}
	if err != nil || os.Getenv(LibraryVariable) == "" && version != "1.30.0" {
		t.Errorf("version %q, %v", version, err)
	}
	if !strings.Contains(Notice, "Microsoft Corporation") {
		t.Error("the licence notice is missing")
	}
}

func TestTensorsAreTypedByTheirData(t *testing.T) {
	for typ, row := range elements {
		zeros, err := Zeros(typ, 2, 3)
		if err != nil || zeros.Type() != typ || zeros.Len() != 6 || zeros.Check() != nil || row.proto == "" {
			t.Errorf("%v: %v, %v", typ, zeros, err)
		}
	}
	if _, err := Zeros(onnx.String, 1); err == nil {
		t.Error("a tensor of strings was made")
	}
	if _, err := Zeros(onnx.Float, -1); err == nil {
		t.Error("a tensor of negative size was made")
	}
	got, err := FromONNX(onnx.NewTensor("t", []int64{2}, []int32{4, 5}))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := Values[int32](got); err != nil || v[1] != 5 {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := Values[float32](got); err == nil {
		t.Error("integers were read as floats")
	}
}
