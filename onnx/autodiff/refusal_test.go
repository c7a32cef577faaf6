package autodiff_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// built makes a float graph of one expression.
func built(t *testing.T, shape []int64, expression func(b *onnx.Builder, x string) string) *onnx.Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Fixed(shape...)...)
	y := expression(b, x)
	b.Output(y, onnx.Float)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	m.Graph.Outputs[0] = onnx.Value{Name: y, Type: onnx.Float}
	return m
}

func TestAnOperatorWithoutARuleIsNamed(t *testing.T) {
	m := built(t, []int64{2, 4}, func(b *onnx.Builder, x string) string {
		return b.Node(&onnx.Node{Name: "the culprit", OpType: "Hardmax", Inputs: []string{x}}, 1)[0]
	})
	_, err := autodiff.Gradient(m, autodiff.Request{Loss: m.Graph.Outputs[0].Name, WithRespectTo: []string{"x"}})
	if !errors.Is(err, autodiff.ErrNotDifferentiable) {
		t.Fatalf("error is %v", err)
	}
	for _, word := range []string{"the culprit", "Hardmax"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not name %q", err, word)
		}
	}
}

// An operator with a rule may be used in a way that has none.
func TestUsesWithoutADerivativeAreNamed(t *testing.T) {
	for says, expression := range map[string]func(b *onnx.Builder, x string) string{
		"different lengths": func(b *onnx.Builder, x string) string {
			b.Constant(onnx.NewTensor("lengths", []int64{2}, []int32{4, 3}))
			sequence := b.Op("Reshape", []string{b.Op("Transpose", []string{x}), b.Ints("k", 4, 2, 1)})
			weight := b.Weight("w", []int64{1, 1, 1}, []float32{1})
			return b.Node(&onnx.Node{OpType: "RNN", Inputs: []string{sequence, weight, weight, "", "lengths"}}, 2)[0]
		},
		`reduction "mul"`: func(b *onnx.Builder, x string) string {
			at := b.Constant(onnx.NewTensor("at", []int64{1, 1}, []int64{2}))
			return b.Op("ScatterElements", []string{x, at, b.Weight("v", []int64{1, 1}, []float32{3})}, onnx.TextAttribute("reduction", "mul"))
		},
		"twice in one term": func(b *onnx.Builder, x string) string {
			square := b.Op("MatMul", []string{x, b.Op("Transpose", []string{x})})
			return b.Op("Einsum", []string{square}, onnx.TextAttribute("equation", "ii->i"))
		},
		"gradient of zero would hide": func(b *onnx.Builder, x string) string { return b.Op("Hardmax", []string{x}) },
		"antialias": func(b *onnx.Builder, x string) string {
			b.Import("", 18)
			return b.Op("Resize", []string{x, "", "", b.Ints("sizes", 2, 2)}, onnx.TextAttribute("mode", "linear"), onnx.IntAttribute("antialias", 1))
		},
		"must be constant": func(b *onnx.Builder, x string) string {
			sizes := b.Op("Cast", []string{b.Op("ReduceSum", []string{x}, onnx.IntAttribute("keepdims", 0))}, onnx.IntAttribute("to", int64(onnx.Int64)))
			end := b.Op("Unsqueeze", []string{sizes, b.Ints("k", 0)})
			y := b.Op("Slice", []string{x, b.Ints("k", 0), end, b.Ints("k", 0)})
			return b.Op("Reshape", []string{y, b.Ints("k", 2, 4)})
		},
	} {
		m := built(t, []int64{2, 4}, expression)
		_, err := autodiff.Gradient(m, autodiff.Request{Loss: m.Graph.Outputs[0].Name, WithRespectTo: []string{"x"}})
		if err == nil || !strings.Contains(err.Error(), says) && !strings.Contains(err.Error(), "not known") {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
}

func TestTheTableAnswersForSingleNodes(t *testing.T) {
	opsets := map[string]int64{"": 17}
	if err := autodiff.Differentiable(&onnx.Node{OpType: "Conv"}, opsets); err != nil {
		t.Error(err)
	}
	for _, n := range []*onnx.Node{{OpType: "Hardmax"}, {OpType: "Conv", Domain: "elsewhere"}, {OpType: "Gelu"}} { // Gelu is of opset 20
		if err := autodiff.Differentiable(n, opsets); !errors.Is(err, autodiff.ErrNotDifferentiable) {
			t.Errorf("%v: %v", n, err)
		}
	}
}

func TestAnOperatorWithoutARuleOffThePathDoesNotMatter(t *testing.T) {
	m := built(t, []int64{2, 4}, func(b *onnx.Builder, x string) string {
		b.Weight("w", []int64{4}, []float32{1, 2, 3, 4})
		hard := b.Op("Hardmax", []string{x})
		return b.Op("Mul", []string{hard, "w"})
	})
	if _, err := autodiff.Gradient(m, autodiff.Request{Loss: m.Graph.Outputs[0].Name, WithRespectTo: []string{"w"}}); err != nil {
		t.Fatal(err)
	}
}

func TestIndependentTensorsAreRefused(t *testing.T) {
	m := built(t, []int64{2, 4}, func(b *onnx.Builder, x string) string {
		b.Weight("unused", []int64{4}, []float32{1, 2, 3, 4})
		return b.Op("Relu", []string{x})
	})
	for _, wrt := range [][]string{{"unused"}, {"x", "unused"}} {
		_, err := autodiff.Gradient(m, autodiff.Request{Loss: m.Graph.Outputs[0].Name, WithRespectTo: wrt})
		if !errors.Is(err, autodiff.ErrIndependent) || !strings.Contains(err.Error(), "unused") {
			t.Errorf("with respect to %v: %v", wrt, err)
		}
	}
}

func TestPerExampleGradientsAreRefusedWhereExamplesMix(t *testing.T) {
	four := []float32{1, 2, 3, 4}
	for name, expression := range map[string]func(b *onnx.Builder, x string) string{
		"sum over the batch": func(b *onnx.Builder, x string) string {
			w := b.Op("Mul", []string{x, b.Weight("w", []int64{4}, four)})
			mean := b.Op("ReduceMean", []string{w}, onnx.IntsAttribute("axes", 0))
			return b.Op("ReduceSum", []string{b.Op("Mul", []string{mean, w}), b.Ints("k", 1)}, onnx.IntAttribute("keepdims", 0))
		},
		"softmax over the batch": func(b *onnx.Builder, x string) string {
			w := b.Op("Softmax", []string{b.Op("Mul", []string{x, b.Weight("w", []int64{4}, four)})}, onnx.IntAttribute("axis", 0))
			return b.Op("ReduceSum", []string{w, b.Ints("k", 1)}, onnx.IntAttribute("keepdims", 0))
		},
		"batch statistics": func(b *onnx.Builder, x string) string {
			vector := func(n string) string { return b.Weight(n, []int64{4}, four) }
			y := b.Node(&onnx.Node{OpType: "BatchNormalization", Inputs: []string{x, vector("w"), vector("s"), vector("m"), vector("v")},
				Attributes: []onnx.Attribute{onnx.IntAttribute("training_mode", 1)}}, 3)[0]
			return b.Op("ReduceSum", []string{y, b.Ints("k", 1)}, onnx.IntAttribute("keepdims", 0))
		},
		"the batch as channels": func(b *onnx.Builder, x string) string {
			y := b.Op("Transpose", []string{b.Op("Mul", []string{x, b.Weight("w", []int64{4}, four)})}, onnx.IntsAttribute("perm", 1, 0))
			y = b.Op("Softmax", []string{y})
			return b.Op("ReduceSum", []string{y, b.Ints("k", 0)}, onnx.IntAttribute("keepdims", 0))
		},
	} {
		m := built(t, []int64{3, 4}, expression)
		_, err := autodiff.Gradient(m, autodiff.Request{Loss: m.Graph.Outputs[0].Name, WithRespectTo: []string{"w"}, PerExample: true})
		if !errors.Is(err, autodiff.ErrMixesExamples) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestAnUnknownDimensionIsNamed(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: -1, Param: "width"})
	y := b.Op("Relu", []string{x})
	b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: -1, Param: "width"})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	_, err = autodiff.Gradient(m, autodiff.Request{Loss: y, WithRespectTo: []string{x}, Batch: 2})
	if err == nil || !strings.Contains(err.Error(), `dimension 1 of input "x" is not known (width)`) {
		t.Errorf("error is %v", err)
	}
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: y, WithRespectTo: []string{x}, Batch: 2, Dimensions: map[string]int64{"width": 3}})
	if err != nil {
		t.Fatal(err)
	}
	if got := g.Model.Graph.Outputs[0].String(); got != "float[2,3]" {
		t.Errorf("with the width bound the gradient is %s", got)
	}
}

func TestAnOldOpsetIsRefused(t *testing.T) {
	m := built(t, []int64{2}, func(b *onnx.Builder, x string) string { return b.Op("Relu", []string{x}) })
	m.Opsets[""] = 9
	_, err := autodiff.Gradient(m, autodiff.Request{Loss: m.Graph.Outputs[0].Name, WithRespectTo: []string{"x"}})
	if err == nil || !strings.Contains(err.Error(), "opset 9") {
		t.Errorf("error is %v", err)
	}
}

// X-rays have flat backgrounds: where elements of a window tie, the gradient is
// shared equally and none is lost.
func TestTiesShareTheGradientOfAMaximum(t *testing.T) {
	x := []float32{
		1, 1, 5, 0,
		1, 1, 5, 0,
		0, 0, 2, 2,
		0, 3, 2, 1,
	}
	for _, c := range []struct {
		name   string
		attrs  []onnx.Attribute
		want   []float64
		output int
	}{
		{"tiles", []onnx.Attribute{onnx.IntsAttribute("kernel_shape", 2, 2), onnx.IntsAttribute("strides", 2, 2)}, []float64{
			.25, .25, .5, 0,
			.25, .25, .5, 0,
			0, 0, 1. / 3, 1. / 3,
			0, 1, 1. / 3, 0,
		}, 4},
		{"overlapping", []onnx.Attribute{onnx.IntsAttribute("kernel_shape", 2, 2), onnx.IntsAttribute("strides", 2, 1)}, []float64{
			.25, .25, .5 + .5, 0,
			.25, .25, .5 + .5, 0,
			0, 0, 1. / 3, 1. / 3,
			0, 1 + 1, 1. / 3, 0,
		}, 6},
	} {
		m := built(t, []int64{1, 1, 4, 4}, func(b *onnx.Builder, in string) string { return b.Op("MaxPool", []string{in}, c.attrs...) })
		g, err := autodiff.Gradient(m, autodiff.Request{Loss: m.Graph.Outputs[0].Name, WithRespectTo: []string{"x"}})
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, g.Model)
		out := run(t, s, map[string]engine.Tensor{"x": engine.Float32([]int64{1, 1, 4, 4}, x)})
		if got := elements(out[g.Of["x"]]); apart(got, c.want) > 1e-6 {
			t.Errorf("%s: gradient is %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAWeightThatIsNotANumberIsAnErrorBeforeAnythingRuns(t *testing.T) {
	m := built(t, []int64{2, 3}, func(b *onnx.Builder, x string) string {
		return b.Op("Mul", []string{x, b.Weight("w", []int64{3}, []float32{1, float32(math.NaN()), 2})})
	})
	_, err := autodiff.Gradient(m, autodiff.Request{Loss: m.Graph.Outputs[0].Name, WithRespectTo: []string{"w"}})
	if err == nil || !strings.Contains(err.Error(), `"w": element 1`) {
		t.Errorf("error is %v", err)
	}
}
