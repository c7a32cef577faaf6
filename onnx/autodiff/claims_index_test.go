package autodiff_test

import (
	"math"

	"github.com/vigie/vigie/onnx"
)

var indexClaims = []claim{
	{name: "Gather of opset 13 repeats rows", opset: 13, inputs: []operand{tensor(4, 3), index([]int64{1, 1, -1, 0}, 2, 2)}, build: op("Gather")},
	{name: "GatherND", inputs: []operand{tensor(3, 4), index([]int64{0, 1, 2, 3, 0, 1}, 3, 2)}, build: op("GatherND")},
	{name: "GatherND of rows", opset: 13, inputs: []operand{tensor(3, 4), index([]int64{2, 2, 0}, 3, 1)}, build: op("GatherND")},
	{name: "GatherND by batch", inputs: []operand{tensor(2, 3, 4), index([]int64{2, 0, 0, 1}, 2, 2, 1)}, build: op("GatherND", i("batch_dims", 1))},
	{name: "ScatterElements", inputs: []operand{tensor(3, 4), index([]int64{0, 2, 3, 1}, 2, 2), tensor(2, 2)}, build: op("ScatterElements", i("axis", 1))},
	{name: "ScatterElements adds", inputs: []operand{tensor(3, 4), index([]int64{0, 2, 2, 1}, 2, 2), tensor(2, 2)}, build: op("ScatterElements", txt("reduction", "add"))},
	{name: "ScatterND", inputs: []operand{tensor(4, 3), index([]int64{3, 1}, 2, 1), tensor(2, 3)}, build: op("ScatterND")},
	{name: "ScatterND adds", inputs: []operand{tensor(4, 3), index([]int64{3, 3}, 2, 1), tensor(2, 3)}, build: op("ScatterND", txt("reduction", "add"))},
	{name: "TopK", inputs: []operand{tensor(3, 5)}, build: func(b *onnx.Builder, in []string) string {
		return b.Node(&onnx.Node{OpType: "TopK", Inputs: []string{in[0], b.Ints("k", 2)}}, 2)[0]
	}},
	{name: "TopK smallest along the first axis", inputs: []operand{tensor(5, 3)}, build: func(b *onnx.Builder, in []string) string {
		return b.Node(&onnx.Node{OpType: "TopK", Inputs: []string{in[0], b.Ints("k", 3)}, Attributes: attrs{i("axis", 0), i("largest", 0)}}, 2)[0]
	}},
	{name: "OneHot's two values", smooth: true, inputs: []operand{index([]int64{1, 0, 3}, 3), tensor(2)}, build: func(b *onnx.Builder, in []string) string {
		return b.Op("OneHot", []string{in[0], b.Constant(onnx.NewTensor("depth", nil, []int64{4})), in[1]})
	}},
	{name: "CumSum", inputs: []operand{tensor(2, 4)}, build: cumulative()},
	{name: "CumSum exclusive", inputs: []operand{tensor(2, 4)}, build: cumulative(i("exclusive", 1))},
	{name: "CumSum reverse", inputs: []operand{tensor(2, 4)}, build: cumulative(i("reverse", 1))},
	{name: "CumSum reverse and exclusive", inputs: []operand{tensor(2, 4)}, build: cumulative(i("reverse", 1), i("exclusive", 1))},

	{name: "Pad reflects", inputs: []operand{tensor(4, 5)}, build: with("Pad", attrs{txt("mode", "reflect")}, []int64{1, 4, 3, 0})},
	{name: "Pad repeats the edge", inputs: []operand{tensor(2, 3)}, build: with("Pad", attrs{txt("mode", "edge")}, []int64{0, 4, 2, 1})},
	{name: "Pad wraps", opset: 19, inputs: []operand{tensor(3, 4)}, build: with("Pad", attrs{txt("mode", "wrap")}, []int64{1, 4, 2, 3})},
	{name: "Pad of some axes", opset: 18, inputs: []operand{tensor(2, 3, 4)}, build: with("Pad", attrs{txt("mode", "reflect")}, []int64{1, 2, 3, 0}, nil, []int64{-1, 1})},
	{name: "DepthToSpace", inputs: []operand{tensor(1, 8, 2, 3)}, build: op("DepthToSpace", i("blocksize", 2))},
	{name: "DepthToSpace by columns", inputs: []operand{tensor(1, 8, 2, 3)}, build: op("DepthToSpace", i("blocksize", 2), txt("mode", "CRD"))},
	{name: "SpaceToDepth", single: true, inputs: []operand{tensor(1, 2, 4, 6)}, build: op("SpaceToDepth", i("blocksize", 2))},

	{name: "Einsum of attention", inputs: []operand{tensor(2, 3, 4), tensor(2, 5, 4)}, build: op("Einsum", txt("equation", "bid,bjd->bij"))},
	{name: "Einsum with ellipses", inputs: []operand{tensor(2, 3, 4), tensor(4, 5)}, build: op("Einsum", txt("equation", "...ij, jk -> ...ik"))},
	{name: "Einsum sums an index of one operand", inputs: []operand{tensor(2, 3), tensor(3, 4)}, build: op("Einsum", txt("equation", "ij,jk->i"))},
	{name: "Einsum of three", inputs: []operand{tensor(2, 3), tensor(3, 4), tensor(4)}, build: op("Einsum", txt("equation", "ij,jk,k->ki"))},
	{name: "Einsum without an arrow", inputs: []operand{tensor(2, 3), tensor(3, 4)}, build: op("Einsum", txt("equation", "ij,jk"))},
	{name: "Einsum transposes", inputs: []operand{tensor(2, 3, 4)}, build: op("Einsum", txt("equation", "abc->cba"))},
}

func cumulative(attributes ...onnx.Attribute) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string {
		return b.Op("CumSum", []string{in[0], b.Constant(onnx.NewTensor("axis", nil, []int64{1}))}, attributes...)
	}
}

// resized builds Resize by scales, or by sizes where scales is nil.
func resized(scales []float32, sizes []int64, attributes ...onnx.Attribute) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string {
		if scales == nil {
			return b.Op("Resize", []string{in[0], "", "", b.Ints("sizes", sizes...)}, attributes...)
		}
		return b.Op("Resize", []string{in[0], "", b.Weight("scales", []int64{int64(len(scales))}, scales)}, attributes...)
	}
}

func mode(name string) onnx.Attribute { return txt("mode", name) }

func coordinates(name string) onnx.Attribute { return txt("coordinate_transformation_mode", name) }

var resizeClaims = []claim{
	{name: "Resize nearest doubles, as a U-Net's decoder", single: true, inputs: []operand{tensor(1, 2, 3, 4)}, build: resized([]float32{1, 1, 2, 2}, nil, mode("nearest"), coordinates("asymmetric"), txt("nearest_mode", "floor"))},
	{name: "Resize nearest to odd sizes", single: true, inputs: []operand{tensor(1, 2, 3, 4)}, build: resized(nil, []int64{1, 2, 5, 7}, mode("nearest"))},
	{name: "Resize nearest down", single: true, inputs: []operand{tensor(1, 1, 7, 5)}, build: resized(nil, []int64{1, 1, 3, 4}, mode("nearest"), txt("nearest_mode", "ceil"), coordinates("asymmetric"))},
	{name: "Resize nearest rounds half up", single: true, inputs: []operand{tensor(1, 1, 4, 4)}, build: resized([]float32{1, 1, 1.5, 0.5}, nil, mode("nearest"), txt("nearest_mode", "round_prefer_ceil"))},
	{name: "Resize nearest as old TensorFlow", single: true, inputs: []operand{tensor(1, 1, 4, 4)}, build: resized(nil, []int64{1, 1, 7, 3}, mode("nearest"), coordinates("tf_half_pixel_for_nn"), txt("nearest_mode", "floor"))},
	{name: "Resize linear", single: true, inputs: []operand{tensor(1, 2, 3, 4)}, build: resized([]float32{1, 1, 2, 2.5}, nil, mode("linear"))},
	{name: "Resize linear as PyTorch", single: true, inputs: []operand{tensor(1, 2, 3, 4)}, build: resized(nil, []int64{1, 2, 7, 2}, mode("linear"), coordinates("pytorch_half_pixel"))},
	{name: "Resize linear with aligned corners", single: true, inputs: []operand{tensor(2, 1, 3, 4)}, build: resized(nil, []int64{2, 1, 6, 3}, mode("linear"), coordinates("align_corners"))},
	{name: "Resize linear of one axis", single: true, inputs: []operand{tensor(5, 4)}, build: resized(nil, []int64{5, 9}, mode("linear"), coordinates("asymmetric"))},
	{name: "Resize linear of three axes", single: true, inputs: []operand{tensor(1, 1, 2, 3, 2)}, build: resized(nil, []int64{1, 1, 3, 4, 5}, mode("linear"))},
	{name: "Resize cubic", single: true, inputs: []operand{tensor(1, 2, 4, 5)}, build: resized(nil, []int64{1, 2, 7, 3}, mode("cubic"))},
	{name: "Resize cubic excluding the outside", single: true, inputs: []operand{tensor(1, 1, 4, 5)}, build: resized([]float32{1, 1, 1.6, 2}, nil, mode("cubic"), i("exclude_outside", 1), f("cubic_coeff_a", -0.5), coordinates("asymmetric"))},
	{name: "Resize some axes", opset: 18, single: true, inputs: []operand{tensor(1, 1, 4, 5)}, build: resized(nil, []int64{6, 3}, mode("linear"), is("axes", 3, 2))},
	{name: "Resize symmetric", opset: 19, single: true, inputs: []operand{tensor(1, 1, 4, 5)}, build: resized([]float32{1, 1, 1.3, 0.7}, nil, mode("linear"), coordinates("half_pixel_symmetric"))},
	{name: "Resize a crop", single: true, inputs: []operand{tensor(1, 1, 4, 5)}, build: func(b *onnx.Builder, in []string) string {
		roi := b.Weight("roi", []int64{8}, []float32{0, 0, 0.2, -0.3, 1, 1, 0.9, 1.1})
		return b.Op("Resize", []string{in[0], roi, "", b.Ints("sizes", 1, 1, 3, 4)}, mode("linear"), coordinates("tf_crop_and_resize"), f("extrapolation_value", 7))
	}},
}

var recurrentClaims = []claim{
	{name: "RNN", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 5, 4), tensor(1, 5, 5), tensor(1, 10)}, build: recurrent("RNN", 5)},
	{name: "RNN backwards without bias", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 5, 4), tensor(1, 5, 5)}, build: recurrent("RNN", 5, txt("direction", "reverse"))},
	{name: "GRU", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 9, 4), tensor(1, 9, 3), tensor(1, 18)}, build: recurrent("GRU", 3)},
	{name: "GRU of PyTorch, both ways, with a first state", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(2, 9, 4), tensor(2, 9, 3), tensor(2, 18), tensor(2, 2, 3)}, build: recurrent("GRU", 3, txt("direction", "bidirectional"), i("linear_before_reset", 1))},
	{name: "LSTM", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 12, 4), tensor(1, 12, 3), tensor(1, 24)}, build: recurrent("LSTM", 3)},
	{name: "LSTM both ways, with first states", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(2, 12, 4), tensor(2, 12, 3), tensor(2, 24), tensor(2, 2, 3), tensor(2, 2, 3)}, build: recurrent("LSTM", 3, txt("direction", "bidirectional"))},
	{name: "LSTM's last state and cell", smooth: true, inputs: []operand{tensor(3, 2, 4), tensor(1, 12, 4), tensor(1, 12, 3)}, build: func(b *onnx.Builder, in []string) string {
		out := b.Node(&onnx.Node{OpType: "LSTM", Inputs: in, Attributes: attrs{i("hidden_size", 3)}}, 3)
		return b.Op("Mul", []string{out[1], out[2]})
	}},
}

// recurrent puts first states behind the lengths of the sequences, which are
// left out.
func recurrent(opType string, hidden int64, attributes ...onnx.Attribute) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string {
		if len(in) > 4 {
			in = append(append(append([]string{}, in[:4]...), ""), in[4:]...)
		}
		return b.Node(&onnx.Node{OpType: opType, Inputs: in, Attributes: append(attributes, i("hidden_size", hidden))}, 2)[0]
	}
}

// microsoft builds one node of ONNX Runtime's own domain.
func microsoft(opType string, attributes ...onnx.Attribute) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string {
		b.Import("com.microsoft", 1)
		return b.Node(&onnx.Node{OpType: opType, Domain: "com.microsoft", Inputs: in, Attributes: attributes}, 1)[0]
	}
}

var microsoftClaims = []claim{
	{name: "com.microsoft Gelu", smooth: true, inputs: []operand{tensor(4, 5)}, build: microsoft("Gelu")},
	{name: "com.microsoft FastGelu", smooth: true, inputs: []operand{tensor(4, 5), tensor(5)}, build: microsoft("FastGelu")},
	{name: "com.microsoft QuickGelu", smooth: true, inputs: []operand{tensor(4, 5)}, build: microsoft("QuickGelu")},
	{name: "com.microsoft BiasGelu", smooth: true, inputs: []operand{tensor(4, 5), tensor(5)}, build: microsoft("BiasGelu")},
	{name: "com.microsoft FusedMatMul", single: true, inputs: []operand{tensor(2, 4, 3), tensor(2, 5, 4)}, build: microsoft("FusedMatMul", i("transA", 1), i("transB", 1), f("alpha", 0.5))},
	{name: "com.microsoft FusedGemm", smooth: true, inputs: []operand{tensor(3, 4), tensor(4, 2), tensor(2)}, build: microsoft("FusedGemm", txt("activation", "LeakyRelu"), f("activation_alpha", 0.2))},
	{name: "com.microsoft FusedConv", smooth: true, inputs: []operand{tensor(1, 2, 4, 4), tensor(3, 2, 3, 3), tensor(3)}, build: microsoft("FusedConv", txt("activation", "Tanh"), is("pads", 1, 1, 1, 1))},
	{name: "com.microsoft SkipLayerNormalization", smooth: true, inputs: []operand{tensor(2, 3, 4), tensor(2, 3, 4), tensor(4), tensor(4), tensor(4)}, build: microsoft("SkipLayerNormalization", f("epsilon", 1e-5))},
	{name: "com.microsoft SkipSimplifiedLayerNormalization", smooth: true, inputs: []operand{tensor(2, 3, 4), tensor(2, 3, 4), tensor(4)}, build: microsoft("SkipSimplifiedLayerNormalization", f("epsilon", 1e-5))},
	{name: "SimplifiedLayerNormalization", smooth: true, inputs: []operand{tensor(2, 3, 5), tensor(5)}, build: op("SimplifiedLayerNormalization", f("epsilon", 1e-5))},
	{name: "LayerNormalization before opset 17", opset: 14, smooth: true, inputs: []operand{tensor(2, 3, 5), tensor(5), tensor(5)}, build: op("LayerNormalization")},
}

var moreClaims = []claim{
	{name: "Mod of floats", smooth: true, inputs: []operand{given([]float64{5.3, -5.3, 2.2, -0.7}, 4), given([]float64{2, 2, 0.6, -0.5}, 4)}, build: op("Mod", i("fmod", 1))},
	{name: "Acos", smooth: true, inputs: []operand{given([]float64{-0.8, -0.1, 0.3, 0.7}, 4)}, build: op("Acos")},
	{name: "Asin", smooth: true, inputs: []operand{given([]float64{-0.8, -0.1, 0.3, 0.7}, 4)}, build: op("Asin")},
	{name: "Atan", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Atan")},
	{name: "Acosh", smooth: true, inputs: []operand{given([]float64{1.3, 2, 3}, 3)}, build: op("Acosh")},
	{name: "Asinh", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Asinh")},
	{name: "Atanh", smooth: true, inputs: []operand{given([]float64{-0.7, -0.1, 0.3, 0.7}, 4)}, build: op("Atanh")},
	{name: "Sinh", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Sinh")},
	{name: "Cosh", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Cosh")},
	{name: "Tan", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Tan")},
	{name: "Celu", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Celu", f("alpha", 0.6))},
	{name: "Shrink", smooth: true, inputs: []operand{given([]float64{-2, -0.3, 0.2, 0.9}, 4)}, build: op("Shrink", f("lambd", 0.5), f("bias", 0.1))},
	{name: "Swish", opset: 24, smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Swish", f("alpha", 1.3))},
	{name: "CastLike", single: true, inputs: []operand{tensor(3), tensor(1).fixed()}, build: func(b *onnx.Builder, in []string) string {
		return b.Op("CastLike", []string{b.Op("Mul", []string{in[0], in[0]}), in[1]})
	}},
	{name: "LpNormalization", smooth: true, inputs: []operand{tensor(2, 3, 4)}, build: op("LpNormalization", i("axis", 1))},
	{name: "LpNormalization by magnitudes", smooth: true, inputs: []operand{positive(2, 3)}, build: op("LpNormalization", i("p", 1))},
	{name: "MeanVarianceNormalization", smooth: true, inputs: []operand{tensor(2, 3, 2, 2)}, build: op("MeanVarianceNormalization")},
	{name: "LRN", smooth: true, inputs: []operand{tensor(2, 5, 2, 2)}, build: op("LRN", i("size", 3), f("alpha", 0.3), f("beta", 0.75), f("bias", 2))},
	{name: "ReduceLogSum", smooth: true, inputs: []operand{positive(2, 3, 4)}, build: op("ReduceLogSum", is("axes", 1), i("keepdims", 0))},
	{name: "ReduceProd", smooth: true, inputs: []operand{positive(2, 3, 4)}, build: op("ReduceProd", is("axes", 1))},
	{name: "ReduceProd through zeros", smooth: true, inputs: []operand{given([]float64{0, 2, 3, 0, 0, 5, 1, 2, -3}, 3, 3)}, build: op("ReduceProd", is("axes", 1), i("keepdims", 0))},
	{name: "Softmin, as exporters write it", inputs: []operand{tensor(3, 4)}, build: func(b *onnx.Builder, in []string) string {
		return b.Op("Softmax", []string{b.Op("Neg", in)}, i("axis", 1))
	}},
	{name: "SiLU, as exporters write it", smooth: true, inputs: []operand{tensor(3, 4)}, build: func(b *onnx.Builder, in []string) string {
		return b.Op("Mul", []string{in[0], b.Op("Sigmoid", in)})
	}},
	{name: "Gelu by Erf, as exporters write it", smooth: true, inputs: []operand{tensor(3, 4)}, build: func(b *onnx.Builder, in []string) string {
		number := func(name string, v float32) string { return b.Weight(name, nil, []float32{v}) }
		erf := b.Op("Erf", []string{b.Op("Div", []string{in[0], number("root", math.Sqrt2)})})
		twice := b.Op("Mul", []string{in[0], b.Op("Add", []string{erf, number("one", 1)})})
		return b.Op("Mul", []string{twice, number("half", 0.5)})
	}},
	{name: "a branch that is known", inputs: []operand{tensor(3, 4)}, build: func(b *onnx.Builder, in []string) string {
		rank := b.Op("Size", []string{b.Op("Shape", in)})
		two := b.Op("Equal", []string{rank, b.Constant(onnx.NewTensor("two", nil, []int64{2}))})
		branch := func(name, opType string) onnx.Attribute {
			return onnx.Attribute{Name: name, Type: onnx.AttributeGraph, Graph: &onnx.Graph{
				Name:    name,
				Nodes:   []*onnx.Node{{Name: name, OpType: opType, Inputs: in, Outputs: []string{name + "_out"}}},
				Outputs: []onnx.Value{{Name: name + "_out"}},
			}}
		}
		return b.Op("If", []string{two}, branch("then_branch", "Exp"), branch("else_branch", "Tanh"))
	}},
}

// claims are all of them, by family.
var claims = [][]claim{
	elementwiseClaims, matrixClaims, convolutionClaims, poolClaims, normaliseClaims, reduceClaims, shapeClaims,
	indexClaims, resizeClaims, recurrentClaims, microsoftClaims, moreClaims, kerasClaims,
}
