package zoo_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
	"github.com/vigie/vigie/onnx/zoo"
)

// gradientsOf runs a gradient graph of a network on random images and returns
// every output by name.
func gradientsOf(t testing.TB, n *zoo.Network, training bool, batch int64, kernels int) map[string][]float32 {
	t.Helper()
	m := n.Model
	if training {
		m = m.Clone()
		for _, node := range m.Graph.Nodes {
			if node.OpType == "BatchNormalization" {
				node.Set(onnx.IntAttribute("training_mode", 1))
				node.Set(onnx.FloatAttribute("momentum", 0))
				node.Outputs = append(node.Outputs[:1:1], node.Outputs[0]+"/mean", node.Outputs[0]+"/variance")
			}
		}
	}
	loss, err := autodiff.SoftmaxCrossEntropy(m, n.Logits)
	if err != nil {
		t.Fatal(err)
	}
	wanted := []string{n.Input}
	if training {
		wanted = append(wanted, n.Weights...)
	}
	g, err := autodiff.Gradient(loss.Model, autodiff.Request{
		Loss: loss.Total, WithRespectTo: wanted, Batch: batch, Keep: []string{n.Logits}, Kernels: kernels,
	})
	if err != nil {
		t.Fatal(err)
	}
	session, err := engine.Open(g.Model, engine.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	rng := rand.New(rand.NewPCG(10, 0))
	inputs := map[string]engine.Tensor{}
	for _, v := range session.Inputs() {
		shape := make([]int64, len(v.Shape))
		size := int64(1)
		for i, d := range v.Shape {
			shape[i] = d.Value
			size *= d.Value
		}
		values := make([]float32, size)
		switch v.Name {
		case loss.Target:
			for i := range batch {
				values[i*shape[1]+i%shape[1]] = 1
			}
		case loss.Weight:
			for i := range values {
				values[i] = 1 / float32(batch)
			}
		default:
			for i := range values {
				values[i] = rng.Float32()
			}
		}
		inputs[v.Name] = engine.Float32(shape, values)
	}
	out, err := session.Run(context.Background(), inputs)
	if err != nil {
		t.Fatal(err)
	}
	result := map[string][]float32{}
	for name, v := range out {
		values, err := engine.Values[float32](v)
		if err != nil {
			t.Fatal(err)
		}
		result[name] = values
	}
	return result
}

func needKernels(t testing.TB) {
	t.Helper()
	if err := engine.Kernels(); err != nil {
		t.Skip("skipped: ", err)
	}
}

// The kernels against the standard operators, which PyTorch is the oracle of
// elsewhere in this package. Two terms differ enough for the sign of some
// activation's input to change, which moves a gradient by far more than rounding.
func TestKernelsComputeTheGradientsOfStandardOperators(t *testing.T) {
	needKernels(t)
	for _, c := range []struct {
		name     string
		norm     string
		input    []int64
		training bool
		smooth   bool // see smoothed: a unit at Relu's kink moves a gradient by far more than rounding
	}{
		{"resnet18", zoo.GroupNorm, []int64{1, 40, 33}, true, false},
		{"resnet18", zoo.BatchNorm, []int64{3, 64, 64}, true, false},
		{"densenet121", zoo.BatchNorm, []int64{1, 64, 64}, true, true},
		{"densenet121", zoo.BatchNorm, []int64{1, 64, 64}, false, false},
		{"efficientnet-b0", zoo.BatchNorm, []int64{3, 64, 64}, true, false},
		{"efficientnet-b0", zoo.BatchNorm, []int64{1, 56, 64}, false, false},
		{"vit-ti16", zoo.BatchNorm, []int64{1, 64, 48}, true, false},
		{"dna-transformer", zoo.GroupNorm, []int64{4, 64}, true, false},
	} {
		t.Run(fmt.Sprintf("%s/%s/training=%v", c.name, c.norm, c.training), func(t *testing.T) {
			n, err := zoo.Build(c.name, zoo.Options{Input: c.input, Classes: 3, Norm: c.norm}, rand.New(rand.NewPCG(1, 0)))
			if err != nil {
				t.Fatal(err)
			}
			if c.smooth {
				n.Model = smoothed(n.Model)
			}
			want := gradientsOf(t, n, c.training, 4, 0)
			for terms, most := range []float64{1: 1e-4, 2: 5e-2, 3: 1e-4} {
				if terms == 0 || engine.CheckKernels(terms) != nil {
					continue
				}
				got := gradientsOf(t, n, c.training, 4, terms)
				var e, s float64
				for name, w := range want {
					for i, v := range w {
						d := float64(got[name][i] - v)
						e += d * d
						s += float64(v) * float64(v)
					}
				}
				t.Logf("%d terms: the gradients differ by %.2e of their norm", terms, math.Sqrt(e/s))
				if !(e <= s*most*most) {
					t.Errorf("%d terms: the gradients differ by %g of their norm, more than %g", terms, math.Sqrt(e/s), most)
				}
			}
		})
	}
}

// Clipped sums and norms of records of one and of two views.
func TestKernelsClipTheGradientsOfStandardOperators(t *testing.T) {
	needKernels(t)
	n, err := zoo.Build("resnet18", zoo.Options{Input: []int64{1, 40, 33}, Classes: 3, Norm: zoo.GroupNorm}, rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	loss, err := autodiff.SoftmaxCrossEntropy(n.Model, n.Logits)
	if err != nil {
		t.Fatal(err)
	}
	const batch = 4
	for _, views := range []int64{1, 2} {
		run := func(kernels int) map[string][]float32 {
			c, err := autodiff.Clip(loss.Model, autodiff.ClipRequest{Loss: loss.Each, Weights: n.Weights, Batch: batch, Views: views, Kernels: kernels})
			if err != nil {
				t.Fatal(err)
			}
			session, err := engine.Open(c.Model, engine.Options{Threads: 2})
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			rng := rand.New(rand.NewPCG(9, 0))
			pixels := make([]float32, batch*40*33)
			for i := range pixels {
				pixels[i] = rng.Float32()
			}
			inputs := map[string]engine.Tensor{
				n.Input:     engine.Float32([]int64{batch, 1, 40, 33}, pixels),
				loss.Target: engine.Float32([]int64{batch, 3}, []float32{1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0}),
				c.Bound:     engine.Float32([]int64{1}, []float32{0.7}),
				c.Mask:      engine.Float32([]int64{batch / views}, []float32{1, 1, 0, 1}[:batch/views]),
			}
			for _, v := range session.Inputs() {
				if _, ok := inputs[v.Name]; !ok {
					inputs[v.Name] = engine.Float32([]int64{batch}, []float32{1, 1, 1, 1})
				}
			}
			out, err := session.Run(context.Background(), inputs)
			if err != nil {
				t.Fatal(err)
			}
			result := map[string][]float32{"norms": out[c.Norms].Data.([]float32)}
			for name, at := range c.Of {
				result[name] = out[at].Data.([]float32)
			}
			return result
		}
		want, got := run(0), run(engine.KernelTerms())
		var e, s float64
		for name, w := range want {
			for i, v := range w {
				d := float64(got[name][i] - v)
				e += d * d
				s += float64(v) * float64(v)
			}
		}
		t.Logf("%d views: clipped sums and norms differ by %.2e of their norm", views, math.Sqrt(e/s))
		if !(e <= s*1e-6) { // the margins that clipping keeps differ by the way a norm is computed
			t.Errorf("%d views: clipped sums and norms differ by %g of their norm", views, math.Sqrt(e/s))
		}
	}
}
