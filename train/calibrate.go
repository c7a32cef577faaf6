package train

import (
	"fmt"
	"math"
	"slices"
)

// Temperature finds the divisor of logits [N][classes] that minimises the
// negative log-likelihood of the labels (Guo et al. 2017). It keeps the order
// of the classes, so that AUC and decisions at one half do not change.
func Temperature(logits [][]float64, labels []int) (float64, error) {
	if len(logits) == 0 || len(logits) != len(labels) {
		return 0, fmt.Errorf("train: calibrating %d logits with %d labels", len(logits), len(labels))
	}
	return temperature(func(t float64) float64 { return meanLogLoss(logits, labels, t) })
}

// Temperature is the function of that name for the labels of a set, which need
// not exclude each other: then one temperature serves all labels.
func (s *Set) Temperature(logits [][]float64) (float64, error) {
	if len(logits) == 0 || len(logits) != s.Len() {
		return 0, fmt.Errorf("train: calibrating %d logits with %d labels", len(logits), s.Len())
	}
	return temperature(func(t float64) float64 { return s.LogLoss(logits, t) })
}

// temperature minimises a loss by golden-section search on log T in [1/20, 20]:
// the likelihood has one minimum there, since it is convex in 1/T.
func temperature(of func(float64) float64) (float64, error) {
	loss := func(logT float64) float64 { return of(math.Exp(logT)) }
	if v := loss(0); math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, fmt.Errorf("train: calibrating: the logits are not finite")
	}
	lo, hi := math.Log(1.0/20), math.Log(20)
	const ratio = 0.6180339887498949
	a, b := hi-ratio*(hi-lo), lo+ratio*(hi-lo)
	fa, fb := loss(a), loss(b)
	for hi-lo > 1e-9 {
		if fa < fb {
			hi, b, fb = b, a, fa
			a = hi - ratio*(hi-lo)
			fa = loss(a)
		} else {
			lo, a, fa = a, b, fb
			b = lo + ratio*(hi-lo)
			fb = loss(b)
		}
	}
	return math.Exp((lo + hi) / 2), nil
}

func meanLogLoss(logits [][]float64, labels []int, temperature float64) float64 {
	sum := 0.0
	for i, z := range logits {
		p := Softmax(z, temperature)
		sum -= math.Log(math.Max(p[labels[i]], 1e-300))
	}
	return sum / float64(len(logits))
}

// Softmax returns the class probabilities of logits divided by a temperature.
func Softmax(logits []float64, temperature float64) []float64 {
	top := slices.Max(logits)
	p := make([]float64, len(logits))
	sum := 0.0
	for i, z := range logits {
		p[i] = math.Exp((z - top) / temperature)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// CalibrationError is the expected calibration error of the probability of the
// positive class over equally filled bins (Nguyen and O'Connor 2015).
func CalibrationError(probability []float64, positive []bool, bins int) float64 {
	order := make([]int, len(probability))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case probability[a] < probability[b]:
			return -1
		case probability[a] > probability[b]:
			return 1
		}
		return 0
	})
	total := 0.0
	for b := range bins {
		from, to := b*len(order)/bins, (b+1)*len(order)/bins
		said, seen := 0.0, 0.0
		for _, i := range order[from:to] {
			said += probability[i]
			if positive[i] {
				seen++
			}
		}
		total += math.Abs(said - seen)
	}
	return total / float64(max(1, len(order)))
}

// OperatingPoint is a threshold on the calibrated probability and what it
// achieved on the set it was chosen on.
type OperatingPoint struct {
	Threshold   float64 `json:"threshold"` // positive when probability >= Threshold
	Sensitivity float64 `json:"sensitivity"`
	Specificity float64 `json:"specificity"`
	Rule        string  `json:"rule"` // how it was chosen
}

// operatingPoints returns every distinct point of the ROC curve with thresholds
// half-way between neighbouring scores, from the highest threshold down.
func operatingPoints(probability []float64, positive []bool) ([]OperatingPoint, error) {
	pos, neg, err := splitScores(probability, positive)
	if err != nil {
		return nil, err
	}
	scores := slices.Clone(probability)
	slices.Sort(scores)
	scores = slices.Compact(scores)
	slices.Sort(pos)
	slices.Sort(neg)
	var points []OperatingPoint
	for i := len(scores) - 1; i >= 0; i-- {
		t := scores[i]
		if i > 0 { // between this score and the next lower one
			t = (scores[i] + scores[i-1]) / 2
		}
		below, _ := slices.BinarySearch(pos, t)
		belowNeg, _ := slices.BinarySearch(neg, t)
		points = append(points, OperatingPoint{
			Threshold:   t,
			Sensitivity: float64(len(pos)-below) / float64(len(pos)),
			Specificity: float64(belowNeg) / float64(len(neg)),
		})
	}
	return points, nil
}

// Youden chooses the threshold that maximises sensitivity + specificity - 1
// (Youden 1950); of equally good ones, the most sensitive.
func Youden(probability []float64, positive []bool) (OperatingPoint, error) {
	points, err := operatingPoints(probability, positive)
	if err != nil {
		return OperatingPoint{}, err
	}
	best := points[0]
	for _, p := range points {
		if p.Sensitivity+p.Specificity >= best.Sensitivity+best.Specificity {
			best = p
		}
	}
	best.Rule = "Youden"
	return best, nil
}

// AtSensitivity chooses the highest threshold whose sensitivity reaches target.
func AtSensitivity(probability []float64, positive []bool, target float64) (OperatingPoint, error) {
	points, err := operatingPoints(probability, positive)
	if err != nil {
		return OperatingPoint{}, err
	}
	for _, p := range points {
		if p.Sensitivity >= target {
			p.Rule = fmt.Sprintf("sensitivity ≥ %g", target)
			return p, nil
		}
	}
	return OperatingPoint{}, fmt.Errorf("train: no threshold reaches a sensitivity of %g; ask for at most 1", target)
}
