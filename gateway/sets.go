package gateway

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom/report"
)

// setReasons is what triage makes of prediction sets: one that holds several
// answers goes to a person whether or not the enclave said so, and one that
// contradicts itself or the answer vouches for nothing.
func setReasons(f *vigie.Finding) (reasons []vigie.Reason) {
	said := slices.ContainsFunc(f.Referrals, func(r vigie.Reason) bool { return r.Code == vigie.ReasonUndecided })
	for _, s := range f.Sets {
		switch {
		case len(s.Holds) == 0 || !(s.Coverage >= 0 && s.Coverage <= 1):
			reasons = append(reasons, reason(vigie.ReasonImplausible, "a prediction set without answers or coverage"))
		case !answersHold(s, f.Predictions):
			reasons = append(reasons, reason(vigie.ReasonImplausible, "a prediction set does not hold the answer"))
		case !s.Decided() && !said:
			reasons = append(reasons, reason(vigie.ReasonUndecided, strings.Join(s.Holds, ", ")))
		}
	}
	return reasons
}

// answersHold reports whether a set is about labels that are predicted and holds
// what the model answers. Where several labels that exclude each other are
// positive, or none, another rule says so.
func answersHold(s vigie.LabelSet, predictions []vigie.Prediction) bool {
	positives, answer := 0, ""
	for _, p := range predictions {
		if p.Label == s.Label {
			want := vigie.SetAbsent
			if p.Positive {
				want = vigie.SetPresent
			}
			return slices.Contains(s.Holds, want)
		}
		if p.Positive {
			positives, answer = positives+1, p.Label
		}
	}
	return s.Label == "" && (positives != 1 || slices.Contains(s.Holds, answer))
}

// setText writes a prediction set for a terminal.
func setText(s vigie.LabelSet) string {
	about := ""
	if s.Label != "" {
		about = s.Label + ": "
	}
	verdict := "decided"
	if !s.Decided() {
		verdict = "not decided"
	}
	return fmt.Sprintf("%s{%s} at a coverage of %.4g %%, %s", about, strings.Join(s.Holds, ", "), 100*s.Coverage, verdict)
}

// setsWord is what the audit record says of the sets: how many answers the largest
// holds, at which coverage; an exclamation mark where it decides nothing.
func setsWord(f *vigie.Finding) string {
	if len(f.Sets) == 0 {
		return ""
	}
	largest := slices.MaxFunc(f.Sets, func(a, b vigie.LabelSet) int { return len(a.Holds) - len(b.Holds) })
	word := fmt.Sprintf("sets=%d@%.4g", len(largest.Holds), largest.Coverage)
	if !largest.Decided() {
		word += "!"
	}
	return word
}

// setRemarks say in a report which answers the model's calibration leaves open. The
// sentence of an undecided set is among the verdict's reasons.
func setRemarks(f *vigie.Finding) (out []report.Text) {
	for _, s := range f.Sets {
		if s.Label != "" || !s.Decided() {
			continue
		}
		code := vigie.Code{Meaning: s.Holds[0], French: s.Holds[0]}
		for _, p := range f.Predictions {
			if p.Label == s.Holds[0] {
				code = p.Code
			}
		}
		french := code.French
		if french == "" {
			french = code.Meaning
		}
		percent := fmt.Sprintf("%.4g", 100*s.Coverage)
		out = append(out, report.Text{
			English: fmt.Sprintf("At a coverage of %s %%, the model's calibration leaves only one answer: %s.", percent, code.Meaning),
			French:  fmt.Sprintf("Au taux de couverture de %s %%, l’étalonnage du modèle ne laisse qu’une réponse : « %s ».", strings.Replace(percent, ".", ",", 1), french)})
	}
	return out
}
