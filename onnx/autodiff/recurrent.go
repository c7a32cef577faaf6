package autodiff

import "slices"

// Recurrent cells are unrolled: one set of matrix products and gates for each
// step of the (static) sequence. Equations are those of operators RNN-14,
// GRU-14 and LSTM-14; the order of the gates in the weights is theirs.

// cell is what the three operators share.
type cell struct {
	*operation
	gates, hidden, steps, batch int64
	directions                  int64
	x                           value // [T, N, input]
}

func (o *operation) cell(gates int64, defaults ...string) *cell {
	if names := o.node.Attribute("activations"); names != nil {
		for i, name := range names.Strings {
			if string(name) != defaults[i%len(defaults)] {
				failf("activation %q: only %v: %w", name, defaults, ErrNotDifferentiable)
			}
		}
	}
	for _, name := range []string{"clip", "activation_alpha", "activation_beta"} {
		if o.node.Attribute(name) != nil {
			failf("attribute %q: %w", name, ErrNotDifferentiable)
		}
	}
	x := o.in(0)
	if o.node.Int("layout", 0) == 1 {
		x = o.transpose(x, 1, 0, 2)
	}
	c := &cell{operation: o, gates: gates, hidden: o.in(2).shape[2], steps: x.shape[0], batch: x.shape[1], directions: o.in(2).shape[0], x: x}
	bounded("steps of a sequence to unroll", c.steps)
	if o.has(4) {
		lengths, ok := o.fold(o.in(4).name)
		if !ok || slices.ContainsFunc(lengths, func(n int64) bool { return n != c.steps }) {
			failf("sequences of different lengths: pad them and mask the loss: %w", ErrNotDifferentiable)
		}
	}
	return c
}

// direction takes one direction of a parameter [D, …].
func (c *cell) direction(v value, d int64) value {
	if v.none() {
		return v
	}
	one := c.slice(v, []int64{0}, []int64{d}, []int64{d + 1}, []int64{1})
	return c.reshape(one, v.shape[1:]...)
}

// state is a first state of one direction, none if it is zero.
func (c *cell) state(i int, d int64) value {
	v := c.in(i)
	if v.none() {
		return v
	}
	if c.node.Int("layout", 0) == 1 {
		v = c.transpose(v, 1, 0, 2)
	}
	return c.direction(v, d)
}

// columns takes columns [from, to) of the last axis.
func (c *cell) columns(v value, from, to int64) value {
	return c.slice(v, []int64{int64(v.rank() - 1)}, []int64{from}, []int64{to}, []int64{1})
}

// gate takes the part of gate g.
func (c *cell) gate(v value, g int64) value { return c.columns(v, g*c.hidden, (g+1)*c.hidden) }

// reversed says whether direction d walks backwards.
func (c *cell) reversed(d int64) bool {
	return d == 1 || c.node.Text("direction", "forward") == "reverse"
}

// walk unrolls one direction: step gets the input's share [N, gates·hidden] of
// each step and returns the new state. The result is every state, in the order
// of the sequence.
func (c *cell) walk(d int64, share value, step func(x value) value) (all []value, last value) {
	all = make([]value, c.steps)
	for i := range c.steps {
		t := i
		if c.reversed(d) {
			t = c.steps - 1 - i
		}
		x := c.slice(share, []int64{0}, []int64{t}, []int64{t + 1}, []int64{1})
		last = step(c.reshape(x, c.batch, share.shape[2]))
		all[t] = last
	}
	return all, last
}

// share is X·Wᵀ (+ bias): what the input gives to the gates at every step.
func (c *cell) share(d int64, bias value) value {
	v := c.matmul(c.x, c.transpose(c.direction(c.in(1), d), 1, 0), false, false)
	if bias.none() {
		return v
	}
	return c.add(v, bias)
}

// biases are Wb and Rb of one direction, both none if there are none.
func (c *cell) biases(d int64) (input, recurrent value) {
	b := c.direction(c.in(3), d)
	if b.none() {
		return b, b
	}
	n := c.gates * c.hidden
	return c.columns(b, 0, n), c.columns(b, n, 2*n)
}

// results lays out what every direction gave: Y, Y_h and Y_c.
func (c *cell) results(sequences [][]value, last ...[]value) []value {
	var along []value // [T, 1, N, hidden] for each direction
	for _, states := range sequences {
		var steps []value
		for _, h := range states {
			steps = append(steps, c.reshape(h, 1, 1, c.batch, c.hidden))
		}
		along = append(along, c.concat(0, steps...))
	}
	y := c.concat(1, along...)
	if c.node.Int("layout", 0) == 1 {
		y = c.transpose(y, 2, 0, 1, 3)
	}
	out := []value{y}
	for _, states := range last {
		var each []value
		for _, h := range states {
			each = append(each, c.reshape(h, 1, c.batch, c.hidden))
		}
		v := c.concat(0, each...)
		if c.node.Int("layout", 0) == 1 {
			v = c.transpose(v, 1, 0, 2)
		}
		out = append(out, v)
	}
	return out
}

// add0 is a + b where none counts as zero.
func (c *cell) add0(a, b value) value {
	switch {
	case a.none():
		return b
	case b.none():
		return a
	}
	return c.add(a, b)
}

func lowerRNN(o *operation) []value {
	c := o.cell(1, "Tanh")
	var sequences [][]value
	var last []value
	for d := range c.directions {
		wb, rb := c.biases(d)
		r := c.transpose(c.direction(c.in(2), d), 1, 0)
		h := c.state(5, d)
		all, end := c.walk(d, c.share(d, c.add0(wb, rb)), func(x value) value {
			if !h.none() {
				x = c.add(x, c.matmul(h, r, false, false))
			}
			h = c.unary("Tanh", x)
			return h
		})
		sequences, last = append(sequences, all), append(last, end)
	}
	return c.results(sequences, last)
}

// lowerGRU: gates are update z, reset r, candidate h.
func lowerGRU(o *operation) []value {
	c := o.cell(3, "Sigmoid", "Tanh")
	afterReset := o.node.Int("linear_before_reset", 0) != 0
	var sequences [][]value
	var last []value
	for d := range c.directions {
		wb, rb := c.biases(d)
		r := c.transpose(c.direction(c.in(2), d), 1, 0) // [hidden, 3·hidden]
		gates, candidate := c.columns(r, 0, 2*c.hidden), c.gate(r, 2)
		var gateBias, candidateBias value
		if !rb.none() {
			gateBias, candidateBias = c.columns(rb, 0, 2*c.hidden), c.gate(rb, 2)
		}
		h := c.state(5, d)
		all, end := c.walk(d, c.share(d, wb), func(x value) value {
			zr := c.add0(c.columns(x, 0, 2*c.hidden), gateBias)
			if !h.none() {
				zr = c.add(zr, c.matmul(h, gates, false, false))
			}
			zr = c.unary("Sigmoid", zr)
			z, reset := c.gate(zr, 0), c.gate(zr, 1)
			part := candidateBias
			switch {
			case afterReset && h.none():
				if !part.none() {
					part = c.mul(reset, part)
				}
			case afterReset:
				part = c.mul(reset, c.add0(c.matmul(h, candidate, false, false), part))
			case !h.none():
				part = c.add0(c.matmul(c.mul(reset, h), candidate, false, false), part)
			}
			fresh := c.unary("Tanh", c.add0(c.gate(x, 2), part))
			kept := c.mul(c.sub(c.scalar(z.typ, 1), z), fresh)
			if !h.none() {
				kept = c.add(kept, c.mul(z, h))
			}
			h = kept
			return h
		})
		sequences, last = append(sequences, all), append(last, end)
	}
	return c.results(sequences, last)
}

// lowerLSTM: gates are input i, output o, forget f, cell c.
func lowerLSTM(o *operation) []value {
	c := o.cell(4, "Sigmoid", "Tanh", "Tanh")
	if o.node.Int("input_forget", 0) != 0 || o.has(7) {
		failf("coupled gates and peepholes: %w", ErrNotDifferentiable)
	}
	var sequences [][]value
	var last, memory []value
	for d := range c.directions {
		wb, rb := c.biases(d)
		r := c.transpose(c.direction(c.in(2), d), 1, 0)
		h, m := c.state(5, d), c.state(6, d)
		all, end := c.walk(d, c.share(d, c.add0(wb, rb)), func(x value) value {
			if !h.none() {
				x = c.add(x, c.matmul(h, r, false, false))
			}
			open := c.unary("Sigmoid", c.columns(x, 0, 3*c.hidden))
			fresh := c.mul(c.gate(open, 0), c.unary("Tanh", c.gate(x, 3)))
			if m.none() {
				m = fresh
			} else {
				m = c.add(c.mul(c.gate(open, 2), m), fresh)
			}
			h = c.mul(c.gate(open, 1), c.unary("Tanh", m))
			return h
		})
		sequences, last, memory = append(sequences, all), append(last, end), append(memory, m)
	}
	return c.results(sequences, last, memory)
}
