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

func reduceLogSumRule(o *operation) { // dy/Σx = dy·exp(-y)
	r := o.reduction()
	o.spread(o.mul(r.d, o.unary("Exp", o.unary("Neg", r.y))))
}

// reduceProdRule: the product of the others, also where elements are zero. One
// zero gets the product of the rest; where there are two, nothing has a slope.
func reduceProdRule(o *operation) {
	r := o.reduction()
	typ := r.x.typ
	zero, one := o.scalar(typ, 0), o.scalar(typ, 1)
	isZero := o.compare("Equal", r.x, zero)
	filled := o.where(isZero, one, r.x)
	rest := filled // the product of what is not zero
	zeros := o.cast(isZero, typ)
	if len(r.axes) > 0 {
		rest = o.reduce("ReduceProd", filled, r.axes, true)
		zeros = o.sum(zeros, r.axes, true)
	}
	none := o.cast(o.compare("Equal", zeros, zero), typ)
	single := o.cast(o.compare("Equal", zeros, one), typ)
	slope := o.where(isZero, o.mul(rest, single), o.mul(o.div(rest, filled), none))
	o.give(0, o.mul(r.d, slope))
}

// lpNormalizationRule: y = x/‖x‖, so dx = (dy - n·Σ dy·y)/‖x‖ with the norm's
// own slope n: y for the Euclidean one, sign(x) for the sum of magnitudes.
func lpNormalizationRule(o *operation) {
	x, y, d := o.in(0), o.out(0), o.dy()
	ax := []int64{axis(o.node.Int("axis", -1), x.rank())}
	lead := int64(o.lead())
	over := []int64{ax[0] + lead}
	var norm, slope value
	switch p := o.node.Int("p", 2); p {
	case 1:
		norm, slope = o.reduce("ReduceL1", x, ax, true), o.unary("Sign", x)
	case 2:
		norm, slope = o.reduce("ReduceL2", x, ax, true), y
	default:
		failf("p = %d: %w", p, ErrNotDifferentiable)
	}
	o.give(0, o.div(o.sub(d, o.mul(slope, o.sum(o.mul(d, y), over, true))), norm))
}
