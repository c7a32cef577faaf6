package autodiff

// Elementwise operators of several inputs. Each input's gradient has the
// broadcast output shape first and settle sums it back.

func addRule(o *operation) {
	for i := range o.inputs {
		if o.wants(i) {
			o.settle(i, o.dy())
		}
	}
}

func subRule(o *operation) {
	if o.wants(0) {
		o.settle(0, o.dy())
	}
	if o.wants(1) {
		o.settle(1, o.unary("Neg", o.dy()))
	}
}

func mulRule(o *operation) {
	if o.wants(0) {
		o.settle(0, o.mul(o.dy(), o.in(1)))
	}
	if o.wants(1) {
		o.settle(1, o.mul(o.dy(), o.in(0)))
	}
}

func divRule(o *operation) {
	if o.wants(0) {
		o.settle(0, o.div(o.dy(), o.in(1)))
	}
	if o.wants(1) { // d(a/b)/db = -(a/b)/b
		o.settle(1, o.unary("Neg", o.mul(o.dy(), o.div(o.out(0), o.in(1)))))
	}
}

func meanOfInputsRule(o *operation) {
	d := o.scale(o.dy(), 1/float64(len(o.inputs)))
	for i := range o.inputs {
		if o.wants(i) {
			o.settle(i, d)
		}
	}
}

// extremeRule serves Max and Min of several inputs: ties share the gradient.
func extremeRule(o *operation) {
	y := o.out(0)
	hits := make([]value, len(o.inputs))
	for i := range o.inputs {
		hits[i] = o.cast(o.compare("Equal", o.in(i), y), y.typ)
	}
	d := o.dy()
	if len(hits) > 1 {
		count := hits[0]
		for _, h := range hits[1:] {
			count = o.add(count, h)
		}
		d = o.div(d, count)
	}
	for i := range o.inputs {
		if o.wants(i) {
			o.settle(i, o.mul(d, hits[i]))
		}
	}
}

func powRule(o *operation) {
	x, p := o.in(0), o.cast(o.in(1), o.in(0).typ)
	if o.wants(0) { // p·x^(p-1), not y·p/x, which is 0/0 at x = 0
		o.settle(0, o.mul(o.dy(), o.mul(p, o.binary("Pow", x, o.shift(p, -1)))))
	}
	if o.wants(1) { // y·ln x; x^p is constant in p where x = 0
		zero := o.scalar(x.typ, 0)
		positive := o.compare("Greater", x, zero)
		logx := o.where(positive, o.unary("Log", o.where(positive, x, o.scalar(x.typ, 1))), zero)
		o.settle(1, o.mul(o.dy(), o.mul(o.out(0), logx)))
	}
}

func whereRule(o *operation) {
	d := o.dy()
	zero := o.scalar(d.typ, 0)
	if o.wants(1) {
		o.settle(1, o.where(o.in(0), d, zero))
	}
	if o.wants(2) {
		o.settle(2, o.where(o.in(0), zero, d))
	}
}

// preluRule: the slope broadcasts one way, to x.
func preluRule(o *operation) {
	x, slope, d := o.in(0), o.in(1), o.dy()
	zero := o.scalar(x.typ, 0)
	negative := o.compare("Less", x, zero)
	if o.wants(0) {
		o.settle(0, o.where(negative, o.mul(d, slope), d))
	}
	if o.wants(1) {
		o.settle(1, o.where(negative, o.mul(d, x), zero))
	}
}

// modRule: a mod b = a - b·q with q whole, in either form of the operator.
func modRule(o *operation) {
	if o.wants(0) {
		o.settle(0, o.dy())
	}
	if o.wants(1) {
		quotient := o.unary("Round", o.div(o.sub(o.in(0), o.out(0)), o.in(1)))
		o.settle(1, o.unary("Neg", o.mul(o.dy(), quotient)))
	}
}
