package safetensors_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
)

func sample() map[string]engine.Tensor {
	return map[string]engine.Tensor{
		"w":      engine.Float32([]int64{2, 3}, []float32{1, -2, 3.5, float32(math.Inf(1)), 0, 1e-40}),
		"d":      engine.Float64([]int64{1}, []float64{math.Pi}),
		"scalar": engine.Int64([]int64{}, []int64{-7}),
		"i":      engine.Int32([]int64{2}, []int32{1 << 30, -1}),
		"b":      engine.Int8([]int64{3}, []int8{-128, 0, 127}),
		"u":      engine.Uint8([]int64{1, 3}, []uint8{0, 128, 255}),
		"mask":   engine.Bool([]int64{2}, []bool{true, false}),
		"none":   engine.Float32([]int64{0, 4}, []float32{}),
		"é\"\\":  engine.Float32([]int64{1}, []float32{9}),
	}
}

func write(t testing.TB, tensors map[string]engine.Tensor, metadata map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := safetensors.Write(&b, tensors, metadata); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(data []byte) (*safetensors.File, error) {
	return safetensors.Read(bytes.NewReader(data), int64(len(data)), safetensors.Limits{})
}

// file is a safetensors file with the given header and data.
func file(header, data string) []byte {
	return []byte(string(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) + header + data)
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	metadata := map[string]string{"loss": "0.5"}
	data := write(t, sample(), metadata)
	f, err := read(data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(f.Tensors, sample()) || !reflect.DeepEqual(f.Metadata, metadata) {
		t.Errorf("read %v\nwant %v", f, sample())
	}
	if again := write(t, sample(), metadata); !bytes.Equal(again, data) {
		t.Error("equal tensors give different bytes")
	}
	if empty, err := read(write(t, nil, nil)); err != nil || len(empty.Tensors) != 0 {
		t.Errorf("no tensors: %v, %v", empty, err)
	}
}

func TestEveryTensorIsAligned(t *testing.T) {
	data := write(t, sample(), nil)
	if start := 8 + binary.LittleEndian.Uint64(data); start%8 != 0 {
		t.Errorf("the data begins at %d", start)
	}
	// NumPy checks the rest in TestNumPyFindsTheTensorsByTheirOffsets.
}

func TestNumPyFindsTheTensorsByTheirOffsets(t *testing.T) {
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import numpy").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %s has no numpy: %v %s", python, err, out)
	}
	path := filepath.Join(t.TempDir(), "x.safetensors")
	if err := os.WriteFile(path, write(t, sample(), map[string]string{"a": "b"}), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(python, "-c", `
import json, struct, sys, numpy as np
raw = open(sys.argv[1], "rb").read()
n, = struct.unpack("<Q", raw[:8])
types = dict(F64="<f8", F32="<f4", I64="<i8", I32="<i4", I8="i1", U8="u1", BOOL="?")
header = json.loads(raw[8:8+n])
for name, e in sorted(header.items()):
    if name == "__metadata__":
        print(name, e); continue
    dtype = np.dtype(types[e["dtype"]])
    a, b = e["data_offsets"]
    assert (8 + n + a) % dtype.itemsize == 0, name
    print(name, e["dtype"], np.frombuffer(raw[8+n+a:8+n+b], dtype).reshape(e["shape"]).tolist())
`, path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := `__metadata__ {'a': 'b'}
b I8 [-128, 0, 127]
d F64 [3.141592653589793]
i I32 [1073741824, -1]
mask BOOL [True, False]
none F32 []
scalar I64 -7
u U8 [[0, 128, 255]]
w F32 [[1.0, -2.0, 3.5], [inf, 0.0, 9.99994610111476e-41]]
é"\ F32 [9.0]
`
	if string(out) != want {
		t.Errorf("NumPy reads\n%s\nwant\n%s", out, want)
	}
}

func TestSixteenBitFloatsComeBackAsFloat32(t *testing.T) {
	half := string([]byte{0x00, 0x3c, 0x01, 0x00, 0x00, 0xfc, 0x00, 0x80, 0xff, 0x7b})
	f, err := read(file(`{"h":{"dtype":"F16","shape":[5],"data_offsets":[0,10]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[10,12]}}`, half+"\x80\xbf"))
	if err != nil {
		t.Fatal(err)
	}
	want := []float32{1, 1.0 / (1 << 24), float32(math.Inf(-1)), float32(math.Copysign(0, -1)), 65504}
	if got := f.Tensors["h"].Data.([]float32); !reflect.DeepEqual(got, want) || !math.Signbit(float64(got[3])) {
		t.Errorf("float16: %v, want %v", got, want)
	}
	if got := f.Tensors["b"].Data.([]float32); got[0] != -1 {
		t.Errorf("bfloat16: %v, want -1", got)
	}
}

func TestABadFileIsAnErrorThatSaysWhat(t *testing.T) {
	good := `{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`
	if _, err := read(file(good+"   ", "ab")); err != nil {
		t.Fatalf("a padded header is legal: %v", err)
	}
	for name, c := range map[string]struct {
		data []byte
		is   error
		says string
	}{
		"empty":             {nil, safetensors.ErrFormat, "length of the header"},
		"short":             {[]byte("1234567"), safetensors.ErrFormat, "length of the header"},
		"header too long":   {[]byte("\xff\x00\x00\x00\x00\x00\x00\x00{}"), safetensors.ErrFormat, "255 bytes in a file of 10"},
		"header huge":       {[]byte("\xff\xff\xff\xff\xff\xff\xff\xff{}"), safetensors.ErrLimit, "header"},
		"no object":         {file(` {}`, ""), safetensors.ErrFormat, "{"},
		"cut object":        {file(`{"x":`, ""), safetensors.ErrFormat, `"x"`},
		"behind the object": {file(good+"{}", "ab"), safetensors.ErrFormat, "behind"},
		"twice": {file(`{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, "ab"),
			safetensors.ErrFormat, `"x" comes twice`},
		"unknown field":   {file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"more":1}}`, "ab"), safetensors.ErrFormat, "more"},
		"unknown type":    {file(`{"x":{"dtype":"C64","shape":[2],"data_offsets":[0,2]}}`, "ab"), safetensors.ErrType, "C64"},
		"negative":        {file(`{"x":{"dtype":"U8","shape":[-1,-2],"data_offsets":[0,2]}}`, "ab"), safetensors.ErrFormat, "shape"},
		"overflow":        {file(`{"x":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`, ""), safetensors.ErrFormat, "shape"},
		"wrong size":      {file(`{"x":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}}`, "ab"), safetensors.ErrFormat, "3 bytes"},
		"three offsets":   {file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2,4]}}`, "ab"), safetensors.ErrFormat, "3 offsets"},
		"no type":         {file(`{"x":{"shape":[2],"data_offsets":[0,2]}}`, "ab"), safetensors.ErrType, `"x"`},
		"backwards":       {file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}`, "ab"), safetensors.ErrFormat, `"x"`},
		"beyond":          {file(good, "a"), safetensors.ErrFormat, "within 1"},
		"left over":       {file(good, "abc"), safetensors.ErrFormat, "1 bytes belong to no tensor"},
		"hole":            {file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, "abc"), safetensors.ErrFormat, "from 0"},
		"overlap":         {file(`{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, "abc"), safetensors.ErrFormat, "from 2"},
		"deep":            {file(`{"x":{"dtype":"U8","shape":[`+strings.Repeat("1,", 40)+`1],"data_offsets":[0,1]}}`, "a"), safetensors.ErrLimit, "41 dimensions"},
		"numeric text":    {file(`{"__metadata__":{"a":1}}`, ""), safetensors.ErrFormat, "__metadata__"},
		"metadata twice":  {file(`{"__metadata__":{},"__metadata__":{}}`, ""), safetensors.ErrFormat, "twice"},
		"a list of lists": {file(`{"x":[[]]}`, ""), safetensors.ErrFormat, `"x"`},
	} {
		_, err := read(c.data)
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %v with %q", name, err, c.is, c.says)
		}
	}
	if _, err := safetensors.Read(bytes.NewReader(file(good, "ab")), int64(8+len(good)+2), safetensors.Limits{Data: 1}); !errors.Is(err, safetensors.ErrLimit) {
		t.Errorf("more data than allowed: %v", err)
	}
}

func TestATensorThatIsNotOneIsNotWritten(t *testing.T) {
	for name, tensor := range map[string]engine.Tensor{
		"short":        engine.Float32([]int64{3}, []float32{1}),
		"text":         {Shape: []int64{1}, Data: []string{"a"}},
		"__metadata__": engine.Float32([]int64{1}, []float32{1}),
	} {
		if err := safetensors.Write(&bytes.Buffer{}, map[string]engine.Tensor{name: tensor}, nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want an error with its name", name, err)
		}
	}
}

// Whatever Read accepts, Write gives back so that it reads alike, and a file
// never costs more memory than a small multiple of its size.
func FuzzRead(f *testing.F) {
	f.Add(write(f, sample(), map[string]string{"a": "b"}))
	f.Add(write(f, nil, nil))
	f.Add(file(`{"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}`, "\x00\x3c\x01\x7c"))
	f.Add(file(`{"x":{"dtype":"U8","shape":[0,9223372036854775807],"data_offsets":[0,0]}}`, ""))
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := read(data)
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := safetensors.Write(&b, first.Tensors, first.Metadata); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		second, err := read(b.Bytes())
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if a, b := fmt.Sprint(first), fmt.Sprint(second); a != b { // text, because NaN is not equal to itself
			t.Fatalf("%s came back as %s", a, b)
		}
	})
}

func ExampleWrite() {
	var b bytes.Buffer
	err := safetensors.Write(&b, map[string]engine.Tensor{
		"fc.bias": engine.Float32([]int64{2}, []float32{1, -1}),
	}, map[string]string{"made_by": "an example"})
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := safetensors.Read(bytes.NewReader(b.Bytes()), int64(b.Len()), safetensors.Limits{})
	fmt.Println(f.Tensors["fc.bias"].Data, f.Metadata["made_by"], err)
	// Output: [1 -1] an example <nil>
}
