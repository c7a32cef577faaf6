package explain

import (
	"context"
	"fmt"
	"slices"

	"github.com/vigie/vigie/engine"
)

// pieces is an input cut into parts that are there or replaced by a background
// together: the players of KernelSHAP, the switches of LIME.
type pieces struct {
	of     []int // piece of each place
	count  int
	values []float32
	from   [][]float32 // backgrounds
	logits []float32   // of the input
}

// cut prepares an example for methods that switch pieces.
func (s *subject) cut(ctx context.Context, input engine.Tensor, class int) (*pieces, error) {
	values, err := s.example(input, class)
	if err != nil {
		return nil, err
	}
	p := &pieces{values: values}
	if p.from, err = s.background(input); err != nil {
		return nil, err
	}
	if p.of, p.count, err = s.segments(values); err != nil {
		return nil, err
	}
	p.logits, err = s.logitsOf(ctx, values, p.from[0])
	return p, err
}

// segments assigns each place to a piece, numbered from 0.
func (s *subject) segments(values []float32) ([]int, int, error) {
	l, want := s.layout, or(s.options.Segments, 50)
	switch {
	case s.options.Groups != nil:
		return groups(s.options.Groups, l.places())
	case l.table():
		of := make([]int, l.places())
		for i := range of {
			of[i] = i
		}
		return of, len(of), nil
	case l.image():
		of := superpixels(values, l, min(want, l.places()))
		return of, slices.Max(of) + 1, nil
	}
	of := make([]int, l.places())
	count := min(want, len(of))
	for i := range of {
		of[i] = i * count / len(of)
	}
	return of, count, nil
}

// groups checks a caller's pieces: one for each place, numbered without gaps.
func groups(of []int, places int) ([]int, int, error) {
	if len(of) != places {
		return nil, 0, fmt.Errorf("groups: %d entries for %d places: %w", len(of), places, ErrInput)
	}
	count := slices.Max(of) + 1
	if slices.Min(of) < 0 || count > places {
		return nil, 0, fmt.Errorf("groups: pieces %d to %d: %w: number them from 0", slices.Min(of), count-1, ErrInput)
	}
	used := make([]bool, count)
	for _, g := range of {
		used[g] = true
	}
	if empty := slices.Index(used, false); empty >= 0 {
		return nil, 0, fmt.Errorf("groups: piece %d has no place: %w", empty, ErrInput)
	}
	return of, count, nil
}

// worth is the mean score over the backgrounds when only the pieces of each
// coalition are there, the others as in the background.
func (s *subject) worth(ctx context.Context, p *pieces, coalitions [][]bool, class int, tick func(int)) ([]float64, error) {
	out := make([]float64, len(coalitions))
	n := len(p.from)
	scores, err := s.scores(ctx, len(coalitions)*n, class, func(i int, row []float32) {
		copy(row, p.from[i%n])
		there := coalitions[i/n]
		s.layout.replace(row, p.values, func(place int) bool { return there[p.of[place]] })
	}, tick)
	if err != nil {
		return nil, err
	}
	for i, v := range scores {
		out[i/n] += v / float64(n)
	}
	return out, nil
}

// spread writes the pieces' contributions into a map: each place of a piece gets
// an even share, so that the map adds up to what the pieces do.
func (s *subject) spread(p *pieces, contributions []float64) *Map {
	m := s.blank(p.logits)
	size := make([]int, p.count)
	for _, g := range p.of {
		size[g]++
	}
	for place, g := range p.of {
		m.Values[place] = float32(contributions[g] / float64(size[g]))
	}
	m.Segments = slices.Clone(p.of)
	return m
}
