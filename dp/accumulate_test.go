package dp

import (
	"math/rand/v2"
	"testing"
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
