package model

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// ErrOutput is returned for an output that is not one number for each label.
var ErrOutput = errors.New("the model's output makes no sense")

// Predictions turns the model's output for one image (a number for each label,
// logits or probabilities as the manifest says) into predictions in the order
// of the labels. ErrOutput: too few or too many numbers, or not numbers.
func (p *Package) Predictions(output []float32) ([]vigie.Prediction, error) {
	m := p.Manifest
	labels := m.Output.Labels
	if len(output) != len(labels) {
		return nil, fmt.Errorf("model: reading the output of %s: %w: %d numbers for %d labels", m.Name, ErrOutput, len(output), len(labels))
	}
	plain, calibrated := make([]float64, len(output)), make([]float64, len(output))
	for i, v := range output {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, fmt.Errorf("model: reading the output of %s: %w: label %s is %v", m.Name, ErrOutput, labels[i].Name, v)
		}
		if m.Output.Activation == None && (v < 0 || v > 1) {
			return nil, fmt.Errorf("model: reading the output of %s: %w: label %s has probability %v", m.Name, ErrOutput, labels[i].Name, v)
		}
		plain[i], calibrated[i] = float64(v), p.Calibration.apply(float64(v))
	}
	raw, probability := probabilities(m.Output.Activation, plain), probabilities(m.Output.Activation, calibrated)
	predictions := make([]vigie.Prediction, len(labels))
	for i, label := range labels {
		predictions[i] = vigie.Prediction{
			Label: label.Name, Code: label.Code,
			Probability: probability[i], Raw: raw[i],
			Threshold: label.Threshold, Positive: probability[i] >= label.Threshold,
		}
	}
	return predictions, nil
}

// Review says why a person must look at predictions: the target's probability
// is in the borderline band, or a plausibility rule is broken. about may be
// nil or de-identified; a rule about the patient then has nothing to judge by
// and is passed over, so ask it of the original where that is at hand. Where
// nothing was predicted there is nothing implausible: somebody else must have
// said why.
func (m *Manifest) Review(predictions []vigie.Prediction, about *dicom.DataSet) []vigie.Reason {
	if len(predictions) == 0 {
		return nil
	}
	by := make(map[string]vigie.Prediction, len(predictions))
	for _, p := range predictions {
		by[p.Label] = p
	}
	var reasons []vigie.Reason
	if target, ok := by[m.Output.Target]; ok && m.Output.Borderline != nil {
		if band := m.Output.Borderline; target.Probability >= band.From && target.Probability <= band.To {
			reasons = append(reasons, vigie.Reason{Code: vigie.ReasonBorderline, Detail: m.Output.Target, Text: vigie.Text{
				English: fmt.Sprintf("The probability of %s, %.2f, is between %.2f and %.2f, where the model does not decide.", target.Code.Meaning, target.Probability, band.From, band.To),
				French:  fmt.Sprintf("La probabilité de « %s », %s, est entre %s et %s, où le modèle ne tranche pas.", or(target.Code.French, target.Code.Meaning), comma(target.Probability), comma(band.From), comma(band.To))}})
		}
	}
	for _, rule := range m.Plausibility {
		if text, broken := rule.broken(by, about); broken {
			if rule.Text != (Text{}) {
				text = rule.Text.Vigie()
			}
			reasons = append(reasons, vigie.Reason{Code: vigie.ReasonImplausible, Text: text, Detail: rule.Rule})
		}
	}
	return reasons
}

func comma(v float64) string { return strings.Replace(fmt.Sprintf("%.2f", v), ".", ",", 1) }

// broken judges predictions by a rule.
func (r Rule) broken(by map[string]vigie.Prediction, about *dicom.DataSet) (vigie.Text, bool) {
	positive := by[r.Label].Positive
	switch r.Rule {
	case SumsToOne:
		sum := 0.0
		for _, label := range r.Labels {
			sum += by[label].Probability
		}
		return vigie.Text{
			English: "The probabilities of labels that exclude each other do not sum to one.",
			French:  "La somme des probabilités de classes qui s’excluent n’est pas égale à un."}, !(math.Abs(sum-1) <= r.Tolerance)
	case Exclusive:
		count := 0
		for _, label := range r.Labels {
			if by[label].Positive {
				count++
			}
		}
		return vigie.Text{
			English: "Labels that exclude each other are positive together.",
			French:  "Des classes qui s’excluent sont positives ensemble."}, count > 1
	case SomeConfidence:
		highest := 0.0
		for _, label := range r.Labels {
			highest = max(highest, by[label].Probability)
		}
		return vigie.Text{
			English: "The model is sure of no label.",
			French:  "Le modèle n’est sûr d’aucune classe."}, highest < r.From
	case Implies:
		return vigie.Text{
			English: fmt.Sprintf("%s is positive without %s.", by[r.Label].Code.Meaning, by[r.Requires].Code.Meaning),
			French:  fmt.Sprintf("« %s » est positif sans « %s ».", by[r.Label].Code.French, by[r.Requires].Code.French)}, positive && !by[r.Requires].Positive
	case NeedsSex:
		sex := about.String(dicom.PatientSex)
		return vigie.Text{
			English: fmt.Sprintf("%s does not go with the patient's sex.", by[r.Label].Code.Meaning),
			French:  fmt.Sprintf("« %s » ne s’accorde pas avec le sexe du patient.", by[r.Label].Code.French)}, positive && sex != "" && !slices.Contains(r.Values, sex)
	case NeedsSide:
		side := about.String(dicom.ImageLaterality)
		if side == "" {
			side = about.String(dicom.Laterality)
		}
		return vigie.Text{
			English: fmt.Sprintf("%s does not go with the side that the image shows.", by[r.Label].Code.Meaning),
			French:  fmt.Sprintf("« %s » ne s’accorde pas avec le côté que montre l’image.", by[r.Label].Code.French)}, positive && side != "" && !slices.Contains(r.Values, side)
	case NeedsAge:
		years, known := ageOf(about)
		return vigie.Text{
			English: fmt.Sprintf("%s does not go with the patient's age.", by[r.Label].Code.Meaning),
			French:  fmt.Sprintf("« %s » ne s’accorde pas avec l’âge du patient.", by[r.Label].Code.French)}, positive && known && !(years >= r.From && years < r.To+1)
	}
	return vigie.Text{}, false
}
