package certificate

import "math"

// lowerBound is Clopper and Pearson's one-sided bound on a proportion: with
// probability 1 - alpha at least, the proportion behind hits of n is no smaller.
func lowerBound(hits, n int, alpha float64) float64 {
	if hits == 0 {
		return 0
	}
	// The alpha quantile of Beta(hits, n - hits + 1): where the chance of as many
	// hits or more is alpha.
	low, high := 0.0, float64(hits)/float64(n)
	for range 200 {
		middle := (low + high) / 2
		if middle == low || middle == high {
			break
		}
		if tail(hits, n, middle) < alpha {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

// tail is the chance of hits or more of n where each has chance p, by the terms
// of the binomial distribution from their logarithms: exact to about 1e-12 for
// any n that anybody samples.
func tail(hits, n int, p float64) float64 {
	if hits <= 0 {
		return 1
	}
	if p <= 0 {
		return 0
	}
	if p >= 1 {
		return 1
	}
	gamma := func(x float64) float64 { v, _ := math.Lgamma(x); return v }
	term := math.Exp(gamma(float64(n+1)) - gamma(float64(hits+1)) - gamma(float64(n-hits+1)) +
		float64(hits)*math.Log(p) + float64(n-hits)*math.Log1p(-p))
	sum := term
	for k := hits; k < n; k++ {
		term *= float64(n-k) / float64(k+1) * p / (1 - p)
		sum += term
		if term < sum*1e-17 && float64(k) > float64(n)*p {
			break
		}
	}
	return min(sum, 1)
}

// quantile is the standard normal distribution's.
func quantile(p float64) float64 { return math.Sqrt2 * math.Erfinv(2*p-1) }
