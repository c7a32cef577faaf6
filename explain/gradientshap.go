package explain

import (
	"context"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

func openGradientSHAP(m *onnx.Model, o Options) (Explainer, error) {
	s, g, err := openInputSlope(m, o)
	if err != nil {
		return nil, err
	}
	return &gradientSHAP{subject: s, slope: g, points: or(o.Samples, 200)}, nil
}

// gradientSHAP is expected gradients (Erion et al. 2021): the mean of
// (x - x₀)·∇ at a random point between the input and a random background x₀. It
// approaches the average of integrated gradients over the backgrounds; the gap
// says how near it came. Backgrounds are used in turn and points are spread
// over strata of the way, which keeps the mean and lowers the variance.
type gradientSHAP struct {
	*subject
	slope  *slope
	points int
}

func (e *gradientSHAP) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	values, err := e.example(input, class)
	if err != nil {
		return nil, err
	}
	from, err := e.background(input)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(e.options.Seed, 0x65A9))
	rounds := (e.points + len(from) - 1) / len(from) // each background once a round
	n := rounds * len(from)
	strata := make([][]int, len(from))
	for b := range strata {
		strata[b] = rng.Perm(rounds)
	}
	total := n + len(from) + 1
	tick := e.progress(total)
	sum := make([]float64, len(values))
	err = e.slope.each(ctx, n, class, func(i int, row []float32) {
		b := i % len(from)
		t := (float64(strata[b][i/len(from)]) + rng.Float64()) / float64(rounds)
		for j, x := range values {
			row[j] = float32(float64(from[b][j]) + t*(float64(x)-float64(from[b][j])))
		}
	}, func(i int, gradient, _ []float32) {
		for j, d := range gradient {
			sum[j] += float64(d) * (float64(values[j]) - float64(from[i%len(from)][j])) / float64(n)
		}
	}, tick)
	if err != nil {
		return nil, err
	}
	additive := &Additive{}
	m := e.blank(nil)
	err = e.slope.each(ctx, len(from)+1, class, func(i int, row []float32) {
		if i == 0 {
			copy(row, values)
		} else {
			copy(row, from[i-1])
		}
	}, func(i int, _, logits []float32) {
		score := scoreOf(e.score, logits, class)
		if i == 0 {
			additive.Output, m.Logits = score, slices.Clone(logits)
		} else {
			additive.Reference += score / float64(len(from))
		}
	}, tick)
	if err != nil {
		return nil, err
	}
	additive.Gap = additive.Output - additive.Reference
	for _, v := range sum {
		additive.Gap -= v
	}
	m.Values, m.Additive, m.Evaluations = e.layout.sum(sum), additive, total
	return m, nil
}

func (e *gradientSHAP) Close() error { return e.slope.Close() }
