// Package autodiff turns an ONNX graph into its gradient graph.
//
// The result is again an ONNX model of ordinary operators (and, for float
// tensors, com.microsoft FusedMatMul), so that the same runtime that serves a
// model also trains, attacks and explains it, without the model's Python
// source:
//
//	loss, err := autodiff.SoftmaxCrossEntropy(model, "logits")
//	gradients, err := autodiff.Gradient(loss.Model, autodiff.Request{
//		Loss:          loss.Total,
//		WithRespectTo: []string{"image"},
//		Batch:         1,
//	})
//	session, err := engine.Open(gradients.Model, engine.Options{})
//	out, err := session.Run(ctx, inputs, gradients.Of["image"])
//
// # How it works
//
// It is reverse-mode differentiation at the level of the graph: Gradient walks
// the nodes backwards and each node's rule (one table in rules.go, one file per
// operator family) appends the operators that carry a gradient from the node's
// outputs to its inputs. What is a composition of simpler operators, such as a
// recurrent cell or an operator that an optimizer fused, is lowered to them
// first (lower.go). Shapes must be static, because convolution gradients are
// lowered to slices and matrix products; Request.Batch binds the batch
// dimension, so a gradient graph is built per batch size, and
// Request.Dimensions binds others by name.
//
// What is differentiated is the sum of the loss tensor's elements. At points
// where an operator has no derivative the rule picks a subgradient: 0 at the
// kink of Relu and Abs, the mean over the ties of a maximum.
//
// # Gradients per example
//
// Request.PerExample gives every example's own gradient, and [Clip] their
// clipped sum for DP-SGD. The batch may be anywhere in a tensor, and share an
// axis with something else, as exporters of attention write it: it is followed
// from the inputs through every node (example.go). Where examples meet, as in
// batch statistics, the request fails with [ErrMixesExamples].
//
// # What is supported
//
// [Operators] is the table, docs/operators.md shows it, [Inspect] says what
// holds of one model and at which cost. An operator without a gradient is an
// error only where a gradient would have to pass it; the error wraps
// [ErrNotDifferentiable], names the node, and says what to do.
//
// The package runs nothing and reads no files. It must not know about engines,
// training or medicine.
package autodiff

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// ErrNotDifferentiable is returned when an operator on a path from the loss to
// something asked for has no rule. The error names the node and the operator.
var ErrNotDifferentiable = errors.New("operator is not differentiable here")

// ErrMixesExamples is returned for a per-example request when a node lets one
// example of the batch influence another (batch statistics, a reduction or a
// product over the batch axis), so that gradients per example do not exist.
var ErrMixesExamples = errors.New("operator mixes the examples of a batch")

// ErrIndependent is returned when the loss does not depend on a tensor whose
// gradient was asked for.
var ErrIndependent = errors.New("the loss does not depend on this tensor")

// Request says what to differentiate.
type Request struct {
	// Loss names the tensor whose elements' sum is differentiated. For
	// PerExample it holds one number per example: shape [N] or [N, 1, …].
	Loss string
	// WithRespectTo names weights (initializers), graph inputs or inner tensors
	// of floating-point type.
	WithRespectTo []string
	// PerExample asks for the gradient of every example's loss on its own: the
	// gradient of a weight of shape S has shape [N, S…]. Tensors that already
	// carry the batch axis (inputs, activations) keep their shape.
	PerExample bool
	// Batch is bound to the first dimension of every graph input where that is
	// not a number. 0 leaves the model as it is, which must then be static.
	Batch int64
	// Dimensions gives sizes to the inputs' other named dimensions, such as
	// {"sequence": 128}. What is still unknown then is an error.
	Dimensions map[string]int64
	// Keep names tensors of the model to return beside the gradients: the loss,
	// logits, activations.
	Keep []string
	// WeightsAsInputs turns the initializers named in WithRespectTo into graph
	// inputs, so that a trainer can feed new weights at every step.
	WeightsAsInputs bool
	// Kernels asks for the engine's own operators (engine.KernelTerms says
	// which it has) where there are some: 1 computes in float32, 2 or 3 is the
	// number of bfloat16 terms that they split a float32 into. 3 is as exact as
	// float32; 2 is faster and errs by about 4·10⁻⁶ of a sum's norm. 0 is
	// standard operators only.
	Kernels int
	// Checkpoint computes parts of the model a second time for the gradient
	// instead of keeping what they computed first: less memory for more time,
	// the same values. See checkpoint.go.
	Checkpoint bool
}

// Gradients is a graph that computes gradients.
type Gradients struct {
	// Model has the used inputs of the original (with Batch bound), those of
	// WeightsAsInputs after them, and as outputs Request.Keep in order, then
	// the gradients in the order of WithRespectTo.
	Model *onnx.Model
	// Of gives the output of Model that holds the gradient for each name of
	// WithRespectTo.
	Of map[string]string
}

// Gradient builds the graph described by r. The model is not changed.
func Gradient(m *onnx.Model, r Request) (g *Gradients, err error) {
	defer func() {
		if f := recoverFailure(recover()); f != nil {
			g, err = nil, fmt.Errorf("autodiff: differentiating %s: %w", r.Loss, f)
		}
	}()
	if len(r.WithRespectTo) == 0 {
		return nil, errors.New("autodiff: nothing to differentiate with respect to; name weights, inputs or inner tensors")
	}
	t := newTape(m, r)
	t.backward()
	return t.finish(), nil
}

// recoverFailure returns what a rule refused; any other panic goes on.
func recoverFailure(p any) error {
	if p == nil {
		return nil
	}
	f, ok := p.(failure)
	if !ok {
		panic(p)
	}
	return f.err
}

// tape is one differentiation: the model's tensors, and the gradients that
// have reached them so far.
type tape struct {
	emitter
	model    *onnx.Model
	graph    *onnx.Graph // of the model, with lowered nodes: lower.go
	version  int64       // of the default operator set that the model was written for
	request  Request
	inferred *onnx.Inference
	producer map[string]*onnx.Node     // node that makes each tensor
	inputs   []onnx.Value              // graph inputs with static shapes, initializers removed
	needs    map[string]bool           // lies between something asked for and anything else
	examples                           // where the batch is (PerExample only)
	adjoint  map[string][]value        // gradient contributions by tensor
	gated    map[string]int            // contributions that respect the Relu before them
	patterns map[*onnx.Node]*pattern   // by last node
	clip     *clipping                 // of a graph that clips (Clip only)
	origin   map[*onnx.Node]*onnx.Node // node whose gradient an emitted node belongs to (Checkpoint only)
}

func newTape(m *onnx.Model, r Request) *tape {
	version := max(m.Opsets[""], m.Opsets["ai.onnx"])
	t := &tape{
		emitter: emitter{
			opset: max(version, newestChange), used: map[string]bool{}, cache: map[string]value{},
			values: map[string]value{}, inits: map[string]*onnx.Tensor{},
		},
		model:    m,
		version:  version,
		request:  r,
		producer: map[string]*onnx.Node{},
		needs:    map[string]bool{},
		adjoint:  map[string][]value{},
		gated:    map[string]int{},
		patterns: map[*onnx.Node]*pattern{},
		origin:   map[*onnx.Node]*onnx.Node{},
	}
	if version < oldestOpset {
		failf("the model uses opset %d; convert it to %d or newer", version, oldestOpset)
	}
	if err := m.CheckWeights(); err != nil {
		failf("%w", err)
	}
	graph := *m.Graph
	graph.Nodes = slices.Clone(graph.Nodes)
	t.graph = &graph
	t.upgrade()
	t.bind()
	t.index()
	for _, name := range append([]string{r.Loss}, append(r.WithRespectTo, r.Keep...)...) {
		if _, ok := t.values[name]; !ok {
			failf("the model has no tensor %q with a known shape", name)
		}
	}
	t.mark()
	if r.PerExample {
		t.countExamples()
	}
	t.lower()
	t.mark()
	if t.request.PerExample {
		t.markBatched()
	}
	t.fuse()
	t.findPatterns()
	return t
}

// oldestOpset is where Slice and Pad take their bounds as inputs and axes have
// today's meaning; exporters have written nothing older since 2020.
const oldestOpset = 13

// index notes who makes each tensor, and every name that is taken.
func (t *tape) index() {
	for _, n := range t.graph.Nodes {
		t.used[n.Name] = true
		for _, out := range n.Outputs {
			t.used[out] = true
			t.producer[out] = n
		}
	}
}

// bind fixes the batch dimension and collects the shape of every tensor.
func (t *tape) bind() {
	for _, w := range t.graph.Initializers {
		t.inits[w.Name] = w
		t.used[w.Name] = true
	}
	inputs, bound := t.bindInputs(t.request.Batch)
	t.inputs = inputs
	for _, in := range t.graph.Inputs {
		t.used[in.Name] = true
	}
	for {
		inferred, err := t.infer(inputs, bound)
		if err != nil {
			failf("inferring shapes: %w", err)
		}
		t.inferred = inferred
		if !t.takeBranches() {
			break
		}
	}
	for name, v := range t.inferred.Values() {
		if s, ok := v.Static(); ok {
			t.values[name] = value{name, v.Type, s}
		}
	}
}

// bindInputs returns the graph's inputs, without initializers, with batch for
// a first dimension that is not a number, and what the dimensions' names stand
// for then.
func (t *tape) bindInputs(batch int64) ([]onnx.Value, map[string]int64) {
	var inputs []onnx.Value
	bound := maps.Clone(t.request.Dimensions)
	if bound == nil {
		bound = map[string]int64{}
	}
	for _, in := range t.graph.Inputs {
		if _, weight := t.inits[in.Name]; weight {
			continue
		}
		in.Shape = slices.Clone(in.Shape)
		for i, d := range in.Shape {
			switch {
			case d.Value >= 0:
				continue
			case i == 0 && batch > 0:
				in.Shape[0] = onnx.Dim{Value: batch}
				if d.Param != "" {
					bound[d.Param] = batch
				}
			case d.Param != "" && bound[d.Param] > 0:
				in.Shape[i] = onnx.Dim{Value: bound[d.Param]}
			default:
				failf("dimension %d of input %q is not known (%v); bind the first with Request.Batch, others that have a name with Request.Dimensions, or save the model with a fixed shape", i, in.Name, d)
			}
		}
		inputs = append(inputs, in)
	}
	return inputs, bound
}

// infer returns what is known of the graph's tensors with these inputs.
// Operators that the shape table lacks are left to the rules.
func (t *tape) infer(inputs []onnx.Value, bound map[string]int64) (*onnx.Inference, error) {
	graph := *t.graph
	graph.Inputs = inputs
	static := *t.model
	static.Graph = &graph
	static.Opsets = maps.Clone(t.model.Opsets)
	static.Opsets[""] = t.opset
	inferred, err := onnx.Infer(&static, bound)
	if errors.Is(err, onnx.ErrUnknownOperator) {
		err = nil
	}
	return inferred, err
}

// fold returns the elements of a small integer or boolean tensor that depends
// on nothing but constants and static shapes, as exporters' Shape ▸ Gather ▸
// Concat chains do.
func (t *tape) fold(name string) ([]int64, bool) {
	if v, ok := t.inferred.Ints(name); ok {
		return v, true
	}
	if w := t.inits[name]; w != nil { // written by a lowering
		v, err := w.Ints()
		return v, err == nil
	}
	return nil, false
}

// mark finds the tensors that gradients must reach: those asked for and all
// that depend on them. Gradient flows only into these.
func (t *tape) mark() {
	for _, name := range t.request.WithRespectTo {
		if v := t.values[name]; !v.float() {
			failf("tensor %q has element type %d; gradients exist for floating-point tensors only", name, v.typ)
		}
		t.needs[name] = true
	}
	for _, n := range t.graph.Nodes {
		if !slices.ContainsFunc(n.Inputs, func(in string) bool { return t.needs[in] }) {
			continue
		}
		if cutsGradient(n) {
			continue
		}
		for _, out := range n.Outputs {
			if v, ok := t.values[out]; out != "" && (!ok || v.float()) {
				t.needs[out] = true
			}
		}
	}
	if !t.needs[t.request.Loss] {
		failf("%q: %w", t.request.WithRespectTo[0], ErrIndependent)
	}
}

// backward visits the nodes in reverse and lets each rule pass its outputs'
// gradients on to its inputs.
func (t *tape) backward() {
	loss := t.values[t.request.Loss]
	if !loss.float() {
		failf("the loss has element type %d, not a floating-point type", loss.typ)
	}
	t.adjoint[loss.name] = []value{t.full(loss.typ, loss.shape, t.seed())}
	nodes := t.graph.Nodes
	for i := len(nodes) - 1; i >= 0; i-- {
		n := nodes[i]
		reached := slices.ContainsFunc(n.Outputs, func(out string) bool { return len(t.adjoint[out]) > 0 || t.clip.reached(out) })
		wanted := slices.ContainsFunc(n.Inputs, func(in string) bool { return t.needs[in] })
		if !reached || !wanted {
			continue
		}
		before := len(t.nodes)
		t.differentiate(n)
		if t.request.Checkpoint {
			for _, emitted := range t.nodes[before:] {
				t.origin[emitted] = n
			}
		}
	}
}

func (t *tape) differentiate(n *onnx.Node) {
	defer nameNode(n)
	r, err := ruleFor(n, t.version)
	if err != nil {
		failf("%w", err)
	}
	if p := t.patterns[n]; p != nil {
		n, r = p.standsFor, rule{backward: p.backward, lifted: false}
	}
	o := &operation{tape: t, node: n}
	for _, name := range n.Inputs {
		o.inputs = append(o.inputs, t.lookup(name))
	}
	for _, name := range n.Outputs {
		o.outputs = append(o.outputs, t.lookup(name))
	}
	if o.passSite(r) {
		return
	}
	for _, name := range n.Outputs {
		o.arrived = append(o.arrived, len(t.adjoint[name]))
		o.gradients = append(o.gradients, t.gradient(name))
	}
	if t.request.PerExample && !t.alone {
		o.checkExamples()
		if o.perExample(o.out(0)) && !r.lifted {
			o.eachExample(r)
			return
		}
	}
	if t.clip == nil || o.takeSites(r) {
		r.backward(o)
	}
}

// nameNode, deferred, lets the failure of a node's rule name the node.
func nameNode(n *onnx.Node) {
	if p := recover(); p != nil {
		switch f := p.(type) {
		case failure:
			p = failure{fmt.Errorf("%s: %w", describe(n), f.err)}
		case runtime.Error:
			// Rules trust what shape inference lets pass. A node that breaks its
			// operator's definition in a way that it overlooks must not take down
			// a service that looks at foreign models; FuzzGradient looks for these.
			p = failure{fmt.Errorf("%s: internal: the node does not follow its operator's definition: %w", describe(n), f)}
		}
		panic(p)
	}
}

func (t *tape) lookup(name string) value {
	if name == "" {
		return value{}
	}
	v, ok := t.values[name]
	if !ok {
		failf("the shape of tensor %q is not known", name)
	}
	return v
}

// gradient sums what has arrived at a tensor; the zero value if nothing has.
func (t *tape) gradient(name string) value {
	t.materialise(name)
	parts := t.adjoint[name]
	if len(parts) == 0 {
		return value{}
	}
	sum := t.total(parts)
	t.adjoint[name] = []value{sum}
	return sum
}

// answer is the gradient of a tensor that was asked for.
func (t *tape) answer(name string) value {
	d := t.gradient(name)
	if d.none() {
		failf("%q: %w", name, ErrIndependent)
	}
	if t.alone && !t.batched[name] {
		return t.reshape(d, append([]int64{1}, d.shape...)...)
	}
	return d
}

// finish gathers the outputs and drops everything that they do not need.
func (t *tape) finish() *Gradients {
	g := &Gradients{Of: map[string]string{}}
	var outputs []onnx.Value
	for _, name := range t.request.Keep {
		outputs = append(outputs, declare(name, t.values[name]))
	}
	for _, name := range t.request.WithRespectTo {
		d := t.answer(name)
		if _, done := g.Of[name]; done {
			failf("%q is asked for twice", name)
		}
		out := t.output("gradient/"+name, d)
		g.Of[name] = out.Name
		outputs = append(outputs, out)
	}
	g.Model = t.assemble(outputs)
	return g
}

// output gives a value a name of its own, as near to the wanted one as is free.
func (t *tape) output(want string, v value) onnx.Value {
	name := want
	if t.used[name] {
		name = t.fresh(want)
	}
	t.used[name] = true
	t.values[name] = value{name, v.typ, v.shape}
	t.nodes = append(t.nodes, &onnx.Node{Name: name, OpType: "Identity", Inputs: []string{v.name}, Outputs: []string{name}})
	return declare(name, v)
}

// assemble makes the model of the nodes that the outputs need. Its inputs are
// those of the original that are used, those of WeightsAsInputs, then more.
func (t *tape) assemble(outputs []onnx.Value, more ...onnx.Value) *onnx.Model {
	graph := &onnx.Graph{Name: t.model.Graph.Name + " gradient", Outputs: outputs}
	nodes, used := prune(append(slices.Clone(t.graph.Nodes), t.nodes...), graph.Outputs)
	if t.request.Kernels > 0 {
		nodes = t.kernelProducts(nodes)
	}
	graph.Nodes = t.withoutCopies(nodes, outputs)
	if t.request.Checkpoint {
		t.checkpoint(graph, used)
	}
	asInput := map[string]bool{}
	if t.request.WeightsAsInputs {
		for _, name := range t.request.WithRespectTo {
			asInput[name] = t.inits[name] != nil
		}
	}
	for _, in := range t.inputs {
		if used[in.Name] {
			graph.Inputs = append(graph.Inputs, in)
		}
	}
	for _, name := range t.request.WithRespectTo {
		if asInput[name] && used[name] {
			graph.Inputs = append(graph.Inputs, declare(name, t.values[name]))
		}
	}
	graph.Inputs = append(graph.Inputs, more...)
	for _, w := range append(slices.Clone(t.graph.Initializers), t.constants...) {
		if used[w.Name] && !asInput[w.Name] {
			graph.Initializers = append(graph.Initializers, w)
		}
	}
	m := &onnx.Model{
		IRVersion:    max(t.model.IRVersion, 8), // from 4 on, weights need not be inputs
		Opsets:       maps.Clone(t.model.Opsets),
		ProducerName: "vigie autodiff",
		Graph:        graph,
	}
	for _, domain := range []string{"", "ai.onnx"} {
		if _, ok := m.Opsets[domain]; ok {
			m.Opsets[domain] = t.opset
		}
	}
	m.Opsets[""] = t.opset // what is emitted has no domain
	if t.fused {
		m.Opsets[fusedDomain] = 1
	}
	if t.kernels {
		m.Opsets[kernelDomain] = 1
	}
	return m
}

func declare(name string, v value) onnx.Value {
	out := onnx.Value{Name: name, Type: v.typ, Shape: make([]onnx.Dim, len(v.shape))}
	for i, d := range v.shape {
		out.Shape[i] = onnx.Dim{Value: d}
	}
	return out
}

// prune keeps the nodes that the outputs depend on and says which tensors are used.
func prune(nodes []*onnx.Node, outputs []onnx.Value) ([]*onnx.Node, map[string]bool) {
	used := map[string]bool{}
	for _, out := range outputs {
		used[out.Name] = true
	}
	keep := make([]bool, len(nodes))
	for i := len(nodes) - 1; i >= 0; i-- {
		if !slices.ContainsFunc(nodes[i].Outputs, func(out string) bool { return used[out] }) {
			continue
		}
		keep[i] = true
		reads(nodes[i], func(name string) { used[name] = true })
	}
	var kept []*onnx.Node
	for i, n := range nodes {
		if keep[i] {
			kept = append(kept, n)
		}
	}
	return kept, used
}

// reads reports every tensor a node reads, also from inside its subgraphs.
func reads(n *onnx.Node, visit func(string)) {
	for _, in := range n.Inputs {
		if in != "" {
			visit(in)
		}
	}
	for _, a := range n.Attributes {
		for _, sub := range append(slices.Clone(a.Graphs), a.Graph) {
			if sub == nil {
				continue
			}
			for _, inner := range sub.Nodes {
				reads(inner, visit)
			}
			for _, out := range sub.Outputs {
				visit(out.Name)
			}
		}
	}
}
