package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Operators that move elements without changing them. Their gradients move
// elements back, adding where one was read more than once. In a per-example
// request they may also act on weights; lead shifts their axes then.

// reshapeRule serves Reshape, Flatten, Squeeze and Unsqueeze.
func reshapeRule(o *operation) { o.give(0, o.reshape(o.dy(), o.expects(o.in(0))...)) }

func transposeRule(o *operation) {
	n, lead := o.in(0).rank(), o.lead()
	reversed := iota64(n)
	slices.Reverse(reversed)
	perm := o.intsAttr("perm", reversed)
	back := iota64(n + lead)
	for i, p := range perm {
		back[lead+int(p)] = int64(lead + i)
	}
	o.give(0, o.transpose(o.dy(), back...))
}

func concatRule(o *operation) {
	d := o.dy()
	ax := axis(o.node.Int("axis", 0), o.out(0).rank())
	at := int64(0)
	for i, in := range o.inputs {
		end := at + in.shape[ax]
		if o.wants(i) {
			o.give(i, o.slice(d, []int64{ax + int64(o.lead())}, []int64{at}, []int64{end}, []int64{1}))
		}
		at = end
	}
}

func splitRule(o *operation) {
	ax := int(axis(o.node.Int("axis", 0), o.in(0).rank())) + o.lead()
	var parts []value
	for i, out := range o.outputs {
		d := o.gradients[i]
		if d.none() {
			d = o.full(out.typ, o.expects(out), 0)
		}
		parts = append(parts, d)
	}
	o.give(0, o.concat(ax, parts...))
}

// sliceRule puts zeros between and around what was taken.
func sliceRule(o *operation) {
	x, y, d, lead := o.in(0), o.out(0), o.dy(), o.lead()
	starts := o.constant64(1)
	axes, steps := iota64(len(starts)), repeat(1, len(starts))
	if o.has(3) {
		axes = o.constant64(3)
	}
	if o.has(4) {
		steps = o.constant64(4)
	}
	before, after := repeat(0, d.rank()), repeat(0, d.rank())
	for i, a := range axes {
		ax := axis(a, x.rank())
		size, taken, step := x.shape[ax], y.shape[ax], steps[i]
		start := starts[i]
		if start < 0 {
			start += size
		}
		at := int(ax) + lead
		if step < 0 { // walk the same elements forwards
			d = o.flip(d, int64(at))
			start = min(max(start, 0), size-1) + (taken-1)*step
			step = -step
		} else {
			start = min(max(start, 0), size)
		}
		d = o.interleaveZeros(d, at, step)
		before[at] = start
		after[at] = size - start - d.shape[at]
	}
	o.give(0, o.pad(d, before, after, 0))
}

// padRule crops what constant padding added and restores what it removed.
func padRule(o *operation) {
	if mode := o.node.Text("mode", "constant"); mode != "constant" {
		failf("mode %q: %w", mode, ErrNotDifferentiable)
	}
	if o.wants(2) {
		failf("gradient with respect to the padding value: %w", ErrNotDifferentiable)
	}
	rank, lead := o.in(0).rank(), o.lead()
	pads := o.constant64(1)
	axes := iota64(rank)
	if o.has(3) {
		axes = o.constant64(3)
	}
	before, after := repeat(0, rank+lead), repeat(0, rank+lead)
	for i, a := range axes {
		at := lead + int(axis(a, rank))
		before[at], after[at] = -pads[i], -pads[len(axes)+i]
	}
	o.give(0, o.pad(o.dy(), before, after, 0))
}

func expandRule(o *operation) { o.settle(0, o.dy()) }

func tileRule(o *operation) {
	x, d, lead := o.in(0), o.dy(), o.lead()
	repeats := o.constant64(1)
	apart := slices.Clone(d.shape[:lead])
	var axes []int64
	for i, size := range x.shape {
		axes = append(axes, int64(len(apart)))
		apart = append(apart, repeats[i], size)
	}
	o.give(0, o.sum(o.reshape(d, apart...), axes, false))
}

// scatterOpset is the first with ScatterElements(reduction="add").
const scatterOpset = 16

func (o *operation) scatterAdd(shape []int64, indices, updates value, ax int64) value {
	if o.opset < scatterOpset {
		failf("the gradient needs ScatterElements(add) of opset %d, the model has %d: %w", scatterOpset, o.opset, ErrNotDifferentiable)
	}
	zeros := o.full(updates.typ, shape, 0)
	return o.op("ScatterElements", updates.typ, shape, []value{zeros, indices, updates},
		onnx.IntAttribute("axis", ax), onnx.TextAttribute("reduction", "add"))
}

// gatherRule adds each row's gradient where the row came from: an embedding
// table's gradient. Indices of any rank replace the gathered axis.
func gatherRule(o *operation) {
	x, indices, d := o.in(0), o.in(1), o.dy()
	ax := int(axis(o.node.Int("axis", 0), x.rank()))
	kept := o.expects(x)
	lead := len(kept) - x.rank() // extra axis of the table's own gradient
	at := ax + lead
	count := indices.size()
	if lead == 1 && o.batched[indices.name] { // each example looked up its own rows
		if ax != 0 {
			failf("per-example gradient of Gather along axis %d: %w", ax, ErrMixesExamples)
		}
		count /= o.n
		d = o.reshape(d, append([]int64{o.n, count}, x.shape[1:]...)...)
		indices = o.reshape(indices, append([]int64{o.n, count}, repeat(1, x.rank()-1)...)...)
	} else {
		rows := append(slices.Clone(kept[:at]), count)
		d = o.reshape(d, append(rows, kept[at+1:]...)...)
		column := repeat(1, d.rank())
		column[at] = count
		indices = o.reshape(indices, column...)
	}
	o.give(0, o.scatterAdd(kept, o.expand(indices, d.shape), d, int64(at)))
}

func gatherElementsRule(o *operation) {
	x := o.in(0)
	o.give(0, o.scatterAdd(x.shape, o.in(1), o.dy(), axis(o.node.Int("axis", 0), x.rank())))
}

// trilu keeps one triangle; the gradient of the other is zero.
func triluRule(o *operation) {
	inputs := []value{o.dy()}
	if o.has(1) {
		inputs = append(inputs, o.in(1))
	}
	o.give(0, o.op("Trilu", o.dy().typ, o.dy().shape, inputs, onnx.IntAttribute("upper", o.node.Int("upper", 1))))
}
