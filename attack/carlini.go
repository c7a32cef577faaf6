package attack

import (
	"context"
	"math"
	"slices"
)

// CW is the attack of Carlini and Wagner 2017, in L2.
const CW Name = "cw"

// The search of Carlini and Wagner 2017, section VI.
const (
	cwRounds = 7    // of the search for the weight of the margin
	cwRate   = 0.02 // of Adam, in the units of the tanh
	cwFirst  = 1.0  // first weight
	cwSlack  = 1e-6 // keeps a pixel off the ends, where the tanh has no slope
)

// runCW minimises ‖δ‖² + c·max(-margin, 0) over w, where the image is the middle
// of the range and half its width times tanh w, by Adam; c is searched for by
// doubling and bisection, the least that still fools.
func runCW(ctx context.Context, k *task) error {
	n := len(k.goals)
	middle, half := (k.about.High+k.about.Low)/2, (k.about.High-k.about.Low)/2
	weight, least, most := make([]float64, n), make([]float64, n), make([]float64, n)
	for j := range n {
		weight[j], most[j] = cwFirst, math.Inf(1)
	}
	for round := range cwRounds {
		w, first, second := make([]float64, n*k.size), make([]float64, n*k.size), make([]float64, n*k.size)
		for i, v := range k.start {
			w[i] = math.Atanh(min(max((float64(v)-middle)/half, -1+cwSlack), 1-cwSlack))
		}
		reached := make([]bool, n)
		pixels := make([]float32, n*k.size)
		y := make([]float64, k.size)
		for step := range k.options.Steps {
			for j := range n {
				for i := range y {
					y[i] = middle + half*math.Tanh(w[j*k.size+i])
				}
				copy(pixels[j*k.size:], k.ball.pixels(y))
			}
			a, _, err := k.climb(ctx, pixels, k.goals, Margin)
			if err != nil {
				return err
			}
			for j, g := range k.goals {
				z := k.logits(a, j)
				if g.reached(z) && !a.held(j) {
					reached[j] = true
					k.improve(j, pixels[j*k.size:(j+1)*k.size])
				}
				pays := g.margin(z)-a.penalty(j) <= 0
				for i := range k.size {
					at := j*k.size + i
					t := math.Tanh(w[at])
					d := 2 * (middle + half*t - float64(k.start[at]))
					if pays {
						d -= weight[j] * float64(a.Gradient[at])
					}
					d *= half * (1 - t*t)
					first[at] = 0.9*first[at] + 0.1*d
					second[at] = 0.999*second[at] + 0.001*d*d
					power := float64(step + 1)
					w[at] -= cwRate * (first[at] / (1 - math.Pow(0.9, power))) / (math.Sqrt(second[at]/(1-math.Pow(0.999, power))) + 1e-8)
				}
			}
			k.progress((float64(round) + float64(step)/float64(k.options.Steps)) / cwRounds)
		}
		for j := range n {
			if reached[j] {
				most[j] = min(most[j], weight[j])
			} else {
				least[j] = max(least[j], weight[j])
			}
			if math.IsInf(most[j], 1) {
				weight[j] *= 10
			} else {
				weight[j] = (least[j] + most[j]) / 2
			}
		}
	}
	defer k.progress(1)
	return k.tighten(ctx, slices.Clone(k.all()), 10)
}
