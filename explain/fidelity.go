package explain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// CheckOptions says how to test a map. The zero value takes defaults.
type CheckOptions struct {
	// Background is what removed places become; nil: that of Options.
	Background Background
	// Score is what removal is measured by; empty: Probability, as Petsiuk et
	// al. have it, or Logit for a model with one output. For labels that do not
	// exclude each other choose Logit.
	Score       Score
	Steps       int // points of a curve after the first; 0: 20
	RandomMaps  int // maps to compare with; 0: 39, so that the smallest p is 1/40
	FewestMaps  int // a test that ctx's deadline cuts short still counts with that many; 0: it does not
	FewestSteps int // where FewestMaps would not fit before ctx's deadline, curves have fewer points, down to that many; 0: they do not
	// Decided ends a test as soon as the map cannot pass any more, whatever the
	// random maps to come: P is then that of fewer, and above Significance (the
	// sequential test of Besag and Clifford 1991).
	Decided        bool
	Randomisations int // of the weights; 0: 5
	Layers         int // stages of the cascade, spread over the model's depth; 0: 6
}

func (c CheckOptions) check() error {
	for _, option := range []struct {
		name  string
		value int
	}{{"Steps", c.Steps}, {"RandomMaps", c.RandomMaps}, {"FewestMaps", c.FewestMaps}, {"FewestSteps", c.FewestSteps}, {"Randomisations", c.Randomisations}, {"Layers", c.Layers}} {
		if option.value < 0 || option.value > 1<<16 {
			return fmt.Errorf("check option %s is %d: want 0 for the default, or more: %w", option.name, option.value, ErrInput)
		}
	}
	return Options{Score: c.Score}.check()
}

// Curve is the mean score over the backgrounds as more and more of an input is
// taken away or put back.
type Curve struct {
	Changed []float64 // share of the places, 0..1
	Score   []float64
	Area    float64 // under the curve, by trapezoids
}

// Fidelity says whether what a map marks is what the answer rests on: deletion
// takes the places away from the highest value on, insertion puts them back
// (RISE: Petsiuk et al. 2018). A good map has a small area under the first and
// a large one under the second.
type Fidelity struct {
	Deletion, Insertion Curve
	Score               float64 // insertion area - deletion area
	// Random holds the scores of random maps of the same grain: the map itself
	// flipped and shifted around (images, sequences), or its values dealt out
	// anew over the segments or the features. They differ from it in nothing
	// but where they lie.
	Random []float64
	// P is the share of random maps that do as well, this one included: small
	// where the place matters.
	P float64
}

// Measure computes the deletion and insertion scores of a map, whatever made
// it, and those of random maps. o is as for New.
func Measure(ctx context.Context, m *onnx.Model, input engine.Tensor, made *Map, o Options, c CheckOptions) (*Fidelity, error) {
	t, err := NewTester(m, o, c)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return t.Measure(ctx, input, made)
}

// Tester is Measure for many maps of one model, which it opens once. It is safe
// for concurrent use.
type Tester struct {
	subject *subject
	options CheckOptions
}

// NewTester opens a model to test its maps. Errors: ErrNoBackground where
// neither o nor c has one, ErrInput, and the engine's.
func NewTester(m *onnx.Model, o Options, c CheckOptions) (*Tester, error) {
	t, err := openTester(m, o, c)
	if err != nil {
		return nil, fmt.Errorf("explain: preparing the test of maps: %w", err)
	}
	return t, nil
}

func openTester(m *onnx.Model, o Options, c CheckOptions) (*Tester, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Background != nil {
		o.Background = c.Background
	}
	if o.Background == nil {
		return nil, ErrNoBackground
	}
	o.Score = c.Score
	s, err := openSubject(m, o)
	if err != nil {
		return nil, err
	}
	if c.Score == "" && s.classes > 1 {
		s.score = Probability
	}
	return &Tester{s, c}, nil
}

// Answer is the model's answer on an input: one logit for each class.
func (t *Tester) Answer(ctx context.Context, input engine.Tensor) ([]float32, error) {
	values, err := t.subject.example(input, 0)
	if err != nil {
		return nil, fmt.Errorf("explain: asking the model: %w", err)
	}
	var logits []float32
	err = t.subject.answers(ctx, 1, func(_ int, row []float32) { copy(row, values) }, func(_ int, z []float32) { logits = slices.Clone(z) }, nil)
	if err != nil {
		return nil, fmt.Errorf("explain: asking the model: %w", err)
	}
	return logits, nil
}

// Close frees the graph.
func (t *Tester) Close() error { return t.subject.Close() }

// Measure computes the deletion and insertion scores of a map and those of
// random maps. Where ctx's deadline passes meanwhile, the random maps up to then
// are what the map is compared with, if they are CheckOptions.FewestMaps or
// more: a time that does not depend on the outcome leaves P as it should be.
func (t *Tester) Measure(ctx context.Context, input engine.Tensor, made *Map) (*Fidelity, error) {
	f, err := t.measure(ctx, input, made)
	if err != nil {
		return nil, fmt.Errorf("explain: measuring a map: %w", err)
	}
	return f, nil
}

func (t *Tester) measure(ctx context.Context, input engine.Tensor, made *Map) (*Fidelity, error) {
	s, c := t.subject, t.options
	values, err := s.example(input, made.Class)
	if err != nil {
		return nil, err
	}
	if places := s.layout.places(); len(made.Values) != places || made.Segments != nil && len(made.Segments) != places {
		return nil, fmt.Errorf("a map of %d values and %d segments for %d places: %w", len(made.Values), len(made.Segments), places, ErrInput)
	}
	if i, ok := firstUnusable(made.Values); ok {
		return nil, fmt.Errorf("value %d of the map is %v: %w", i, made.Values[i], ErrInput)
	}
	if made.Segments != nil {
		if _, _, err := groups(made.Segments, len(made.Values)); err != nil {
			return nil, err
		}
	}
	from, err := s.background(input)
	if err != nil {
		return nil, err
	}
	if _, err := s.logitsOf(ctx, values, from[0]); err != nil {
		return nil, err
	}
	r := &removal{subject: s, values: values, from: from, class: made.Class, steps: min(or(c.Steps, 20), s.layout.places())}
	rng := rand.New(rand.NewPCG(s.options.Seed, 0xDE1E))
	randoms := or(c.RandomMaps, 39)
	tick := s.progress(2*len(from) + (randoms+1)*2*(r.steps-1)*len(from))
	start := time.Now()
	if err := r.measureEnds(ctx, tick); err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok && c.FewestSteps > 0 {
		r.steps = r.affordable(time.Since(start), time.Until(deadline), c)
	}
	f := &Fidelity{}
	evidence := made.evidence()
	own, err := r.curves(ctx, [][]int{ranked(evidence, rng)}, tick)
	if err != nil {
		return nil, err
	}
	f.Deletion, f.Insertion = own[0].deletion, own[0].insertion
	f.Score = own[0].score()
	as := 1
	for len(f.Random) < randoms {
		if c.Decided && float64(as) > Significance*float64(randoms+1) {
			break
		}
		orders := make([][]int, min(r.together(), randoms-len(f.Random)))
		for i := range orders {
			orders[i] = ranked(made.elsewhere(evidence, s.layout, rng), rng)
		}
		others, err := r.curves(ctx, orders, tick)
		if ended := ctx.Err(); errors.Is(ended, context.DeadlineExceeded) && c.FewestMaps > 0 && len(f.Random) >= c.FewestMaps {
			break // whatever the last runs came to
		}
		if err != nil {
			return nil, err
		}
		for _, other := range others {
			score := other.score()
			f.Random = append(f.Random, score)
			if score >= f.Score-1e-9*math.Abs(f.Score) {
				as++
			}
		}
	}
	f.P = float64(as) / float64(len(f.Random)+1)
	return f, nil
}

// evidence is what places are ranked by: what adds to the score before what
// takes away from it, and sensitivities by their size.
func (m *Map) evidence() []float32 {
	if m.Kind == Sensitivity {
		return sizes(m.Values)
	}
	return m.Values
}

// elsewhere is a random map of the same grain.
func (m *Map) elsewhere(values []float32, l layout, rng *rand.Rand) []float32 {
	out := make([]float32, len(values))
	switch {
	case m.Segments != nil:
		count := slices.Max(m.Segments) + 1
		of := make([]float32, count)
		for p, g := range m.Segments {
			of[g] = values[p]
		}
		rng.Shuffle(count, func(i, j int) { of[i], of[j] = of[j], of[i] })
		for p, g := range m.Segments {
			out[p] = of[g]
		}
	case l.table():
		copy(out, values)
		rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	default:
		down, across := rng.IntN(l.rows), rng.IntN(l.columns)
		flipY, flipX := rng.IntN(2) == 1, rng.IntN(2) == 1
		for y := range l.rows {
			for x := range l.columns {
				fromY, fromX := y, x
				if flipY {
					fromY = l.rows - 1 - y
				}
				if flipX {
					fromX = l.columns - 1 - x
				}
				out[(y+down)%l.rows*l.columns+(x+across)%l.columns] = values[fromY*l.columns+fromX]
			}
		}
	}
	return out
}

// removal takes places away and puts them back.
type removal struct {
	*subject
	values []float32
	from   [][]float32
	class  int
	steps  int

	whole, nothing float64 // the ends of every curve: mean scores with all places and with none
}

// measureEnds asks once for what all curves begin and end with.
func (r *removal) measureEnds(ctx context.Context, tick func(int)) error {
	n := len(r.from)
	scores, err := r.scores(ctx, 2*n, r.class, func(i int, row []float32) {
		if i < n {
			copy(row, r.values)
		} else {
			copy(row, r.from[i-n])
		}
	}, tick)
	if err != nil {
		return err
	}
	for i, v := range scores {
		if i < n {
			r.whole += v / float64(n)
		} else {
			r.nothing += v / float64(n)
		}
	}
	return nil
}

// affordable is how many steps fit before a deadline with as many random maps as
// count, by the time that the ends took; FewestSteps if none do.
func (r *removal) affordable(took, left time.Duration, c CheckOptions) int {
	ends := 2 * len(r.from)
	lanes := max(1, min(r.runs, (ends+r.batch-1)/r.batch)) // runs that went side by side
	example := float64(took) * float64(lanes) / float64(ends) / float64(max(1, r.runs))
	steps := r.steps
	for ; steps > c.FewestSteps; steps-- {
		if float64((c.FewestMaps+1)*(steps-1)*ends)*example <= affordableShare*float64(left) {
			break
		}
	}
	return steps
}

// affordableShare is the part of the time left that is planned for: runs side by
// side are up to half as slow again as one alone, and a machine may get busier.
const affordableShare = 0.5

// ranked gives each place its rank by value, equal ones at random.
func ranked(evidence []float32, rng *rand.Rand) []int {
	order := rng.Perm(len(evidence))
	slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(evidence[j], evidence[i]) })
	rank := make([]int, len(order))
	for at, p := range order {
		rank[p] = at
	}
	return rank
}

// together is how many maps' curves fill the runs that go side by side, four
// times over: of what is left at the end little is lost.
func (r *removal) together() int {
	return max(1, 4*r.runs*r.batch/max(1, 2*(r.steps-1)*len(r.from)))
}

// pair are the curves of one map.
type pair struct{ deletion, insertion Curve }

func (p pair) score() float64 { return p.insertion.Area - p.deletion.Area }

// curves follows the score while places are taken away in the order of their
// ranks, and while they are put back, for several orders.
func (r *removal) curves(ctx context.Context, ranks [][]int, tick func(int)) ([]pair, error) {
	inner, n, places := r.steps-1, len(r.from), r.layout.places()
	changed := func(k int) int { return k * places / r.steps }
	each := 2 * inner * n // examples of one map
	scores, err := r.scores(ctx, each*len(ranks), r.class, func(i int, row []float32) {
		rank, at := ranks[i/each], i%each
		background, k := r.from[at%n], 1+at/n%inner
		base, other := r.values, background
		if at/n >= inner {
			base, other = background, r.values
		}
		copy(row, base)
		r.layout.replace(row, other, func(place int) bool { return rank[place] < changed(k) })
	}, tick)
	if err != nil {
		return nil, err
	}
	out := make([]pair, len(ranks))
	for i := range out {
		for c, curve := range []*Curve{&out[i].deletion, &out[i].insertion} {
			for k := range r.steps + 1 {
				mean := 0.0
				switch {
				case (k == 0) == (c == 0) && (k == 0 || k == r.steps): // nothing is taken away, or all is put back
					mean = r.whole
				case k == 0 || k == r.steps:
					mean = r.nothing
				default:
					at := i*each + (c*inner+k-1)*n
					for _, v := range scores[at : at+n] {
						mean += v / float64(n)
					}
				}
				curve.Changed = append(curve.Changed, float64(changed(k))/float64(places))
				curve.Score = append(curve.Score, mean)
				if k > 0 {
					curve.Area += (curve.Score[k] + curve.Score[k-1]) / 2 * (curve.Changed[k] - curve.Changed[k-1])
				}
			}
		}
	}
	return out, nil
}
