package gateway

import (
	"fmt"
	"math"
	"strings"

	"github.com/vigie/vigie"
)

// Policy is the part of triage that a site decides.
type Policy struct {
	Everything bool    // every case goes to a person
	Positive   bool    // every positive finding goes to a person
	Margin     float64 // calibrated distance to the operating point below which a probability is borderline
}

// quarantined lists the reasons that make a case a matter for a security
// officer rather than a radiologist. Every other reason means review.
var quarantined = map[vigie.ReasonCode]bool{
	vigie.ReasonUnreadable: true,
	ReasonUnnamed:          true,
}

// Triage decides what happens with a diagnosed case. It is a pure function of
// the finding (nil when there is none), of the reasons that the gateway itself
// has against a release, and of the site's policy. A release has no reason at
// all; any doubt is a review; a corrupt object is a quarantine.
func Triage(finding *vigie.Finding, referrals []vigie.Reason, policy Policy) vigie.Verdict {
	var reasons []vigie.Reason
	add := func(more ...vigie.Reason) {
		for _, r := range more {
			known := false
			for _, have := range reasons {
				known = known || have.Code == r.Code && have.Detail == r.Detail
			}
			if !known {
				reasons = append(reasons, r)
			}
		}
	}
	add(referrals...)
	switch {
	case finding != nil:
		add(finding.Referrals...)
		add(guardReasons(finding.Guards)...)
		add(setReasons(finding)...)
		add(certificateReasons(finding)...)
		add(predictionReasons(finding.Predictions, policy, len(reasons) > 0)...)
	case len(referrals) == 0:
		add(reason(vigie.ReasonInternal, "no finding and no reason for its absence"))
	}
	if policy.Everything {
		add(reason(vigie.ReasonPolicy, "review.everything"))
	}

	verdict := vigie.Verdict{Decision: vigie.Release, Reasons: reasons}
	for _, r := range reasons {
		if quarantined[r.Code] {
			verdict.Decision = vigie.Quarantine
			return verdict
		}
		verdict.Decision = vigie.Review
	}
	return verdict
}

func guardReasons(guards []vigie.GuardResult) []vigie.Reason {
	var out []vigie.Reason
	for _, g := range guards {
		// A p-value outside (0, 1] is a broken guard, and a broken guard
		// vouches for nothing. The comparison also catches NaN.
		valid := g.PValue > 0 && g.PValue <= 1
		switch {
		case g.Alarm && g.Reason != nil:
			out = append(out, *g.Reason)
		case g.Alarm:
			out = append(out, reason(vigie.ReasonGuard, g.Guard))
		case !valid:
			out = append(out, reason(vigie.ReasonGuard, g.Guard+": p-value out of range"))
		}
	}
	return out
}

func predictionReasons(predictions []vigie.Prediction, policy Policy, explained bool) []vigie.Reason {
	if len(predictions) == 0 {
		if explained {
			return nil // the enclave already said why there is no answer
		}
		return []vigie.Reason{reason(vigie.ReasonImplausible, "a finding without predictions")}
	}
	var out []vigie.Reason
	for _, p := range predictions {
		inRange := p.Probability >= 0 && p.Probability <= 1 && p.Threshold >= 0 && p.Threshold <= 1
		switch {
		case !inRange:
			out = append(out, reason(vigie.ReasonImplausible, p.Label+": probability or operating point out of range"))
		case p.Positive != (p.Probability >= p.Threshold):
			out = append(out, reason(vigie.ReasonImplausible, p.Label+": positive contradicts its operating point"))
		case math.Abs(p.Probability-p.Threshold) < policy.Margin:
			// The number stays in the sealed finding: reasons are stored in clear.
			out = append(out, reason(vigie.ReasonBorderline, p.Label))
		case p.Positive && policy.Positive:
			out = append(out, reason(vigie.ReasonPolicy, p.Label+": review.positive"))
		}
	}
	return out
}

// maxGuardsText bounds what an audit record holds of the guards, in bytes.
const maxGuardsText = 512

// guardsText writes the guards' p-values for the audit log: "layers=0.31
// combined=0.0071!", an exclamation mark for an alarm. Rules that hold are left
// out: they say nothing that the digest of the finding does not prove. first is
// said before them.
func guardsText(guards []vigie.GuardResult, first ...string) string {
	var words []string
	length := 0
	for _, word := range first {
		if word != "" {
			words, length = append(words, word), length+len(word)+1
		}
	}
	for _, g := range guards {
		if g.PValue == 1 && !g.Alarm && g.Reason == nil {
			continue
		}
		word := fmt.Sprintf("%s=%.3g", g.Guard, g.PValue)
		if g.Alarm {
			word += "!"
		}
		if length += len(word) + 1; length > maxGuardsText-4 {
			return strings.Join(append(words, "…"), " ")
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}
