package attack

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Patch puts a square at the place of each image where it does most.
const Patch Name = "patch"

// How a patch is looked for. The numbers come from the validation images of the
// reference networks (docs/robustness.md): more of each found a patch for less
// than one image in a hundred more.
const (
	patchPlaces  = 4096 // places screened at most; a larger image is screened on a grid and around its best places
	patchTops    = 24   // screened patches from which the search climbs
	patchSpread  = 8    // best places that get other starts as well
	patchRandoms = 3    // random starts at each of these
	patchStride  = 0.2  // of a step, share of the pixel range
	patchSearch  = 8    // results of the climb that are searched pixel by pixel
	patchRounds  = 6    // of that search
)

// runPatch attacks image after image: every place is tried with a dark and a
// bright square; from the best, and from grey and random squares there, the
// patch's pixels climb along the sign of the margin's slope; what comes out is
// searched on by jumps of all pixels to the ends of the range and of one pixel at
// a time. The first patch that fools, and is not held, ends the search. Where the
// target has guards, the search is done again with their penalty at several
// weights.
func runPatch(ctx context.Context, k *task) error {
	for j := range k.goals {
		s, err := newSearch(k, j)
		if err != nil {
			return err
		}
		if err := s.run(ctx); err != nil {
			return err
		}
		k.progress(float64(j+1) / float64(len(k.goals)))
	}
	return nil
}

// patchSearch is the search for one image.
type search struct {
	*task
	of       int
	side     int // of the patch
	channels int
	rows     int
	columns  int
	rng      *rand.Rand
	done     bool

	low, high float32 // range of a patch's pixel
	guards    bool    // the target has them
	weight    float64 // of their penalty, in clean margins
	clear     float64 // clean margin: of the wrong class no more is wanted than patchEnough of it
}

// patched is the image with a patch, and how far it carries.
type patched struct {
	Place
	pixels  []float32 // the patch's, [channels, side, side]
	margin  float64   // by which it is ranked; without guards positive where it fools
	raw     float64   // without the guards
	penalty float64
}

// The weights of the guards' penalty with which a guarded target is searched,
// after a search that leaves them aside.
var patchWeights = []float64{0.1, 1, 0.02}

// patchEnough is the share of the clean margin that a guarded patch aims at
// beyond the boundary.
const patchEnough = 0.5

// rank says how far a patch carries.
func (s *search) rank(p *patched) {
	if p.margin = p.raw; s.guards && s.weight > 0 {
		p.margin = min(p.raw, patchEnough*s.clear) - s.weight*s.clear*p.penalty
	}
}

func newSearch(k *task, j int) (*search, error) {
	shape := k.about.Shape
	if len(shape) != 3 {
		return nil, fmt.Errorf("examples of shape %v: %w: a patch is of an image, [channels, rows, columns]", shape, ErrAsk)
	}
	s := &search{task: k, of: j, side: k.options.Side, channels: int(shape[0]), rows: int(shape[1]), columns: int(shape[2]), rng: k.random(j, 0)}
	s.low, s.high = k.printable()
	s.clear = math.Abs(k.goals[j].margin(k.before[j*k.about.Classes : (j+1)*k.about.Classes]))
	if s.side > s.rows || s.side > s.columns {
		return nil, fmt.Errorf("a patch of %d×%d for images of %d×%d: %w", s.side, s.side, s.rows, s.columns, ErrAsk)
	}
	return s, nil
}

func (s *search) run(ctx context.Context) error {
	screened, err := s.screen(ctx)
	if err != nil || s.done {
		return err
	}
	if err := s.from(ctx, screened); err != nil || s.done || !s.guards {
		return err
	}
	for _, s.weight = range patchWeights {
		for i := range screened {
			s.rank(&screened[i])
		}
		if err := s.from(ctx, sorted(screened)); err != nil || s.done {
			return err
		}
	}
	return nil
}

// from climbs and searches from what was screened.
func (s *search) from(ctx context.Context, screened []patched) error {
	for range s.options.Restarts {
		climbed, err := s.climbFrom(ctx, s.starts(screened))
		if err != nil || s.done {
			return err
		}
		for _, p := range climbed[:min(patchSearch, len(climbed))] {
			if err := s.refine(ctx, p); err != nil || s.done {
				return err
			}
		}
	}
	return nil
}

// printable is the range of a patch's pixels.
func (k *task) printable() (low, high float32) {
	if p := k.options.Printable; p != nil {
		return float32(p[0]), float32(p[1])
	}
	return float32(k.about.Low), float32(k.about.High)
}

// screen tries dark and bright squares at every place and returns them, the best
// first.
func (s *search) screen(ctx context.Context) ([]patched, error) {
	down, across := s.rows-s.side+1, s.columns-s.side+1
	stride := 1
	for (down+stride-1)/stride*((across+stride-1)/stride) > patchPlaces {
		stride++
	}
	var places []Place
	for r := 0; r < down; r += stride {
		for c := 0; c < across; c += stride {
			places = append(places, Place{r, c, s.side})
		}
	}
	tried, err := s.fills(ctx, places)
	if err != nil || s.done || stride == 1 {
		return tried, err
	}
	// Around the best places, those that the grid left out.
	seen := map[Place]bool{}
	for _, p := range places {
		seen[p] = true
	}
	var near []Place
	for _, p := range tried[:min(patchTops, len(tried))] {
		for r := max(0, p.Row-stride+1); r < min(down, p.Row+stride); r++ {
			for c := max(0, p.Column-stride+1); c < min(across, p.Column+stride); c++ {
				if at := (Place{r, c, s.side}); !seen[at] {
					seen[at] = true
					near = append(near, at)
				}
			}
		}
	}
	more, err := s.fills(ctx, near)
	return sorted(append(tried, more...)), err
}

// fills tries a dark and a bright square at places.
func (s *search) fills(ctx context.Context, places []Place) ([]patched, error) {
	all := make([]patched, 0, 2*len(places))
	for _, v := range []float32{s.low, s.high} {
		square := slices.Repeat([]float32{v}, s.channels*s.side*s.side)
		for _, at := range places {
			all = append(all, patched{Place: at, pixels: square})
		}
	}
	err := s.measure(ctx, all)
	return sorted(all), err
}

func sorted(all []patched) []patched {
	slices.SortStableFunc(all, func(a, b patched) int { return cmp.Compare(b.margin, a.margin) })
	return all
}

// starts are the patches to climb from: the best screened, and at the best
// places grey, what is there now, and black and white at random.
func (s *search) starts(screened []patched) []patched {
	var out []patched
	var places []Place
	for _, p := range screened {
		if len(out) < patchTops {
			out = append(out, patched{Place: p.Place, pixels: slices.Clone(p.pixels)})
		}
		if len(places) < patchSpread && !slices.Contains(places, p.Place) {
			places = append(places, p.Place)
		}
	}
	low, high := s.low, s.high
	for _, at := range places {
		area := s.channels * s.side * s.side
		out = append(out, patched{Place: at, pixels: slices.Repeat([]float32{low + (high-low)/2}, area)}, patched{Place: at, pixels: s.cut(at)})
		for range patchRandoms {
			square := make([]float32, area)
			for i := range square {
				square[i] = low
				if s.rng.IntN(2) == 1 {
					square[i] = high
				}
			}
			out = append(out, patched{Place: at, pixels: square})
		}
	}
	return out
}

// each visits the patch's pixels: i of the patch, at of the image.
func (s *search) each(p Place, visit func(i, at int)) {
	i := 0
	for c := range s.channels {
		for r := range p.Size {
			from := (c*s.rows+p.Row+r)*s.columns + p.Column
			for x := range p.Size {
				visit(i, from+x)
				i++
			}
		}
	}
}

// cut is what the image has at a place.
func (s *search) cut(at Place) []float32 {
	out := make([]float32, s.channels*s.side*s.side)
	s.each(at, func(i, from int) { out[i] = min(max(s.clean(s.of)[from], s.low), s.high) })
	return out
}

// draw writes the image with a patch.
func (s *search) draw(p patched, to []float32) {
	copy(to, s.clean(s.of))
	s.each(p.Place, func(i, at int) { to[at] = p.pixels[i] })
}

// block is how many patched images are asked about at once.
func (s *search) block() int { return max(1, min(512, 1<<22/s.size)) }

// measure fills in how far patches carry, and keeps the best that fools.
func (s *search) measure(ctx context.Context, all []patched) error {
	for part := range slices.Chunk(all, s.block()) {
		pixels := make([]float32, len(part)*s.size)
		for i, p := range part {
			s.draw(p, pixels[i*s.size:(i+1)*s.size])
		}
		a, err := s.ask(ctx, pixels, nil)
		if err != nil {
			return err
		}
		if s.note(part, a, 1) {
			return nil
		}
	}
	return nil
}

// note takes the margins of an answer, whose penalties are weighed by weighed,
// and keeps the best patch that fools.
func (s *search) note(part []patched, a Answer, weighed float64) bool {
	best := -1
	for i := range part {
		z := s.logits(a, i)
		part[i].raw, part[i].penalty = s.goals[s.of].margin(z), a.penalty(i)/weighed
		s.guards = s.guards || a.Penalty != nil
		s.rank(&part[i])
		if s.goals[s.of].reached(z) && !a.held(i) && (best < 0 || part[i].margin > part[best].margin) {
			best = i
		}
	}
	if best >= 0 {
		image := make([]float32, s.size)
		s.draw(part[best], image)
		s.take(s.of, image)
		place := part[best].Place
		s.places[s.of] = &place
		s.done = true
	}
	return s.done
}

// climbFrom moves the pixels of all starts by the sign of their slope, and
// returns where each carried furthest.
func (s *search) climbFrom(ctx context.Context, starts []patched) ([]patched, error) {
	now := starts
	best := make([]patched, len(starts))
	for i := range best {
		best[i].margin = math.Inf(-1)
	}
	stride := float32(patchStride) * (s.high - s.low)
	if s.weight > 0 {
		stride /= 2 // guards leave less room
	}
	for step := range s.options.Steps {
		slopes, err := s.slopes(ctx, now)
		if err != nil || s.done {
			return nil, err
		}
		for i, p := range now {
			if p.margin > best[i].margin {
				best[i] = p
				best[i].pixels = slices.Clone(p.pixels)
			}
			// The last steps are shorter, to settle between the ends of the range.
			length := stride
			if step > s.options.Steps*3/4 {
				length /= 4
			}
			for at, g := range slopes[i] {
				v := p.pixels[at] + length*float32(sign(g))
				p.pixels[at] = min(max(v, s.low), s.high)
			}
		}
	}
	return sorted(best), nil
}

// slopes asks for the margins of patches and their slopes by the patches' pixels.
func (s *search) slopes(ctx context.Context, all []patched) ([][]float32, error) {
	var out [][]float32
	for part := range slices.Chunk(all, s.block()) {
		pixels := make([]float32, len(part)*s.size)
		goals := slices.Repeat([]goal{s.goals[s.of]}, len(part))
		for i, p := range part {
			s.draw(p, pixels[i*s.size:(i+1)*s.size])
		}
		a, weighed, err := s.slope(ctx, pixels, goals, part)
		if err != nil {
			return nil, err
		}
		if s.note(part, a, weighed) {
			return nil, nil
		}
		for i, p := range part {
			slope := make([]float32, len(p.pixels))
			s.each(p.Place, func(to, at int) { slope[to] = a.Gradient[i*s.size+at] })
			out = append(out, slope)
		}
	}
	return out, nil
}

// slope asks for the slope by which patches are ranked. Guards are left aside
// until they have a weight; then an image that was far enough beyond the boundary
// when it was asked about last only gets past them.
func (s *search) slope(ctx context.Context, pixels []float32, goals []goal, part []patched) (a Answer, weighed float64, err error) {
	if !s.guards {
		a, _, err = s.climb(ctx, pixels, goals, Margin)
		return a, 1, err
	}
	n, classes := len(part), s.about.Classes
	var z []float32
	if classes > 2 {
		first, err := s.ask(ctx, pixels, nil)
		if err != nil {
			return a, 1, err
		}
		z = first.Logits
	}
	o := &Objective{Weights: make([]float32, n*classes), Guards: make([]float32, n)}
	for i, p := range part {
		row := o.Weights[i*classes : (i+1)*classes]
		var logits []float32
		if z != nil {
			logits = z[i*classes : (i+1)*classes]
		}
		Margin.slope(logits, goals[i], row)
		if s.weight > 0 && p.raw > patchEnough*s.clear {
			for c := range row {
				row[c] *= 1e-20 // tells the guards the class that is wanted
			}
		}
		o.Guards[i] = float32(s.weight * s.clear)
	}
	if a, err = s.ask(ctx, pixels, o); s.weight > 0 && s.clear > 0 {
		return a, float64(float32(s.weight * s.clear)), err
	}
	return a, 1, err
}

// refine improves one patch: all pixels to the end that their slope points to,
// and each pixel by itself to either end, as long as that carries further.
func (s *search) refine(ctx context.Context, p patched) error {
	low, high := s.low, s.high
	for range patchRounds {
		slopes, err := s.slopes(ctx, []patched{p})
		if err != nil || s.done {
			return err
		}
		jump := slices.Clone(p.pixels)
		for i, g := range slopes[0] {
			if g > 0 {
				jump[i] = high
			} else if g < 0 {
				jump[i] = low
			}
		}
		tries := []patched{{Place: p.Place, pixels: jump}}
		// Of a large patch the steepest pixels only.
		for _, i := range byMagnitude(slopes[0])[:min(128, len(p.pixels))] {
			ends := []float32{low, high}
			if s.weight > 0 { // a little way, too
				step := (high - low) / 16
				ends = append(ends, max(low, p.pixels[i]-step), min(high, p.pixels[i]+step))
			}
			for _, v := range ends {
				if p.pixels[i] != v {
					other := slices.Clone(p.pixels)
					other[i] = v
					tries = append(tries, patched{Place: p.Place, pixels: other})
				}
			}
		}
		if err := s.measure(ctx, tries); err != nil || s.done {
			return err
		}
		if tries = sorted(tries); !(tries[0].margin > p.margin) {
			return nil
		}
		p = tries[0]
	}
	return nil
}
