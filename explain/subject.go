package explain

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// subject is the model under explanation with a fixed shape of example: its
// answers, many at a time.
type subject struct {
	model   *onnx.Model // batch open or fixed, everything else fixed
	session engine.Session
	input   string
	logits  string
	output  onnx.Value
	layout  layout
	classes int
	score   Score
	batch   int  // examples in one run
	runs    int  // runs at once, each on one thread
	fixed   bool // the model takes no other number
	options Options
}

// openSubject prepares the model's own graph. It is asked many times: its threads
// compute a run each, which takes less of the processor than two that share one,
// and gives the same answer whatever their number.
func openSubject(m *onnx.Model, o Options) (*subject, error) {
	s, err := describeSubject(m, o)
	if err != nil {
		return nil, err
	}
	s.runs = or(o.Threads, min(2, runtime.NumCPU()))
	s.session, err = engine.Open(s.model, engine.Options{Threads: 1, Outputs: []string{s.logits}})
	return s, err
}

// describeSubject finds input and output and fixes the shapes, without opening
// a session.
func describeSubject(m *onnx.Model, o Options) (*subject, error) {
	if m == nil || m.Graph == nil {
		return nil, fmt.Errorf("a model without a graph: %w", onnx.ErrInvalid)
	}
	s := &subject{options: o, score: o.Score, logits: o.Logits}
	if s.score == "" {
		s.score = Logit
	}
	weights := map[string]bool{}
	for _, w := range m.Graph.Initializers {
		weights[w.Name] = true
	}
	inputs := slices.DeleteFunc(slices.Clone(m.Graph.Inputs), func(v onnx.Value) bool { return weights[v.Name] })
	if len(inputs) != 1 {
		return nil, fmt.Errorf("the model has %d inputs: %w: a model with one input is wanted; make the others constants", len(inputs), ErrInput)
	}
	in := inputs[0]
	s.input = in.Name
	if o.Input != "" && o.Input != in.Name {
		return nil, fmt.Errorf("input %q: %w: it has %q", o.Input, ErrInput, in.Name)
	}
	if in.Type != onnx.Float {
		return nil, fmt.Errorf("input %q is %v: %w: want float", in.Name, in, ErrInput)
	}
	if s.logits == "" {
		if len(m.Graph.Outputs) != 1 {
			return nil, fmt.Errorf("the model has %d outputs: %w: name the logits in Options.Logits", len(m.Graph.Outputs), ErrInput)
		}
		s.logits = m.Graph.Outputs[0].Name
	}
	example, err := exampleShape(in, o.Shape)
	if err != nil {
		return nil, err
	}
	if s.layout, err = layoutOf(example, o.ChannelsLast); err != nil {
		return nil, fmt.Errorf("input %q is %v: %w", in.Name, in, err)
	}
	s.fixed = in.Shape[0].Known()
	s.batch = or(o.Batch, batchFor(s.layout.elements()))
	if s.fixed {
		s.batch = int(in.Shape[0].Value)
	}
	if s.batch < 1 || int64(s.batch) > maxRun/int64(s.layout.elements()) && s.batch > 1 {
		return nil, fmt.Errorf("%d examples of %v in one run: %w", s.batch, example, ErrInput)
	}
	if err := s.fix(m, in, example); err != nil {
		return nil, err
	}
	return s, nil
}

// maxRun bounds the elements of one run of the model: 1 GiB of floats.
const maxRun = 1 << 28

// batchFor is how many examples run together unless told otherwise: at most 32 and
// 128 thousand numbers, which bounds what activations and their gradients take.
func batchFor(elements int) int { return max(1, min(32, 1<<17/max(1, elements))) }

// exampleShape is the input's shape without the batch.
func exampleShape(in onnx.Value, given []int64) ([]int64, error) {
	if len(in.Shape) < 2 || len(in.Shape) > 4 {
		return nil, fmt.Errorf("input %q is %v: %w: want [N, features], [N, channels, length] or [N, channels, rows, columns]", in.Name, in, ErrInput)
	}
	if given != nil && len(given) != len(in.Shape)-1 {
		return nil, fmt.Errorf("Options.Shape %v for input %q, %v: %w", given, in.Name, in, ErrInput)
	}
	example := make([]int64, len(in.Shape)-1)
	total := int64(1)
	for i, d := range in.Shape[1:] {
		switch {
		case d.Known():
			example[i] = d.Value
		case given != nil:
			example[i] = given[i]
		default:
			return nil, fmt.Errorf("input %q is %v: %w: its size is open, give it in Options.Shape", in.Name, in, ErrInput)
		}
		if given != nil && given[i] != example[i] {
			return nil, fmt.Errorf("Options.Shape %v for input %q, %v: %w", given, in.Name, in, ErrInput)
		}
		if example[i] < 1 || example[i] > maxRun/total {
			return nil, fmt.Errorf("an example of %v: %w: want positive sizes of at most %d numbers", example, ErrInput, maxRun)
		}
		total *= example[i]
	}
	return example, nil
}

// fix binds the open dimensions of an example, and reads the output's shape.
func (s *subject) fix(m *onnx.Model, in onnx.Value, example []int64) error {
	graph := *m.Graph
	graph.Inputs = slices.Clone(graph.Inputs)
	sizes := map[string]int64{}
	at := slices.IndexFunc(graph.Inputs, func(v onnx.Value) bool { return v.Name == in.Name })
	shape := slices.Clone(in.Shape)
	for i, d := range shape[1:] {
		if d.Param != "" && d.Param != shape[0].Param {
			sizes[d.Param] = example[i]
		}
		shape[1+i] = onnx.Dim{Value: example[i]}
	}
	graph.Inputs[at].Shape = shape
	fixed := *m
	fixed.Graph = &graph
	values, err := onnx.InferShapes(&fixed, sizes)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		return err
	}
	graph.Outputs = slices.Clone(graph.Outputs)
	for i, v := range graph.Outputs {
		if found, ok := values[v.Name]; ok && found.Shape != nil {
			graph.Outputs[i].Shape = found.Shape
		}
		if v.Name == s.logits {
			s.output = graph.Outputs[i]
		}
	}
	z := s.output
	if z.Name == "" {
		return fmt.Errorf("output %q: %w: the model has no such output", s.logits, ErrInput)
	}
	if z.Type != onnx.Float || len(z.Shape) != 2 || !z.Shape[1].Known() || z.Shape[1].Value < 1 {
		return fmt.Errorf("output %q is %v: %w: want float[N, classes]", s.logits, z, ErrInput)
	}
	s.classes = int(z.Shape[1].Value)
	if s.score != Logit && s.classes < 2 {
		return fmt.Errorf("score %q of a single output: %w: want %q", s.score, ErrInput, Logit)
	}
	s.model = &fixed
	return nil
}

// example checks an input and returns its numbers.
func (s *subject) example(input engine.Tensor, class int) ([]float32, error) {
	if class < 0 || class >= s.classes {
		return nil, fmt.Errorf("class %d: %w: it has classes 0 to %d", class, ErrInput, s.classes-1)
	}
	want := append([]int64{1}, s.layout.shape...)
	if err := input.Check(); err != nil {
		return nil, fmt.Errorf("input: %w", err)
	}
	if !slices.Equal(input.Shape, want) && !slices.Equal(input.Shape, s.layout.shape) {
		return nil, fmt.Errorf("an input of shape %v: %w: want %v", input.Shape, ErrInput, want)
	}
	values, err := engine.Values[float32](input)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	for i, v := range values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, fmt.Errorf("element %d of the input is %v: %w", i, v, ErrInput)
		}
	}
	return values, nil
}

// answers runs n examples, written by fill into rows of zeros, and hands each
// one's logits to visit, which must not keep them. fill and visit are called in
// the order of the examples.
func (s *subject) answers(ctx context.Context, n int, fill func(i int, row []float32), visit func(i int, logits []float32), tick func(int)) error {
	batches := (n + s.batch - 1) / s.batch
	buffers := make([][]float32, min(max(s.runs, 1), max(batches, 1)))
	for from := 0; from < batches; from += len(buffers) {
		together := min(len(buffers), batches-from)
		logits := make([][]float32, together)
		var run errgroup.Group
		for b := range together {
			first := (from + b) * s.batch
			buffers[b] = s.filled(buffers[b], first, min(s.batch, n-first), fill)
			run.Go(func() (err error) {
				logits[b], err = s.runRows(ctx, buffers[b])
				return err
			})
		}
		if err := run.Wait(); err != nil {
			return err
		}
		for b := range together {
			first := (from + b) * s.batch
			count := min(s.batch, n-first)
			for i := range count {
				visit(first+i, logits[b][i*s.classes:(i+1)*s.classes])
			}
			if tick != nil {
				tick(count)
			}
		}
	}
	return nil
}

// filled writes count examples from first on into the buffer, made anew where it
// is too small. Where the model takes no other number, zeros make up the rest.
func (s *subject) filled(buffer []float32, first, count int, fill func(i int, row []float32)) []float32 {
	elements, rows := s.layout.elements(), count
	if s.fixed {
		rows = s.batch
	}
	if cap(buffer) < rows*elements {
		buffer = make([]float32, rows*elements)
	}
	buffer = buffer[:rows*elements]
	clear(buffer)
	for i := range count {
		fill(first+i, buffer[i*elements:(i+1)*elements])
	}
	return buffer
}

// runRows runs the model once.
func (s *subject) runRows(ctx context.Context, rows []float32) ([]float32, error) {
	count := len(rows) / s.layout.elements()
	shape := append([]int64{int64(count)}, s.layout.shape...)
	out, err := s.session.Run(ctx, map[string]engine.Tensor{s.input: engine.Float32(shape, rows)}, s.logits)
	if err != nil {
		return nil, err
	}
	logits, err := engine.Values[float32](out[s.logits])
	if err != nil {
		return nil, err
	}
	if len(logits) != count*s.classes {
		return nil, fmt.Errorf("the model returned %d logits for %d examples of %d classes: %w: set Options.Batch to 1", len(logits), count, s.classes, ErrInput)
	}
	return logits, nil
}

// scores is answers for the score of one class.
func (s *subject) scores(ctx context.Context, n, class int, fill func(i int, row []float32), tick func(int)) ([]float64, error) {
	out := make([]float64, n)
	err := s.answers(ctx, n, fill, func(i int, logits []float32) { out[i] = scoreOf(s.score, logits, class) }, tick)
	if err != nil {
		return nil, err
	}
	for i, v := range out {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("the model's score of altered input %d is %v: the explanation would mean nothing", i, v)
		}
	}
	return out, nil
}

// logitsOf is the model's answer on one example, which must not depend on what
// else is in the batch: it is asked for alone, and once more beside another.
func (s *subject) logitsOf(ctx context.Context, values, other []float32) ([]float32, error) {
	var alone, beside []float32
	err := s.answers(ctx, 1, func(_ int, row []float32) { copy(row, values) }, func(_ int, z []float32) { alone = slices.Clone(z) }, nil)
	if err != nil || s.batch == 1 {
		return alone, err
	}
	err = s.answers(ctx, 2, func(i int, row []float32) { copy(row, [][]float32{values, other}[i]) }, func(i int, z []float32) {
		if i == 0 {
			beside = slices.Clone(z)
		}
	}, nil)
	if err != nil {
		return nil, err
	}
	for c, v := range alone {
		if apart := math.Abs(float64(v - beside[c])); apart > 1e-3*(1+math.Abs(float64(v))) {
			return nil, fmt.Errorf("the answer on an example is %v alone and %v beside another: %w: examples of a batch must not influence each other; set Options.Batch to 1", v, beside[c], ErrInput)
		}
	}
	return alone, nil
}

// scoreOf computes a score from logits as appendScore's graph does.
func scoreOf(score Score, logits []float32, class int) float64 {
	z := float64(logits[class])
	if score == Logit {
		return z
	}
	top := math.Inf(-1)
	for c, v := range logits {
		if c != class {
			top = max(top, float64(v))
		}
	}
	sum := 0.0
	for c, v := range logits {
		if c != class {
			sum += math.Exp(float64(v) - top)
		}
	}
	odds := z - top - math.Log(sum)
	if score == LogOdds {
		return odds
	}
	return 1 / (1 + math.Exp(-odds))
}

// progress counts towards a total that the method knows.
func (s *subject) progress(total int) func(int) {
	done := 0
	return func(n int) {
		done += n
		if s.options.Progress != nil {
			s.options.Progress(min(done, total), total)
		}
	}
}

// blank is a map over the input's places.
func (s *subject) blank(logits []float32) *Map {
	rows, columns := s.layout.rows, s.layout.columns
	return &Map{Rows: rows, Columns: columns, Values: make([]float32, rows*columns), Logits: logits}
}

func (s *subject) Close() error {
	if s.session == nil {
		return nil
	}
	return s.session.Close()
}

// opened gives back what was opened when a later step of opening fails.
func opened(e Explainer, err error, close ...func() error) (Explainer, error) {
	if err == nil {
		return e, nil
	}
	for _, c := range close {
		err = errors.Join(err, c())
	}
	return nil, err
}
