package gateway

import (
	"fmt"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom/report"
)

// mapTexts is what is said of a finding's map wherever it is shown or spoken of.
type mapTexts struct {
	warning    report.Text   // over the picture; empty for a map that passed, or none
	caption    []report.Text // under the picture
	report     []report.Text // in the structured report
	series     string        // description of the picture's series
	derivation string        // how the picture came about
	comment    report.Text   // what follows the picture's general comment
}

// mapRemarks are the texts about the map of a finding. A map is never shown
// without its label, and one that did not pass is named so in every attribute
// that a viewer may show: a list of series shows neither picture nor report.
func mapRemarks(f *vigie.Finding) mapTexts {
	named := f.ModelName + " " + f.ModelVersion
	t := mapTexts{series: "AI overlay " + f.ModelName, derivation: "The image with the answer of " + named}
	e := f.Explanation
	if e == nil {
		return t
	}
	label := e.Label()
	whole := report.Text{English: sentences(label.English, e.Text.English), French: sentences(label.French, e.Text.French)}
	if !e.Shown() {
		if strings.TrimSpace(e.Text.English) != "" { // it says that there is none, and why
			whole = report.Text(e.Text)
		}
		t.caption, t.report = []report.Text{whole}, []report.Text{whole}
		t.series = "AI result, no map, " + f.ModelName
		return t
	}
	t.derivation = fmt.Sprintf("Relevance map of %s by %s drawn over the image. %s", named, e.Method, whole.English)
	t.report = []report.Text{{
		English: fmt.Sprintf("Relevance map (%s): %s", e.Method, whole.English),
		French:  fmt.Sprintf("Carte de pertinence (%s) : %s", e.Method, whole.French)}}
	target := targetCode(f)
	t.caption = []report.Text{{
		English: fmt.Sprintf("Colour: what the model counts in favour of %s (%s); it is not a lesion.", target.Meaning, e.Method),
		French:  fmt.Sprintf("Couleur : ce que le modèle retient en faveur de « %s » (%s) ; ce n’est pas une lésion.", target.French, e.Method)}}
	t.comment = report.Text{English: ". " + label.English, French: ". " + label.French}
	if e.Passed() {
		t.caption = append(t.caption, whole)
		return t
	}
	t.caption = []report.Text{{
		English: fmt.Sprintf("Colour: what %s marks for %s; the model's answer was not shown to rest on it.", e.Method, target.Meaning),
		French:  fmt.Sprintf("Couleur : ce que %s marque pour « %s » ; il n’est pas établi que la réponse du modèle repose dessus.", e.Method, target.French)}}
	t.warning = report.Text(label)
	if e.Text.English != "" {
		t.caption = append(t.caption, report.Text(e.Text))
	}
	t.series = "AI overlay, map NOT RELIABLE, " + f.ModelName
	return t
}

// targetCode is the coded label that the map of a finding is about.
func targetCode(f *vigie.Finding) vigie.Code {
	for _, p := range f.Predictions {
		if p.Label == f.Explanation.Target {
			return p.Code
		}
	}
	return vigie.Code{Meaning: f.Explanation.Target, French: f.Explanation.Target}
}

// mapDecision says for the audit log what became of the map of a diagnosis: the
// method and the verdict, no score, which would be a datum of the patient. The
// scores are in the signed finding, whose digest is the record's output.
func mapDecision(f *vigie.Finding) string {
	if f == nil || f.Explanation == nil {
		return ""
	}
	e := f.Explanation
	verdict := e.Verdict
	if verdict == "" {
		verdict = vigie.MapUntested
	}
	return strings.TrimSpace("map " + string(verdict) + " " + e.Method)
}

// sentences joins those that are not empty.
func sentences(list ...string) string { return joined(" ", list...) }

// joined joins those that are not empty.
func joined(with string, list ...string) string {
	var out []string
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return strings.Join(out, with)
}

// MapText says in one line what is known of a finding's map, for a terminal:
// empty where the model's package wants none.
func MapText(f *vigie.Finding) string {
	if f == nil || f.Explanation == nil {
		return ""
	}
	e := f.Explanation
	if e.Verdict == vigie.MapNone {
		return "none"
	}
	verdict := e.Verdict
	if verdict == "" {
		verdict = vigie.MapUntested
	}
	text := fmt.Sprintf("%s %s", e.Method, verdict)
	if t := e.Tests; t != nil && t.P != nil {
		text += fmt.Sprintf(", p = %.3f against %d random maps", *t.P, t.RandomMaps)
	}
	return text
}
