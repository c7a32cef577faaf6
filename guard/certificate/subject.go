package certificate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// ErrInput says that an input is not one that the model takes: another shape,
// or values that are not numbers.
var ErrInput = errors.New("not an input of this model")

// ErrOutput says that the model gave no answer on a changed copy of an input.
var ErrOutput = errors.New("the model gives no answer")

// Answer is what a model decides about an image, in a form that compares: two
// answers are the same if a reader is told the same.
type Answer string

// Model is a graph with one input of images, and what its output decides.
type Model struct {
	Graph        *onnx.Model
	Input        string
	Output       string  // float[N, …]
	Shape        []int64 // of one example: [channels, rows, columns], or [rows, columns, channels]
	ChannelsLast bool
	Black, White []float64 // what brightness 0 and 1 become in each channel of the input
	Grey         bool      // the channels carry one plane: noise is the same in each
	// Decide reads one example's output. It must depend on nothing else.
	Decide func(output []float32) (Answer, error)
}

// The fillings of a mask, beside any brightness from 0 to 1 as a number. None
// depends on what the mask hides.
const (
	Black = "black" // brightness 0
	Grey  = "grey"  // brightness one half
	Mean  = "mean"  // in each channel the mean of what stays to be seen
)

// Fills lists the fillings that have names.
func Fills() []string { return []string{Mean, Grey, Black} }

// Brightness reads a filling: a brightness, or the mean of what stays.
func Brightness(fill string) (value float64, mean bool, err error) {
	switch fill {
	case Mean:
		return 0, true, nil
	case Grey:
		return 0.5, false, nil
	case Black:
		return 0, false, nil
	}
	if value, err = strconv.ParseFloat(fill, 64); err != nil || !(value >= 0 && value <= 1) {
		return 0, false, fmt.Errorf("masks filled with %q: %w: want %s, or a brightness from 0 to 1", fill, ErrAsk, strings.Join(Fills(), ", "))
	}
	return value, false, nil
}

// Patch says how squares are certified.
type Patch struct {
	Masks  int    // along each axis, at most
	Fill   string // one of Fills, or a brightness
	Rounds int    // 1: agreement alone; 2: also the pairs that certify
}

// Smoothing says how an answer is smoothed (Cohen et al. 2019, figure 1).
type Smoothing struct {
	Sigma   float64 // deviation of the noise, pixels of brightness 0 to 1
	First   int     // samples that choose the answer; 0 is 100
	Samples int     // samples that certify it
	Alpha   float64 // chance that a certificate is wrong, for each case
}

// Options say what is to be certified, and with what.
type Options struct {
	Patch     *Patch     // nil: no squares
	Smoothing *Smoothing // nil: no smoothing
	Threads   int        // runs at once, each on one thread; 0 is two, or one on a single core
	Batch     int        // examples in each run; 0: by their size, at most 32. A graph may fix it
}

// Certifier certifies answers of one model. It is safe for concurrent use.
type Certifier struct {
	model    Model
	options  Options
	session  engine.Session
	geometry geometry
	batch    int // examples in every run, full or not
	runs     int
}

// geometry is how an input lies in memory.
type geometry struct {
	channels, rows, columns int
	last                    bool
	black, scale            []float32 // value = black + scale·brightness
}

func (g geometry) elements() int { return g.channels * g.rows * g.columns }

// index is where a channel of a pixel lies in an example.
func (g geometry) index(channel, pixel int) int {
	if g.last {
		return pixel*g.channels + channel
	}
	return channel*g.rows*g.columns + pixel
}

// Open makes a model ready to be certified. Errors: ErrAsk for options that do
// not fit it, and the engine's.
func Open(m Model, o Options) (*Certifier, error) {
	c := &Certifier{model: m, options: o}
	if err := c.prepare(); err != nil {
		if c.session != nil {
			err = errors.Join(err, c.session.Close())
		}
		return nil, fmt.Errorf("certificate: preparing a model: %w", err)
	}
	return c, nil
}

func (c *Certifier) prepare() error {
	if err := c.options.check(); err != nil {
		return err
	}
	var err error
	if c.geometry, err = c.model.geometry(); err != nil {
		return err
	}
	if c.runs = c.options.Threads; c.runs == 0 {
		c.runs = min(2, runtime.NumCPU())
	}
	if c.batch = c.options.Batch; c.batch == 0 {
		c.batch = max(1, min(32, batchElements/c.geometry.elements()))
	}
	options := engine.Options{Threads: 1, Outputs: []string{c.model.Output}, Yield: true}
	fixed := false
	for _, in := range c.model.Graph.Graph.Inputs {
		if in.Name != c.model.Input || len(in.Shape) == 0 {
			continue
		}
		switch d := in.Shape[0]; {
		case d.Known():
			c.batch, fixed = int(d.Value), true
		case d.Param != "":
			options.Dims = map[string]int64{d.Param: int64(c.batch)}
		}
	}
	if c.session, err = engine.Open(c.model.Graph, options); err != nil {
		return err
	}
	alone, err := c.alone()
	if err != nil || alone {
		return err
	}
	// The proofs are about an answer to one image: one that depends on its
	// neighbours in a run, or on chance, is none.
	if fixed && c.batch > 1 {
		return fmt.Errorf("the graph takes %d examples in a run and mixes them: %w", c.batch, ErrAsk)
	}
	err = c.session.Close()
	if c.session = nil; err != nil {
		return err
	}
	if c.batch = 1; options.Dims != nil {
		for name := range options.Dims {
			options.Dims[name] = 1
		}
	}
	if c.session, err = engine.Open(c.model.Graph, options); err != nil {
		return err
	}
	if alone, err = c.alone(); err == nil && !alone {
		err = fmt.Errorf("the graph gives different outputs to the same input: %w: its answers depend on chance", ErrAsk)
	}
	return err
}

// batchElements is how many numbers of input go into one run, unless told
// otherwise.
const batchElements = 1 << 17

// Check says what is wrong with the options, before any model is opened.
func (o Options) Check() error {
	if err := o.check(); err != nil {
		return fmt.Errorf("certificate: reading the options: %w", err)
	}
	return nil
}

func (o Options) check() error {
	if o.Patch == nil && o.Smoothing == nil {
		return fmt.Errorf("neither squares nor smoothing: %w", ErrAsk)
	}
	if o.Threads < 0 || o.Batch < 0 || o.Batch > 1<<12 {
		return fmt.Errorf("%d threads, %d examples in a run: %w", o.Threads, o.Batch, ErrAsk)
	}
	if p := o.Patch; p != nil {
		if p.Masks < 2 || p.Masks > MaxMasks {
			return fmt.Errorf("%d masks along an axis: %w: want 2 to %d", p.Masks, ErrAsk, MaxMasks)
		}
		if _, _, err := Brightness(p.Fill); err != nil {
			return err
		}
		if p.Rounds != 1 && p.Rounds != 2 {
			return fmt.Errorf("%d rounds of masks: %w: want 1 or 2", p.Rounds, ErrAsk)
		}
	}
	if s := o.Smoothing; s != nil {
		if !(s.Sigma > 0 && s.Sigma <= MaxSigma) || s.First < 0 || s.First > MaxSamples || s.Samples < MinSamples || s.Samples > MaxSamples || !(s.Alpha > 0 && s.Alpha <= MaxAlpha) {
			return fmt.Errorf("noise of %v, %d and %d samples, alpha %v: %w: want a deviation of at most %v, %d to %d samples and an alpha of at most %v",
				s.Sigma, s.First, s.Samples, s.Alpha, ErrAsk, MaxSigma, MinSamples, MaxSamples, MaxAlpha)
		}
	}
	return nil
}

// Bounds of what may be asked of smoothing.
const (
	MaxSigma     = 4.0
	MinSamples   = 100
	MaxSamples   = 1 << 20
	MaxAlpha     = 0.1
	DefaultFirst = 100
)

func (m *Model) geometry() (geometry, error) {
	if m.Graph == nil || m.Graph.Graph == nil || m.Decide == nil {
		return geometry{}, fmt.Errorf("a model without a graph or a decision: %w", ErrAsk)
	}
	if len(m.Shape) != 3 {
		return geometry{}, fmt.Errorf("examples of shape %v: %w: want images of three dimensions", m.Shape, ErrAsk)
	}
	g := geometry{channels: int(m.Shape[0]), rows: int(m.Shape[1]), columns: int(m.Shape[2]), last: m.ChannelsLast}
	if m.ChannelsLast {
		g.rows, g.columns, g.channels = int(m.Shape[0]), int(m.Shape[1]), int(m.Shape[2])
	}
	if g.channels < 1 || g.channels > 64 || g.rows < 1 || g.columns < 1 || g.rows > 1<<14 || g.columns > 1<<14 {
		return geometry{}, fmt.Errorf("examples of shape %v: %w: want images of at most 64 channels", m.Shape, ErrAsk)
	}
	if len(m.Black) != g.channels || len(m.White) != g.channels {
		return geometry{}, fmt.Errorf("%d and %d values of black and white for %d channels: %w", len(m.Black), len(m.White), g.channels, ErrAsk)
	}
	for c := range m.Black {
		scale := m.White[c] - m.Black[c]
		if !(math.Abs(scale) > 1e-9 && math.Abs(scale) < 1e9) || !(math.Abs(m.Black[c]) < 1e9) {
			return geometry{}, fmt.Errorf("channel %d goes from %v to %v: %w", c, m.Black[c], m.White[c], ErrAsk)
		}
		g.black, g.scale = append(g.black, float32(m.Black[c])), append(g.scale, float32(scale))
	}
	return g, nil
}

// alone asks about two batches of noise that share their first example: its
// output must not depend on the others. Of batches of one it asks twice.
func (c *Certifier) alone() (bool, error) {
	noise := rand.New(rand.NewPCG(1, 0xCE27))
	g := c.geometry
	rows := make([]float32, c.batch*g.elements())
	var first []float32
	for trial := range 2 {
		for i := range rows {
			if trial == 1 && i < g.elements() {
				continue
			}
			channel := i % g.elements() / (g.rows * g.columns)
			if g.last {
				channel = i % g.channels
			}
			rows[i] = g.black[channel] + g.scale[channel]*noise.Float32()
		}
		output, err := c.run(context.Background(), rows)
		if err != nil {
			return false, err
		}
		width := len(output) / c.batch
		if trial == 0 {
			first = append(first, output[:width]...)
			continue
		}
		for i, v := range output[:width] {
			if a, b := float64(v), float64(first[i]); a != b && !(math.Abs(a-b) <= 1e-4*(1+math.Abs(a))) && !(math.IsNaN(a) && math.IsNaN(b)) {
				return false, nil
			}
		}
	}
	return true, nil
}

// run runs one full batch.
func (c *Certifier) run(ctx context.Context, rows []float32) ([]float32, error) {
	out, err := c.session.Run(ctx, map[string]engine.Tensor{
		c.model.Input: engine.Float32(append([]int64{int64(c.batch)}, c.model.Shape...), rows)}, c.model.Output)
	if err != nil {
		return nil, err
	}
	values, err := engine.Values[float32](out[c.model.Output])
	if err != nil {
		return nil, err
	}
	if len(values) == 0 || len(values)%c.batch != 0 {
		return nil, fmt.Errorf("%d numbers for %d examples: %w", len(values), c.batch, ErrOutput)
	}
	return values, nil
}

// answers asks about n examples, which fill writes, and hands each answer to
// take, in any order but one at a time; take returns whether more is wanted.
// Every run has the same number of examples: what is missing in the last repeats
// the first of it. So an example's answer does not depend on how many others are
// asked about.
func (c *Certifier) answers(ctx context.Context, n int, fill func(i int, row []float32), take func(i int, a Answer) bool) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	each := c.geometry.elements()
	batches := (n + c.batch - 1) / c.batch
	var (
		mu      sync.Mutex
		next    int
		enough  bool
		running sync.WaitGroup
	)
	claim := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next == batches || enough || ctx.Err() != nil {
			return 0, false
		}
		next++
		return next - 1, true
	}
	work := func() (err error) {
		defer func() {
			if cause := recover(); cause != nil { // the value may quote the input
				err = fmt.Errorf("contained panic (%T)", cause)
			}
		}()
		rows := make([]float32, c.batch*each)
		for {
			at, ok := claim()
			if !ok {
				return nil
			}
			from, to := at*c.batch, min((at+1)*c.batch, n)
			for i := from; i < to; i++ {
				fill(i, rows[(i-from)*each:(i-from+1)*each])
			}
			for i := to - from; i < c.batch; i++ {
				copy(rows[i*each:(i+1)*each], rows[:each])
			}
			output, err := c.run(ctx, rows)
			if err != nil {
				return err
			}
			width := len(output) / c.batch
			decided := make([]Answer, to-from)
			for i := range decided {
				row := output[i*width : (i+1)*width]
				for _, v := range row {
					if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
						return fmt.Errorf("an output is %v: %w", v, ErrOutput)
					}
				}
				if decided[i], err = c.model.Decide(row); err != nil {
					return fmt.Errorf("%w: %w", ErrOutput, err)
				}
			}
			mu.Lock()
			for i, a := range decided {
				enough = !take(from+i, a) || enough
			}
			mu.Unlock()
		}
	}
	for range min(c.runs, batches) {
		running.Go(func() {
			if err := work(); err != nil {
				stop(err)
			}
		})
	}
	running.Wait()
	return context.Cause(ctx)
}

// values reads one example.
func (c *Certifier) values(input engine.Tensor) ([]float32, error) {
	values, err := engine.Values[float32](input)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	if len(values) != c.geometry.elements() {
		return nil, fmt.Errorf("%d numbers: %w: want %d", len(values), ErrInput, c.geometry.elements())
	}
	for i, v := range values {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, fmt.Errorf("element %d is %v: %w", i, v, ErrInput)
		}
	}
	return values, nil
}

// Close frees the model.
func (c *Certifier) Close() error { return c.session.Close() }
