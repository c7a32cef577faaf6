package attack

import (
	"context"
	"math"
	"slices"
)

// What the attacks share that look for the nearest adversarial example.

// improve keeps an image that fools if it is nearer than what was found before,
// or within the bound for the first time.
func (k *task) improve(j int, pixels []float32) {
	d := k.ball.norm.Distance(k.clean(j), pixels)
	if k.fooled[j] && d >= k.ball.norm.Distance(k.clean(j), k.found(j)) {
		return
	}
	k.take(j, pixels)
}

// distance is that of the best image of j, infinite if there is none.
func (k *task) distance(j int) float64 {
	if !k.fooled[j] {
		return math.Inf(1)
	}
	return k.ball.norm.Distance(k.clean(j), k.found(j))
}

// plane is where the linearised model changes its answer:
// value + ⟨slope, z - x⟩ = 0 at an example x.
type plane struct {
	value float64 // negative: not fooled yet
	slope []float32
}

// planes linearises the examples' decisions against the classes that are
// likeliest without an attack, at most nine.
func (k *task) planes(ctx context.Context, of []int, pixels []float32) ([][]plane, error) {
	classes := k.about.Classes
	sides := min(9, classes-1)
	if k.options.Class != nil {
		sides = 1
	}
	out := make([][]plane, len(of))
	var z []float32 // of the examples as they are
	if k.options.Class != nil && classes > 2 {
		a, err := k.ask(ctx, pixels, nil)
		if err != nil {
			return nil, err
		}
		z = a.Logits
	}
	for side := range sides {
		o := &Objective{Weights: make([]float32, len(of)*classes)}
		pair := make([][2]int, len(of))
		for i, j := range of {
			g := k.goals[j]
			up, down := g.class, g.label
			if z != nil {
				down = other(z[i*classes:(i+1)*classes], up)
			}
			if g.class < 0 {
				order := slices.DeleteFunc(byValue(k.before[j*classes:(j+1)*classes]), func(c int) bool { return c == g.label })
				up = order[side]
			}
			pair[i] = [2]int{up, down}
			o.Weights[i*classes+up], o.Weights[i*classes+down] = 1, -1
		}
		a, err := k.ask(ctx, pixels, o)
		if err != nil {
			return nil, err
		}
		for i := range of {
			row := k.logits(a, i)
			out[i] = append(out[i], plane{float64(row[pair[i][0]]) - float64(row[pair[i][1]]) - a.penalty(i), a.Gradient[i*k.size : (i+1)*k.size]})
		}
	}
	return out, nil
}

// nearest is the plane that the norm finds nearest, by value over dual norm.
func (n Norm) nearest(planes []plane) plane {
	best, at := math.Inf(1), 0
	for i, p := range planes {
		if d := math.Abs(p.value) / max(n.dual(p.slope), 1e-300); d < best {
			best, at = d, i
		}
	}
	return planes[at]
}

// dual is the norm by which a perturbation's norm bounds what a linear function
// of that slope gains.
func (n Norm) dual(slope []float32) float64 {
	sum := 0.0
	for _, v := range slope {
		a := math.Abs(float64(v))
		switch n {
		case Linf:
			sum += a
		case L2:
			sum += a * a
		default:
			sum = max(sum, a)
		}
	}
	if n == L2 {
		return math.Sqrt(sum)
	}
	return sum
}

// onto writes to y the point of the plane, within the pixel range, that is
// nearest to x, exactly; if the plane does not meet the range, the point of the
// range that comes nearest to it.
func (b ball) onto(x []float32, p plane, y []float64) {
	need, sense := -p.value, 1.0
	if need < 0 { // beyond it: back
		need, sense = p.value, -1
	}
	for i, v := range x {
		y[i] = float64(v)
	}
	if b.norm == L1 {
		for _, i := range byMagnitude(p.slope) {
			g := sense * float64(p.slope[i])
			if need <= 0 || g == 0 {
				return
			}
			move := min(need/math.Abs(g), b.room(x[i], float32(g)))
			y[i] += move * math.Copysign(1, g)
			need -= move * math.Abs(g)
		}
		return
	}
	direction := func(i int) float64 {
		if b.norm == Linf {
			return sense * sign(p.slope[i])
		}
		return sense * float64(p.slope[i])
	}
	gain := func(t float64) float64 {
		sum := 0.0
		for i, v := range x {
			c := float64(v)
			sum += sense * float64(p.slope[i]) * (min(max(c+t*direction(i), b.low), b.high) - c)
		}
		return sum
	}
	length := 0.0 // gain for each unit of t, where nothing is cut off
	for i := range x {
		length += sense * float64(p.slope[i]) * direction(i)
	}
	if length == 0 {
		return
	}
	t := need / length
	for range 64 {
		if gain(t) >= need {
			break
		}
		t *= 2
	}
	t = largest(0, t, func(t float64) bool { return gain(t) <= need })
	for i, v := range x {
		y[i] = min(max(float64(v)+t*direction(i), b.low), b.high)
	}
}

// pixels turns a point of the range into float32 numbers that are within it.
func (b ball) pixels(y []float64) []float32 {
	out := make([]float32, len(y))
	free := ball{norm: L2, eps: math.Inf(1), low: b.low, high: b.high}
	for i, v := range y {
		out[i] = free.pixel(0, min(max(v, b.low), b.high))
	}
	return out
}

// tighten moves each image found towards its original as far as it still fools,
// by bisection on the way between them.
func (k *task) tighten(ctx context.Context, of []int, rounds int) error {
	of = slices.DeleteFunc(slices.Clone(of), func(j int) bool { return !k.fooled[j] })
	if len(of) == 0 {
		return nil
	}
	near, far := make([]float64, len(of)), make([]float64, len(of)) // share of the way: not fooled, fooled
	ends := make([][]float32, len(of))
	for i, j := range of {
		far[i], ends[i] = 1, slices.Clone(k.found(j))
	}
	for range rounds {
		pixels := make([]float32, 0, len(of)*k.size)
		for i, j := range of {
			pixels = append(pixels, k.between(k.clean(j), ends[i], (near[i]+far[i])/2)...)
		}
		a, err := k.ask(ctx, pixels, nil)
		if err != nil {
			return err
		}
		for i, j := range of {
			mid := (near[i] + far[i]) / 2
			if k.goals[j].reached(k.logits(a, i)) && !a.held(i) {
				far[i] = mid
				k.improve(j, pixels[i*k.size:(i+1)*k.size])
			} else {
				near[i] = mid
			}
		}
	}
	return nil
}

// between is the point at a share of the way from a to b.
func (k *task) between(a, b []float32, share float64) []float32 {
	y := make([]float64, len(a))
	for i, v := range a {
		y[i] = float64(v) + share*(float64(b[i])-float64(v))
	}
	return k.ball.pixels(y)
}

// all lists every image.
func (k *task) all() []int {
	of := make([]int, len(k.goals))
	for j := range of {
		of[j] = j
	}
	return of
}
