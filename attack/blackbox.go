package attack

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
)

// Attacks without gradients beside Square: by scores, and by the answer alone.
const (
	NES         Name = "nes"
	HopSkipJump Name = "hopskipjump"
)

// The constants of Ilyas et al. 2018, with a wider search for images of 8 bits.
const (
	nesPairs = 25    // antithetic draws for one slope
	nesSigma = 0.005 // deviation of a draw, share of the pixel range
)

// runNES is PGD along slopes that are estimated from scores: the mean over
// antithetic normal draws u of margin(x + σu)·u.
func runNES(ctx context.Context, k *task) error {
	for restart := range k.options.Restarts {
		of := k.open()
		var climbers []*climber
		chance := map[int]*rand.Rand{}
		for _, j := range of {
			c := &climber{task: k, of: j, now: make([]float32, k.size), y: make([]float64, k.size)}
			chance[j] = k.random(j, 0x0E5000+restart)
			if restart == 0 {
				copy(c.now, k.clean(j))
			} else {
				k.ball.scatter(chance[j], k.clean(j), c.now)
			}
			climbers = append(climbers, c)
		}
		for step := 0; step <= k.options.Steps && len(climbers) > 0; step++ {
			pixels := make([]float32, 0, len(climbers)*k.size)
			for _, c := range climbers {
				pixels = append(pixels, c.now...)
			}
			a, err := k.ask(ctx, pixels, nil)
			if err != nil {
				return err
			}
			var left []*climber
			for i, c := range climbers {
				if k.goals[c.of].reached(k.logits(a, i)) && !a.held(i) {
					k.take(c.of, c.now)
				} else {
					left = append(left, c)
				}
			}
			climbers = left
			if step < k.options.Steps {
				for _, c := range climbers {
					slope, err := k.estimate(ctx, c, chance[c.of])
					if err != nil {
						return err
					}
					c.move(slope)
				}
			}
			k.progress((float64(restart) + float64(step)/float64(k.options.Steps)) / float64(k.options.Restarts))
		}
	}
	k.progress(1)
	return nil
}

func (k *task) estimate(ctx context.Context, c *climber, rng *rand.Rand) ([]float32, error) {
	sigma := nesSigma * (k.about.High - k.about.Low)
	draws := make([][]float64, nesPairs)
	pixels := make([]float32, 0, 2*nesPairs*k.size)
	y := make([]float64, k.size)
	for d := range draws {
		draws[d] = make([]float64, k.size)
		for i := range draws[d] {
			draws[d][i] = rng.NormFloat64()
		}
		for _, sense := range []float64{1, -1} {
			for i, v := range c.now {
				y[i] = float64(v) + sense*sigma*draws[d][i]
			}
			pixels = append(pixels, k.ball.pixels(y)...)
		}
	}
	a, err := k.ask(ctx, pixels, nil)
	if err != nil {
		return nil, err
	}
	slope := make([]float32, k.size)
	g := k.goals[c.of]
	for d, u := range draws {
		rise := g.margin(k.logits(a, 2*d)) - a.penalty(2*d) - g.margin(k.logits(a, 2*d+1)) + a.penalty(2*d+1)
		for i, v := range u {
			slope[i] += float32(rise * v)
		}
	}
	return slope, nil
}

// The constants of Chen, Jordan and Wainwright 2020, section IV.
const (
	jumpDraws = 100  // for the first slope; √t times as many for the t-th
	jumpMost  = 1000 // draws
	jumpStart = 200  // random images for a first adversarial one
)

// runHopSkipJump sees answers only. From a random image that is answered as
// wanted it goes to the boundary, estimates the boundary's normal by answers
// around it, jumps along the normal and goes back to the boundary.
func runHopSkipJump(ctx context.Context, k *task) error {
	for j := range k.goals {
		if err := k.jump(ctx, j); err != nil {
			return err
		}
		k.progress(float64(j+1) / float64(len(k.goals)))
	}
	return nil
}

// answers says for points whether they fool.
func (k *task) answers(ctx context.Context, j int, points [][]float32) ([]bool, error) {
	a, err := k.ask(ctx, slices.Concat(points...), nil)
	if err != nil {
		return nil, err
	}
	fools := make([]bool, len(points))
	for i := range points {
		if fools[i] = k.goals[j].reached(k.logits(a, i)) && !a.held(i); fools[i] {
			k.improve(j, points[i])
		}
	}
	return fools, nil
}

func (k *task) jump(ctx context.Context, j int) error {
	rng := k.random(j, 0x01A000)
	clean := k.clean(j)
	now, err := k.somewhere(ctx, j, rng)
	if err != nil || now == nil {
		return err
	}
	size := float64(k.size)
	// Where bisection stops, and how far draws reach: section IV.C.
	theta := 1 / (size * math.Sqrt(size))
	if k.ball.norm == Linf {
		theta = 1 / (size * size)
	}
	y := make([]float64, k.size)
	reach := 0.1 * (k.about.High - k.about.Low)
	for step := 1; step <= k.options.Steps; step++ {
		if now, err = k.toBoundary(ctx, j, now, theta); err != nil {
			return err
		}
		far := k.ball.norm.Distance(clean, now)
		if far == 0 {
			return nil
		}
		if step > 1 {
			reach = math.Sqrt(size) * theta * far
			if k.ball.norm == Linf {
				reach = size * theta * far
			}
		}
		normal, err := k.normal(ctx, j, now, min(jumpMost, int(jumpDraws*math.Sqrt(float64(step)))), max(reach, 1e-4), rng)
		if err != nil {
			return err
		}
		// The step that still fools: ξ/√t, halved until it does.
		moved := false
		for length := far / math.Sqrt(float64(step)); length > 1e-6*far && !moved; length /= 2 {
			for i, v := range now {
				y[i] = float64(v) + length*normal[i]
			}
			there := k.ball.pixels(y)
			fools, err := k.answers(ctx, j, [][]float32{there})
			if err != nil {
				return err
			}
			if moved = fools[0]; moved {
				now = there
			}
		}
		if !moved {
			break
		}
	}
	_, err = k.toBoundary(ctx, j, now, theta)
	return err
}

// somewhere finds an image that fools: of random ones the nearest mixture with
// the original, which is darker or brighter noise all over.
func (k *task) somewhere(ctx context.Context, j int, rng *rand.Rand) ([]float32, error) {
	for range jumpStart / 50 {
		points := make([][]float32, 50)
		for p := range points {
			points[p] = make([]float32, k.size)
			level, spread := rng.Float64(), rng.Float64()
			y := make([]float64, k.size)
			for i := range y {
				y[i] = k.about.Low + (k.about.High-k.about.Low)*(level+spread*(rng.Float64()-0.5)*2)
			}
			points[p] = k.ball.pixels(y)
		}
		fools, err := k.answers(ctx, j, points)
		if err != nil {
			return nil, err
		}
		var best []float32
		for p, ok := range fools {
			if ok && (best == nil || k.ball.norm.Distance(k.clean(j), points[p]) < k.ball.norm.Distance(k.clean(j), best)) {
				best = points[p]
			}
		}
		if best != nil {
			return best, nil
		}
	}
	return nil, nil
}

// toBoundary bisects from an image that fools towards the original: along the
// straight way in L2, by cutting off the largest changes in Linf.
func (k *task) toBoundary(ctx context.Context, j int, from []float32, theta float64) ([]float32, error) {
	clean := k.clean(j)
	top := 1.0
	if k.ball.norm == Linf {
		top = Linf.Distance(clean, from)
	}
	low, high, best := 0.0, top, from
	for high-low > max(theta, 1e-7)*top {
		mid := (low + high) / 2
		var there []float32
		if k.ball.norm == Linf {
			y := make([]float64, k.size)
			for i, v := range from {
				y[i] = float64(clean[i]) + min(max(float64(v)-float64(clean[i]), -mid), mid)
			}
			there = k.ball.pixels(y)
		} else {
			there = k.between(clean, from, mid)
		}
		fools, err := k.answers(ctx, j, [][]float32{there})
		if err != nil {
			return nil, err
		}
		if fools[0] {
			high, best = mid, there
		} else {
			low = mid
		}
	}
	return best, nil
}

// normal estimates the direction in which more points fool (equation 16), of
// length 1: the sum of random directions, each by whether a step along it fools
// more or less often than the mean. In Linf its sign is taken.
func (k *task) normal(ctx context.Context, j int, at []float32, draws int, reach float64, rng *rand.Rand) ([]float64, error) {
	points := make([][]float32, draws)
	y := make([]float64, k.size)
	for d := range points {
		length := 0.0
		u := make([]float64, k.size)
		for i := range u {
			if k.ball.norm == Linf {
				u[i] = 2*rng.Float64() - 1
			} else {
				u[i] = rng.NormFloat64()
			}
			length += u[i] * u[i]
		}
		for i, v := range at {
			y[i] = float64(v) + reach*u[i]/math.Sqrt(length)
		}
		points[d] = k.ball.pixels(y)
	}
	fools, err := k.answers(ctx, j, points)
	if err != nil {
		return nil, err
	}
	mean := 0.0
	for _, ok := range fools {
		if ok {
			mean++
		}
	}
	mean = 2*mean/float64(draws) - 1
	out := make([]float64, k.size)
	for d, ok := range fools {
		v := -1.0
		if ok {
			v = 1
		}
		if math.Abs(mean) < 1 { // otherwise all agree, and their mean is the direction
			v -= mean
		}
		for i := range out {
			out[i] += v * (float64(points[d][i]) - float64(at[i]))
		}
	}
	length := 0.0
	for i, v := range out {
		if k.ball.norm == Linf {
			out[i] = sign(float32(v))
			continue
		}
		length += v * v
	}
	if k.ball.norm == L2 && length > 0 {
		for i := range out {
			out[i] /= math.Sqrt(length)
		}
	}
	return out, nil
}
