package train

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// What a certificate rests on: wherever a patch is, one mask covers it whole.
func TestEveryPatchLiesWithinAMask(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 64).Draw(t, "pixels")
		patch := rapid.IntRange(1, n-1).Draw(t, "patch")
		count := rapid.IntRange(1, 12).Draw(t, "masks")
		size, at, err := MaskSet(n, patch, count)
		if err != nil {
			t.Fatal(err)
		}
		if len(at) > count || !slices.IsSorted(at) || at[0] < 0 || at[len(at)-1]+size != n {
			t.Fatalf("masks of %d at %v on %d pixels", size, at, n)
		}
		for p := range n - patch + 1 {
			if !slices.ContainsFunc(at, func(a int) bool { return a <= p && p+patch <= a+size }) {
				t.Fatalf("a patch at %d lies in no mask of %d at %v", p, size, at)
			}
		}
	})
	if size, at, _ := MaskSet(28, 3, 6); size != 7 || !slices.Equal(at, []int{0, 5, 10, 15, 20, 21}) {
		t.Errorf("28 pixels, a patch of 3, 6 masks: %d at %v", size, at)
	}
}

func maskerOf(fill string) *masker {
	return &masker{spec: *(&Occlusion{Sizes: []int{3}, Fill: fill}).orDefault(), channels: 2, rows: 8, columns: 9}
}

func TestAMaskHidesItsSquareAndNothingElse(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	image := make([]float32, 2*8*9)
	for i := range image {
		image[i] = rng.Float32()
	}
	masks := []square{{1, 2, 3, 3}, {2, 3, 4, 2}}
	hidden := func(i int) bool {
		y, x := i%72/9, i%9
		return slices.ContainsFunc(masks, func(s square) bool {
			return y >= s.row && y < s.row+s.rows && x >= s.column && x < s.column+s.columns
		})
	}
	other := slices.Clone(image) // the same outside of the masks
	for i := range other {
		if hidden(i) {
			other[i] = rng.Float32()
		}
	}
	for fill, want := range map[string]float32{Grey: 0.5, Black: 0, Mean: -1} {
		m := maskerOf(fill)
		a, b := make([]float32, len(image)), slices.Clone(other)
		m.hide(a, image, masks...)
		m.hide(b, b, masks...)
		if !slices.Equal(a, b) {
			t.Errorf("%s: what is hidden shows", fill)
		}
		for i := range a {
			if !hidden(i) && a[i] != image[i] {
				t.Fatalf("%s: pixel %d changed", fill, i)
			}
			if hidden(i) && want >= 0 && a[i] != want {
				t.Fatalf("%s: pixel %d is %v", fill, i, a[i])
			}
		}
		if fill != Mean {
			continue
		}
		for c := range 2 {
			sum, n := 0.0, 0.0
			for i := c * 72; i < (c+1)*72; i++ {
				if !hidden(i) {
					sum += float64(image[i])
					n++
				}
			}
			near(t, "the mean of what stays", float64(a[c*72+1*9+2]), sum/n, 1e-6)
		}
	}
}

// Greedy masks raise the loss more than drawn ones, and with masks on all images
// training makes a network right under them.
func TestTheWorstOfManyMasksRaisesTheLossMost(t *testing.T) {
	set := corners(64, 1)
	tr := trainerOf(t, Config{Network: tiny(t, 1), Train: set, Validation: set, Recipe: Recipe{Epochs: 1, Batch: 64, Seed: 5,
		Hardening: &Hardening{Occlusion: &Occlusion{Sizes: []int{4}, Patch: 2, Grid: 4, WorstOf: 8}}}})
	mean := func(worstOf int) float64 {
		m := *tr.hardened.masker
		m.spec.WorstOf, m.all = worstOf, true
		if worstOf == 1 {
			m.worst = nil
		}
		images, targets := make([]float32, 64*144), make([]float32, 128)
		for i := range 64 {
			set.Fill(images[i*144:(i+1)*144], i)
			tr.aim(targets[2*i:2*i+2], set, i)
		}
		laid, err := m.masks(t.Context(), images, targets, tr.variables(), func(i int) *rand.Rand { return rand.New(rand.NewPCG(3, uint64(i))) })
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range laid {
			if len(l) != 2 {
				t.Fatalf("%d masks", len(l))
			}
		}
		z, err := tr.hardened.forward.run(t.Context(), images, tr.variables())
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for i := range 64 {
			sum += tr.loss.logOdds(z[2*i:2*i+2], targets[2*i:2*i+2]) / 64
		}
		return sum
	}
	if drawn, worst := mean(1), mean(8); !(worst > drawn+1e-3) {
		t.Errorf("log-odds %v under drawn masks, %v under the worst of 8", drawn, worst)
	}
}
