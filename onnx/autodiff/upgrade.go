package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// newestChange is the oldest operator set that gradient graphs are written in:
// ScatterElements and ScatterND add since 16, and the gradient of every lookup
// needs that. Between 13 and 16 the operators' meaning changed in two places
// (Changelog.md of the standard), which upgrade sees to.
const newestChange = 16

// upgrade rewrites what would mean something else in operator set 16.
func (t *tape) upgrade() {
	for i, n := range t.graph.Nodes {
		if !isDefault(n.Domain) {
			continue
		}
		switch {
		case n.OpType == "RoiAlign" && t.version < 16:
			// The default of coordinate_transformation_mode became half_pixel.
			n = n.Clone()
			n.Set(onnx.TextAttribute("coordinate_transformation_mode", "output_half_pixel"))
			t.graph.Nodes[i] = n
		case n.OpType == "BatchNormalization" && t.version < 14 && slices.ContainsFunc(n.Outputs[1:], func(out string) bool { return out != "" }):
			// More than one output used to say what training_mode says since 14;
			// outputs 3 and 4 were scratch space of the runtime's.
			n = n.Clone()
			n.Set(onnx.IntAttribute("training_mode", 1))
			n.Outputs = n.Outputs[:min(len(n.Outputs), 3)]
			t.graph.Nodes[i] = n
		}
	}
}

// takeBranches replaces each If whose condition is known by the branch taken,
// as exporters write it where a dimension may be 1. It reports whether there
// were any.
func (t *tape) takeBranches() bool {
	var nodes []*onnx.Node
	taken := false
	for _, n := range t.graph.Nodes {
		var branch *onnx.Graph
		if n.OpType == "If" && isDefault(n.Domain) {
			if condition, ok := t.inferred.Ints(n.Input(0)); ok && len(condition) == 1 {
				name := "else_branch"
				if condition[0] != 0 {
					name = "then_branch"
				}
				branch = n.Attribute(name).Graph
			}
		}
		if branch == nil {
			nodes = append(nodes, n)
			continue
		}
		taken = true
		t.graph.Initializers = append(slices.Clone(t.graph.Initializers), branch.Initializers...)
		for _, w := range branch.Initializers {
			t.inits[w.Name], t.used[w.Name] = w, true
		}
		nodes = append(nodes, branch.Nodes...)
		for i, out := range n.Outputs {
			if out != "" {
				nodes = append(nodes, &onnx.Node{Name: out, OpType: "Identity", Inputs: []string{branch.Outputs[i].Name}, Outputs: []string{out}})
			}
		}
	}
	t.graph.Nodes = nodes
	return taken
}
