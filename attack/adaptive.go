package attack

import (
	"context"
	"math"
)

// Adaptive is the attacker who knows the guards.
const Adaptive Name = "adaptive"

// A tactic says where an image goes next, given the slope of the margin up, the
// slope of the penalty down (of the guards, and of what is imitated), and how far
// the image has come. Slopes are of mean size 1; either may be zero.
type tactic struct {
	name    string
	imitate bool // the penalty includes the distance from an image of the class that is wanted
	blind   bool // the guards' slope is not asked for
	move    func(a *adapter, up, down []float64) []float64
}

// The tactics, in the order in which they are tried on what is left. An image
// counts as soon as it is fooled and not held, by whichever.
var tactics = []tactic{
	// Away from the boundary as far as it goes, guards or no guards: what is let
	// pass on the way counts.
	{"confident", false, true, func(_ *adapter, up, _ []float64) []float64 { return up }},
	// One thing at a time: the class until it is reached, then the guards (Bryniarski
	// et al. 2021, "Evading adversarial example detection defenses with orthogonal
	// projected gradient descent", section 3.1).
	{"selective", false, false, func(a *adapter, up, down []float64) []float64 {
		if a.margin < a.need {
			return up
		}
		return down
	}},
	// The same without undoing the other: along what is orthogonal to it (section
	// 3.2).
	{"orthogonal", false, false, func(a *adapter, up, down []float64) []float64 {
		if a.margin < a.need {
			return across(up, down)
		}
		return across(down, up)
	}},
	// Both at once, the guards by a weight of their own for each image, which rises
	// while the class is reached and falls while it is not (Carlini and Wagner 2017,
	// "Adversarial examples are not easily detected", by dual ascent for their
	// search).
	{"penalty", false, false, (*adapter).weigh},
	// Near to what an image of the class that is wanted looks like inside (Sabour et
	// al. 2016, "Adversarial manipulation of deep representations"; against medical
	// detectors Yao et al. 2021, "A hierarchical feature constraint to camouflage
	// medical adversarial attacks").
	{"imitation", true, false, (*adapter).weigh},
}

// Of the climbs.
const (
	adaptRate   = 0.08 // of a step, share of the bound; falls to a twentieth of it
	adaptDecay  = 0.8  // of the mean slope
	adaptSquare = 0.95 // of the mean square
	adaptWeight = 1.05 // by which the weight of the guards changes at a step
)

// adapter is one image on its way.
type adapter struct {
	of     int
	now    []float32
	y      []float64
	mean   []float64 // of the direction
	square []float64
	step   int
	margin float64
	need   float64 // margin that is aimed at
	weight float64 // of the guards
	like   []float32
}

// runAdaptive tries every tactic on what is left.
func runAdaptive(ctx context.Context, k *task) error {
	passes := len(tactics) * k.options.Restarts
	best := make([]float64, len(k.goals)) // margin that confidence reached
	hopeless := func(j int) bool {
		// What is far from turning without regard for the guards does not turn with it.
		return best[j] < 0.1*k.goals[j].margin(k.before[j*k.about.Classes:(j+1)*k.about.Classes])
	}
	for restart := range k.options.Restarts {
		for i, t := range tactics {
			if restart > 0 && t.blind {
				continue
			}
			done := func(share float64) { k.progress((float64(restart*len(tactics)+i) + share) / float64(passes)) }
			if err := k.adapt(ctx, t, restart, restart*len(tactics)+i, best, hopeless, done); err != nil {
				return err
			}
		}
	}
	k.progress(1)
	return nil
}

func (k *task) adapt(ctx context.Context, t tactic, restart, part int, best []float64, hopeless func(int) bool, done func(float64)) error {
	var likes map[int][]float32
	if t.imitate {
		var err error
		if likes, err = k.likes(ctx); err != nil || likes == nil {
			return err
		}
	}
	var adapters []*adapter
	for _, j := range k.open() {
		a := &adapter{of: j, now: make([]float32, k.size), y: make([]float64, k.size), mean: make([]float64, k.size), square: make([]float64, k.size), weight: 1, like: likes[j]}
		if t.imitate && a.like == nil || !t.blind && hopeless(j) {
			continue
		}
		copy(a.now, k.clean(j))
		if restart > 0 {
			k.ball.scatter(k.random(j, 0xADA000+part), k.clean(j), a.now)
		}
		clean := k.goals[j].margin(k.before[j*k.about.Classes : (j+1)*k.about.Classes])
		if a.need = -0.02 * clean; t.blind {
			best[j] = clean
		}
		adapters = append(adapters, a)
	}
	for step := 0; step <= k.options.Steps && len(adapters) > 0; step++ {
		var err error
		if adapters, err = k.adaptStep(ctx, t, adapters, best, step < k.options.Steps); err != nil {
			return err
		}
		done(float64(step) / float64(k.options.Steps))
	}
	return nil
}

// adaptStep asks for both slopes, drops the images that have passed and moves the
// others.
func (k *task) adaptStep(ctx context.Context, t tactic, adapters []*adapter, best []float64, move bool) ([]*adapter, error) {
	n, classes := len(adapters), k.about.Classes
	pixels := make([]float32, 0, n*k.size)
	for _, a := range adapters {
		pixels = append(pixels, a.now...)
	}
	if !move {
		a, err := k.ask(ctx, pixels, nil)
		if err != nil {
			return nil, err
		}
		for i, x := range adapters {
			if k.goals[x.of].reached(k.logits(a, i)) && !a.held(i) {
				k.take(x.of, x.now)
			}
		}
		return nil, nil
	}
	up := &Objective{Weights: make([]float32, n*classes), Guards: make([]float32, n)}
	for i, x := range adapters {
		var z []float32
		if classes > 2 {
			// The likeliest other class as the image was: it does not change on the way,
			// nor with it what the guards compare with.
			z = k.before[x.of*classes : (x.of+1)*classes]
		}
		Margin.slope(z, k.goals[x.of], up.Weights[i*classes:(i+1)*classes])
	}
	first, err := k.ask(ctx, pixels, up)
	if err != nil {
		return nil, err
	}
	var second Answer
	if !t.blind {
		down := &Objective{Weights: make([]float32, n*classes), Guards: make([]float32, n)}
		for i, w := range up.Weights {
			down.Weights[i] = 1e-20 * w // nothing beside the guards; it tells them the class that is wanted
		}
		if t.imitate {
			down.Like = make([][]float32, n)
		}
		for i, x := range adapters {
			down.Guards[i] = 1
			if t.imitate {
				down.Like[i] = x.like
			}
		}
		if second, err = k.ask(ctx, pixels, down); err != nil {
			return nil, err
		}
	}
	var left []*adapter
	for i, x := range adapters {
		z := k.logits(first, i)
		x.margin = k.goals[x.of].margin(z)
		best[x.of] = max(best[x.of], x.margin)
		held, reached := first.held(i), k.goals[x.of].reached(z)
		if reached && !held {
			k.take(x.of, x.now)
			continue
		}
		left = append(left, x)
		penalty := second.penalty(i)
		if reached && x.margin >= x.need && penalty == 0 && !t.blind {
			// The guards that can be climbed have nothing left to say, and it is held all
			// the same, such as for a probability near a threshold: further in.
			x.need = max(1.3*x.need, 0.05*math.Abs(x.margin))
		}
		raise := scaled(first.Gradient[i*k.size : (i+1)*k.size])
		var lower []float64
		if t.blind {
			lower = make([]float64, k.size)
		} else {
			lower = scaled(second.Gradient[i*k.size : (i+1)*k.size])
		}
		x.move(k, t.move(x, raise, lower))
	}
	return left, nil
}

// weigh adds the two slopes by the image's own weight.
func (a *adapter) weigh(up, down []float64) []float64 {
	if a.margin >= a.need {
		a.weight = min(a.weight*adaptWeight, 1e3)
	} else if a.margin < 0 {
		a.weight = max(a.weight/adaptWeight, 1e-3)
	}
	out := make([]float64, len(up))
	for i := range out {
		out[i] = a.weight * down[i]
		if a.margin < a.need {
			out[i] += up[i]
		}
	}
	return out
}

// move takes a step along a direction: in Linf by Adam, whose steps grow small
// where the direction wavers, in L2 along its mean.
func (a *adapter) move(k *task, direction []float64) {
	a.step++
	share := float64(a.step) / float64(k.options.Steps)
	rate := adaptRate * (0.05 + 0.95*(1+math.Cos(math.Pi*share))/2) * k.ball.eps
	length := 0.0
	for i, d := range direction {
		a.mean[i] = adaptDecay*a.mean[i] + (1-adaptDecay)*d
		a.square[i] = adaptSquare*a.square[i] + (1-adaptSquare)*d*d
		length += a.mean[i] * a.mean[i]
	}
	mean, square := 1-math.Pow(adaptDecay, float64(a.step)), 1-math.Pow(adaptSquare, float64(a.step))
	for i, v := range a.now {
		a.y[i] = float64(v)
		switch {
		case k.ball.norm == Linf:
			a.y[i] += rate * (a.mean[i] / mean) / (math.Sqrt(a.square[i]/square) + 1e-3)
		case length > 0:
			a.y[i] += 2 * rate * a.mean[i] / math.Sqrt(length)
		}
	}
	k.ball.project(k.clean(a.of), a.y, a.now)
}

// scaled is a slope of mean size 1.
func scaled(slope []float32) []float64 {
	sum := 0.0
	for _, v := range slope {
		sum += math.Abs(float64(v))
	}
	out := make([]float64, len(slope))
	if sum == 0 {
		return out
	}
	for i, v := range slope {
		out[i] = float64(v) * float64(len(slope)) / sum
	}
	return out
}

// across is the part of a that is orthogonal to b.
func across(a, b []float64) []float64 {
	dot, square := 0.0, 0.0
	for i := range a {
		dot += a[i] * b[i]
		square += b[i] * b[i]
	}
	if square == 0 {
		return a
	}
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] - dot/square*b[i]
	}
	return out
}

// likes are, for each image, the inner representation of the image of the class
// that is wanted which looks most like it inside; nil if the target does not show
// its inside.
func (k *task) likes(ctx context.Context) (map[int][]float32, error) {
	target, ok := k.target.(Insider)
	if !ok {
		return nil, nil
	}
	all, err := target.Inside(ctx, k.start)
	k.queries += len(all)
	if err != nil {
		return nil, err
	}
	out := map[int][]float32{}
	for j, g := range k.goals {
		wanted := g.class
		if wanted < 0 {
			wanted = other(k.before[j*k.about.Classes:(j+1)*k.about.Classes], g.label)
		}
		nearest := math.Inf(1)
		for i, h := range k.goals {
			if h.label != wanted {
				continue
			}
			d := 0.0
			for c, v := range all[i] {
				d += float64(v-all[j][c]) * float64(v-all[j][c])
			}
			if d < nearest {
				nearest, out[j] = d, all[i]
			}
		}
	}
	return out, nil
}
