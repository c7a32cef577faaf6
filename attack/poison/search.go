package poison

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/attack"
)

// SearchOptions say how a model is searched for triggers. Zero values are the
// defaults in brackets.
type SearchOptions struct {
	Sides    []int // of square patches, pixels [3 and about a tenth of the shorter side]
	Images   int   // that a trigger is made of, for each class at most, and as many that it is tried on [64]
	Steps    int   // of the search for a mask [200]
	Climbs   int   // places from which a patch climbs [12]
	Seed     uint64
	Progress func(done float64)
}

func (o SearchOptions) orDefault(rows, columns int) SearchOptions {
	if o.Sides == nil {
		o.Sides = []int{min(3, rows, columns)}
		if wide := min(rows, columns) / 10; wide > 3 {
			o.Sides = append(o.Sides, wide)
		}
	}
	if o.Images == 0 {
		o.Images = 64
	}
	if o.Steps == 0 {
		o.Steps = 200
	}
	if o.Climbs == 0 {
		o.Climbs = 12
	}
	if o.Progress == nil {
		o.Progress = func(float64) {}
	}
	return o
}

// Candidate is the smallest change that the search found to turn images into one
// class: one mask and one pattern for all images,
//
//	image' = (1 - mask)·image + mask·pattern
type Candidate struct {
	Class   int
	Side    int       // of a square patch; 0: a mask of any form
	Row     int       // of a patch
	Column  int       // of a patch
	Mask    []float32 // [rows, columns], 0..1
	Pattern []float32 // [channels, rows, columns], in the target's pixel range
	Size    float64   // sum of the mask, pixels
	Made    Rate      // turned, of the images that it was made of
	Held    Rate      // turned, of images that it was not made of
	// Strength is the least log-odds for the class that nine tenths of the latter
	// have, in units of the median log-odds of the class's own images.
	Strength float64
}

// Rate counts.
type Rate struct {
	Of    int     `json:"of"`
	Count int     `json:"count"`
	Share float64 `json:"share"`
	Low   float64 `json:"low"`  // of the 95 % score interval (Wilson 1927)
	High  float64 `json:"high"` // of it
}

// RateOf is a share with its interval.
func RateOf(count, of int) Rate {
	r := Rate{Of: of, Count: count}
	if of == 0 {
		r.High = 1
		return r
	}
	const z = 1.959963984540054
	n, p := float64(of), float64(count)/float64(of)
	middle, half := p+z*z/(2*n), z*math.Sqrt(p*(1-p)/n+z*z/(4*n*n))
	r.Share, r.Low, r.High = p, max(0, (middle-half)/(1+z*z/n)), min(1, (middle+half)/(1+z*z/n))
	return r
}

// search is the search for one class.
type search struct {
	target                  attack.Target
	about                   attack.Description
	channels, rows, columns int
	size                    int
	class                   int
	options                 SearchOptions
	made, held              []float32 // images of other classes, answered as such
	usual                   float64   // median odds of the class's own images
	rng                     *rand.Rand
}

// Search looks for a trigger of one class: images that the model takes for
// others, rightly, are to be taken for this one. pixels are [n, Shape…] with
// their labels; those of the class itself, and those answered wrongly, are left
// out. It returns the smallest mask (Wang et al. 2019, section IV) and the best
// patch of each size, each tried on images that it was not made of. Errors:
// attack.ErrAsk if fewer than two images remain.
func Search(ctx context.Context, target attack.Target, pixels []float32, labels []int, class int, o SearchOptions) ([]Candidate, error) {
	about := target.Describe()
	if len(about.Shape) != 3 {
		return nil, fmt.Errorf("poison: searching a trigger in examples of shape %v: %w: want images, [channels, rows, columns]", about.Shape, attack.ErrAsk)
	}
	s := &search{target: target, about: about, channels: int(about.Shape[0]), rows: int(about.Shape[1]), columns: int(about.Shape[2]), size: about.Size(), class: class}
	s.options = o.orDefault(s.rows, s.columns)
	s.rng = rand.New(rand.NewPCG(o.Seed, 0x791663<<8|uint64(class)))
	if err := s.choose(ctx, pixels, labels); err != nil {
		return nil, err
	}
	mask, err := s.mask(ctx)
	if err != nil {
		return nil, err
	}
	all := []Candidate{mask}
	for i, side := range s.options.Sides {
		if side > s.rows || side > s.columns || side < 1 {
			return nil, fmt.Errorf("poison: a patch of %d×%d for images of %d×%d: %w", side, side, s.rows, s.columns, attack.ErrAsk)
		}
		best, err := s.patch(ctx, side, mask)
		if err != nil {
			return nil, err
		}
		all = append(all, best)
		s.options.Progress(0.5 + 0.5*float64(i+1)/float64(len(s.options.Sides)))
	}
	for i := range all {
		if all[i].Held, all[i].Strength, err = s.rate(ctx, all[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// choose takes the images to work on, in an order drawn from the seed.
func (s *search) choose(ctx context.Context, pixels []float32, labels []int) error {
	a, err := s.target.Ask(ctx, pixels, nil)
	if err != nil {
		return err
	}
	var usable []int
	var own []float64
	for _, i := range s.rng.Perm(len(labels)) {
		z := a.Logits[i*s.about.Classes : (i+1)*s.about.Classes]
		if labels[i] == s.class && highest(z) == s.class {
			own = append(own, s.odds(z))
		}
		if labels[i] != s.class && highest(z) == labels[i] {
			usable = append(usable, i)
		}
	}
	if len(usable) < 2 {
		return fmt.Errorf("poison: searching a trigger of class %d: %w: %d images of other classes are answered rightly; want at least 2, better 40", s.class, attack.ErrAsk, len(usable))
	}
	if len(own) == 0 {
		return fmt.Errorf("poison: searching a trigger of class %d: %w: no image of the class is answered rightly, so that nothing says what is usual", s.class, attack.ErrAsk)
	}
	s.usual = max(median(own), 1e-3)
	take := min(s.options.Images, len(usable)/2)
	for k, i := range usable[:2*take] {
		image := pixels[i*s.size : (i+1)*s.size]
		if k < take {
			s.made = append(s.made, image...)
		} else {
			s.held = append(s.held, image...)
		}
	}
	for _, i := range usable[2*take:] { // more to try on costs little
		if len(s.held) < 4*s.options.Images*s.size {
			s.held = append(s.held, pixels[i*s.size:(i+1)*s.size]...)
		}
	}
	return nil
}

func highest(z []float32) int { return slices.Index(z, slices.Max(z)) }

// odds are the log-odds of the class in logits: positive does not suffice to be
// the highest of more than two.
func (s *search) odds(z []float32) float64 {
	top := math.Inf(-1)
	for c, v := range z {
		if c != s.class {
			top = max(top, float64(v))
		}
	}
	sum := 0.0
	for c, v := range z {
		if c != s.class {
			sum += math.Exp(float64(v) - top)
		}
	}
	return float64(z[s.class]) - top - math.Log(sum)
}

// stamp lays mask and pattern over images.
func (s *search) stamp(images, mask, pattern []float32) []float32 {
	out := make([]float32, len(images))
	area := s.rows * s.columns
	for i, v := range images {
		m := mask[i%area]
		out[i] = v + m*(pattern[i%s.size]-v)
	}
	return out
}

// rate tries a candidate on images that it was not made of.
func (s *search) rate(ctx context.Context, c Candidate) (held Rate, strength float64, err error) {
	a, err := s.target.Ask(ctx, s.stamp(s.held, c.Mask, c.Pattern), nil)
	if err != nil {
		return Rate{}, 0, err
	}
	n, turned := len(s.held)/s.size, 0
	odds := make([]float64, n)
	for i := range n {
		z := a.Logits[i*s.about.Classes : (i+1)*s.about.Classes]
		odds[i] = s.odds(z)
		if highest(z) == s.class {
			turned++
		}
	}
	return RateOf(turned, n), quantile(odds, 0.1) / s.usual, nil
}

// climb asks for the slope of the mean of -log(1+exp(-odds)), the log-likelihood
// of the class against the others, with weights that follow from the former
// answers (nil: all 1), and for the answers.
func (s *search) climb(ctx context.Context, images []float32, former []float64, reach float64) (gradient []float32, odds []float64, turned int, err error) {
	n, classes := len(images)/s.size, s.about.Classes
	o := &attack.Objective{Weights: make([]float32, n*classes), LogSumExp: make([]float32, n), Without: make([]int, n)}
	for i := range n {
		f := 1.0
		if former != nil {
			f = 1 / (1 + math.Exp(former[i]-reach)) // as far beyond the boundary as asked
		}
		o.Weights[i*classes+s.class] = float32(f)
		o.LogSumExp[i], o.Without[i] = -float32(f), s.class
	}
	a, err := s.target.Ask(ctx, images, o)
	if err != nil {
		return nil, nil, 0, err
	}
	odds = make([]float64, n)
	for i := range n {
		z := a.Logits[i*classes : (i+1)*classes]
		odds[i] = s.odds(z)
		if highest(z) == s.class {
			turned++
		}
	}
	return a.Gradient, odds, turned, nil
}

// enough is the share of images that a mask must turn while it shrinks.
const enough = 0.95

// mask finds a small mask and a pattern that turn nearly all images: Adam on
// both, with the sum of the mask as a penalty whose weight rises while enough
// images are turned and falls otherwise (Wang et al. 2019).
func (s *search) mask(ctx context.Context) (Candidate, error) {
	area := s.rows * s.columns
	low, span := float32(s.about.Low), float32(s.about.High-s.about.Low)
	mask, pattern := make([]float32, area), make([]float32, s.size)
	for i := range mask {
		mask[i] = 0.2 + 0.1*float32(s.rng.Float64())
	}
	for i := range pattern {
		pattern[i] = low + span*float32(s.rng.Float64())
	}
	n := len(s.made) / s.size
	moveMask, movePattern := newAdam(area), newAdam(s.size)
	dm, dp := make([]float64, area), make([]float64, s.size)
	weight := 1e-3
	var former []float64
	best := Candidate{Class: s.class, Mask: slices.Clone(mask), Pattern: slices.Clone(pattern), Size: math.Inf(1), Made: RateOf(0, n)}
	for step := range s.options.Steps {
		gradient, odds, turned, err := s.climb(ctx, s.stamp(s.made, mask, pattern), former, 1)
		if err != nil {
			return best, err
		}
		former = odds
		size := 0.0
		for _, v := range mask {
			size += float64(v)
		}
		share := float64(turned) / float64(n)
		if share >= enough && size < best.Size || math.IsInf(best.Size, 1) && turned > best.Made.Count {
			best.Mask, best.Pattern, best.Made = slices.Clone(mask), slices.Clone(pattern), RateOf(turned, n)
			if share >= enough {
				best.Size = size
			}
		}
		if share >= enough {
			weight *= 1.1
		} else {
			weight /= 1.15
		}
		clear(dm)
		clear(dp)
		for i, g := range gradient {
			at := i % s.size
			dm[at%area] -= float64(g) * float64(pattern[at]-s.made[i]) / float64(n)
			dp[at] -= float64(g) * float64(mask[at%area]) / float64(n)
		}
		for i := range dm {
			dm[i] += weight
		}
		moveMask.step(mask, dm, 0.03, 0, 1)
		movePattern.step(pattern, dp, 0.1*float64(span), low, low+span)
		s.options.Progress(0.5 * float64(step+1) / float64(s.options.Steps))
	}
	best.Size = 0
	for _, v := range best.Mask {
		best.Size += float64(v)
	}
	return best, nil
}

// adam moves values within a range (Kingma and Ba 2015).
type adam struct {
	mean, square []float64
	t            float64
}

func newAdam(n int) *adam { return &adam{make([]float64, n), make([]float64, n), 0} }

func (a *adam) step(values []float32, gradient []float64, rate float64, low, high float32) {
	a.t++
	for i, g := range gradient {
		a.mean[i] += 0.2 * (g - a.mean[i]) // a shorter memory than usual: few steps
		a.square[i] += 0.02 * (g*g - a.square[i])
		m, v := a.mean[i]/(1-math.Pow(0.8, a.t)), a.square[i]/(1-math.Pow(0.98, a.t))
		values[i] = min(max(values[i]-float32(rate*m/(math.Sqrt(v)+1e-12)), low), high)
	}
}

// place is a patch at a place.
type place struct {
	row, column int
	pixels      []float32 // [channels, side, side]
	value       float64   // mean of the odds, of which what exceeds the usual does not count
	turned      int
}

func (s *search) draw(p place, side int) (mask, pattern []float32) {
	mask, pattern = make([]float32, s.rows*s.columns), make([]float32, s.size)
	i := 0
	for c := range s.channels {
		for r := range side {
			for x := range side {
				at := (p.row+r)*s.columns + p.column + x
				mask[at] = 1
				pattern[c*s.rows*s.columns+at] = p.pixels[i]
				i++
			}
		}
	}
	return mask, pattern
}

// screens are how many places a patch is tried at, and how many images at each.
const (
	screens = 1024
	glimpse = 8
)

// patch finds the square of one side that turns most images: usual patterns
// tried at every place, and from the best the pixels climb together.
func (s *search) patch(ctx context.Context, side int, mask Candidate) (Candidate, error) {
	down, across := s.rows-side+1, s.columns-side+1
	stride := 1
	for ((down+stride-1)/stride)*((across+stride-1)/stride) > screens {
		stride++
	}
	few := s.made[:min(glimpse*s.size, len(s.made))]
	var tries []place
	for r := 0; r < down; r += stride {
		for c := 0; c < across; c += stride {
			for _, pixels := range s.patterns(side, r, c, mask) {
				tries = append(tries, place{row: r, column: c, pixels: pixels})
			}
		}
	}
	for part := range slices.Chunk(tries, max(1, 512*s.size/len(few)/s.size)) {
		if err := s.measure(ctx, part, side, few); err != nil {
			return Candidate{}, err
		}
	}
	slices.SortStableFunc(tries, func(a, b place) int { return cmp.Compare(b.value, a.value) })
	var best place
	best.value = math.Inf(-1)
	taken := map[[2]int]int{}
	climbed := 0
	for _, t := range tries {
		if climbed == s.options.Climbs {
			break
		}
		if at := [2]int{t.row, t.column}; taken[at] < 2 {
			taken[at]++
		} else {
			continue
		}
		climbed++
		end, err := s.rise(ctx, t, side)
		if err != nil {
			return Candidate{}, err
		}
		if end.value > best.value {
			best = end
		}
	}
	c := Candidate{Class: s.class, Side: side, Row: best.row, Column: best.column, Size: float64(side * side), Made: RateOf(best.turned, len(s.made)/s.size)}
	c.Mask, c.Pattern = s.draw(best, side)
	return c, nil
}

// patterns are those that a place is tried with: dark, bright, two checkers,
// and what the mask's search found there.
func (s *search) patterns(side, row, column int, mask Candidate) [][]float32 {
	low, high := float32(s.about.Low), float32(s.about.High)
	n := s.channels * side * side
	out := [][]float32{slices.Repeat([]float32{low}, n), slices.Repeat([]float32{high}, n), make([]float32, n), make([]float32, n), make([]float32, n)}
	for i := range n {
		r, x := i/side%side, i%side
		out[2][i], out[3][i] = low, high
		if (r+x)%2 == 0 {
			out[2][i], out[3][i] = high, low
		}
		out[4][i] = mask.Pattern[i/(side*side)*s.rows*s.columns+(row+r)*s.columns+column+x]
	}
	return out
}

// measure fills in how far patches carry.
func (s *search) measure(ctx context.Context, places []place, side int, images []float32) error {
	all := make([]float32, 0, len(places)*len(images))
	for _, p := range places {
		from := len(all)
		all = append(all, images...)
		for ; from < len(all); from += s.size {
			i := 0
			for c := range s.channels {
				for r := range side {
					copy(all[from+(c*s.rows+p.row+r)*s.columns+p.column:], p.pixels[i:i+side])
					i += side
				}
			}
		}
	}
	a, err := s.target.Ask(ctx, all, nil)
	if err != nil {
		return err
	}
	n, classes := len(images)/s.size, s.about.Classes
	for k := range places {
		p := &places[k]
		p.value, p.turned = 0, 0
		for i := range n {
			z := a.Logits[(k*n+i)*classes : (k*n+i+1)*classes]
			p.value += min(s.odds(z), s.usual) / float64(n)
			if highest(z) == s.class {
				p.turned++
			}
		}
	}
	return nil
}

// rise moves the pixels of a patch by the sign of their mean slope and returns
// where it turned most.
func (s *search) rise(ctx context.Context, p place, side int) (place, error) {
	const steps = 16
	low, high := float32(s.about.Low), float32(s.about.High)
	best := p
	best.value, best.turned = math.Inf(-1), -1
	p.pixels = slices.Clone(p.pixels)
	var former []float64
	for step := range steps {
		mask, pattern := s.draw(p, side)
		gradient, odds, turned, err := s.climb(ctx, s.stamp(s.made, mask, pattern), former, s.usual)
		if err != nil {
			return best, err
		}
		former = odds
		value := 0.0
		for _, v := range odds {
			value += min(v, s.usual) / float64(len(odds))
		}
		if value > best.value {
			best = place{p.row, p.column, slices.Clone(p.pixels), value, turned}
		}
		slope := make([]float64, len(p.pixels))
		for from := 0; from < len(gradient); from += s.size {
			i := 0
			for c := range s.channels {
				for r := range side {
					for x := range side {
						slope[i] += float64(gradient[from+(c*s.rows+p.row+r)*s.columns+p.column+x])
						i++
					}
				}
			}
		}
		stride := 0.25 * (high - low)
		if step > steps*2/3 {
			stride /= 4
		}
		for i, g := range slope {
			if g > 0 {
				p.pixels[i] = min(p.pixels[i]+stride, high)
			} else if g < 0 {
				p.pixels[i] = max(p.pixels[i]-stride, low)
			}
		}
	}
	return best, nil
}
