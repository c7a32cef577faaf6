package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// site is a place where a weight meets the batch. Its gradient per record is
// not computed when the backward pass comes by, but asked for in the form that
// turns out to be needed.
type site struct {
	// squaredNorm is ‖g_r‖² of every record, [R].
	squaredNorm func() value
	// weighted is Σ factor[r]·g_r in the weight's shape, for factor [R].
	weighted func(factor value) value
	// rows is the gradient of every row of the batch, [N, S…].
	rows func() value
}

// siteRule makes a site of input i of a node, or nil where nothing is cheaper
// than gradients per row by the node's ordinary rule.
//
// Only squaredNorm is the rule's own to give, and perhaps weighted: what is
// left nil takes the node's rule on what flowed back, scaled by the factors.
type siteRule func(o *operation, i int) *site

// siteRules is the table, keyed as rules is. A fused operator that can sum the
// squares of its records' gradients without storing them adds a row here.
var siteRules = map[string]siteRule{
	"Conv":          convSite,
	"vigie.Conv":    kernelConvSite,
	"ConvTranspose": convTransposeSite,
	"MatMul":        matmulSite,
	"Gemm":          gemmSite,
	"Gather":        gatherSite,
}

// isometric operators move a weight's elements without changing them, so a
// site behind them serves the weight in front of them.
var isometric = map[string]bool{
	"Identity": true, "Reshape": true, "Flatten": true, "Squeeze": true, "Unsqueeze": true, "Transpose": true, "Neg": true,
}

// takeSites leaves the gradients that Clip can have cheaper to it. The node's
// rule skips those inputs; takeSites says whether it has any other to serve.
func (o *operation) takeSites(r rule) (more bool) {
	key := o.node.OpType
	if !isDefault(o.node.Domain) {
		key = o.node.Domain + "." + key
	}
	siteFor := siteRules[key]
	if siteFor == nil || o.perExample(o.out(0)) || !o.layouts[o.out(0).name].plain() {
		return true
	}
	sites := make([]*site, len(o.inputs))
	for i, in := range o.inputs {
		if !o.wants(i) || !o.perExample(in) || o.reads(in.name) > 1 {
			continue
		}
		s := siteFor(o, i)
		if s == nil {
			continue
		}
		if s.weighted == nil {
			s.weighted = func(factor value) value { return o.weightedGradient(r, i, factor) }
		}
		if s.rows == nil {
			s.rows = func() value { return o.rerun(r, i, true, o.gradients) }
		}
		sites[i] = s
		o.clip.pending[in.name] = append(o.clip.pending[in.name], s)
	}
	o.sites = sites
	for i := range o.inputs {
		more = more || o.wants(i)
	}
	return more
}

// reads counts a tensor among the node's inputs.
func (o *operation) reads(name string) int {
	n := 0
	for _, in := range o.inputs {
		if in.name == name {
			n++
		}
	}
	return n
}

// passSite moves a site over an isometric node outside the batch to the node's
// input, and says whether it did.
func (o *operation) passSite(r rule) bool {
	if o.clip == nil || !isometric[o.node.OpType] || !o.perExample(o.out(0)) || !o.wants(0) {
		return false
	}
	from, to := o.out(0).name, o.in(0).name
	pending := o.clip.pending[from]
	if len(pending) != 1 || len(o.adjoint[from]) > 0 || slices.Contains(o.request.WithRespectTo, from) {
		return false
	}
	behind := pending[0]
	delete(o.clip.pending, from)
	o.clip.pending[to] = append(o.clip.pending[to], &site{
		squaredNorm: behind.squaredNorm,
		weighted:    func(factor value) value { return o.rerun(r, 0, false, []value{behind.weighted(factor)}) },
		rows:        func() value { return o.rerun(r, 0, true, []value{behind.rows()}) },
	})
	return true
}

// weightedGradient is the batch gradient of input i with what flowed back
// scaled row by row.
func (o *operation) weightedGradient(r rule, i int, factor value) value {
	rows := o.perRow(factor)
	scaled := make([]value, len(o.gradients))
	for k, d := range o.gradients {
		if !d.none() {
			scaled[k] = o.mul(d, o.reshape(rows, append([]int64{o.n}, repeat(1, d.rank()-1)...)...))
		}
	}
	return o.rerun(r, i, false, scaled)
}

// perRow repeats a factor a record for each of its rows: [R] to [N].
func (t *tape) perRow(factor value) value {
	if t.clip.views == 1 {
		return factor
	}
	column := t.reshape(factor, t.clip.records, 1)
	return t.reshape(t.expand(column, []int64{t.clip.records, t.clip.views}), t.n)
}

// rerun applies a node's rule again for one input only, with other gradients at
// its outputs, and returns what it gives.
func (o *operation) rerun(r rule, i int, perExample bool, gradients []value) value {
	t, name := o.tape, o.in(i).name
	adjoint, needs, request := t.adjoint, t.needs, t.request.PerExample
	defer func() { t.adjoint, t.needs, t.request.PerExample = adjoint, needs, request }()
	t.adjoint, t.needs, t.request.PerExample = map[string][]value{}, map[string]bool{name: true}, perExample
	again := *o
	again.gradients, again.sites = gradients, nil // by the row again: no site of its own
	r.backward(&again)
	return t.total(t.adjoint[name])
}

// pairs is a weight gradient that is a sum of outer products: of record r, G_r =
// Σ_p d[r,p]⊗x[r,p] over positions p. x is [R, P, m] and d [R, P, n], or with
// last [R, m, P] and [R, n, P].
type pairs struct {
	x, d value
	last bool
}

func (p pairs) positions() int64 {
	if p.last {
		return p.x.shape[2]
	}
	return p.x.shape[1]
}

func (p pairs) size() int64 { // elements of one record's gradient
	n := p.positions()
	return p.x.size() / p.x.shape[0] / n * (p.d.size() / p.d.shape[0] / n)
}

// ghost says whether two matrices of inner products between positions are
// smaller than the gradient (the mixed rule of Bu et al. 2022, section 4).
func (p pairs) ghost() bool { n := p.positions(); return 2*n*n <= p.size() }

// squaredNorm is ‖G_r‖² = Σ_pq ⟨x_p, x_q⟩·⟨d_p, d_q⟩.
func (o *operation) pairNorm(p pairs) value {
	if p.positions() == 1 {
		square := func(a value) value { return o.reduce("ReduceSumSquare", a, []int64{1, 2}, false) }
		return o.mul(square(p.x), square(p.d))
	}
	return o.innerNorm(o.gram(p.x, p.last), p.x, p.d, p.last)
}

// gram holds the inner products between positions, [R, P, P].
func (o *operation) gram(a value, last bool) value { return o.matmul(a, a, last, !last) }

// innerNorm is Σ_pq similar[p,q]·⟨d_p, d_q⟩. Rounding may take it below the
// truth where positions cancel, by some units in the last place of ‖x‖²·‖d‖²,
// so that much is added; x without a name counts as one a position.
func (o *operation) innerNorm(similar, x, d value, last bool) value {
	s := o.sum(o.mul(similar, o.gram(d, last)), []int64{1, 2}, false)
	s = o.binary("Max", s, o.scalar(s.typ, 0))
	if s.typ == onnx.Double {
		return s
	}
	total := o.reduce("ReduceSumSquare", d, []int64{1, 2}, false)
	if x.none() {
		total = o.scale(total, float64(similar.shape[1]))
	} else {
		total = o.mul(total, o.reduce("ReduceSumSquare", x, []int64{1, 2}, false))
	}
	return o.add(s, o.scale(total, ghostMargin))
}

// siteOf chooses between inner products and gradients per record; each computes the
// latter, [R, S…].
func (o *operation) siteOf(p pairs, shape []int64, each func() value) *site {
	if p.ghost() {
		return &site{squaredNorm: func() value { return o.pairNorm(p) }}
	}
	return o.materialised(each(), shape)
}

// matmulSite: a batched left operand times a weight matrix.
func matmulSite(o *operation, i int) *site {
	a, b, d := o.in(0), o.in(1), o.dy()
	if i != 1 || b.rank() != 2 || a.rank() < 2 || !o.batched[a.name] {
		return nil
	}
	positions := a.size() / o.clip.records / b.shape[0]
	p := pairs{x: o.reshape(a, o.clip.records, positions, b.shape[0]), d: o.reshape(d, o.clip.records, positions, b.shape[1])}
	return o.siteOf(p, b.shape, func() value { return o.matmul(p.x, p.d, true, false) })
}

// gemmSite: a fully connected layer.
func gemmSite(o *operation, i int) *site {
	a, b := o.in(0), o.in(1)
	if i != 1 || !o.batched[a.name] {
		return nil
	}
	d := o.scale(o.dy(), o.floatAttr("alpha", 1))
	p := pairs{x: o.reshape(a, o.clip.records, o.clip.views, a.shape[1]), d: o.reshape(d, o.clip.records, o.clip.views, d.shape[1])}
	return o.siteOf(p, b.shape, func() value {
		if o.node.Int("transB", 0) != 0 {
			return o.matmul(p.d, p.x, true, false)
		}
		return o.matmul(p.x, p.d, true, false)
	})
}

// gatherSite: an embedding. Two positions' gradients fall together exactly when
// they looked up the same row.
func gatherSite(o *operation, i int) *site {
	table, indices, d := o.in(0), o.in(1), o.dy()
	if i != 0 || !o.batched[indices.name] || axis(o.node.Int("axis", 0), table.rank()) != 0 {
		return nil
	}
	positions := indices.size() / o.clip.records
	if 2*positions*positions > table.size() {
		return nil
	}
	return &site{squaredNorm: func() value {
		at := o.cast(indices, onnx.Int64)
		zero, rows := o.ints(0), o.ints(table.shape[0])
		at = o.where(o.compare("Less", at, zero), o.add(at, rows), at) // -1 is the last row
		left, right := o.reshape(at, o.clip.records, positions, 1), o.reshape(at, o.clip.records, 1, positions)
		same := o.cast(o.compare("Equal", left, right), d.typ)
		flat := o.reshape(d, o.clip.records, positions, d.size()/o.clip.records/positions)
		return o.innerNorm(same, value{}, flat, false)
	}}
}

// convSite: the views of a record become one more spatial axis that the kernel
// does not span, so that a record's gradient is one convolution's.
func convSite(o *operation, i int) *site {
	x, weight, d := o.in(0), o.in(1), o.dy()
	if i != 1 || o.perExample(x) {
		return nil
	}
	w := o.windowOf(weight.shape[2:], x.shape[2:], d.shape[2:])
	return o.kernelSite(x, d, weight, w, o.node.Int("group", 1))
}

func convTransposeSite(o *operation, i int) *site {
	x, weight, d := o.in(0), o.in(1), o.dy()
	if i != 1 || o.perExample(x) {
		return nil
	}
	w := o.transposedWindow(weight.shape[2:], d.shape[2:], x.shape[2:])
	return o.kernelSite(d, x, weight, w, o.node.Int("group", 1))
}

// kernelSite serves both convolutions; x is the larger side, as in
// kernelGradient.
func (o *operation) kernelSite(x, d, kernel value, w window, group int64) *site {
	shape := kernel.shape
	if o.clip.views > 1 {
		x, d, w = o.joinViews(x), o.joinViews(d), w.withViews(o.clip.views)
		kernel.shape = append(append(slices.Clone(shape[:2]), 1), shape[2:]...)
	}
	each := func() value { return o.kernelGradient(x, d, kernel, w, group, true) }
	positions := product(w.out)
	if group != 1 || 2*positions*positions > kernel.size() {
		return o.materialised(each(), shape)
	}
	columns := o.reshape(o.unfold(x, w, 1), o.clip.records, x.shape[1]*product(w.kernel), positions)
	return o.siteOf(pairs{x: columns, d: o.reshape(d, o.clip.records, d.shape[1], positions), last: true}, shape, each)
}

// joinViews turns [R·views, C, spatial…] into [R, C, views, spatial…].
func (o *operation) joinViews(a value) value {
	apart := o.reshape(a, append([]int64{o.clip.records, o.clip.views}, a.shape[1:]...)...)
	perm := iota64(apart.rank())
	perm[1], perm[2] = 2, 1
	return o.transpose(apart, perm...)
}

// withViews adds a leading axis of views, with a kernel of 1.
func (w window) withViews(views int64) window {
	return window{
		kernel: insert(w.kernel, 0, 1), stride: insert(w.stride, 0, 1), dilation: insert(w.dilation, 0, 1),
		before: insert(w.before, 0, 0), after: insert(w.after, 0, 0), in: insert(w.in, 0, views), out: insert(w.out, 0, views),
	}
}
