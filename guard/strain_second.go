package guard

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// second is what an attacker knows of the second look at one image.
type second struct {
	input    []float32
	output   []float64
	gradient plane // of the answer, in brightness
	smooth   []float32
	places   []window
	copies   [][]float32
	answers  [][]float64 // of the copies
}

// Always says that every image gets a second look.
func (s *Statistics) Always() bool { return s.Escalate < -1e8 }

// Second adds the terms of the second look to a strain: of the input that it was
// made of, with the model's output for it. It costs a gradient and a run of the
// copies.
//
// Of these guards the slopes are taken with the answer's own gradient held still:
// its signs change nowhere but at kinks, and its sizes not either in a network of
// ReLUs. What is rounded to fewer grey levels is differentiated as if it were not
// (straight through); a median's slope goes to the pixel that is the median.
func (x *Strain) Second(ctx context.Context, input, output []float32) error {
	g := x.guard
	if err := x.second(ctx, input, output); err != nil {
		return fmt.Errorf("guard: measuring an image a second time: %w", err)
	}
	s := g.statistics
	x.asked = len(x.Terms)
	pass := s.Unasked(x.class)
	term := func(name Name, score float64) {
		x.Terms = append(x.Terms, Term{name, 0, s.Tails[kindOf(name)].surprise(score) - pass})
	}
	if g.slope != nil {
		term(Gradient, alignment(x.pixels.high, x.more.gradient))
		_, focus := x.plane.hot(x.more.gradient.values, x.more.smooth)
		term(Focus, focus)
	}
	_, most := x.squeezed()
	term(Squeezing, math.Log(most+1e-6))
	if g.slope != nil {
		term(Occlusion, x.lost())
	}
	return nil
}

func (x *Strain) second(ctx context.Context, input, output []float32) error {
	g := x.guard
	if err := g.geometry.check(input); err != nil {
		return err
	}
	if len(output) != g.labels {
		return fmt.Errorf("%d outputs for %d labels: %w", len(output), g.labels, ErrInput)
	}
	x.more = &second{input: slices.Clone(input)}
	for _, v := range output {
		x.more.output = append(x.more.output, float64(v))
	}
	if g.slope != nil {
		selector := make([]float32, g.labels)
		towards(selector, x.more.output, x.class)
		by, err := g.slopeOf(ctx, input, selector)
		if err != nil {
			return err
		}
		x.more.gradient = g.geometry.inBrightness(by)
		x.more.smooth = x.plane.smooth()
		x.more.places, _ = x.plane.hot(x.more.gradient.values, x.more.smooth)
	}
	x.more.copies = g.geometry.copies(input, x.plane, x.more.places)
	var err error
	x.more.answers, err = g.answers(ctx, x.more.copies)
	return err
}

// slopeOf is the slope of a weighted sum of the outputs by the input.
func (g *Guard) slopeOf(ctx context.Context, input, selector []float32) ([]float32, error) {
	_, by, err := g.slope.run(ctx, input, selector)
	return by, err
}

// inBrightness is what a brighter pixel does, over the channels.
func (g geometry) inBrightness(slope []float32) plane {
	p := plane{g.rows, g.columns, make([]float32, g.rows*g.columns)}
	for c := range g.channels {
		for i := range p.values {
			p.values[i] += slope[g.index(c, i)] * g.scale[c]
		}
	}
	return p
}

// squeezed is which of the two smoothed copies moves the answer more, and by how
// much.
func (x *Strain) squeezed() (which int, most float64) {
	n := &x.guard.network
	own := n.probabilities(x.more.output)
	for k, output := range x.more.answers[:2] {
		apart := 0.0
		for i, p := range n.probabilities(output) {
			apart += math.Abs(p - own[i])
		}
		if apart > most {
			which, most = k, apart
		}
	}
	return which, most
}

// lost is the evidence that goes with the hottest place.
func (x *Strain) lost() float64 {
	before := margin(x.more.output, x.class)
	return max(0, (before-margin(x.more.answers[2], x.class))/(1+math.Abs(before)))
}

// SecondSlopes returns the slope by the input of Σ weights[i]·Terms[i].Above over
// the terms of the second look. It runs the model's gradient for each that weighs.
func (x *Strain) SecondSlopes(ctx context.Context, weights []float64) ([]float32, error) {
	g, m := x.guard, x.more
	out := make([]float32, g.geometry.elements())
	if m == nil {
		return out, nil
	}
	add := func(v []float32, weight float64) {
		for i := range v {
			out[i] += float32(weight) * v[i]
		}
	}
	run := func(input []float32, selector []float64) ([]float32, error) {
		s := make([]float32, len(selector))
		for i, v := range selector {
			s[i] = float32(v)
		}
		return g.slopeOf(ctx, input, s)
	}
	for i := x.asked; i < len(x.Terms); i++ {
		w := weights[i] / g.statistics.Tails[kindOf(x.Terms[i].Guard)].Scale
		if w == 0 || g.slope == nil {
			continue
		}
		switch x.Terms[i].Guard {
		case Gradient:
			add(g.geometry.spread(x.alignmentSlope()), w)
		case Focus:
			add(g.geometry.spread(x.focusSlope()), w)
		case Squeezing:
			which, most := x.squeezed()
			own, other := g.network.probabilities(m.output), g.network.probabilities(m.answers[which])
			up := make([]float64, len(own))
			for k := range up {
				up[k] = sign(float32(other[k] - own[k]))
			}
			there, err := run(m.copies[which], g.network.back(other, up))
			if err != nil {
				return nil, err
			}
			here, err := run(m.input, g.network.back(own, up))
			if err != nil {
				return nil, err
			}
			if which == 1 {
				there = g.geometry.unmedian(m.input, there)
			}
			add(there, w/(most+1e-6))
			add(here, -w/(most+1e-6))
		case Occlusion:
			before, after := margin(m.output, x.class), margin(m.answers[2], x.class)
			if before <= after {
				continue
			}
			scale := 1 + math.Abs(before)
			here, err := run(m.input, marginSlope(m.output, x.class))
			if err != nil {
				return nil, err
			}
			there, err := run(m.copies[2], marginSlope(m.answers[2], x.class))
			if err != nil {
				return nil, err
			}
			add(here, w*(1/scale-(before-after)*sign(float32(before))/(scale*scale)))
			add(g.geometry.uncover(there, m.places[0]), -w/scale)
		}
	}
	return out, nil
}

// marginSlope is the slope of margin by the outputs.
func marginSlope(output []float64, class int) []float64 {
	out := make([]float64, len(output))
	if len(output) == 1 {
		out[0] = float64(2*class - 1)
		return out
	}
	out[class], out[rival(output, class)] = 1, -1
	return out
}

// back carries a slope by probabilities to the outputs.
func (n *Network) back(p, up []float64) []float64 {
	out := slices.Clone(up)
	switch n.Activation {
	case Softmax:
		mean := 0.0
		for i := range p {
			mean += p[i] * up[i]
		}
		for i := range p {
			out[i] = p[i] * (up[i] - mean)
		}
	case Sigmoid:
		for i := range p {
			out[i] = p[i] * (1 - p[i]) * up[i]
		}
	}
	return out
}

// alignmentSlope is the slope of alignment by the brightness.
func (x *Strain) alignmentSlope() []float64 {
	p, high := x.plane, x.pixels.high
	signs := plane{p.rows, p.columns, make([]float32, len(p.values))}
	for i, v := range x.more.gradient.values {
		signs.values[i] = float32(sign(v))
	}
	filtered := make([]float32, len(high))
	signs.filter(kernels[0], filtered, 1)
	quiet := localEnergy(high, p.rows, p.columns)
	dot, a, b := 0.0, 1e-9, 1e-9
	for i, v := range high {
		w, h, f := 1/(quiet[i]+1), float64(v), float64(filtered[i])
		dot += w * h * f
		a += w * h * h
		b += w * f * f
	}
	root := math.Sqrt(a * b)
	cos := math.Abs(dot) / root
	if cos >= 1-1e-9 {
		return make([]float64, len(high))
	}
	// atanh(|dot|/√(ab)), by each of the three sums.
	outer := 1 / (1 - cos*cos)
	byDot, byA, byB := outer*sign(float32(dot))/root, -outer*cos/(2*a), -outer*cos/(2*b)
	slope, byEnergy := make([]float64, len(high)), make([]float64, len(high))
	for i, v := range high {
		w, h, f := 1/(quiet[i]+1), float64(v), float64(filtered[i])
		slope[i] = w * (byDot*f + 2*byA*h)
		byEnergy[i] = -w * w * (byDot*h*f + byA*h*h + byB*f*f)
	}
	for r := range p.rows {
		for c := range p.columns {
			by := byEnergy[r*p.columns+c] / 25
			for y := r - 2; y <= r+2; y++ {
				for z := c - 2; z <= c+2; z++ {
					at := mirror(y, p.rows)*p.columns + mirror(z, p.columns)
					slope[at] += by * 2 * float64(high[at])
				}
			}
		}
	}
	out := make([]float64, len(high))
	p.unfilter(kernels[0], slope, out, 1)
	return out
}

// focusSlope is the slope of focus by the brightness.
func (x *Strain) focusSlope() []float64 {
	p, w := x.plane, x.more.places[0]
	inside := func(i int) bool {
		r, c := i/p.columns, i%p.columns
		return r >= w.top && r < w.top+w.side && c >= w.left && c < w.left+w.side
	}
	total, part := 1e-30, 0.0
	for i, g := range x.more.gradient.values {
		e := math.Abs(float64(g)) * (math.Abs(float64(p.values[i]-x.more.smooth[i])) + 1.0/255)
		total += e
		if inside(i) {
			part += e
		}
	}
	out := make([]float64, len(p.values))
	if part == 0 {
		return out
	}
	share := part / total
	for i, g := range x.more.gradient.values {
		by := -1 / total
		if inside(i) {
			by += 1 / part
		}
		by *= share / (share + 1e-9) * math.Abs(float64(g)) * sign(p.values[i]-x.more.smooth[i])
		out[i] += by
		r, c := i/p.columns, i%p.columns
		for y := r - 1; y <= r+1; y++ {
			for z := c - 1; z <= c+1; z++ {
				if y != r || z != c {
					out[mirror(y, p.rows)*p.columns+mirror(z, p.columns)] -= by / 8
				}
			}
		}
	}
	return out
}

// unmedian carries a slope by the 3×3 median to the pixels that are it.
func (g geometry) unmedian(values, slope []float32) []float32 {
	out := make([]float32, len(values))
	type element struct {
		value float32
		at    int
	}
	for c := range g.channels {
		sense := g.scale[c] // brightness may run the other way; the median is the same
		for r := range g.rows {
			for z := range g.columns {
				window := make([]element, 0, 9)
				for y := r - 1; y <= r+1; y++ {
					for x := z - 1; x <= z+1; x++ {
						at := g.index(c, mirror(y, g.rows)*g.columns+mirror(x, g.columns))
						window = append(window, element{values[at] / sense, at})
					}
				}
				slices.SortStableFunc(window, func(a, b element) int {
					switch {
					case a.value < b.value:
						return -1
					case a.value > b.value:
						return 1
					}
					return 0
				})
				out[window[4].at] += slope[g.index(c, r*g.columns+z)]
			}
		}
	}
	return out
}

// uncover carries a slope by the image with a covered place to the image: what is
// inside is the mean of the ring around it.
func (g geometry) uncover(slope []float32, w window) []float32 {
	out := slices.Clone(slope)
	inside := func(r, c int) bool { return r >= w.top && r < w.top+w.side && c >= w.left && c < w.left+w.side }
	by := 0.0 // by the brightness of the ring's mean
	for r := w.top; r < w.top+w.side; r++ {
		for c := w.left; c < w.left+w.side; c++ {
			for channel := range g.channels {
				at := g.index(channel, r*g.columns+c)
				by += float64(slope[at]) * float64(g.scale[channel])
				out[at] = 0
			}
		}
	}
	var ring []int
	for r := max(0, w.top-2); r < min(g.rows, w.top+w.side+2); r++ {
		for c := max(0, w.left-2); c < min(g.columns, w.left+w.side+2); c++ {
			if !inside(r, c) {
				ring = append(ring, r*g.columns+c)
			}
		}
	}
	for _, pixel := range ring {
		for channel := range g.channels {
			share := by / float64(len(ring)) / (float64(g.scale[channel]) * float64(g.channels))
			out[g.index(channel, pixel)] += float32(share)
		}
	}
	return out
}
