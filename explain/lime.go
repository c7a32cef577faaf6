package explain

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

func openLIME(m *onnx.Model, o Options) (Explainer, error) {
	s, err := openSubject(m, o)
	if err != nil {
		return nil, err
	}
	return &lime{s, or(o.Samples, 1000)}, nil
}

// lime fits a linear model of the score to random on-off patterns of the pieces,
// weighted by how near a pattern is to the whole input: exp(-d²/¼²) of the
// cosine distance d, as the authors' implementation for images has it (Ribeiro
// et al. 2016). Each piece is on with probability one half; the fit is a ridge
// regression of strength 1 with an intercept that is not shrunk. Map.Surrogate
// is the weighted R² of the fit: a linear model that fits badly explains badly.
type lime struct {
	*subject
	samples int
}

const (
	limeWidth = 0.25
	limeRidge = 1.0
)

func (e *lime) Explain(ctx context.Context, input engine.Tensor, class int) (*Map, error) {
	p, err := e.cut(ctx, input, class)
	if err != nil {
		return nil, err
	}
	if e.samples < 2*p.count {
		return nil, fmt.Errorf("%d samples of %d pieces: %w: want at least %d", e.samples, p.count, ErrInput, 2*p.count)
	}
	rng := rand.New(rand.NewPCG(e.options.Seed, 0x11FE))
	patterns := make([][]bool, e.samples)
	weights := make([]float64, e.samples)
	for i := range patterns {
		patterns[i] = make([]bool, p.count)
		on := 0
		for j := range patterns[i] {
			if patterns[i][j] = i == 0 || rng.IntN(2) == 1; patterns[i][j] {
				on++
			}
		}
		distance := 1 - math.Sqrt(float64(on)/float64(p.count)) // cosine, to all on
		weights[i] = math.Exp(-distance * distance / (limeWidth * limeWidth))
	}
	n := len(patterns) * len(p.from)
	scores, err := e.worth(ctx, p, patterns, class, e.progress(n))
	if err != nil {
		return nil, err
	}
	coefficients, fit, err := ridge(patterns, weights, scores, p.count)
	if err != nil {
		return nil, err
	}
	m := e.spread(p, coefficients)
	m.Surrogate = fit
	m.Evaluations = n + 1
	return m, nil
}

// ridge regresses scores on patterns, centred by their weighted means so that
// the intercept is free, and returns the weighted R² with the coefficients.
func ridge(patterns [][]bool, weights, scores []float64, count int) ([]float64, float64, error) {
	means, mean, total := make([]float64, count), 0.0, 0.0
	for i, w := range weights {
		total += w
		mean += w * scores[i]
		for j, on := range patterns[i] {
			if on {
				means[j] += w
			}
		}
	}
	mean /= total
	rows, target := make([][]float64, len(patterns)), make([]float64, len(patterns))
	for i, pattern := range patterns {
		rows[i] = make([]float64, count)
		for j, on := range pattern {
			rows[i][j] = -means[j] / total
			if on {
				rows[i][j]++
			}
		}
		target[i] = scores[i] - mean
	}
	coefficients, err := leastSquares(rows, target, weights, limeRidge)
	if err != nil {
		return nil, 0, err
	}
	left, all := 0.0, 0.0
	for i, w := range weights {
		predicted := 0.0
		for j, c := range coefficients {
			predicted += c * rows[i][j]
		}
		left += w * (target[i] - predicted) * (target[i] - predicted)
		all += w * target[i] * target[i]
	}
	if all == 0 { // the answer never changes, and no piece changes it
		return coefficients, 1, nil
	}
	return coefficients, 1 - left/all, nil
}
