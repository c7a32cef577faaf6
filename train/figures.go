package train

import (
	"fmt"
	"math"
	"slices"
)

// Scores returns what examples are ranked by for one class or label, and which
// examples have it. logits are [N][classes].
func (s *Set) Scores(logits [][]float64, class int) (scores []float64, positive []bool) {
	scores, positive = make([]float64, len(logits)), make([]bool, len(logits))
	for i, z := range logits {
		positive[i] = s.Has(i, class)
		if s.Multi() { // each output ranks by itself
			scores[i] = z[class]
		} else {
			scores[i] = Margin(z, class)
		}
	}
	return scores, positive
}

// Probabilities returns the probability of each class or label of one example
// from logits divided by a temperature.
func (s *Set) Probabilities(logits []float64, temperature float64) []float64 {
	if !s.Multi() {
		return Softmax(logits, temperature)
	}
	p := make([]float64, len(logits))
	for k, z := range logits {
		p[k] = sigmoid(z / temperature)
	}
	return p
}

// MeanAUC is the AUC of class 1 for two classes, and for more the mean over the
// classes of one against the rest; for labels that do not exclude each other the
// mean over the labels. logits are [N][classes], in the order of the set.
func (s *Set) MeanAUC(logits [][]float64) (float64, error) {
	if len(logits) == 0 {
		return 0, fmt.Errorf("train: no logits: %w", ErrOneClass)
	}
	classes := len(logits[0])
	from := 0
	if classes == 2 && !s.Multi() {
		from = 1
	}
	sum := 0.0
	for c := from; c < classes; c++ {
		auc, err := AUC(s.Scores(logits, c))
		if err != nil {
			return 0, fmt.Errorf("class %s: %w", s.ClassName(c), err)
		}
		sum += auc.Value
	}
	return sum / float64(classes-from), nil
}

// LogLoss is the mean negative log-likelihood of the labels under logits divided
// by a temperature, in nats; for labels that do not exclude each other the mean
// over the labels, too.
func (s *Set) LogLoss(logits [][]float64, temperature float64) float64 {
	if !s.Multi() {
		return meanLogLoss(logits, s.Labels, temperature)
	}
	sum := 0.0
	for i, z := range logits {
		for k, v := range z {
			v /= temperature
			sum += math.Max(v, 0) + math.Log1p(math.Exp(-math.Abs(v))) // softplus
			if s.Has(i, k) {
				sum -= v
			}
		}
	}
	return sum / float64(len(logits)*s.Classes)
}

// Accuracy is the share of examples whose most probable class is theirs; for
// labels that do not exclude each other, the share of labels that are told right
// at a probability of one half.
func (s *Set) Accuracy(logits [][]float64) float64 {
	right, n := 0, 0
	for i, z := range logits {
		if !s.Multi() {
			n++
			if slices.Index(z, slices.Max(z)) == s.Labels[i] {
				right++
			}
			continue
		}
		for k, v := range z {
			n++
			if (v >= 0) == s.Has(i, k) {
				right++
			}
		}
	}
	return float64(right) / float64(n)
}

// Margin is the score of class c in logits: its logit against the log-sum-exp
// of the others, monotone in its softmax probability but without saturation.
func Margin(logits []float64, c int) float64 {
	top := math.Inf(-1)
	for k, z := range logits {
		if k != c {
			top = math.Max(top, z)
		}
	}
	sum := 0.0
	for k, z := range logits {
		if k != c {
			sum += math.Exp(z - top)
		}
	}
	return logits[c] - top - math.Log(sum)
}
