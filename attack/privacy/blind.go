package privacy

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/train"
)

// Blind is how well members are told from others by a classifier that never saw
// the model: a logistic regression on features of the examples themselves, each
// example scored by one that was not fitted on it (cross-validation in folds
// parts). Where it succeeds, members and others differ by themselves (another
// year, scanner or hospital), and a membership figure up to as much proves nothing
// of the model (Das, Zhang and Tramèr 2024).
//
// features[examples][any number]; see ImageFeatures. It is one weak classifier:
// that it finds nothing does not prove that there is nothing to find.
func Blind(features [][]float64, member []bool, folds int, seed uint64) (*ROC, error) {
	scores, err := OutOfFold(features, member, folds, seed)
	if err != nil {
		return nil, fmt.Errorf("privacy: the blind baseline: %w", err)
	}
	return Compare(scores, member, nil, seed)
}

// OutOfFold scores examples by logistic regressions that were not fitted on them.
func OutOfFold(features [][]float64, positive []bool, folds int, seed uint64) ([]float64, error) {
	if len(features) != len(positive) || folds < 2 || len(features) < 2*folds {
		return nil, fmt.Errorf("%d examples with %d labels in %d folds: %w: want two examples a fold at least", len(features), len(positive), folds, ErrAsk)
	}
	fold := make([]int, len(features))
	for _, kind := range []bool{true, false} { // as many of each kind in every fold
		var at []int
		for i, p := range positive {
			if p == kind {
				at = append(at, i)
			}
		}
		rng := rand.New(rand.NewPCG(seed, 0xf01d))
		rng.Shuffle(len(at), func(a, b int) { at[a], at[b] = at[b], at[a] })
		for k, i := range at {
			fold[i] = k % folds
		}
	}
	scores := make([]float64, len(features))
	for f := range folds {
		var x [][]float64
		var y []bool
		for i := range features {
			if fold[i] != f {
				x, y = append(x, features[i]), append(y, positive[i])
			}
		}
		l, err := FitLogistic(x, y, 1)
		if err != nil {
			return nil, err
		}
		for i := range features {
			if fold[i] == f {
				scores[i] = l.Score(features[i])
			}
		}
	}
	return scores, nil
}

// Logistic is a logistic regression on standardised features.
type Logistic struct {
	mean, deviation, weights []float64
	bias                     float64
}

// FitLogistic fits one with an L2 penalty, by Newton's method; both kinds weigh
// alike.
func FitLogistic(x [][]float64, y []bool, penalty float64) (*Logistic, error) {
	return fitLogistic(x, y, penalty, true)
}

// fitLogistic with balanced false weighs every example alike, so that its score is
// that of the kinds as frequent as they are.
func fitLogistic(x [][]float64, y []bool, penalty float64, balanced bool) (*Logistic, error) {
	if len(x) == 0 || len(x) != len(y) {
		return nil, fmt.Errorf("%d examples with %d labels: %w", len(x), len(y), ErrAsk)
	}
	d := len(x[0])
	l := &Logistic{mean: make([]float64, d), deviation: make([]float64, d), weights: make([]float64, d)}
	var kinds [2]float64
	for i, row := range x {
		if len(row) != d {
			return nil, fmt.Errorf("example %d has %d features, the first %d: %w", i, len(row), d, ErrAsk)
		}
		for j, v := range row {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return nil, fmt.Errorf("feature %d of example %d is %v: %w", j, i, v, ErrAsk)
			}
			l.mean[j] += v / float64(len(x))
		}
		kinds[kind(y[i])]++
	}
	if kinds[0] == 0 || kinds[1] == 0 {
		return nil, fmt.Errorf("examples of one kind only: %w", ErrAsk)
	}
	for _, row := range x {
		for j, v := range row {
			l.deviation[j] += (v - l.mean[j]) * (v - l.mean[j]) / float64(len(x))
		}
	}
	for j, v := range l.deviation {
		if l.deviation[j] = math.Sqrt(v); l.deviation[j] < 1e-9 {
			l.deviation[j] = math.Inf(1) // a constant says nothing
		}
	}
	rows := make([][]float64, len(x))
	for i, row := range x {
		rows[i] = append(l.standard(row), 1)
	}
	beta := make([]float64, d+1)
	n := float64(len(x))
	for range 50 {
		gradient := make([]float64, d+1)
		hessian := make([][]float64, d+1)
		for j := range hessian {
			hessian[j] = make([]float64, d+1)
			gradient[j] = -penalty * beta[j]
			hessian[j][j] = penalty
		}
		gradient[d], hessian[d][d] = 0, 1e-9
		for i, row := range rows {
			weight := 1.0
			if balanced {
				weight = n / (2 * kinds[kind(y[i])])
			}
			p := sigmoid(dot(beta, row))
			r := -p
			if y[i] {
				r = 1 - p
			}
			v := max(1e-9, p*(1-p)) * weight
			for j, a := range row {
				gradient[j] += weight * r * a
				if a == 0 {
					continue
				}
				for k := 0; k <= j; k++ {
					hessian[j][k] += v * a * row[k]
				}
			}
		}
		step, err := solve(hessian, gradient)
		if err != nil {
			return nil, err
		}
		most := 0.0
		for _, v := range step {
			most = max(most, math.Abs(v))
		}
		scale := min(1, 5/max(most, 1e-300))
		for j := range beta {
			beta[j] += scale * step[j]
		}
		if most < 1e-8 {
			break
		}
	}
	copy(l.weights, beta)
	l.bias = beta[d]
	return l, nil
}

func kind(positive bool) int {
	if positive {
		return 1
	}
	return 0
}

func (l *Logistic) standard(row []float64) []float64 {
	out := make([]float64, len(row), len(row)+1)
	for j, v := range row {
		out[j] = (v - l.mean[j]) / l.deviation[j]
	}
	return out
}

// Score is the log-odds of an example.
func (l *Logistic) Score(row []float64) float64 { return l.bias + dot(l.weights, l.standard(row)) }

func sigmoid(x float64) float64 {
	if x >= 0 {
		return 1 / (1 + math.Exp(-x))
	}
	e := math.Exp(x)
	return e / (1 + e)
}

func dot(a, b []float64) float64 {
	s := 0.0
	for i, v := range a {
		s += v * b[i]
	}
	return s
}

// solve solves a positive definite system, of which the lower triangle is given,
// by Cholesky's decomposition. It overwrites a.
func solve(a [][]float64, b []float64) ([]float64, error) {
	n := len(b)
	x := append([]float64{}, b...)
	for i := range n {
		for j := 0; j <= i; j++ {
			sum := a[i][j]
			for k := range j {
				sum -= a[i][k] * a[j][k]
			}
			if i == j {
				if sum <= 0 {
					return nil, errors.New("privacy: a system of equations is not positive definite")
				}
				a[i][i] = math.Sqrt(sum)
			} else {
				a[i][j] = sum / a[j][j]
			}
		}
	}
	for i := range n {
		for k := range i {
			x[i] -= a[i][k] * x[k]
		}
		x[i] /= a[i][i]
	}
	for i := n - 1; i >= 0; i-- {
		for k := i + 1; k < n; k++ {
			x[i] -= a[k][i] * x[k]
		}
		x[i] /= a[i][i]
	}
	return x, nil
}

// ImageFeatures describe an image for Blind: a 7×7 thumbnail, a histogram of eight
// grey levels, mean, deviation, extremes, and the energy between neighbouring
// pixels along rows and columns, of the mean over the channels; and its class.
// pixels[channels, rows, columns], 0..1.
func ImageFeatures(pixels []float32, channels, rows, columns, class, classes int) []float64 {
	grey := make([]float64, rows*columns)
	for c := range channels {
		for i := range grey {
			grey[i] += float64(pixels[c*len(grey)+i]) / float64(channels)
		}
	}
	const side = 7
	var out []float64
	for r := range side {
		for c := range side {
			sum, n := 0.0, 0.0
			for y := r * rows / side; y < max((r+1)*rows/side, r*rows/side+1); y++ {
				for x := c * columns / side; x < max((c+1)*columns/side, c*columns/side+1); x++ {
					sum += grey[y*columns+x]
					n++
				}
			}
			out = append(out, sum/n)
		}
	}
	histogram := make([]float64, 8)
	mean, squares, low, high := 0.0, 0.0, math.Inf(1), math.Inf(-1)
	for _, v := range grey {
		histogram[max(0, min(7, int(v*8)))] += 1 / float64(len(grey))
		mean += v / float64(len(grey))
		squares += v * v / float64(len(grey))
		low, high = min(low, v), max(high, v)
	}
	across, down := 0.0, 0.0
	for y := range rows {
		for x := range columns {
			if x > 0 {
				across += math.Abs(grey[y*columns+x]-grey[y*columns+x-1]) / float64(len(grey))
			}
			if y > 0 {
				down += math.Abs(grey[y*columns+x]-grey[(y-1)*columns+x]) / float64(len(grey))
			}
		}
	}
	out = append(out, histogram...)
	out = append(out, mean, math.Sqrt(max(0, squares-mean*mean)), low, high, across, down)
	return append(out, oneHot(class, classes)...)
}

func oneHot(class, classes int) []float64 {
	out := make([]float64, classes)
	if class >= 0 && class < classes {
		out[class] = 1
	}
	return out
}

// Features describe every example of a set for Blind: images as ImageFeatures
// does, others by their values, and the class.
func Features(s *train.Set) [][]float64 {
	size := 1
	for _, d := range s.Example() {
		size *= int(d)
	}
	values := make([]float32, size)
	out := make([][]float64, s.Len())
	for i := range out {
		s.Fill(values, i)
		if s.Shape == nil {
			out[i] = ImageFeatures(values, s.Channels, s.Rows, s.Columns, s.Labels[i], s.Classes)
			continue
		}
		for _, v := range values {
			out[i] = append(out[i], float64(v))
		}
		out[i] = append(out[i], oneHot(s.Labels[i], s.Classes)...)
	}
	return out
}
