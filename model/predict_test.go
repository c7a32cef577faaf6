package model

import (
	"errors"
	"math"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

func opened(t testing.TB, change func(*Manifest)) *Package {
	t.Helper()
	p := &Package{Manifest: demo(t), Calibration: Calibration{Method: Temperature, Temperature: 2}}
	if change != nil {
		change(p.Manifest)
	}
	return p
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-12 }

func TestProbabilitiesAreCalibratedByTheTemperature(t *testing.T) {
	predictions, err := opened(t, nil).Predictions([]float32{-1, 3})
	if err != nil {
		t.Fatal(err)
	}
	sigmoid := func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }
	normal, pneumonia := predictions[0], predictions[1]
	if !near(pneumonia.Raw, sigmoid(4)) || !near(pneumonia.Probability, sigmoid(2)) || !near(normal.Probability, sigmoid(-2)) {
		t.Errorf("%+v", predictions)
	}
	if normal.Positive || !pneumonia.Positive || pneumonia.Threshold != 0.5 || pneumonia.Code.Value != "233604007" || pneumonia.Code.French != "Pneumonie" {
		t.Errorf("%+v", predictions)
	}
	p := opened(t, func(m *Manifest) { m.Output.Activation = Sigmoid })
	if predictions, err = p.Predictions([]float32{-800, 800}); err != nil || !near(predictions[0].Probability, 0) || !near(predictions[1].Probability, 1) {
		t.Errorf("sigmoid far out: %+v %v", predictions, err)
	}
	p = opened(t, nil)
	if predictions, err = p.Predictions([]float32{3e38, -3e38}); err != nil || predictions[0].Probability != 1 || predictions[1].Probability != 0 {
		t.Errorf("softmax far out: %+v %v", predictions, err)
	}
}

func TestAnOutputThatMakesNoSenseIsAnErrorNotAPrediction(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, output := range [][]float32{nil, {1}, {1, 2, 3}, {nan, 1}, {1, inf}, {-inf, 1}} {
		if p, err := opened(t, nil).Predictions(output); !errors.Is(err, ErrOutput) || p != nil {
			t.Errorf("%v: %v %v", output, p, err)
		}
	}
	p := opened(t, func(m *Manifest) { m.Output.Activation = None })
	p.Calibration = Calibration{Method: Uncalibrated}
	for _, output := range [][]float32{{-0.1, 1}, {0, 1.5}} {
		if _, err := p.Predictions(output); !errors.Is(err, ErrOutput) {
			t.Errorf("probabilities %v: %v", output, err)
		}
	}
}

func TestABorderlineProbabilityGoesToAPerson(t *testing.T) {
	p := opened(t, nil)
	for logit, want := range map[float32]bool{0.01: true, 0.8: true, 1.6: true, 1.8: false, -1.6: true, -1.8: false, 9: false} {
		predictions, err := p.Predictions([]float32{0, logit})
		if err != nil {
			t.Fatal(err)
		}
		reasons := p.Manifest.Review(predictions, nil)
		if got := len(reasons) == 1 && reasons[0].Code == vigie.ReasonBorderline; got != want || len(reasons) > 1 {
			t.Errorf("logit %v, probability %.3f: %+v", logit, predictions[1].Probability, reasons)
		}
	}
}

func TestWhatWasNotPredictedIsNotImplausible(t *testing.T) {
	p := opened(t, func(m *Manifest) {
		m.Plausibility = []Rule{{Rule: SumsToOne, Labels: []string{"normal", "pneumonia"}, Tolerance: 0.01}}
	})
	if reasons := p.Manifest.Review(nil, nil); len(reasons) != 0 {
		t.Errorf("an image that was not read is called %+v", reasons)
	}
}

func TestEveryPlausibilityRuleCanBeBrokenAndKept(t *testing.T) {
	p := opened(t, func(m *Manifest) { m.Output.Activation, m.Output.Borderline = Sigmoid, nil })
	both, none, second := []float32{5, 5}, []float32{-5, -5}, []float32{-5, 5}
	with := func(changes ...func(*dicom.DataSet)) *dicom.DataSet { return chest(changes...) }
	for name, c := range map[string]struct {
		rule   Rule
		output []float32
		about  *dicom.DataSet
		broken bool
	}{
		"sums to two":             {Rule{Rule: SumsToOne, Labels: []string{"normal", "pneumonia"}, Tolerance: 0.01}, both, nil, true},
		"sums to one":             {Rule{Rule: SumsToOne, Labels: []string{"normal", "pneumonia"}, Tolerance: 0.01}, second, nil, false},
		"both":                    {Rule{Rule: Exclusive, Labels: []string{"normal", "pneumonia"}}, both, nil, true},
		"one":                     {Rule{Rule: Exclusive, Labels: []string{"normal", "pneumonia"}}, second, nil, false},
		"sure of nothing":         {Rule{Rule: SomeConfidence, Labels: []string{"normal", "pneumonia"}, From: 0.5}, none, nil, true},
		"sure of one":             {Rule{Rule: SomeConfidence, Labels: []string{"normal", "pneumonia"}, From: 0.5}, second, nil, false},
		"one without the other":   {Rule{Rule: Implies, Label: "pneumonia", Requires: "normal"}, second, nil, true},
		"one with the other":      {Rule{Rule: Implies, Label: "pneumonia", Requires: "normal"}, both, nil, false},
		"the other sex":           {Rule{Rule: NeedsSex, Label: "pneumonia", Values: []string{"F"}}, second, with(put(dicom.PatientSex, "M")), true},
		"the sex":                 {Rule{Rule: NeedsSex, Label: "pneumonia", Values: []string{"F"}}, second, with(put(dicom.PatientSex, "F")), false},
		"the other sex, negative": {Rule{Rule: NeedsSex, Label: "pneumonia", Values: []string{"F"}}, none, with(put(dicom.PatientSex, "M")), false},
		"sex not known":           {Rule{Rule: NeedsSex, Label: "pneumonia", Values: []string{"F"}}, second, nil, false},
		"the other side":          {Rule{Rule: NeedsSide, Label: "pneumonia", Values: []string{"L"}}, second, with(put(dicom.ImageLaterality, "R")), true},
		"the side of the series":  {Rule{Rule: NeedsSide, Label: "pneumonia", Values: []string{"L"}}, second, with(put(dicom.Laterality, "R")), true},
		"the side":                {Rule{Rule: NeedsSide, Label: "pneumonia", Values: []string{"L"}}, second, with(put(dicom.ImageLaterality, "L")), false},
		"too old":                 {Rule{Rule: NeedsAge, Label: "pneumonia", From: 0, To: 3}, second, with(), true},
		"the age":                 {Rule{Rule: NeedsAge, Label: "pneumonia", From: 0, To: 4}, second, with(), false},
		"age not known":           {Rule{Rule: NeedsAge, Label: "pneumonia", From: 0, To: 3}, second, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			list := &problemList{m: p.Manifest}
			list.rules("$.plausibility", []Rule{c.rule})
			if len(list.list) > 0 {
				t.Fatalf("the rule is not valid: %v", list.list)
			}
			p.Manifest.Plausibility = []Rule{c.rule}
			predictions, err := p.Predictions(c.output)
			if err != nil {
				t.Fatal(err)
			}
			reasons := p.Manifest.Review(predictions, c.about)
			if broken := len(reasons) == 1 && reasons[0].Code == vigie.ReasonImplausible; broken != c.broken {
				t.Fatalf("%+v gives %+v", predictions, reasons)
			}
			for _, r := range reasons {
				if r.Text.English == "" || r.Text.French == "" {
					t.Errorf("no sentence: %+v", r)
				}
			}
		})
	}
}
