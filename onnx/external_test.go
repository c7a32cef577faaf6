package onnx_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vigie/vigie/onnx"
)

// The model in testdata was written by the reference implementation; its three
// tensors, one of them an attribute's, are in one file beside it.
func TestWeightsBesideTheModelAreRead(t *testing.T) {
	m, err := onnx.Load("testdata/external/model.onnx")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string][]float32{"w": {0, 0.25, 0.5, 0.75, 1, 1.25}, "b": {1, -2}} {
		if got, err := onnx.Values[float32](m.Graph.Initializer(name)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s is %v, %v; want %v", name, got, err, want)
		}
	}
	if got, err := onnx.Values[float32](m.Graph.Nodes[1].Tensor("value")); err != nil || !slices.Equal(got, []float32{2}) {
		t.Errorf("the constant is %v, %v", got, err)
	}
	if !slices.Equal(m.External, []string{"weights.bin"}) {
		t.Errorf("read from %q", m.External)
	}
	// Written again, it is one file.
	path := filepath.Join(t.TempDir(), "whole.onnx")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	back, err := onnx.Load(path)
	if err != nil || back.External != nil || !bytes.Equal(back.Graph.Initializer("w").Raw, m.Graph.Initializer("w").Raw) {
		t.Errorf("%v, external %q", err, back.External)
	}
	// Its bytes alone hold no weights.
	data, err := os.ReadFile("testdata/external/model.onnx")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := onnx.Parse(data); !errors.Is(err, onnx.ErrUnsupported) || !strings.Contains(err.Error(), "save the model as one file") {
		t.Errorf("error is %v", err)
	}
}

// beside is a tensor w of two floats that says where they are.
func beside(entries ...string) []byte {
	fields := [][]byte{varint(1, 2), varint(2, 1), message(8, []byte("w")), varint(14, 1)}
	for i := 0; i < len(entries); i += 2 {
		fields = append(fields, message(13, append(message(1, []byte(entries[i])), message(2, []byte(entries[i+1]))...)))
	}
	return tensorFile(fields...)
}

func TestExternalDataAreReadFromTheModelsFolderAlone(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "model")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	eight := []byte{0, 0, 128, 63, 0, 0, 0, 64} // 1 and 2
	for path, data := range map[string][]byte{
		"secret.bin": eight, "model/w.bin": append([]byte("four"), eight...), "model/sub/w.bin": eight, "model/short.bin": eight[:7],
	} {
		if err := os.WriteFile(filepath.Join(top, path), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"out.bin": "../secret.bin", "far.bin": filepath.Join(top, "secret.bin"), "up": "..", "near.bin": "sub/w.bin"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Skipf("SKIPPED, NOTHING PROVED: no symbolic links here: %v", err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hole.bin"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "hole.bin"), 1<<31); err != nil {
		t.Fatal(err)
	}
	load := func(data []byte) (*onnx.Model, error) {
		path := filepath.Join(dir, "model.onnx")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return onnx.Load(path)
	}
	for _, entries := range [][]string{
		{"location", "w.bin", "offset", "4", "length", "8"},
		{"location", "w.bin", "offset", "4"},
		{"location", "sub/w.bin"},
		{"location", "./sub/../sub/w.bin", "length", "8", "checksum", "unread"},
		{"location", "near.bin"}, // a link that stays within
	} {
		m, err := load(beside(entries...))
		if err != nil {
			t.Errorf("%q: %v", entries, err)
			continue
		}
		if got := m.Graph.Initializer("w").Raw; !bytes.Equal(got, eight) || !slices.Equal(m.External, []string{entries[1]}) {
			t.Errorf("%q: read % x from %q", entries, got, m.External)
		}
	}
	huge := varint(1, 1<<29)
	for _, test := range []struct {
		data []byte
		is   error
		says string
	}{
		{beside("location", "../secret.bin"), onnx.ErrUnsupported, `"../secret.bin": unsupported ONNX feature: it is not a path within the model's folder`},
		{beside("location", "sub/../../secret.bin"), onnx.ErrUnsupported, "not a path within"},
		{beside("location", filepath.Join(top, "secret.bin")), onnx.ErrUnsupported, "not a path within"},
		{beside("location", "/dev/zero"), onnx.ErrUnsupported, "not a path within"},
		{beside("location", "out.bin"), onnx.ErrUnsupported, "only files of the model's folder are read"},
		{beside("location", "far.bin"), onnx.ErrUnsupported, "only files of the model's folder"},
		{beside("location", "up/secret.bin"), onnx.ErrUnsupported, "only files of the model's folder"},
		{beside("location", "pipe"), onnx.ErrUnsupported, "no plain file"},
		{beside("location", "sub"), onnx.ErrUnsupported, "no plain file"},
		{beside("location", "lost.bin"), os.ErrNotExist, "keep the file beside the model"},
		{beside("location", "short.bin"), onnx.ErrCorrupt, "the 8 bytes from 0 on, and the file has 7"},
		{beside("location", "w.bin", "offset", "5"), onnx.ErrCorrupt, "the 8 bytes from 5 on, and the file has 12"},
		{beside("location", "w.bin", "offset", "9223372036854775807"), onnx.ErrCorrupt, "the file has 12"},
		{beside("location", "w.bin", "offset", "-4"), onnx.ErrCorrupt, `offset "-4"`},
		{beside("location", "w.bin", "offset", "x"), onnx.ErrCorrupt, `offset "x"`},
		{beside("location", "w.bin", "length", "12"), onnx.ErrCorrupt, "12 bytes for float of dimensions [2]"},
		{beside("location", "w.bin", "location", "sub/w.bin"), onnx.ErrCorrupt, `two entries "location"`},
		{beside("offset", "4"), onnx.ErrCorrupt, "without a location"},
		{beside(), onnx.ErrCorrupt, "without a location"},
		{tensorFile(varint(1, 2), varint(2, 1), varint(14, 1), message(9, eight)), onnx.ErrCorrupt, "both in the model"},
		{tensorFile(varint(1, 2), varint(2, 1), message(13, nil), message(9, eight)), onnx.ErrCorrupt, "both in the model"},
		{tensorFile(varint(1, 2), varint(2, 1), varint(14, 2)), onnx.ErrUnsupported, "at the place 2"},
		{tensorFile(varint(1, 2), varint(2, 8), varint(14, 1), message(13, append(message(1, []byte("location")), message(2, []byte("w.bin"))...))), onnx.ErrUnsupported, "external data of element string"},
		{tensorFile(huge, varint(2, 1), varint(14, 1), message(13, append(message(1, []byte("location")), message(2, []byte("hole.bin"))...))), onnx.ErrLimit, "what a model may have in all"},
		{tensorFile(varint(1, 1<<62), varint(2, 1), varint(14, 1), message(13, append(message(1, []byte("location")), message(2, []byte("w.bin"))...))), onnx.ErrLimit, "dimensions"},
	} {
		m, err := load(test.data)
		if !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v, %v\nwant %v, %q", m, err, test.is, test.says)
		}
	}
}

// What the reference implementation makes of our models, weights in one file or
// one file for each, we read as what we wrote.
func TestModelsThatTheReferenceImplementationTookApartComeBackWhole(t *testing.T) {
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import onnx").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %s has no onnx package (Debian python3-onnx): %v %s", python, err, out)
	}
	graphs, err := draw(5, 1, 13)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, g := range graphs {
		if err := g.model.Save(filepath.Join(dir, g.name+".onnx")); err != nil {
			t.Fatal(err)
		}
	}
	code := `
import glob, os, sys, onnx
for i, path in enumerate(sorted(glob.glob(os.path.join(sys.argv[1], "*.onnx")))):
    folder = path[:-len(".onnx")]
    os.mkdir(folder)
    onnx.save_model(onnx.load(path), os.path.join(folder, "model.onnx"), save_as_external_data=True,
        all_tensors_to_one_file=i % 2 == 0, size_threshold=0, convert_attribute=True)
`
	if out, err := exec.Command(python, "-c", code, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files := 0
	for _, g := range graphs {
		want, err := onnx.Load(filepath.Join(dir, g.name+".onnx"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := onnx.Load(filepath.Join(dir, g.name, "model.onnx"))
		if err != nil {
			t.Errorf("%s: %v", describe(g.model), err)
			continue
		}
		files += len(got.External)
		a, errA := want.Marshal()
		b, errB := got.Marshal()
		if err := errors.Join(errA, errB); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: it comes back as another model, %v", describe(g.model), err)
		}
	}
	if files == 0 {
		t.Error("no weights were beside a model")
	}
}
