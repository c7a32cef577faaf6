package attack

import (
	"context"
	"math/rand/v2"
)

// task is an attack under way: the images that are to be fooled, and the best
// that was found for each.
type task struct {
	target  Target
	about   Description
	options Options
	ball    ball
	size    int
	at      []int     // position among the images given
	start   []float32 // clean images
	before  []float32 // their logits
	goals   []goal
	best    []float32 // adversarial image of each that is fooled
	fooled  []bool
	places  []*Place // of a patch
	made    []bool   // a shared change is made of it; nil: of none

	queries, gradients int
}

func (k *task) add(at int, pixels, logits []float32, label int) {
	g := goal{label, -1}
	if k.options.Class != nil {
		g.class = *k.options.Class
	}
	k.at = append(k.at, at)
	k.start = append(k.start, pixels...)
	k.best = append(k.best, pixels...)
	k.before = append(k.before, logits...)
	k.goals = append(k.goals, g)
	k.fooled = append(k.fooled, false)
	k.places = append(k.places, nil)
}

// divide draws the images that a shared change is made of: half of every class,
// rounded down, and one at least.
func (k *task) divide() {
	k.made = make([]bool, len(k.goals))
	rng := rand.New(rand.NewPCG(k.options.Seed, 0xD117DE))
	made := 0
	for class := range k.about.Classes {
		var of []int
		for j, g := range k.goals {
			if g.label == class {
				of = append(of, j)
			}
		}
		rng.Shuffle(len(of), func(a, b int) { of[a], of[b] = of[b], of[a] })
		for _, j := range of[:len(of)/2] {
			k.made[j] = true
			made++
		}
	}
	if made == 0 {
		k.made[0] = true
	}
}

// makers lists the images that a shared change is made of.
func (k *task) makers() []int {
	var of []int
	for j, made := range k.made {
		if made {
			of = append(of, j)
		}
	}
	return of
}

// clean and found are image j before and after, in place.
func (k *task) clean(j int) []float32 { return k.start[j*k.size : (j+1)*k.size] }
func (k *task) found(j int) []float32 { return k.best[j*k.size : (j+1)*k.size] }

// rows gathers images.
func (k *task) rows(of []int, row func(int) []float32) []float32 {
	out := make([]float32, 0, len(of)*k.size)
	for _, j := range of {
		out = append(out, row(j)...)
	}
	return out
}

// open lists the images that are not fooled yet.
func (k *task) open() []int {
	var of []int
	for j, ok := range k.fooled {
		if !ok {
			of = append(of, j)
		}
	}
	return of
}

// take keeps an image that fools.
func (k *task) take(j int, pixels []float32) {
	copy(k.found(j), pixels)
	k.fooled[j] = true
}

// random is the stream of chance of image j in a part of an attack.
func (k *task) random(j, part int) *rand.Rand {
	return rand.New(rand.NewPCG(k.options.Seed, uint64(k.at[j])<<24|uint64(part)))
}

func (k *task) ask(ctx context.Context, pixels []float32, o *Objective) (Answer, error) {
	a, err := k.target.Ask(ctx, pixels, o)
	k.queries += len(pixels) / k.size
	if o != nil {
		k.gradients += len(pixels) / k.size
	}
	return a, err
}

func (k *task) logits(a Answer, i int) []float32 {
	return a.Logits[i*k.about.Classes : (i+1)*k.about.Classes]
}

// climb asks for the loss's value and slope at examples with their goals. A loss
// whose slope depends on the logits costs another run of the model.
func (k *task) climb(ctx context.Context, pixels []float32, goals []goal, l Loss) (a Answer, values []float64, err error) {
	n := len(goals)
	var z []float32
	if !l.linear(k.about.Classes) {
		first, err := k.ask(ctx, pixels, nil)
		if err != nil {
			return a, nil, err
		}
		z = first.Logits
	}
	classes := k.about.Classes
	o := &Objective{Weights: make([]float32, n*classes), LogSumExp: make([]float32, n), Without: make([]int, n)}
	for i, g := range goals {
		var row []float32
		if z != nil {
			row = z[i*classes : (i+1)*classes]
		}
		o.LogSumExp[i], o.Without[i] = l.slope(row, g, o.Weights[i*classes:(i+1)*classes])
	}
	if a, err = k.ask(ctx, pixels, o); err != nil {
		return a, nil, err
	}
	values = make([]float64, n)
	for i, g := range goals {
		values[i] = l.value(k.logits(a, i), g) - a.penalty(i)
	}
	return a, values, nil
}

// progress tells how much is done.
func (k *task) progress(done float64) {
	if k.options.Progress != nil {
		k.options.Progress(min(1, done))
	}
}
