package autodiff

import (
	"math"

	"github.com/vigie/vigie/onnx"
)

// Elementwise operators of one input. Each gives dy/dx from x and y, whichever
// is cheaper; pointwise multiplies it with dy, broadcasting over the extra
// axis of per-example gradients of weights.

type slope func(o *operation, x, y value) value

func pointwise(f slope) func(*operation) {
	return func(o *operation) {
		o.give(0, o.mul(o.dy(), f(o, o.in(0), o.out(0))))
	}
}

// blockedRule serves operators that are flat almost everywhere: Floor, Sign, …
func blockedRule(o *operation) {
	o.give(0, o.full(o.in(0).typ, o.expects(o.in(0)), 0))
}

func identityRule(o *operation) { o.give(0, o.dy()) }

func negRule(o *operation) { o.give(0, o.unary("Neg", o.dy())) }

func castRule(o *operation) { o.give(0, o.cast(o.dy(), o.in(0).typ)) }

// reluRule passes dy where the output is positive: 0 at the kink. Where every
// reader of the output is a maximum that has seen to it (gatePool), dy passes
// whole.
func reluRule(o *operation) {
	y, d := o.out(0), o.dy()
	if o.gated[y.name] > 0 && o.gated[y.name] == o.arrived[0] {
		o.give(0, d)
		return
	}
	// Half the time of Where on the same condition, and a fifth less than Sign.
	o.give(0, o.mul(d, o.cast(o.compare("Greater", y, o.scalar(y.typ, 0)), y.typ)))
}

func leakySlope(alpha func(*operation) float64) slope {
	return func(o *operation, x, _ value) value {
		return o.where(o.compare("Less", x, o.scalar(x.typ, 0)), o.scalar(x.typ, alpha(o)), o.scalar(x.typ, 1))
	}
}

func leakyAlpha(o *operation) float64 { return o.floatAttr("alpha", 0.01) }

func sigmoidSlope(o *operation, _, y value) value {
	return o.mul(y, o.sub(o.scalar(y.typ, 1), y))
}

func tanhSlope(o *operation, _, y value) value {
	return o.sub(o.scalar(y.typ, 1), o.mul(y, y))
}

func expSlope(_ *operation, _, y value) value { return y }

func logSlope(o *operation, x, _ value) value { return o.unary("Reciprocal", x) }

func sqrtSlope(o *operation, _, y value) value {
	return o.div(o.scalar(y.typ, 0.5), y)
}

func reciprocalSlope(o *operation, _, y value) value { return o.unary("Neg", o.mul(y, y)) }

func absSlope(o *operation, x, _ value) value { return o.unary("Sign", x) }

func sinSlope(o *operation, x, _ value) value { return o.unary("Cos", x) }

func cosSlope(o *operation, x, _ value) value { return o.unary("Neg", o.unary("Sin", x)) }

func softplusSlope(o *operation, x, _ value) value { return o.unary("Sigmoid", x) }

func softsignSlope(o *operation, x, _ value) value {
	d := o.shift(o.unary("Abs", x), 1)
	return o.unary("Reciprocal", o.mul(d, d))
}

// normalDensity is the slope of the normal distribution's cumulative function.
func (o *operation) normalDensity(x value) value {
	return o.scale(o.unary("Exp", o.scale(o.mul(x, x), -0.5)), 1/math.Sqrt(2*math.Pi))
}

func erfSlope(o *operation, x, _ value) value {
	return o.scale(o.unary("Exp", o.unary("Neg", o.mul(x, x))), 2/math.Sqrt(math.Pi))
}

// geluSlope: exact form Φ(x) + x·φ(x), or the tanh form (opset 20, approximate="tanh").
func geluSlope(o *operation, x, _ value) value {
	if o.node.Text("approximate", "none") == "tanh" {
		return o.geluTanhSlope(x)
	}
	cdf := o.scale(o.shift(o.unary("Erf", o.scale(x, math.Sqrt(0.5))), 1), 0.5)
	return o.add(cdf, o.mul(x, o.normalDensity(x)))
}

// geluTanhSlope is of y = x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
func (o *operation) geluTanhSlope(x value) value {
	const a, b = 0.7978845608028654, 0.044715 // √(2/π)
	x2 := o.mul(x, x)
	t := o.unary("Tanh", o.scale(o.mul(x, o.shift(o.scale(x2, b), 1)), a))
	left := o.scale(o.shift(t, 1), 0.5)
	inner := o.scale(o.shift(o.scale(x2, 3*b), 1), a)
	right := o.scale(o.mul(o.mul(x, tanhSlope(o, x, t)), inner), 0.5)
	return o.add(left, right)
}

// eluSlope: 1 for x ≥ 0, y + α below, both times gamma (1 for Elu).
func eluSlope(alpha, gamma func(*operation) float64) slope {
	return func(o *operation, x, y value) value {
		g := gamma(o)
		below := o.shift(y, g*alpha(o))
		return o.where(o.compare("Less", x, o.scalar(x.typ, 0)), below, o.scalar(x.typ, g))
	}
}

func attrOr(name string, def float64) func(*operation) float64 {
	return func(o *operation) float64 { return o.floatAttr(name, def) }
}

func always(v float64) func(*operation) float64 { return func(*operation) float64 { return v } }

func hardSigmoidSlope(o *operation, x, y value) value {
	inside := o.op("And", onnx.Bool, x.shape, []value{
		o.compare("Greater", y, o.scalar(x.typ, 0)), o.compare("Less", y, o.scalar(x.typ, 1)),
	})
	return o.where(inside, o.scalar(x.typ, o.floatAttr("alpha", 0.2)), o.scalar(x.typ, 0))
}

// hardSwishSlope: y = x·clip(x/6 + ½, 0, 1).
func hardSwishSlope(o *operation, x, _ value) value {
	ramp := o.shift(o.scale(x, 1.0/3), 0.5)
	high := o.where(o.compare("Less", x, o.scalar(x.typ, 3)), ramp, o.scalar(x.typ, 1))
	return o.where(o.compare("Greater", x, o.scalar(x.typ, -3)), high, o.scalar(x.typ, 0))
}

// mishSlope: y = x·tanh(softplus x).
func mishSlope(o *operation, x, _ value) value {
	t := o.unary("Tanh", o.unary("Softplus", x))
	return o.add(t, o.mul(o.mul(x, o.unary("Sigmoid", x)), tanhSlope(o, x, t)))
}

func thresholdedReluSlope(o *operation, x, _ value) value {
	above := o.compare("Greater", x, o.scalar(x.typ, o.floatAttr("alpha", 1)))
	return o.cast(above, x.typ)
}

// clipRule lets the gradient through where min ≤ x ≤ max, bounds included.
func clipRule(o *operation) {
	x, d := o.in(0), o.dy()
	if o.wants(1) || o.wants(2) {
		failf("gradient with respect to a bound of Clip: %w", ErrNotDifferentiable)
	}
	if o.has(1) {
		d = o.where(o.compare("GreaterOrEqual", x, o.in(1)), d, o.scalar(x.typ, 0))
	}
	if o.has(2) {
		d = o.where(o.compare("LessOrEqual", x, o.in(2)), d, o.scalar(x.typ, 0))
	}
	o.give(0, d)
}

// dropoutRule: in inference Dropout is the identity. In training dy passes
// where the mask, output 1, let x pass, scaled as x was; lower sees to it that
// the node has its mask. A training_mode that is an input of the graph decides
// when the graph runs.
func dropoutRule(o *operation) {
	if !o.has(2) {
		o.give(0, o.dy())
		return
	}
	if mode, ok := o.fold(o.in(2).name); ok && mode[0] == 0 {
		o.give(0, o.dy())
		return
	}
	x := o.in(0)
	one := o.scalar(x.typ, 1)
	ratio := o.scalar(x.typ, 0.5)
	if o.has(1) {
		ratio = o.cast(o.in(1), x.typ)
	}
	kept := o.where(o.in(2), o.sub(one, ratio), one)
	o.give(0, o.mul(o.dy(), o.div(o.cast(o.out(1), x.typ), kept)))
}

func acosSlope(o *operation, x, _ value) value { return o.unary("Neg", asinSlope(o, x, x)) }

func asinSlope(o *operation, x, _ value) value { // 1/√(1-x²)
	return o.unary("Reciprocal", o.unary("Sqrt", o.sub(o.scalar(x.typ, 1), o.mul(x, x))))
}

func atanSlope(o *operation, x, _ value) value {
	return o.unary("Reciprocal", o.shift(o.mul(x, x), 1))
}

func acoshSlope(o *operation, x, _ value) value { // 1/√(x²-1)
	return o.unary("Reciprocal", o.unary("Sqrt", o.shift(o.mul(x, x), -1)))
}

func asinhSlope(o *operation, x, _ value) value { // 1/√(x²+1)
	return o.unary("Reciprocal", o.unary("Sqrt", o.shift(o.mul(x, x), 1)))
}

func atanhSlope(o *operation, x, _ value) value {
	return o.unary("Reciprocal", o.sub(o.scalar(x.typ, 1), o.mul(x, x)))
}

// half of the sum or difference of eˣ and e⁻ˣ: the runtime has Sinh and Cosh in
// single precision only.
func (o *operation) hyperbolic(x value, sign float64) value {
	return o.scale(o.add(o.unary("Exp", x), o.scale(o.unary("Exp", o.unary("Neg", x)), sign)), 0.5)
}

func sinhSlope(o *operation, x, _ value) value { return o.hyperbolic(x, 1) }

func coshSlope(o *operation, x, _ value) value { return o.hyperbolic(x, -1) }

func tanSlope(o *operation, _, y value) value { return o.shift(o.mul(y, y), 1) }

// celuSlope: y = max(0, x) + min(0, α(e^(x/α) - 1)).
func celuSlope(o *operation, x, _ value) value {
	below := o.unary("Exp", o.scale(x, 1/o.floatAttr("alpha", 1)))
	return o.where(o.compare("Less", x, o.scalar(x.typ, 0)), below, o.scalar(x.typ, 1))
}

// shrinkSlope: x moved towards 0 by bias, and 0 where |x| ≤ λ.
func shrinkSlope(o *operation, x, _ value) value {
	beyond := o.compare("Greater", o.unary("Abs", x), o.scalar(x.typ, o.floatAttr("lambd", 0.5)))
	return o.cast(beyond, x.typ)
}
