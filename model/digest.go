package model

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/vigie/vigie"
)

// The files of a package.
const (
	ManifestFile    = "manifest.yaml"
	GraphFile       = "model.onnx"
	CalibrationFile = "calibration.json"
	CardFile        = "card.md"
	TrainingFile    = "training.json"    // optional
	ExplanationFile = "explanation.json" // optional: see Survey
	DigestFile      = "digest"
)

var required = []string{ManifestFile, GraphFile, CalibrationFile, CardFile}

// Limits of a package.
const (
	maxFiles = 32
	maxGraph = 1 << 30 // bytes of model.onnx
	maxFile  = 4 << 20 // bytes of any other file
)

// ErrDigest is returned for a package whose files are not the ones that its
// digest file lists; the message says which.
var ErrDigest = errors.New("the package is not what its digest file lists")

// ErrFile is returned for a package folder that holds what a package must not:
// a link, a folder, a name that is not plain, too much.
var ErrFile = errors.New("not a file of a model package")

var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// contents reads every file of the folder into memory, once, so that what is
// digested is what is used. Links are not followed, in the folder or out of it.
func contents(dir string) (map[string][]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("model: opening package %s: %w", dir, err)
	}
	defer root.Close()
	folder, err := root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("model: opening package %s: %w", dir, err)
	}
	entries, err := folder.ReadDir(maxFiles + 1)
	folder.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("model: listing package %s: %w", dir, err)
	}
	if len(entries) > maxFiles {
		return nil, fmt.Errorf("model: opening package %s: %w: more than %d files", dir, ErrFile, maxFiles)
	}
	files := make(map[string][]byte, len(entries))
	for _, entry := range entries {
		data, err := content(root, entry.Name())
		if err != nil {
			return nil, fmt.Errorf("model: opening package %s: %w", dir, err)
		}
		files[entry.Name()] = data
	}
	return files, nil
}

func content(root *os.Root, name string) ([]byte, error) {
	if !plainName.MatchString(name) {
		return nil, fmt.Errorf("%w: %q: use letters, digits, dots, hyphens and underscores", ErrFile, name)
	}
	before, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is a %s: a package holds plain files only", ErrFile, name, kind(before.Mode()))
	}
	file, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	after, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !os.SameFile(before, after) {
		return nil, fmt.Errorf("%w: %s was replaced while it was opened", ErrFile, name)
	}
	limit := int64(maxFile)
	if name == GraphFile {
		limit = maxGraph
	}
	if after.Size() > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, the limit is %d", ErrFile, name, after.Size(), limit)
	}
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s grew beyond %d bytes", ErrFile, name, limit)
	}
	return data, nil
}

func kind(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "folder"
	case mode&fs.ModeSymlink != 0:
		return "symbolic link"
	}
	return "special file"
}

// list writes the digest file of the files: a line each, as sha256sum writes
// and checks them, in the order of their names.
func list(files map[string][]byte) []byte {
	names := make([]string, 0, len(files))
	for name := range files {
		if name != DigestFile {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var out bytes.Buffer
	for _, name := range names {
		fmt.Fprintf(&out, "%x  %s\n", sha256.Sum256(files[name]), name)
	}
	return out.Bytes()
}

// verify compares the files with the digest file among them and reports every
// difference. The digest file is accepted only in the one form that list
// writes, so that a package has one digest.
func verify(files map[string][]byte) (vigie.ModelDigest, error) {
	listed, ok := files[DigestFile]
	if !ok {
		return "", fmt.Errorf("%w: it has none: seal it with vigie model seal", ErrDigest)
	}
	want := make(map[string]string)
	var problems []string
	lines := bufio.NewScanner(bytes.NewReader(listed))
	for n := 1; lines.Scan(); n++ {
		sum, name, ok := strings.Cut(lines.Text(), "  ")
		if _, err := hex.DecodeString(sum); !ok || err != nil || len(sum) != 2*sha256.Size || !plainName.MatchString(name) || name == DigestFile {
			problems = append(problems, fmt.Sprintf("line %d of the digest file is not a SHA-256 sum, two blanks and a file name", n))
			continue
		}
		if _, twice := want[name]; twice {
			problems = append(problems, fmt.Sprintf("line %d of the digest file lists %s again", n, name))
		}
		want[name] = sum
	}
	if err := lines.Err(); err != nil {
		problems = append(problems, "the digest file has a line that is too long")
	}
	for name, data := range files {
		if name == DigestFile {
			continue
		}
		switch sum, listed := want[name]; {
		case !listed:
			problems = append(problems, name+" is there but not listed")
		case sum != fmt.Sprintf("%x", sha256.Sum256(data)):
			problems = append(problems, name+" was altered")
		}
	}
	for name := range want {
		if _, there := files[name]; !there {
			problems = append(problems, name+" is listed but missing")
		}
	}
	if len(problems) > 0 {
		slices.Sort(problems)
		return "", fmt.Errorf("%w:\n  %s", ErrDigest, strings.Join(problems, "\n  "))
	}
	if !bytes.Equal(listed, list(files)) {
		return "", fmt.Errorf("%w: the digest file is not sorted or not written as sha256sum writes it", ErrDigest)
	}
	return digestOf(listed), nil
}

func digestOf(listed []byte) vigie.ModelDigest {
	return vigie.ModelDigest(vigie.DigestOf(listed))
}

// Seal checks the package in dir (everything but its digest file) and writes
// the digest file. It refuses a package that Open would refuse.
func Seal(dir string) (vigie.ModelDigest, error) {
	files, err := contents(dir)
	if err != nil {
		return "", err
	}
	listed := list(files)
	files[DigestFile] = listed
	if _, err := assemble(dir, files); err != nil {
		return "", err
	}
	if err := replace(filepath.Join(dir, DigestFile), listed); err != nil {
		return "", fmt.Errorf("model: sealing package %s: %w", dir, err)
	}
	return digestOf(listed), nil
}

// replace writes a file beside the old one and renames it, so that a reader
// sees the old or the new one.
func replace(path string, data []byte) error {
	temporary, err := os.CreateTemp(filepath.Dir(path), "unfinished-")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) // fails after the rename, as it should
	if _, err := temporary.Write(data); err != nil {
		temporary.Close()
		return err
	}
	if err := temporary.Chmod(0o644); err != nil {
		temporary.Close()
		return err
	}
	if err := temporary.Sync(); err != nil {
		temporary.Close()
		return err
	}
	if err := temporary.Close(); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}
