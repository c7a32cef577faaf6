package poison

import (
	"cmp"
	"math"
	"slices"
)

func logFactorial(n int) float64 {
	v, _ := math.Lgamma(float64(n) + 1)
	return v
}

func logChoose(n, k int) float64 { return logFactorial(n) - logFactorial(k) - logFactorial(n-k) }

// AtLeast is the probability that of drawn cases, out of total of which marked
// bear a mark, at least seen bear it: Fisher's exact test, one-sided.
func AtLeast(seen, drawn, marked, total int) float64 {
	p := 0.0
	for k := max(seen, 0, drawn+marked-total); k <= min(drawn, marked); k++ {
		p += math.Exp(logChoose(marked, k) + logChoose(total-marked, drawn-k) - logChoose(total, drawn))
	}
	return min(1, p)
}

// fisher is the exact test, two-sided: twice the smaller tail.
func fisher(seen, drawn, marked, total int) float64 {
	return min(1, 2*min(AtLeast(seen, drawn, marked, total), AtLeast(drawn-seen, drawn, total-marked, total)))
}

// boundary is the p-value of a likelihood ratio, 2·Δ log L, of one parameter that
// lies on its bound under the hypothesis: half a χ² of one degree of freedom.
func boundary(ratio float64) float64 {
	if ratio <= 0 {
		return 1
	}
	return math.Erfc(math.Sqrt(ratio/2)) / 2
}

// Discoveries are the adjusted p-values of Benjamini and Hochberg (1995): among
// those of at most q, the expected share of false ones is at most q, for tests
// that are independent or positively dependent.
func Discoveries(p []float64) []float64 {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p[b], p[a]) })
	q, least := make([]float64, len(p)), 1.0
	for k, i := range order {
		least = min(least, p[i]*float64(len(p))/float64(len(p)-k))
		q[i] = least
	}
	return q
}

// median of values, which are not changed; 0 of none.
func median(values []float64) float64 { return quantile(values, 0.5) }

func quantile(values []float64, share float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	at := share * float64(len(s)-1)
	low := int(at)
	high := min(low+1, len(s)-1)
	return s[low] + (at-float64(low))*(s[high]-s[low])
}

// spread is the median absolute deviation from the median, scaled to the standard
// deviation of a normal distribution.
func spread(values []float64) float64 {
	m := median(values)
	away := make([]float64, len(values))
	for i, v := range values {
		away[i] = math.Abs(v - m)
	}
	return 1.4826 * median(away)
}

// rankSum compares two samples (Mann and Whitney 1947, normal approximation with
// ties): the probability that one of a exceeds one of b, and the two-sided
// p-value.
func rankSum(a, b []float64) (exceeds, p float64) {
	type value struct {
		v     float64
		first bool
	}
	all := make([]value, 0, len(a)+len(b))
	for _, v := range a {
		all = append(all, value{v, true})
	}
	for _, v := range b {
		all = append(all, value{v, false})
	}
	slices.SortStableFunc(all, func(x, y value) int { return cmp.Compare(x.v, y.v) })
	ranks, ties := 0.0, 0.0
	for i := 0; i < len(all); {
		j := i
		for j < len(all) && all[j].v == all[i].v {
			j++
		}
		t := float64(j - i)
		ties += t*t*t - t
		for k := i; k < j; k++ {
			if all[k].first {
				ranks += float64(i+j+1) / 2
			}
		}
		i = j
	}
	n, m := float64(len(a)), float64(len(b))
	if n == 0 || m == 0 {
		return 0.5, 1
	}
	u := ranks - n*(n+1)/2
	variance := n * m / 12 * (n + m + 1 - ties/((n+m)*(n+m-1)))
	if !(variance > 0) {
		return u / (n * m), 1
	}
	return u / (n * m), math.Erfc(math.Abs(u-n*m/2) / math.Sqrt(2*variance))
}
