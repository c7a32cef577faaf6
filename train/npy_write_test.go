package train

import (
	"bytes"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestAWrittenArchiveIsReadBack(t *testing.T) {
	arrays := map[string]Array{
		"f":    {[]int64{2, 2}, []float32{1, -2, 0.5, float32(math.Inf(-1))}},
		"d":    {[]int64{}, []float64{math.Pi}},
		"i":    {[]int64{3}, []int64{-1, 0, 1 << 40}},
		"u":    {[]int64{1, 1, 2}, []uint8{0, 255}},
		"a/b":  {[]int64{0, 3}, []float32(nil)},
		"wide": {append(make([]int64, 0), 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), []uint8{7}},
	}
	var b bytes.Buffer
	if err := WriteNPZ(&b, arrays); err != nil {
		t.Fatal(err)
	}
	got, err := ReadNPZ(bytes.NewReader(b.Bytes()), int64(b.Len()), Limits{}, "f", "d", "i", "u", "a/b", "wide")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, arrays) {
		t.Errorf("read %v\nwant %v", got, arrays)
	}
	var again bytes.Buffer
	if err := WriteNPZ(&again, arrays); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Errorf("equal arrays give different bytes (%v)", err)
	}
}

func TestNumPyReadsWhatIsWritten(t *testing.T) {
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import numpy").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %s has no numpy: %v %s", python, err, out)
	}
	path := filepath.Join(t.TempDir(), "x.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	err = WriteNPZ(f, map[string]Array{
		"f": {[]int64{2, 1}, []float32{1, -2}}, "d": {[]int64{1}, []float64{2.5}}, "i": {[]int64{}, []int64{-9}}, "s": {[]int64{2}, []int32{1, -1}},
		"u": {[]int64{2}, []uint8{0, 255}}, "b": {[]int64{1}, []int8{-128}}, "m": {[]int64{2}, []bool{true, false}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(python, "-c", `
import sys, numpy as np
z = np.load(sys.argv[1])
for k in sorted(z.files): print(k, z[k].dtype, z[k].tolist())
`, path).CombinedOutput()
	want := `b int8 [-128]
d float64 [2.5]
f float32 [[1.0], [-2.0]]
i int64 -9
m bool [True, False]
s int32 [1, -1]
u uint8 [0, 255]
`
	if err != nil || string(out) != want {
		t.Errorf("NumPy reads (%v)\n%s\nwant\n%s", err, out, want)
	}
}

func TestAnArrayThatIsNotOneIsNotWritten(t *testing.T) {
	if err := WriteNPY(&bytes.Buffer{}, Array{[]int64{3}, []float32{1}}); err == nil || !strings.Contains(err.Error(), "1 elements for shape [3]") {
		t.Errorf("one element for three: %v", err)
	}
	if err := WriteNPZ(&bytes.Buffer{}, map[string]Array{"x": {[]int64{1}, []string{"a"}}}); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("text: %v", err)
	}
}
