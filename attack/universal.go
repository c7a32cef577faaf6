package attack

import (
	"context"
	"math"
	"slices"
)

// Universal is one perturbation for all images.
const Universal Name = "universal"

// runUniversal climbs the mean margin of the images that it is made of, cut off
// where one is fooled by enough (Shafahi et al. 2020), by the sign of the mean
// slope in Linf and along it in L2, and keeps the perturbation that fools most of
// them. It is judged on the others.
func runUniversal(ctx context.Context, k *task) error {
	makers := k.makers()
	n := len(makers)
	goals := make([]goal, n)
	for i, j := range makers {
		goals[i] = k.goals[j]
	}
	best, bestFooled := []float64(nil), -1
	for restart := range k.options.Restarts {
		rng := k.random(0, 0x0A0000+restart)
		delta := make([]float64, k.size)
		if restart > 0 {
			for i := range delta {
				delta[i] = (2*rng.Float64() - 1) * k.ball.eps / math.Sqrt(float64(k.size))
			}
		}
		kept := make([]float64, k.size) // momentum
		for step := 0; step <= k.options.Steps; step++ {
			pixels := k.apply(makers, delta)
			o := &Objective{Weights: make([]float32, n*k.about.Classes)}
			a, err := k.ask(ctx, pixels, nil)
			if err != nil {
				return err
			}
			fooled := 0
			for i, g := range goals {
				z := k.logits(a, i)
				if g.reached(z) && !a.held(i) {
					fooled++
				}
				// Far beyond the boundary an image has nothing more to give.
				if g.margin(z)-a.penalty(i) < k.slack() {
					Margin.slope(z, g, o.Weights[i*k.about.Classes:(i+1)*k.about.Classes])
				}
			}
			if fooled > bestFooled {
				best, bestFooled = slices.Clone(delta), fooled
			}
			if step == k.options.Steps || fooled == n {
				break
			}
			if a, err = k.ask(ctx, pixels, o); err != nil {
				return err
			}
			k.raise(delta, kept, a.Gradient, step)
			k.progress((float64(restart) + float64(step)/float64(k.options.Steps)) / float64(k.options.Restarts))
		}
	}
	all := k.all()
	if err := k.takeAll(ctx, all, k.apply(all, best)); err != nil {
		return err
	}
	k.progress(1)
	return nil
}

// takeAll asks about changed images and takes those that are fooled.
func (k *task) takeAll(ctx context.Context, of []int, pixels []float32) error {
	a, err := k.ask(ctx, pixels, nil)
	if err != nil {
		return err
	}
	for i, j := range of {
		if k.goals[j].reached(k.logits(a, i)) && !a.held(i) {
			k.take(j, pixels[i*k.size:(i+1)*k.size])
		}
	}
	return nil
}

// slack is how far beyond the boundary an image still counts: half of the
// typical margin of the images as they are.
func (k *task) slack() float64 {
	sum := 0.0
	for j, g := range k.goals {
		sum -= g.margin(k.before[j*k.about.Classes : (j+1)*k.about.Classes])
	}
	return sum / float64(len(k.goals)) / 2
}

// apply adds one perturbation to images.
func (k *task) apply(of []int, delta []float64) []float32 {
	pixels := make([]float32, len(of)*k.size)
	y := make([]float64, k.size)
	for i, j := range of {
		for p, v := range k.clean(j) {
			y[p] = float64(v) + delta[p]
		}
		k.ball.project(k.clean(j), y, pixels[i*k.size:(i+1)*k.size])
	}
	return pixels
}

// raise takes a step of the perturbation along the images' mean slope, which
// shrinks from a fifth of the bound to a hundredth.
func (k *task) raise(delta, kept []float64, gradient []float32, step int) {
	mean := make([]float64, k.size)
	length := 0.0
	for i, v := range gradient {
		mean[i%k.size] += float64(v)
	}
	for _, v := range mean {
		length += math.Abs(v)
	}
	for i := range kept {
		kept[i] *= 0.9
		if length > 0 {
			kept[i] += mean[i] / length
		}
	}
	norm := 0.0
	for _, v := range kept {
		norm += v * v
	}
	stride := k.ball.eps * max(0.01, 0.2*(1-float64(step)/float64(k.options.Steps)))
	squared := 0.0
	for i, v := range kept {
		if k.ball.norm == Linf {
			delta[i] = min(max(delta[i]+stride*sign(float32(v)), -k.ball.eps), k.ball.eps)
			continue
		}
		if norm > 0 {
			delta[i] += stride * v / math.Sqrt(norm)
		}
		squared += delta[i] * delta[i]
	}
	if k.ball.norm == L2 && squared > k.ball.eps*k.ball.eps {
		for i := range delta {
			delta[i] *= k.ball.eps / math.Sqrt(squared)
		}
	}
}
