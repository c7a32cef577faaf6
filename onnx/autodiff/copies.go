package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// withoutCopies lets the node that makes a gradient give it the output's name,
// instead of an Identity that copies it: weights are large. Only nodes that were
// emitted may be changed.
func (t *tape) withoutCopies(nodes []*onnx.Node, outputs []onnx.Value) []*onnx.Node {
	emitted, maker, readers := map[*onnx.Node]bool{}, map[string]*onnx.Node{}, map[string]int{}
	for _, n := range t.nodes {
		emitted[n] = true
	}
	for _, n := range nodes {
		for _, out := range n.Outputs {
			maker[out] = n
		}
		reads(n, func(name string) { readers[name]++ })
	}
	asked := map[string]bool{}
	for _, out := range outputs {
		asked[out.Name] = true
	}
	return slices.DeleteFunc(nodes, func(n *onnx.Node) bool {
		if n.OpType != "Identity" || !isDefault(n.Domain) || !emitted[n] || !asked[n.Outputs[0]] {
			return false
		}
		in, out := n.Input(0), n.Outputs[0]
		from := maker[in]
		if from == nil || !emitted[from] || readers[in] != 1 || asked[in] {
			return false
		}
		from.Outputs[slices.Index(from.Outputs, in)] = out
		return true
	})
}
