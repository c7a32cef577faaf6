package train

import (
	"math"

	"github.com/vigie/vigie/engine"
)

// Optimizer changes weights along their gradients. Implementations keep their
// state per weight, in exported fields so that a checkpoint holds it, in the order of the slices, which must stay the same.
type Optimizer interface {
	// Step moves weights[i] along gradients[i]. decay[i] says whether weight
	// decay applies: to matrices and kernels, not to biases and gains.
	Step(rate float64, weights, gradients [][]float32, decay []bool)
}

// SGD is stochastic gradient descent with momentum (Sutskever et al. 2013, in
// the form v ← μv + g, w ← w - rate·v).
type SGD struct {
	Momentum float64
	Nesterov bool
	Decay    float64 // added to the gradient as decay·w

	Velocity [][]float32 // state
}

// Step implements Optimizer.
func (o *SGD) Step(rate float64, weights, gradients [][]float32, decay []bool) {
	if o.Velocity == nil {
		o.Velocity = zerosLike(weights)
	}
	mu, lr := float32(o.Momentum), float32(rate)
	for i, w := range weights {
		g, v := gradients[i], o.Velocity[i]
		d := float32(0)
		if decay[i] {
			d = float32(o.Decay)
		}
		for j := range w {
			s := g[j] + d*w[j]
			v[j] = mu*v[j] + s
			if o.Nesterov {
				w[j] -= lr * (s + mu*v[j])
			} else {
				w[j] -= lr * v[j]
			}
		}
	}
}

// AdamW is Adam with decoupled weight decay (Loshchilov and Hutter 2019). Zero
// fields mean β₁ = 0.9, β₂ = 0.999, ε = 1e-8.
type AdamW struct {
	Beta1, Beta2, Epsilon float64
	Decay                 float64

	// Kernels takes the step in the engine's own code, which rounds a little
	// differently.
	Kernels bool

	Steps         int         // state: steps taken
	First, Second [][]float32 // state: moments
}

// Step implements Optimizer.
func (o *AdamW) Step(rate float64, weights, gradients [][]float32, decay []bool) {
	if o.First == nil {
		o.First, o.Second = zerosLike(weights), zerosLike(weights)
	}
	b1, b2, eps := orElse(o.Beta1, 0.9), orElse(o.Beta2, 0.999), orElse(o.Epsilon, 1e-8)
	o.Steps++
	size := float32(rate / (1 - math.Pow(b1, float64(o.Steps))))
	correct := float32(1 / (1 - math.Pow(b2, float64(o.Steps))))
	f1, f2, e := float32(b1), float32(b2), float32(eps)
	n1, n2 := float32(1-b1), float32(1-b2) // not 1-f2: float32 knows 0.999 to 1e-5 of the rest only
	for i, w := range weights {
		g, m, v := gradients[i], o.First[i], o.Second[i]
		keep := float32(1)
		if decay[i] {
			keep = float32(1 - rate*o.Decay)
		}
		if o.Kernels {
			engine.AdamW(engine.Moments{Beta1: f1, Rest1: n1, Beta2: f2, Rest2: n2, Keep: keep, Size: size, Correct: correct, Epsilon: e}, w, g, m, v)
			continue
		}
		for j := range w {
			m[j] = f1*m[j] + n1*g[j]
			v[j] = f2*v[j] + n2*g[j]*g[j]
			w[j] = keep*w[j] - size*m[j]/(float32(math.Sqrt(float64(v[j]*correct)))+e)
		}
	}
}

func orElse(v, def float64) float64 {
	if v == 0 {
		return def
	}
	return v
}

func zerosLike(weights [][]float32) [][]float32 {
	out := make([][]float32, len(weights))
	for i, w := range weights {
		out[i] = make([]float32, len(w))
	}
	return out
}

// Clip scales gradients down so that their joint Euclidean norm is at most limit
// (Pascanu et al. 2013), and returns the norm they had. A limit of 0 only
// measures.
func Clip(gradients [][]float32, limit float64) float64 {
	sum := 0.0
	for _, g := range gradients {
		for _, v := range g {
			sum += float64(v) * float64(v)
		}
	}
	norm := math.Sqrt(sum)
	if limit > 0 && norm > limit {
		scale := float32(limit / norm)
		for _, g := range gradients {
			for j := range g {
				g[j] *= scale
			}
		}
	}
	return norm
}

// CosineRate is the learning rate at step (from 0) of total: linear warm-up to
// peak over the first steps, then half a cosine down to zero (Loshchilov and
// Hutter 2017).
func CosineRate(peak float64, step, warmup, total int) float64 {
	if step < warmup {
		return peak * float64(step+1) / float64(warmup)
	}
	if total <= warmup {
		return peak
	}
	done := float64(step-warmup) / float64(total-warmup)
	return peak * 0.5 * (1 + math.Cos(math.Pi*math.Min(done, 1)))
}

// Average is an exponential moving average of weights. Its decay grows from 0,
// so that the start does not weigh on short runs: min(Decay, (1+t)/(10+t)).
type Average struct {
	Decay   float64
	Weights [][]float32
	Steps   int
}

// Update folds the weights in.
func (a *Average) Update(weights [][]float32) {
	if a.Weights == nil {
		a.Weights = zerosLike(weights)
	}
	a.Steps++
	keep := float32(math.Min(a.Decay, float64(1+a.Steps)/float64(10+a.Steps)))
	if a.Steps == 1 {
		keep = 0
	}
	for i, w := range weights {
		mean := a.Weights[i]
		for j := range w {
			mean[j] += (1 - keep) * (w[j] - mean[j])
		}
	}
}
