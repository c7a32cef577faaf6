package train

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// ErrOneClass is returned when a figure needs positive and negative examples
// and only one kind is there.
var ErrOneClass = errors.New("examples of both classes are needed")

// Interval is an estimate with its 95 % confidence interval.
type Interval struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// midranks returns the rank of each value among all (from 1), ties sharing the
// mean of their ranks.
func midranks(values []float64) []float64 {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		switch {
		case values[a] < values[b]:
			return -1
		case values[a] > values[b]:
			return 1
		}
		return 0
	})
	ranks := make([]float64, len(values))
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && values[order[j]] == values[order[i]] {
			j++
		}
		for k := i; k < j; k++ {
			ranks[order[k]] = float64(i+j+1) / 2
		}
		i = j
	}
	return ranks
}

func splitScores(scores []float64, positive []bool) (pos, neg []float64, err error) {
	if len(scores) != len(positive) {
		return nil, nil, fmt.Errorf("train: %d scores for %d labels", len(scores), len(positive))
	}
	for i, s := range scores {
		if math.IsNaN(s) {
			return nil, nil, fmt.Errorf("train: score %d is not a number", i)
		}
		if positive[i] {
			pos = append(pos, s)
		} else {
			neg = append(neg, s)
		}
	}
	if len(pos) == 0 || len(neg) == 0 {
		return nil, nil, fmt.Errorf("train: %d positive and %d negative: %w", len(pos), len(neg), ErrOneClass)
	}
	return pos, neg, nil
}

// AUC is the exact area under the receiver operating characteristic: the
// probability that a positive scores above a negative, ties counting half, with
// DeLong's 95 % interval (DeLong et al. 1988, in the rank form of Sun and Xu
// 2014) on the logit scale, so that it stays inside 0..1.
func AUC(scores []float64, positive []bool) (Interval, error) {
	pos, neg, err := splitScores(scores, positive)
	if err != nil {
		return Interval{}, err
	}
	m, n := float64(len(pos)), float64(len(neg))
	all := midranks(append(slices.Clone(pos), neg...))
	own := midranks(pos)
	ownNeg := midranks(neg)
	auc := 0.0
	v10 := make([]float64, len(pos)) // share of negatives below each positive
	for i := range pos {
		v10[i] = (all[i] - own[i]) / n
		auc += v10[i] / m
	}
	v01 := make([]float64, len(neg)) // share of positives above each negative
	for i := range neg {
		v01[i] = 1 - (all[len(pos)+i]-ownNeg[i])/m
	}
	se := math.Sqrt(variance(v10)/m + variance(v01)/n)
	out := Interval{Value: auc, Low: auc, High: auc}
	if se == 0 || auc < 1e-9 || auc > 1-1e-9 {
		// Perfect separation has no estimated variance. Hanley's exact bound:
		// with k the smaller class, an AUC this high is seen with probability
		// 5 % down to about 0.05^(1/k).
		if auc > 1-1e-9 { // 1, but for the rounding of the sum
			out.Value, out.High = 1, 1
			out.Low = math.Pow(0.05, 1/math.Min(m, n))
		}
		if auc < 1e-9 {
			out.High = 1 - math.Pow(0.05, 1/math.Min(m, n))
		}
		return out, nil
	}
	logit := math.Log(auc / (1 - auc))
	half := 1.959963984540054 * se / (auc * (1 - auc))
	out.Low, out.High = sigmoid(logit-half), sigmoid(logit+half)
	return out, nil
}

func variance(v []float64) float64 {
	if len(v) < 2 {
		return 0
	}
	mean := 0.0
	for _, x := range v {
		mean += x / float64(len(v))
	}
	s := 0.0
	for _, x := range v {
		s += (x - mean) * (x - mean)
	}
	return s / float64(len(v)-1)
}

func sigmoid(x float64) float64 {
	if x >= 0 {
		return 1 / (1 + math.Exp(-x))
	}
	e := math.Exp(x)
	return e / (1 + e)
}

// Bootstrap estimates a 95 % interval of any figure by resampling examples
// within each class (percentile method; Efron and Tibshirani 1993). The same
// seed gives the same interval.
func Bootstrap(scores []float64, positive []bool, resamples int, seed uint64, figure func([]float64, []bool) float64) (Interval, error) {
	pos, neg, err := splitScores(scores, positive)
	if err != nil {
		return Interval{}, err
	}
	if resamples < 40 {
		return Interval{}, fmt.Errorf("train: %d resamples cannot give a 95 %% interval; use at least 40, better 2000", resamples)
	}
	rng := rand.New(rand.NewPCG(seed, 0xb007))
	draw := make([]float64, len(scores))
	label := make([]bool, len(scores))
	for i := range pos {
		label[i] = true
	}
	values := make([]float64, resamples)
	for k := range values {
		for i := range pos {
			draw[i] = pos[rng.IntN(len(pos))]
		}
		for i := range neg {
			draw[len(pos)+i] = neg[rng.IntN(len(neg))]
		}
		values[k] = figure(draw, label)
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[int(math.Round(q*float64(resamples-1)))] }
	return Interval{Value: figure(scores, positive), Low: at(0.025), High: at(0.975)}, nil
}

// Wilson is a share, hits of n, with its 95 % score interval (Wilson 1927).
func Wilson(hits, n int) Interval {
	if n == 0 {
		return Interval{High: 1}
	}
	const z = 1.959963984540054
	total := float64(n)
	p := float64(hits) / total
	centre := (p + z*z/(2*total)) / (1 + z*z/total)
	half := z / (1 + z*z/total) * math.Sqrt(p*(1-p)/total+z*z/(4*total*total))
	return Interval{Value: p, Low: max(0, centre-half), High: min(1, centre+half)}
}

// BootstrapMeanAUC is MeanAUC with the interval of BootstrapMean.
func (s *Set) BootstrapMeanAUC(logits [][]float64, resamples int, seed uint64) (Interval, error) {
	scores := make([][]float64, len(logits))
	for i, z := range logits {
		for c := range z {
			if s.Multi() {
				scores[i] = append(scores[i], z[c])
			} else {
				scores[i] = append(scores[i], Margin(z, c))
			}
		}
	}
	return s.BootstrapMean(scores, resamples, seed)
}

// BootstrapMean is the mean over the classes of each one's AUC, from scores
// [N][classes], with a 95 % interval by resampling examples, within each class
// where classes exclude each other (percentile method). A resample in which a
// label has only one kind of example is drawn again. The same seed gives the
// same interval.
func (s *Set) BootstrapMean(scores [][]float64, resamples int, seed uint64) (Interval, error) {
	if len(scores) == 0 || len(scores) != s.Len() || len(scores[0]) == 0 {
		return Interval{}, fmt.Errorf("train: %d scores for %d examples: %w", len(scores), s.Len(), ErrOneClass)
	}
	if resamples < 40 {
		return Interval{}, fmt.Errorf("train: %d resamples cannot give a 95 %% interval; use at least 40, better 2000", resamples)
	}
	var columns []ranked
	value := 0.0
	for c := range len(scores[0]) {
		column, positive := make([]float64, len(scores)), make([]bool, len(scores))
		for i := range scores {
			column[i], positive[i] = scores[i][c], s.Has(i, c)
		}
		auc, err := AUC(column, positive)
		if err != nil {
			return Interval{}, fmt.Errorf("class %s: %w", s.ClassName(c), err)
		}
		value += auc.Value / float64(len(scores[0]))
		columns = append(columns, rank(column, positive))
	}
	strata := make([][]int, 1)
	if !s.Multi() {
		strata = make([][]int, s.Classes)
	}
	for i := range s.Len() {
		k := 0
		if !s.Multi() {
			k = s.Labels[i]
		}
		strata[k] = append(strata[k], i)
	}
	rng := rand.New(rand.NewPCG(seed, 0xb007))
	drawn := make([]float64, s.Len())
	values := make([]float64, 0, resamples)
	for tries := 0; len(values) < resamples; tries++ {
		if tries > 20*resamples {
			return Interval{}, fmt.Errorf("train: a label is too rare to resample: %w", ErrOneClass)
		}
		clear(drawn)
		for _, members := range strata {
			for range members {
				drawn[members[rng.IntN(len(members))]]++
			}
		}
		sum := 0.0
		for _, c := range columns {
			sum += c.auc(drawn)
		}
		if !math.IsNaN(sum) {
			values = append(values, sum/float64(len(columns)))
		}
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[int(math.Round(q*float64(resamples-1)))] }
	return Interval{Value: value, Low: at(0.025), High: at(0.975)}, nil
}

// ranked is a column of scores in ascending order.
type ranked struct {
	order    []int
	scores   []float64
	positive []bool
}

func rank(scores []float64, positive []bool) ranked {
	r := ranked{order: make([]int, len(scores)), scores: scores, positive: positive}
	for i := range r.order {
		r.order[i] = i
	}
	slices.SortFunc(r.order, func(a, b int) int {
		switch {
		case scores[a] < scores[b]:
			return -1
		case scores[a] > scores[b]:
			return 1
		}
		return 0
	})
	return r
}

// auc is the area under the curve with examples counted as often as times says;
// NaN without both kinds.
func (r ranked) auc(times []float64) float64 {
	below, pairs, positives := 0.0, 0.0, 0.0
	for i := 0; i < len(r.order); {
		j, pos, neg := i, 0.0, 0.0
		for j < len(r.order) && r.scores[r.order[j]] == r.scores[r.order[i]] {
			if k := r.order[j]; r.positive[k] {
				pos += times[k]
			} else {
				neg += times[k]
			}
			j++
		}
		pairs += pos * (below + neg/2)
		positives += pos
		below += neg
		i = j
	}
	return pairs / (positives * below)
}
