package guard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// ErrInput says that an input is not one that the model takes: another shape, or
// values that are not numbers.
var ErrInput = errors.New("not an input of this model")

// The activations that turn a model's output into probabilities.
const (
	Softmax = "softmax" // labels exclude each other
	Sigmoid = "sigmoid" // labels are independent
	None    = "none"    // the output already is probabilities
)

// Network is the model that is guarded: a graph with one input of images.
type Network struct {
	Model        *onnx.Model
	Input        string
	Output       string  // float[N, labels]
	Activation   string  // Softmax, Sigmoid or None
	Shape        []int64 // of one example: [channels, rows, columns], or [rows, columns, channels]
	ChannelsLast bool
	Black, White []float64 // what brightness 0 and 1 become in each channel of the input
}

// geometry is how an input lies in memory.
type geometry struct {
	channels, rows, columns int
	last                    bool
	black, scale            []float32 // value = black + scale·brightness
}

func (n *Network) geometry() (geometry, error) {
	if len(n.Shape) != 3 {
		return geometry{}, fmt.Errorf("examples of shape %v: %w: the guards look at images of three dimensions", n.Shape, ErrInput)
	}
	g := geometry{channels: int(n.Shape[0]), rows: int(n.Shape[1]), columns: int(n.Shape[2]), last: n.ChannelsLast}
	if n.ChannelsLast {
		g.rows, g.columns, g.channels = int(n.Shape[0]), int(n.Shape[1]), int(n.Shape[2])
	}
	if g.channels < 1 || g.channels > 16 || g.rows < minSide || g.columns < minSide || g.rows > 1<<14 || g.columns > 1<<14 {
		return geometry{}, fmt.Errorf("examples of shape %v: %w: the guards look at images of 1 to 16 channels and at least %d rows and columns", n.Shape, ErrInput, minSide)
	}
	if len(n.Black) != g.channels || len(n.White) != g.channels {
		return geometry{}, fmt.Errorf("%d and %d values of black and white for %d channels: %w", len(n.Black), len(n.White), g.channels, ErrInput)
	}
	for c := range n.Black {
		scale := n.White[c] - n.Black[c]
		if !(math.Abs(scale) > 1e-9 && math.Abs(scale) < 1e9) || math.IsNaN(n.Black[c]) || math.Abs(n.Black[c]) > 1e9 {
			return geometry{}, fmt.Errorf("channel %d goes from %v to %v: %w", c, n.Black[c], n.White[c], ErrInput)
		}
		g.black, g.scale = append(g.black, float32(n.Black[c])), append(g.scale, float32(scale))
	}
	return g, nil
}

func (g geometry) elements() int { return g.channels * g.rows * g.columns }

// index is where a channel of a pixel lies in an example.
func (g geometry) index(channel, pixel int) int {
	if g.last {
		return pixel*g.channels + channel
	}
	return channel*g.rows*g.columns + pixel
}

// plane is the mean brightness over the channels.
func (g geometry) plane(values []float32) plane {
	p := plane{g.rows, g.columns, make([]float32, g.rows*g.columns)}
	for c := range g.channels {
		share := 1 / (g.scale[c] * float32(g.channels))
		for i := range p.values {
			p.values[i] += (values[g.index(c, i)] - g.black[c]) * share
		}
	}
	return p
}

// set writes a brightness to all channels of a pixel.
func (g geometry) set(values []float32, pixel int, brightness float32) {
	for c := range g.channels {
		values[g.index(c, pixel)] = g.black[c] + g.scale[c]*brightness
	}
}

// check refuses an example of another size or with values that are no numbers.
func (g geometry) check(values []float32) error {
	if len(values) != g.elements() {
		return fmt.Errorf("%d numbers: %w: want %d", len(values), ErrInput, g.elements())
	}
	for i, v := range values {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("element %d is %v: %w", i, v, ErrInput)
		}
	}
	return nil
}

// probabilities applies the activation to one row of the output.
func (n *Network) probabilities(output []float64) []float64 {
	p := make([]float64, len(output))
	switch n.Activation {
	case Softmax:
		top, sum := slices.Max(output), 0.0
		for i, v := range output {
			p[i] = math.Exp(v - top)
			sum += p[i]
		}
		for i := range p {
			p[i] /= sum
		}
	case Sigmoid:
		for i, v := range output {
			p[i] = 1 / (1 + math.Exp(-v))
		}
	default:
		copy(p, output)
	}
	return p
}

// classes is how many leading answers there are: one a label, or two of a single
// label.
func classes(labels int) int { return max(2, labels) }

// leading is the label with the highest output; of a single label, 1 if it is
// more probable than not.
func (n *Network) leading(output []float64) int {
	if len(output) == 1 {
		if n.Activation == None && output[0] >= 0.5 || n.Activation != None && output[0] >= 0 {
			return 1
		}
		return 0
	}
	best := 0
	for i, v := range output {
		if v > output[best] {
			best = i
		}
	}
	return best
}

// rival is the label that would lead if class did not; -1 of a single label.
func rival(output []float64, class int) int {
	best := -1
	for i, v := range output {
		if i != class && (best < 0 || v > output[best]) {
			best = i
		}
	}
	return best
}

// margin is how far class leads.
func margin(output []float64, class int) float64 {
	if len(output) == 1 {
		if class == 1 {
			return output[0]
		}
		return -output[0]
	}
	return output[class] - output[rival(output, class)]
}

// slope gives gradients of a weighted sum of the outputs with respect to the
// input.
type slope struct {
	session  engine.Session
	network  *Network
	labels   int
	batch    int
	gradient string
}

const selectorName = "guard/selector"

// openSlope builds the gradient graph for a batch.
func openSlope(n *Network, labels, batch, threads int) (*slope, error) {
	b := onnx.Extend(n.Model.Clone())
	selector := b.Input(selectorName, onnx.Float, onnx.Fixed(int64(batch), int64(labels))...)
	chosen := b.Op("Mul", []string{n.Output, selector})
	total := b.Op("ReduceSum", []string{chosen, b.Ints("guard/all", 0, 1)}, onnx.IntAttribute("keepdims", 1))
	b.Output(total, onnx.Float, onnx.Fixed(1, 1)...)
	m, err := b.Build()
	if err != nil {
		return nil, err
	}
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: total, WithRespectTo: []string{n.Input}, Batch: int64(batch), Keep: []string{n.Output}})
	if err != nil {
		return nil, err
	}
	s := &slope{network: n, labels: labels, batch: batch, gradient: g.Of[n.Input]}
	s.session, err = engine.Open(g.Model, engine.Options{Threads: threads})
	return s, err
}

// towards is the selector that lets the margin of class over its rival shrink.
func towards(selector []float32, output []float64, class int) {
	clear(selector)
	if len(output) == 1 {
		selector[0] = float32(1 - 2*class)
		return
	}
	selector[class], selector[rival(output, class)] = -1, 1
}

// run returns outputs and gradients of a full batch.
func (s *slope) run(ctx context.Context, images, selector []float32) (output, gradient []float32, err error) {
	out, err := s.session.Run(ctx, map[string]engine.Tensor{
		s.network.Input: engine.Float32(append([]int64{int64(s.batch)}, s.network.Shape...), images),
		selectorName:    engine.Float32([]int64{int64(s.batch), int64(s.labels)}, selector),
	}, s.network.Output, s.gradient)
	if err != nil {
		return nil, nil, err
	}
	if output, err = engine.Values[float32](out[s.network.Output]); err != nil {
		return nil, nil, err
	}
	gradient, err = engine.Values[float32](out[s.gradient])
	if err == nil && len(gradient) != len(images) {
		err = fmt.Errorf("a gradient of %d numbers for %d", len(gradient), len(images))
	}
	return output, gradient, err
}

func (s *slope) close() error {
	if s == nil || s.session == nil {
		return nil
	}
	return s.session.Close()
}
