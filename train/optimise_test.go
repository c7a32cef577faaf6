package train

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// The figures are PyTorch 1.13's, in double precision: five steps on the loss
// k·Σ c·w² with c = 1, 2, 3, 4 and k counting the steps.
func TestOptimisersTakeTheStepsThatPyTorchTakes(t *testing.T) {
	for _, c := range []struct {
		name      string
		optimizer Optimizer
		rate      float64
		want      []float32
	}{
		{"AdamW", &AdamW{Decay: 0.1}, 0.1, []float32{0.467258485, -1.422015863, -0.008643264, 2.374293532}},
		{"SGD with Nesterov momentum and decay", &SGD{Momentum: 0.9, Nesterov: true, Decay: 0.1}, 0.001, []float32{0.913287081, -1.664200562, 0.377325548, 2.042504947}},
		{"SGD with momentum", &SGD{Momentum: 0.9}, 0.001, []float32{0.937404731, -1.752833202, 0.408506824, 2.277522195}},
	} {
		w := []float32{1, -2, 0.5, 3}
		g := make([]float32, 4)
		for k := range 5 {
			for i := range g {
				g[i] = float32(k+1) * 2 * float32(i+1) * w[i]
			}
			c.optimizer.Step(c.rate, [][]float32{w}, [][]float32{g}, []bool{true})
		}
		for i := range w {
			near(t, c.name, float64(w[i]), float64(c.want[i]), 2e-6)
		}
	}
}

func TestBiasesAndGainsDoNotDecay(t *testing.T) {
	for _, o := range []Optimizer{&AdamW{Decay: 0.5}, &SGD{Momentum: 0.9, Decay: 0.5}} {
		matrix, bias := []float32{1}, []float32{1}
		o.Step(0.1, [][]float32{matrix, bias}, [][]float32{{0}, {0}}, []bool{decays([]int64{4, 2}), decays([]int64{16, 1, 1})})
		if bias[0] != 1 || matrix[0] >= 1 {
			t.Errorf("%T: matrix is %g, bias is %g", o, matrix[0], bias[0])
		}
	}
}

func TestTheRateWarmsUpAndFallsLikeACosine(t *testing.T) {
	near(t, "first step", CosineRate(2, 0, 10, 110), 0.2, 1e-12)
	near(t, "end of warm-up", CosineRate(2, 9, 10, 110), 2, 1e-12)
	near(t, "half-way down", CosineRate(2, 60, 10, 110), 1, 1e-12)
	near(t, "a quarter down", CosineRate(2, 35, 10, 110), 1+math.Sqrt(0.5), 1e-12)
	near(t, "end", CosineRate(2, 110, 10, 110), 0, 1e-12)
	near(t, "without warm-up", CosineRate(2, 0, 0, 100), 2, 1e-12)
}

func TestTheAverageFollowsShortRunsAndSmoothsLongOnes(t *testing.T) {
	a := Average{Decay: 0.99}
	a.Update([][]float32{{5}})
	if a.Weights[0][0] != 5 {
		t.Errorf("after one step the average is %g", a.Weights[0][0])
	}
	for range 20 {
		a.Update([][]float32{{1}})
	}
	if v := a.Weights[0][0]; v < 1 || v > 1.1 {
		t.Errorf("20 steps later it is %g: the start weighs on it", v)
	}
	for range 5000 {
		a.Update([][]float32{{1}})
	}
	a.Update([][]float32{{2}})
	near(t, "late step", float64(a.Weights[0][0]), 1.01, 1e-5)
}

// ramp is an image whose brightness is its column plus twice its row.
func ramp(rows, columns int) []uint8 {
	out := make([]uint8, rows*columns)
	for y := range rows {
		for x := range columns {
			out[y*columns+x] = uint8(4*x + 2*y)
		}
	}
	return out
}

func augmented(a Augmentation, src []uint8, rows, columns int, seed uint64) []float32 {
	dst := make([]float32, len(src))
	a.Apply(dst, src, 1, rows, columns, rand.New(rand.NewPCG(seed, 0)))
	return dst
}

func TestNoAugmentationChangesNothing(t *testing.T) {
	src := ramp(9, 7)
	for i, v := range augmented(Augmentation{}, src, 9, 7, 1) {
		near(t, "pixel", float64(v), float64(src[i])/255, 1e-7)
	}
}

// On a ramp a shift adds a constant, and the constant says how far it went.
func TestShiftsStayWithinTheirRangeAndUseAllOfIt(t *testing.T) {
	src := ramp(21, 21)
	lowest, highest := math.Inf(1), math.Inf(-1)
	for seed := range uint64(300) {
		got := augmented(Augmentation{Shift: 2}, src, 21, 21, seed)
		centre := 10*21 + 10
		moved := (float64(src[centre])/255 - float64(got[centre])) * 255 // 4dx + 2dy
		for _, off := range []int{-2, 2, -42, 42} {
			near(t, "another pixel's move", (float64(src[centre+off])/255-float64(got[centre+off]))*255, moved, 1e-3)
		}
		lowest, highest = math.Min(lowest, moved), math.Max(highest, moved)
	}
	if lowest < -12.001 || highest > 12.001 || lowest > -9 || highest < 9 {
		t.Errorf("shifts of up to 2 pixels moved brightness by %g to %g, want up to 12 either way", lowest, highest)
	}
}

// Moved by whole pixels, every pixel is one of the image's.
func TestShiftsByWholePixelsBlurNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	src := make([]uint8, 11*11)
	for i := range src {
		src[i] = uint8(rng.Uint32())
	}
	seen := map[int]bool{}
	for seed := range uint64(200) {
		got := augmented(Augmentation{Shift: 2.49, Whole: true}, src, 11, 11, seed)
		found := false
		for dy := -2; dy <= 2; dy++ {
			for dx := -2; dx <= 2; dx++ {
				same := true
				for y := range 11 {
					for x := range 11 {
						from := min(max(y-dy, 0), 10)*11 + min(max(x-dx, 0), 10)
						same = same && got[y*11+x] == float32(src[from])/255
					}
				}
				if same {
					found, seen[dy*5+dx] = true, true
				}
			}
		}
		if !found {
			t.Fatal("an image is not one of the 25 moved by whole pixels")
		}
	}
	if len(seen) != 25 {
		t.Errorf("%d of the 25 moves were made", len(seen))
	}
}

func TestRotationAndZoomKeepTheCentre(t *testing.T) {
	src := ramp(21, 21)
	for seed := range uint64(50) {
		got := augmented(Augmentation{Rotation: 15, Zoom: 0.2}, src, 21, 21, seed)
		near(t, "centre", float64(got[10*21+10]), float64(src[10*21+10])/255, 1e-5)
		if slices.Equal(got, augmented(Augmentation{}, src, 21, 21, seed)) {
			t.Fatal("nothing changed")
		}
	}
}

func TestAugmentedImagesStayInRangeAndRepeatWithTheSeed(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	src := make([]uint8, 20*20)
	for i := range src {
		src[i] = uint8(rng.Uint32())
	}
	all := Augmentation{Shift: 2, Rotation: 20, Zoom: 0.3, Contrast: 0.5, Brightness: 0.4, Noise: 0.2, Erase: 0.5}
	for seed := range uint64(50) {
		a, b := augmented(all, src, 20, 20, seed), augmented(all, src, 20, 20, seed)
		if !slices.Equal(a, b) {
			t.Fatal("the same seed gave two images")
		}
		if slices.Min(a) < 0 || slices.Max(a) > 1 {
			t.Fatalf("values from %g to %g", slices.Min(a), slices.Max(a))
		}
	}
}

func TestErasingLeavesOneGreyRectangle(t *testing.T) {
	src := make([]uint8, 16*16)
	got := augmented(Augmentation{Erase: 1}, src, 16, 16, 4)
	grey, top, left, bottom, right := 0, 16, 16, -1, -1
	for i, v := range got {
		if v == 0.5 {
			grey++
			top, bottom = min(top, i/16), max(bottom, i/16)
			left, right = min(left, i%16), max(right, i%16)
		}
	}
	if grey == 0 || grey != (bottom-top+1)*(right-left+1) || bottom-top > 3 || right-left > 3 {
		t.Errorf("%d grey pixels within rows %d to %d, columns %d to %d", grey, top, bottom, left, right)
	}
}
