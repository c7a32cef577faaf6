package attack

import (
	"fmt"
	"math"
)

// Norm measures a perturbation, in units of the pixel range as it is.
type Norm string

// The norms.
const (
	Linf Norm = "linf" // largest change of a pixel
	L2   Norm = "l2"   // root of the sum of squared changes
	L1   Norm = "l1"   // sum of absolute changes
	L0   Norm = "l0"   // places changed; several channels of a place count once
)

// ParseNorm returns the norm of that name.
func ParseNorm(name string) (Norm, error) {
	switch n := Norm(name); n {
	case Linf, L2, L1, L0:
		return n, nil
	}
	return "", fmt.Errorf("attack: norm %q: want linf, l2, l1 or l0", name)
}

// Distance is the norm of b - a, computed in double precision from the float32
// numbers as they are. For L0 the examples are of one channel; see Places.
func (n Norm) Distance(a, b []float32) float64 {
	sum := 0.0
	for i, v := range a {
		d := math.Abs(float64(b[i]) - float64(v))
		switch n {
		case Linf:
			sum = max(sum, d)
		case L2:
			sum += d * d
		case L1:
			sum += d
		case L0:
			if d > 0 {
				sum++
			}
		}
	}
	if n == L2 {
		return math.Sqrt(sum)
	}
	return sum
}

// ball is the perturbations that are allowed around an example: those of a norm
// of at most eps whose pixels stay within the range.
type ball struct {
	norm      Norm
	eps       float64
	low, high float64
}

// project replaces y, the wanted example around x in double precision, by the
// nearest allowed one (in the Euclidean sense, exactly: the ball and the range
// are met together, not one after the other), and writes it to out as float32
// numbers that are themselves allowed.
func (b ball) project(x []float32, y []float64, out []float32) {
	switch b.norm {
	case Linf:
		for i, v := range x {
			c := float64(v)
			y[i] = min(max(y[i], c-b.eps, b.low), c+b.eps, b.high)
		}
	case L2:
		b.projectL2(x, y)
	case L1:
		b.projectL1(x, y)
	}
	b.round(x, y, out)
}

// projectL2: the nearest point has the form clip((y + λx)/(1 + λ)) for the least
// λ ≥ 0 that brings it into the ball (the conditions of Karush, Kuhn and Tucker).
// In terms of s = 1/(1 + λ) its norm grows with s, and s is found by bisection.
func (b ball) projectL2(x []float32, y []float64) {
	squared := func(s float64) float64 {
		sum := 0.0
		for i, v := range x {
			c := float64(v)
			d := min(max(c+s*(y[i]-c), b.low), b.high) - c
			sum += d * d
		}
		return sum
	}
	s := 1.0
	if squared(1) > b.eps*b.eps {
		s = largest(0, 1, func(s float64) bool { return squared(s) <= b.eps*b.eps })
	}
	for i, v := range x {
		c := float64(v)
		y[i] = min(max(c+s*(y[i]-c), b.low), b.high)
	}
}

// projectL1: each change shrinks by λ and is cut off where the range ends
// (Croce and Hein 2021, "Mind the box", proposition 2.2), λ being the least that
// brings it into the ball.
func (b ball) projectL1(x []float32, y []float64) {
	change := func(i int, less float64) float64 {
		c := float64(x[i])
		d := y[i] - c
		if d >= 0 {
			return min(max(d-less, 0), b.high-c)
		}
		return -min(max(-d-less, 0), c-b.low)
	}
	sum := func(less float64) float64 {
		total := 0.0
		for i := range y {
			total += math.Abs(change(i, less))
		}
		return total
	}
	less := 0.0
	if sum(0) > b.eps {
		most := 0.0
		for i, v := range x {
			most = max(most, math.Abs(y[i]-float64(v)))
		}
		less = -largest(-most, 0, func(s float64) bool { return sum(-s) <= b.eps })
	}
	for i := range y {
		y[i] = float64(x[i]) + change(i, less)
	}
}

// largest returns the largest s in [low, high] for which ok holds, which it must
// do up to some point and not beyond, and at low.
func largest(low, high float64, ok func(float64) bool) float64 {
	if ok(high) {
		return high
	}
	for range 80 {
		mid := low + (high-low)/2
		if mid <= low || mid >= high {
			break
		}
		if ok(mid) {
			low = mid
		} else {
			high = mid
		}
	}
	return low
}

// round turns an allowed example into float32 numbers and undoes what rounding
// has carried out of the ball or the range.
func (b ball) round(x []float32, y []float64, out []float32) {
	for i, v := range y {
		out[i] = b.pixel(x[i], v)
	}
	if b.norm == Linf || b.norm == L0 {
		return
	}
	for shrink := 1 - 1e-7; b.norm.Distance(x, out) > b.eps; shrink *= shrink {
		for i, v := range x {
			c := float64(v)
			out[i] = b.pixel(v, c+shrink*(float64(out[i])-c))
		}
	}
}

// pixel is the float32 nearest to v that is in the range and, for Linf, in the
// ball around x.
func (b ball) pixel(x float32, v float64) float32 {
	p := float32(v)
	for float64(p) > b.high || b.norm == Linf && float64(p)-float64(x) > b.eps {
		p = math.Nextafter32(p, float32(math.Inf(-1)))
	}
	for float64(p) < b.low || b.norm == Linf && float64(x)-float64(p) > b.eps {
		p = math.Nextafter32(p, float32(math.Inf(1)))
	}
	return p
}

// holds says whether an example is allowed.
func (b ball) holds(x, y []float32) bool {
	for _, v := range y {
		if !(float64(v) >= b.low && float64(v) <= b.high) {
			return false
		}
	}
	return b.norm.Distance(x, y) <= b.eps
}

// steepest returns in y the allowed example around x that a linear function of
// slope g raises most: the exact answer to the first-order question.
func (b ball) steepest(x []float32, g []float32, y []float64) {
	switch b.norm {
	case Linf:
		for i, v := range x {
			y[i] = float64(v) + b.eps*sign(g[i])
		}
	case L2:
		// x + t·g, cut off at the range, with the largest t within the ball.
		at := func(t float64) float64 {
			sum := 0.0
			for i, v := range x {
				c := float64(v)
				d := min(max(c+t*float64(g[i]), b.low), b.high) - c
				sum += d * d
			}
			return sum
		}
		length, least := 0.0, math.Inf(1) // of the slopes that are not 0
		for _, v := range g {
			if a := math.Abs(float64(v)); a > 0 {
				length, least = math.Hypot(length, a), min(least, a)
			}
		}
		t := 0.0
		if length > 0 {
			// Cutting off only shortens, so the answer is not below the first t; beyond
			// the last one every pixel has met an end.
			t = b.eps / length
			end := max(t, (b.high-b.low)/least)
			for t < end && at(2*t) <= b.eps*b.eps {
				t *= 2
			}
			t = largest(t, min(2*t, end), func(t float64) bool { return at(t) <= b.eps*b.eps })
		}
		for i, v := range x {
			y[i] = float64(v) + t*float64(g[i])
		}
	case L1:
		// The steepest pixels as far as they go.
		left := b.eps
		for i, v := range x {
			y[i] = float64(v)
		}
		for _, i := range byMagnitude(g) {
			if left <= 0 || g[i] == 0 {
				break
			}
			move := min(left, b.room(x[i], g[i]))
			y[i] += move * sign(g[i])
			left -= move
		}
	}
}

// room is how far a pixel may go in the direction of a slope.
func (b ball) room(x, slope float32) float64 {
	if slope > 0 {
		return max(0, b.high-float64(x))
	}
	return max(0, float64(x)-b.low)
}

func sign(v float32) float64 {
	switch {
	case v > 0:
		return 1
	case v < 0:
		return -1
	}
	return 0
}
