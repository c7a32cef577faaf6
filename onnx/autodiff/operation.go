package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// operation is a node as its rule sees it: inputs and outputs with shapes, the
// gradients that arrived at the outputs, and give to pass gradients on.
type operation struct {
	*tape
	node      *onnx.Node
	inputs    []value // zero value: omitted
	outputs   []value
	gradients []value // by output; zero value: none arrived
	arrived   []int   // by output: how many readers gave a gradient
	sites     []*site // by input: its gradient per example is left to Clip

	parts map[int][]value // of one example at a time: eachExample
}

func (o *operation) in(i int) value {
	if i >= len(o.inputs) {
		return value{}
	}
	return o.inputs[i]
}

func (o *operation) has(i int) bool  { return !o.in(i).none() }
func (o *operation) out(i int) value { return o.outputs[i] }
func (o *operation) wants(i int) bool {
	return o.has(i) && o.needs[o.in(i).name] && (i >= len(o.sites) || o.sites[i] == nil)
}

// dy is the gradient of the first output, which almost every rule needs. An
// output that the loss does not use has a zero gradient.
func (o *operation) dy() value {
	if d := o.gradients[0]; !d.none() {
		return d
	}
	return o.full(o.out(0).typ, o.expects(o.out(0)), 0)
}

// expects is the shape of a tensor's gradient: its own, or in a per-example
// request one copy for each example if the tensor itself has no batch axis.
func (o *operation) expects(v value) []int64 {
	if o.perExample(v) {
		return append([]int64{o.n}, v.shape...)
	}
	return v.shape
}

// perExample says whether the gradient of v must keep an extra leading axis.
func (o *operation) perExample(v value) bool {
	return o.request.PerExample && !o.alone && o.parts == nil && !o.batched[v.name]
}

// lead is 1 if the node itself is outside the batch (a weight being reshaped,
// say) in a per-example request: then its dy has one more leading axis.
func (o *operation) lead() int {
	if o.perExample(o.out(0)) {
		return 1
	}
	return 0
}

// give passes a gradient on to input i. It must have the expected shape.
func (o *operation) give(i int, d value) {
	in := o.in(i)
	if want := o.expects(in); !slices.Equal(d.shape, want) {
		if o.request.PerExample {
			failf("input %d (%q) meets the batch in a way that leaves no gradient per example: %w", i, in.name, ErrMixesExamples)
		}
		failf("internal: gradient of input %d has shape %v, want %v", i, d.shape, want)
	}
	if o.parts != nil {
		o.parts[i] = append(o.parts[i], d)
		return
	}
	o.adjoint[in.name] = append(o.adjoint[in.name], d)
}

// settle sums a gradient that has the output's broadcast shape over the axes
// along which input i was repeated, and gives it. In a per-example request the
// batch axis of an input without one is kept instead.
func (o *operation) settle(i int, d value) {
	in := o.in(i)
	if l := o.layouts[o.out(0).name]; o.perExample(in) && o.batched[o.out(0).name] {
		if !l.plain() || d.rank() == in.rank() {
			o.settleFront(i, o.toFront(d, l))
			return
		}
	}
	offset := d.rank() - in.rank()
	var axes []int64
	for ax := range d.rank() {
		if ax == 0 && o.perExample(in) {
			continue
		}
		if ax < offset || in.shape[ax-offset] == 1 && d.shape[ax] > 1 {
			axes = append(axes, int64(ax))
		}
	}
	o.give(i, o.reshape(o.sum(d, axes, false), o.expects(in)...))
}

// settleFront is settle for an input outside the batch and a gradient whose
// examples are already first: [N, output's shape…].
func (o *operation) settleFront(i int, d value) {
	in := o.in(i)
	offset := d.rank() - in.rank()
	var axes []int64
	for ax := 1; ax < d.rank(); ax++ {
		if ax < offset || in.shape[ax-offset] == 1 && d.shape[ax] > 1 {
			axes = append(axes, int64(ax))
		} else if in.shape[ax-offset] != d.shape[ax] {
			failf("input %d has no batch axis but %d elements along it: %w", i, in.shape[ax-offset], ErrMixesExamples)
		}
	}
	o.give(i, o.reshape(o.sum(d, axes, false), o.expects(in)...))
}

// axis normalises a possibly negative axis of a tensor of the given rank.
func axis(a int64, rank int) int64 {
	if a < 0 {
		a += int64(rank)
	}
	if a < 0 || a >= int64(rank) {
		failf("axis %d is outside rank %d", a, rank)
	}
	return a
}

// floatAttr reads a float attribute in the arithmetic of rules.
func (o *operation) floatAttr(name string, def float64) float64 {
	if o.node.Attribute(name) == nil {
		return def
	}
	return float64(o.node.Float(name, 0))
}

func (o *operation) intsAttr(name string, def []int64) []int64 {
	if a := o.node.Attribute(name); a != nil {
		return a.Ints
	}
	return def
}

// axesOf reads an operator's axes, which are an attribute in older opsets and
// input i in newer ones. Nil means not given.
func (o *operation) axesOf(i int, rank int) []int64 {
	var axes []int64
	switch {
	case o.node.Attribute("axes") != nil:
		axes = slices.Clone(o.node.Ints("axes"))
	case o.has(i):
		axes = slices.Clone(o.constant64(i))
	default:
		return nil
	}
	for j := range axes {
		axes[j] = axis(axes[j], rank)
	}
	slices.Sort(axes)
	return axes
}

// constant64 evaluates an integer input that must be known now.
func (o *operation) constant64(i int) []int64 {
	v, ok := o.fold(o.in(i).name)
	if !ok {
		failf("input %d (%q) must be constant", i, o.in(i).name)
	}
	return v
}
