package explain

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestSuperpixelsFollowAnEdge(t *testing.T) {
	// A bright disc on dark noise: hardly any superpixel should lie on both.
	const side = 40
	rng := rand.New(rand.NewPCG(1, 0))
	values, disc := make([]float32, side*side), make([]bool, side*side)
	for p := range values {
		y, x := p/side-17, p%side-22
		disc[p] = y*y+x*x < 121
		values[p] = 0.2 + 0.05*rng.Float32()
		if disc[p] {
			values[p] += 0.6
		}
	}
	l, err := layoutOf([]int64{1, side, side}, false)
	if err != nil {
		t.Fatal(err)
	}
	of := superpixels(values, l, 50)
	count := slices.Max(of) + 1
	inside, size := make([]int, count), make([]int, count)
	for p, g := range of {
		size[g]++
		if disc[p] {
			inside[g]++
		}
	}
	wrong := 0
	for g := range size {
		wrong += min(inside[g], size[g]-inside[g])
	}
	if share := float64(wrong) / float64(len(of)); share > 0.01 {
		t.Errorf("%.1f %% of the pixels are in a superpixel of the other side, want at most 1 %%", 100*share)
	}
	if count < 25 || count > 100 {
		t.Errorf("%d superpixels, asked for about 50", count)
	}
	// A grid of the same number of squares, for comparison, does much worse.
	wrong = 0
	clear(inside)
	clear(size)
	for p := range of {
		g := p/side/6*7 + p%side/6
		if g < count {
			size[g]++
			if disc[p] {
				inside[g]++
			}
		}
	}
	for g := range size {
		wrong += min(inside[g], size[g]-inside[g])
	}
	if float64(wrong)/float64(len(of)) < 0.02 {
		t.Errorf("squares do as well: the test shows nothing")
	}
}

func TestSuperpixelsAreNumberedConnectedAndCoverTheImage(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		rows, columns, channels := rapid.IntRange(1, 24).Draw(r, "rows"), rapid.IntRange(1, 24).Draw(r, "columns"), rapid.IntRange(1, 3).Draw(r, "channels")
		l, err := layoutOf([]int64{int64(channels), int64(rows), int64(columns)}, false)
		if err != nil {
			r.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 0))
		values := make([]float32, l.elements())
		smooth := rapid.Bool().Draw(r, "flat")
		for i := range values {
			if !smooth {
				values[i] = rng.Float32()
			}
		}
		of := superpixels(values, l, rapid.IntRange(1, rows*columns+3).Draw(r, "want"))
		if len(of) != rows*columns {
			r.Fatalf("%d assignments for %d pixels", len(of), rows*columns)
		}
		if _, _, err := groups(of, len(of)); err != nil { // numbered without gaps
			r.Fatal(err)
		}
		if again := superpixels(values, l, 5); !slices.Equal(again, superpixels(values, l, 5)) {
			r.Fatal("the same image is cut in two ways")
		}
		// Connected: a flood from the first pixel of each reaches all of it.
		reached := make([]bool, len(of))
		seen := map[int]bool{}
		for start, g := range of {
			if seen[g] {
				continue
			}
			seen[g] = true
			queue := []int{start}
			reached[start] = true
			for len(queue) > 0 {
				p := queue[0]
				queue = queue[1:]
				for _, q := range []int{p - columns, p + columns, p - 1, p + 1} {
					if q < 0 || q >= len(of) || (q == p-1 || q == p+1) && q/columns != p/columns {
						continue
					}
					if !reached[q] && of[q] == g {
						reached[q] = true
						queue = append(queue, q)
					}
				}
			}
		}
		if at := slices.Index(reached, false); at >= 0 {
			r.Fatalf("superpixel %d is in two pieces", of[at])
		}
	})
}
