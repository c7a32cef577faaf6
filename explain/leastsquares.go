package explain

import (
	"errors"
	"math"
)

// errSingular says that rows do not determine the coefficients.
var errSingular = errors.New("the system is singular")

// leastSquares returns the coefficients b that minimise
// Σ weights·(target - rows·b)² + ridge·Σb², by the normal equations and a
// Cholesky factorisation; the columns here are zeros and ones, for which that
// is accurate.
func leastSquares(rows [][]float64, target, weights []float64, ridge float64) ([]float64, error) {
	if len(rows) == 0 {
		return nil, errSingular
	}
	n := len(rows[0])
	a := make([]float64, n*n)
	b := make([]float64, n)
	for r, row := range rows {
		for i, x := range row {
			if x == 0 {
				continue
			}
			w := weights[r] * x
			b[i] += w * target[r]
			for j := range i + 1 {
				a[i*n+j] += w * row[j]
			}
		}
	}
	largest := 0.0
	for i := range n {
		a[i*n+i] += ridge
		largest = math.Max(largest, a[i*n+i])
	}
	for i := range n {
		for j := range i + 1 {
			sum := a[i*n+j]
			for k := range j {
				sum -= a[i*n+k] * a[j*n+k]
			}
			if i != j {
				a[i*n+j] = sum / a[j*n+j]
				continue
			}
			if !(sum > 1e-12*largest) {
				return nil, errSingular
			}
			a[i*n+i] = math.Sqrt(sum)
		}
	}
	for i := range n {
		for k := range i {
			b[i] -= a[i*n+k] * b[k]
		}
		b[i] /= a[i*n+i]
	}
	for i := n - 1; i >= 0; i-- {
		for k := i + 1; k < n; k++ {
			b[i] -= a[k*n+i] * b[k]
		}
		b[i] /= a[i*n+i]
	}
	return b, nil
}
