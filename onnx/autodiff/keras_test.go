package autodiff_test

import (
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// Graphs as tf2onnx writes Keras models: channels last outside, transposed to
// channels first around convolutions, padding of its own, ReLU6 as Min and Max,
// shapes computed where Keras reshapes, dense layers over heads as Einsum. Input 0
// is the data, the others are weights; the first dimension of the data is the
// batch.
var kerasClaims = []claim{
	{name: "Keras: convolutions and a dense layer", smooth: true, inputs: []operand{spread(2, 6, 6, 1), tensor(3, 1, 3, 3), tensor(3), tensor(27, 4), tensor(4)},
		build: func(b *onnx.Builder, in []string) string {
			x := toChannelsFirst(b, in[0])
			x = b.Op("Relu", []string{b.Op("Conv", []string{x, in[1], in[2]}, txt("auto_pad", "SAME_UPPER"))})
			x = toChannelsLast(b, b.Op("MaxPool", []string{x}, is("kernel_shape", 2, 2), is("strides", 2, 2)))
			x = b.Op("Reshape", []string{x, flatShape(b, x, 27)})
			return b.Op("Softmax", []string{b.Op("Add", []string{b.Op("MatMul", []string{x, in[3]}), in[4]})})
		}},
	{name: "Keras: MobileNet's block", smooth: true, inputs: []operand{tensor(2, 5, 5, 3), tensor(3, 1, 3, 3), tensor(3), tensor(3), tensor(4, 3, 1, 1)},
		build: func(b *onnx.Builder, in []string) string {
			x := b.Op("Pad", []string{in[0], b.Ints("pads", 0, 0, 0, 0, 0, 1, 1, 0)})
			x = b.Op("Conv", []string{toChannelsFirst(b, x), in[1]}, i("group", 3), is("strides", 2, 2))
			mean, variance := b.Weight("mean", []int64{3}, []float32{0.1, 0, -0.2}), b.Weight("variance", []int64{3}, []float32{1, 0.5, 2})
			x = b.Op("BatchNormalization", []string{x, in[2], in[3], mean, variance}, f("epsilon", 1e-3))
			x = b.Op("Min", []string{b.Op("Max", []string{x, b.Weight("zero", nil, []float32{-0.25})}), b.Weight("six", nil, []float32{6})})
			x = toChannelsLast(b, b.Op("Conv", []string{x, in[4]}))
			return b.Op("ReduceMean", []string{x}, is("axes", 1, 2), i("keepdims", 0))
		}},
	{name: "Keras: EfficientNet's squeeze and excitation", smooth: true, inputs: []operand{tensor(2, 4, 4, 3), tensor(1, 3, 1, 1), tensor(1), tensor(3, 1, 1, 1), tensor(3)},
		build: func(b *onnx.Builder, in []string) string {
			x := b.Op("Mul", []string{b.Op("Sub", []string{in[0], b.Weight("centre", []int64{1, 1, 1, 3}, []float32{0.1, 0.2, 0.3})}), b.Op("Sigmoid", []string{in[0]})})
			s := toChannelsFirst(b, b.Op("ReduceMean", []string{x}, is("axes", 1, 2), i("keepdims", 1)))
			s = b.Op("Conv", []string{s, in[1], in[2]})
			s = b.Op("Mul", []string{s, b.Op("Sigmoid", []string{s})})
			s = b.Op("Sigmoid", []string{b.Op("Conv", []string{s, in[3], in[4]})})
			return b.Op("Mul", []string{x, toChannelsLast(b, s)})
		}},
	{name: "Keras: layer normalisation and multi-head attention", smooth: true, inputs: []operand{tensor(2, 3, 4), tensor(4), tensor(4), tensor(4, 3, 2), tensor(4, 3, 2), tensor(4, 3, 2), tensor(3, 2, 4)},
		build: func(b *onnx.Builder, in []string) string {
			centred := b.Op("Sub", []string{in[0], b.Op("ReduceMean", []string{in[0]}, is("axes", 2))})
			variance := b.Op("ReduceMean", []string{b.Op("Mul", []string{centred, centred})}, is("axes", 2))
			root := b.Op("Sqrt", []string{b.Op("Add", []string{variance, b.Weight("epsilon", nil, []float32{1e-3})})})
			gain := b.Op("Mul", []string{b.Op("Reciprocal", []string{root}), in[1]})
			x := b.Op("Add", []string{b.Op("Mul", []string{centred, gain}), in[2]})
			project := func(w string) string { return b.Op("Einsum", []string{x, w}, txt("equation", "abc,cde->abde")) }
			scores := b.Op("Einsum", []string{project(in[3]), project(in[4])}, txt("equation", "aecd,abcd->acbe"))
			y := b.Op("Einsum", []string{b.Op("Softmax", []string{scores}), project(in[5])}, txt("equation", "acbe,aecd->abcd"))
			return b.Op("Einsum", []string{y, in[6]}, txt("equation", "abcd,cde->abe"))
		}},
	{name: "Keras: U-Net's decoder", smooth: true, inputs: []operand{tensor(2, 3, 3, 3), tensor(3, 4, 3, 3), tensor(3, 7, 3, 3)},
		build: func(b *onnx.Builder, in []string) string {
			x := toChannelsFirst(b, in[0])
			up := b.Op("Resize", []string{x, "", b.Weight("scales", []int64{4}, []float32{1, 1, 2, 2})}, mode("nearest"), coordinates("asymmetric"), txt("nearest_mode", "floor"))
			learnt := b.Op("ConvTranspose", []string{x, in[1]}, is("strides", 2, 2), is("output_shape", 6, 6), txt("auto_pad", "SAME_UPPER"))
			joined := b.Op("Concat", []string{toChannelsLast(b, up), toChannelsLast(b, learnt)}, i("axis", -1))
			return toChannelsLast(b, b.Op("Conv", []string{toChannelsFirst(b, joined), in[2]}, is("pads", 1, 1, 1, 1)))
		}},
	{name: "Keras: recurrent layers", smooth: true, inputs: []operand{tensor(2, 3, 3), tensor(1, 12, 3), tensor(1, 12, 4), tensor(1, 24), tensor(1, 12, 4), tensor(1, 12, 3), tensor(1, 24)},
		build: func(b *onnx.Builder, in []string) string {
			steps := b.Op("Transpose", []string{in[0]}, is("perm", 1, 0, 2))
			gru := b.Node(&onnx.Node{OpType: "GRU", Inputs: []string{steps, in[1], in[2], in[3]}, Attributes: attrs{i("hidden_size", 4), i("linear_before_reset", 1)}}, 2)[0]
			h := b.Op("Squeeze", []string{gru, b.Ints("axes", 1)})
			lstm := b.Node(&onnx.Node{OpType: "LSTM", Inputs: []string{h, in[4], in[5], in[6]}, Attributes: attrs{i("hidden_size", 3)}}, 2)[1]
			return b.Op("Squeeze", []string{lstm, b.Ints("axes", 0)})
		}},
}

func toChannelsFirst(b *onnx.Builder, x string) string {
	return b.Op("Transpose", []string{x}, is("perm", 0, 3, 1, 2))
}

func toChannelsLast(b *onnx.Builder, x string) string {
	return b.Op("Transpose", []string{x}, is("perm", 0, 2, 3, 1))
}

// flatShape computes [batch, width] from a tensor, as Keras' Flatten does.
func flatShape(b *onnx.Builder, x string, width int64) string {
	batch := b.Op("Slice", []string{b.Op("Cast", []string{b.Op("Shape", []string{x})}, i("to", int64(onnx.Int64))), b.Ints("s", 0), b.Ints("e", 1), b.Ints("a", 0)})
	return b.Op("Concat", []string{batch, b.Ints("width", width)}, i("axis", 0))
}

// spread is spaced around zero.
func spread(dims ...int64) operand {
	o := spaced(dims...)
	for k := range o.values {
		o.values[k] = o.values[k]/4 - 0.8
	}
	return o
}

// perExampleModel ends a claim's graph in one number an example.
func (c claim) perExampleModel(t *testing.T, batch int64) *onnx.Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	var names []string
	for k, o := range c.inputs {
		dims := append([]int64{}, o.dims...)
		if k == 0 {
			dims[0] = batch
		}
		names = append(names, b.Input([]string{"x", "w1", "w2", "w3", "w4", "w5", "w6"}[k], onnx.Float, onnx.Fixed(dims...)...))
	}
	y := b.Op("Sin", []string{b.Op("Flatten", []string{c.build(b, names)})})
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{y, b.Ints("axes", 1)}, Outputs: []string{"loss"}, Attributes: attrs{i("keepdims", 0)}}, 1)
	b.Output("loss", onnx.Float, onnx.Fixed(batch)...)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestKerasGraphsHaveGradientsPerExample(t *testing.T) {
	for _, c := range kerasClaims {
		t.Run(c.name, func(t *testing.T) {
			_, data, _ := c.model(t)
			feed, n := map[string]engine.Tensor{}, c.inputs[0].dims[0]
			var weights []string
			for k := range c.inputs {
				name := []string{"x", "w1", "w2", "w3", "w4", "w5", "w6"}[k]
				feed[name] = data[[]string{"x0", "x1", "x2", "x3", "x4", "x5", "x6"}[k]]
				if k > 0 {
					weights = append(weights, name)
				}
			}
			each, err := autodiff.Gradient(c.perExampleModel(t, n), autodiff.Request{Loss: "loss", WithRespectTo: weights, PerExample: true})
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, each.Model)
			all := run(t, s, only(feed, s))
			one, err := autodiff.Gradient(c.perExampleModel(t, 1), autodiff.Request{Loss: "loss", WithRespectTo: weights})
			if err != nil {
				t.Fatal(err)
			}
			single := open(t, one.Model)
			whole := feed["x"]
			size := len(elements(whole)) / int(n)
			for e := range int(n) {
				feed["x"] = numbers(onnx.Float, append([]int64{1}, whole.Shape[1:]...), elements(whole)[e*size:(e+1)*size])
				lone := run(t, single, only(feed, single))
				for _, name := range weights {
					want := elements(lone[one.Of[name]])
					if d := apart(elements(all[each.Of[name]])[e*len(want):(e+1)*len(want)], want); d > 1e-4 {
						t.Errorf("example %d: gradient of %s differs by %.2g", e, name, d)
					}
				}
			}
		})
	}
}
