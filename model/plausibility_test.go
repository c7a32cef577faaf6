package model

import (
	"math"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

func TestRulesAboutAnatomyAndExhaustionCanBeBrokenAndKept(t *testing.T) {
	p := opened(t, func(m *Manifest) { m.Output.Activation, m.Output.Borderline = Sigmoid, nil })
	none, second := []float32{-5, -5}, []float32{-5, 5}
	chestOnly := Rule{Rule: NeedsBodyPart, Label: "pneumonia", Values: []string{"CHEST"}, Unknown: Review}
	sides := Rule{Rule: NeedsSide, Label: "pneumonia", Values: []string{"L"}, Unknown: Review}
	female := Rule{Rule: NeedsSex, Label: "pneumonia", Values: []string{"F"}, Unknown: Review}
	bare := func(changes ...func(*dicom.DataSet)) *dicom.DataSet {
		return chest(append([]func(*dicom.DataSet){drop(dicom.BodyPartExamined), drop(dicom.AnatomicRegionSequence),
			drop(dicom.PatientSex), drop(dicom.Laterality), drop(dicom.ImageLaterality)}, changes...)...)
	}
	for name, c := range map[string]struct {
		rule              Rule
		output            []float32
		about             *dicom.DataSet
		onCopy, onPatient bool // broken, asked of the copy and of the original
	}{
		"another body part":            {chestOnly, second, bare(put(dicom.BodyPartExamined, "KNEE")), true, true},
		"the body part":                {chestOnly, second, bare(put(dicom.BodyPartExamined, "CHEST")), false, false},
		"a synonym of it":              {chestOnly, second, bare(put(dicom.BodyPartExamined, "THORAX")), false, false},
		"another, negative":            {chestOnly, none, bare(put(dicom.BodyPartExamined, "KNEE")), false, false},
		"body part not known":          {chestOnly, second, bare(), true, true},
		"nobody minds":                 {Rule{Rule: NeedsBodyPart, Label: "pneumonia", Values: []string{"CHEST"}}, second, bare(), false, false},
		"side not known":               {sides, second, bare(), true, true},
		"two sides":                    {sides, second, bare(put(dicom.Laterality, "L"), put(dicom.ImageLaterality, "R")), true, true},
		"sex not known":                {female, second, bare(), false, true}, // a copy never has it
		"sex not known, negative":      {female, none, bare(), false, false},
		"none of what must be one":     {Rule{Rule: Exhaustive, Labels: []string{"normal", "pneumonia"}}, none, nil, true, true},
		"one of what must be one":      {Rule{Rule: Exhaustive, Labels: []string{"normal", "pneumonia"}}, second, nil, false, false},
		"priors are the gateway's":     {Rule{Rule: AgreesWithPrior, Label: "pneumonia", Days: 10, Flips: FlipBoth}, second, bare(), false, false},
		"a data set that is not there": {sides, second, nil, true, true},
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
			for asked, want := range map[string]bool{"copy": c.onCopy, "original": c.onPatient} {
				reasons := p.Manifest.Review(predictions, c.about)
				if asked == "original" {
					reasons = p.Manifest.ReviewOriginal(predictions, c.about)
				}
				if broken := len(reasons) == 1 && reasons[0].Code == vigie.ReasonImplausible; broken != want {
					t.Errorf("%s: %+v gives %+v", asked, predictions, reasons)
				}
				for _, r := range reasons {
					if r.Text.English == "" || r.Text.French == "" || strings.Contains(r.Text.English+r.Text.French, "%!") {
						t.Errorf("%s: no sentence: %+v", asked, r)
					}
				}
			}
		})
	}
}

func TestRulesThatCannotBeKeptAreRefused(t *testing.T) {
	both := []string{"normal", "pneumonia"}
	for name, c := range map[string]struct {
		rules []Rule
		says  string
	}{
		"no rule of the name":     {[]Rule{{Rule: "needs-luck"}}, "is no rule"},
		"no label of the name":    {[]Rule{{Rule: NeedsSex, Label: "cancer", Values: []string{"F"}}}, `"cancer" is no label`},
		"no label to compare":     {[]Rule{{Rule: AgreesWithPrior, Label: "cancer", Days: 3, Flips: FlipGone}}, `"cancer" is no label`},
		"a label twice":           {[]Rule{{Rule: Exclusive, Labels: []string{"normal", "normal"}}}, "twice"},
		"one label of several":    {[]Rule{{Rule: Exhaustive, Labels: []string{"normal"}}}, "needs 2"},
		"an age after death":      {[]Rule{{Rule: NeedsAge, Label: "normal", From: 20, To: 400}}, "150"},
		"an age backwards":        {[]Rule{{Rule: NeedsAge, Label: "normal", From: 9, To: 3}}, "in this order"},
		"an age that is none":     {[]Rule{{Rule: NeedsAge, Label: "normal", From: 0, To: math.NaN()}}, "in this order"},
		"a body part that is not": {[]Rule{{Rule: NeedsBodyPart, Label: "normal", Values: []string{"chest"}}}, "code string"},
		"implies itself":          {[]Rule{{Rule: Implies, Label: "normal", Requires: "normal"}}, "requires itself"},
		"implies what excludes":   {[]Rule{{Rule: Exclusive, Labels: both}, {Rule: Implies, Label: "normal", Requires: "pneumonia"}}, "never be positive"},
		"two sexes":               {[]Rule{{Rule: NeedsSex, Label: "normal", Values: []string{"F"}}, {Rule: NeedsSex, Label: "normal", Values: []string{"M"}}}, "never be positive"},
		"two ages":                {[]Rule{{Rule: NeedsAge, Label: "normal", From: 0, To: 3}, {Rule: NeedsAge, Label: "normal", From: 4, To: 9}}, "never be positive"},
		"no days":                 {[]Rule{{Rule: AgreesWithPrior, Label: "normal", Flips: FlipBoth}}, "days"},
		"no change to mind":       {[]Rule{{Rule: AgreesWithPrior, Label: "normal", Days: 3}}, "refers nothing"},
		"a jump beyond one":       {[]Rule{{Rule: AgreesWithPrior, Label: "normal", Days: 3, Jump: 1.5}}, "jump"},
		"a jump that is none":     {[]Rule{{Rule: AgreesWithPrior, Label: "normal", Days: 3, Jump: math.NaN()}}, "jump"},
		"a flip of no name":       {[]Rule{{Rule: AgreesWithPrior, Label: "normal", Days: 3, Flips: "sideways"}}, "flips"},
		"unknown that blocks":     {[]Rule{{Rule: NeedsSex, Label: "normal", Values: []string{"F"}, Unknown: Block}}, "unknown"},
		"unknown of an answer":    {[]Rule{{Rule: Exclusive, Labels: both, Unknown: Review}}, "means nothing"},
	} {
		list := &problemList{m: demo(t)}
		list.rules("$.plausibility", c.rules)
		if text := strings.Join(list.list, "\n"); !strings.Contains(text, c.says) {
			t.Errorf("%s: %q does not say %q", name, text, c.says)
		}
	}
}

func TestAnAnswerIsComparedWithTheLatestStudyThatSpeaksOfIt(t *testing.T) {
	p := opened(t, func(m *Manifest) { m.Output.Borderline = nil })
	predictions := func(probability float64) []vigie.Prediction {
		logit := float32(2 * math.Log(probability/(1-probability)))
		out, err := p.Predictions([]float32{0, logit})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	code := predictions(0.5)[1].Code
	prior := func(days float64, positive bool, probability float64) Prior {
		return Prior{days, []PriorAnswer{{"pneumonia", code, positive, probability}}}
	}
	other := Prior{1, []PriorAnswer{{"pneumonia", vigie.Code{Value: "1", Scheme: "SCT"}, true, 0.9}}}
	for name, c := range map[string]struct {
		rule   Rule
		now    float64
		priors []Prior
		says   string // "" : nothing
	}{
		"gone":                        {Rule{Flips: FlipGone, Days: 30}, 0.1, []Prior{prior(14, true, 0.9)}, "14 days earlier"},
		"gone since yesterday":        {Rule{Flips: FlipGone, Days: 30}, 0.1, []Prior{prior(1, true, 0.9)}, "one day earlier"},
		"gone the same day":           {Rule{Flips: FlipBoth, Days: 30}, 0.1, []Prior{prior(0, true, 0.9)}, "same day"},
		"gone, nobody minds":          {Rule{Flips: FlipAppeared, Days: 30}, 0.1, []Prior{prior(14, true, 0.9)}, ""},
		"appeared":                    {Rule{Flips: FlipBoth, Days: 30}, 0.9, []Prior{prior(14, false, 0.1)}, "finds it now"},
		"long ago":                    {Rule{Flips: FlipBoth, Days: 30}, 0.9, []Prior{prior(31, false, 0.1)}, ""},
		"the latest counts":           {Rule{Flips: FlipBoth, Days: 30}, 0.9, []Prior{prior(20, false, 0.1), prior(3, true, 0.8), prior(9, false, 0.2)}, ""},
		"the latest that speaks":      {Rule{Flips: FlipBoth, Days: 30}, 0.1, []Prior{other, prior(9, true, 0.8)}, "9 days earlier"},
		"of something else":           {Rule{Flips: FlipBoth, Days: 30}, 0.1, []Prior{other}, ""},
		"a jump":                      {Rule{Jump: 0.25, Days: 30}, 0.9, []Prior{prior(14, true, 0.6)}, "from 0.60 to 0.90"},
		"a fall":                      {Rule{Jump: 0.25, Days: 30}, 0.6, []Prior{prior(14, true, 0.9)}, "from 0.90 to 0.60"},
		"a step":                      {Rule{Jump: 0.25, Days: 30}, 0.8, []Prior{prior(14, true, 0.6)}, ""},
		"a person's word has no jump": {Rule{Jump: 0.25, Days: 30}, 0.9, []Prior{prior(14, true, math.NaN())}, ""},
		"a person's word can flip":    {Rule{Jump: 0.25, Flips: FlipBoth, Days: 30}, 0.1, []Prior{prior(14, true, math.NaN())}, "14 days earlier"},
		"from the future":             {Rule{Flips: FlipBoth, Days: 30}, 0.1, []Prior{prior(-2, true, 0.9)}, ""},
	} {
		c.rule.Rule, c.rule.Label = AgreesWithPrior, "pneumonia"
		p.Manifest.Plausibility = []Rule{{Rule: Exclusive, Labels: []string{"normal", "pneumonia"}}, c.rule}
		if p.Manifest.PriorDays() != 30 {
			t.Fatalf("%s: %d days", name, p.Manifest.PriorDays())
		}
		reasons := p.Manifest.CheckPriors(predictions(c.now), c.priors)
		if c.says == "" {
			if len(reasons) > 0 {
				t.Errorf("%s: %+v", name, reasons)
			}
		} else if len(reasons) != 1 || reasons[0].Code != vigie.ReasonPrior || !strings.Contains(reasons[0].Text.English, c.says) || reasons[0].Text.French == "" {
			t.Errorf("%s: %+v", name, reasons)
		}
	}
}
