package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Operators that choose elements by index, and their adjoints, which write
// elements by index.

// scatterAdd adds updates to zeros of the given shape along one axis.
func (o *operation) scatterAdd(shape []int64, indices, updates value, ax int64) value {
	zeros := o.full(updates.typ, shape, 0)
	return o.op("ScatterElements", updates.typ, shape, []value{zeros, indices, updates},
		onnx.IntAttribute("axis", ax), onnx.TextAttribute("reduction", "add"))
}

// gatherRule adds each row's gradient where the row came from: an embedding
// table's gradient. Indices of any rank replace the gathered axis.
func gatherRule(o *operation) {
	x, indices, d := o.in(0), o.in(1), o.dy()
	at := int(axis(o.node.Int("axis", 0), x.rank())) + o.lead()
	kept := o.expects(x)
	count := indices.size()
	if l, looked := o.layout(1); looked && o.perExample(x) { // each example looked up its own rows
		at++
		count /= o.n
		d = o.toFront(d, l.moved(l.axis+at-1))
		indices = o.toFront(indices, l)
	}
	if o.perExample(x) && o.lead() == 0 && count == o.in(1).size() {
		failf("the indices are of no example: %w", ErrMixesExamples)
	}
	d = o.reshape(d, slices.Concat(kept[:at], []int64{count}, kept[at+1:])...)
	column := repeat(1, d.rank())
	column[at] = count
	if count < o.in(1).size() {
		column[0] = o.n
	}
	indices = o.reshape(indices, column...)
	o.give(0, o.scatterAdd(kept, o.expand(indices, d.shape), d, int64(at)))
}

func gatherElementsRule(o *operation) {
	x := o.in(0)
	o.give(0, o.scatterAdd(x.shape, o.in(1), o.dy(), axis(o.node.Int("axis", 0), x.rank())))
}

func gatherNDRule(o *operation) {
	x, indices, d := o.in(0), o.in(1), o.dy()
	if batch := int(o.node.Int("batch_dims", 0)); batch > 0 { // flatten them into the index
		indices = o.batchedIndices(indices, x.shape[:batch])
	}
	zeros := o.full(x.typ, x.shape, 0)
	o.give(0, o.op("ScatterND", x.typ, x.shape, []value{zeros, indices, d}, onnx.TextAttribute("reduction", "add")))
}

// batchedIndices puts the position along the leading axes before each index.
func (o *operation) batchedIndices(indices value, lead []int64) value {
	shape := slices.Clone(indices.shape)
	last := len(shape) - 1
	shape[last] = 1
	parts := []value{}
	for ax := range lead {
		bounded("indices along an axis", shape[ax])
		column := repeat(1, len(shape))
		column[ax] = shape[ax]
		parts = append(parts, o.expand(o.reshape(o.ints(iota64(int(shape[ax]))...), column...), shape))
	}
	return o.concat(last, append(parts, indices)...)
}

// scatterElementsRule: what was written over has no gradient to the data; what
// was written gets the gradient of its place. Indices that repeat are the
// standard's to forbid.
func scatterElementsRule(o *operation) {
	x, indices, updates, d := o.in(0), o.in(1), o.in(2), o.dy()
	ax := axis(o.node.Int("axis", 0), x.rank())
	added := o.scatterReduction()
	if o.wants(0) {
		dx := d
		if !added {
			dx = o.op("ScatterElements", d.typ, d.shape, []value{d, indices, o.full(d.typ, updates.shape, 0)}, onnx.IntAttribute("axis", ax))
		}
		o.give(0, dx)
	}
	if o.wants(2) {
		o.give(2, o.op("GatherElements", d.typ, updates.shape, []value{d, indices}, onnx.IntAttribute("axis", ax)))
	}
}

func scatterNDRule(o *operation) {
	indices, updates, d := o.in(1), o.in(2), o.dy()
	added := o.scatterReduction()
	if o.wants(0) {
		dx := d
		if !added {
			dx = o.op("ScatterND", d.typ, d.shape, []value{d, indices, o.full(d.typ, updates.shape, 0)})
		}
		o.give(0, dx)
	}
	if o.wants(2) {
		o.give(2, o.op("GatherND", d.typ, updates.shape, []value{d, indices}))
	}
}

// scatterReduction says whether updates are added to what is there rather than
// replacing it.
func (o *operation) scatterReduction() bool {
	switch r := o.node.Text("reduction", "none"); r {
	case "none":
		return false
	case "add":
		return true
	default:
		failf("reduction %q: %w", r, ErrNotDifferentiable)
		return false
	}
}

// topKRule sends each value's gradient back to where the value was.
func topKRule(o *operation) {
	x := o.in(0)
	if len(o.outputs) < 2 || o.out(1).none() {
		failf("the Indices output is left out: %w", ErrNotDifferentiable)
	}
	zeros := o.full(x.typ, x.shape, 0)
	o.give(0, o.op("ScatterElements", x.typ, x.shape, []value{zeros, o.out(1), o.dy()},
		onnx.IntAttribute("axis", axis(o.node.Int("axis", -1), x.rank()))))
}

// oneHotRule: the two values that are written are all that has a gradient.
func oneHotRule(o *operation) {
	if o.perExample(o.in(2)) {
		failf("per-example gradient of OneHot's values: %w", ErrMixesExamples)
	}
	y, d := o.out(0), o.dy()
	hot := o.op("OneHot", y.typ, y.shape, []value{o.in(0), o.in(1), o.floats(y.typ, []int64{2}, 0, 1)},
		onnx.IntAttribute("axis", o.node.Int("axis", -1)))
	all := iota64(y.rank())
	on := o.sum(o.mul(d, hot), all, false)
	off := o.sub(o.sum(d, all, false), on)
	o.give(2, o.concat(0, o.reshape(off, 1), o.reshape(on, 1)))
}

// cumSumRule sums from the other end.
func cumSumRule(o *operation) {
	d := o.dy()
	o.give(0, o.op("CumSum", d.typ, d.shape, []value{d, o.in(1)},
		onnx.IntAttribute("exclusive", o.node.Int("exclusive", 0)), onnx.IntAttribute("reverse", 1-o.node.Int("reverse", 0))))
}

// examplesScatter: data, indices and updates count the examples along the same
// axis, which is not the one that is written along.
func examplesScatter(o *operation) batchAxis {
	if o.node.OpType == "ScatterND" {
		o.refuseMixing(true) // its indices name every axis
	}
	return examplesAxis(o)
}
