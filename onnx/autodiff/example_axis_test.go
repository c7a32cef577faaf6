package autodiff_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// Weights that are changed before they meet the batch carry a gradient per
// example through those changes. Each case builds something of x [N, 2, 6] and
// the weight w [4, 6]; its per-example gradients are compared with batches of
// one.
var lifted = map[string]func(b *onnx.Builder, x, w string) string{
	"weight normalisation": func(b *onnx.Builder, x, w string) string {
		norm := b.Op("ReduceL2", []string{w}, is("axes", 1), i("keepdims", 1))
		direction := b.Op("Div", []string{w, norm})
		return b.Op("MatMul", []string{x, b.Op("Transpose", []string{direction})})
	},
	"a softmax over the weight": func(b *onnx.Builder, x, w string) string {
		attention := b.Op("Softmax", []string{w}, i("axis", 1))
		return b.Op("MatMul", []string{x, b.Op("Transpose", []string{b.Op("Exp", []string{b.Op("LogSoftmax", []string{attention}, i("axis", 0))})})})
	},
	"slices, pads, concatenations and reshapes of the weight": func(b *onnx.Builder, x, w string) string {
		top := b.Op("Slice", []string{w, b.Ints("k", 0), b.Ints("k", 2), b.Ints("k", 0)})
		padded := b.Op("Pad", []string{top, b.Ints("k", 1, 0, 1, 0)})
		joined := b.Op("Concat", []string{padded, b.Op("Neg", []string{w})}, i("axis", 0))
		back := b.Op("Reshape", []string{joined, b.Ints("k", 6, 8)})
		return b.Op("MatMul", []string{x, back})
	},
	"reductions of the weight": func(b *onnx.Builder, x, w string) string {
		mean := b.Op("ReduceMean", []string{w}, is("axes", 0), i("keepdims", 0))
		square := b.Op("ReduceSumSquare", []string{w}, is("axes", 0), i("keepdims", 1))
		largest := b.Op("ReduceMax", []string{w}, is("axes", 0), i("keepdims", 0))
		total := b.Op("ReduceSum", []string{w, b.Ints("k", 0)}, i("keepdims", 0))
		all := b.Op("Sum", []string{mean, square, largest, total})
		return b.Op("Mul", []string{x, all})
	},
	"tiles and triangles of the weight": func(b *onnx.Builder, x, w string) string {
		tiled := b.Op("Tile", []string{b.Op("Trilu", []string{w}), b.Ints("k", 1, 2)})
		halves := b.Node(&onnx.Node{OpType: "Split", Inputs: []string{tiled, b.Ints("k", 6, 6)}, Attributes: attrs{i("axis", 1)}}, 2)
		return b.Op("MatMul", []string{x, b.Op("Transpose", []string{b.Op("Mul", []string{halves[0], halves[1]})})})
	},
	"an embedding": func(b *onnx.Builder, x, w string) string {
		row := b.Op("Cast", []string{b.Op("Abs", []string{b.Op("Mul", []string{x, b.Weight("three", []int64{}, []float32{3})})})}, i("to", int64(onnx.Int64)))
		return b.Op("Gather", []string{w, row}) // [N, 2, 6, 6]
	},
	"a class token": func(b *onnx.Builder, x, w string) string {
		n := b.Op("Shape", []string{x}, i("end", 1))
		shape := b.Op("Concat", []string{n, b.Ints("k", 1, 1)}, i("axis", 0))
		token := b.Op("Expand", []string{b.Op("Unsqueeze", []string{w, b.Ints("k", 0)}), shape})
		return b.Op("Concat", []string{x, token}, i("axis", 1))
	},
	"the weight on the left": func(b *onnx.Builder, x, w string) string {
		return b.Op("MatMul", []string{w, b.Op("Transpose", []string{x}, is("perm", 0, 2, 1))})
	},
	"a batch of flat rows": func(b *onnx.Builder, x, w string) string {
		flat := b.Op("Flatten", []string{b.Op("Slice", []string{x, b.Ints("k", 0), b.Ints("k", 1), b.Ints("k", 1)})})
		return b.Op("Gemm", []string{flat, w}, i("transB", 1), f("alpha", 0.5))
	},
	"a slope a channel": func(b *onnx.Builder, x, w string) string {
		slope := b.Op("Slice", []string{w, b.Ints("k", 0, 0), b.Ints("k", 2, 1), b.Ints("k", 0, 1)})
		return b.Op("PRelu", []string{x, slope})
	},
}

func TestWeightsMayChangeBeforeTheyMeetTheBatch(t *testing.T) {
	const n = 3
	rng := rand.New(rand.NewPCG(3, 3))
	weight := make([]float32, 24)
	for k := range weight {
		weight[k] = float32(rng.NormFloat64())
	}
	data := make([]float64, n*12)
	for k := range data {
		data[k] = 2*rng.Float64() - 1
	}
	for name, expression := range lifted {
		t.Run(name, func(t *testing.T) {
			b := onnx.NewBuilder(17)
			x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: 2}, onnx.Dim{Value: 6})
			w := b.Weight("w", []int64{4, 6}, weight)
			y := expression(b, x, w)
			square := b.Op("Sin", []string{b.Op("Flatten", []string{y})}) // not linear, so that examples differ
			b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{square, b.Ints("k", 1)}, Outputs: []string{"loss"}, Attributes: attrs{i("keepdims", 0)}}, 1)
			b.Output("loss", onnx.Float, onnx.Dim{Value: -1, Param: "n"})
			m, err := b.Build()
			if err != nil {
				t.Fatal(err)
			}
			each, err := autodiff.Gradient(m, autodiff.Request{Loss: "loss", WithRespectTo: []string{"w"}, PerExample: true, Batch: n})
			if err != nil {
				t.Fatal(err)
			}
			one, err := autodiff.Gradient(m, autodiff.Request{Loss: "loss", WithRespectTo: []string{"w"}, Batch: 1})
			if err != nil {
				t.Fatal(err)
			}
			all := run(t, open(t, each.Model), map[string]engine.Tensor{"x": numbers(onnx.Float, []int64{n, 2, 6}, data)})[each.Of["w"]]
			if fmt.Sprint(all.Shape) != "[3 4 6]" {
				t.Fatalf("gradients have shape %v", all.Shape)
			}
			session := open(t, one.Model)
			for e := range n {
				alone := run(t, session, map[string]engine.Tensor{"x": numbers(onnx.Float, []int64{1, 2, 6}, data[12*e:12*e+12])})[one.Of["w"]]
				if d := apart(elements(all)[24*e:24*e+24], elements(alone)); d > 1e-5 {
					t.Errorf("example %d: gradient differs by %.2g from the example alone", e, d)
				}
			}
		})
	}
}
