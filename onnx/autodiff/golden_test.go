package autodiff_test

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// golden is what testdata/golden.py recorded of a network in PyTorch, in
// double precision.
type golden struct {
	Loss          float64              `json:"loss"`
	Shape         []int64              `json:"shape"`
	Input         []float64            `json:"input"`
	Classes       int64                `json:"classes"`
	Target        []float64            `json:"target"`
	InputGradient []float64            `json:"input_gradient"`
	Gradients     map[string][]float64 `json:"gradients"`
}

var goldens = []string{"cnn", "residual", "mobile", "one_dimensional", "attention"}

func loadGolden(t *testing.T, name string) (*onnx.Model, golden) {
	t.Helper()
	m, err := onnx.Load("testdata/" + name + ".onnx")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	return m, g
}

func (g golden) weights() []string {
	var names []string
	for name := range g.Gradients {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// feed gives input, target and 1/N weights; from and to choose examples.
func (g golden) feed(l *autodiff.Loss, from, to int64) map[string]engine.Tensor {
	n := g.Shape[0]
	each := int64(len(g.Input)) / n
	count := to - from
	weight := make([]float64, count)
	for i := range weight {
		weight[i] = 1 / float64(n)
	}
	shape := append([]int64{count}, g.Shape[1:]...)
	return map[string]engine.Tensor{
		"x":      numbers(onnx.Float, shape, g.Input[from*each:to*each]),
		l.Target: numbers(onnx.Float, []int64{count, g.Classes}, g.Target[from*g.Classes:to*g.Classes]),
		l.Weight: numbers(onnx.Float, []int64{count}, weight),
	}
}

// apart is the largest difference relative to the largest element.
func apart(got, want []float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	top, diff := 1e-6, 0.0
	for i := range want {
		top = math.Max(top, math.Abs(want[i]))
		diff = math.Max(diff, math.Abs(got[i]-want[i]))
	}
	return diff / top
}

func only(feed map[string]engine.Tensor, s engine.Session) map[string]engine.Tensor {
	out := map[string]engine.Tensor{}
	for _, in := range s.Inputs() {
		out[in.Name] = feed[in.Name]
	}
	return out
}

func TestWholeNetworksAgreeWithPyTorch(t *testing.T) {
	for _, name := range goldens {
		t.Run(name, func(t *testing.T) {
			m, want := loadGolden(t, name)
			l, err := autodiff.SoftmaxCrossEntropy(m, "logits")
			if err != nil {
				t.Fatal(err)
			}
			g, err := autodiff.Gradient(l.Model, autodiff.Request{
				Loss: l.Total, WithRespectTo: append(want.weights(), "x"), Batch: want.Shape[0], Keep: []string{l.Total},
			})
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, g.Model)
			out := run(t, s, only(want.feed(l, 0, want.Shape[0]), s))
			if d := math.Abs(elements(out[l.Total])[0]-want.Loss) / want.Loss; d > 1e-5 {
				t.Errorf("loss is %g, PyTorch says %g", elements(out[l.Total])[0], want.Loss)
			}
			if d := apart(elements(out[g.Of["x"]]), want.InputGradient); d > 1e-4 {
				t.Errorf("input gradient differs by %.2g of its largest element", d)
			}
			for weight, gradient := range want.Gradients {
				if d := apart(elements(out[g.Of[weight]]), gradient); d > 1e-4 {
					t.Errorf("gradient of %s differs by %.2g of its largest element", weight, d)
				}
			}
		})
	}
}

// Per-example gradients, which DP-SGD clips one by one, are those of batches of
// one image, and add up to the batch's.
func TestPerExampleGradientsAreThoseOfEachExampleAlone(t *testing.T) {
	for _, name := range goldens {
		t.Run(name, func(t *testing.T) {
			m, want := loadGolden(t, name)
			l, err := autodiff.SoftmaxCrossEntropy(m, "logits")
			if err != nil {
				t.Fatal(err)
			}
			n := want.Shape[0]
			g, err := autodiff.Gradient(l.Model, autodiff.Request{
				Loss: l.Each, WithRespectTo: append(want.weights(), "x"), Batch: n, PerExample: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, g.Model)
			out := run(t, s, only(want.feed(l, 0, n), s))
			alone, err := autodiff.Gradient(l.Model, autodiff.Request{Loss: l.Each, WithRespectTo: want.weights(), Batch: 1})
			if err != nil {
				t.Fatal(err)
			}
			single := open(t, alone.Model)
			for e := range n {
				lone := run(t, single, only(want.feed(l, e, e+1), single))
				for _, weight := range want.weights() {
					all := out[g.Of[weight]]
					if all.Shape[0] != n {
						t.Fatalf("gradient of %s has shape %v, want %d first", weight, all.Shape, n)
					}
					size := len(want.Gradients[weight])
					if d := apart(elements(all)[int(e)*size:int(e+1)*size], elements(lone[alone.Of[weight]])); d > 1e-4 {
						t.Errorf("example %d: gradient of %s differs by %.2g from the example alone", e, weight, d)
					}
				}
			}
			for weight, gradient := range want.Gradients {
				sum := make([]float64, len(gradient))
				for i, v := range elements(out[g.Of[weight]]) {
					sum[i%len(sum)] += v / float64(n)
				}
				if d := apart(sum, gradient); d > 1e-4 {
					t.Errorf("mean of per-example gradients of %s differs by %.2g from PyTorch's batch gradient", weight, d)
				}
			}
		})
	}
}

// An attacker or explainer asks for the input alone; that graph must not pay
// for weight gradients, which are most of the work.
func TestWhatIsNotAskedForIsNotComputed(t *testing.T) {
	m, want := loadGolden(t, "cnn")
	l, err := autodiff.SoftmaxCrossEntropy(m, "logits")
	if err != nil {
		t.Fatal(err)
	}
	request := autodiff.Request{Loss: l.Total, WithRespectTo: []string{"x"}, Batch: want.Shape[0]}
	input, err := autodiff.Gradient(l.Model, request)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range input.Model.Graph.Nodes {
		if n.OpType == "Concat" || n.OpType == "FusedMatMul" {
			t.Errorf("input gradient unfolds for a weight gradient: %v", n)
		}
	}
	for _, in := range input.Model.Graph.Outputs {
		if in.Name == l.Total {
			t.Error("the loss is computed though nobody kept it")
		}
	}
	request.WithRespectTo = []string{"8.bias", "10.weight"} // the last layers
	head, err := autodiff.Gradient(l.Model, request)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range head.Model.Graph.Nodes {
		if n.OpType == "ConvTranspose" || n.OpType == "Conv" && len(n.Inputs) == 2 && n.Domain == "" && n.Name[:2] == "d/" {
			t.Errorf("gradient of the head reaches back into convolutions: %v", n)
		}
	}
}

func TestAnInnerTensorsGradientIsWhatReachesItFromTheLoss(t *testing.T) {
	m, want := loadGolden(t, "cnn")
	var inner string // the activation that enters Flatten
	for _, n := range m.Graph.Nodes {
		if n.OpType == "Flatten" {
			inner = n.Inputs[0]
		}
	}
	l, err := autodiff.SoftmaxCrossEntropy(m, "logits")
	if err != nil {
		t.Fatal(err)
	}
	g, err := autodiff.Gradient(l.Model, autodiff.Request{Loss: l.Total, WithRespectTo: []string{inner, "10.bias"}, Keep: []string{inner}, Batch: want.Shape[0]})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, g.Model)
	out := run(t, s, only(want.feed(l, 0, want.Shape[0]), s))
	if got, activation := out[g.Of[inner]], out[inner]; !slices.Equal(got.Shape, activation.Shape) {
		t.Errorf("gradient of %s has shape %v, the activation %v", inner, got.Shape, activation.Shape)
	}
	if d := apart(elements(out[g.Of["10.bias"]]), want.Gradients["10.bias"]); d > 1e-4 {
		t.Errorf("gradient of the last bias differs by %.2g", d)
	}
}
