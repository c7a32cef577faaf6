package train

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s is %.9g, want %.9g", what, got, want)
	}
}

// bruteAUC counts pairs.
func bruteAUC(scores []float64, positive []bool) float64 {
	wins, pairs := 0.0, 0.0
	for i := range scores {
		for j := range scores {
			if positive[i] && !positive[j] {
				pairs++
				switch {
				case scores[i] > scores[j]:
					wins++
				case scores[i] == scores[j]:
					wins += 0.5
				}
			}
		}
	}
	return wins / pairs
}

func TestAUCIsTheShareOfPairsInOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		n := 5 + rng.IntN(60)
		scores, positive := make([]float64, n), make([]bool, n)
		for i := range scores {
			scores[i], positive[i] = float64(rng.IntN(8)), rng.IntN(3) == 0 // many ties
		}
		positive[0], positive[1] = true, false
		got, err := AUC(scores, positive)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "AUC", got.Value, bruteAUC(scores, positive), 1e-12)
		if got.Low > got.Value || got.High < got.Value || got.Low < 0 || got.High > 1 {
			t.Errorf("interval %+v", got)
		}
	}
}

// The worked example: placements by hand. Positives 0.8 0.4 0.6, negatives
// 0.1 0.4 0.5 0.3. V10 = 1, 5/8·…: see the comments.
func TestDeLongsVarianceByHand(t *testing.T) {
	scores := []float64{0.8, 0.4, 0.6, 0.1, 0.4, 0.5, 0.3}
	positive := []bool{true, true, true, false, false, false, false}
	// Share of negatives below each positive: 4/4, 2.5/4, 4/4.
	// Share of positives above each negative: 3/3, 2.5/3, 2/3, 3/3.
	auc := (1 + 0.625 + 1) / 3
	s10 := variance([]float64{1, 0.625, 1})
	s01 := variance([]float64{1, 2.5 / 3, 2. / 3, 1})
	near(t, "variance of the placements", s10, 0.046875, 1e-12)
	se := math.Sqrt(s10/3 + s01/4)
	half := 1.959963984540054 * se / (auc * (1 - auc))
	got, err := AUC(scores, positive)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "AUC", got.Value, auc, 1e-12)
	near(t, "low end", got.Low, sigmoid(math.Log(auc/(1-auc))-half), 1e-12)
	near(t, "high end", got.High, sigmoid(math.Log(auc/(1-auc))+half), 1e-12)
}

// A 95 % interval holds the truth about 95 times in 100. Scores are normal and
// one apart, so the true AUC is Φ(1/√2).
func TestDeLongsAndTheBootstrapsIntervalsCoverTheTruth(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	truth := 0.5 * (1 + math.Erf(0.5))
	delong, bootstrap, runs := 0, 0, 300
	for k := range runs {
		scores, positive := make([]float64, 120), make([]bool, 120)
		for i := range scores {
			positive[i] = i < 50
			scores[i] = rng.NormFloat64()
			if positive[i] {
				scores[i]++
			}
		}
		a, err := AUC(scores, positive)
		if err != nil {
			t.Fatal(err)
		}
		if a.Low <= truth && truth <= a.High {
			delong++
		}
		b, err := Bootstrap(scores, positive, 200, uint64(k), func(s []float64, p []bool) float64 { v, _ := AUC(s, p); return v.Value })
		if err != nil {
			t.Fatal(err)
		}
		if b.Low <= truth && truth <= b.High {
			bootstrap++
		}
	}
	// 95 % of 300 is 285; 271 is three binomial standard deviations below and a
	// percentile bootstrap of this size runs a little short.
	if delong < 273 || bootstrap < 265 {
		t.Errorf("of %d intervals, DeLong's hold the truth %d times, the bootstrap's %d times", runs, delong, bootstrap)
	}
}

func TestPerfectSeparationStillHasALowerBound(t *testing.T) {
	got, err := AUC([]float64{1, 2, 3, 4, 5, 6}, []bool{false, false, false, true, true, true})
	if err != nil {
		t.Fatal(err)
	}
	if got.Value != 1 || got.High != 1 || got.Low >= 1 || got.Low <= 0.2 {
		t.Errorf("interval %+v", got)
	}
}

func TestOneClassHasNoAUC(t *testing.T) {
	if _, err := AUC([]float64{1, 2}, []bool{true, true}); !errors.Is(err, ErrOneClass) {
		t.Errorf("error is %v", err)
	}
	if _, err := AUC([]float64{1, math.NaN()}, []bool{true, false}); err == nil {
		t.Error("a score that is not a number is ranked")
	}
}

// Labels are drawn from softmax(z/3): the temperature to find is 3.
func TestTemperatureFindsHowOverconfidentLogitsAre(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 1))
	var logits [][]float64
	var labels []int
	for range 20000 {
		z := []float64{4 * rng.NormFloat64(), 4 * rng.NormFloat64(), 4 * rng.NormFloat64()}
		u, p, label := rng.Float64(), Softmax(z, 3), 0
		for u > p[label] && label < 2 {
			u -= p[label]
			label++
		}
		logits, labels = append(logits, z), append(labels, label)
	}
	got, err := Temperature(logits, labels)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "temperature", got, 3, 0.1)
	for _, other := range []float64{got * 0.98, got * 1.02} {
		if meanLogLoss(logits, labels, other) < meanLogLoss(logits, labels, got) {
			t.Errorf("temperature %g fits better than %g", other, got)
		}
	}
}

func TestCalibrationErrorIsZeroForTrueProbabilitiesAndNotForShiftedOnes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	var p, off []float64
	var y []bool
	for range 50000 {
		v := rng.Float64()
		p, off, y = append(p, v), append(off, math.Min(1, v+0.1)), append(y, rng.Float64() < v)
	}
	if e := CalibrationError(p, y, 15); e > 0.01 {
		t.Errorf("calibration error of true probabilities is %g", e)
	}
	if e := CalibrationError(off, y, 15); e < 0.07 {
		t.Errorf("calibration error of probabilities 0.1 too high is %g", e)
	}
}

func TestOperatingPointsAchieveWhatTheySay(t *testing.T) {
	p := []float64{0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9}
	y := []bool{false, false, true, false, false, true, true, true}
	best, err := Youden(p, y)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "threshold", best.Threshold, 0.65, 1e-12)
	near(t, "sensitivity", best.Sensitivity, 0.75, 1e-12)
	near(t, "specificity", best.Specificity, 1, 1e-12)
	all, err := AtSensitivity(p, y, 1)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "threshold for all", all.Threshold, 0.25, 1e-12)
	near(t, "its specificity", all.Specificity, 0.5, 1e-12)
	for _, point := range []OperatingPoint{best, all} {
		hit, rejected := 0.0, 0.0
		for i := range p {
			if y[i] && p[i] >= point.Threshold {
				hit++
			}
			if !y[i] && p[i] < point.Threshold {
				rejected++
			}
		}
		near(t, "sensitivity counted", hit/4, point.Sensitivity, 1e-12)
		near(t, "specificity counted", rejected/4, point.Specificity, 1e-12)
	}
	if _, err := AtSensitivity(p, y, 1.01); err == nil {
		t.Error("a sensitivity above 1 was reached")
	}
}

func TestMarginRanksLikeTheProbabilityWithoutSaturating(t *testing.T) {
	near(t, "margin of two", Margin([]float64{1, 4}, 1), 3, 1e-12)
	far, farther := Margin([]float64{0, 800, 1}, 1), Margin([]float64{0, 900, 1}, 1)
	if !(farther > far) {
		t.Errorf("margins %g and %g", far, farther)
	}
	z := []float64{0.3, -1, 0.8}
	p := Softmax(z, 1)[2]
	near(t, "logit", Margin(z, 2), math.Log(p/(1-p)), 1e-12)
}
