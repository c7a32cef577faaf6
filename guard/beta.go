package guard

import "gonum.org/v1/gonum/mathext"

// betaQuantile is the x with I_x(a, b) = share. Beta(0, b) lies at 0 and Beta(a, 0)
// at 1.
func betaQuantile(share, a, b float64) float64 {
	if a <= 0 {
		return 0
	}
	if b <= 0 {
		return 1
	}
	return mathext.InvRegIncBeta(a, b, share)
}

// Share is a share with an interval.
type Share struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// sentShare is the share of new cases that a threshold sends, which was set by n
// others of which it sends k: Beta(k+1, n-k) over draws of those others (Vovk 2012,
// for a threshold at the next case), with its 95 per cent.
func sentShare(k, n int) Share {
	a, b := float64(k+1), float64(n-k)
	return Share{a / (a + b), betaQuantile(0.025, a, b), betaQuantile(0.975, a, b)}
}

// mostErrors is the highest share of errors that k errors among n do not rule out
// at a confidence of 1-delta (Clopper and Pearson 1934, one-sided).
func mostErrors(k, n int, delta float64) float64 {
	if k >= n {
		return 1
	}
	return betaQuantile(1-delta, float64(k+1), float64(n-k))
}
