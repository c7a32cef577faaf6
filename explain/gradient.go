package explain

import (
	"context"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// openInputSlope is what all methods along the input's gradient need.
func openInputSlope(m *onnx.Model, o Options) (*subject, *slope, error) {
	s, err := describeSubject(m, o)
	if err != nil {
		return nil, nil, err
	}
	g, err := openSlope(s, s.batch, []string{s.input}, nil)
	return s, g, err
}

func openGradient(m *onnx.Model, o Options) (Explainer, error) {
	s, g, err := openInputSlope(m, o)
	if err != nil {
		return nil, err
	}
	return &smoothGrad{subject: s, slope: g, copies: 1}, nil
}

func openSmoothGrad(m *onnx.Model, o Options) (Explainer, error) {
	s, g, err := openInputSlope(m, o)
	if err != nil {
		return nil, err
	}
	noise := or(o.Noise, 0.15)
	return &smoothGrad{subject: s, slope: g, copies: or(o.Samples, 50), noise: noise}, nil
}

// smoothGrad is the mean gradient over copies of the input with Gaussian noise,
// whose deviation is a share of the range from the input's smallest to its
// largest value (Smilkov et al. 2017); the plain gradient is that of one copy
// without. Of several channels the one of largest size counts.
type smoothGrad struct {
	*subject
	slope  *slope
	copies int
	noise  float64
}

func (e *smoothGrad) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	values, err := e.example(input, class)
	if err != nil {
		return nil, err
	}
	deviation := 0.0
	if e.noise > 0 {
		deviation = e.noise * float64(slices.Max(values)-slices.Min(values))
	}
	rng := rand.New(rand.NewPCG(e.options.Seed, 0x5300))
	sum := make([]float64, len(values))
	var plain []float32
	// The input itself runs first: its logits are reported, its gradient counts
	// only where it is the only copy.
	n := e.copies
	if e.noise > 0 {
		n++
	}
	err = e.slope.each(ctx, n, class, func(i int, row []float32) {
		copy(row, values)
		if i > 0 {
			for j := range row {
				row[j] += float32(deviation * rng.NormFloat64())
			}
		}
	}, func(i int, gradient, logits []float32) {
		if i == 0 {
			plain = slices.Clone(logits)
			if n > 1 {
				return
			}
		}
		for j, d := range gradient {
			sum[j] += float64(d) / float64(e.copies)
		}
	}, e.progress(n))
	if err != nil {
		return nil, err
	}
	m := e.blank(plain)
	m.Values = e.layout.largest(sum)
	m.Evaluations = n
	return m, nil
}

func (e *smoothGrad) Close() error { return e.slope.Close() }
