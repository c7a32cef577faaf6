package explain

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// attention is a softmax whose rows say how much each token takes from each.
type attention struct {
	tensor string // [1, heads, tokens, tokens]
	heads  int
	tokens int
}

// findAttention lists the self-attentions on the way to the logits, in the
// order of the layers: a Softmax over the last axis of [1, heads, T, T] (or
// [1·heads, T, T]) whose result weighs values in a matrix product, with at most
// a dropout, cast or identity between.
func findAttention(m *onnx.Model, logits string) ([]attention, error) {
	shapes, err := onnx.InferShapes(m, nil)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return nil, err
	}
	needed := map[string]bool{logits: true}
	for _, n := range slices.Backward(m.Graph.Nodes) {
		if slices.ContainsFunc(n.Outputs, func(out string) bool { return out != "" && needed[out] }) {
			for _, in := range n.Inputs {
				needed[in] = true
			}
		}
	}
	var found []attention
	for _, n := range m.Graph.Nodes {
		if n.OpType != "Softmax" || !needed[n.Outputs[0]] || !weighsValues(m, n.Outputs[0]) {
			continue
		}
		v := shapes[n.Outputs[0]]
		shape, static := v.Static()
		rank := int64(len(shape))
		if !static || rank < 3 || rank > 4 || shape[rank-1] != shape[rank-2] {
			continue
		}
		if axis := n.Int("axis", -1); axis != -1 && axis != rank-1 {
			continue
		}
		if rank == 4 && shape[0] != 1 {
			return nil, fmt.Errorf("attention %q is %v, within windows: %w: rollout needs every token to see every other", n.Outputs[0], v, ErrNoAttention)
		}
		a := attention{n.Outputs[0], int(shape[rank-3]), int(shape[rank-1])}
		if len(found) > 0 && found[0].tokens != a.tokens {
			return nil, fmt.Errorf("attention %q is over %d tokens, %q over %d: %w: rollout needs the same tokens in all layers", found[0].tensor, found[0].tokens, a.tensor, a.tokens, ErrNoAttention)
		}
		found = append(found, a)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the model has no Softmax over [heads, tokens, tokens] that weighs values before %q: %w", logits, ErrNoAttention)
	}
	return found, nil
}

// weighsValues says whether a tensor is the left factor of a matrix product.
func weighsValues(m *onnx.Model, tensor string) bool {
	for _, n := range m.Graph.Nodes {
		switch n.OpType {
		case "MatMul":
			if n.Input(0) == tensor {
				return true
			}
		case "Dropout", "Cast", "Identity":
			if n.Input(0) == tensor && weighsValues(m, n.Outputs[0]) {
				return true
			}
		}
	}
	return false
}

// grid says where the tokens lie: those from first on are rows·columns patches
// in row-major order, those before are class tokens. over is the area that the
// patches cover: the input's, or more where it was padded at bottom and right.
type grid struct {
	first, rows, columns int
	over                 Size
}

// gridOf finds the convolution that cuts an input into as many places as there
// are tokens, but for up to two class tokens before them.
func gridOf(m *onnx.Model, l layout, tokens int) (grid, error) {
	shapes, err := onnx.InferShapes(m, nil)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return grid{}, err
	}
	for classTokens := range 3 {
		patches := tokens - classTokens
		for _, n := range m.Graph.Nodes {
			shape, ok := shapes[n.Output(0)].Static()
			if !ok || len(shape) != len(l.shape)+1 || len(shape) < 3 || n.OpType != "Conv" && n.OpType != "MaxPool" && n.OpType != "AveragePool" {
				continue
			}
			rows, columns := int64(1), shape[len(shape)-1]
			if len(shape) == 4 {
				rows = shape[2]
			}
			if rows*columns == int64(patches) {
				g := grid{classTokens, int(rows), int(columns), Size{Rows: l.rows, Columns: l.columns}}
				strides := n.Ints("strides")
				if rank := len(strides); rank > 0 {
					g.over.Columns = covered(columns*strides[rank-1], strides[rank-1], l.columns)
					if rank == 2 {
						g.over.Rows = covered(rows*strides[0], strides[0], l.rows)
					}
				}
				return g, nil
			}
		}
		if l.table() && patches == l.columns { // a token for each feature
			return grid{classTokens, 1, patches, Size{Rows: 1, Columns: patches}}, nil
		}
	}
	return grid{}, fmt.Errorf("%d tokens, and nothing that cuts an input of %v into as many places: %w", tokens, l.shape, ErrNoAttention)
}

// covered is the extent of patches where it exceeds the input by less than one
// patch, as after padding; otherwise they are taken to share the input evenly.
func covered(extent, patch int64, input int) int {
	if beyond := extent - int64(input); beyond > 0 && beyond < patch {
		return int(extent)
	}
	return input
}
