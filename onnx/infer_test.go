package onnx_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx"
)

var batch = onnx.Dim{Value: -1, Param: "batch"}

func number(n int64) onnx.Dim { return onnx.Dim{Value: n} }

// inferred returns the shape of the first value of the model that was built by
// build, as text.
func inferred(t *testing.T, bind map[string]int64, build func(b *onnx.Builder) string) string {
	t.Helper()
	b := onnx.NewBuilder(17)
	name := build(b)
	b.Output(name, onnx.Float)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	m.Graph.Outputs[0] = onnx.Value{Name: name}
	values, err := onnx.InferShapes(m, bind)
	if err != nil {
		return err.Error()
	}
	return values[name].String()
}

// TestAnExportersShapeArithmeticIsFollowed is what torch.onnx.export writes
// for x.view(x.size(0), -1), x.view(-1, 12), and others.
func TestAnExportersShapeArithmeticIsFollowed(t *testing.T) {
	view := func(b *onnx.Builder) string {
		x := b.Input("x", onnx.Float, batch, number(3), number(4))
		shape := b.Op("Shape", []string{x})
		first := b.Op("Gather", []string{shape, b.Constant(onnx.NewTensor("zero", nil, []int64{0}))})
		first = b.Op("Unsqueeze", []string{first, b.Ints("axes", 0)})
		to := b.Op("Concat", []string{first, b.Ints("rest", -1)}, onnx.IntAttribute("axis", 0))
		return b.Op("Reshape", []string{x, to})
	}
	if got := inferred(t, nil, view); got != "float[batch,12]" {
		t.Errorf("view keeping the batch: %s", got)
	}
	if got := inferred(t, map[string]int64{"batch": 5}, view); got != "float[5,12]" {
		t.Errorf("view with the batch bound: %s", got)
	}
	if got := inferred(t, nil, func(b *onnx.Builder) string {
		x := b.Input("x", onnx.Float, batch, number(3), number(4))
		return b.Op("Reshape", []string{x, b.Ints("to", -1, 6, 2)})
	}); got != "float[batch,6,2]" {
		t.Errorf("a batch as what is left over: %s", got)
	}
	// expand(x.size(0), 3, 4): ConstantOfShape ▸ Mul ▸ Equal ▸ Where ▸ Expand.
	if got := inferred(t, map[string]int64{"batch": 2}, func(b *onnx.Builder) string {
		x := b.Input("x", onnx.Float, batch, number(1), number(4))
		first := b.Op("Slice", []string{b.Op("Shape", []string{x}), b.Ints("s", 0), b.Ints("e", 1)})
		to := b.Op("Concat", []string{first, b.Ints("three", 3), b.Ints("open", -1)}, onnx.IntAttribute("axis", 0))
		ones := b.Op("ConstantOfShape", []string{b.Ints("n", 3)}, onnx.TensorAttribute("value", onnx.NewTensor("", []int64{1}, []int64{1})))
		minus := b.Op("Mul", []string{ones, b.Constant(onnx.NewTensor("minus", nil, []int64{-1}))})
		to = b.Op("Where", []string{b.Op("Equal", []string{to, minus}), ones, to})
		return b.Op("Expand", []string{x, to})
	}); got != "float[2,3,4]" {
		t.Errorf("expand: %s", got)
	}
	// F.pad(x, (1, 2)): the list is reversed pair by pair.
	if got := inferred(t, nil, func(b *onnx.Builder) string {
		x := b.Input("x", onnx.Float, number(2), number(3), number(4))
		zeros := b.Op("ConstantOfShape", []string{b.Ints("n", 4)}, onnx.TensorAttribute("value", onnx.NewTensor("", []int64{1}, []int64{0})))
		pads := b.Op("Concat", []string{b.Ints("given", 1, 2), zeros}, onnx.IntAttribute("axis", 0))
		pads = b.Op("Reshape", []string{pads, b.Ints("pairs", -1, 2)})
		pads = b.Op("Slice", []string{pads, b.Ints("s", -1), b.Ints("e", -1<<63+1), b.Ints("a", 0), b.Ints("t", -1)})
		pads = b.Op("Transpose", []string{pads}, onnx.IntsAttribute("perm", 1, 0))
		pads = b.Op("Cast", []string{b.Op("Reshape", []string{pads, b.Ints("flat", -1)})}, onnx.IntAttribute("to", int64(onnx.Int64)))
		return b.Op("Pad", []string{x, pads})
	}); got != "float[2,3,7]" {
		t.Errorf("pad: %s", got)
	}
	// F.interpolate(x, scale_factor=1.5) of old exporters: sizes through floats.
	if got := inferred(t, map[string]int64{"batch": 1}, func(b *onnx.Builder) string {
		x := b.Input("x", onnx.Float, batch, number(2), number(5), number(7))
		shape := b.Op("Shape", []string{x})
		f := b.Op("Cast", []string{b.Op("Slice", []string{shape, b.Ints("s", 2), b.Ints("e", 4)})}, onnx.IntAttribute("to", int64(onnx.Float)))
		f = b.Op("Floor", []string{b.Op("Mul", []string{f, b.Weight("factor", nil, []float32{1.5})})})
		sizes := b.Op("Concat", []string{b.Op("Slice", []string{shape, b.Ints("s", 0), b.Ints("e", 2)}),
			b.Op("Cast", []string{f}, onnx.IntAttribute("to", int64(onnx.Int64)))}, onnx.IntAttribute("axis", 0))
		return b.Op("Resize", []string{x, "", "", sizes})
	}); got != "float[1,2,7,10]" {
		t.Errorf("interpolate: %s", got)
	}
}

func TestOperandsThatDoNotFitAreNamed(t *testing.T) {
	for _, test := range []struct {
		says  string
		build func(b *onnx.Builder, x string) string
	}{
		{`Add "Add" → "Add": not a valid ONNX model: shapes`, func(b *onnx.Builder, x string) string {
			return b.Op("Add", []string{x, b.Weight("w", []int64{4}, make([]float32, 4))})
		}},
		{"types float and int64", func(b *onnx.Builder, x string) string { return b.Op("Add", []string{x, b.Ints("i", 1)}) }},
		{"inner dimensions 5 and 4 differ", func(b *onnx.Builder, x string) string {
			return b.Op("MatMul", []string{x, b.Weight("w", []int64{4, 2}, make([]float32, 8))})
		}},
		{"3 channels for 2 each", func(b *onnx.Builder, x string) string {
			return b.Op("Conv", []string{x, b.Weight("w", []int64{1, 2, 1, 1}, make([]float32, 2))})
		}},
		{"a window of 9 does not fit", func(b *onnx.Builder, x string) string {
			return b.Op("MaxPool", []string{x}, onnx.IntsAttribute("kernel_shape", 9, 9))
		}},
		{"axis 4", func(b *onnx.Builder, x string) string {
			return b.Op("Softmax", []string{x}, onnx.IntAttribute("axis", 4))
		}},
		{"do not divide", func(b *onnx.Builder, x string) string {
			return b.Op("Reshape", []string{x, b.Ints("to", 7, -1)})
		}},
		{"elements, to", func(b *onnx.Builder, x string) string { return b.Op("Reshape", []string{x, b.Ints("to", 7)}) }},
		{"squeeze of axis 1", func(b *onnx.Builder, x string) string { return b.Op("Squeeze", []string{x, b.Ints("a", 1)}) }},
		{"given twice", func(b *onnx.Builder, x string) string { return b.Op("ReduceSum", []string{x, b.Ints("a", 1, -3)}) }},
		{"kernel_shape [3 3] for weights of [1 1]", func(b *onnx.Builder, x string) string {
			return b.Op("Conv", []string{x, b.Weight("w", []int64{1, 3, 1, 1}, make([]float32, 3))}, onnx.IntsAttribute("kernel_shape", 3, 3))
		}},
		{"strides [0 1]", func(b *onnx.Builder, x string) string {
			return b.Op("MaxPool", []string{x}, onnx.IntsAttribute("kernel_shape", 1, 1), onnx.IntsAttribute("strides", 0, 1))
		}},
	} {
		got := inferred(t, nil, func(b *onnx.Builder) string {
			return test.build(b, b.Input("x", onnx.Float, number(2), number(3), number(5), number(5)))
		})
		if !strings.Contains(got, test.says) {
			t.Errorf("got %s\nwant %q", got, test.says)
		}
	}
}

func TestUnknownOperatorsAreNamedAndTheRestIsInferred(t *testing.T) {
	b := onnx.NewBuilder(17)
	b.Import("example", 1)
	x := b.Input("x", onnx.Float, batch, number(3))
	y := b.Op("Relu", []string{x})
	odd := b.Node(&onnx.Node{OpType: "Odd", Domain: "example", Inputs: []string{y}}, 1)[0]
	b.Output(b.Op("Fancy", []string{odd}), onnx.Float, batch)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	values, err := onnx.InferShapes(m, nil)
	if !errors.Is(err, onnx.ErrUnknownOperator) || !strings.HasSuffix(fmt.Sprint(err), "Fancy, example.Odd") {
		t.Errorf("error %v", err)
	}
	if got := values[y].String(); got != "float[batch,3]" {
		t.Errorf("the known part is %s", got)
	}
	if got := values[m.Graph.Outputs[0].Name].String(); got != "float[batch]" {
		t.Errorf("the declared output is %s", got)
	}
}

func TestAnOutputDeclaredOtherwiseIsRefused(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, number(2), number(3))
	b.Output(b.Op("Relu", []string{x}), onnx.Float, number(2), number(4))
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := onnx.InferShapes(m, nil); !errors.Is(err, onnx.ErrInvalid) || !strings.Contains(err.Error(), "declared as float[2,4] and computed as float[2,3]") {
		t.Errorf("error %v", err)
	}
}
