package train

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// npy writes an array file with an arbitrary header dictionary.
func npy(header string, data []byte) []byte {
	out := []byte("\x93NUMPY\x01\x00")
	out = binary.LittleEndian.AppendUint16(out, uint16(len(header)))
	return append(append(out, header...), data...)
}

func header(descr, shape string) string {
	return fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': %s, }\n", descr, shape)
}

func npz(t testing.TB, members map[string][]byte) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := zip.NewWriter(&buffer)
	for name, data := range members {
		f, err := w.Create(name + ".npy")
		if err != nil {
			t.Fatal(err)
		}
		f.Write(data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buffer.Bytes()
}

func TestArraysOfEveryElementTypeAreRead(t *testing.T) {
	for _, c := range []struct {
		descr string
		raw   []byte
		want  any
	}{
		{"|u1", []byte{1, 255}, []uint8{1, 255}},
		{"|b1", []byte{0, 1}, []uint8{0, 1}},
		{"|i1", []byte{255, 2}, []int64{-1, 2}},
		{"<i2", []byte{255, 255, 2, 0}, []int64{-1, 2}},
		{"<u2", []byte{255, 255, 2, 0}, []int64{65535, 2}},
		{"<i4", []byte{255, 255, 255, 255, 2, 0, 0, 0}, []int64{-1, 2}},
		{"<u4", []byte{255, 255, 255, 255, 2, 0, 0, 0}, []int64{1<<32 - 1, 2}},
		{"<i8", append(bytes.Repeat([]byte{255}, 8), 2, 0, 0, 0, 0, 0, 0, 0), []int64{-1, 2}},
		{"<f4", []byte{0, 0, 128, 63, 0, 0, 0, 192}, []float32{1, -2}},
		{"<u8", []byte{255, 255, 255, 255, 255, 255, 255, 127, 2, 0, 0, 0, 0, 0, 0, 0}, []int64{1<<63 - 1, 2}},
		{">u2", []byte{1, 2, 0, 3}, []int64{258, 3}},
		{">i4", []byte{255, 255, 255, 255, 0, 0, 0, 2}, []int64{-1, 2}},
		{">f4", []byte{63, 128, 0, 0, 192, 0, 0, 0}, []float32{1, -2}},
		{">f8", []byte{63, 240, 0, 0, 0, 0, 0, 0, 192, 0, 0, 0, 0, 0, 0, 0}, []float64{1, -2}},
		{">u1", []byte{1, 255}, []uint8{1, 255}},
		{"<f2", []byte{0, 0x3c, 0, 0xc0}, []float32{1, -2}},
		{"<f2", []byte{1, 0, 0xff, 0x83}, []float32{0x1p-24, -1023 * 0x1p-24}},
		{"<f2", []byte{0xff, 0x7b, 0, 0x7c}, []float32{65504, float32(math.Inf(1))}},
		{">f2", []byte{0x7e, 0, 0x80, 0}, []float32{float32(math.NaN()), float32(math.Copysign(0, -1))}},
		{"<f8", []byte{0, 0, 0, 0, 0, 0, 240, 63, 0, 0, 0, 0, 0, 0, 0, 192}, []float64{1, -2}},
	} {
		a, err := ReadNPY(bytes.NewReader(npy(header(c.descr, "(2,)"), c.raw)), Limits{})
		if err != nil {
			t.Errorf("%s: %v", c.descr, err)
			continue
		}
		if fmt.Sprint(a.Data) != fmt.Sprint(c.want) || fmt.Sprintf("%T", a.Data) != fmt.Sprintf("%T", c.want) {
			t.Errorf("%s: %T %v, want %T %v", c.descr, a.Data, a.Data, c.want, c.want)
		}
	}
}

func TestMalformedArraysAreErrorsThatSayWhy(t *testing.T) {
	for name, c := range map[string]struct {
		data []byte
		kind error
		says string
	}{
		"empty":           {nil, ErrFormat, ""},
		"no signature":    {[]byte("PK\x03\x04 not numpy"), ErrFormat, "signature"},
		"version 9":       {append([]byte("\x93NUMPY\x09\x00"), 0, 0), ErrFormat, "version 9"},
		"cut header":      {npy(header("|u1", "(2,)"), nil)[:20], ErrFormat, ""},
		"no shape":        {npy("{'descr': '|u1', 'fortran_order': False}", nil), ErrFormat, "header"},
		"objects":         {npy(header("|O", "(2,)"), nil), ErrFormat, `"|O"; save it as numbers`},
		"texts":           {npy(header("<U3", "(2,)"), nil), ErrFormat, "astype('float32')"},
		"complex":         {npy(header("<c16", "(2,)"), nil), ErrFormat, "<c16"},
		"dates":           {npy(header("<M8[D]", "(2,)"), nil), ErrFormat, "<M8[D]"},
		"records":         {npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }", nil), ErrFormat, "save each field"},
		"large numbers":   {npy(header("<u8", "(1,)"), []byte{0, 0, 0, 0, 0, 0, 0, 128}), ErrFormat, "2⁶³"},
		"cut data":        {npy(header("|u1", "(5,)"), []byte{1, 2}), ErrFormat, "ends early"},
		"too many":        {npy(header("|u1", "(99999999999, 99999999999)"), nil), ErrLimit, "limit"},
		"overflowing":     {npy(header("|u1", "(4294967296, 4294967296, 4)"), nil), ErrLimit, "limit"},
		"number too long": {npy(header("|u1", "(99999999999999999999999)"), nil), ErrFormat, "shape"},
		"huge header":     {append([]byte("\x93NUMPY\x02\x00"), 255, 255, 255, 127), ErrLimit, "header"},
	} {
		_, err := ReadNPY(bytes.NewReader(c.data), Limits{})
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error is %v, want %v with %q", name, err, c.kind, c.says)
		}
	}
}

// In Fortran's order the first axis varies fastest.
func TestAnArrayInColumnOrderIsTheSameArray(t *testing.T) {
	for shape, want := range map[string][]uint8{
		"(2, 3)":    {0, 2, 4, 1, 3, 5},
		"(6,)":      {0, 1, 2, 3, 4, 5},
		"(1, 3, 2)": {0, 3, 1, 4, 2, 5},
		"(3, 2, 1)": {0, 3, 1, 4, 2, 5},
	} {
		a, err := ReadNPY(bytes.NewReader(npy("{'descr': '|u1', 'fortran_order': True, 'shape': "+shape+", }", []byte{0, 1, 2, 3, 4, 5})), Limits{})
		if err != nil || !slices.Equal(a.Data.([]uint8), want) {
			t.Errorf("%s: %v, %v; want %v", shape, a.Data, err, want)
		}
	}
	a, err := ReadNPY(bytes.NewReader(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 0), }", nil)), Limits{})
	if err != nil || len(a.Data.([]float32)) != 0 {
		t.Errorf("without elements: %v, %v", a, err)
	}
}

// A header may promise any size up to the limit: memory is spent on data that
// is there, not on promises.
func TestAPromiseOfManyElementsCostsNoMemory(t *testing.T) {
	file := npy(header("<f8", "(1000000000,)"), make([]byte, 64))
	allocated := testing.AllocsPerRun(3, func() {
		if _, err := ReadNPY(bytes.NewReader(file), Limits{}); !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
	})
	if allocated > 500 {
		t.Errorf("%g allocations", allocated)
	}
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ReadNPY(bytes.NewReader(file), Limits{})
		}
	})
	if bytes := result.AllocedBytesPerOp(); bytes > 4<<20 {
		t.Errorf("%d bytes allocated for a file of %d", bytes, len(file))
	}
}

func medFile(t *testing.T, images, labels []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "set.npz")
	if err := os.WriteFile(path, npz(t, map[string][]byte{"train_images": images, "train_labels": labels}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAMedMNISTFileBecomesASet(t *testing.T) {
	path := medFile(t, npy(header("|u1", "(3, 1, 2)"), []byte{1, 2, 3, 4, 5, 6}), npy(header("|u1", "(3, 1)"), []byte{0, 1, 1}))
	s, err := LoadMedMNIST(path, "train", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Len() != 3 || s.Channels != 1 || s.Rows != 1 || s.Columns != 2 || !slices.Equal(s.Counts(), []int{1, 2}) || !slices.Equal(s.Image(1), []uint8{3, 4}) {
		t.Errorf("set is %+v", s)
	}
	some := s.Subset([]int{2, 0})
	if !slices.Equal(some.Pixels, []uint8{5, 6, 1, 2}) || !slices.Equal(some.Labels, []int{1, 0}) {
		t.Errorf("subset is %+v", some)
	}
}

func TestColourComesOutChannelsFirst(t *testing.T) {
	path := medFile(t, npy(header("|u1", "(2, 1, 2, 3)"), []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}), npy(header("<i8", "(2,)"), append(make([]byte, 8), 1, 0, 0, 0, 0, 0, 0, 0)))
	s, err := LoadMedMNIST(path, "train", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Channels != 3 || !slices.Equal(s.Image(0), []uint8{1, 4, 2, 5, 3, 6}) {
		t.Errorf("set is %+v", s)
	}
}

func TestFloatsAndVolumesAndManyLabelsAreReadAsTheyAre(t *testing.T) {
	s, err := LoadMedMNIST(medFile(t, npy(header("<f4", "(2, 3)"), make([]byte, 24)), npy(header("|u1", "(2, 2)"), []byte{0, 1, 1, 0})), "train", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Multi() || s.Len() != 2 || s.Classes != 2 || !slices.Equal(s.Example(), []int64{3}) || !s.Has(0, 1) || s.Has(0, 0) {
		t.Errorf("set is %+v", s)
	}
	s, err = LoadMedMNIST(medFile(t, npy(header("|u1", "(2, 1, 2, 2)"), []byte{0, 51, 102, 153, 204, 255, 0, 0}), npy(header("|u1", "(2,)"), []byte{0, 1})), "train", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Example(), []int64{1, 1, 2, 2}) || !slices.Equal(s.Values[:4], []float32{0, 0.2, 0.4, 0.6}) {
		t.Errorf("volume is %+v", s)
	}
}

func TestSetsThatTrainingWouldStumbleOverAreRefused(t *testing.T) {
	two := npy(header("|u1", "(2, 1, 1)"), []byte{1, 2})
	for name, c := range map[string]struct {
		images, labels []byte
		says           string
	}{
		"an empty class":   {two, npy(header("|u1", "(2, 1)"), []byte{0, 2}), "class 1 has no example"},
		"one class":        {two, npy(header("|u1", "(2, 1)"), []byte{0, 0}), "class 1 has no example"},
		"too few labels":   {two, npy(header("|u1", "(1, 1)"), []byte{0}), "one label an image"},
		"negative labels":  {two, npy(header("|i1", "(2, 1)"), []byte{0, 255}), "label -1"},
		"fractions":        {two, npy(header("<f4", "(2, 1)"), make([]byte, 8)), "integers"},
		"images of shorts": {npy(header("<i2", "(2, 1, 1)"), make([]byte, 4)), npy(header("|u1", "(2, 1)"), []byte{0, 1}), "bytes"},
		"marks of 2":       {two, npy(header("|u1", "(2, 2)"), []byte{0, 1, 1, 2}), "label 2 of image 1"},
		"an unused label":  {two, npy(header("|u1", "(2, 2)"), []byte{0, 1, 0, 0}), "class 0 has no example"},
		"a label of all":   {two, npy(header("|u1", "(2, 2)"), []byte{0, 1, 1, 1}), "every example has label 1"},
		"images of 1 axis": {npy(header("|u1", "(2,)"), []byte{1, 2}), npy(header("|u1", "(2, 1)"), []byte{0, 1}), "[N, rows, columns, 3]"},
		"not a number":     {npy(header("<f4", "(2, 1)"), []byte{0, 0, 0xc0, 0x7f, 0, 0, 0, 0}), npy(header("|u1", "(2, 1)"), []byte{0, 1}), "value 0 of example 0 is NaN"},
		"no images":        {npy(header("|u1", "(0, 1, 1)"), nil), npy(header("|u1", "(0, 1)"), nil), "images of shape [0 1 1]"},
	} {
		_, err := LoadMedMNIST(medFile(t, c.images, c.labels), "train", Limits{})
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error is %v, want %q", name, err, c.says)
		}
	}
	_, err := LoadMedMNIST(medFile(t, two, two), "test", Limits{})
	if err == nil || !errors.Is(err, ErrNoSplit) || !strings.Contains(err.Error(), "train_images") {
		t.Errorf("missing split: error is %v", err)
	}
}

func FuzzNPY(f *testing.F) {
	f.Add(npy(header("|u1", "(2, 3)"), make([]byte, 6)))
	f.Add(npy(header("<f8", "(1,)"), make([]byte, 8)))
	f.Add(npy(header("<i8", "()"), make([]byte, 8)))
	f.Add(npy(header("|u1", "(0, 9)"), nil))
	f.Add([]byte("\x93NUMPY\x03\x00\x05\x00\x00\x00{'a'}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := ReadNPY(bytes.NewReader(data), Limits{Elements: 1 << 16})
		if err != nil {
			return
		}
		if a.Len() > 1<<16 {
			t.Errorf("%d elements pass a limit of %d", a.Len(), 1<<16)
		}
	})
}

func FuzzNPZ(f *testing.F) {
	f.Add(npz(f, map[string][]byte{"train_images": npy(header("|u1", "(2, 1, 1)"), []byte{1, 2}), "train_labels": npy(header("|u1", "(2, 1)"), []byte{0, 1})}))
	f.Add([]byte("PK\x05\x06"))
	f.Fuzz(func(t *testing.T, data []byte) {
		arrays, err := ReadNPZ(bytes.NewReader(data), int64(len(data)), Limits{Elements: 1 << 16, Arrays: 4}, "train_images", "train_labels")
		if err != nil {
			return
		}
		if s, err := medMNIST(arrays["train_images"], arrays["train_labels"]); err == nil && s.Check() == nil && len(s.Image(s.Len()-1)) == 0 {
			t.Error("an image without pixels passes the check")
		}
	})
}
