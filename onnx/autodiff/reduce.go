package autodiff

import "slices"

// Reductions. Every rule first brings dy and y back to the rank of x, with 1
// along the reduced axes, so that they broadcast against x.

type reduction struct {
	x, y, d value
	axes    []int64
	count   float64 // elements that went into one output
}

func (o *operation) reduction() reduction {
	x := o.in(0)
	axes := o.axesOf(1, x.rank())
	if len(axes) == 0 {
		if o.node.Int("noop_with_empty_axes", 0) != 0 {
			return reduction{x: x, y: o.out(0), d: o.dy(), count: 1}
		}
		axes = iota64(x.rank())
	}
	kept := slices.Clone(x.shape)
	count := int64(1)
	for _, ax := range axes {
		count *= kept[ax]
		kept[ax] = 1
	}
	d := o.dy()
	return reduction{
		x: x, y: o.reshape(o.out(0), kept...), axes: axes, count: float64(count),
		d: o.reshape(d, append(slices.Clone(d.shape[:o.lead()]), kept...)...),
	}
}

func (o *operation) spread(d value) { o.give(0, o.expand(d, o.expects(o.in(0)))) }

func reduceSumRule(o *operation) { o.spread(o.reduction().d) }

func reduceMeanRule(o *operation) {
	r := o.reduction()
	o.spread(o.scale(r.d, 1/r.count))
}

// reduceExtremeRule serves ReduceMax and ReduceMin: ties share the gradient.
func reduceExtremeRule(o *operation) {
	r := o.reduction()
	hit := o.cast(o.compare("Equal", r.x, r.y), r.x.typ)
	o.give(0, o.mul(hit, o.div(r.d, o.sum(hit, r.axes, true))))
}

func reduceSumSquareRule(o *operation) {
	r := o.reduction()
	o.give(0, o.mul(o.scale(r.d, 2), r.x))
}

func reduceL1Rule(o *operation) {
	r := o.reduction()
	o.give(0, o.mul(r.d, o.unary("Sign", r.x)))
}

func reduceL2Rule(o *operation) {
	r := o.reduction()
	o.give(0, o.mul(o.div(r.d, r.y), r.x))
}

func reduceLogSumExpRule(o *operation) {
	r := o.reduction()
	o.give(0, o.mul(r.d, o.unary("Exp", o.sub(r.x, r.y))))
}
