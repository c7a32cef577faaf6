package onnx_test

import (
	"github.com/vigie/vigie/onnx"
)

// cellDrawing draws a recurrent cell with the given number of gates.
func cellDrawing(name string, gates int64, outputs int) drawing {
	return drawing{from: 14, draw: func(r *random) []string {
		steps, batch, input, hidden := r.between(1, 3), r.between(1, 3), r.between(1, 3), r.between(1, 4)
		direction, directions := []string{"forward", "reverse", "bidirectional"}[r.IntN(3)], int64(1)
		if direction == "bidirectional" {
			directions = 2
		}
		inputs := []string{r.input(onnx.Float, []int64{steps, batch, input}), r.floats(directions, gates*hidden, input), r.floats(directions, gates*hidden, hidden)}
		if r.coin() {
			inputs = append(inputs, r.floats(directions, 2*gates*hidden))
		}
		if r.coin() {
			for len(inputs) < 5 {
				inputs = append(inputs, "")
			}
			inputs = append(inputs, r.floats(directions, batch, hidden))
		}
		return r.ops(name, outputs, inputs, onnx.IntAttribute("hidden_size", hidden), onnx.TextAttribute("direction", direction))
	}}
}

// recurrentDrawings are the cells, and the choice between graphs.
var recurrentDrawings = map[string]drawing{
	"RNN":  cellDrawing("RNN", 1, 2),
	"GRU":  cellDrawing("GRU", 3, 2),
	"LSTM": cellDrawing("LSTM", 4, 3),
	"If": {from: 13, draw: func(r *random) []string {
		x := r.input(onnx.Float, r.dims(int(r.between(1, 3)), 1, 3))
		branch := func(name, opType string) onnx.Attribute {
			value := r.b.Fresh(name)
			return onnx.Attribute{Name: name, Type: onnx.AttributeGraph, Graph: &onnx.Graph{
				Name:    name,
				Nodes:   []*onnx.Node{{OpType: opType, Name: value, Inputs: []string{x}, Outputs: []string{value}}},
				Outputs: []onnx.Value{{Name: value, Type: onnx.Float}},
			}}
		}
		condition := r.b.Op("Equal", []string{r.b.Op("Size", []string{x}), r.scalar(r.between(1, 4))})
		return r.op("If", []string{condition}, branch("then_branch", "Relu"), branch("else_branch", []string{"Exp", "Flatten"}[r.IntN(2)]))
	}},
}

// fusedDrawings are operators of ONNX Runtime's own.
var fusedDrawings = map[string]drawing{
	"com.microsoft.SkipLayerNormalization": {from: 18, draw: func(r *random) []string {
		dims := r.dims(3, 1, 4)
		return r.microsoft("SkipLayerNormalization", []string{r.input(onnx.Float, dims), r.floats(dims...), r.floats(dims[2])})
	}},
	"com.microsoft.SkipSimplifiedLayerNormalization": {from: 18, draw: func(r *random) []string {
		dims := r.dims(3, 1, 4)
		return r.microsoft("SkipSimplifiedLayerNormalization", []string{r.input(onnx.Float, dims), r.floats(dims...), r.floats(dims[2])})
	}},
	"com.microsoft.RotaryEmbedding": {from: 18, draw: func(r *random) []string {
		at := r.b.Constant(onnx.NewTensor("at", []int64{2, 3}, make([]int64, 6)))
		return r.microsoft("RotaryEmbedding", []string{r.input(onnx.Float, []int64{2, 3, 8}), at, r.floats(16, 4), r.floats(16, 4)})
	}},
	"Einsum": {from: 12, draw: func(r *random) []string {
		b, i, j, k := r.between(1, 3), r.between(1, 3), r.between(1, 3), r.between(1, 3)
		c := []struct {
			equation string
			dims     [][]int64
		}{
			{"bij,bjk->bik", [][]int64{{b, i, j}, {b, j, k}}},
			{"...ij,jk->...ik", [][]int64{{b, 2, i, j}, {j, k}}},
			{"ij,jk", [][]int64{{i, j}, {j, k}}},
			{"ij->", [][]int64{{i, j}}},
			{"bi,ij,j->b", [][]int64{{b, i}, {i, j}, {j}}},
			{"i...->...", [][]int64{{i, j, k}}},
		}[r.IntN(6)]
		var inputs []string
		for _, dims := range c.dims {
			inputs = append(inputs, r.input(onnx.Float, dims))
		}
		return r.op("Einsum", inputs, onnx.TextAttribute("equation", c.equation))
	}},
}
