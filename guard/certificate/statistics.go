package certificate

import (
	"math"

	"gonum.org/v1/gonum/mathext"
)

// lowerBound is Clopper and Pearson's one-sided bound on a proportion: with
// probability 1 - alpha at least, the proportion behind hits of n is no smaller.
// It is the alpha quantile of Beta(hits, n - hits + 1).
func lowerBound(hits, n int, alpha float64) float64 {
	if hits == 0 {
		return 0
	}
	return mathext.InvRegIncBeta(float64(hits), float64(n-hits+1), alpha)
}

// quantile is the standard normal distribution's.
func quantile(p float64) float64 { return math.Sqrt2 * math.Erfinv(2*p-1) }
