package gateway

import (
	"math"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

func TestTriageActsOnPredictionSetsWhateverTheEnclaveSaid(t *testing.T) {
	about := func(p float64) []vigie.Prediction {
		return []vigie.Prediction{{Label: "normal", Probability: 1 - p, Threshold: 0.5, Positive: p <= 0.5}, {Label: "pneumonia", Probability: p, Threshold: 0.5, Positive: p > 0.5}}
	}
	set := func(coverage float64, holds ...string) []vigie.LabelSet {
		return []vigie.LabelSet{{Holds: holds, Coverage: coverage}}
	}
	of := func(label string, holds ...string) []vigie.LabelSet {
		return []vigie.LabelSet{{Label: label, Holds: holds, Coverage: 0.9}}
	}
	for name, c := range map[string]struct {
		sets []vigie.LabelSet
		want vigie.ReasonCode // "": released
	}{
		"decided":                   {set(0.95, "pneumonia"), ""},
		"none fitted":               {nil, ""},
		"undecided":                 {set(0.95, "normal", "pneumonia"), vigie.ReasonUndecided},
		"another answer":            {set(0.95, "normal"), vigie.ReasonImplausible},
		"nothing":                   {set(0.95), vigie.ReasonImplausible},
		"coverage of more than all": {set(1.5, "pneumonia"), vigie.ReasonImplausible},
		"coverage that is none":     {set(math.NaN(), "pneumonia"), vigie.ReasonImplausible},
		"of one label":              {of("pneumonia", vigie.SetPresent), ""},
		"of one label, undecided":   {of("pneumonia", vigie.SetAbsent, vigie.SetPresent), vigie.ReasonUndecided},
		"of one label, another":     {of("pneumonia", vigie.SetAbsent), vigie.ReasonImplausible},
		"of no label":               {of("fracture", vigie.SetAbsent), vigie.ReasonImplausible},
	} {
		got := Triage(&vigie.Finding{Predictions: about(0.97), Sets: c.sets}, nil, Policy{})
		if (got.Decision == vigie.Release) != (c.want == "") || c.want != "" && got.Reasons[0].Code != c.want {
			t.Errorf("%s: %+v, want %q", name, got, c.want)
		}
	}
	// What the enclave said is not said twice.
	f := &vigie.Finding{Predictions: about(0.97), Sets: set(0.95, "normal", "pneumonia"), Referrals: []vigie.Reason{{Code: vigie.ReasonUndecided, Detail: "its own words"}}}
	if got := Triage(f, nil, Policy{}); len(got.Reasons) != 1 || got.Reasons[0].Detail != "its own words" {
		t.Errorf("%+v", got)
	}
}

func TestAPredictionSetIsInCaseReportAndAuditRecord(t *testing.T) {
	config := testConfig(t)
	diagnoser := newStandIn(t, config.Model, always(0.99))
	diagnoser.sets = []vigie.LabelSet{{Holds: []string{"normal", "pneumonia"}, Coverage: 0.95}}
	g := start(t, config, Options{Diagnoser: diagnoser})
	c := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case, vigie.InReview)
	if text := Describe(c); !strings.Contains(text, "{normal, pneumonia} at a coverage of 95 %, not decided") || !strings.Contains(text, "undecided: ") {
		t.Errorf("the case does not show its set:\n%s", text)
	}
	found := false
	records := recordsOf(t, g.Casebook, audit.KindDiagnosed)
	for _, r := range records {
		found = found || r.Guards == "sets=2@0.95!"
	}
	if !found {
		t.Errorf("no audit record names the set: %+v", records)
	}
	c.Finding.Sets[0].Holds = []string{"pneumonia"}
	remarks := setRemarks(c.Finding)
	if len(remarks) != 1 || !strings.Contains(remarks[0].English, "95 %") || !strings.Contains(remarks[0].French, "« pneumonia »") {
		t.Errorf("the report says %+v", remarks)
	}
	if setsWord(c.Finding) != "sets=1@0.95" || setsWord(&vigie.Finding{}) != "" {
		t.Errorf("the audit says %q", setsWord(c.Finding))
	}
}
