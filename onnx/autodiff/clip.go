package autodiff

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// ClipRequest says whose gradients to clip and sum, as DP-SGD needs them (Abadi
// et al. 2016): one bounded gradient a record, and no record's gradient alone.
type ClipRequest struct {
	// Loss holds one number a row of the batch: shape [N] or [N, 1, …].
	Loss string
	// Weights names the initializers to differentiate.
	Weights []string
	// Groups divides Weights into groups with a bound each (per-layer clipping).
	// Nil is flat clipping: one bound over all of them together.
	Groups [][]string
	// Batch is N, the rows of a batch; see Request.Batch.
	Batch int64
	// Views is how many consecutive rows are of one record (augmentation
	// multiplicity, De et al. 2022): their gradients are averaged before the
	// clipping, so that views cost no privacy. 0 means 1. It divides Batch.
	Views int64
	// Keep names tensors of the model to return as well.
	Keep []string
	// WeightsAsInputs: see Request.WeightsAsInputs.
	WeightsAsInputs bool
	// Kernels: see Request.Kernels.
	Kernels int
}

// Clipped is a graph that computes, for R = Batch/Views records g_1 … g_R,
//
//	Σ_r Mask[r] · min(1, Bound[k] / ‖g_r‖_k) · g_r
//
// for every weight, where ‖g_r‖_k is the norm over the weights of its group k.
type Clipped struct {
	// Model has the inputs of the original that it needs, the weights of
	// WeightsAsInputs, Bound and Mask; and as outputs ClipRequest.Keep in order,
	// Norms, then the sums in the order of Weights.
	Model *onnx.Model
	// Of gives the output that holds the sum for each name of Weights, in the
	// weight's own shape.
	Of map[string]string
	// Bound is the input of clipping norms, [groups] (flat: [1]), each > 0.
	Bound string
	// Mask is the input [R] with 1 for a record and 0 for padding.
	Mask string
	// Norms is the output [R, groups]: norms before clipping. They are as private
	// as the gradients themselves.
	Norms string
}

// clipMargin and ghostMargin keep rounding in float32 from letting a clipped
// gradient be longer than its bound, which the noise is measured by. A norm by
// way of inner products (pairNorm) may lose more to cancellation, in proportion
// to the norms of its two factors.
const (
	clipMargin  = 0x1p-16
	ghostMargin = 0x1p-18
)

// Clip builds the graph described by r. The model is not changed.
//
// It runs one backward pass. Norms come first: where a layer allows it, from
// inner products of what the layer read and what flowed back to it ("ghost
// norms", Li et al. 2022; Goodfellow 2015 for vectors), without any record's
// gradient; elsewhere from gradients per record, which are kept. The sums then
// reuse what flowed back, scaled by each record's factor, because a weight's
// gradient is linear in it ("book-keeping", Bu et al. 2022).
//
// It fails with ErrMixesExamples where one row can influence another's loss.
func Clip(m *onnx.Model, r ClipRequest) (c *Clipped, err error) {
	defer func() {
		if f := recoverFailure(recover()); f != nil {
			c, err = nil, fmt.Errorf("autodiff: clipping the gradients of %s: %w", r.Loss, f)
		}
	}()
	if len(r.Weights) == 0 {
		return nil, errors.New("autodiff: clipping: name the weights")
	}
	t := newTape(m, Request{
		Loss: r.Loss, WithRespectTo: r.Weights, PerExample: true, Batch: r.Batch, Keep: r.Keep, WeightsAsInputs: r.WeightsAsInputs, Kernels: r.Kernels,
	})
	groups := r.groupOf()
	views := max(1, r.Views)
	if t.n%views != 0 {
		failf("a batch of %d rows does not divide into records of %d views", t.n, views)
	}
	for _, name := range r.Weights {
		if t.inits[name] == nil {
			failf("%q is not a weight (initializer) of the model", name)
		}
	}
	t.clip = &clipping{views: views, records: t.n / views, pending: map[string][]*site{}}
	t.backward()
	return t.clipped(r, groups), nil
}

// groupOf numbers the group of every weight and refuses weights that are in
// none, in two, or named twice.
func (r ClipRequest) groupOf() map[string]int {
	groups := r.Groups
	if groups == nil {
		groups = [][]string{r.Weights}
	}
	of := map[string]int{}
	for k, names := range groups {
		if len(names) == 0 {
			failf("clipping group %d is empty", k)
		}
		for _, name := range names {
			if _, twice := of[name]; twice {
				failf("weight %q is named twice in the clipping groups", name)
			}
			if !slices.Contains(r.Weights, name) {
				failf("clipping group %d names %q, which is not among the weights", k, name)
			}
			of[name] = k
		}
	}
	for _, name := range r.Weights {
		if _, ok := of[name]; !ok {
			failf("weight %q is in no clipping group", name)
		}
	}
	if len(of) != len(r.Weights) {
		failf("a weight is named twice")
	}
	return of
}

// clipping is what a tape carries while it builds a Clipped.
type clipping struct {
	views, records int64
	pending        map[string][]*site // by tensor: gradients per record that no rule has computed
}

func (c *clipping) reached(name string) bool { return c != nil && len(c.pending[name]) > 0 }

// seed is the loss's own gradient: 1, or 1/views so that the rows of a record
// average.
func (t *tape) seed() float64 {
	if t.clip == nil {
		return 1
	}
	return 1 / float64(t.clip.views)
}

// clipped writes norms, factors and sums, once the backward pass is over.
func (t *tape) clipped(r ClipRequest, groupOf map[string]int) *Clipped {
	typ := t.values[r.Weights[0]].typ
	count := int64(max(1, len(r.Groups)))
	c := &Clipped{Of: map[string]string{}, Bound: t.fresh("clip_bound"), Mask: t.fresh("clip_mask")}
	bound, mask := value{c.Bound, typ, []int64{count}}, value{c.Mask, typ, []int64{t.clip.records}}

	parts := make([]*site, len(r.Weights))
	squares := make([][]value, count)
	for i, name := range r.Weights {
		if t.values[name].typ != typ {
			failf("weight %q has another element type than %q", name, r.Weights[0])
		}
		parts[i] = t.settled(name)
		k := groupOf[name]
		squares[k] = append(squares[k], t.reshape(parts[i].squaredNorm(), t.clip.records, 1))
	}
	columns := make([]value, count)
	for k := range columns {
		columns[k] = t.total(squares[k])
	}
	norms := t.unary("Sqrt", t.concat(1, columns...)) // [R, groups]
	limit := bound
	if typ == onnx.Float {
		limit = t.scale(bound, 1-clipMargin)
	}
	factors := t.binary("Min", t.div(limit, norms), t.scalar(typ, 1)) // 1 where the norm is 0: x/0 is +Inf
	factors = t.mul(factors, t.reshape(mask, t.clip.records, 1))

	outputs := make([]onnx.Value, 0, len(r.Keep)+1+len(r.Weights))
	for _, name := range r.Keep {
		outputs = append(outputs, declare(name, t.values[name]))
	}
	out := t.output("gradient norms", norms)
	c.Norms = out.Name
	outputs = append(outputs, out)
	for i, name := range r.Weights {
		k := int64(groupOf[name])
		factor := t.reshape(t.slice(factors, []int64{1}, []int64{k}, []int64{k + 1}, []int64{1}), t.clip.records)
		out := t.output("gradient/"+name, parts[i].weighted(factor))
		c.Of[name] = out.Name
		outputs = append(outputs, out)
	}
	c.Model = t.assemble(outputs, declare(c.Bound, bound), declare(c.Mask, mask))
	return c
}

// settled returns the one source of a weight's gradient per record. Several
// (a weight that is used twice) are summed record by record first: the norm of
// a sum is not a sum of norms.
func (t *tape) settled(name string) *site {
	if pending := t.clip.pending[name]; len(pending) == 1 && len(t.adjoint[name]) == 0 {
		return pending[0]
	}
	return t.materialised(t.averageViews(t.answer(name)), t.values[name].shape)
}

// averageViews sums [N, S…] over the rows of each record, which carry 1/views
// each already: [R, S…].
func (t *tape) averageViews(g value) value {
	if t.clip.views == 1 {
		return g
	}
	apart := append([]int64{t.clip.records, t.clip.views}, g.shape[1:]...)
	return t.sum(t.reshape(g, apart...), []int64{1}, false)
}

// materialised serves gradients per record that are there, [R, S…].
func (t *tape) materialised(g value, shape []int64) *site {
	records := g.shape[0]
	return &site{
		squaredNorm: func() value {
			return t.reduce("ReduceSumSquare", t.reshape(g, records, g.size()/records), []int64{1}, false)
		},
		weighted: func(factor value) value {
			flat := t.reshape(g, records, g.size()/records)
			return t.reshape(t.matmul(t.reshape(factor, 1, records), flat, false, false), shape...)
		},
	}
}

// materialise turns what was left for later at a tensor into gradients a row,
// because a rule, or a sum with other contributions, needs them after all.
func (t *tape) materialise(name string) {
	if !t.clip.reached(name) {
		return
	}
	for _, s := range t.clip.pending[name] {
		t.adjoint[name] = append(t.adjoint[name], s.rows())
	}
	delete(t.clip.pending, name)
}
