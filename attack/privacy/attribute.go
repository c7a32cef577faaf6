package privacy

import (
	"fmt"
	"math"
	"slices"
)

// GuessAttribute guesses a person's value of a missing attribute: the one with the
// highest product of prior[values], what the other attributes say, and
// likelihood[values], how probable the model finds the person's known label with
// it (Fredrikson et al. 2014; Yeom et al. 2018, section 5). Either may be nil. Of
// equal products the first counts.
func GuessAttribute(prior, likelihood []float64) int {
	best, at := math.Inf(-1), 0
	for v := range max(len(prior), len(likelihood)) {
		p := 1.0
		if prior != nil {
			p *= prior[v]
		}
		if likelihood != nil {
			p *= likelihood[v]
		}
		if p > best {
			best, at = p, v
		}
	}
	return at
}

// Imputer guesses an attribute from the others, without a model: a logistic
// regression for each value against the rest.
type Imputer struct {
	values []*Logistic // nil for a value that does not occur
	rare   []float64   // its share, by Laplace's rule
}

// FitImputer fits one to examples whose value is known, 0..values-1.
func FitImputer(features [][]float64, value []int, values int) (*Imputer, error) {
	if len(features) != len(value) || len(value) < 2 || values < 2 {
		return nil, fmt.Errorf("privacy: imputing one of %d values from %d examples with %d values: %w", values, len(features), len(value), ErrAsk)
	}
	m := &Imputer{values: make([]*Logistic, values), rare: make([]float64, values)}
	for v := range values {
		is := make([]bool, len(value))
		n := 0
		for i, have := range value {
			if have < 0 || have >= values {
				return nil, fmt.Errorf("privacy: imputing: example %d has value %d of %d: %w", i, have, values, ErrAsk)
			}
			if is[i] = have == v; is[i] {
				n++
			}
		}
		m.rare[v] = (float64(n) + 1) / float64(len(value)+values)
		if n == 0 || n == len(value) {
			continue
		}
		var err error
		if m.values[v], err = fitLogistic(features, is, 1, false); err != nil {
			return nil, fmt.Errorf("privacy: imputing: %w", err)
		}
	}
	return m, nil
}

// Prior are the probabilities of each value, given an example's other attributes.
func (m *Imputer) Prior(features []float64) []float64 {
	out := slices.Clone(m.rare)
	for v, l := range m.values {
		if l != nil {
			out[v] = sigmoid(l.Score(features))
		}
	}
	total := 0.0
	for _, p := range out {
		total += p
	}
	for v := range out {
		out[v] /= max(total, 1e-300)
	}
	return out
}
