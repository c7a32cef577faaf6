package autodiff

// matmulRule: Y = A·B, numpy broadcasting over leading axes.
// dA = dY·Bᵀ and dB = Aᵀ·dY, summed over what was broadcast.
func matmulRule(o *operation) {
	a, b, d := o.in(0), o.in(1), o.dy()
	if a.rank() == 1 { // a row vector; the missing axis is put back
		a = o.reshape(a, 1, a.shape[0])
		d = o.reshape(d, insert(d.shape, d.rank()-min(1, b.rank()-1), 1)...)
	}
	if b.rank() == 1 { // a column vector
		b = o.reshape(b, b.shape[0], 1)
		d = o.reshape(d, append(append([]int64{}, d.shape...), 1)...)
	}
	if o.wants(0) {
		switch {
		case !o.perExample(o.in(0)):
			o.settleMatrix(0, a, o.matmul(d, b, false, true))
		case o.lead() == 1: // outside the batch: dy has the examples first
			o.settleLifted(0, a, o.matmul(d, b, false, true))
		default:
			o.settleLifted(0, a, o.matmul(o.frontOf(d, d, -1), o.frontOf(b, d, 1), false, true))
		}
	}
	if !o.wants(1) {
		return
	}
	shared, perExample := b.rank() == 2, o.perExample(o.in(1))
	switch l := o.layouts[o.out(0).name]; {
	case perExample && o.lead() == 1:
		o.settleLifted(1, b, o.matmul(a, d, true, false))
	case shared && !perExample:
		// One matrix product over all rows instead of one a batch plus a sum.
		rows := a.size() / a.shape[a.rank()-1]
		flatA := o.reshape(a, rows, a.shape[a.rank()-1])
		flatD := o.reshape(d, rows, d.shape[d.rank()-1])
		o.give(1, o.reshape(o.matmul(flatA, flatD, true, false), o.in(1).shape...))
	case shared && a.rank() == 2 && o.batched[o.in(0).name] && l.plain() && o.in(1).rank() == 2:
		o.give(1, o.outer(a, d))
	case shared && perExample:
		// Rows of one example together: [N, rows, K] against [N, rows, columns].
		fa, fd := o.frontOf(a, d, 0), o.frontOf(d, d, -1)
		fa = o.reshape(fa, o.n, product(fa.shape[1:fa.rank()-1]), fa.shape[fa.rank()-1])
		fd = o.reshape(fd, o.n, product(fd.shape[1:fd.rank()-1]), fd.shape[fd.rank()-1])
		o.give(1, o.reshape(o.matmul(fa, fd, true, false), o.expects(o.in(1))...))
	case perExample:
		o.settleLifted(1, b, o.matmul(o.frontOf(a, d, 0), o.frontOf(d, d, -1), true, false))
	default:
		o.settleMatrix(1, b, o.matmul(a, d, true, false))
	}
}

// frontOf brings the examples of an operand of a product (or of its gradient,
// for side -1) to the front: [N, …]. Both are given with vectors promoted.
func (o *operation) frontOf(v, d value, side int) value {
	l := o.layouts[o.out(0).name]
	if o.in(0).rank() == 1 && o.in(1).rank() > 1 && l.axis == o.out(0).rank()-1 {
		l.axis++ // the columns of the promoted row
	}
	if side < 0 {
		return o.toFront(v, l)
	}
	own, ok := o.layout(side)
	if !ok {
		failf("a product whose batch is not in both factors: %w", ErrMixesExamples)
	}
	if o.in(side).rank() < v.rank() {
		failf("per-example gradient against a vector that holds the batch: %w", ErrMixesExamples)
	}
	front := o.toFront(v, own)
	// Axes that only the output has: the examples must stay first of all.
	for front.rank() < d.rank()+1 {
		front = o.reshape(front, insert(front.shape, 1, 1)...)
	}
	return front
}

// settleLifted settles [N, …] for an operand outside the batch whose vector was
// promoted to a matrix.
func (o *operation) settleLifted(i int, promoted, d value) {
	in := o.in(i)
	if promoted.rank() == in.rank() {
		o.settleFront(i, d)
		return
	}
	d = o.sum(d, iota64(d.rank() - 2)[1:], false)
	o.give(i, o.reshape(d, o.expects(in)...))
}

// settleMatrix settles a gradient whose input was promoted from a vector.
func (o *operation) settleMatrix(i int, promoted value, d value) {
	if promoted.rank() == o.in(i).rank() {
		o.settle(i, d)
		return
	}
	lead := d.rank() - 2
	o.give(i, o.reshape(o.sum(d, iota64(lead), false), o.in(i).shape...))
}

// outer multiplies matching rows of a [N, m] and b [N, n] to [N, m, n].
func (o *operation) outer(a, b value) value {
	return o.mul(o.reshape(a, a.shape[0], a.shape[1], 1), o.reshape(b, b.shape[0], 1, b.shape[1]))
}

// gemmRule: Y = α·A'·B' + β·C with A' and B' optionally transposed.
func gemmRule(o *operation) {
	a, b, d := o.in(0), o.in(1), o.dy()
	transA, transB := o.node.Int("transA", 0) != 0, o.node.Int("transB", 0) != 0
	if o.wants(2) {
		o.settle(2, o.scale(d, o.floatAttr("beta", 1)))
	}
	d = o.scale(d, o.floatAttr("alpha", 1))
	if o.wants(0) {
		if transA {
			o.give(0, o.matmul(b, d, transB, true))
		} else {
			o.give(0, o.matmul(d, b, false, !transB))
		}
	}
	if !o.wants(1) {
		return
	}
	l := o.layouts[o.out(0).name]
	switch {
	case o.perExample(b) && !l.plain(): // several rows of each example
		front := func(v value) value { return o.reshape(o.toFront(v, l), o.n, l.before*l.after, v.shape[1]) }
		left, right := front(a), front(d)
		if transB {
			left, right = right, left
		}
		o.give(1, o.matmul(left, right, true, false))
	case o.perExample(b) && transB:
		o.give(1, o.outer(d, a))
	case o.perExample(b):
		o.give(1, o.outer(a, d))
	case transB:
		o.give(1, o.matmul(d, a, true, transA))
	default:
		o.give(1, o.matmul(a, d, !transA, false))
	}
}

func insert(dims []int64, at int, v int64) []int64 {
	out := append([]int64{}, dims[:at]...)
	out = append(out, v)
	return append(out, dims[at:]...)
}
