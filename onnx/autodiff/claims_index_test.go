package autodiff_test

import (
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
