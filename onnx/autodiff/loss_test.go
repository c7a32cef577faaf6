package autodiff_test

import (
	"math"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// identity is a model whose logits are its input.
func identity(t *testing.T, classes int64) *onnx.Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	b.Input("x", onnx.Float, batch, onnx.Dim{Value: classes})
	b.Input("target", onnx.Float, batch) // takes the name that a loss would like
	z := b.Op("Add", []string{"x", b.Op("Unsqueeze", []string{b.Op("Sub", []string{"target", "target"}), b.Ints("k", 1)})})
	b.Output(z, onnx.Float, batch, onnx.Dim{Value: classes})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLossesAndTheirGradientsFollowTheirFormulas(t *testing.T) {
	z := [][]float64{{0.5, -1, 2}, {-60, 70, 0}, {0, 0, 0}}
	target := [][]float64{{0, 1, 0}, {0.1, 0.8, 0.1}, {0.5, 0.25, 0.25}}
	weight := []float64{0.5, 0.25, 2}
	for name, c := range map[string]struct {
		build func(*onnx.Model, string, ...string) (*autodiff.Loss, error)
		loss  func(z, y []float64) (loss float64, gradient []float64)
	}{
		"softmax cross-entropy": {autodiff.SoftmaxCrossEntropy, func(z, y []float64) (float64, []float64) {
			top, sum, loss := math.Max(z[0], math.Max(z[1], z[2])), 0.0, 0.0
			for _, v := range z {
				sum += math.Exp(v - top)
			}
			gradient := make([]float64, 3)
			for k, v := range z {
				loss -= y[k] * (v - top - math.Log(sum))
				gradient[k] = math.Exp(v-top)/sum - y[k]
			}
			return loss, gradient
		}},
		"binary cross-entropy": {autodiff.BinaryCrossEntropy, func(z, y []float64) (float64, []float64) {
			loss, gradient := 0.0, make([]float64, 3)
			for k, v := range z {
				loss += math.Max(v, 0) + math.Log1p(math.Exp(-math.Abs(v))) - y[k]*v
				gradient[k] = 1/(1+math.Exp(-v)) - y[k]
			}
			return loss, gradient
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := identity(t, 3)
			l, err := c.build(m, m.Graph.Outputs[0].Name)
			if err != nil {
				t.Fatal(err)
			}
			if l.Target == "target" {
				t.Error("the loss took the name of an input")
			}
			if len(m.Graph.Inputs) != 2 || len(m.Graph.Outputs) != 1 {
				t.Error("the model was changed")
			}
			g, err := autodiff.Gradient(l.Model, autodiff.Request{Loss: l.Total, WithRespectTo: []string{"x"}, Batch: 3, Keep: []string{l.Total, l.Each}})
			if err != nil {
				t.Fatal(err)
			}
			flat := func(rows [][]float64) (out []float64) {
				for _, r := range rows {
					out = append(out, r...)
				}
				return out
			}
			s := open(t, g.Model)
			out := run(t, s, only(map[string]engine.Tensor{
				"x": numbers(onnx.Float, []int64{3, 3}, flat(z)), "target": numbers(onnx.Float, []int64{3}, make([]float64, 3)),
				l.Target: numbers(onnx.Float, []int64{3, 3}, flat(target)), l.Weight: numbers(onnx.Float, []int64{3}, weight),
			}, s))
			total := 0.0
			for i := range z {
				loss, gradient := c.loss(z[i], target[i])
				total += weight[i] * loss
				if got := elements(out[l.Each])[i]; math.Abs(got-loss) > 1e-5*math.Max(1, loss) {
					t.Errorf("loss of example %d is %g, want %g", i, got, loss)
				}
				for k := range gradient {
					if got := elements(out[g.Of["x"]])[3*i+k]; math.Abs(got-weight[i]*gradient[k]) > 1e-5 {
						t.Errorf("gradient of logit %d, %d is %g, want %g", i, k, got, weight[i]*gradient[k])
					}
				}
			}
			if got := out[l.Total]; len(got.Shape) != 1 || math.Abs(elements(got)[0]-total) > 1e-4*total {
				t.Errorf("total is %v %v, want [%g]", got.Shape, got.Data, total)
			}
		})
	}
}

func TestALossNeedsLogitsOfTwoAxes(t *testing.T) {
	m := built(t, []int64{2, 3, 4}, func(b *onnx.Builder, x string) string { return b.Op("Relu", []string{x}) })
	if _, err := autodiff.SoftmaxCrossEntropy(m, m.Graph.Outputs[0].Name); err == nil {
		t.Error("a loss of three axes was built")
	}
	if _, err := autodiff.BinaryCrossEntropy(m, "nothing"); err == nil {
		t.Error("a loss of an unknown tensor was built")
	}
}
