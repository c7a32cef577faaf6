package explain

import (
	"fmt"
	"math"
)

// layout says which numbers of an example belong to which place.
type layout struct {
	shape         []int64 // of one example
	rows, columns int     // places
	channels      int     // numbers at each place
	last          bool    // channels are the last axis
}

// layoutOf reads the shape of an example: [features], [channels, length] or
// [channels, rows, columns].
func layoutOf(shape []int64, last bool) (layout, error) {
	l := layout{shape: shape, rows: 1, channels: 1, last: last}
	at := func(i int) int { return int(shape[i]) }
	switch {
	case len(shape) == 1:
		l.columns = at(0)
	case len(shape) == 2 && last:
		l.columns, l.channels = at(0), at(1)
	case len(shape) == 2:
		l.channels, l.columns = at(0), at(1)
	case len(shape) == 3 && last:
		l.rows, l.columns, l.channels = at(0), at(1), at(2)
	case len(shape) == 3:
		l.channels, l.rows, l.columns = at(0), at(1), at(2)
	default:
		return l, fmt.Errorf("%d dimensions: %w", len(shape), ErrInput)
	}
	return l, nil
}

func (l layout) places() int   { return l.rows * l.columns }
func (l layout) elements() int { return l.places() * l.channels }
func (l layout) table() bool   { return len(l.shape) == 1 }
func (l layout) image() bool   { return len(l.shape) == 3 }

// index is where channel c of a place lies in an example.
func (l layout) index(place, c int) int {
	if l.last {
		return place*l.channels + c
	}
	return c*l.places() + place
}

// sum adds the channels up, which keeps the total.
func (l layout) sum(values []float64) []float32 {
	out := make([]float32, l.places())
	for p := range out {
		total := 0.0
		for c := range l.channels {
			total += values[l.index(p, c)]
		}
		out[p] = float32(total)
	}
	return out
}

// largest keeps of the channels the value of largest size.
func (l layout) largest(values []float64) []float32 {
	out := make([]float32, l.places())
	for p := range out {
		best := 0.0
		for c := range l.channels {
			if v := values[l.index(p, c)]; math.Abs(v) > math.Abs(best) {
				best = v
			}
		}
		out[p] = float32(best)
	}
	return out
}

// replace copies the marked places of from into row.
func (l layout) replace(row, from []float32, marked func(place int) bool) {
	for p := range l.places() {
		if marked(p) {
			for c := range l.channels {
				i := l.index(p, c)
				row[i] = from[i]
			}
		}
	}
}
