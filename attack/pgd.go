package attack

import (
	"context"
	"math"
	"math/rand/v2"
)

// The attacks along the gradient.
const (
	FGSM Name = "fgsm"
	PGD  Name = "pgd"
)

// runFGSM takes the whole bound in one step.
func runFGSM(ctx context.Context, k *task) error {
	a, _, err := k.climb(ctx, k.start, k.goals, k.options.Loss)
	if err != nil {
		return err
	}
	out := make([]float32, len(k.start))
	y := make([]float64, k.size)
	for j := range k.goals {
		k.ball.steepest(k.clean(j), a.Gradient[j*k.size:(j+1)*k.size], y)
		k.ball.project(k.clean(j), y, out[j*k.size:(j+1)*k.size])
	}
	if a, err = k.ask(ctx, out, nil); err != nil {
		return err
	}
	for j, g := range k.goals {
		if g.reached(k.logits(a, j)) && !a.held(j) {
			k.take(j, out[j*k.size:(j+1)*k.size])
		}
	}
	k.progress(1)
	return nil
}

// runPGD climbs from each start and leaves an image alone once it is fooled.
func runPGD(ctx context.Context, k *task) error {
	o := k.options
	for restart := range o.Restarts {
		of := k.open()
		if len(of) == 0 {
			break
		}
		climbers := make([]*climber, len(of))
		for i, j := range of {
			c := &climber{task: k, of: j, now: make([]float32, k.size), y: make([]float64, k.size)}
			if restart == 0 && o.FromHere {
				copy(c.now, k.clean(j))
			} else {
				k.ball.scatter(k.random(j, restart), k.clean(j), c.now)
			}
			climbers[i] = c
		}
		for step := 0; step <= o.Steps && len(climbers) > 0; step++ {
			var err error
			if climbers, err = k.pgdStep(ctx, climbers, step < o.Steps); err != nil {
				return err
			}
			k.progress((float64(restart) + float64(step)/float64(o.Steps)) / float64(o.Restarts))
		}
	}
	k.progress(1)
	return nil
}

// climber is an image on its way.
type climber struct {
	*task
	of        int
	now       []float32
	direction []float64 // kept by momentum
	y         []float64
}

// pgdStep asks where the climbers stand, drops those that have arrived and moves
// the others on, unless it was the last time.
func (k *task) pgdStep(ctx context.Context, climbers []*climber, move bool) ([]*climber, error) {
	pixels := make([]float32, 0, len(climbers)*k.size)
	goals := make([]goal, len(climbers))
	for i, c := range climbers {
		pixels = append(pixels, c.now...)
		goals[i] = k.goals[c.of]
	}
	var a Answer
	var err error
	if move {
		a, _, err = k.climb(ctx, pixels, goals, k.options.Loss)
	} else {
		a, err = k.ask(ctx, pixels, nil)
	}
	if err != nil {
		return nil, err
	}
	var left []*climber
	for i, c := range climbers {
		if goals[i].reached(k.logits(a, i)) && !a.held(i) {
			k.take(c.of, c.now)
			continue
		}
		left = append(left, c)
		if move {
			c.move(a.Gradient[i*k.size : (i+1)*k.size])
		}
	}
	return left, nil
}

// move takes one step along a slope.
func (c *climber) move(g []float32) {
	o, b := c.options, c.ball
	if o.Momentum > 0 {
		g = c.keep(g)
	}
	share := o.StepSize
	if share == 0 {
		share = 2.5 / float64(o.Steps)
	}
	for i, v := range c.now {
		c.y[i] = float64(v)
	}
	b.along(c.now, g, share*b.eps, c.y)
	b.project(c.clean(c.of), c.y, c.now)
}

// keep adds a slope, of sum 1, to what is kept of the former (Dong et al. 2018,
// equation 6).
func (c *climber) keep(g []float32) []float32 {
	if c.direction == nil {
		c.direction = make([]float64, len(g))
	}
	sum := 0.0
	for _, v := range g {
		sum += math.Abs(float64(v))
	}
	out := make([]float32, len(g))
	for i, v := range g {
		c.direction[i] *= c.options.Momentum
		if sum > 0 {
			c.direction[i] += float64(v) / sum
		}
		out[i] = float32(c.direction[i])
	}
	return out
}

// along adds to y, an image at now, a step of some length in the direction that
// is steepest by the norm. In L1 that would be one pixel; the step is shared by
// the twentieth of the pixels that are steepest and have room (Tramèr and Boneh
// 2019, SLIDE).
func (b ball) along(now, g []float32, length float64, y []float64) {
	switch b.norm {
	case Linf:
		for i, v := range g {
			y[i] += length * sign(v)
		}
	case L2:
		sum := 0.0
		for _, v := range g {
			sum += float64(v) * float64(v)
		}
		if sum > 0 {
			for i, v := range g {
				y[i] += length / math.Sqrt(sum) * float64(v)
			}
		}
	case L1:
		left := max(1, len(g)/20)
		share := length / float64(left)
		for _, i := range byMagnitude(g) {
			if left == 0 || g[i] == 0 {
				break
			}
			if b.room(now[i], g[i]) > 0 {
				y[i] += share * sign(g[i])
				left--
			}
		}
	}
}

// scatter writes a random allowed example: uniform in the cube of Linf and in
// the ball of L2 or L1, then projected onto the range.
func (b ball) scatter(rng *rand.Rand, x, out []float32) {
	y := make([]float64, len(x))
	length := 0.0
	for i := range y {
		switch b.norm {
		case Linf:
			y[i] = 2*rng.Float64() - 1
		case L2:
			y[i] = rng.NormFloat64()
			length = math.Hypot(length, y[i])
		case L1:
			y[i] = rng.ExpFloat64() * float64(1-2*rng.IntN(2))
			length += math.Abs(y[i])
		}
	}
	scale := b.eps
	if b.norm != Linf {
		scale *= math.Pow(rng.Float64(), 1/float64(len(x))) / max(length, 1e-300)
	}
	for i, v := range x {
		y[i] = float64(v) + scale*y[i]
	}
	b.project(x, y, out)
}
