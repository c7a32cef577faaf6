package autodiff

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Per-example gradients exist only where no operator lets one example of the
// batch reach another. Exporters move the batch about: a ViT's queries are [3,
// N, heads, …], Swin's windows [N·windows, …], a BERT layer of PyTorch's [L·N,
// …]. So the batch is followed from the inputs through every node: markBatched
// gives each tensor its batchAxis, by the examples rule of each operator, or
// the reason why its examples have met.

// batchAxis says where a tensor counts the examples: its axis has
// before·N·after elements, of which index (b·N + e)·after + a is example e's.
type batchAxis struct {
	axis          int
	before, after int64
}

func (l batchAxis) plain() bool { return l == batchAxis{0, 1, 1} }

// moved is the same place along another axis.
func (l batchAxis) moved(axis int) batchAxis { l.axis = axis; return l }

// examples is the part of a tape that knows the batch.
type examples struct {
	n       int64                 // examples
	alone   bool                  // n is 1: every gradient is that of the example
	batched map[string]bool       // depends on the example
	layouts map[string]batchAxis  // where, for the batched
	mixed   map[string]error      // why it cannot be said where
	grown   map[string]onnx.Value // shapes with one more example, nil if there are none
}

// countExamples reads the number of examples off the loss.
func (t *tape) countExamples() {
	loss := t.values[t.request.Loss]
	if loss.rank() == 0 {
		failf("the loss is a scalar; per-example gradients need one loss an example (shape [N])")
	}
	if loss.size() != loss.shape[0] || loss.size() == 0 {
		failf("the loss has shape %v; per-example gradients need one loss an example (shape [N])", loss.shape)
	}
	t.examples = examples{
		n: loss.shape[0], alone: loss.shape[0] == 1,
		batched: map[string]bool{}, layouts: map[string]batchAxis{}, mixed: map[string]error{},
	}
	t.grown = t.grow()
}

func (t *tape) markBatched() {
	for _, in := range t.inputs {
		v := t.values[in.Name]
		if v.rank() > 0 && v.shape[0] == t.n {
			t.batched[in.Name], t.layouts[in.Name] = true, batchAxis{0, 1, 1}
		}
	}
	for _, n := range t.graph.Nodes {
		switch {
		case !cutsGradient(n) && slices.ContainsFunc(n.Inputs, func(in string) bool { return t.batched[in] }):
			t.spread(n)
		default:
			t.repeats(n)
		}
	}
	loss := t.values[t.request.Loss]
	if !t.batched[loss.name] {
		failf("the loss does not depend on an input with a batch axis of %d", t.n)
	}
	if l := t.layouts[loss.name]; t.mixed[loss.name] == nil && !t.alone && l.axis != 0 {
		failf("the loss counts the examples along axis %d, not the first: %w", l.axis, ErrMixesExamples)
	}
	if t.alone {
		t.checkPair()
	}
}

// checkPair refuses for a batch of one what mixes the examples of a larger
// batch, so that the size of a batch does not decide what a model may do.
func (t *tape) checkPair() {
	if t.request.Batch != 1 {
		return
	}
	pair := t.request
	pair.Batch = 2
	if _, err := Gradient(t.model, pair); errors.Is(err, ErrMixesExamples) {
		failf("in any larger batch: %w", err)
	}
}

// grow returns the shapes of the graph with one more example, nil if it works
// for one size of batch only. A dimension that grows counts examples.
func (t *tape) grow() map[string]onnx.Value {
	inputs := slices.Clone(t.inputs)
	for i, in := range inputs {
		if v := t.values[in.Name]; v.rank() > 0 && v.shape[0] == t.n {
			in.Shape = slices.Clone(in.Shape)
			in.Shape[0] = onnx.Dim{Value: t.n + 1}
			inputs[i] = in
		}
	}
	_, bound := t.bindInputs(t.n + 1)
	inferred, err := t.infer(inputs, bound)
	if err != nil {
		return nil
	}
	return inferred.Values()
}

// spread gives the outputs of a node with a batched input their layout.
func (t *tape) spread(n *onnx.Node) {
	l, err := t.layoutAfter(n)
	for _, out := range n.Outputs {
		if out == "" {
			continue
		}
		t.batched[out] = true
		v, ok := t.values[out]
		switch {
		case err != nil:
			t.mixed[out] = err
		case !ok || l.axis >= v.rank() || v.shape[l.axis] != l.before*t.n*l.after:
			t.mixed[out] = fmt.Errorf("%s: output %q loses the batch axis: %w", describe(n), out, ErrMixesExamples)
		default:
			t.layouts[out] = l
			if later, ok := t.grown[out].Static(); ok && !t.alone && later[l.axis] != l.before*(t.n+1)*l.after {
				t.mixed[out] = fmt.Errorf("%s: output %q takes something else for the batch axis: %w", describe(n), out, ErrMixesExamples)
			}
		}
	}
}

// layoutAfter applies the examples rule of the node's operator.
func (t *tape) layoutAfter(n *onnx.Node) (l batchAxis, err error) {
	defer func() { err = errors.Join(err, recoverFailure(recover())) }()
	defer nameNode(n)
	o := &operation{tape: t, node: n}
	for _, name := range n.Inputs {
		if err := t.mixed[name]; err != nil {
			return batchAxis{}, err
		}
		o.inputs = append(o.inputs, t.values[name])
		if name != "" && t.values[name].none() {
			failf("the shape of tensor %q is not known: %w", name, ErrMixesExamples)
		}
	}
	for _, name := range n.Outputs {
		o.outputs = append(o.outputs, t.values[name])
	}
	key := operatorKey(n)
	rule := rules[key].examples
	if rule == nil {
		rule = examplesElsewhere[key]
	}
	if rule == nil {
		failf("the table does not say how it treats the batch: %w", ErrMixesExamples)
	}
	if t.alone {
		return batchAxis{}, nil
	}
	return rule(o), nil
}

// repeats recognises what is made once per example without any of its data: a
// class token that is expanded over the batch, a first state of zeros. From
// there on it is data of the example.
func (t *tape) repeats(n *onnx.Node) {
	for _, out := range n.Outputs {
		v, ok := t.values[out]
		if !ok || out == "" {
			continue
		}
		if later, known := t.grown[out].Static(); known {
			for axis, d := range v.shape {
				if len(later) == v.rank() && later[axis] != d {
					t.batched[out], t.layouts[out] = true, batchAxis{axis, 1, 1}
					if d != t.n || later[axis] != t.n+1 {
						t.mixed[out] = fmt.Errorf("%s: output %q has a multiple of the batch: %w", describe(n), out, ErrMixesExamples)
					}
					break
				}
			}
		} else if n.OpType == "Expand" && v.rank() > 0 && v.shape[0] == t.n {
			if in := t.values[n.Inputs[0]]; in.rank() < v.rank() || in.shape[0] == 1 {
				t.batched[out], t.layouts[out] = true, batchAxis{0, 1, 1}
			}
		}
	}
}

// checkExamples refuses a node whose examples have met.
func (o *operation) checkExamples() {
	for _, v := range o.outputs {
		if err := o.mixed[v.name]; err != nil && !v.none() {
			failf("%w", err)
		}
	}
}

// eachExample differentiates a node outside the batch, such as the resizing of
// position embeddings, once for each example. Rules that can do it at once are
// lifted.
func (o *operation) eachExample(r rule) {
	bounded("examples, one after the other", o.n)
	parts := map[int][]value{}
	for e := range o.n {
		one := *o
		one.parts = parts
		one.gradients = make([]value, len(o.gradients))
		for i, d := range o.gradients {
			if !d.none() {
				one.gradients[i] = o.reshape(o.slice(d, []int64{0}, []int64{e}, []int64{e + 1}, []int64{1}), o.outputs[i].shape...)
			}
		}
		r.backward(&one)
	}
	for i := range o.inputs {
		if list := parts[i]; len(list) > 0 {
			for e, d := range list {
				list[e] = o.reshape(d, append([]int64{1}, d.shape...)...)
			}
			o.give(i, o.concat(0, list...))
		}
	}
}

// toFront splits the examples off: [N, v…] with before·after left on the axis.
func (o *operation) toFront(v value, l batchAxis) value {
	apart := slices.Concat(v.shape[:l.axis], []int64{l.before, o.n, l.after}, v.shape[l.axis+1:])
	front := []int64{int64(l.axis + 1)}
	for i := range apart {
		if i != l.axis+1 {
			front = append(front, int64(i))
		}
	}
	moved := o.transpose(o.reshape(v, apart...), front...)
	shape := slices.Concat([]int64{o.n}, v.shape)
	shape[l.axis+1] = l.before * l.after
	return o.reshape(moved, shape...)
}

// foldRows sums what belongs to one example of [before·N·after, …]: [N, …].
func (o *operation) foldRows(v value, l batchAxis) value {
	if l.plain() {
		return v
	}
	return o.sum(o.toFront(v, l), []int64{1}, false)
}

func (o *operation) refuseMixing(mixes bool) {
	if mixes {
		failf("acts on the batch axis: %w", ErrMixesExamples)
	}
}

// layout is that of input i; false if it is not batched.
func (o *operation) layout(i int) (batchAxis, bool) {
	l, ok := o.layouts[o.in(i).name]
	return l, ok && o.has(i)
}
