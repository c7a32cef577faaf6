package gateway

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/vigie/vigie"
)

func answer(p float64) vigie.Prediction {
	return vigie.Prediction{Label: "pneumonia", Probability: p, Raw: p, Threshold: 0.5, Positive: p >= 0.5}
}

func TestTriageIsThisTable(t *testing.T) {
	policy := Policy{Margin: 0.05}
	clear := &vigie.Finding{Predictions: []vigie.Prediction{answer(0.02)}}
	with := func(f func(*vigie.Finding)) *vigie.Finding {
		copied := *clear
		f(&copied)
		return &copied
	}
	for name, test := range map[string]struct {
		finding   *vigie.Finding
		referrals []vigie.Reason
		policy    Policy
		decision  vigie.Decision
		codes     []vigie.ReasonCode
	}{
		"clear negative":  {clear, nil, policy, vigie.Release, nil},
		"clear positive":  {with(func(f *vigie.Finding) { f.Predictions = []vigie.Prediction{answer(0.97)} }), nil, policy, vigie.Release, nil},
		"quiet guard":     {with(func(f *vigie.Finding) { f.Guards = []vigie.GuardResult{{Guard: "range", PValue: 0.4}} }), nil, policy, vigie.Release, nil},
		"just off margin": {with(func(f *vigie.Finding) { f.Predictions = []vigie.Prediction{answer(0.56)} }), nil, policy, vigie.Release, nil},

		"borderline below": {with(func(f *vigie.Finding) { f.Predictions = []vigie.Prediction{answer(0.46)} }), nil, policy, vigie.Review, []vigie.ReasonCode{vigie.ReasonBorderline}},
		"borderline above": {with(func(f *vigie.Finding) { f.Predictions = []vigie.Prediction{answer(0.54)} }), nil, policy, vigie.Review, []vigie.ReasonCode{vigie.ReasonBorderline}},
		"one of two borderline": {with(func(f *vigie.Finding) { f.Predictions = []vigie.Prediction{answer(0.02), answer(0.49)} }), nil, policy,
			vigie.Review, []vigie.ReasonCode{vigie.ReasonBorderline}},
		"not a number": {with(func(f *vigie.Finding) {
			f.Predictions = []vigie.Prediction{{Label: "x", Probability: math.NaN(), Threshold: 0.5}}
		}), nil, policy,
			vigie.Review, []vigie.ReasonCode{vigie.ReasonImplausible}},
		"above one": {with(func(f *vigie.Finding) {
			f.Predictions = []vigie.Prediction{{Label: "x", Probability: 1.2, Threshold: 0.5, Positive: true}}
		}), nil, policy,
			vigie.Review, []vigie.ReasonCode{vigie.ReasonImplausible}},
		"contradiction": {with(func(f *vigie.Finding) {
			f.Predictions = []vigie.Prediction{{Label: "x", Probability: 0.9, Threshold: 0.5, Positive: false}}
		}), nil, policy,
			vigie.Review, []vigie.ReasonCode{vigie.ReasonImplausible}},
		"no predictions": {&vigie.Finding{}, nil, policy, vigie.Review, []vigie.ReasonCode{vigie.ReasonImplausible}},
		"refused by the enclave": {&vigie.Finding{Referrals: []vigie.Reason{{Code: vigie.ReasonTransferSyntax}}}, nil, policy,
			vigie.Review, []vigie.ReasonCode{vigie.ReasonTransferSyntax}},
		"age outside": {with(func(f *vigie.Finding) { f.Referrals = []vigie.Reason{{Code: vigie.ReasonAge}} }), nil, policy, vigie.Review, []vigie.ReasonCode{vigie.ReasonAge}},
		"same reason twice": {with(func(f *vigie.Finding) { f.Referrals = []vigie.Reason{{Code: vigie.ReasonAge}} }), []vigie.Reason{{Code: vigie.ReasonAge}}, policy,
			vigie.Review, []vigie.ReasonCode{vigie.ReasonAge}},
		"guard alarm": {with(func(f *vigie.Finding) {
			f.Guards = []vigie.GuardResult{{Guard: "patch", PValue: 0.001, Alarm: true}}
		}), nil, policy,
			vigie.Review, []vigie.ReasonCode{vigie.ReasonGuard}},
		"broken guard": {with(func(f *vigie.Finding) { f.Guards = []vigie.GuardResult{{Guard: "patch", PValue: math.NaN()}} }), nil, policy,
			vigie.Review, []vigie.ReasonCode{vigie.ReasonGuard}},
		"burned-in text": {clear, []vigie.Reason{{Code: vigie.ReasonBurnedIn}}, policy, vigie.Review, []vigie.ReasonCode{vigie.ReasonBurnedIn}},
		"enclave down":   {nil, []vigie.Reason{{Code: vigie.ReasonEnclave}}, policy, vigie.Review, []vigie.ReasonCode{vigie.ReasonEnclave}},
		"nothing at all": {nil, nil, policy, vigie.Review, []vigie.ReasonCode{vigie.ReasonInternal}},
		"truncated":      {nil, []vigie.Reason{{Code: vigie.ReasonUnreadable}}, policy, vigie.Quarantine, []vigie.ReasonCode{vigie.ReasonUnreadable}},
		"truncated and wrong": {nil, []vigie.Reason{{Code: vigie.ReasonModality}, {Code: vigie.ReasonUnreadable}}, policy,
			vigie.Quarantine, []vigie.ReasonCode{vigie.ReasonModality, vigie.ReasonUnreadable}},
		"unreadable to the enclave": {&vigie.Finding{Referrals: []vigie.Reason{{Code: vigie.ReasonUnreadable}}}, nil, policy,
			vigie.Quarantine, []vigie.ReasonCode{vigie.ReasonUnreadable}},
		"everything": {clear, nil, Policy{Everything: true}, vigie.Review, []vigie.ReasonCode{vigie.ReasonPolicy}},
		"positives": {with(func(f *vigie.Finding) { f.Predictions = []vigie.Prediction{answer(0.97)} }), nil, Policy{Positive: true},
			vigie.Review, []vigie.ReasonCode{vigie.ReasonPolicy}},
		"positives, negative": {clear, nil, Policy{Positive: true}, vigie.Release, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := Triage(test.finding, test.referrals, test.policy)
			if got.Decision != test.decision || len(got.Reasons) != len(test.codes) {
				t.Fatalf("got %s %+v, want %s %v", got.Decision, got.Reasons, test.decision, test.codes)
			}
			for i, code := range test.codes {
				if got.Reasons[i].Code != code {
					t.Errorf("reason %d: got %s, want %s", i, got.Reasons[i].Code, code)
				}
			}
		})
	}
}

func TestNoReasonCanMakeTriageMoreLenient(t *testing.T) {
	rank := map[vigie.Decision]int{vigie.Release: 0, vigie.Review: 1, vigie.Quarantine: 2}
	codes := []vigie.ReasonCode{vigie.ReasonUnreadable, vigie.ReasonTransferSyntax, vigie.ReasonPixels, vigie.ReasonModality,
		vigie.ReasonBodyPart, vigie.ReasonView, vigie.ReasonAge, vigie.ReasonBurnedIn, vigie.ReasonDeidentify, vigie.ReasonBorderline,
		vigie.ReasonImplausible, vigie.ReasonGuard, vigie.ReasonEnclave, vigie.ReasonNoModel, vigie.ReasonPolicy, vigie.ReasonInternal, "a-code-from-the-future"}
	rapid.Check(t, func(t *rapid.T) {
		pick := rapid.SliceOfN(rapid.SampledFrom(codes), 0, 4)
		var referrals []vigie.Reason
		for _, c := range pick.Draw(t, "referrals") {
			referrals = append(referrals, vigie.Reason{Code: c})
		}
		finding := &vigie.Finding{Predictions: []vigie.Prediction{answer(rapid.Float64Range(0, 1).Draw(t, "probability"))}}
		policy := Policy{Everything: rapid.Bool().Draw(t, "everything"), Positive: rapid.Bool().Draw(t, "positive"), Margin: rapid.Float64Range(0, 0.5).Draw(t, "margin")}
		before := Triage(finding, referrals, policy)
		after := Triage(finding, append(referrals, vigie.Reason{Code: rapid.SampledFrom(codes).Draw(t, "more")}), policy)
		if rank[after.Decision] < rank[before.Decision] || after.Decision == vigie.Release {
			t.Fatalf("adding a reason moved %s to %s", before.Decision, after.Decision)
		}
		if (before.Decision == vigie.Release) != (len(before.Reasons) == 0) {
			t.Fatalf("decision %s with reasons %v", before.Decision, before.Reasons)
		}
	})
}
