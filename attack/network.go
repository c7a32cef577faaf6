package attack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// NetworkOptions say how pixels become a graph's input and what its output
// means. The zero value suits a classifier of images 0..1 that returns logits.
type NetworkOptions struct {
	// Shape of an example in pixel space, such as [1, rows, columns]; nil is that
	// of the input. A grey image fills the three channels of a model that wants
	// three, so that a perturbation stays grey; with a Manifest, an image larger
	// than the input is brought to size as the package does it.
	Shape []int64
	// Manifest of a package, whose preparation becomes part of the graph.
	Manifest *model.Manifest
	// Mean and Std, of a graph without a manifest that wants normalised input:
	// one number, or one for each channel, in units of the pixel range.
	Mean, Std []float64
	// Low and High are the range of a pixel; both 0 mean 0 to 1.
	Low, High float64
	Output    string // output that holds the classes; empty: the manifest's, or the only one
	// Label, if not nil, asks about one output by itself: class 1 where it is
	// positive. For labels that do not exclude each other.
	Label *int
	// Bias is added to the logits, one for each class, to move the decision to an
	// operating point; nil: none.
	Bias []float64
	// Probabilities says that an output without a final Softmax or Sigmoid holds
	// probabilities.
	Probabilities bool
	Batch         int  // examples in one run; 0: by their size, at most 32
	Workers       int  // runs at a time; 0: one for each processor
	AnswersOnly   bool // for attacks without gradients, of a graph that may not have any
	Plain         bool // standard operators, also where the engine has kernels of its own
	// Watch names inner tensors, floats [N, …] of known size, whose values and
	// slopes [Network.AskInside] takes and gives.
	Watch []string
}

// Network is a Target made of a graph. It is safe for concurrent use.
type Network struct {
	*prepared
	about     Description
	batch     int  // examples in one run
	fixed     bool // the graph takes no other number
	each      bool // gradients of one example at a time, because the graph mixes them
	terms     int
	workers   int
	objective *onnx.Model

	mu        sync.Mutex
	answers   engine.Session         // logits, any number of examples unless fixed
	gradients map[int]*gradientGraph // by number of examples
	closed    bool
}

type gradientGraph struct {
	session engine.Session
	of      string // output that holds the gradient
}

var _ Target = (*Network)(nil)

// Open makes a target of a graph. It neither keeps nor changes m. Errors:
// ErrAsk, those of autodiff for a graph that cannot be differentiated, and the
// engine's.
func Open(m *onnx.Model, o NetworkOptions) (*Network, error) {
	n, err := open(m, o)
	if err != nil {
		return nil, fmt.Errorf("attack: preparing a target: %w", err)
	}
	return n, nil
}

func open(m *onnx.Model, o NetworkOptions) (*Network, error) {
	if o.Low == 0 && o.High == 0 {
		o.High = 1
	}
	if !(o.Low < o.High) || math.IsInf(o.High-o.Low, 0) {
		return nil, fmt.Errorf("pixels from %v to %v: %w: want a range", o.Low, o.High, ErrAsk)
	}
	if o.Batch < 0 || o.Workers < 0 {
		return nil, fmt.Errorf("batches of %d, %d workers: %w: want 0 or more", o.Batch, o.Workers, ErrAsk)
	}
	p, err := prepare(m, o)
	if err != nil {
		return nil, err
	}
	n := &Network{prepared: p, gradients: map[int]*gradientGraph{}, workers: o.Workers,
		about: Description{Shape: p.shape, Classes: p.classes, Low: o.Low, High: o.High}}
	if n.batch = o.Batch; n.batch == 0 {
		n.batch = max(1, min(32, 1<<19/n.about.Size()))
	}
	if p.batch.Known() {
		n.batch, n.fixed = int(p.batch.Value), true
	}
	if n.workers == 0 {
		n.workers = runtime.GOMAXPROCS(0)
	}
	if !o.Plain {
		n.terms = engine.KernelTerms()
	}
	if n.objective, err = p.withObjective(); err != nil {
		return nil, err
	}
	if n.answers, err = engine.Open(p.model, engine.Options{Threads: 1}); err != nil {
		return nil, err
	}
	if o.AnswersOnly {
		return n, nil
	}
	// What cannot be differentiated is said now, and not after an hour.
	if _, err := n.gradient(n.atATime(n.batch)); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Describe implements Target.
func (n *Network) Describe() Description { return n.about }

// Notes say how the logits were found, for people.
func (n *Network) Notes() []string { return slices.Clone(n.notes) }

// atATime is the number of examples of one gradient run for count examples: a
// power of two, so that few graphs serve any number.
func (n *Network) atATime(count int) int {
	switch {
	case n.fixed:
		return n.batch
	case n.each:
		return 1
	}
	size := 1
	for size < count && size < n.batch {
		size *= 2
	}
	return min(size, n.batch)
}

// gradient returns the graph for a number of examples, which it builds once.
func (n *Network) gradient(size int) (*gradientGraph, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, engine.ErrClosed
	}
	if g := n.gradients[size]; g != nil {
		return g, nil
	}
	request := autodiff.Request{Loss: objectiveName, WithRespectTo: []string{n.input}, Batch: int64(size),
		Keep: n.kept(), PerExample: size > 1, Kernels: n.terms}
	gradients, err := autodiff.Gradient(n.objective, request)
	if errors.Is(err, autodiff.ErrMixesExamples) && !n.fixed {
		n.each = true
		n.notes = append(n.notes, "the graph mixes the examples of a batch, which are therefore run one at a time")
		size, request.Batch, request.PerExample = 1, 1, false
		gradients, err = autodiff.Gradient(n.objective, request)
	}
	if err != nil {
		return nil, err
	}
	session, err := engine.Open(gradients.Model, engine.Options{Threads: 1})
	if err != nil {
		return nil, err
	}
	n.gradients[size] = &gradientGraph{session, gradients.Of[n.input]}
	return n.gradients[size], nil
}

// Ask implements Target. A network has no guards and imitates nothing.
func (n *Network) Ask(ctx context.Context, pixels []float32, o *Objective) (Answer, error) {
	a, _, err := n.AskInside(ctx, pixels, o, nil)
	return a, err
}

// AskInside is Ask that also returns the values of the tensors of
// NetworkOptions.Watch, each [n, its size], and adds Σ ⟨slopes, tensor⟩ to the
// objective; nil slopes are zero.
func (n *Network) AskInside(ctx context.Context, pixels []float32, o *Objective, slopes [][]float32) (Answer, [][]float32, error) {
	count, err := checkAsk(n.about, pixels, o)
	if err != nil {
		return Answer{}, nil, fmt.Errorf("attack: asking a model: %w", err)
	}
	if slopes != nil && (o == nil || len(slopes) != len(n.watched)) {
		return Answer{}, nil, fmt.Errorf("attack: asking a model: slopes by %d inner tensors: %w: want %d, with an objective", len(slopes), ErrAsk, len(n.watched))
	}
	for k := range slopes {
		if len(slopes[k]) != count*n.watched[k].size {
			return Answer{}, nil, fmt.Errorf("attack: asking a model: %d slopes by %q: %w: want %d for each example", len(slopes[k]), n.watched[k].name, ErrAsk, n.watched[k].size)
		}
	}
	inside := make([][]float32, len(n.watched))
	for k, w := range n.watched {
		inside[k] = make([]float32, count*w.size)
	}
	a := Answer{Logits: make([]float32, count*n.classes)}
	size := n.batch
	if n.each {
		size = 1
	}
	if o != nil {
		a.Gradient = make([]float32, len(pixels))
		size = n.atATime(count)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	runs := (count + size - 1) / size
	work := make(chan int, runs)
	for i := range runs {
		work <- i * size
	}
	close(work)
	var running sync.WaitGroup
	for range min(n.workers, runs) {
		running.Go(func() {
			for from := range work {
				if ctx.Err() != nil {
					return
				}
				if err := n.run(ctx, pixels, o, slopes, &a, inside, from, min(from+size, count), size); err != nil {
					stop(err)
					return
				}
			}
		})
	}
	running.Wait()
	if err := context.Cause(ctx); err != nil {
		return Answer{}, nil, fmt.Errorf("attack: asking a model: %w", err)
	}
	for i, v := range a.Logits {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return Answer{}, nil, fmt.Errorf("attack: asking a model: logit %d of an example is %v: nothing can be said of such a model", i%n.classes, v)
		}
	}
	for _, v := range a.Gradient {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return Answer{}, nil, fmt.Errorf("attack: asking a model: a gradient is %v: nothing can be said of such a model", v)
		}
	}
	return a, inside, nil
}

// run asks about the examples from first to last in one run of size examples.
// What is missing is filled up with the first.
func (n *Network) run(ctx context.Context, pixels []float32, o *Objective, slopes [][]float32, a *Answer, inside [][]float32, first, last, size int) error {
	each, classes := n.about.Size(), n.classes
	full := size
	if o == nil && !n.fixed {
		full = last - first
	}
	rows := fill(pixels, first, last, full, each)
	shape := append([]int64{int64(full)}, n.shape...)
	inputs := map[string]engine.Tensor{n.input: engine.Float32(shape, rows)}
	session := n.answers
	var g *gradientGraph
	if o != nil {
		var err error
		if g, err = n.gradient(full); err != nil {
			return err
		}
		session = g.session
		factors := o.LogSumExp
		if factors == nil {
			factors = make([]float32, last)
		}
		inputs[weightsName] = engine.Float32([]int64{int64(full), int64(classes)}, fill(o.Weights, first, last, full, classes))
		without := make([]float32, full*classes)
		for i := first; i < last && o.Without != nil; i++ {
			if c := o.Without[i]; c >= 0 {
				without[(i-first)*classes+c] = -1e30
			}
		}
		inputs[withoutName] = engine.Float32([]int64{int64(full), int64(classes)}, without)
		inputs[logSumExpName] = engine.Float32([]int64{int64(full), 1}, fill(factors, first, last, full, 1))
		for k, w := range n.watched {
			by := make([]float32, full*w.size)
			if slopes != nil {
				by = fill(slopes[k], first, last, full, w.size)
			}
			inputs[slopeName(k)] = engine.Float32([]int64{int64(full), int64(w.size)}, by)
		}
	}
	out, err := session.Run(ctx, inputs)
	if err != nil {
		return err
	}
	logits, err := engine.Values[float32](out[logitsName])
	if err != nil {
		return err
	}
	if len(logits) != full*classes {
		return fmt.Errorf("%d logits for %d examples of %d classes: %w", len(logits), full, classes, ErrAsk)
	}
	copy(a.Logits[first*classes:last*classes], logits)
	for k, w := range n.watched {
		values, err := engine.Values[float32](out[watchName(k)])
		if err != nil {
			return err
		}
		if len(values) != full*w.size {
			return fmt.Errorf("%d values of %q for %d examples of %d: %w", len(values), w.name, full, w.size, ErrAsk)
		}
		copy(inside[k][first*w.size:last*w.size], values)
	}
	if g == nil {
		return nil
	}
	gradient, err := engine.Values[float32](out[g.of])
	if err != nil {
		return err
	}
	copy(a.Gradient[first*each:last*each], gradient)
	return nil
}

// fill returns rows first to last of a matrix, in place where that is all that
// is wanted, else followed by copies of the first.
func fill(from []float32, first, last, full, width int) []float32 {
	rows := from[first*width : last*width]
	if last-first == full {
		return rows
	}
	out := make([]float32, 0, full*width)
	out = append(out, rows...)
	for len(out) < full*width {
		out = append(out, rows[:width]...)
	}
	return out
}

// Close frees the graphs.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	var err error
	if n.answers != nil {
		err = n.answers.Close()
	}
	for _, size := range slices.Sorted(maps.Keys(n.gradients)) {
		err = errors.Join(err, n.gradients[size].session.Close())
	}
	return err
}
