package attack

import (
	"cmp"
	"context"
	"math"
	"slices"
)

// Sparse changes few places, as far as it likes.
const Sparse Name = "sparse"

const (
	sparseTries = 32 // steepest places that are tried for each change
	sparseSwaps = 4  // rounds of moving a changed place to a better one
)

// runSparse changes one place after the other: of those with the steepest slope
// each is tried at both ends of the range, and the one that carries furthest
// stays; when the bound is used up, changed places are undone in turn and put
// where they do more. Of several channels each goes to the end its own slope
// points to, and to the other ends together.
func runSparse(ctx context.Context, k *task) error {
	most := int(math.Floor(k.ball.eps))
	for j := range k.goals {
		if err := k.sparse(ctx, j, most); err != nil {
			return err
		}
		k.progress(float64(j+1) / float64(len(k.goals)))
	}
	return nil
}

// spots is an image with some places changed.
type spots struct {
	pixels []float32
	places []int
	margin float64
}

func (k *task) sparse(ctx context.Context, j, most int) error {
	planes, places := 1, k.size
	if len(k.about.Shape) == 3 {
		planes, places = int(k.about.Shape[0]), k.size/int(k.about.Shape[0])
	}
	now := spots{slices.Clone(k.clean(j)), nil, math.Inf(-1)}
	for len(now.places) < most {
		next, err := k.change(ctx, j, now, planes, places)
		if err != nil || k.fooled[j] {
			return err
		}
		if next.pixels == nil {
			break
		}
		now = next
	}
	for range sparseSwaps {
		before := now.margin
		for _, at := range slices.Clone(now.places) {
			without := spots{slices.Clone(now.pixels), slices.DeleteFunc(slices.Clone(now.places), func(p int) bool { return p == at }), 0}
			for c := range planes {
				without.pixels[c*places+at] = k.clean(j)[c*places+at]
			}
			next, err := k.change(ctx, j, without, planes, places)
			if err != nil || k.fooled[j] {
				return err
			}
			if next.pixels != nil && next.margin > now.margin {
				now = next
			}
		}
		if now.margin <= before {
			break
		}
	}
	return nil
}

// change changes one more place, the best of those tried.
func (k *task) change(ctx context.Context, j int, from spots, planes, places int) (spots, error) {
	a, _, err := k.climb(ctx, from.pixels, []goal{k.goals[j]}, Margin)
	if err != nil {
		return spots{}, err
	}
	gain := make([]float64, places)
	order := make([]int, places)
	for p := range places {
		order[p] = p
		for c := range planes {
			i := c*places + p
			gain[p] += math.Abs(float64(a.Gradient[i])) * k.ball.room(from.pixels[i], a.Gradient[i])
		}
	}
	slices.SortStableFunc(order, func(p, q int) int { return cmp.Compare(gain[q], gain[p]) })
	var tries []spots
	for _, p := range order {
		if len(tries) >= 3*sparseTries || slices.Contains(from.places, p) {
			continue
		}
		for way := range 3 { // as the slopes point, all dark, all bright
			t := spots{slices.Clone(from.pixels), append(slices.Clone(from.places), p), 0}
			for c := range planes {
				i := c*places + p
				t.pixels[i] = float32(k.ball.low)
				if way == 2 || way == 0 && a.Gradient[i] > 0 {
					t.pixels[i] = float32(k.ball.high)
				}
			}
			if planes > 1 || way > 0 {
				tries = append(tries, t)
			}
		}
	}
	if len(tries) == 0 {
		return spots{}, nil
	}
	pixels := make([]float32, 0, len(tries)*k.size)
	for _, t := range tries {
		pixels = append(pixels, t.pixels...)
	}
	if a, err = k.ask(ctx, pixels, nil); err != nil {
		return spots{}, err
	}
	best := -1
	for i := range tries {
		z := k.logits(a, i)
		tries[i].margin = k.goals[j].margin(z) - a.penalty(i)
		if k.goals[j].reached(z) && !a.held(i) {
			k.take(j, tries[i].pixels)
		}
		if best < 0 || tries[i].margin > tries[best].margin {
			best = i
		}
	}
	return tries[best], nil
}
