package guard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// ErrOtherModel says that a statistics file was fitted to another model than the
// one it is used with.
var ErrOtherModel = errors.New("the guards' statistics belong to another model")

var errNotFinite = errors.New("the model's computation gives values that are not numbers")

// Options says with which model statistics are used.
type Options struct {
	Subject vigie.ModelDigest // the package without its statistics; must be the one that they name
	Threads int               // of the engine; 0 is its default
	Also    []string          // further tensors of the graph that Look.Also takes from the same run
}

// Guard is a model with its guards, ready to run. It is safe for concurrent use.
type Guard struct {
	statistics *Statistics
	network    Network
	geometry   geometry
	session    engine.Session
	slope      *slope // of one image; nil where the model has no gradient
	labels     int
	fixed      int64 // images that the graph insists on in a run; 0 is any number
	also       []string
}

// Open makes the guards of a model ready. ErrOtherModel: the statistics were
// fitted to another package, or the graph lacks what they were fitted on.
func Open(m *onnx.Model, s *Statistics, o Options) (*Guard, error) {
	if s.Subject != o.Subject {
		return nil, fmt.Errorf("guard: opening the guards of %s: %w: they were fitted to %s; fit them again with vigie model fit", o.Subject, ErrOtherModel, s.Subject)
	}
	n := s.network()
	n.Model = m
	g, err := open(n, s.Taps, o.Threads, o.Also...)
	if err != nil {
		return nil, fmt.Errorf("guard: opening the guards of %s: %w", o.Subject, err)
	}
	g.statistics = s
	if g.labels != s.Labels {
		return nil, errors.Join(fmt.Errorf("guard: opening the guards of %s: %w: %d labels, the statistics have %d", o.Subject, ErrOtherModel, g.labels, s.Labels), g.Close())
	}
	if s.Differentiable {
		if g.slope, err = openSlope(&g.network, g.labels, int(max(1, g.fixed)), o.Threads); err == nil && g.slope.batch != 1 {
			err = errors.Join(fmt.Errorf("%w: the graph takes %d images at once", ErrOtherModel, g.slope.batch), g.slope.close())
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("guard: opening the guards of %s: its gradient: %w", o.Subject, err), g.session.Close())
		}
	}
	return g, nil
}

// open prepares the graph with its taps, without statistics.
func open(n Network, taps []tap, threads int, also ...string) (*Guard, error) {
	g := &Guard{network: n, also: also}
	var err error
	if g.geometry, err = n.geometry(); err != nil {
		return nil, err
	}
	if n.Activation != Softmax && n.Activation != Sigmoid && n.Activation != None {
		return nil, fmt.Errorf("activation %q: want %s, %s or %s", n.Activation, Softmax, Sigmoid, None)
	}
	in := slices.IndexFunc(n.Model.Graph.Inputs, func(v onnx.Value) bool { return v.Name == n.Input })
	if in < 0 {
		return nil, fmt.Errorf("input %q: %w: the graph has none of that name", n.Input, ErrOtherModel)
	}
	declared := n.Model.Graph.Inputs[in]
	if declared.Type != onnx.Float || len(declared.Shape) != 4 {
		return nil, fmt.Errorf("input %v: %w: want float[N, three dimensions]", declared, ErrInput)
	}
	for i, d := range declared.Shape[1:] {
		if d.Known() && d.Value != n.Shape[i] {
			return nil, fmt.Errorf("input %v: %w: the images are of shape %v", declared, ErrOtherModel, n.Shape)
		}
	}
	if d := declared.Shape[0]; d.Known() {
		g.fixed = d.Value
	}
	m, err := appendTaps(n.Model, n.Output, taps)
	if err == nil && len(also) > 0 {
		m, err = addOutputs(m, also)
	}
	if err != nil {
		return nil, err
	}
	out := m.Graph.Outputs[0]
	if len(out.Shape) == 2 && out.Shape[1].Known() {
		g.labels = int(out.Shape[1].Value)
	} else {
		inferred, err := onnx.InferShapes(m, nil)
		if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
			return nil, err
		}
		if v := inferred[n.Output]; len(v.Shape) == 2 && v.Shape[1].Known() {
			g.labels = int(v.Shape[1].Value)
		}
	}
	if out.Type != onnx.Float || g.labels < 1 || g.labels > 4096 {
		return nil, fmt.Errorf("output %v: %w: want float[N, labels]", out, ErrInput)
	}
	g.session, err = engine.Open(m, engine.Options{Threads: threads})
	return g, err
}

// Close frees the engine.
func (g *Guard) Close() error { return errors.Join(g.session.Close(), g.slope.close()) }

// Look is one image as the model saw it, not yet judged.
type Look struct {
	// Output is the model's answer, one number a label: the same that the graph
	// gives without guards.
	Output []float32
	// Also holds the tensors that Options.Also names, in that order.
	Also [][]float32

	values []float32
	output []float64
	class  int
	layers [][]float64
	plane  plane
	pixels pixels
}

// Run runs the model once on one image, [1, …] or […], and takes from the same
// run what the guards need. ErrInput: another shape, or values that are not
// numbers.
func (g *Guard) Run(ctx context.Context, input engine.Tensor) (*Look, error) {
	values, err := engine.Values[float32](input)
	if err != nil {
		return nil, fmt.Errorf("guard: running the model: %w: %w", ErrInput, err)
	}
	if want := append([]int64{1}, g.network.Shape...); !slices.Equal(input.Shape, want) && !slices.Equal(input.Shape, want[1:]) {
		return nil, fmt.Errorf("guard: running the model: an input of shape %v: %w: want %v", input.Shape, ErrInput, want)
	}
	looks, err := g.looks(ctx, [][]float32{values})
	if err != nil {
		return nil, fmt.Errorf("guard: running the model: %w", err)
	}
	return looks[0], nil
}

// run runs images in batches that the graph takes and hands each output's rows
// to visit.
func (g *Guard) run(ctx context.Context, images [][]float32, visit func(i int, row func(output string) ([]float32, error)) error, outputs ...string) error {
	const most = 16
	size := min(most, len(images))
	if g.fixed > 0 {
		size = int(g.fixed)
	}
	per := g.geometry.elements()
	for from := 0; from < len(images); from += size {
		count := min(size, len(images)-from)
		rows := count
		if g.fixed > 0 {
			rows = size
		}
		batch := images[from]
		if rows > 1 {
			batch = make([]float32, rows*per)
			for i := range count {
				copy(batch[i*per:(i+1)*per], images[from+i])
			}
			for i := count; i < rows; i++ {
				copy(batch[i*per:(i+1)*per], images[from])
			}
		}
		out, err := g.session.Run(ctx, map[string]engine.Tensor{g.network.Input: engine.Float32(append([]int64{int64(rows)}, g.network.Shape...), batch)}, outputs...)
		if err != nil {
			return err
		}
		for i := range count {
			row := func(name string) ([]float32, error) {
				all, err := engine.Values[float32](out[name])
				if err != nil || len(all)%rows != 0 || len(all) == 0 {
					return nil, fmt.Errorf("output %q is %v: %w: want float[%d, …]", name, out[name], ErrInput, rows)
				}
				each := len(all) / rows
				return all[i*each : (i+1)*each], nil
			}
			if err := visit(from+i, row); err != nil {
				return err
			}
		}
	}
	return nil
}

// looks runs images and measures them.
func (g *Guard) looks(ctx context.Context, images [][]float32) ([]*Look, error) {
	for _, values := range images {
		if err := g.geometry.check(values); err != nil {
			return nil, err
		}
	}
	taps := 0
	for slices.ContainsFunc(g.session.Outputs(), func(v onnx.Value) bool { return v.Name == pooledName(taps) }) {
		taps++
	}
	looks := make([]*Look, len(images))
	err := g.run(ctx, images, func(i int, row func(string) ([]float32, error)) error {
		output, err := row(g.network.Output)
		if err != nil {
			return err
		}
		l := &Look{Output: slices.Clone(output), values: images[i], layers: make([][]float64, taps)}
		for k := range taps {
			pooled, err := row(pooledName(k))
			if err != nil {
				return err
			}
			l.layers[k] = fold(pooled)
		}
		for _, name := range g.also {
			more, err := row(name)
			if err != nil {
				return err
			}
			l.Also = append(l.Also, slices.Clone(more))
		}
		looks[i] = l
		return l.read(&g.network, g.labels)
	})
	return looks, err
}

// read checks the output and finds the leading answer.
func (l *Look) read(n *Network, labels int) error {
	if len(l.Output) != labels {
		return fmt.Errorf("%d outputs for %d labels: %w", len(l.Output), labels, ErrInput)
	}
	l.output = make([]float64, labels)
	for i, v := range l.Output {
		l.output[i] = float64(v)
	}
	l.class = n.leading(l.output)
	return nil
}

// answers returns the outputs of images.
func (g *Guard) answers(ctx context.Context, images [][]float32) ([][]float64, error) {
	out := make([][]float64, len(images))
	err := g.run(ctx, images, func(i int, row func(string) ([]float32, error)) error {
		values, err := row(g.network.Output)
		for _, v := range values {
			out[i] = append(out[i], float64(v))
		}
		if err == nil && len(out[i]) != g.labels {
			err = fmt.Errorf("%d outputs for %d labels: %w", len(out[i]), g.labels, ErrInput)
		}
		return err
	}, g.network.Output)
	return out, err
}

// finite refuses what nothing can be said about.
func (l *Look) finite() error {
	for _, row := range append([][]float64{l.output}, l.layers...) {
		for _, v := range row {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return errNotFinite
			}
		}
	}
	return nil
}

// Judge asks the guards about an image that was run: one result a guard that was
// asked, in the order of the table, and the combination last. Only the
// combination raises an alarm: its reason is that of the guard that found most.
// An error, of which a panic inside is one, means that nothing can be said, and
// the image must go to a person.
func (g *Guard) Judge(ctx context.Context, look *Look) (results []vigie.GuardResult, err error) {
	defer func() {
		if cause := recover(); cause != nil { // the value may quote the input
			results, err = nil, fmt.Errorf("guard: judging an image: contained panic (%T)", cause)
		}
	}()
	s, second, err := g.measure(ctx, look, false)
	if err != nil {
		return nil, fmt.Errorf("guard: judging an image: %w", err)
	}
	return g.statistics.results(s, look.class, second), nil
}

// measure scores one image. everything asks the second guards whatever the first
// say.
func (g *Guard) measure(ctx context.Context, look *Look, everything bool) (s scores, second bool, err error) {
	if err := look.finite(); err != nil {
		return nil, false, err
	}
	look.plane = g.geometry.plane(look.values)
	look.pixels = look.plane.measure()
	s = unasked()
	g.statistics.models.first(look, s)
	first, _ := g.statistics.surprise(s, false)
	second = first > g.statistics.Escalate
	if second || everything {
		if err := g.secondLook(ctx, look, s); err != nil {
			return nil, false, err
		}
	}
	return s, second, nil
}
