package enclave

import (
	"fmt"
	"math"

	"github.com/vigie/vigie"
)

// The input rules ask of an image what every radiograph gives and no broken
// file does. They need no fitting: the limits are far outside anything that an
// X-ray detector, a window and a collimator produce. (On a real 2140×1760 chest
// radiograph: spread 0.71, commonest level 0.7 %, extremes 0.3 %, neighbours'
// correlation 0.997.) Guards that are fitted to a model's own data are separate.
const (
	minSpread      = 0.05 // of the brightness range, between the 1st and 99th percentile
	minLevels      = 16   // different levels of 1024
	maxModal       = 0.90 // share of one level: almost empty
	maxExtreme     = 0.80 // share of black and white: saturated
	minCorrelation = 0.40 // of neighbouring pixels: below, it is noise
	maxAspect      = 3.0  // longer side over shorter side
)

// inputRule is one row of the table of input rules.
type inputRule struct {
	name   string
	broken func(facts imageFacts, rows, columns int) (detail string, broken bool)
	text   vigie.Text
}

// inputRules are tried in this order; all that are broken are reported. rows
// and columns are the model's input: an image below it has less detail than
// the model was trained to see.
var inputRules = []inputRule{
	{"image-values", func(f imageFacts, _, _ int) (string, bool) {
		return fmt.Sprintf("%d values are not a brightness", f.outside), f.outside > 0
	}, vigie.Text{
		English: "The decoded image holds values that are not a brightness.",
		French:  "L’image décodée contient des valeurs qui ne sont pas une luminosité."}},
	{"image-geometry", func(f imageFacts, rows, columns int) (string, bool) {
		aspect := float64(max(f.rows, f.columns)) / float64(max(1, min(f.rows, f.columns)))
		return fmt.Sprintf("%d rows and %d columns, the model needs %d and %d", f.rows, f.columns, rows, columns),
			f.rows < rows || f.columns < columns || aspect > maxAspect
	}, vigie.Text{
		English: "The image is too small or too elongated for the model.",
		French:  "L’image est trop petite ou trop allongée pour le modèle."}},
	{"image-contrast", func(f imageFacts, _, _ int) (string, bool) {
		return fmt.Sprintf("spread %.3f, %d levels", f.spread, f.used), f.spread < minSpread || f.used < minLevels
	}, vigie.Text{
		English: "The image is constant or has almost no contrast.",
		French:  "L’image est uniforme ou presque sans contraste."}},
	{"image-content", func(f imageFacts, _, _ int) (string, bool) {
		return fmt.Sprintf("%.1f %% of the pixels are alike", 100*f.modal), f.modal > maxModal
	}, vigie.Text{
		English: "The image is almost empty.",
		French:  "L’image est presque vide."}},
	{"image-saturation", func(f imageFacts, _, _ int) (string, bool) {
		return fmt.Sprintf("%.1f %% of the pixels are black or white", 100*f.extreme), f.extreme > maxExtreme
	}, vigie.Text{
		English: "Most of the image is saturated, black or white.",
		French:  "La plus grande partie de l’image est saturée, noire ou blanche."}},
	{"image-noise", func(f imageFacts, _, _ int) (string, bool) {
		return fmt.Sprintf("correlation of neighbours %.2f", f.correlation), f.spread >= minSpread && f.correlation < minCorrelation // a flat image has no neighbours to compare
	}, vigie.Text{
		English: "The image looks like noise: neighbouring pixels are unrelated.",
		French:  "L’image ressemble à du bruit : les pixels voisins sont sans rapport."}},
}

// A rule is not a statistic, but a GuardResult wants a p-value in (0, 1]: 1
// where the rule holds, and where it is broken the smallest there is, because
// no acceptable image breaks it.
const (
	ruleHolds  = 1
	ruleBroken = math.SmallestNonzeroFloat64
)

// guardImage applies the input rules. Every alarm is also a reason, and any
// reason means that the image must not be analysed.
func guardImage(facts imageFacts, rows, columns int) (results []vigie.GuardResult, reasons []vigie.Reason) {
	for _, rule := range inputRules {
		detail, broken := rule.broken(facts, rows, columns)
		result := vigie.GuardResult{Guard: rule.name, PValue: ruleHolds}
		if broken {
			why := vigie.Reason{Code: vigie.ReasonGuard, Text: rule.text, Detail: rule.name + ": " + detail}
			result = vigie.GuardResult{Guard: rule.name, PValue: ruleBroken, Alarm: true, Reason: &why}
			reasons = append(reasons, why)
		}
		results = append(results, result)
		if broken && facts.outside > 0 { // nothing further can be said of it
			break
		}
	}
	return results, reasons
}
