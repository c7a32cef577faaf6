package certificate

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

func TestEveryPatchLiesWithinOneOfTheMasks(t *testing.T) {
	check := func(region Region, patch Size, k int) {
		t.Helper()
		c, err := Covering(region, patch, k)
		if err != nil {
			if !errors.Is(err, ErrAsk) {
				t.Fatal(err)
			}
			return
		}
		if len(c.Masks) > k*k {
			t.Fatalf("%v %v: %d masks of at most %d along an axis", region, patch, len(c.Masks), k)
		}
		for _, m := range c.Masks {
			if m.Top < region.Top || m.Left < region.Left || m.Bottom > region.Top+region.Rows || m.Right > region.Left+region.Columns ||
				m.Bottom-m.Top != c.Mask.Rows || m.Right-m.Left != c.Mask.Columns {
				t.Fatalf("%v %v, %d masks: mask %v of size %v", region, patch, k, m, c.Mask)
			}
		}
		for top := region.Top; top+patch.Rows <= region.Top+region.Rows; top++ {
			for left := region.Left; left+patch.Columns <= region.Left+region.Columns; left++ {
				held := false
				for _, m := range c.Masks {
					held = held || m.Top <= top && m.Left <= left && top+patch.Rows <= m.Bottom && left+patch.Columns <= m.Right
				}
				if !held {
					t.Fatalf("%v, %d masks: the patch of %v at %d, %d lies within none of %v", region, k, patch, top, left, c.Masks)
				}
			}
		}
	}
	// All that is small, and drawn sizes.
	for n := 2; n <= 13; n++ {
		for p := 1; p <= n; p++ {
			for k := 2; k <= 7; k++ {
				check(Whole(n, n), Size{p, p}, k)
			}
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		region := Region{random.IntN(4), random.IntN(9), 2 + random.IntN(60), 2 + random.IntN(60)}
		check(region, Size{1 + random.IntN(region.Rows), 1 + random.IntN(region.Columns)}, 2+random.IntN(7))
	}
	if c, err := Covering(Whole(28, 28), Size{3, 3}, 6); err != nil || len(c.Masks) != 36 || c.Mask != (Size{7, 7}) || c.Pairs() != 630 {
		t.Errorf("of 28 pixels, patches of 3 and six masks an axis: %d masks of %v (%v)", len(c.Masks), c.Mask, err)
	}
}

func TestACoverThatHidesEverythingOrNothingIsRefused(t *testing.T) {
	for _, ask := range []struct {
		region Region
		patch  Size
		k      int
	}{
		{Whole(5, 5), Size{5, 5}, 3}, {Whole(5, 5), Size{6, 1}, 3}, {Whole(5, 5), Size{0, 1}, 3}, {Whole(5, 5), Size{1, 1}, 1},
		{Whole(5, 5), Size{1, 1}, MaxMasks + 1}, {Whole(0, 5), Size{1, 1}, 2}, {Region{-1, 0, 5, 5}, Size{1, 1}, 2},
	} {
		if _, err := Covering(ask.region, ask.patch, ask.k); !errors.Is(err, ErrAsk) {
			t.Errorf("%+v: %v", ask, err)
		}
	}
}

// touched counts by the definition: which cells overlap the patch.
func touched(n, m, at, size int) int {
	count := 0
	for cell := range m {
		if max(cell*n, at*m) < min((cell+1)*n, (at+size)*m) {
			count++
		}
	}
	return count
}

func TestAPatchTouchesAsManyPixelsAsIsSaid(t *testing.T) {
	for n := 1; n <= 24; n++ {
		for m := 1; m <= 24; m++ {
			for size := 1; size <= n; size++ {
				most := 0
				for at := 0; at+size <= n; at++ {
					most = max(most, touched(n, m, at, size))
				}
				if got := Touched(n, m, size); got != most {
					t.Fatalf("%d of %d pixels brought to %d: %d touched, said %d", size, n, m, most, got)
				}
			}
			for cells := 0; cells <= m; cells++ {
				longest := Longest(n, m, cells)
				if longest > 0 && Touched(n, m, longest) > cells || longest < n && Touched(n, m, longest+1) <= cells {
					t.Fatalf("%d pixels brought to %d: the longest that touches %d is said to be %d", n, m, cells, longest)
				}
			}
		}
	}
}

func TestTheBoundsAreClopperAndPearsonsAndTheQuantilesNormal(t *testing.T) {
	// scipy.stats.beta.ppf(alpha, hits, n - hits + 1) and scipy.stats.norm.ppf.
	for _, row := range []struct {
		hits, n      int
		alpha, bound float64
	}{
		{100, 100, 0.001, 0.933254300796991}, {99, 100, 0.001, 0.911373111296042}, {60, 100, 0.05, 0.512975820253894},
		{1000, 1000, 0.001, 0.993116048420934}, {873, 1000, 0.001, 0.837454576051299}, {51234, 100000, 0.001, 0.507449703196281},
		{1, 10, 0.05, 0.005116196891824}, {0, 10, 0.05, 0},
	} {
		if got := lowerBound(row.hits, row.n, row.alpha); math.Abs(got-row.bound) > 1e-9 {
			t.Errorf("%d of %d at %v: %.15f, want %.15f", row.hits, row.n, row.alpha, got, row.bound)
		}
	}
	for p, want := range map[float64]float64{0.5: 0, 0.9: 1.2815515655446004, 0.993116048420934: 2.463262614780823, 0.02: -2.053748910631823} {
		if got := quantile(p); math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %v: %v, want %v", p, got, want)
		}
	}
}
