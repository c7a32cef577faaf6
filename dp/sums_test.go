package dp

import (
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

func TestAccumulateAddsEveryGradient(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, perturbChunk, 5*perturbChunk + 7} {
		sum, want, part := make([]float64, n), make([]float64, n), make([]float32, n)
		for i := range sum {
			sum[i], part[i] = rng.NormFloat64(), rng.Float32()
			want[i] = sum[i] + float64(part[i])
		}
		Accumulate(sum, part)
		for i := range sum {
			if sum[i] != want[i] {
				t.Fatalf("of %d sums, number %d is %v, not %v", n, i, sum[i], want[i])
			}
		}
	}
}

func TestNearestIsTheEvenIntegerAtATie(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.Float64Range(-0x1p55, 0x1p55).Draw(t, "x")
		for _, x := range []float64{x, math.Trunc(x) + 0.5, math.Mod(x, 1000), math.Trunc(math.Mod(x, 1000)) + 0.5} {
			if got, want := nearest(x), math.RoundToEven(x); got != want {
				t.Fatalf("nearest(%v) is %v, not %v", x, got, want)
			}
		}
	})
}
