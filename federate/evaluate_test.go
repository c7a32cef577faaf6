package federate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/vigie/vigie/train"
)

// judged is a school whose sites' examples have known answers: logits of so many
// classes, drawn so that the model is good and badly calibrated.
func judged(t *testing.T, sites, classes int, labels bool) (s *school, pooled *train.Set, logits [][]float64) {
	t.Helper()
	s = newSchool(t, sites, 3, func(terms *Terms) {
		terms.Tasks, terms.Questions = []Task{TaskEvaluate, TaskCalibrate}, 200
	})
	rng := rand.New(rand.NewPCG(11, uint64(classes)))
	pooled = &train.Set{Name: "pooled", Shape: []int64{1}, Classes: classes}
	var parts [][]int
	for i := range sites {
		var at []int
		for range 30 + 60*i {
			at = append(at, len(logits))
			z := make([]float64, classes)
			for k := range z {
				z[k] = 3 * rng.NormFloat64()
			}
			if labels {
				for k := range z {
					mark := uint8(rng.IntN(2))
					pooled.Marks = append(pooled.Marks, mark)
					z[k] += 3 * (float64(mark) - 0.3)
				}
			} else {
				label := min(classes-1, rng.IntN(classes+1))
				pooled.Labels = append(pooled.Labels, label)
				z[label] += 3
			}
			if rng.IntN(20) == 0 {
				z[0] += 9 // an answer that is far too sure
			}
			pooled.Values = append(pooled.Values, 0)
			logits = append(logits, z)
		}
		parts = append(parts, at)
	}
	for i, at := range parts {
		own := make([][]float64, len(at))
		for j, k := range at {
			own[j] = logits[k]
		}
		s.answers = append(s.answers, AnswersOf(pooled.Subset(at), func(context.Context, Subject) ([][]float64, error) { return own, nil }))
		s.sites[i] = s.open(t, i)
	}
	return s, pooled, logits
}

func TestTheSecureEvaluationIsThatOfAllExamplesTogether(t *testing.T) {
	for _, form := range []struct {
		classes int
		labels  bool
	}{{2, false}, {4, false}, {3, true}} {
		t.Run(fmt.Sprint(form), func(t *testing.T) {
			s, pooled, logits := judged(t, 4, form.classes, form.labels)
			c := s.coordinator(t, nil)
			for _, bins := range []int{2000, 50} {
				e, err := c.Evaluate(t.Context(), s.links(), EvaluationOptions{Classes: form.classes, Labels: form.labels, Bins: bins, Threshold: 0.3})
				if err != nil {
					t.Fatal(err)
				}
				if e.Sites != 4 || e.Examples != pooled.Len() {
					t.Errorf("%d examples of %d sites", e.Examples, e.Sites)
				}
				if want := pooled.Accuracy(logits); math.Abs(e.Accuracy-want) > 1e-8 {
					t.Errorf("accuracy %v, want %v", e.Accuracy, want)
				}
				if want := pooled.LogLoss(logits, 1); math.Abs(e.Loss-want) > 1e-8 {
					t.Errorf("loss %v, want %v", e.Loss, want)
				}
				mean := 0.0
				for _, one := range e.Classes {
					scores, positive := pooled.Scores(logits, one.Class)
					want, err := train.AUC(scores, positive)
					if err != nil {
						t.Fatal(err)
					}
					mean += want.Value / float64(len(e.Classes))
					if off := math.Abs(one.AUC.Value - want.Value); off > one.AUCBins+1e-12 {
						t.Errorf("class %d in %d bins: AUC %v is off by %v, beyond the bound of %v", one.Class, bins, one.AUC.Value, off, one.AUCBins)
					}
					if bins == 2000 && (one.AUCBins > 2e-3 || math.Abs(one.AUC.Low-want.Low) > 2e-3 || math.Abs(one.AUC.High-want.High) > 2e-3) {
						t.Errorf("class %d: AUC %v within %v, want %v", one.Class, one.AUC, one.AUCBins, want)
					}
					hits, specific, n, p, said, seen := 0, 0, 0, 0, [20]float64{}, [20]float64{}
					for i := range logits {
						q := pooled.Probabilities(logits[i], 1)[one.Class]
						bin := min(19, int(20*q))
						said[bin] += q
						if positive[i] {
							p++
							seen[bin]++
							if q >= 0.3 {
								hits++
							}
						} else {
							n++
							if q < 0.3 {
								specific++
							}
						}
					}
					ece := 0.0
					for b := range said {
						ece += math.Abs(said[b]-seen[b]) / float64(n+p)
					}
					if one.Positives != p || one.Negatives != n || one.Sensitivity != train.Wilson(hits, p) || one.Specificity != train.Wilson(specific, n) || math.Abs(one.Calibration-ece) > 1e-8 {
						t.Errorf("class %d: %+v, want %d of %d and %d of %d, calibration error %v", one.Class, one, hits, p, specific, n, ece)
					}
				}
				if math.Abs(e.AUC.Value-mean) > e.AUCBins+1e-12 {
					t.Errorf("mean AUC %v, want %v within %v", e.AUC.Value, mean, e.AUCBins)
				}
			}
		})
	}
}

func TestASiteWithFewExamplesAnswersZerosAndNobodyCanTell(t *testing.T) {
	s, pooled, logits := judged(t, 5, 2, false) // the first site has 30
	e, err := s.coordinator(t, nil).Evaluate(t.Context(), s.links(), EvaluationOptions{Classes: 2, Least: 31})
	if err != nil {
		t.Fatal(err)
	}
	rest := pooled.Subset(span(30, pooled.Len()))
	if e.Sites != 5 || e.Examples != rest.Len() || math.Abs(e.Accuracy-rest.Accuracy(logits[30:])) > 1e-8 {
		t.Errorf("%d examples of %d sites, accuracy %v", e.Examples, e.Sites, e.Accuracy)
	}
	if _, err := s.coordinator(t, nil).Evaluate(t.Context(), s.links(), EvaluationOptions{Classes: 2, Least: 1000}); !errors.Is(err, ErrRound) {
		t.Errorf("no site has enough examples: %v", err)
	}
}

func span(from, to int) []int {
	var at []int
	for i := from; i < to; i++ {
		at = append(at, i)
	}
	return at
}

func TestQuestionsThatDoNotFitTheModelAreNotAnswered(t *testing.T) {
	s, _, _ := judged(t, 4, 2, false)
	c := s.coordinator(t, nil)
	for what, o := range map[string]EvaluationOptions{
		"another number of classes":          {Classes: 3},
		"labels":                             {Classes: 2, Labels: true},
		"one class":                          {Classes: 1},
		"no threshold":                       {Classes: 2, Threshold: 1},
		"more bins than anybody may ask for": {Classes: 2, Bins: MaxNumbers},
	} {
		if _, err := c.Evaluate(t.Context(), s.links(), o); !errors.Is(err, ErrRound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.state.Number += 1000
	for what, q := range map[string]Question{
		"two parameters of a temperature": {Task: TaskCalibrate, Kind: Temperature, Numbers: 4, Parameters: []float64{1, 2}},
		"an unknown method":               {Task: TaskCalibrate, Kind: "isotonic", Numbers: 4, Parameters: []float64{1}},
	} {
		if _, err := c.Ask(t.Context(), s.links(), q); !errors.Is(err, ErrRound) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTheTemperatureOfAllSitesIsThatOfThePooledExamples(t *testing.T) {
	for _, form := range []struct {
		classes int
		labels  bool
	}{{2, false}, {4, false}, {3, true}} {
		if testing.Short() && form.classes != 2 {
			continue
		}
		s, pooled, logits := judged(t, 3, form.classes, form.labels)
		got, err := s.coordinator(t, nil).Calibrate(t.Context(), s.links(), CalibrationOptions{Method: Temperature})
		if err != nil {
			t.Fatal(err)
		}
		want, err := pooled.Temperature(logits)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(got.Temperature-want) > 1e-5*want || math.Abs(got.After-pooled.LogLoss(logits, want)) > 1e-8 || math.Abs(got.Before-pooled.LogLoss(logits, 1)) > 1e-8 {
			t.Errorf("%v: %+v, want a temperature of %v, loss %v after %v", form, got, want, pooled.LogLoss(logits, want), pooled.LogLoss(logits, 1))
		}
		if got.Steps > 12 {
			t.Errorf("%v: %d questions", form, got.Steps)
		}
	}
}

// plattOracle is scikit-learn's fit of Platt's sigmoid.
const plattOracle = `
import sys, json
try:
    import numpy as np
    from sklearn.calibration import _sigmoid_calibration
except ImportError as e:
    print(json.dumps("no scikit-learn: %s" % e)); sys.exit()
d = json.load(sys.stdin)
a, b = _sigmoid_calibration(np.array(d["scores"]), np.array(d["labels"]))
print(json.dumps([-a, -b]))
`

func TestPlattsFitAtAllSitesIsScikitLearnsOfThePooledExamples(t *testing.T) {
	s, pooled, logits := judged(t, 3, 2, false)
	got, err := s.coordinator(t, nil).Calibrate(t.Context(), s.links(), CalibrationOptions{Method: Platt})
	if err != nil {
		t.Fatal(err)
	}
	if !(got.After < got.Before) || got.Examples != pooled.Len() || got.Steps > 16 {
		t.Errorf("%+v", got)
	}
	scores, _ := pooled.Scores(logits, 1)
	input, err := json.Marshal(map[string]any{"scores": scores, "labels": pooled.Labels})
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/usr/bin/python3", "-c", plattOracle)
	command.Stdin = strings.NewReader(string(input))
	output, err := command.Output()
	if err != nil {
		t.Skipf("SKIPPED, not held against scikit-learn: %v", err)
	}
	var want []float64
	if err := json.Unmarshal(output, &want); err != nil {
		t.Skipf("SKIPPED, not held against scikit-learn: %s", output)
	}
	if math.Abs(got.Slope-want[0]) > 1e-4 || math.Abs(got.Shift-want[1]) > 1e-4 {
		t.Errorf("slope %v and shift %v, scikit-learn has %v", got.Slope, got.Shift, want)
	}
	// and its gradient on the pooled examples is 0, in float64
	positives := 0.0
	for _, l := range pooled.Labels {
		positives += float64(l)
	}
	sums := make([]float64, plattNumbers)
	plattSums(sums, pooled, logits, []float64{got.Slope, got.Shift, 1 / (float64(pooled.Len()) - positives + 2), (positives + 1) / (positives + 2)})
	if math.Abs(sums[2])/sums[0] > 1e-5 || math.Abs(sums[3])/sums[0] > 1e-5 {
		t.Errorf("the gradient is %v and %v for each example", sums[2]/sums[0], sums[3]/sums[0])
	}
}
