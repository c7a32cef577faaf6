package autodiff_test

import (
	"github.com/vigie/vigie/onnx"
)

var (
	i   = onnx.IntAttribute
	is  = onnx.IntsAttribute
	f   = onnx.FloatAttribute
	txt = onnx.TextAttribute
)

type attrs = []onnx.Attribute

var elementwiseClaims = []claim{
	{name: "Add same shape", inputs: []operand{tensor(2, 3), tensor(2, 3)}, build: op("Add")},
	{name: "Add broadcasts both ways", inputs: []operand{tensor(2, 1, 3), tensor(4, 1)}, build: op("Add")},
	{name: "Add a scalar", inputs: []operand{tensor(2, 3), tensor()}, build: op("Add")},
	{name: "Sub broadcasts", inputs: []operand{tensor(3), tensor(2, 1)}, build: op("Sub")},
	{name: "Mul broadcasts", inputs: []operand{tensor(2, 3, 4), tensor(3, 1)}, build: op("Mul")},
	{name: "Mul by itself", inputs: []operand{tensor(5)}, build: func(b *onnx.Builder, in []string) string { return b.Op("Mul", []string{in[0], in[0]}) }},
	{name: "Div broadcasts", inputs: []operand{tensor(2, 3), positive(1, 3)}, build: op("Div")},
	{name: "Sum of three", inputs: []operand{tensor(2, 3), tensor(3), tensor(2, 1)}, build: op("Sum")},
	{name: "Mean of three", single: true, inputs: []operand{tensor(2, 3), tensor(3), tensor(2, 1)}, build: op("Mean")},
	{name: "Max of two", inputs: []operand{tensor(2, 3), tensor(3)}, build: op("Max")},
	{name: "Min of three", inputs: []operand{tensor(2, 3), tensor(3), tensor(1)}, build: op("Min")},
	{name: "Pow by a tensor", inputs: []operand{positive(2, 3), tensor(3)}, build: op("Pow")},
	{name: "Pow square at zero", inputs: []operand{given([]float64{0, -1, 2}, 3), given([]float64{2}).fixed()}, build: op("Pow")},
	{name: "Where broadcasts", inputs: []operand{tensor(2, 3), tensor(3), tensor(2, 1).fixed()}, build: func(b *onnx.Builder, in []string) string {
		return b.Op("Where", []string{b.Op("Greater", []string{in[2], b.Op("Sub", []string{in[2], in[2]})}), in[0], in[1]})
	}},
	{name: "PRelu slope a channel", smooth: true, inputs: []operand{tensor(2, 3, 2, 2), tensor(3, 1, 1)}, build: op("PRelu")},

	{name: "Identity", inputs: []operand{tensor(3)}, build: op("Identity")},
	{name: "Neg", inputs: []operand{tensor(3)}, build: op("Neg")},
	{name: "Cast there and back", inputs: []operand{tensor(3).fixed(), tensor(3)}, single: true, build: func(b *onnx.Builder, in []string) string {
		wide := b.Op("Cast", []string{in[1]}, i("to", int64(onnx.Double)))
		return b.Op("Cast", []string{b.Op("Add", []string{wide, wide})}, i("to", int64(onnx.Float)))
	}},
	{name: "Relu", inputs: []operand{tensor(4, 5)}, build: op("Relu")},
	{name: "LeakyRelu", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("LeakyRelu", f("alpha", 0.2))},
	{name: "ThresholdedRelu", smooth: true, inputs: []operand{given([]float64{-1, 0, 0.2, 0.5, 0.9, 2}, 6)}, build: op("ThresholdedRelu", f("alpha", 0.3))},
	{name: "Elu", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Elu", f("alpha", 0.7))},
	{name: "Selu", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Selu")},
	{name: "Sigmoid", inputs: []operand{tensor(4, 5)}, build: op("Sigmoid")},
	{name: "HardSigmoid", smooth: true, inputs: []operand{given([]float64{-4, -1, 0.3, 1, 4}, 5)}, build: op("HardSigmoid", f("alpha", 0.25))},
	{name: "HardSwish", smooth: true, inputs: []operand{given([]float64{-4, -2, -1, 0.3, 1, 2.5, 4}, 7)}, build: op("HardSwish")},
	{name: "Mish", opset: 18, smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Mish")},
	{name: "Gelu exact", opset: 20, smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Gelu")},
	{name: "Gelu tanh", opset: 20, smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Gelu", txt("approximate", "tanh"))},
	{name: "Tanh", inputs: []operand{tensor(4, 5)}, build: op("Tanh")},
	{name: "Softplus", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Softplus")},
	{name: "Softsign", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Softsign")},
	{name: "Exp", inputs: []operand{tensor(4, 5)}, build: op("Exp")},
	{name: "Log", inputs: []operand{positive(4, 5)}, build: op("Log")},
	{name: "Sqrt", inputs: []operand{positive(4, 5)}, build: op("Sqrt")},
	{name: "Reciprocal", inputs: []operand{positive(4, 5)}, build: op("Reciprocal")},
	{name: "Abs", inputs: []operand{tensor(4, 5)}, build: op("Abs")},
	{name: "Sin", inputs: []operand{tensor(4, 5)}, build: op("Sin")},
	{name: "Cos", inputs: []operand{tensor(4, 5)}, smooth: true, build: op("Cos")},
	{name: "Erf", smooth: true, inputs: []operand{tensor(4, 5)}, build: op("Erf")},
	{name: "Clip", inputs: []operand{tensor(4, 5), given([]float64{-0.4}).fixed(), given([]float64{0.3}).fixed()}, build: op("Clip")},
	{name: "Clip from above only", inputs: []operand{tensor(4, 5), given([]float64{0.3}).fixed()}, build: func(b *onnx.Builder, in []string) string {
		return b.Op("Clip", []string{in[0], "", in[1]})
	}},
	{name: "Dropout told to infer", inputs: []operand{tensor(4, 5)}, build: func(b *onnx.Builder, in []string) string {
		b.Weight("ratio", []int64{}, []float32{0.5})
		b.Constant(&onnx.Tensor{Name: "training", Type: onnx.Bool, Dims: []int64{}, Raw: []byte{0}})
		return b.Op("Dropout", []string{in[0], "ratio", "training"})
	}},
	{name: "Dropout in inference", inputs: []operand{tensor(4, 5)}, build: op("Dropout")},
	{name: "Floor is flat", inputs: []operand{tensor(4, 5)}, build: flat("Floor")},
	{name: "Ceil is flat", inputs: []operand{tensor(4, 5)}, build: flat("Ceil")},
	{name: "Round is flat", inputs: []operand{tensor(4, 5)}, build: flat("Round")},
	{name: "Sign is flat", inputs: []operand{tensor(4, 5)}, build: flat("Sign")},
}

// flat adds a path with a slope, so that the flat one shows as its absence.
func flat(opType string) func(*onnx.Builder, []string) string {
	return func(b *onnx.Builder, in []string) string {
		return b.Op("Add", []string{in[0], b.Op(opType, in)})
	}
}

var matrixClaims = []claim{
	{name: "MatMul 2-D", inputs: []operand{tensor(3, 4), tensor(4, 2)}, build: op("MatMul")},
	{name: "MatMul shares its right side", inputs: []operand{tensor(2, 5, 3, 4), tensor(4, 2)}, build: op("MatMul")},
	{name: "MatMul batched", inputs: []operand{tensor(2, 3, 4), tensor(2, 4, 2)}, build: op("MatMul")},
	{name: "MatMul batched in single precision (FusedMatMul)", single: true, inputs: []operand{tensor(2, 3, 4), tensor(2, 4, 2)}, build: op("MatMul")},
	{name: "MatMul broadcasts its batch", inputs: []operand{tensor(5, 1, 3, 4), tensor(2, 4, 2)}, build: op("MatMul")},
	{name: "MatMul of a vector and a matrix", inputs: []operand{tensor(4), tensor(4, 2)}, build: op("MatMul")},
	{name: "MatMul of matrices and a vector", inputs: []operand{tensor(2, 3, 4), tensor(4)}, build: op("MatMul")},
	{name: "MatMul of a vector and matrices", inputs: []operand{tensor(4), tensor(3, 4, 2)}, build: op("MatMul")},
	{name: "MatMul of two vectors", inputs: []operand{tensor(4), tensor(4)}, build: op("MatMul")},
	{name: "Gemm", inputs: []operand{tensor(3, 4), tensor(4, 2), tensor(2)}, build: op("Gemm")},
	{name: "Gemm transB with alpha and beta", inputs: []operand{tensor(3, 4), tensor(2, 4), tensor(3, 1)}, build: op("Gemm", i("transB", 1), f("alpha", 0.5), f("beta", 2))},
	{name: "Gemm transA", inputs: []operand{tensor(4, 3), tensor(4, 2)}, build: op("Gemm", i("transA", 1))},
	{name: "Gemm both transposed", inputs: []operand{tensor(4, 3), tensor(2, 4), tensor()}, build: op("Gemm", i("transA", 1), i("transB", 1))},
	{name: "Softmax last axis", inputs: []operand{tensor(3, 4)}, build: op("Softmax")},
	{name: "Softmax middle axis", inputs: []operand{tensor(2, 3, 4)}, build: op("Softmax", i("axis", 1))},
	{name: "LogSoftmax", inputs: []operand{tensor(3, 4)}, build: op("LogSoftmax", i("axis", 1))},
}

var convolutionClaims = []claim{
	{name: "Conv 2-D with bias", single: true, inputs: []operand{tensor(2, 3, 5, 6), tensor(4, 3, 3, 3), tensor(4)}, build: op("Conv", is("pads", 1, 1, 1, 1))},
	{name: "Conv 1x1", single: true, inputs: []operand{tensor(2, 3, 4, 4), tensor(5, 3, 1, 1)}, build: op("Conv")},
	{name: "Conv without padding", single: true, inputs: []operand{tensor(2, 2, 5, 5), tensor(3, 2, 3, 2)}, build: op("Conv")},
	{name: "Conv stride 2", single: true, inputs: []operand{tensor(2, 2, 7, 6), tensor(3, 2, 3, 3)}, build: op("Conv", is("strides", 2, 2), is("pads", 1, 1, 1, 1))},
	{name: "Conv stride leaves a rest", single: true, inputs: []operand{tensor(1, 2, 8, 9), tensor(3, 2, 3, 2)}, build: op("Conv", is("strides", 3, 2))},
	{name: "Conv stride beyond the kernel", single: true, inputs: []operand{tensor(1, 2, 8, 8), tensor(3, 2, 1, 2)}, build: op("Conv", is("strides", 3, 3))},
	{name: "Conv dilated", single: true, inputs: []operand{tensor(1, 2, 7, 8), tensor(3, 2, 3, 3)}, build: op("Conv", is("dilations", 2, 2), is("pads", 2, 2, 2, 2))},
	{name: "Conv dilated and strided", single: true, inputs: []operand{tensor(1, 2, 9, 8), tensor(3, 2, 2, 3)}, build: op("Conv", is("dilations", 3, 2), is("strides", 2, 1), is("pads", 1, 2, 0, 1))},
	{name: "Conv asymmetric pads", single: true, inputs: []operand{tensor(1, 2, 5, 5), tensor(2, 2, 3, 3)}, build: op("Conv", is("pads", 0, 1, 2, 0))},
	{name: "Conv padded beyond the kernel", single: true, inputs: []operand{tensor(1, 1, 4, 4), tensor(2, 1, 2, 2)}, build: op("Conv", is("pads", 3, 0, 2, 2))},
	{name: "Conv SAME_UPPER stride 2", single: true, inputs: []operand{tensor(1, 2, 6, 5), tensor(2, 2, 3, 2)}, build: op("Conv", txt("auto_pad", "SAME_UPPER"), is("strides", 2, 2))},
	{name: "Conv SAME_LOWER", single: true, inputs: []operand{tensor(1, 2, 6, 5), tensor(2, 2, 2, 2)}, build: op("Conv", txt("auto_pad", "SAME_LOWER"))},
	{name: "Conv grouped", single: true, inputs: []operand{tensor(2, 4, 5, 5), tensor(6, 2, 3, 3), tensor(6)}, build: op("Conv", i("group", 2), is("pads", 1, 1, 1, 1))},
	{name: "Conv grouped stride 2", single: true, inputs: []operand{tensor(2, 4, 6, 5), tensor(6, 2, 3, 3)}, build: op("Conv", i("group", 2), is("strides", 2, 2))},
	{name: "Conv depthwise", single: true, inputs: []operand{tensor(2, 3, 5, 5), tensor(3, 1, 3, 3)}, build: op("Conv", i("group", 3), is("pads", 1, 1, 1, 1))},
	{name: "Conv depthwise with multiplier", single: true, inputs: []operand{tensor(2, 3, 5, 5), tensor(6, 1, 3, 3)}, build: op("Conv", i("group", 3), is("strides", 2, 2))},
	{name: "Conv 1-D", single: true, inputs: []operand{tensor(2, 3, 9), tensor(4, 3, 3), tensor(4)}, build: op("Conv", is("strides", 2), is("pads", 1, 0), is("dilations", 2))},
	{name: "Conv 3-D", single: true, inputs: []operand{tensor(1, 2, 3, 4, 4), tensor(2, 2, 2, 2, 3)}, build: op("Conv", is("pads", 0, 1, 1, 1, 0, 1))},
	{name: "ConvTranspose", single: true, inputs: []operand{tensor(2, 3, 4, 4), tensor(3, 2, 3, 3), tensor(2)}, build: op("ConvTranspose", is("strides", 2, 2), is("pads", 1, 1, 1, 1), is("output_padding", 1, 1))},
	{name: "ConvTranspose stride 1", single: true, inputs: []operand{tensor(1, 3, 4, 5), tensor(3, 2, 2, 3)}, build: op("ConvTranspose")},
	{name: "ConvTranspose of a given shape", single: true, inputs: []operand{tensor(1, 2, 3, 4), tensor(2, 2, 3, 3)}, build: op("ConvTranspose", is("strides", 2, 2), is("output_shape", 6, 8))},
	{name: "ConvTranspose SAME_UPPER", single: true, inputs: []operand{tensor(1, 2, 3, 4), tensor(2, 2, 4, 3)}, build: op("ConvTranspose", is("strides", 2, 1), txt("auto_pad", "SAME_UPPER"))},
	{name: "ConvTranspose grouped, asymmetric", single: true, inputs: []operand{tensor(1, 4, 3, 3), tensor(4, 2, 3, 2)}, build: op("ConvTranspose", i("group", 2), is("strides", 2, 3), is("pads", 0, 1, 1, 0))},
}

// ties holds windows whose maximum occurs once, twice and everywhere. Central
// differences at ties see the mean of both one-sided slopes only where two
// elements tie, so ties have their own test; here values are distinct.
var poolClaims = []claim{
	{name: "MaxPool tiles", inputs: []operand{tensor(2, 3, 4, 6)}, build: op("MaxPool", is("kernel_shape", 2, 2), is("strides", 2, 2))},
	{name: "MaxPool tiles with a rest", inputs: []operand{tensor(2, 3, 5, 7)}, build: op("MaxPool", is("kernel_shape", 2, 3), is("strides", 2, 3))},
	{name: "MaxPool tiles in single precision", smooth: true, inputs: []operand{spaced(1, 2, 4, 4)}, build: op("MaxPool", is("kernel_shape", 2, 2), is("strides", 2, 2))},
	{name: "MaxPool 3x3 stride 2 padded", inputs: []operand{tensor(2, 2, 7, 6)}, build: op("MaxPool", is("kernel_shape", 3, 3), is("strides", 2, 2), is("pads", 1, 1, 1, 1))},
	{name: "MaxPool overlaps", inputs: []operand{tensor(1, 2, 6, 6)}, build: op("MaxPool", is("kernel_shape", 3, 2))},
	{name: "MaxPool dilated", inputs: []operand{tensor(1, 2, 7, 7)}, build: op("MaxPool", is("kernel_shape", 2, 2), is("dilations", 2, 3))},
	{name: "MaxPool ceil mode", inputs: []operand{tensor(1, 2, 6, 5)}, build: op("MaxPool", is("kernel_shape", 3, 2), is("strides", 2, 2), i("ceil_mode", 1))},
	{name: "MaxPool SAME_UPPER", inputs: []operand{tensor(1, 2, 5, 5)}, build: op("MaxPool", is("kernel_shape", 2, 2), is("strides", 2, 2), txt("auto_pad", "SAME_UPPER"))},
	{name: "MaxPool 1-D", inputs: []operand{tensor(2, 2, 9)}, build: op("MaxPool", is("kernel_shape", 3), is("strides", 2))},
	{name: "AveragePool tiles", single: true, inputs: []operand{tensor(2, 3, 4, 6)}, build: op("AveragePool", is("kernel_shape", 2, 2), is("strides", 2, 2))},
	{name: "AveragePool overlaps", single: true, inputs: []operand{tensor(1, 2, 6, 7)}, build: op("AveragePool", is("kernel_shape", 3, 2), is("strides", 1, 2))},
	{name: "AveragePool pads do not count", single: true, inputs: []operand{tensor(1, 2, 6, 7)}, build: op("AveragePool", is("kernel_shape", 3, 3), is("strides", 2, 2), is("pads", 1, 1, 1, 1))},
	{name: "AveragePool pads count", single: true, inputs: []operand{tensor(1, 2, 6, 7)}, build: op("AveragePool", is("kernel_shape", 3, 3), is("strides", 2, 2), is("pads", 1, 1, 1, 1), i("count_include_pad", 1))},
	{name: "AveragePool ceil mode", opset: 19, single: true, inputs: []operand{tensor(1, 2, 6, 7)}, build: op("AveragePool", is("kernel_shape", 3, 3), is("strides", 2, 2), i("ceil_mode", 1))},
	{name: "GlobalAveragePool", single: true, inputs: []operand{tensor(2, 3, 4, 5)}, build: op("GlobalAveragePool")},
	{name: "GlobalMaxPool", smooth: true, inputs: []operand{spaced(2, 3, 2, 2)}, build: op("GlobalMaxPool")},
}

// spaced has values far enough apart that a step of 1e-2 cannot exchange them.
func spaced(dims ...int64) operand {
	o := operand{dims: dims}
	n := o.count()
	for k := range n {
		o.values = append(o.values, float64((k*7)%n)*0.1)
	}
	return o
}

var normaliseClaims = []claim{
	{name: "BatchNormalization in inference", inputs: []operand{tensor(2, 3, 4), tensor(3), tensor(3), tensor(3), positive(3)}, build: op("BatchNormalization", f("epsilon", 1e-2))},
	{name: "BatchNormalization with batch statistics", inputs: []operand{tensor(4, 3, 4), tensor(3), tensor(3), tensor(3).fixed(), positive(3).fixed()}, build: func(b *onnx.Builder, in []string) string {
		return b.Node(&onnx.Node{OpType: "BatchNormalization", Inputs: in, Attributes: attrs{i("training_mode", 1)}}, 3)[0]
	}},
	{name: "InstanceNormalization", smooth: true, inputs: []operand{tensor(2, 3, 4, 2), tensor(3), tensor(3)}, build: op("InstanceNormalization")},
	{name: "GroupNormalization a scale a channel", opset: 21, smooth: true, inputs: []operand{tensor(2, 6, 3, 2), tensor(6), tensor(6)}, build: op("GroupNormalization", i("num_groups", 2), f("epsilon", 1e-3))},
	{name: "GroupNormalization a scale a group", opset: 18, smooth: true, inputs: []operand{tensor(2, 6, 3, 2), tensor(2), tensor(2)}, build: op("GroupNormalization", i("num_groups", 2))},
	{name: "LayerNormalization", inputs: []operand{tensor(2, 3, 5), tensor(5), tensor(5)}, build: op("LayerNormalization")},
	{name: "RMSNormalization", opset: 23, smooth: true, inputs: []operand{tensor(2, 3, 5), tensor(5)}, build: op("RMSNormalization")},
	{name: "LayerNormalization over two axes", inputs: []operand{tensor(2, 3, 5), tensor(3, 5)}, build: op("LayerNormalization", i("axis", 1))},
}

var reduceClaims = []claim{
	{name: "ReduceSum", inputs: []operand{tensor(2, 3, 4)}, build: with("ReduceSum", attrs{i("keepdims", 0)}, []int64{0, 2})},
	{name: "ReduceSum of everything", inputs: []operand{tensor(2, 3)}, build: op("ReduceSum")},
	{name: "ReduceSum of nothing", inputs: []operand{tensor(2, 3)}, build: op("ReduceSum", i("noop_with_empty_axes", 1))},
	{name: "ReduceMean", inputs: []operand{tensor(2, 3, 4)}, build: op("ReduceMean", is("axes", -1))},
	{name: "ReduceMean of opset 18", opset: 18, inputs: []operand{tensor(2, 3, 4)}, build: with("ReduceMean", nil, []int64{1, 2})},
	{name: "ReduceMax", inputs: []operand{tensor(2, 3, 4)}, build: op("ReduceMax", is("axes", 1), i("keepdims", 0))},
	{name: "ReduceMin", inputs: []operand{tensor(2, 3, 4)}, build: op("ReduceMin", is("axes", 1, 2))},
	{name: "ReduceSumSquare", inputs: []operand{tensor(2, 3, 4)}, build: op("ReduceSumSquare", is("axes", 1))},
	{name: "ReduceL1", smooth: true, inputs: []operand{positive(2, 3)}, build: op("ReduceL1", is("axes", 1))},
	{name: "ReduceL2", smooth: true, inputs: []operand{tensor(2, 3, 4)}, build: op("ReduceL2", is("axes", 1), i("keepdims", 0))},
	{name: "ReduceLogSumExp", inputs: []operand{tensor(2, 3, 4)}, build: op("ReduceLogSumExp", is("axes", 1))},
}

var shapeClaims = []claim{
	{name: "Reshape", inputs: []operand{tensor(2, 6)}, build: with("Reshape", nil, []int64{3, -1})},
	{name: "Flatten", inputs: []operand{tensor(2, 3, 4)}, build: op("Flatten", i("axis", 2))},
	{name: "Squeeze", inputs: []operand{tensor(2, 1, 3)}, build: with("Squeeze", nil, []int64{1})},
	{name: "Unsqueeze", inputs: []operand{tensor(2, 3)}, build: with("Unsqueeze", nil, []int64{0, 2})},
	{name: "Transpose", inputs: []operand{tensor(2, 3, 4)}, build: op("Transpose", is("perm", 2, 0, 1))},
	{name: "Transpose by default", inputs: []operand{tensor(2, 3, 4)}, build: op("Transpose")},
	{name: "Concat", inputs: []operand{tensor(2, 3), tensor(2, 1), tensor(2, 2)}, build: op("Concat", i("axis", 1))},
	{name: "Concat twice the same", inputs: []operand{tensor(2, 3)}, build: func(b *onnx.Builder, in []string) string {
		return b.Op("Concat", []string{in[0], in[0]}, i("axis", 0))
	}},
	{name: "Split, one part unused", inputs: []operand{tensor(2, 6)}, build: func(b *onnx.Builder, in []string) string {
		parts := b.Node(&onnx.Node{OpType: "Split", Inputs: []string{in[0], b.Ints("k", 2, 3, 1)}, Attributes: attrs{i("axis", 1)}}, 3)
		return b.Op("Mul", []string{parts[0], parts[2]})
	}},
	{name: "Slice", inputs: []operand{tensor(4, 6)}, build: with("Slice", nil, []int64{1, -5}, []int64{3, 1000}, []int64{0, 1})},
	{name: "Slice with steps", inputs: []operand{tensor(5, 7)}, build: with("Slice", nil, []int64{0, 1}, []int64{5, 7}, []int64{0, -1}, []int64{2, 3})},
	{name: "Slice backwards", inputs: []operand{tensor(5, 7)}, build: with("Slice", nil, []int64{-1, 5}, []int64{-100, 0}, []int64{0, 1}, []int64{-1, -2})},
	{name: "Slice by bounds that are computed from shapes", inputs: []operand{tensor(5, 8)}, build: func(b *onnx.Builder, in []string) string {
		shape := b.Op("Shape", in)
		width := b.Op("Gather", []string{shape, b.Ints("k", -1)})
		half := b.Op("Div", []string{width, b.Op("Cast", []string{b.Op("Constant", nil, onnx.TensorAttribute("value", onnx.NewTensor("", []int64{1}, []int32{2})))}, i("to", int64(onnx.Int64)))})
		start := b.Op("Sub", []string{half, b.Op("Constant", nil, is("value_ints", 1))})
		end := b.Op("Add", []string{start, b.Op("Squeeze", []string{b.Op("Slice", []string{shape, b.Ints("k", 0), b.Ints("k", 1)}), b.Ints("k", 0)})})
		axes := b.Op("Concat", []string{b.Op("Unsqueeze", []string{b.Op("Constant", nil, i("value_int", 1)), b.Ints("k", 0)})}, i("axis", 0))
		return b.Op("Slice", []string{in[0], start, b.Op("Mul", []string{b.Op("Identity", []string{end}), b.Ints("k", 1)}), axes})
	}},
	{name: "Pad", inputs: []operand{tensor(2, 3)}, build: with("Pad", nil, []int64{0, 1, 2, 0})},
	{name: "Pad by negative amounts", inputs: []operand{tensor(4, 3)}, build: with("Pad", nil, []int64{-1, 1, 2, -1})},
	{name: "Expand", inputs: []operand{tensor(2, 1, 3)}, build: with("Expand", nil, []int64{4, 1, 5, 1})},
	{name: "Tile", inputs: []operand{tensor(2, 3)}, build: with("Tile", nil, []int64{2, 3})},
	{name: "Gather repeats rows", inputs: []operand{tensor(4, 3), index([]int64{1, 1, -1, 0}, 2, 2)}, build: op("Gather")},
	{name: "Gather along the last axis", inputs: []operand{tensor(2, 4), index([]int64{3, 0, 3}, 3)}, build: op("Gather", i("axis", 1))},
	{name: "Gather one row", inputs: []operand{tensor(4, 3), index([]int64{2})}, build: op("Gather")},
	{name: "GatherElements", inputs: []operand{tensor(2, 3), index([]int64{2, 2, 0, 1}, 2, 2)}, build: op("GatherElements", i("axis", 1))},
	{name: "Trilu", inputs: []operand{tensor(2, 3, 3)}, build: op("Trilu", i("upper", 0))},
}
