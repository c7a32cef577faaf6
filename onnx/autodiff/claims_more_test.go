package autodiff_test

import (
	"math"

	"github.com/vigie/vigie/onnx"
)

var moreClaims = []claim{
	{name: "Split of opset 18 into parts that are not equal", opset: 18, inputs: []operand{tensor(2, 7)}, build: func(b *onnx.Builder, in []string) string {
		parts := b.Node(&onnx.Node{OpType: "Split", Inputs: in, Attributes: attrs{i("axis", 1), i("num_outputs", 3)}}, 3)
		return b.Op("Concat", []string{parts[2], parts[0]}, i("axis", 1))
	}},
	{name: "ReduceL2 of opset 18", opset: 18, smooth: true, inputs: []operand{tensor(2, 3, 4)}, build: with("ReduceL2", attrs{i("keepdims", 0)}, []int64{-1, 0})},
	{name: "ReduceMax of opset 18", opset: 18, inputs: []operand{tensor(2, 3, 4)}, build: with("ReduceMax", nil, []int64{1})},
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
