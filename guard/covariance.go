package guard

import (
	"errors"
	"math"
)

// errSingular says that a covariance has no inverse: examples without any
// variation.
var errSingular = errors.New("the examples do not vary")

// ledoitWolf returns the shrinkage estimate of the covariance of rows [n][p],
// which must be centred, and the share of the identity in it (Ledoit and Wolf
// 2004, "A well-conditioned estimator for large-dimensional covariance
// matrices", equations 9 to 14).
func ledoitWolf(rows [][]float64) (covariance [][]float64, shrinkage float64) {
	n, p := float64(len(rows)), len(rows[0])
	s := square(p)
	fourth := 0.0 // Σ_k |x_k|⁴
	for _, x := range rows {
		norm := 0.0
		for i, a := range x {
			norm += a * a
			for j := 0; j <= i; j++ {
				s[i][j] += a * x[j]
			}
		}
		fourth += norm * norm
	}
	trace, frobenius := 0.0, 0.0
	for i := range s {
		for j := 0; j <= i; j++ {
			s[i][j] /= n
			s[j][i] = s[i][j]
			if i == j {
				trace += s[i][i]
				frobenius += s[i][i] * s[i][i]
			} else {
				frobenius += 2 * s[i][j] * s[i][j]
			}
		}
	}
	mean := trace / float64(p)
	distance := (frobenius - mean*trace) / float64(p)    // d²
	noise := (fourth/n - frobenius) / (n * float64(p))   // b̄²
	if noise = min(max(noise, 0), distance); noise > 0 { // b² ≤ d²
		shrinkage = noise / distance
	}
	for i := range s {
		for j := range s[i] {
			s[i][j] *= 1 - shrinkage
		}
		s[i][i] += shrinkage * mean
	}
	return s, shrinkage
}

func square(p int) [][]float64 {
	flat := make([]float64, p*p)
	rows := make([][]float64, p)
	for i := range rows {
		rows[i] = flat[i*p : (i+1)*p]
	}
	return rows
}

// cholesky returns the lower factor L of a positive definite matrix, A = L·Lᵀ.
func cholesky(a [][]float64) ([][]float64, error) {
	p := len(a)
	l := square(p)
	for i := range p {
		for j := 0; j <= i; j++ {
			sum := a[i][j]
			for k := range j {
				sum -= l[i][k] * l[j][k]
			}
			if i != j {
				l[i][j] = sum / l[j][j]
				continue
			}
			if !(sum > 1e-300) {
				return nil, errSingular
			}
			l[i][i] = math.Sqrt(sum)
		}
	}
	return l, nil
}

// whitener returns L⁻¹ of a covariance, row-major, lower triangle: the squared
// norm of L⁻¹·x is x's squared Mahalanobis distance from 0.
func whitener(covariance [][]float64) ([]float64, error) {
	l, err := cholesky(covariance)
	if err != nil {
		return nil, err
	}
	p := len(l)
	out := make([]float64, p*p)
	for column := range p {
		for i := column; i < p; i++ {
			sum := 0.0
			if i == column {
				sum = 1
			}
			for k := column; k < i; k++ {
				sum -= l[i][k] * out[k*p+column]
			}
			out[i*p+column] = sum / l[i][i]
		}
	}
	return out, nil
}

// whiten computes to = factor·x for a lower triangle.
func whiten(factor, x, to []float64) {
	p := len(x)
	for i := range to {
		sum := 0.0
		for j, w := range factor[i*p : i*p+i+1] {
			sum += w * x[j]
		}
		to[i] = sum
	}
}

// solve returns x of A·x = b for a positive definite A.
func solve(a [][]float64, b []float64) ([]float64, error) {
	l, err := cholesky(a)
	if err != nil {
		return nil, err
	}
	p := len(b)
	x := make([]float64, p)
	for i := range p {
		sum := b[i]
		for k := range i {
			sum -= l[i][k] * x[k]
		}
		x[i] = sum / l[i][i]
	}
	for i := p - 1; i >= 0; i-- {
		sum := x[i]
		for k := i + 1; k < p; k++ {
			sum -= l[k][i] * x[k]
		}
		x[i] = sum / l[i][i]
	}
	return x, nil
}

// gaussian is a tied covariance around one mean for each class.
type gaussian struct {
	Means  [][]float64 // [classes][p]
	Factor []float64   // [p·p], lower triangle: see whitener
}

// fitGaussian estimates it. Classes with fewer than fewest examples share the
// mean of all.
func fitGaussian(rows [][]float64, class []int, classes int) (*gaussian, error) {
	const fewest = 10
	p := len(rows[0])
	all := make([]float64, p)
	g := &gaussian{Means: square0(classes, p)}
	count := make([]int, classes)
	for i, x := range rows {
		count[class[i]]++
		for j, v := range x {
			all[j] += v / float64(len(rows))
			g.Means[class[i]][j] += v
		}
	}
	for c := range g.Means {
		for j := range g.Means[c] {
			if count[c] < fewest {
				g.Means[c][j] = all[j]
			} else {
				g.Means[c][j] /= float64(count[c])
			}
		}
	}
	centred := make([][]float64, len(rows))
	for i, x := range rows {
		centred[i] = make([]float64, p)
		for j, v := range x {
			centred[i][j] = v - g.Means[class[i]][j]
		}
	}
	covariance, _ := ledoitWolf(centred)
	trace := 0.0
	for i := range covariance {
		trace += covariance[i][i]
	}
	for i := range covariance { // what never varies keeps a finite distance
		covariance[i][i] += 1e-6*trace/float64(p) + 1e-12
	}
	if trace == 0 {
		return nil, errSingular
	}
	var err error
	g.Factor, err = whitener(covariance)
	return g, err
}

func square0(n, p int) [][]float64 {
	rows := make([][]float64, n)
	for i := range rows {
		rows[i] = make([]float64, p)
	}
	return rows
}

// distance is the logarithm of the squared Mahalanobis distance of x from the
// mean of a class, over the number of dimensions.
func (g *gaussian) distance(x []float64, class int) float64 {
	p := len(x)
	centred, white := make([]float64, p), make([]float64, p)
	for j, v := range x {
		centred[j] = v - g.Means[class][j]
	}
	whiten(g.Factor, centred, white)
	sum := 0.0
	for _, v := range white {
		sum += v * v
	}
	return math.Log(sum/float64(p) + 1e-12)
}
