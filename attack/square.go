package attack

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// Square is the random search of Andriushchenko et al. 2020: it needs the
// model's scores and no gradient.
const Square Name = "square"

// squareShare is p: the share of pixels that the first squares cover.
const squareShare = 0.8

func runSquare(ctx context.Context, k *task) error {
	for restart := range k.options.Restarts {
		report := func(done float64) { k.progress((float64(restart) + done) / float64(k.options.Restarts)) }
		if err := k.square(ctx, k.open(), k.options.Steps, restart, report); err != nil {
			return err
		}
	}
	k.progress(1)
	return nil
}

// prober is one image on the way of a random search.
type prober struct {
	of     int
	rng    *rand.Rand
	now    []float32
	margin float64
}

func (k *task) square(ctx context.Context, of []int, steps, part int, report func(float64)) error {
	if len(k.about.Shape) != 3 {
		return fmt.Errorf("examples of shape %v: %w: squares are of an image, [channels, rows, columns]", k.about.Shape, ErrAsk)
	}
	var probers []*prober
	y := make([]float64, k.size)
	for _, j := range of {
		p := &prober{of: j, rng: k.random(j, 0x500000+part), now: make([]float32, k.size), margin: math.Inf(-1)}
		if k.ball.norm == Linf {
			k.stripes(p, y)
		} else {
			k.tiles(p, y)
		}
		k.ball.project(k.clean(j), y, p.now)
		probers = append(probers, p)
	}
	// The starting points are judged as a first proposal.
	proposals := make([][]float32, len(probers))
	for i, p := range probers {
		proposals[i] = p.now
	}
	for step := 0; step < steps && len(probers) > 0; step++ {
		if step > 0 {
			proposals = make([][]float32, len(probers))
			for i, p := range probers {
				proposals[i] = make([]float32, k.size)
				if k.ball.norm == Linf {
					k.proposeLinf(p, squareSide(step, steps, k.about.Shape), y)
				} else {
					k.proposeL2(p, squareSide(step, steps, k.about.Shape), y)
				}
				k.ball.project(k.clean(p.of), y, proposals[i])
			}
		}
		a, err := k.ask(ctx, slices.Concat(proposals...), nil)
		if err != nil {
			return err
		}
		var left []*prober
		for i, p := range probers {
			z := k.logits(a, i)
			if k.goals[p.of].reached(z) && !a.held(i) {
				k.take(p.of, proposals[i])
				continue
			}
			left = append(left, p)
			if m := k.goals[p.of].margin(z) - a.penalty(i); m > p.margin {
				p.margin, p.now = m, proposals[i]
			}
		}
		probers = left
		if step%16 == 0 {
			report(float64(step) / float64(steps))
		}
	}
	return nil
}

// squareSide is the side of the squares at a step: the share p is halved at the
// steps of section 5, which are of 10,000.
func squareSide(step, steps int, shape []int64) int {
	p := squareShare
	at := step * 10000 / steps
	for _, bound := range []int{10, 50, 200, 1000, 2000, 4000, 6000, 8000} {
		if at > bound {
			p /= 2
		}
	}
	rows, columns := float64(shape[1]), float64(shape[2])
	side := int(math.Round(math.Sqrt(p * rows * columns)))
	return min(max(side, 1), int(min(rows, columns)))
}

// stripes is the start in Linf: each column of each channel at one end.
func (k *task) stripes(p *prober, y []float64) {
	channels, rows, columns := int(k.about.Shape[0]), int(k.about.Shape[1]), int(k.about.Shape[2])
	clean := k.clean(p.of)
	for c := range channels {
		for x := range columns {
			d := k.ball.eps * float64(1-2*p.rng.IntN(2))
			for r := range rows {
				i := (c*rows+r)*columns + x
				y[i] = float64(clean[i]) + d
			}
		}
	}
}

// proposeLinf puts a square at one end in each channel (algorithm 2).
func (k *task) proposeLinf(p *prober, side int, y []float64) {
	channels, rows, columns := int(k.about.Shape[0]), int(k.about.Shape[1]), int(k.about.Shape[2])
	clean := k.clean(p.of)
	for i, v := range p.now {
		y[i] = float64(v)
	}
	r0, c0 := p.rng.IntN(rows-side+1), p.rng.IntN(columns-side+1)
	for c := range channels {
		d := k.ball.eps * float64(1-2*p.rng.IntN(2))
		for r := r0; r < r0+side; r++ {
			for x := c0; x < c0+side; x++ {
				i := (c*rows+r)*columns + x
				y[i] = float64(clean[i]) + d
			}
		}
	}
}

// pyramid is η of section 4.2 for a window of some height and width: it is
// highest in the middle and falls off in squares.
func pyramid(height, width int) [][]float64 {
	out := make([][]float64, height)
	n := height / 2
	for r := range out {
		out[r] = make([]float64, width)
		for c := range out[r] {
			far := max(abs(r-height/2), abs(c-width/2))
			for m := 0; m <= n-far; m++ {
				out[r][c] += 1 / float64((n+1-m)*(n+1-m))
			}
		}
	}
	return out
}

func abs(v int) int { return max(v, -v) }

// bump is a window of side h: two pyramids of opposite sign side by side or one
// above the other, of length 1.
func bump(h int, rng *rand.Rand) [][]float64 {
	out := make([][]float64, h)
	for r := range out {
		out[r] = make([]float64, h)
	}
	upper, lower := pyramid(h, h/2), pyramid(h, h-h/2)
	sum := 0.0
	for r := range h {
		for c := range h {
			if c < h/2 {
				out[r][c] = upper[r][c]
			} else {
				out[r][c] = -lower[r][c-h/2]
			}
			sum += out[r][c] * out[r][c]
		}
	}
	turned := rng.IntN(2) == 1
	flip := float64(1 - 2*rng.IntN(2))
	scaled := make([][]float64, h)
	for r := range h {
		scaled[r] = make([]float64, h)
		for c := range h {
			v := out[r][c]
			if turned {
				v = out[c][r]
			}
			if sum > 0 {
				scaled[r][c] = flip * v / math.Sqrt(sum)
			}
		}
	}
	return scaled
}

// tiles is the start in L2: bumps over the whole image, of length eps together.
func (k *task) tiles(p *prober, y []float64) {
	channels, rows, columns := int(k.about.Shape[0]), int(k.about.Shape[1]), int(k.about.Shape[2])
	side := max(1, min(rows, columns)/5)
	d := make([]float64, k.size)
	sum := 0.0
	for c := range channels {
		for r0 := 0; r0+side <= rows; r0 += side {
			for c0 := 0; c0+side <= columns; c0 += side {
				for r, line := range bump(side, p.rng) {
					for x, v := range line {
						d[(c*rows+r0+r)*columns+c0+x] = v
						sum += v * v
					}
				}
			}
		}
	}
	for i, v := range k.clean(p.of) {
		y[i] = float64(v)
		if sum > 0 {
			y[i] += k.ball.eps * d[i] / math.Sqrt(sum)
		}
	}
}

// proposeL2 takes what perturbation two windows hold, and what is left of the
// bound, into a bump in the first of them (algorithm 3).
func (k *task) proposeL2(p *prober, side int, y []float64) {
	channels, rows, columns := int(k.about.Shape[0]), int(k.about.Shape[1]), int(k.about.Shape[2])
	clean := k.clean(p.of)
	side = max(side, 3)
	side = min(side, rows, columns)
	d := make([]float64, k.size)
	total := 0.0
	for i, v := range p.now {
		d[i] = float64(v) - float64(clean[i])
		total += d[i] * d[i]
	}
	unused := max(0, k.ball.eps*k.ball.eps-total) / float64(channels)
	r1, c1 := p.rng.IntN(rows-side+1), p.rng.IntN(columns-side+1)
	r2, c2 := p.rng.IntN(rows-side+1), p.rng.IntN(columns-side+1)
	for c := range channels {
		at := func(r, x int) int { return (c*rows+r)*columns + x }
		inFirst := func(r, x int) bool { return r >= r1 && r < r1+side && x >= c1 && x < c1+side }
		first, both := 0.0, 0.0
		for r := range side {
			for x := range side {
				first += d[at(r1+r, c1+x)] * d[at(r1+r, c1+x)]
				if !inFirst(r2+r, c2+x) {
					both += d[at(r2+r, c2+x)] * d[at(r2+r, c2+x)]
				}
			}
		}
		both += first
		shape := bump(side, p.rng)
		length := 0.0
		for r := range side {
			for x := range side {
				if first > 0 {
					shape[r][x] += d[at(r1+r, c1+x)] / math.Sqrt(first)
				}
				length += shape[r][x] * shape[r][x]
			}
		}
		for r := range side {
			for x := range side {
				d[at(r2+r, c2+x)] = 0
			}
		}
		for r := range side {
			for x := range side {
				if length > 0 {
					d[at(r1+r, c1+x)] = math.Sqrt(both+unused) * shape[r][x] / math.Sqrt(length)
				}
			}
		}
	}
	for i, v := range clean {
		y[i] = float64(v) + d[i]
	}
}
