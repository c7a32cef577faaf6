package attack

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
)

// UniversalPatch is one square at one place for all images.
const UniversalPatch Name = "universal-patch"

// How a shared patch is looked for.
const (
	sharedScreened = 24  // images that every place is screened on
	sharedPlaces   = 400 // places screened at most
	sharedTops     = 8   // places from which it is climbed
	sharedRounds   = 3   // of the search pixel by pixel, on the best
)

// sharedPatch is a patch and what it does to the images that it is made of.
type sharedPatch struct {
	Place
	pixels []float32
	fooled int
	gain   float64 // mean margin, cut off where an image is fooled by enough
}

func (p *sharedPatch) better(q *sharedPatch) bool {
	return p.fooled > q.fooled || p.fooled == q.fooled && p.gain > q.gain
}

// runUniversalPatch screens places with a dark and a bright square on some of the
// images that it is made of, climbs the mean margin of all of them from the best
// places, searches on pixel by pixel, and judges the best on the others.
func runUniversalPatch(ctx context.Context, k *task) error {
	makers := k.makers()
	s, err := newSearch(k, makers[0])
	if err != nil {
		return err
	}
	shared := &shared{search: s, of: makers}
	best, err := shared.run(ctx)
	if err != nil {
		return err
	}
	all := k.all()
	pixels := make([]float32, len(all)*k.size)
	for i, j := range all {
		shared.put(best, j, pixels[i*k.size:(i+1)*k.size])
	}
	if err := k.takeAll(ctx, all, pixels); err != nil {
		return err
	}
	for j, fooled := range k.fooled {
		if fooled {
			place := best.Place
			k.places[j] = &place
		}
	}
	k.progress(1)
	return nil
}

type shared struct {
	*search
	of []int
}

// put writes image j with the patch.
func (s *shared) put(p *sharedPatch, j int, to []float32) {
	copy(to, s.clean(j))
	s.each(p.Place, func(i, at int) { to[at] = p.pixels[i] })
}

// measure fills in what patches do to images, and returns the slope of the gain
// of each by its pixels if it is asked for.
func (s *shared) measure(ctx context.Context, patches []*sharedPatch, of []int, slopes bool) ([][]float64, error) {
	type pair struct{ patch, image int }
	var pairs []pair
	for i, p := range patches {
		p.fooled, p.gain = 0, 0
		for _, j := range of {
			pairs = append(pairs, pair{i, j})
		}
	}
	out := make([][]float64, len(patches))
	for i, p := range patches {
		out[i] = make([]float64, len(p.pixels))
	}
	slack, classes := s.slack(), s.about.Classes
	for part := range slices.Chunk(pairs, s.block()) {
		pixels := make([]float32, len(part)*s.size)
		for i, q := range part {
			s.put(patches[q.patch], q.image, pixels[i*s.size:(i+1)*s.size])
		}
		a, err := s.ask(ctx, pixels, nil)
		if err != nil {
			return nil, err
		}
		o := &Objective{Weights: make([]float32, len(part)*classes)}
		for i, q := range part {
			p, g, z := patches[q.patch], s.goals[q.image], s.logits(a, i)
			if g.reached(z) && !a.held(i) {
				p.fooled++
			}
			margin := g.margin(z) - a.penalty(i)
			p.gain += min(margin, slack) / float64(len(of))
			if margin < slack {
				Margin.slope(z, g, o.Weights[i*classes:(i+1)*classes])
			}
		}
		if !slopes {
			continue
		}
		if a, err = s.ask(ctx, pixels, o); err != nil {
			return nil, err
		}
		for i, q := range part {
			s.each(patches[q.patch].Place, func(to, at int) { out[q.patch][to] += float64(a.Gradient[i*s.size+at]) })
		}
	}
	return out, nil
}

func (s *shared) run(ctx context.Context) (*sharedPatch, error) {
	down, across := s.rows-s.side+1, s.columns-s.side+1
	stride := 1
	for (down+stride-1)/stride*((across+stride-1)/stride) > sharedPlaces {
		stride++
	}
	area := s.channels * s.side * s.side
	var screened []*sharedPatch
	for _, v := range []float32{s.low, s.high} {
		for r := 0; r < down; r += stride {
			for c := 0; c < across; c += stride {
				screened = append(screened, &sharedPatch{Place: Place{r, c, s.side}, pixels: slices.Repeat([]float32{v}, area)})
			}
		}
	}
	some := slices.Clone(s.of)
	s.rng.Shuffle(len(some), func(a, b int) { some[a], some[b] = some[b], some[a] })
	if _, err := s.measure(ctx, screened, some[:min(sharedScreened, len(some))], false); err != nil {
		return nil, err
	}
	slices.SortStableFunc(screened, func(a, b *sharedPatch) int { return cmp.Compare(b.gain, a.gain) })
	s.progress(0.2)
	var best *sharedPatch
	keep := func(p *sharedPatch) {
		if best == nil || p.better(best) {
			kept := *p
			kept.pixels = slices.Clone(p.pixels)
			best = &kept
		}
	}
	tops := screened[:min(sharedTops, len(screened))]
	passes := len(tops) * s.options.Restarts
	for pass := range passes {
		p := &sharedPatch{Place: tops[pass%len(tops)].Place, pixels: slices.Clone(tops[pass%len(tops)].pixels)}
		if pass >= len(tops) { // black and white at random
			for i := range p.pixels {
				p.pixels[i] = s.low + (s.high-s.low)*float32(s.rng.IntN(2))
			}
		}
		kept := make([]float64, area)
		for step := range s.options.Steps {
			slopes, err := s.measure(ctx, []*sharedPatch{p}, s.of, true)
			if err != nil {
				return nil, err
			}
			keep(p)
			length := 0.0
			for _, g := range slopes[0] {
				length += math.Abs(g)
			}
			stride := (s.high - s.low) * float32(max(0.02, 0.25*(1-float64(step)/float64(s.options.Steps))))
			for i, g := range slopes[0] {
				kept[i] *= 0.7
				if length > 0 {
					kept[i] += g / length
				}
				p.pixels[i] = min(max(p.pixels[i]+stride*float32(sign(float32(kept[i]))), s.low), s.high)
			}
			s.progress(0.2 + 0.7*(float64(pass)+float64(step)/float64(s.options.Steps))/float64(passes))
		}
	}
	return best, s.polish(ctx, best)
}

// polish moves one pixel at a time to either end as long as that carries further.
func (s *shared) polish(ctx context.Context, best *sharedPatch) error {
	if best == nil {
		return fmt.Errorf("a shared patch in 0 steps: %w: want 1 or more", ErrAsk)
	}
	for round := range sharedRounds {
		improved := false
		for i := range min(128, len(best.pixels)) {
			var tries []*sharedPatch
			for _, v := range []float32{s.low, s.high} {
				if best.pixels[i] != v {
					p := &sharedPatch{Place: best.Place, pixels: slices.Clone(best.pixels)}
					p.pixels[i] = v
					tries = append(tries, p)
				}
			}
			if _, err := s.measure(ctx, tries, s.of, false); err != nil {
				return err
			}
			for _, p := range tries {
				if p.better(best) {
					*best, improved = *p, true
				}
			}
		}
		s.progress(0.9 + 0.1*float64(round+1)/sharedRounds)
		if !improved {
			break
		}
	}
	return nil
}
