package probe_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
)

// linear writes a model z = middle(x · w) of two classes, with x [batch, 3].
func linear(t *testing.T, middle string, weights ...float32) *probe.Model {
	t.Helper()
	batch := onnx.Dim{Value: -1, Param: "batch"}
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, batch, onnx.Dim{Value: 3})
	h := b.Op("MatMul", []string{x, b.Weight("w", []int64{3, 2}, weights)})
	if middle != "" {
		h = b.Op(middle, []string{h})
	}
	z := b.Node(&onnx.Node{OpType: "Identity", Inputs: []string{h}, Outputs: []string{"z"}}, 1)[0]
	b.Output(z, onnx.Float, batch, onnx.Dim{Value: 2})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	p, err := probe.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// npy writes an array to a file.
func npy(t *testing.T, shape []int64, data any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.npy")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(train.WriteNPY(f, train.Array{Shape: shape, Data: data}), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

var ones = []float32{1, 1, 1, 1, 1, 1}

func TestNumbersReachTheModelAsTheyAre(t *testing.T) {
	m := linear(t, "", ones...)
	for name, data := range map[string]any{
		"bytes": []uint8{0, 128, 255}, "integers": []int64{0, 128, 255}, "doubles": []float64{0, 128, 255}, "floats": []float32{0, 128, 255},
	} {
		inputs, err := m.Inputs("x=" + npy(t, []int64{1, 3}, data))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := m.Run(t.Context(), inputs)
		skipWithoutRuntime(t, err)
		if got := floats(t, answer.Tensors["z"]); got[0] != 383 {
			t.Errorf("%s: the sum of 0, 128 and 255 is %v", name, got[0])
		}
	}
}

// A model that keeps its weights in a file beside it is asked like any other.
func TestAModelWithItsWeightsBesideItRuns(t *testing.T) {
	m, err := probe.Open("../onnx/testdata/external/model.onnx")
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := m.Inputs(npy(t, []int64{1, 3}, []float32{1, 2, 3}))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := m.Run(t.Context(), inputs)
	skipWithoutRuntime(t, err)
	// 2·([1 2 3]·[[0 ¼] [½ ¾] [1 1¼]] + [1 -2])
	if z := floats(t, answer.Tensors["z"]); z[0] != 10 || z[1] != 7 {
		t.Errorf("answered %v", z)
	}
}

func TestTheBatchIsThatOfTheArray(t *testing.T) {
	m := linear(t, "Relu", ones...)
	for _, n := range []int64{1, 7} {
		inputs, err := m.Inputs(npy(t, []int64{n, 3}, make([]float32, 3*n)))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := m.Run(t.Context(), inputs)
		skipWithoutRuntime(t, err)
		if got := answer.Outputs[0].Shape[0]; got != n {
			t.Errorf("%d examples out, %d in", got, n)
		}
	}
}

func TestAnInnerTensorCanBeAskedFor(t *testing.T) {
	m := linear(t, "Tanh", ones...)
	inner := m.Graph.Graph.Nodes[0].Outputs[0]
	inputs, err := m.Inputs(npy(t, []int64{1, 3}, []float32{1, 2, 3}))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := m.Run(t.Context(), inputs, inner, "z")
	skipWithoutRuntime(t, err)
	if a, z := floats(t, answer.Tensors[inner])[0], floats(t, answer.Tensors["z"])[0]; a != 6 || math.Abs(z-math.Tanh(6)) > 1e-6 {
		t.Errorf("inner %v and output %v, want 6 and its tanh", a, z)
	}
	g, err := m.Gradient(t.Context(), inputs, probe.Request{Loss: probe.Sum, WithRespectTo: []string{inner}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := floats(t, g.Tensors[inner])[0], 1-math.Pow(math.Tanh(6), 2); math.Abs(got-want) > 1e-6 {
		t.Errorf("gradient of the inner tensor %v, want %v", got, want)
	}
	if _, err := m.Run(t.Context(), inputs, "nosuch"); !errors.Is(err, probe.ErrAsk) || !strings.Contains(err.Error(), "z float[1,2]") {
		t.Errorf("an output that does not exist: %v", err)
	}
}

func TestAWrongInputIsAnErrorThatSaysWhatFits(t *testing.T) {
	m := linear(t, "", ones...)
	ok := npy(t, []int64{1, 3}, []float32{1, 2, 3})
	for name, c := range map[string]struct {
		files []string
		says  string
	}{
		"rank":    {[]string{npy(t, []int64{3}, []float32{1, 2, 3})}, "want float[batch,3]"},
		"size":    {[]string{npy(t, []int64{1, 4}, make([]float32, 4))}, "shape [1 4]"},
		"name":    {[]string{"image=" + ok}, `"image"`},
		"twice":   {[]string{ok, ok}, "twice"},
		"missing": {nil, `"x" is missing`},
		"format":  {[]string{"x.txt"}, ".npz or .safetensors; a table .csv"},
		"archive": {[]string{"x.npz"}, "one each"},
		"absent":  {[]string{"nosuch.npy"}, "no such file"},
	} {
		if _, err := m.Inputs(c.files...); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q in it", name, err, c.says)
		}
	}
}

func TestAWrongQuestionIsAnErrorThatSaysWhatFits(t *testing.T) {
	m := linear(t, "", ones...)
	inputs, err := m.Inputs(npy(t, []int64{2, 3}, make([]float32, 6)))
	if err != nil {
		t.Fatal(err)
	}
	label := func(shape []int64, data any) *engine.Tensor { return &engine.Tensor{Shape: shape, Data: data} }
	weights := []string{probe.Weights}
	for name, c := range map[string]struct {
		request probe.Request
		says    string
	}{
		"loss":             {probe.Request{Loss: "hinge", WithRespectTo: weights}, "cross-entropy"},
		"no labels":        {probe.Request{Loss: probe.CrossEntropy, WithRespectTo: weights}, "needs labels"},
		"labels for a sum": {probe.Request{Loss: probe.Sum, Labels: label([]int64{2}, []int64{0, 1}), WithRespectTo: weights}, "takes none"},
		"class":            {probe.Request{Loss: probe.CrossEntropy, Labels: label([]int64{2}, []int64{0, 2}), WithRespectTo: weights}, "label 2 of example 1"},
		"negative class":   {probe.Request{Loss: probe.CrossEntropy, Labels: label([]int64{2}, []int64{-1, 0}), WithRespectTo: weights}, "label -1 of example 0"},
		"too few":          {probe.Request{Loss: probe.CrossEntropy, Labels: label([]int64{1}, []int64{0}), WithRespectTo: weights}, "2 examples"},
		"float classes":    {probe.Request{Loss: probe.CrossEntropy, Labels: label([]int64{2}, []float32{0, 1}), WithRespectTo: weights}, "integers"},
		"probability":      {probe.Request{Loss: probe.BinaryCrossEntropy, Labels: label([]int64{2, 2}, []float32{0, 1, 0, 1.5}), WithRespectTo: weights}, "label 1.5 of example 1"},
		"marks":            {probe.Request{Loss: probe.CrossEntropy, Labels: label([]int64{2, 2}, []float32{0.25, 0.75, 1, 1}), WithRespectTo: weights}, "labels of example 1 (row 2) add up to 2"},
		"no class":         {probe.Request{Loss: probe.CrossEntropy, Labels: label([]int64{2, 2}, []int64{0, 0, 1, 0}), WithRespectTo: weights}, "labels of example 0 (row 1) add up to 0"},
		"one of two":       {probe.Request{Loss: probe.BinaryCrossEntropy, Labels: label([]int64{2}, []int64{0, 1}), WithRespectTo: weights}, "[N, classes]"},
		"tensor":           {probe.Request{Loss: probe.Sum, WithRespectTo: []string{"nosuch"}}, `"nosuch"`},
		"output":           {probe.Request{Loss: probe.Sum, Output: "y", WithRespectTo: weights}, `"y"`},
	} {
		if _, err := m.Gradient(t.Context(), inputs, c.request); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q in it", name, err, c.says)
		}
	}
}

// A loss that takes a softmax of its own, of what a softmax gave, is computed as
// asked for, with a hint that names the logits; they can then be asked for.
func TestALossOfWhatIsActivatedAlreadyComesWithAHint(t *testing.T) {
	label := &engine.Tensor{Shape: []int64{1}, Data: []int64{1}}
	for middle, losses := range map[string]map[string]bool{
		"Softmax": {probe.CrossEntropy: true, probe.BinaryCrossEntropy: true, probe.Sum: false}, "Sigmoid": {probe.CrossEntropy: true},
		"LogSoftmax": {probe.CrossEntropy: false, probe.BinaryCrossEntropy: true}, "Relu": {probe.CrossEntropy: false},
	} {
		m := linear(t, middle, 1, 0, 0, 1, 2, 1) // an Identity follows
		inputs, err := m.Inputs(npy(t, []int64{1, 3}, []float32{1, 2, 3}))
		if err != nil {
			t.Fatal(err)
		}
		for loss, hint := range losses {
			r := probe.Request{Loss: loss, Labels: label, WithRespectTo: []string{probe.Inputs}}
			switch loss {
			case probe.BinaryCrossEntropy:
				r.Labels = &engine.Tensor{Shape: []int64{1, 2}, Data: []float32{0, 1}}
			case probe.Sum:
				r.Labels = nil
			}
			g, err := m.Gradient(t.Context(), inputs, r)
			skipWithoutRuntime(t, err)
			if got := len(g.Warnings) == 1 && strings.Contains(g.Warnings[0], middle); got != hint || !hint && len(g.Warnings) > 0 {
				t.Errorf("%s of a %s: warnings %q, want a hint: %v", loss, middle, g.Warnings, hint)
			}
		}
	}
	m := linear(t, "Softmax", 1, 0, 0, 1, 2, 1)
	inputs, err := m.Inputs(npy(t, []int64{1, 3}, []float32{1, 2, 3}))
	if err != nil {
		t.Fatal(err)
	}
	logits := m.Graph.Graph.Nodes[1].Inputs[0]
	g, err := m.Gradient(t.Context(), inputs, probe.Request{Loss: probe.CrossEntropy, Labels: label, Output: logits, WithRespectTo: []string{logits}})
	skipWithoutRuntime(t, err)
	// The logits are 7 and 5: -log of the second's softmax.
	p := math.Exp(5) / (math.Exp(5) + math.Exp(7))
	if got := floats(t, g.Tensors[logits]); math.Abs(g.Value+math.Log(p)) > 1e-5 || math.Abs(got[1]-(p-1)) > 1e-5 || len(g.Warnings) > 0 {
		t.Errorf("loss %v, gradient %v, warnings %q", g.Value, got, g.Warnings)
	}
	one := linearTo(t, 1)
	r := probe.Request{Loss: probe.CrossEntropy, Labels: &engine.Tensor{Shape: []int64{1}, Data: []int64{0}}, WithRespectTo: []string{probe.Inputs}}
	if _, err := one.Gradient(t.Context(), inputs, r); err == nil || !strings.Contains(err.Error(), `take the loss "bce"`) {
		t.Errorf("one output: %v", err)
	}
}

// linearTo writes a model of so many outputs, z = x · 1 with x [batch, 3].
func linearTo(t *testing.T, outputs int64) *probe.Model {
	t.Helper()
	batch := onnx.Dim{Value: -1, Param: "batch"}
	b := onnx.NewBuilder(17)
	weights := make([]float32, 3*outputs)
	for i := range weights {
		weights[i] = 1
	}
	b.Output(b.Op("MatMul", []string{b.Input("x", onnx.Float, batch, onnx.Dim{Value: 3}), b.Weight("w", []int64{3, outputs}, weights)}), onnx.Float, batch, onnx.Dim{Value: outputs})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	p, err := probe.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAnOperatorWithoutAGradientIsNamed(t *testing.T) {
	m := linear(t, "Hardmax", ones...)
	inputs, err := m.Inputs(npy(t, []int64{1, 3}, []float32{1, 2, 3}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Gradient(t.Context(), inputs, probe.Request{Loss: probe.Sum, WithRespectTo: []string{probe.Weights}})
	if !errors.Is(err, autodiff.ErrNotDifferentiable) || !strings.Contains(err.Error(), "Hardmax") {
		t.Errorf("got %v, want ErrNotDifferentiable that names Hardmax", err)
	}
}

func TestAWeightThatIsNotANumberIsAWarning(t *testing.T) {
	m := linear(t, "", 1, float32(math.NaN()), 1, 1, float32(math.Inf(1)), 1)
	if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0], `"w" has 2 elements`) {
		t.Fatalf("warnings %q", m.Warnings)
	}
	inputs, err := m.Inputs(npy(t, []int64{1, 3}, []float32{1, 2, 3}))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := m.Run(t.Context(), inputs)
	skipWithoutRuntime(t, err)
	if len(answer.Warnings) != 2 || !strings.Contains(answer.Warnings[1], `output "z"`) {
		t.Errorf("warnings of the run %q", answer.Warnings)
	}
	if _, err := m.Gradient(t.Context(), inputs, probe.Request{Loss: probe.Sum, WithRespectTo: []string{probe.Inputs}}); err == nil || !strings.Contains(err.Error(), `"w"`) {
		t.Errorf("a loss that is not a number: %v", err)
	}
}

func TestAFailedSaveLeavesNothingBehind(t *testing.T) {
	folder := t.TempDir()
	for name, held := range map[string]map[string]engine.Tensor{
		"two.npy":         {"a": engine.Float32([]int64{1}, []float32{1}), "b": engine.Float32([]int64{1}, []float32{1})},
		"bad.safetensors": {"a": engine.Float32([]int64{2}, []float32{1})},
		"bad.npz":         {"a": engine.Float32([]int64{2}, []float32{1})},
		"x.csv":           {"a": engine.Float32([]int64{1}, []float32{1})},
	} {
		if err := probe.Save(filepath.Join(folder, name), held, nil); err == nil {
			t.Errorf("%s was written", name)
		}
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}
