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
		o.settleMatrix(0, a, o.matmul(d, b, false, true))
	}
	if !o.wants(1) {
		return
	}
	switch shared := b.rank() == 2; {
	case shared && !o.perExample(o.in(1)):
		// One matrix product over all rows instead of one a batch plus a sum.
		rows := a.size() / a.shape[a.rank()-1]
		flatA := o.reshape(a, rows, a.shape[a.rank()-1])
		flatD := o.reshape(d, rows, d.shape[d.rank()-1])
		o.give(1, o.reshape(o.matmul(flatA, flatD, true, false), o.in(1).shape...))
	case shared && a.rank() == 2 && o.batched[o.in(0).name]:
		o.give(1, o.reshape(o.outer(a, d), o.expects(o.in(1))...))
	default:
		o.settleMatrix(1, b, o.matmul(a, d, true, false))
	}
}

// settleMatrix settles a gradient whose input was promoted from a vector.
func (o *operation) settleMatrix(i int, promoted value, d value) {
	if promoted.rank() == o.in(i).rank() {
		o.settle(i, d)
		return
	}
	if o.perExample(o.in(i)) {
		failf("per-example gradient of a vector operand: %w", ErrMixesExamples)
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
		if o.perExample(a) {
			failf("per-example gradient of Gemm's first operand: %w", ErrMixesExamples)
		}
		if transA {
			o.give(0, o.matmul(b, d, transB, true))
		} else {
			o.give(0, o.matmul(d, b, false, !transB))
		}
	}
	if !o.wants(1) {
		return
	}
	switch {
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
