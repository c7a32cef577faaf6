package autodiff

import "slices"

// Per-example gradients exist only where axis 0 of every activation counts the
// examples and no operator lets one reach another. markBatched finds the
// tensors that carry that axis; checkExamples makes sure that it stays what it
// is on every node that gradients pass.

func (t *tape) markBatched() {
	loss := t.values[t.request.Loss]
	if loss.rank() == 0 {
		failf("the loss is a scalar; per-example gradients need one loss an example (shape [N])")
	}
	t.n = loss.shape[0]
	if loss.size() != t.n {
		failf("the loss has shape %v; per-example gradients need one loss an example (shape [N])", loss.shape)
	}
	for _, in := range t.inputs {
		v := t.values[in.Name]
		t.batched[in.Name] = v.rank() > 0 && v.shape[0] == t.n
	}
	for _, n := range t.model.Graph.Nodes {
		if cutsGradient(n) {
			continue
		}
		batched := slices.ContainsFunc(n.Inputs, func(in string) bool { return t.batched[in] }) || t.repeatsOverBatch(n.OpType, n.Inputs, n.Outputs)
		for _, out := range n.Outputs {
			t.batched[out] = batched && out != ""
		}
	}
	if !t.batched[loss.name] {
		failf("the loss does not depend on an input with a batch axis of %d", t.n)
	}
}

// repeatsOverBatch recognises a weight that is expanded once per example, such
// as a class token: from there on it is data of the example.
func (t *tape) repeatsOverBatch(opType string, inputs, outputs []string) bool {
	if opType != "Expand" {
		return false
	}
	in, out := t.values[inputs[0]], t.values[outputs[0]]
	if out.rank() == 0 || out.shape[0] != t.n {
		return false
	}
	return in.rank() < out.rank() || in.shape[0] == 1
}

// checkExamples refuses a node that does not keep the batch axis first and to
// itself, or that cannot be differentiated outside the batch.
func (o *operation) checkExamples(r rule) {
	if o.perExample(o.out(0)) {
		if !r.lifted {
			failf("applied to a tensor without a batch axis: %w", ErrMixesExamples)
		}
		return
	}
	for _, v := range o.outputs {
		if !v.none() && (v.rank() == 0 || v.shape[0] != o.n) {
			failf("output %s loses the batch axis: %w", v.like(), ErrMixesExamples)
		}
	}
	if r.examples != nil {
		r.examples(o)
	}
}

func (o *operation) refuseMixing(mixes bool) {
	if mixes {
		failf("acts on the batch axis: %w", ErrMixesExamples)
	}
}

// examplesElementwise: axis 0 of every batched input must meet axis 0 of the output.
func examplesElementwise(o *operation) {
	for _, in := range o.inputs {
		o.refuseMixing(o.batched[in.name] && in.rank() != o.out(0).rank())
	}
}

func examplesAxis(o *operation) {
	def := int64(-1)
	if o.node.OpType == "Split" {
		def = 0
	}
	o.refuseMixing(axis(o.node.Int("axis", def), o.out(0).rank()) == 0)
}

func examplesFromAxis(o *operation) {
	o.refuseMixing(axis(o.node.Int("axis", -1), o.in(0).rank()) == 0)
}

func examplesReduce(o *operation) {
	axes := o.axesOf(1, o.in(0).rank())
	all := len(axes) == 0 && o.node.Int("noop_with_empty_axes", 0) == 0
	o.refuseMixing(all || slices.Contains(axes, 0))
}

// examplesReshape: rows of row-major data stay together exactly when the first
// dimension is unchanged.
func examplesReshape(o *operation) {
	o.refuseMixing(o.in(0).rank() == 0 || o.in(0).shape[0] != o.n)
}

func examplesTranspose(o *operation) {
	perm := o.intsAttr("perm", nil)
	o.refuseMixing(len(perm) == 0 || perm[0] != 0)
}

func examplesSlice(o *operation) {
	axes := iota64(len(o.constant64(1)))
	if o.has(3) {
		axes = o.constant64(3)
	}
	for i, a := range axes {
		if axis(a, o.in(0).rank()) == 0 { // taking all of it in order is harmless
			reversed := o.has(4) && o.constant64(4)[i] < 0
			o.refuseMixing(reversed)
		}
	}
}

func examplesGather(o *operation) {
	if o.batched[o.in(0).name] {
		o.refuseMixing(axis(o.node.Int("axis", 0), o.in(0).rank()) == 0)
	}
}

// examplesMatMul: the batch may be the rows of the left operand or a leading
// axis of both, never what is summed over.
func examplesMatMul(o *operation) {
	a, b, y := o.in(0), o.in(1), o.out(0)
	for _, in := range []value{a, b} {
		o.refuseMixing(o.batched[in.name] && in.rank() != y.rank())
	}
	o.refuseMixing(o.batched[b.name] && b.rank() < 3)
}

func examplesGemm(o *operation) {
	o.refuseMixing(o.node.Int("transA", 0) != 0 || o.batched[o.in(1).name])
	if o.has(2) {
		o.refuseMixing(o.batched[o.in(2).name] && o.in(2).rank() != 2)
	}
}
