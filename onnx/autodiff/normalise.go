package autodiff

// Normalisation layers. All of them subtract a mean, divide by a standard
// deviation and apply a scale and a shift; they differ in the axes they average
// over. With x̂ the normalised input, g = dy·scale and means over those axes,
//
//	dx = (g - mean(g) - x̂·mean(g·x̂)) / σ
//
// (Ioffe and Szegedy 2015, section 3, simplified). Statistics are computed
// again from x, because the runtime's operators do not all return them.

// standardise returns x̂ and 1/σ over the axes, which keep their place with size 1.
func (e *emitter) standardise(x value, axes []int64, epsilon float64) (xhat, rstd value) {
	centred := e.sub(x, e.mean(x, axes, true))
	rstd = e.inverseDeviation(centred, axes, epsilon)
	return e.mul(centred, rstd), rstd
}

// inverseDeviation is 1/√(mean(centred²) + ε).
func (e *emitter) inverseDeviation(centred value, axes []int64, epsilon float64) value {
	count := int64(1)
	for _, ax := range axes {
		count *= centred.shape[ax]
	}
	variance := e.scale(e.reduce("ReduceSumSquare", centred, axes, true), 1/float64(count))
	return e.unary("Reciprocal", e.unary("Sqrt", e.shift(variance, epsilon)))
}

func (e *emitter) standardiseGradient(g, xhat, rstd value, axes []int64) value {
	centred := e.sub(g, e.mean(g, axes, true))
	return e.mul(rstd, e.sub(centred, e.mul(xhat, e.mean(e.mul(g, xhat), axes, true))))
}

// epsilon reads the attribute; opset defaults agree on 1e-5.
func (o *operation) epsilon() float64 { return o.floatAttr("epsilon", 1e-5) }

// channelwise views a [C] vector so that it broadcasts over [N, C, spatial…].
func (e *emitter) channelwise(v value, rank int) value {
	return e.reshape(v, append([]int64{v.size()}, repeat(1, rank-2)...)...)
}

// sumToChannel sums [N, C, spatial…] to the gradient of the [C] input i.
func (o *operation) sumToChannel(i int, d value) value {
	return o.eachRecord(o.in(i), o.sum(d, o.allButChannel(o.in(i), d.rank()), false))
}

func batchNormRule(o *operation) {
	if o.node.Int("training_mode", 0) != 0 {
		batchStatisticsRule(o)
		return
	}
	x, d := o.in(0), o.dy()
	scale, mean, variance := o.in(1), o.in(3), o.in(4)
	rstd := o.unary("Reciprocal", o.unary("Sqrt", o.shift(variance, o.epsilon())))
	gain := o.mul(scale, rstd)
	if o.wants(0) {
		o.give(0, o.mul(d, o.channelwise(gain, x.rank())))
	}
	if o.wants(2) {
		o.give(2, o.sumToChannel(2, d))
	}
	if o.wants(3) {
		o.give(3, o.unary("Neg", o.mul(o.sumToChannel(3, d), gain)))
	}
	if !o.wants(1) && !o.wants(4) {
		return
	}
	centred := o.mul(d, o.sub(x, o.channelwise(mean, x.rank())))
	if o.wants(1) {
		o.give(1, o.mul(o.sumToChannel(1, centred), rstd))
	}
	if o.wants(4) { // d rstd / d variance = -rstd³/2
		slope := o.scale(o.mul(gain, o.mul(rstd, rstd)), -0.5)
		o.give(4, o.mul(o.sumToChannel(4, centred), slope))
	}
}

// batchStatisticsRule is BatchNormalization in training mode. The running
// statistics that it also returns are not differentiated.
func batchStatisticsRule(o *operation) {
	x, d, scale := o.in(0), o.dy(), o.in(1)
	axes := o.allButChannel(scale, x.rank())
	xhat, rstd := o.standardise(x, axes, o.epsilon())
	if o.wants(2) {
		o.give(2, o.sum(d, axes, false))
	}
	if o.wants(1) {
		o.give(1, o.sum(o.mul(d, xhat), axes, false))
	}
	if o.wants(0) {
		g := o.mul(d, o.channelwise(scale, x.rank()))
		o.give(0, o.standardiseGradient(g, xhat, rstd, axes))
	}
}

func instanceNormRule(o *operation) {
	groupNormGradient(o, o.in(0).shape[1], value{})
}

// groupNormRule: opset 18 has one scale a group, opset 21 one a channel.
func groupNormRule(o *operation) {
	groupNormGradient(o, o.node.Int("num_groups", 0), value{})
}

// groupNormGradient works on [N, C, M]. The two sums over M are all that is
// needed of the large tensors; what follows per group is small, and dx is one
// affine pass: dx = dy·A[n,c] - x̂·B[n,g] - D[n,g].
//
// Inputs 1 and 2, scale and shift, have one element a channel or one a group.
// xhat is x̂ with as many elements as x if the graph has it already.
func groupNormGradient(o *operation, groups int64, xhat value) {
	x, scale := o.in(0), o.in(1)
	n, c := x.shape[0], x.shape[1]
	if groups <= 0 || c%groups != 0 {
		failf("%d channels do not divide into %d groups", c, groups)
	}
	m, per := product(x.shape[2:]), c/groups
	grouped, axes := o.reshape(x, n, groups, per*m), []int64{2}
	centred := o.sub(grouped, o.mean(grouped, axes, true))
	rstd := o.inverseDeviation(centred, axes, o.epsilon())
	if xhat.none() {
		xhat = o.mul(centred, rstd)
	}
	xhat = o.reshape(xhat, n, groups, per*m)
	d := o.reshape(o.dy(), n, c, m)
	sumD := o.sum(d, axes, false)                                   // [N, C]
	sumDX := o.sum(o.mul(d, o.reshape(xhat, n, c, m)), axes, false) // [N, C]
	affine := func(i int, s value) {
		if !o.wants(i) {
			return
		}
		if o.in(i).size() != c {
			s = o.sum(o.reshape(s, n, groups, per), axes, false)
		}
		if o.perExample(o.in(i)) {
			s = o.eachRecord(o.in(i), s)
		} else {
			s = o.sum(s, []int64{0}, false)
		}
		o.give(i, o.reshape(s, o.expects(o.in(i))...))
	}
	affine(1, sumDX)
	affine(2, sumD)
	if !o.wants(0) {
		return
	}
	gain := o.reshape(scale, 1, groups, scale.size()/groups)
	perGroup := func(s value) value { // mean over the group of s·scale
		g := o.mul(o.reshape(s, n, groups, per), gain)
		return o.scale(o.sum(g, axes, true), 1/float64(per*m))
	}
	a := o.reshape(o.expand(o.mul(gain, rstd), []int64{n, groups, per}), n, c, 1)
	b, shift := o.mul(rstd, perGroup(sumDX)), o.mul(rstd, perGroup(sumD))
	back := o.add(o.mul(xhat, b), shift)
	dx := o.sub(o.mul(d, a), o.reshape(back, n, c, m))
	o.give(0, o.reshape(dx, x.shape...))
}

func layerNormRule(o *operation) {
	for i := 1; i < len(o.gradients); i++ {
		if !o.gradients[i].none() {
			failf("gradient through the saved statistics: %w", ErrNotDifferentiable)
		}
	}
	x, d := o.in(0), o.dy()
	axes := iota64(x.rank())[axis(o.node.Int("axis", -1), x.rank()):]
	xhat, rstd := o.standardise(x, axes, o.epsilon())
	if o.wants(1) {
		o.settle(1, o.mul(d, xhat))
	}
	if o.wants(2) {
		o.settle(2, d)
	}
	if o.wants(0) {
		o.give(0, o.standardiseGradient(o.mul(d, o.in(1)), xhat, rstd, axes))
	}
}

// rmsNormRule: y = x·r·scale with r = 1/√(mean(x²)+ε), so
// dx = r·(g - x·r²·mean(g·x)).
func rmsNormRule(o *operation) {
	x, d := o.in(0), o.dy()
	axes := iota64(x.rank())[axis(o.node.Int("axis", -1), x.rank()):]
	r := o.unary("Reciprocal", o.unary("Sqrt", o.shift(o.mean(o.mul(x, x), axes, true), o.epsilon())))
	if o.wants(1) {
		o.settle(1, o.mul(d, o.mul(x, r)))
	}
	if o.wants(0) {
		g := o.mul(d, o.in(1))
		pull := o.mul(o.mul(r, r), o.mean(o.mul(g, x), axes, true))
		o.give(0, o.mul(r, o.sub(g, o.mul(x, pull))))
	}
}
