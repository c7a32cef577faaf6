package privacy

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// The names that are added to a graph.
const (
	targetsName   = "privacy/targets" // [N, classes], a distribution of each example
	eachName      = "privacy/each"    // [N] cross-entropy
	lossName      = "privacy/loss"    // its mean
	mismatchName  = "privacy/mismatch"
	imprintedName = "privacy/imprinted"
	observedName  = "privacy/observed/"
	inverseName   = "privacy/inverse-norm"
)

// LeakOptions say what of a graph is differentiated.
type LeakOptions struct {
	Input, Logits string   // float [N, …] and [N, classes] or, of two classes, [N, 1]
	Weights       []string // initializers whose gradients leave the hospital, in order
	Batch         int      // examples of an update
}

// Leak computes what leaves a hospital: the gradients of a batch. It is for one
// goroutine at a time.
type Leak struct {
	options LeakOptions
	loss    *onnx.Model // the model with its loss
	shape   []int64     // of one example
	classes int
	dims    [][]int64 // of the weights

	whole, each engine.Session // of the mean loss, and of every example's own
	of, ofEach  []string       // outputs that hold the gradients
}

// NewLeak makes ready to compute gradients. It does not change m.
func NewLeak(m *onnx.Model, o LeakOptions) (*Leak, error) {
	l, err := newLeak(m, o)
	if err != nil {
		return nil, fmt.Errorf("privacy: the gradients of a model: %w", err)
	}
	return l, nil
}

func newLeak(m *onnx.Model, o LeakOptions) (*Leak, error) {
	if o.Batch < 1 || len(o.Weights) == 0 {
		return nil, fmt.Errorf("batches of %d, %d weights: %w", o.Batch, len(o.Weights), ErrAsk)
	}
	l := &Leak{options: o}
	var err error
	if l.loss, l.shape, l.classes, err = withLoss(m, o.Input, o.Logits); err != nil {
		return nil, err
	}
	for _, name := range o.Weights {
		w := l.loss.Graph.Initializer(name)
		if w == nil {
			return nil, fmt.Errorf("weight %q: %w: the model has none of that name", name, ErrAsk)
		}
		l.dims = append(l.dims, w.Dims)
	}
	g, err := autodiff.Gradient(l.loss, autodiff.Request{Loss: lossName, WithRespectTo: o.Weights, Batch: int64(o.Batch)})
	if err != nil {
		return nil, err
	}
	for _, name := range o.Weights {
		l.of = append(l.of, g.Of[name])
	}
	l.whole, err = engine.Open(g.Model, engine.Options{Threads: 1})
	return l, err
}

// withLoss appends the cross-entropy of each example and its mean to a copy of a
// graph, whose targets become an input.
func withLoss(m *onnx.Model, input, logits string) (*onnx.Model, []int64, int, error) {
	m = m.Clone()
	graph := m.Graph
	graph.Inputs = slices.DeleteFunc(graph.Inputs, func(v onnx.Value) bool { return graph.Initializer(v.Name) != nil })
	at := slices.IndexFunc(graph.Inputs, func(v onnx.Value) bool { return v.Name == input })
	if at < 0 || len(graph.Inputs) != 1 || len(graph.Inputs[0].Shape) < 2 {
		return nil, nil, 0, fmt.Errorf("input %q: %w: want the model's only input, examples first", input, ErrAsk)
	}
	var shape []int64
	for _, d := range graph.Inputs[0].Shape[1:] {
		if !d.Known() {
			return nil, nil, 0, fmt.Errorf("input %v: %w: want a model for examples of one size", graph.Inputs[0], ErrAsk)
		}
		shape = append(shape, d.Value)
	}
	batch := graph.Inputs[0].Shape[0]
	values, err := onnx.InferShapes(m, nil)
	if err != nil {
		return nil, nil, 0, err
	}
	z := values[logits]
	if len(z.Shape) != 2 || !z.Shape[1].Known() {
		return nil, nil, 0, fmt.Errorf("logits %q are %v: %w: want [N, classes]", logits, z, ErrAsk)
	}
	classes := int(z.Shape[1].Value)
	b := onnx.Extend(m)
	of := logits
	if classes == 1 { // the logit of class 1 of two
		zero := b.Op("Mul", []string{of, b.Weight("privacy/zero", []int64{1, 1}, []float32{0})})
		of, classes = b.Op("Concat", []string{zero, of}, onnx.IntAttribute("axis", 1)), 2
	}
	targets := b.Input(targetsName, onnx.Float, batch, onnx.Dim{Value: int64(classes)})
	likely := b.Op("Mul", []string{b.Op("LogSoftmax", []string{of}, onnx.IntAttribute("axis", 1)), targets})
	sum := b.Op("ReduceSum", []string{likely, b.Ints("privacy/classes", 1)}, onnx.IntAttribute("keepdims", 0))
	b.Node(&onnx.Node{OpType: "Neg", Inputs: []string{sum}, Outputs: []string{eachName}}, 1)
	keep := onnx.IntAttribute("keepdims", 0)
	b.Node(&onnx.Node{OpType: "ReduceMean", Inputs: []string{eachName}, Outputs: []string{lossName}, Attributes: []onnx.Attribute{keep}}, 1)
	graph.Outputs = nil
	b.Output(eachName, onnx.Float, batch)
	b.Output(lossName, onnx.Float)
	_, err = b.Build()
	return m, shape, classes, err
}

// feed are the inputs of a batch.
func (l *Leak) feed(images [][]float32, labels []int) (map[string]engine.Tensor, error) {
	n := l.options.Batch
	if len(images) != n || len(labels) != n {
		return nil, fmt.Errorf("privacy: the gradients of %d images with %d labels: %w: want %d", len(images), len(labels), ErrAsk, n)
	}
	size := 1
	for _, d := range l.shape {
		size *= int(d)
	}
	x := make([]float32, 0, n*size)
	for i, image := range images {
		if len(image) != size {
			return nil, fmt.Errorf("privacy: image %d has %d numbers: %w: want %v", i, len(image), ErrAsk, l.shape)
		}
		x = append(x, image...)
	}
	y, err := l.targets(labels)
	if err != nil {
		return nil, err
	}
	return map[string]engine.Tensor{
		l.options.Input: engine.Float32(append([]int64{int64(n)}, l.shape...), x),
		targetsName:     engine.Float32([]int64{int64(n), int64(l.classes)}, y),
	}, nil
}

func (l *Leak) targets(labels []int) ([]float32, error) {
	y := make([]float32, len(labels)*l.classes)
	for i, c := range labels {
		if c < 0 || c >= l.classes {
			return nil, fmt.Errorf("privacy: label %d of image %d: %w: the model tells %d classes apart", c, i, ErrAsk, l.classes)
		}
		y[i*l.classes+c] = 1
	}
	return y, nil
}

// Gradients are those of the batch's mean loss, in the order of the weights.
func (l *Leak) Gradients(ctx context.Context, images [][]float32, labels []int) ([][]float32, error) {
	inputs, err := l.feed(images, labels)
	if err != nil {
		return nil, err
	}
	return l.run(ctx, l.whole, inputs, l.of)
}

func (l *Leak) run(ctx context.Context, session engine.Session, inputs map[string]engine.Tensor, of []string) ([][]float32, error) {
	given := map[string]engine.Tensor{}
	for _, in := range session.Inputs() {
		given[in.Name] = inputs[in.Name]
	}
	out, err := session.Run(ctx, given, of...)
	if err != nil {
		return nil, fmt.Errorf("privacy: the gradients of a batch: %w", err)
	}
	var all [][]float32
	for i, name := range of {
		v, err := engine.Values[float32](out[name])
		if err != nil {
			return nil, fmt.Errorf("privacy: the gradient of %s: %w", l.options.Weights[i], err)
		}
		all = append(all, v)
	}
	return all, nil
}

// Noisy are the sum of the examples' gradients, each clipped to a norm of clip, and
// Gaussian noise of sigma times that: DP-SGD's update (Abadi et al. 2016), by which
// an attack can be tried against it. The noise comes from a seed, so it protects
// nobody: it is for measuring.
func (l *Leak) Noisy(ctx context.Context, images [][]float32, labels []int, clip, sigma float64, rng *rand.Rand) ([][]float32, error) {
	if !(clip > 0) || !(sigma >= 0) {
		return nil, fmt.Errorf("privacy: a clipping norm of %v and noise of %v: %w: want more than 0, and 0 or more", clip, sigma, ErrAsk)
	}
	if l.each == nil {
		g, err := autodiff.Gradient(l.loss, autodiff.Request{Loss: eachName, WithRespectTo: l.options.Weights, Batch: int64(l.options.Batch), PerExample: true})
		if err != nil {
			return nil, fmt.Errorf("privacy: every example's own gradient: %w", err)
		}
		for _, name := range l.options.Weights {
			l.ofEach = append(l.ofEach, g.Of[name])
		}
		if l.each, err = engine.Open(g.Model, engine.Options{Threads: 1}); err != nil {
			return nil, fmt.Errorf("privacy: every example's own gradient: %w", err)
		}
	}
	inputs, err := l.feed(images, labels)
	if err != nil {
		return nil, err
	}
	each, err := l.run(ctx, l.each, inputs, l.ofEach)
	if err != nil {
		return nil, err
	}
	out := make([][]float32, len(each))
	n := l.options.Batch
	for i := range n {
		norm := 0.0
		for _, g := range each {
			size := len(g) / n
			for _, v := range g[i*size : (i+1)*size] {
				norm += float64(v) * float64(v)
			}
		}
		factor := float32(min(1, clip/max(math.Sqrt(norm), 1e-30)))
		for w, g := range each {
			size := len(g) / n
			if out[w] == nil {
				out[w] = make([]float32, size)
			}
			for j, v := range g[i*size : (i+1)*size] {
				out[w][j] += factor * v
			}
		}
	}
	for _, g := range out {
		for j := range g {
			g[j] += float32(sigma * clip * rng.NormFloat64())
		}
	}
	return out, nil
}

// Close frees the sessions.
func (l *Leak) Close() error {
	err := l.whole.Close()
	if l.each != nil {
		if e := l.each.Close(); err == nil {
			err = e
		}
	}
	return err
}
