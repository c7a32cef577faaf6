package attack

import (
	"context"
	"math"
	"slices"
)

// Auto-PGD (Croce and Hein 2020, algorithm 1), by loss.
const (
	APGDCE  Name = "apgd-ce"
	APGDDLR Name = "apgd-dlr"
	APGDT   Name = "apgd-t"
)

// The constants of the paper, section 3.
const (
	inertia    = 0.75 // α: share of the new step in the move
	persistent = 0.75 // ρ: steps between checkpoints that must have raised the loss
)

func runAPGD(l Loss) func(context.Context, *task) error {
	return func(ctx context.Context, k *task) error {
		for restart := range k.options.Restarts {
			report := func(done float64) { k.progress((float64(restart) + done) / float64(k.options.Restarts)) }
			if err := k.apgd(ctx, l, k.open(), nil, restart, report); err != nil {
				return err
			}
		}
		k.progress(1)
		return nil
	}
}

// runAPGDTargeted aims at each of the nine likeliest other classes by the
// targeted DLR (section 4). Of two classes there is one, and no such ratio.
func runAPGDTargeted(ctx context.Context, k *task) error {
	if k.about.Classes == 2 || k.options.Class != nil {
		return runAPGD(DLR)(ctx, k)
	}
	aims := min(9, k.about.Classes-1)
	passes := aims * k.options.Restarts
	for pass := range passes {
		of := k.open()
		goals := make([]goal, len(of))
		for i, j := range of {
			g := k.goals[j]
			order := byValue(k.before[j*k.about.Classes : (j+1)*k.about.Classes])
			order = slices.DeleteFunc(order, func(c int) bool { return c == g.label })
			goals[i] = goal{g.label, order[pass%aims]}
		}
		report := func(done float64) { k.progress((float64(pass) + done) / float64(passes)) }
		if err := k.apgd(ctx, DLR, of, goals, pass, report); err != nil {
			return err
		}
	}
	k.progress(1)
	return nil
}

// runner is one image on APGD's way.
type runner struct {
	of            int
	goal          goal
	step          float64 // η
	now, before   []float32
	slope         []float32 // at now
	best          []float32 // where the loss was highest
	bestSlope     []float32
	highest, last float64 // loss at best, at now
	rises         int     // steps since the checkpoint that raised the loss
	checkedStep   float64 // η and highest at the last checkpoint
	checkedBest   float64
	y             []float64
}

// checkpoints are the steps after which the step size is thought over: w_j =
// ⌈p_j·N⌉, p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).
func checkpoints(steps int) []int {
	var w []int
	for p, before := 0.22, 0.0; p <= 1; {
		w = append(w, int(math.Ceil(p*float64(steps))))
		p, before = p+max(p-before-0.03, 0.06), p
	}
	return w
}

// apgd runs the images listed, towards goals (nil: their own) judged by their
// own, from random starts.
func (k *task) apgd(ctx context.Context, l Loss, of []int, goals []goal, part int, report func(float64)) error {
	var runners []*runner
	for i, j := range of {
		r := &runner{of: j, goal: k.goals[j], step: 2 * k.ball.eps, now: make([]float32, k.size), y: make([]float64, k.size)}
		if goals != nil {
			r.goal = goals[i]
		}
		k.ball.scatter(k.random(j, part), k.clean(j), r.now)
		r.before = slices.Clone(r.now)
		runners = append(runners, r)
	}
	checks := checkpoints(k.options.Steps)
	from := 0 // the last checkpoint
	for step := 0; step <= k.options.Steps && len(runners) > 0; step++ {
		var err error
		if runners, err = k.look(ctx, l, runners, step == 0); err != nil {
			return err
		}
		check := slices.Contains(checks, step)
		for _, r := range runners {
			if check {
				r.think(step - from)
			}
			if step < k.options.Steps {
				k.advance(r, step == 0)
			}
		}
		if check {
			from = step
		}
		report(float64(step) / float64(k.options.Steps))
	}
	return nil
}

// look asks where the runners stand, notes what is best and drops those that
// have arrived.
func (k *task) look(ctx context.Context, l Loss, runners []*runner, first bool) ([]*runner, error) {
	pixels := make([]float32, 0, len(runners)*k.size)
	goals := make([]goal, len(runners))
	for i, r := range runners {
		pixels = append(pixels, r.now...)
		goals[i] = r.goal
	}
	a, values, err := k.climb(ctx, pixels, goals, l)
	if err != nil {
		return nil, err
	}
	var left []*runner
	for i, r := range runners {
		if k.goals[r.of].reached(k.logits(a, i)) && !a.held(i) {
			k.take(r.of, r.now)
			continue
		}
		left = append(left, r)
		r.slope = slices.Clone(a.Gradient[i*k.size : (i+1)*k.size])
		if !first && values[i] > r.last {
			r.rises++
		}
		r.last = values[i]
		if first || values[i] > r.highest {
			r.highest = values[i]
			r.best, r.bestSlope = slices.Clone(r.now), r.slope
		}
		if first {
			r.checkedStep, r.checkedBest = r.step, r.highest
		}
	}
	return left, nil
}

// think halves the step and goes back to the best image if too few steps since
// the last checkpoint have raised the loss, or if neither step size nor best loss
// have changed between two checkpoints.
func (r *runner) think(steps int) {
	stuck := float64(r.rises) < persistent*float64(steps) || r.step == r.checkedStep && r.highest == r.checkedBest
	r.checkedStep, r.checkedBest, r.rises = r.step, r.highest, 0
	if stuck {
		r.step /= 2
		r.now, r.slope, r.last = slices.Clone(r.best), r.bestSlope, r.highest
		r.before = slices.Clone(r.now)
	}
}

// advance moves by the gradient and by inertia, projecting twice.
func (k *task) advance(r *runner, first bool) {
	clean, b := k.clean(r.of), k.ball
	for i, v := range r.now {
		r.y[i] = float64(v)
	}
	b.along(r.now, r.slope, r.step, r.y)
	z := make([]float32, k.size)
	b.project(clean, r.y, z)
	if first {
		r.before, r.now = r.now, z
		return
	}
	for i, v := range r.now {
		r.y[i] = float64(v) + inertia*(float64(z[i])-float64(v)) + (1-inertia)*(float64(v)-float64(r.before[i]))
	}
	b.project(clean, r.y, z)
	r.before, r.now = r.now, z
}
