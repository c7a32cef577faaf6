package model

import (
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie"
)

// Prior is what an earlier study of the same patient said.
type Prior struct {
	Days    float64 // how long before this one, at least 0
	Answers []PriorAnswer
}

// PriorAnswer is what was said of one concept.
type PriorAnswer struct {
	Label    string // as the model of that time named it
	Code     vigie.Code
	Positive bool
	// Probability is the model's, calibrated; NaN where a person said it, or
	// another model, whose numbers do not compare.
	Probability float64
}

// of is the answer about the concept of a prediction, whatever the label was
// called then; of several with one code, that of the same name. -1: there is none.
func (p Prior) of(now vigie.Prediction) int {
	same := func(a PriorAnswer) bool { return a.Code.Value == now.Code.Value && a.Code.Scheme == now.Code.Scheme }
	if i := slices.IndexFunc(p.Answers, func(a PriorAnswer) bool { return same(a) && a.Label == now.Label }); i >= 0 {
		return i
	}
	return slices.IndexFunc(p.Answers, same)
}

// PriorDays is how many days back an earlier study can matter: 0 where no rule
// asks for one.
func (m *Manifest) PriorDays() (days int) {
	for _, r := range m.Plausibility {
		if r.Rule == AgreesWithPrior {
			days = max(days, r.Days)
		}
	}
	return days
}

// CheckPriors compares predictions with earlier studies of the same patient, by
// the rules agrees-with-prior: of each label, with the latest study within the
// rule's days that speaks of the same concept. Package enclave has no priors: ask
// it where cases are kept.
func (m *Manifest) CheckPriors(predictions []vigie.Prediction, priors []Prior) []vigie.Reason {
	var reasons []vigie.Reason
	for _, r := range m.Plausibility {
		at := slices.IndexFunc(predictions, func(p vigie.Prediction) bool { return p.Label == r.Label })
		if r.Rule != AgreesWithPrior || at < 0 {
			continue
		}
		now := predictions[at]
		days, before := math.Inf(1), PriorAnswer{}
		for _, prior := range priors {
			i := prior.of(now)
			if i >= 0 && prior.Days >= 0 && prior.Days <= float64(r.Days) && prior.Days < days {
				days, before = prior.Days, prior.Answers[i]
			}
		}
		if math.IsInf(days, 1) {
			continue
		}
		english, french := "earlier the same day", "plus tôt le même jour"
		if n := math.Round(days); n == 1 {
			english, french = "one day earlier", "un jour plus tôt"
		} else if n > 1 {
			english, french = fmt.Sprintf("%.0f days earlier", n), fmt.Sprintf("%.0f jours plus tôt", n)
		}
		var text vigie.Text
		meaning, translated := now.Code.Meaning, or(now.Code.French, now.Code.Meaning)
		switch jump := now.Probability - before.Probability; {
		case before.Positive && !now.Positive && (r.Flips == FlipGone || r.Flips == FlipBoth):
			text = vigie.Text{
				English: fmt.Sprintf("%s was found in a study of this patient %s; the model does not find it now.", meaning, english),
				French:  fmt.Sprintf("« %s » a été trouvé chez ce patient lors d’un examen %s ; le modèle ne le trouve plus.", translated, french)}
		case !before.Positive && now.Positive && (r.Flips == FlipAppeared || r.Flips == FlipBoth):
			text = vigie.Text{
				English: fmt.Sprintf("%s was not found in a study of this patient %s; the model finds it now.", meaning, english),
				French:  fmt.Sprintf("« %s » n’avait pas été trouvé chez ce patient lors d’un examen %s ; le modèle le trouve maintenant.", translated, french)}
		case r.Jump > 0 && math.Abs(jump) > r.Jump: // false where the prior has no number
			text = vigie.Text{
				English: fmt.Sprintf("The model's probability of %s changed from %.2f to %.2f since a study of this patient %s.", meaning, before.Probability, now.Probability, english),
				French:  fmt.Sprintf("La probabilité de « %s » selon le modèle est passée de %s à %s depuis un examen de ce patient %s.", translated, comma(before.Probability), comma(now.Probability), french)}
		default:
			continue
		}
		if r.Text != (Text{}) {
			text = r.Text.Vigie()
		}
		reasons = append(reasons, vigie.Reason{Code: vigie.ReasonPrior, Text: text, Detail: AgreesWithPrior})
	}
	return reasons
}
