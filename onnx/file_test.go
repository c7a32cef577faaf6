package onnx_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/vigie/vigie/onnx"
)

// everything is a model that uses each field this package keeps.
func everything() *onnx.Model {
	inner := &onnx.Graph{
		Name:    "branch",
		Nodes:   []*onnx.Node{{OpType: "Identity", Name: "i", Inputs: []string{"y"}, Outputs: []string{"z"}}},
		Outputs: []onnx.Value{{Name: "z", Type: onnx.Float, Shape: []onnx.Dim{}}},
	}
	tensor := onnx.NewTensor("t", []int64{2}, []int16{-1, 2})
	return &onnx.Model{
		IRVersion:       8,
		Opsets:          map[string]int64{"": 17, "com.microsoft": 1},
		ProducerName:    "p",
		ProducerVersion: "1",
		Metadata:        map[string]string{"a": "1", "b": ""},
		Graph: &onnx.Graph{
			Name: "g",
			Nodes: []*onnx.Node{{
				Name: "n", OpType: "Op", Domain: "com.microsoft", Inputs: []string{"x", "", "w"}, Outputs: []string{"y", ""},
				Attributes: []onnx.Attribute{
					onnx.FloatAttribute("f", -1.5), onnx.IntAttribute("i", -3), onnx.TextAttribute("s", "text"),
					onnx.TensorAttribute("t", tensor), {Name: "g", Type: onnx.AttributeGraph, Graph: inner},
					onnx.FloatsAttribute("fs", 1, float32(math.Inf(1))), onnx.IntsAttribute("is", 1, -1<<63, 1<<62),
					{Name: "ss", Type: onnx.AttributeStrings, Strings: [][]byte{[]byte("a"), {}}},
					{Name: "ts", Type: onnx.AttributeTensors, Tensors: []*onnx.Tensor{tensor}},
					{Name: "gs", Type: onnx.AttributeGraphs, Graphs: []*onnx.Graph{inner, inner}},
					onnx.IntsAttribute("none"),
				},
			}},
			Inputs:  []onnx.Value{{Name: "x", Type: onnx.Float, Shape: []onnx.Dim{{Value: -1, Param: "batch"}, {Value: 0}, {Value: -1}, {Value: 7}}}},
			Outputs: []onnx.Value{{Name: "y", Type: onnx.Float16}},
			Initializers: []*onnx.Tensor{
				onnx.NewTensor("w", []int64{2, 1}, []float32{1, 2}),
				{Name: "words", Type: onnx.String, Dims: []int64{2}, Strings: [][]byte{[]byte("é"), {}}},
				onnx.NewTensor("empty", []int64{0, 3}, []float64{}),
				onnx.NewTensor("scalar", nil, []bool{true}),
			},
			ValueInfo: []onnx.Value{{Name: "y", Type: onnx.Float16, Shape: []onnx.Dim{}}},
		},
	}
}

func TestAModelComesBackAsItWasWritten(t *testing.T) {
	m := everything()
	data, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := onnx.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := back.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, again) {
		t.Error("writing what was read gives other bytes")
	}
	// The differences that carry no meaning: nil and empty lists.
	if got, want := back.Graph.Nodes[0].Attributes[6], m.Graph.Nodes[0].Attributes[6]; !reflect.DeepEqual(got, want) {
		t.Errorf("attribute %+v, want %+v", got, want)
	}
	if got, want := back.Graph.Inputs, m.Graph.Inputs; !reflect.DeepEqual(got, want) {
		t.Errorf("inputs %+v, want %+v", got, want)
	}
	if got, want := back.Graph.Outputs, m.Graph.Outputs; !reflect.DeepEqual(got, want) {
		t.Errorf("outputs %+v, want %+v", got, want)
	}
	if got, want := back.Graph.ValueInfo, m.Graph.ValueInfo; !reflect.DeepEqual(got, want) {
		t.Errorf("inner values %+v, want %+v", got, want)
	}
	if !reflect.DeepEqual(back.Opsets, m.Opsets) || !reflect.DeepEqual(back.Metadata, m.Metadata) {
		t.Errorf("opsets %v, metadata %v", back.Opsets, back.Metadata)
	}
}

func TestSavingReplacesAFileWholeOrNotAtAll(t *testing.T) {
	folder := t.TempDir()
	path, former := filepath.Join(folder, "m.onnx"), filepath.Join(folder, "former")
	if err := os.WriteFile(path, []byte("former"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path, former); err != nil {
		t.Skip("no hard links here:", err)
	}
	if err := everything().Save(path); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(former); err != nil || string(b) != "former" {
		t.Errorf("the former file was written over: %q, %v", b, err)
	}
	occupied := filepath.Join(folder, "occupied")
	if err := os.Mkdir(occupied, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := everything().Save(occupied); err == nil {
		t.Error("a folder was replaced by a model")
	}
	if left, err := filepath.Glob(filepath.Join(folder, "*.part")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestACloneSharesNothing(t *testing.T) {
	m := everything()
	before, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	c := m.Clone()
	scramble(reflect.ValueOf(c))
	after, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("changing every part of a clone changed the original")
	}
}

// scramble changes everything that can be reached from v.
func scramble(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			scramble(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			scramble(v.Field(i))
		}
	case reflect.Slice:
		for i := range v.Len() {
			scramble(v.Index(i))
		}
	case reflect.Map:
		v.SetMapIndex(reflect.ValueOf("planted"), reflect.Zero(v.Type().Elem()))
	case reflect.String:
		v.SetString(v.String() + "!")
	case reflect.Uint8:
		v.SetUint(v.Uint() + 1)
	case reflect.Int64, reflect.Int32:
		v.SetInt(v.Int() + 1)
	case reflect.Float32:
		v.SetFloat(v.Float() + 1)
	}
}

// tensorFile wraps the fields of a TensorProto into a model with that constant.
func tensorFile(fields ...[]byte) []byte {
	tensor := message(8, []byte("t"))
	for _, f := range fields {
		tensor = append(tensor, f...)
	}
	return append(varint(1, 8), message(7, message(5, tensor))...)
}

func message(number protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), b)
}

func varint(number protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.VarintType), v)
}

func TestEveryWayToWriteATensorGivesTheSameBytes(t *testing.T) {
	half := []byte{0x00, 0x3c, 0x00, 0xc0} // 1, -2
	floats := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, math.Float32bits(1)), math.Float32bits(-2))
	doubles := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, math.Float64bits(1)), math.Float64bits(-2))
	minusTwo := uint64(math.MaxUint64 - 1)
	packed := protowire.AppendVarint(protowire.AppendVarint(nil, 1), minusTwo)
	two := varint(1, 2)
	for _, test := range []struct {
		name string
		typ  onnx.DataType
		data []byte // the fields that hold the elements
		raw  []byte
	}{
		{"float, raw", onnx.Float, message(9, floats), floats},
		{"float, packed", onnx.Float, message(4, floats), floats},
		{"float, one by one", onnx.Float, append(protowire.AppendFixed32(protowire.AppendTag(nil, 4, protowire.Fixed32Type), math.Float32bits(1)),
			protowire.AppendFixed32(protowire.AppendTag(nil, 4, protowire.Fixed32Type), math.Float32bits(-2))...), floats},
		{"double, packed", onnx.Double, message(10, doubles), doubles},
		{"int64, packed", onnx.Int64, message(7, packed), []byte{1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
		{"int64, one by one", onnx.Int64, append(varint(7, 1), varint(7, minusTwo)...), []byte{1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
		{"int32", onnx.Int32, message(5, packed), []byte{1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff}},
		{"int8", onnx.Int8, message(5, packed), []byte{1, 0xfe}},
		{"uint8", onnx.Uint8, message(5, []byte{1, 2}), []byte{1, 2}},
		{"bool", onnx.Bool, message(5, []byte{1, 0}), []byte{1, 0}},
		{"float16", onnx.Float16, message(5, protowire.AppendVarint(protowire.AppendVarint(nil, 0x3c00), 0xc000)), half},
		{"uint64", onnx.Uint64, message(11, packed), []byte{1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
		{"uint32", onnx.Uint32, message(11, []byte{1, 2}), []byte{1, 0, 0, 0, 2, 0, 0, 0}},
	} {
		m, err := onnx.Parse(tensorFile(two, varint(2, uint64(test.typ)), test.data))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := m.Graph.Initializers[0]; !bytes.Equal(got.Raw, test.raw) || got.Type != test.typ {
			t.Errorf("%s: %v % x, want % x", test.name, got.Type, got.Raw, test.raw)
		}
	}
}

func TestHalfPrecisionIsRead(t *testing.T) {
	raw := []byte{0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00, 0xff, 0x7b, 0x00, 0x7c, 0x00, 0x80}
	got, err := (&onnx.Tensor{Type: onnx.Float16, Dims: []int64{6}, Raw: raw}).Floats()
	if err != nil {
		t.Fatal(err)
	}
	want := []float64{1, -2, 0x1p-24, 65504, math.Inf(1), math.Copysign(0, -1)}
	for i := range want {
		if math.Float64bits(got[i]) != math.Float64bits(want[i]) {
			t.Errorf("element %d is %v, want %v", i, got[i], want[i])
		}
	}
}

func TestWhatCannotBeTrustedIsRefusedByName(t *testing.T) {
	float := varint(2, 1)
	value := func(typ []byte) []byte {
		return message(7, message(11, append(message(1, []byte("x")), message(2, typ)...)))
	}
	attribute := func(fields []byte) []byte { return message(7, message(1, message(5, fields))) }
	deep := []byte{}
	for range onnx.MaxDepth {
		deep = message(1, message(5, message(6, deep)))
	}
	for _, test := range []struct {
		name string
		data []byte
		is   error
		says string
	}{
		{"nothing", nil, onnx.ErrCorrupt, "no graph"},
		{"text", []byte("this is not a model"), onnx.ErrCorrupt, ""},
		{"external data", tensorFile(varint(1, 1), float, message(13, nil), varint(14, 1)), onnx.ErrUnsupported, "external data"},
		{"external location alone", tensorFile(varint(1, 1), float, varint(14, 1)), onnx.ErrUnsupported, "external data"},
		{"a segment", tensorFile(message(3, nil)), onnx.ErrUnsupported, "segments"},
		{"fewer elements than said", tensorFile(varint(1, 3), float, message(9, make([]byte, 8))), onnx.ErrCorrupt, "8 bytes"},
		{"more elements than memory", tensorFile(varint(1, 1<<40), varint(1, 1<<40), float, message(9, make([]byte, 8))), onnx.ErrLimit, "dimensions"},
		{"a negative dimension", tensorFile(varint(1, math.MaxUint64), float, message(9, nil)), nil, "negative"},
		{"elements in two fields", tensorFile(varint(1, 1), float, message(9, make([]byte, 4)), message(4, make([]byte, 4))), onnx.ErrCorrupt, "two fields"},
		{"floats as integers", tensorFile(varint(1, 1), float, message(7, []byte{1})), onnx.ErrCorrupt, "float elements in field 7"},
		{"an 8-bit float", tensorFile(varint(1, 1), varint(2, 17), message(9, []byte{1})), onnx.ErrUnsupported, "type 17"},
		{"too many dimensions", tensorFile(message(1, bytes.Repeat([]byte{1}, 40)), float), onnx.ErrLimit, "dimensions"},
		{"functions", append(message(7, nil), message(25, nil)...), onnx.ErrUnsupported, "functions"},
		{"training information", append(message(7, nil), message(20, nil)...), onnx.ErrUnsupported, "training"},
		{"sparse constants", message(7, message(15, nil)), onnx.ErrUnsupported, "sparse"},
		{"a sequence", value(message(4, nil)), onnx.ErrUnsupported, "not a tensor"},
		{"a map", value(message(5, nil)), onnx.ErrUnsupported, "not a tensor"},
		{"a sparse attribute", attribute(message(22, nil)), onnx.ErrUnsupported, "sparse"},
		{"an attribute of a function", attribute(message(21, []byte("r"))), onnx.ErrUnsupported, "function"},
		{"an attribute of unknown type", attribute(varint(20, 99)), onnx.ErrUnsupported, "99"},
		{"an attribute without its tensor", attribute(varint(20, 4)), onnx.ErrCorrupt, "no value"},
		{"an attribute without its graph", attribute(varint(20, 5)), onnx.ErrCorrupt, "no value"},
		{"two graphs", append(message(7, nil), message(7, nil)...), onnx.ErrCorrupt, "two graphs"},
		{"graphs in graphs", message(7, deep), onnx.ErrLimit, "nested"},
		{"a number for a name", message(7, varint(2, 1)), onnx.ErrCorrupt, "wire type"},
		{"a cut", tensorFile(varint(1, 1), float, message(9, make([]byte, 4)))[:12], onnx.ErrCorrupt, ""},
		{"two versions", append(message(7, nil), append(message(8, varint(2, 17)), message(8, append(message(1, []byte("ai.onnx")), varint(2, 18)...))...)...), onnx.ErrCorrupt, "version 17 and 18"},
	} {
		m, err := onnx.Parse(test.data)
		if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, %v\nwant %v, %q", test.name, m, err, test.is, test.says)
		}
	}
}

func TestAFileOfEmptyMessagesIsRefusedBeforeItFillsMemory(t *testing.T) {
	// Two bytes in the file become a node, an attribute or a value in memory.
	for name, unit := range map[string][]byte{"nodes": message(1, nil), "values": message(11, nil), "inputs": nil} {
		body := bytes.Repeat(unit, onnx.MaxItems+1)
		if name == "inputs" {
			body = message(1, bytes.Repeat(message(1, nil), onnx.MaxItems+1))
		}
		if _, err := onnx.Parse(message(7, body)); !errors.Is(err, onnx.ErrLimit) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := everything().Save(path); err != nil {
		t.Fatal(err)
	}
	m, err := onnx.Load(path)
	if err != nil || m.Graph.Name != "g" {
		t.Errorf("%v, %v", m, err)
	}
	if err := os.WriteFile(path, []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := onnx.Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("an error that does not name the file: %v", err)
	}
	if _, err := onnx.Load(path + ".absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent file gives %v", err)
	}
}

// reread has Python's onnx read a file, fill its typed fields where ours are
// raw, and write it again.
const reread = `
import sys, onnx
from onnx import numpy_helper, helper
m = onnx.load(sys.argv[1])
onnx.checker.check_model(m)
for t in m.graph.initializer:
    a = numpy_helper.to_array(t)
    typed = helper.make_tensor(t.name, t.data_type, t.dims, a.flatten().tolist())
    t.CopyFrom(typed)
onnx.save(m, sys.argv[2])
`

func TestTheReferenceImplementationReadsWhatWeWriteAndTheReverse(t *testing.T) {
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import onnx").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %s has no onnx package (Debian python3-onnx): %v %s", python, err, out)
	}
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, batch, number(2))
	b.Constant(onnx.NewTensor("ints", []int64{2}, []int64{-5, 1 << 40}))
	b.Constant(onnx.NewTensor("bytes", []int64{2}, []int8{-5, 5}))
	b.Constant(onnx.NewTensor("truths", []int64{2}, []bool{true, false}))
	b.Constant(onnx.NewTensor("doubles", []int64{2}, []float64{math.Pi, -1}))
	b.Constant(onnx.NewTensor("unsigned", []int64{1}, []uint64{1 << 50}))
	w := b.Weight("w", []int64{2, 2}, []float32{1, 2, 3, -4})
	b.Output(b.Op("MatMul", []string{x, w}), onnx.Float, batch, number(2))
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	ours, theirs, program := filepath.Join(folder, "a.onnx"), filepath.Join(folder, "b.onnx"), filepath.Join(folder, "reread.py")
	if err := errors.Join(m.Save(ours), os.WriteFile(program, []byte(reread), 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(python, program, ours, theirs).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	back, err := onnx.Load(theirs)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := m.Marshal()
	got, err := back.Marshal()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v: the model is not the same after a round through the reference implementation", err)
	}
}

func FuzzParse(f *testing.F) {
	full, err := everything().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	f.Add(tensorFile(varint(1, 2), varint(2, 7), message(7, []byte{1, 2})))
	graphs, err := draw(3, 1, 17)
	if err != nil {
		f.Fatal(err)
	}
	for _, g := range graphs {
		data, err := g.model.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := onnx.Parse(data)
		if err != nil {
			return
		}
		first, err := m.Marshal()
		if err != nil {
			t.Fatalf("a model that was read cannot be written: %v", err)
		}
		back, err := onnx.Parse(first)
		if err != nil {
			t.Fatalf("a model that was written cannot be read: %v", err)
		}
		second, err := back.Marshal()
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("writing is not stable: %v", err)
		}
		if m.Check() != nil {
			return
		}
		if _, err := onnx.InferShapes(m, map[string]int64{"batch": 2}); err != nil {
			return
		}
		if _, err := onnx.Inspect(m); err != nil {
			t.Fatalf("a model whose shapes are inferred cannot be inspected: %v", err)
		}
	})
}
