package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Patterns: several nodes whose gradient together is much cheaper than one by
// one. They change which operators are emitted, never the result.

// pattern is a chain of nodes that ends in one node and is differentiated as a
// whole, as the node that stands for it.
type pattern struct {
	standsFor *onnx.Node // inputs: what the chain reads; outputs: the last node's
	backward  func(*operation)
}

// findPatterns fills t.patterns, by the chain's last node.
func (t *tape) findPatterns() {
	readers := map[string]int{}
	for _, n := range t.graph.Nodes {
		reads(n, func(name string) { readers[name]++ })
	}
	for _, v := range t.graph.Outputs {
		readers[v.Name]++
	}
	for _, name := range t.request.WithRespectTo {
		readers[name]++ // its own gradient is asked for: the chain must not skip it
	}
	for _, n := range t.graph.Nodes {
		if n.OpType == "Add" && isDefault(n.Domain) {
			if p := t.groupNormPattern(n, readers); p != nil {
				t.patterns[n] = p
			}
		}
	}
}

// made returns the node that makes a tensor for one reader only, if it is of
// that operator.
func (t *tape) made(name, opType string, readers map[string]int) *onnx.Node {
	n := t.producer[name]
	if n == nil || n.OpType != opType || !isDefault(n.Domain) || readers[name] != 1 {
		return nil
	}
	return n
}

// groupNormPattern recognises how exporters write group normalisation before
// opset 18: Reshape to groups, InstanceNormalization with unit scale, Reshape
// back, Mul by the scale, Add of the shift.
func (t *tape) groupNormPattern(add *onnx.Node, readers map[string]int) *pattern {
	for side := range 2 {
		mul := t.made(add.Input(side), "Mul", readers)
		if mul == nil {
			continue
		}
		for other := range 2 {
			back := t.made(mul.Input(other), "Reshape", readers)
			if back == nil {
				continue
			}
			norm := t.made(back.Input(0), "InstanceNormalization", readers)
			if norm == nil || !t.allEqual(norm.Input(1), 1) || !t.allEqual(norm.Input(2), 0) {
				continue
			}
			group := t.made(norm.Input(0), "Reshape", readers)
			if group == nil {
				continue
			}
			x, grouped, y := t.values[group.Input(0)], t.values[norm.Input(0)], t.values[add.Outputs[0]]
			scale, shift := mul.Input(1-other), add.Input(1-side)
			if x.rank() < 3 || grouped.rank() < 3 || !slices.Equal(x.shape, y.shape) || x.shape[0] != grouped.shape[0] ||
				!t.perChannel(scale, x) || !t.perChannel(shift, x) || !t.needs[x.name] && !t.needs[scale] && !t.needs[shift] {
				continue
			}
			xhat, groups := norm.Outputs[0], grouped.shape[1]
			return &pattern{
				standsFor: &onnx.Node{
					Name: add.Name, OpType: "GroupNormalization", Inputs: []string{x.name, scale, shift}, Outputs: add.Outputs,
					Attributes: []onnx.Attribute{onnx.FloatAttribute("epsilon", norm.Float("epsilon", 1e-5))},
				},
				backward: func(o *operation) { groupNormGradient(o, groups, o.lookup(xhat)) },
			}
		}
	}
	return nil
}

// perChannel says whether v broadcasts one element a channel over x.
func (t *tape) perChannel(name string, x value) bool {
	v, ok := t.values[name]
	return ok && v.rank() >= x.rank()-1 && v.size() == x.shape[1] && v.shape[v.rank()-x.rank()+1] == x.shape[1]
}

// allEqual says whether a tensor is a constant of nothing but v.
func (t *tape) allEqual(name string, v float64) bool {
	w := t.inits[name]
	if w == nil && t.producer[name] != nil && t.producer[name].OpType == "Constant" {
		w = t.producer[name].Tensor("value")
	}
	if w == nil || slices.Contains(t.request.WithRespectTo, name) {
		return false
	}
	values, err := w.Floats()
	return err == nil && !slices.ContainsFunc(values, func(x float64) bool { return x != v })
}

// gatePool lets a maximum over a Relu's output do the Relu's part of the
// gradient on its own, smaller, output: where the maximum is 0 nothing passes,
// and where it is positive so are the elements that reach it. It returns the
// gradient to share out.
func (o *operation) gatePool(d value) value {
	x := o.in(0)
	n := o.producer[x.name]
	if n == nil || n.OpType != "Relu" || !isDefault(n.Domain) || slices.Contains(o.request.WithRespectTo, x.name) {
		return d
	}
	o.gated[x.name]++
	return o.mul(d, o.unary("Sign", o.out(0)))
}
