package privacy

import (
	"fmt"
	"math"
)

// window of SSIM: 7×7, uniform, as scikit-image has it by default.
const window = 7

// SSIM is the mean structural similarity of two images [rows, columns] of values in
// 0..1 (Wang et al. 2004): windows of 7×7, all of them inside, weighed alike, sample
// covariances, K₁ = 0.01, K₂ = 0.03. 1 means equal. Of several channels [channels,
// rows, columns] it is the mean over them.
func SSIM(a, b []float32, rows, columns int) (float64, error) {
	plane := rows * columns
	if rows < window || columns < window || len(a) == 0 || len(a) != len(b) || len(a)%plane != 0 {
		return 0, fmt.Errorf("privacy: similarity of %d and %d pixels of %d×%d: %w: want equal images of %d×%[6]d or more", len(a), len(b), rows, columns, ErrAsk, window)
	}
	const n = window * window
	const c1, c2 = 0.01 * 0.01, 0.03 * 0.03
	total, count := 0.0, 0
	sums := make([][5]float64, columns) // of each column's seven rows: a, b, a², b², ab
	for from := 0; from < len(a); from += plane {
		for y := 0; y+window <= rows; y++ {
			for x := range columns {
				var s [5]float64
				for k := range window {
					i := from + (y+k)*columns + x
					p, q := float64(a[i]), float64(b[i])
					s[0], s[1], s[2], s[3], s[4] = s[0]+p, s[1]+q, s[2]+p*p, s[3]+q*q, s[4]+p*q
				}
				sums[x] = s
			}
			for x := 0; x+window <= columns; x++ {
				var s [5]float64
				for k := range window {
					for j := range s {
						s[j] += sums[x+k][j]
					}
				}
				ma, mb := s[0]/n, s[1]/n
				const sample = float64(n) / (n - 1)
				va, vb, vab := sample*(s[2]/n-ma*ma), sample*(s[3]/n-mb*mb), sample*(s[4]/n-ma*mb)
				total += (2*ma*mb + c1) * (2*vab + c2) / ((ma*ma + mb*mb + c1) * (va + vb + c2))
				count++
			}
		}
	}
	return total / float64(count), nil
}

// squared is the mean squared difference of two images.
func squared(a, b []float32) float64 {
	sum := 0.0
	for i, v := range a {
		d := float64(v) - float64(b[i])
		sum += d * d
	}
	return sum / float64(len(a))
}

// within is squared as long as it is below a limit, and otherwise something above.
func within(a, b []float32, limit float64) float64 {
	most := limit * float64(len(a))
	sum := 0.0
	for i := 0; i < len(a); {
		for end := min(len(a), i+64); i < end; i++ {
			d := float64(a[i]) - float64(b[i])
			sum += d * d
		}
		if sum > most {
			return math.Inf(1)
		}
	}
	return sum / float64(len(a))
}
