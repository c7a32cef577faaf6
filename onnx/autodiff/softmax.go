package autodiff

// softmaxRule: dx = y·(dy - Σ dy·y) along the axis.
func softmaxRule(o *operation) {
	y, d := o.out(0), o.dy()
	ax := []int64{axis(o.node.Int("axis", -1), y.rank()) + int64(o.lead())}
	inner := o.sum(o.mul(d, y), ax, true)
	o.give(0, o.mul(y, o.sub(d, inner)))
}

// logSoftmaxRule: dx = dy - softmax·Σ dy along the axis.
func logSoftmaxRule(o *operation) {
	y, d := o.out(0), o.dy()
	ax := []int64{axis(o.node.Int("axis", -1), y.rank()) + int64(o.lead())}
	o.give(0, o.sub(d, o.mul(o.unary("Exp", y), o.sum(d, ax, true))))
}
