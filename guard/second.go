package guard

import (
	"context"
	"math"
	"slices"
)

// occlusions is how many places are covered at a second look: each costs a run.
const occlusions = 1

// alignment compares the image's fine detail with the signs of the gradient,
// both through the same high-pass filter: the cosine between them, as a logit
// of its size. Every attack along the gradient leaves such a trace, in whichever
// direction the answer went. Each place weighs as it is quiet around (the matched
// filter for noise that differs from place to place; Turin 1960, section IV):
// where anatomy or speckle is loud, a perturbation of 2/255 does not show, and
// what is loud must not drown what shows elsewhere.
func alignment(high []float32, gradient plane) float64 {
	signs := plane{gradient.rows, gradient.columns, make([]float32, len(gradient.values))}
	for i, v := range gradient.values {
		switch {
		case v > 0:
			signs.values[i] = 1
		case v < 0:
			signs.values[i] = -1
		}
	}
	filtered := make([]float32, len(signs.values))
	signs.filter(kernels[0], filtered, 1)
	quiet := localEnergy(high, gradient.rows, gradient.columns)
	dot, a, b := 0.0, 1e-9, 1e-9
	for i, v := range high {
		w := 1 / (quiet[i] + 1)
		x, y := float64(v), float64(filtered[i])
		dot += w * x * y
		a += w * x * x
		b += w * y * y
	}
	cos := min(math.Abs(dot)/math.Sqrt(a*b), 1-1e-9)
	return math.Atanh(cos)
}

// localEnergy is the mean square of a residual in 5×5 places.
func localEnergy(high []float32, rows, columns int) []float64 {
	across, out := make([]float64, len(high)), make([]float64, len(high))
	for r := range rows {
		for c := range columns {
			for x := c - 2; x <= c+2; x++ {
				v := float64(high[r*columns+mirror(x, columns)])
				across[r*columns+c] += v * v / 5
			}
		}
	}
	for r := range rows {
		for y := r - 2; y <= r+2; y++ {
			from := across[mirror(y, rows)*columns:]
			for c := range columns {
				out[r*columns+c] += from[c] / 5
			}
		}
	}
	return out
}

// smooth is the image with each pixel replaced by the mean of the eight around
// it.
func (p plane) smooth() []float32 {
	out := make([]float32, len(p.values))
	for r := range p.rows {
		for c := range p.columns {
			sum := -p.values[r*p.columns+c]
			for y := r - 1; y <= r+1; y++ {
				row := p.values[mirror(y, p.rows)*p.columns:]
				for x := c - 1; x <= c+1; x++ {
					sum += row[mirror(x, p.columns)]
				}
			}
			out[r*p.columns+c] = sum / 8
		}
	}
	return out
}

// median is the image's 3×3 median.
func (p plane) median() []float32 {
	out := make([]float32, len(p.values))
	var window [9]float32
	for r := range p.rows {
		for c := range p.columns {
			k := 0
			for y := r - 1; y <= r+1; y++ {
				row := p.values[mirror(y, p.rows)*p.columns:]
				for x := c - 1; x <= c+1; x++ {
					window[k] = row[mirror(x, p.columns)]
					k++
				}
			}
			slices.Sort(window[:])
			out[r*p.columns+c] = window[4]
		}
	}
	return out
}

// window is a square place of an image.
type window struct{ top, left, side int }

// patchSide is the side of the places that are covered: 3 pixels of 28.
func (p plane) patchSide() int { return max(3, min(p.rows, p.columns)*3/28) }

// hot finds the places with the most of the answer's sensitivity: gradient times
// what a pixel differs from its surroundings. focus is the share of the first,
// as a logarithm.
func (p plane) hot(gradient, smooth []float32) (places []window, focus float64) {
	energy := make([]float64, len(p.values))
	total := 1e-30
	for i, g := range gradient {
		energy[i] = math.Abs(float64(g)) * (math.Abs(float64(p.values[i]-smooth[i])) + 1.0/255)
		total += energy[i]
	}
	side := p.patchSide()
	rows, columns := p.rows-side+1, p.columns-side+1
	sums := make([]float64, rows*columns)
	// Sums over columns first, then over rows.
	across := make([]float64, p.rows*columns)
	for r := range p.rows {
		sum := 0.0
		for c := range p.columns {
			sum += energy[r*p.columns+c]
			if c >= side {
				sum -= energy[r*p.columns+c-side]
			}
			if c >= side-1 {
				across[r*columns+c-side+1] = sum
			}
		}
	}
	for c := range columns {
		sum := 0.0
		for r := range p.rows {
			sum += across[r*columns+c]
			if r >= side {
				sum -= across[(r-side)*columns+c]
			}
			if r >= side-1 {
				sums[(r-side+1)*columns+c] = sum
			}
		}
	}
	for range occlusions {
		best := 0
		for i, v := range sums {
			if v > sums[best] {
				best = i
			}
		}
		if places == nil {
			focus = math.Log(sums[best]/total + 1e-9)
		}
		at := window{best / columns, best % columns, side}
		places = append(places, at)
		for r := max(0, at.top-side+1); r < min(rows, at.top+side); r++ {
			for c := max(0, at.left-side+1); c < min(columns, at.left+side); c++ {
				sums[r*columns+c] = -1
			}
		}
	}
	return places, focus
}

// levels is how many grey levels the coarse copy has.
const levels = 16

// copies are the images of a second look: fewer grey levels, a median filter,
// and each hot place covered by the mean of the ring around it.
func (g geometry) copies(values []float32, p plane, places []window) [][]float32 {
	out := make([][]float32, 0, 2+len(places))
	coarse, soft := slices.Clone(values), slices.Clone(values)
	for c := range g.channels {
		one := plane{g.rows, g.columns, make([]float32, len(p.values))}
		for i := range one.values {
			one.values[i] = (values[g.index(c, i)] - g.black[c]) / g.scale[c]
		}
		for i, v := range one.median() {
			at := g.index(c, i)
			soft[at] = g.black[c] + g.scale[c]*v
			rounded := float32(math.Round(float64(one.values[i])*(levels-1))) / (levels - 1)
			coarse[at] = g.black[c] + g.scale[c]*rounded
		}
	}
	out = append(out, coarse, soft)
	for _, w := range places {
		covered := slices.Clone(values)
		ring, n := float32(0), 0
		inside := func(r, c int) bool { return r >= w.top && r < w.top+w.side && c >= w.left && c < w.left+w.side }
		for r := max(0, w.top-2); r < min(g.rows, w.top+w.side+2); r++ {
			for c := max(0, w.left-2); c < min(g.columns, w.left+w.side+2); c++ {
				if !inside(r, c) {
					ring += p.values[r*g.columns+c]
					n++
				}
			}
		}
		for r := w.top; r < w.top+w.side; r++ {
			for c := w.left; c < w.left+w.side; c++ {
				g.set(covered, r*g.columns+c, ring/float32(max(1, n)))
			}
		}
		out = append(out, covered)
	}
	return out
}

// secondLook asks the guards that cost a gradient and a small batch.
func (g *Guard) secondLook(ctx context.Context, look *Look, s scores) error {
	if g.slope == nil {
		return g.squeeze(ctx, look, nil, s)
	}
	selector := make([]float32, g.slope.labels)
	towards(selector, look.output, look.class)
	_, gradient, err := g.slope.run(ctx, look.values, selector)
	if err != nil {
		return err
	}
	p := g.geometry.inBrightness(gradient)
	for _, v := range p.values {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return errNotFinite
		}
	}
	s[kindOf(Gradient)] = alignment(look.pixels.high, p)
	places, focus := look.plane.hot(p.values, look.plane.smooth())
	s[kindOf(Focus)] = focus
	return g.squeeze(ctx, look, places, s)
}

// squeeze runs the copies and compares their answers with the image's.
func (g *Guard) squeeze(ctx context.Context, look *Look, places []window, s scores) error {
	outputs, err := g.answers(ctx, g.geometry.copies(look.values, look.plane, places))
	if err != nil {
		return err
	}
	own := g.network.probabilities(look.output)
	most, lost := 0.0, 0.0
	for k, output := range outputs {
		if k < 2 {
			apart := 0.0
			for i, p := range g.network.probabilities(output) {
				apart += math.Abs(p - own[i])
			}
			most = max(most, apart)
			continue
		}
		before := margin(look.output, look.class)
		lost = max(lost, (before-margin(output, look.class))/(1+math.Abs(before)))
	}
	s[kindOf(Squeezing)] = math.Log(most + 1e-6)
	if len(outputs) > 2 {
		s[kindOf(Occlusion)] = lost
	}
	return nil
}
