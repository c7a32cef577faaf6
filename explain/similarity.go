package explain

import (
	"cmp"
	"math"
	"slices"
)

// Similarity says how alike two maps of the same places are.
type Similarity struct {
	Rank    float64 `json:"rank"`     // Spearman's rank correlation, -1..1; 0 where a map is constant
	AbsRank float64 `json:"abs_rank"` // the same of the sizes, signs left out
	SSIM    float64 `json:"ssim"`     // structural similarity of the sizes, scaled to 0..1 each; 1 is equal
}

// Compare measures the similarity of two maps of one model's inputs (Adebayo et
// al. 2018 report these three). It panics if they differ in size.
func Compare(a, b *Map) Similarity {
	absA, absB := sizes(a.Values), sizes(b.Values)
	return Similarity{
		Rank:    spearman(a.Values, b.Values),
		AbsRank: spearman(absA, absB),
		SSIM:    ssim(scaled(absA), scaled(absB), a.Rows, a.Columns),
	}
}

func sizes(values []float32) []float32 {
	out := make([]float32, len(values))
	for i, v := range values {
		out[i] = float32(math.Abs(float64(v)))
	}
	return out
}

// scaled brings values to 0..1; constant ones to 0.
func scaled(values []float32) []float32 {
	low, high := slices.Min(values), slices.Max(values)
	out := make([]float32, len(values))
	if high > low {
		for i, v := range values {
			out[i] = (v - low) / (high - low)
		}
	}
	return out
}

// spearman is the correlation of the ranks; equal values share their mean rank.
func spearman(a, b []float32) float64 {
	x, y := ranks(a), ranks(b)
	mean := float64(len(a)-1) / 2
	var xx, yy, xy float64
	for i := range x {
		dx, dy := x[i]-mean, y[i]-mean
		xx, yy, xy = xx+dx*dx, yy+dy*dy, xy+dx*dy
	}
	if xx == 0 || yy == 0 {
		return 0
	}
	return xy / math.Sqrt(xx*yy)
}

func ranks(values []float32) []float64 {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(values[i], values[j]) })
	out := make([]float64, len(values))
	for from := 0; from < len(order); {
		to := from + 1
		for to < len(order) && values[order[to]] == values[order[from]] {
			to++
		}
		for _, i := range order[from:to] {
			out[i] = float64(from+to-1) / 2
		}
		from = to
	}
	return out
}

// ssim is the mean structural similarity of Wang et al. (2004) for values in
// 0..1: Gaussian windows of deviation 1.5, K₁ = 0.01, K₂ = 0.03, border
// repeated. One row, of a table or a sequence, is an image of one row.
func ssim(a, b []float32, rows, columns int) float64 {
	const deviation, c1, c2 = 1.5, 0.01 * 0.01, 0.03 * 0.03
	product := func(p, q []float32) []float32 {
		out := make([]float32, len(p))
		for i := range p {
			out[i] = p[i] * q[i]
		}
		return blurred(out, rows, columns, deviation)
	}
	ma, mb := blurred(a, rows, columns, deviation), blurred(b, rows, columns, deviation)
	aa, bb, ab := product(a, a), product(b, b), product(a, b)
	sum := 0.0
	for i := range ma {
		x, y := float64(ma[i]), float64(mb[i])
		vx, vy, cov := float64(aa[i])-x*x, float64(bb[i])-y*y, float64(ab[i])-x*y
		sum += (2*x*y + c1) * (2*cov + c2) / ((x*x + y*y + c1) * (vx + vy + c2))
	}
	return sum / float64(len(ma))
}
