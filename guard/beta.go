package guard

import "math"

// betaShare is the regularised incomplete beta function I_x(a, b): the share of
// Beta(a, b) below x. Continued fraction of Lentz (Numerical Recipes, section 6.4).
func betaShare(x, a, b float64) float64 {
	switch {
	case x <= 0:
		return 0
	case x >= 1:
		return 1
	case x > (a+1)/(a+b+2):
		return 1 - betaShare(1-x, b, a)
	}
	lgamma := func(v float64) float64 { l, _ := math.Lgamma(v); return l }
	front := math.Exp(lgamma(a+b)-lgamma(a)-lgamma(b)+a*math.Log(x)+b*math.Log1p(-x)) / a
	const tiny = 1e-300
	safe := func(v float64) float64 {
		if math.Abs(v) < tiny {
			return tiny
		}
		return v
	}
	c, d := 1.0, 1/safe(1-(a+b)*x/(a+1))
	f := d
	for m := 1.0; m < 10000; m++ {
		even := m * (b - m) * x / ((a + 2*m - 1) * (a + 2*m))
		d, c = 1/safe(1+even*d), safe(1+even/c)
		f *= c * d
		odd := -(a + m) * (a + b + m) * x / ((a + 2*m) * (a + 2*m + 1))
		d, c = 1/safe(1+odd*d), safe(1+odd/c)
		f *= c * d
		if math.Abs(c*d-1) < 1e-14 {
			break
		}
	}
	return front * f
}

// betaQuantile is the x with I_x(a, b) = share. Beta(0, b) lies at 0 and Beta(a, 0)
// at 1.
func betaQuantile(share, a, b float64) float64 {
	if a <= 0 {
		return 0
	}
	if b <= 0 {
		return 1
	}
	low, high := 0.0, 1.0
	for range 100 {
		if middle := (low + high) / 2; betaShare(middle, a, b) < share {
			low = middle
		} else {
			high = middle
		}
	}
	return (low + high) / 2
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
