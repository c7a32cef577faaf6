package explain

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// cam explains by one layer of feature maps: each channel is weighted by what
// its gradient says, the weighted channels are added up, and what speaks for
// the class is kept.
type cam struct {
	*subject
	slope               *slope
	layer               string
	weights             camRule
	channels            int
	mapRows, mapColumns int
}

// camRule gives a channel's weight from its activation and its gradient.
type camRule func(activation, gradient []float32) float64

func openCAM(weights camRule) func(*onnx.Model, Options) (Explainer, error) {
	return func(m *onnx.Model, o Options) (Explainer, error) {
		s, err := describeSubject(m, o)
		if err != nil {
			return nil, err
		}
		c := &cam{subject: s, layer: o.Layer, weights: weights}
		if s.layout.table() {
			return nil, fmt.Errorf("a table has no places: %w", ErrNoLayer)
		}
		if c.layer == "" {
			if c.layer, err = LastLayer(s.model, s.logits); err != nil {
				return nil, err
			}
		}
		if c.slope, err = openSlope(s, 1, []string{c.layer}, []string{c.layer}); err != nil {
			return nil, err
		}
		at := slices.IndexFunc(c.slope.session.Outputs(), func(v onnx.Value) bool { return v.Name == c.layer })
		v := c.slope.session.Outputs()[at]
		shape, ok := v.Static()
		if !ok || v.Type != onnx.Float || len(shape) != len(s.layout.shape)+1 {
			return opened(nil, fmt.Errorf("layer %q is %v: %w: want [N, K, places as the input]", c.layer, v, ErrNoLayer), c.Close)
		}
		c.channels, c.mapRows, c.mapColumns = int(shape[1]), 1, int(shape[len(shape)-1])
		if len(shape) == 4 {
			c.mapRows = int(shape[2])
		}
		return c, nil
	}
}

// camWeights is Grad-CAM's equation 1: the mean of the gradient.
func camWeights(_, gradient []float32) float64 {
	sum := 0.0
	for _, d := range gradient {
		sum += float64(d)
	}
	return sum / float64(len(gradient))
}

// camPlusPlusWeights is Grad-CAM++'s equations 10 and 19 for the exponential of
// the score, whose derivatives are powers of the score's gradient g up to a
// common positive factor: α = g²/(2g² + g³·ΣA), weight = Σ α·relu(g).
func camPlusPlusWeights(activation, gradient []float32) float64 {
	total := 0.0
	for _, a := range activation {
		total += float64(a)
	}
	sum := 0.0
	for _, d := range gradient {
		g := float64(d)
		below := 2*g*g + g*g*g*total
		if g <= 0 || below == 0 {
			continue
		}
		sum += g * g / below * g
	}
	return sum
}

func (c *cam) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	values, err := c.example(input, class)
	if err != nil {
		return nil, err
	}
	rows := make([]float32, c.slope.batch*len(values))
	for at := 0; at < len(rows); at += len(values) { // a fixed batch is filled up
		copy(rows[at:], values)
	}
	tick := c.progress(1)
	out, err := c.slope.run(ctx, rows, class)
	if err != nil {
		return nil, err
	}
	tick(1)
	logits, err := engine.Values[float32](out[c.logits])
	if err != nil {
		return nil, err
	}
	activation, err := engine.Values[float32](out[c.layer])
	if err != nil {
		return nil, err
	}
	gradient, err := engine.Values[float32](out[c.slope.of[c.layer]])
	if err != nil {
		return nil, err
	}
	coarse := c.combine(activation, gradient)
	m := c.blank(logits[:c.classes])
	m.Values = Enlarge(coarse, c.mapRows, c.mapColumns, m.Rows, m.Columns)
	m.Layer = Size{c.mapRows, c.mapColumns}
	m.Evaluations = 1
	return m, nil
}

// combine adds the weighted channels up and keeps what speaks for the class.
func (c *cam) combine(activation, gradient []float32) []float32 {
	area := c.mapRows * c.mapColumns
	sum := make([]float64, area)
	for k := range c.channels {
		a := activation[k*area : (k+1)*area]
		weight := c.weights(a, gradient[k*area:(k+1)*area])
		for i, v := range a {
			sum[i] += weight * float64(v)
		}
	}
	return relevance(sum)
}

// relevance keeps what is positive and scales it so that the strongest place is
// 1. All is 0 where nothing is positive, or something is not a number.
func relevance(values []float64) []float32 {
	top := 0.0
	for _, v := range values {
		top = math.Max(top, v)
	}
	out := make([]float32, len(values))
	if top <= 0 || math.IsNaN(top) || math.IsInf(top, 0) {
		return out
	}
	for i, v := range values {
		out[i] = float32(math.Max(v, 0) / top)
	}
	return out
}

func (c *cam) Close() error { return c.slope.Close() }
