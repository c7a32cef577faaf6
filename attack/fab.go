package attack

import (
	"context"
	"math"
	"slices"
)

// FAB and DeepFool follow the linearised decision boundary.
const (
	FAB      Name = "fab"
	DeepFool Name = "deepfool"
)

// The constants of Croce and Hein 2020 (FAB), section 3.
const (
	fabOvershoot = 1.05 // η
	fabBias      = 0.1  // α_max: pull towards the original's own projection
	fabBack      = 0.9  // β: where to go on after crossing the boundary
)

func runFAB(ctx context.Context, k *task) error {
	return k.fab(ctx, k.all(), 0, k.progress)
}

// fab looks for the nearest adversarial example of the images listed, and leaves
// one alone once it is within enough.
func (k *task) fab(ctx context.Context, of []int, enough float64, report func(float64)) error {
	for restart := range k.options.Restarts {
		now := map[int][]float32{}
		for _, j := range of {
			if now[j] = slices.Clone(k.clean(j)); restart > 0 {
				half := min(k.distance(j), k.ball.eps, (k.about.High-k.about.Low)*8) / 2
				ball{k.ball.norm, half, k.ball.low, k.ball.high}.scatter(k.random(j, 0x0FAB00+restart), k.clean(j), now[j])
			}
		}
		for step := range k.options.Steps {
			left := slices.DeleteFunc(slices.Clone(of), func(j int) bool { return k.distance(j) <= enough })
			if len(left) == 0 {
				break
			}
			if err := k.fabStep(ctx, left, now); err != nil {
				return err
			}
			report((float64(restart) + float64(step+1)/float64(k.options.Steps)) / float64(k.options.Restarts))
		}
	}
	left := slices.DeleteFunc(slices.Clone(of), func(j int) bool { return k.distance(j) <= enough })
	return k.tighten(ctx, left, 10)
}

// fabStep moves every image onto its nearest linearised boundary, with a pull
// towards where the original would meet it, and back where it has crossed.
func (k *task) fabStep(ctx context.Context, of []int, now map[int][]float32) error {
	planes, err := k.planes(ctx, of, k.rows(of, func(j int) []float32 { return now[j] }))
	if err != nil {
		return err
	}
	here, there, y := make([]float64, k.size), make([]float64, k.size), make([]float64, k.size)
	next := make([]float32, 0, len(of)*k.size)
	for i, j := range of {
		x, clean := now[j], k.clean(j)
		p := k.ball.norm.nearest(planes[i])
		from := plane{p.value, p.slope} // the same plane, seen from the original
		for at, g := range p.slope {
			from.value += float64(g) * (float64(clean[at]) - float64(x[at]))
		}
		k.ball.onto(x, p, here)
		k.ball.onto(clean, from, there)
		step, own := k.length(x, here), k.length(clean, there)
		pull := 0.0
		if step+own > 0 {
			pull = min(step/(step+own), fabBias)
		}
		for at := range y {
			a := float64(x[at]) + fabOvershoot*(here[at]-float64(x[at]))
			b := float64(clean[at]) + fabOvershoot*(there[at]-float64(clean[at]))
			y[at] = (1-pull)*a + pull*b
		}
		now[j] = k.ball.pixels(y)
		next = append(next, now[j]...)
	}
	a, err := k.ask(ctx, next, nil)
	if err != nil {
		return err
	}
	for i, j := range of {
		if k.goals[j].reached(k.logits(a, i)) && !a.held(i) {
			k.improve(j, now[j])
			now[j] = k.between(k.clean(j), now[j], fabBack)
		}
	}
	return nil
}

// length is the norm of y - x.
func (k *task) length(x []float32, y []float64) float64 {
	sum := 0.0
	for i, v := range x {
		d := math.Abs(y[i] - float64(v))
		switch k.ball.norm {
		case Linf:
			sum = max(sum, d)
		case L2:
			sum += d * d
		default:
			sum += d
		}
	}
	if k.ball.norm == L2 {
		return math.Sqrt(sum)
	}
	return sum
}

// runDeepFool steps onto the nearest linearised boundary, and a fiftieth beyond,
// until the answer changes.
func runDeepFool(ctx context.Context, k *task) error {
	const overshoot = 1.02 // Moosavi-Dezfooli et al. 2016, section 5
	now := map[int][]float32{}
	of := k.all()
	for _, j := range of {
		now[j] = slices.Clone(k.clean(j))
	}
	y := make([]float64, k.size)
	for step := 0; step <= k.options.Steps && len(of) > 0; step++ {
		pixels := k.rows(of, func(j int) []float32 { return now[j] })
		if step == k.options.Steps { // the last step has no gradient
			a, err := k.ask(ctx, pixels, nil)
			if err != nil {
				return err
			}
			for i, j := range of {
				if k.goals[j].reached(k.logits(a, i)) && !a.held(i) {
					k.improve(j, now[j])
				}
			}
			break
		}
		planes, err := k.planes(ctx, of, pixels)
		if err != nil {
			return err
		}
		a, err := k.ask(ctx, pixels, nil)
		if err != nil {
			return err
		}
		var left []int
		for i, j := range of {
			if k.goals[j].reached(k.logits(a, i)) && !a.held(i) {
				k.improve(j, now[j])
				continue
			}
			left = append(left, j)
			x := now[j]
			k.ball.onto(x, k.ball.norm.nearest(planes[i]), y)
			for at := range y {
				y[at] = float64(x[at]) + overshoot*(y[at]-float64(x[at]))
			}
			now[j] = k.ball.pixels(y)
		}
		of = left
		k.progress(float64(step) / float64(k.options.Steps))
	}
	k.progress(1)
	return nil
}
