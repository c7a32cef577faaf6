package autodiff

import (
	"math"
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
		back[lead+int(axis(p, n))] = int64(lead + i)
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

// padRule crops what constant padding added and restores what it removed. What
// the other modes copied from x goes back to where it was copied from.
func padRule(o *operation) {
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
	d := o.dy()
	if mode := o.node.Text("mode", "constant"); mode != "constant" {
		for at := range d.rank() {
			d = o.unpadAxis(d, at, -before[at], -after[at], mode)
		}
		o.give(0, d)
		return
	}
	o.give(0, o.pad(d, before, after, 0))
}

// unpadAxis folds the copies before and after an axis back into it.
func (o *operation) unpadAxis(d value, at int, before, after int64, mode string) value {
	if before == 0 && after == 0 {
		return d
	}
	n := d.shape[at] - before - after
	reach := map[string]int64{"reflect": n - 1, "edge": math.MaxInt64, "wrap": n}[mode]
	if before < 0 || after < 0 || before > reach || after > reach {
		failf("mode %q with pads of %d and %d of %d elements: %w", mode, before, after, n, ErrNotDifferentiable)
	}
	ax := int64(at)
	cut := func(from, to int64) value {
		return o.slice(d, []int64{ax}, []int64{from}, []int64{to}, []int64{1})
	}
	parts := []value{cut(before, before+n)}
	place := func(v value, offset int64) {
		left, right := repeat(0, v.rank()), repeat(0, v.rank())
		left[at], right[at] = offset, n-offset-v.shape[at]
		parts = append(parts, o.pad(v, left, right, 0))
	}
	for side, size := range []int64{before, after} {
		if size == 0 {
			continue
		}
		copied := cut(0, before)
		if side == 1 {
			copied = cut(before+n, before+n+after)
		}
		switch {
		case mode == "edge":
			place(o.sum(copied, []int64{ax}, true), []int64{0, n - 1}[side])
		case mode == "reflect":
			place(o.flip(copied, ax), []int64{1, n - 1 - size}[side])
		default: // wrap
			place(copied, []int64{n - size, 0}[side])
		}
	}
	return o.total(parts)
}

func expandRule(o *operation) { o.settle(0, o.dy()) }

func tileRule(o *operation) {
	x, d, lead := o.in(0), o.dy(), o.lead()
	repeats := slices.Clone(o.constant64(1))
	if l := o.layouts[o.out(0).name]; lead == 0 && o.perExample(x) { // repeated over the batch
		d, lead = o.toFront(d, l), 1
		repeats[l.axis] = l.before * l.after
	}
	apart := slices.Clone(d.shape[:lead])
	var axes []int64
	for i, size := range x.shape {
		axes = append(axes, int64(len(apart)))
		apart = append(apart, repeats[i], size)
	}
	o.give(0, o.sum(o.reshape(d, apart...), axes, false))
}

// trilu keeps one triangle; the gradient of the other is zero.
func triluRule(o *operation) {
	inputs := []value{o.dy()}
	if o.has(1) {
		inputs = append(inputs, o.in(1))
	}
	o.give(0, o.op("Trilu", o.dy().typ, o.dy().shape, inputs, onnx.IntAttribute("upper", o.node.Int("upper", 1))))
}
