package model

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// greyscaleOnly are modalities whose image IODs (PS3.3) allow no colour: what
// claims to be one of them in colour is a photograph or a screenshot.
var greyscaleOnly = []string{"CR", "CT", "DX", "IO", "MG", "MR", "PX", "RG"}

const viewCodeSequence dicom.Tag = 0x00540220

// What a reason's Detail begins with: whether the image is outside what the
// manifest accepts, or does not say.
const (
	detailBlocked = "blocked: "
	detailOutside = "outside: "
	detailUnknown = "unknown: "
)

// Check says what about the kind of image is outside the manifest: modality,
// SOP class, frames, body part, view. It looks only at attributes that survive
// de-identification, so that it answers alike on the original and on the copy.
// See Blocking for which reasons forbid the analysis.
func (m *Manifest) Check(d *dicom.DataSet) []vigie.Reason {
	var reasons []vigie.Reason
	add := func(policy Policy, code vigie.ReasonCode, detail string, text vigie.Text) {
		switch policy {
		case Accept:
			return
		case Block:
			detail = detailBlocked + detail
		}
		reasons = append(reasons, vigie.Reason{Code: code, Text: text, Detail: detail})
	}
	a := &m.Accepts
	if class := d.UID(dicom.SOPClassUID); !slices.Contains(a.SOPClasses, class) {
		add(Block, vigie.ReasonModality, detailOutside+"SOP class "+shown(class, "0123456789.", 64), vigie.Text{
			English: "The object is not of a kind (SOP class) that the model reads.",
			French:  "L’objet n’est pas d’un type (classe SOP) que le modèle lit."})
	}
	switch modality := d.String(dicom.Modality); {
	case modality == "":
		add(Review, vigie.ReasonModality, detailUnknown+"modality", vigie.Text{
			English: "The object does not say which modality made it.",
			French:  "L’objet n’indique pas sa modalité."})
	case !slices.Contains(a.Modalities, modality):
		modality = shown(modality, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", 10)
		add(Block, vigie.ReasonModality, detailOutside+"modality "+modality, vigie.Text{
			English: fmt.Sprintf("The model reads %s, not %s.", strings.Join(a.Modalities, ", "), modality),
			French:  fmt.Sprintf("Le modèle lit %s, et non %s.", strings.Join(a.Modalities, ", "), modality)})
	}
	if frames, ok := d.Int(dicom.NumberOfFrames); ok && frames > int64(a.Frames) {
		add(Block, vigie.ReasonPixels, detailOutside+"frames", vigie.Text{
			English: fmt.Sprintf("The object has more frames than the %d that the model reads.", a.Frames),
			French:  fmt.Sprintf("L’objet a plus d’images que le modèle n’en lit (%d).", a.Frames)})
	}
	if samples, ok := d.Int(dicom.SamplesPerPixel); ok && samples > 1 && slices.Contains(greyscaleOnly, d.String(dicom.Modality)) {
		add(Block, vigie.ReasonPixels, detailOutside+"colour", vigie.Text{
			English: "The image is in colour; the model reads greyscale images.",
			French:  "L’image est en couleur ; le modèle lit des images en niveaux de gris."})
	}
	switch where, other := locate(d, dicom.BodyPartExamined, dicom.AnatomicRegionSequence, a.BodyParts, regions); where {
	case outside:
		add(Block, vigie.ReasonBodyPart, detailOutside+"body part "+other.English, vigie.Text{
			English: fmt.Sprintf("The image shows %s; the model reads %s.", or(other.English, "another body part"), terms(a.BodyParts, regions, false)),
			French:  fmt.Sprintf("L’image montre : %s ; le modèle lit : %s.", or(other.French, "une autre partie du corps"), terms(a.BodyParts, regions, true))})
	case unknown:
		add(a.UnknownBodyPart, vigie.ReasonBodyPart, detailUnknown+"body part", vigie.Text{
			English: fmt.Sprintf("The image does not clearly say which body part it shows; the model reads %s.", terms(a.BodyParts, regions, false)),
			French:  fmt.Sprintf("L’image n’indique pas clairement la partie du corps ; le modèle lit : %s.", terms(a.BodyParts, regions, true))})
	}
	if len(a.Views) > 0 {
		switch where, other := locate(d, dicom.ViewPosition, viewCodeSequence, a.Views, projections); where {
		case outside:
			add(a.OtherView, vigie.ReasonView, detailOutside+"view "+other.English, vigie.Text{
				English: fmt.Sprintf("The projection is %s; the model was made for %s.", or(other.English, "another one"), terms(a.Views, projections, false)),
				French:  fmt.Sprintf("L’incidence est : %s ; le modèle est fait pour : %s.", or(other.French, "une autre"), terms(a.Views, projections, true))})
		case unknown:
			add(a.UnknownView, vigie.ReasonView, detailUnknown+"view", vigie.Text{
				English: fmt.Sprintf("The image does not say its projection; the model was made for %s.", terms(a.Views, projections, false)),
				French:  fmt.Sprintf("L’image n’indique pas son incidence ; le modèle est fait pour : %s.", terms(a.Views, projections, true))})
		}
	}
	return reasons
}

// CheckPatient says whether the patient's age is outside the manifest. Age
// does not survive de-identification: ask it of the original. The age itself
// is in no reason.
func (m *Manifest) CheckPatient(d *dicom.DataSet) []vigie.Reason {
	ages := m.Accepts.Age
	if ages == nil {
		return nil
	}
	years, known := ageOf(d)
	policy, reason := Accept, vigie.Reason{Code: vigie.ReasonAge}
	switch {
	case !known:
		policy, reason.Detail = ages.Unknown, detailUnknown+"age"
		reason.Text = vigie.Text{
			English: fmt.Sprintf("The patient's age is not known; the model was validated from %d to %d years.", ages.From, ages.To),
			French:  fmt.Sprintf("L’âge du patient n’est pas connu ; le modèle est validé de %d à %d ans.", ages.From, ages.To)}
	case years < float64(ages.From) || years >= float64(ages.To+1):
		policy, reason.Detail = ages.Outside, detailOutside+"age"
		reason.Text = vigie.Text{
			English: fmt.Sprintf("The patient's age is outside what the model was validated for (%d to %d years).", ages.From, ages.To),
			French:  fmt.Sprintf("L’âge du patient est hors du domaine de validation du modèle (%d à %d ans).", ages.From, ages.To)}
	case agesDisagree(d):
		policy, reason.Detail = ages.Unknown, detailUnknown+"age and birth date disagree"
		reason.Text = vigie.Text{
			English: "The patient's age and birth date contradict each other; check that the image is of this patient.",
			French:  "L’âge et la date de naissance du patient se contredisent ; vérifiez que l’image est bien celle de ce patient."}
	}
	switch policy {
	case Accept:
		return nil
	case Block:
		reason.Detail = detailBlocked + reason.Detail
	}
	return []vigie.Reason{reason}
}

// Blocking reports whether a reason of Check or CheckPatient forbids the
// analysis: the model was not made for such an image and its answer would mean
// nothing. Other reasons send the answer to a person together with the image.
func Blocking(r vigie.Reason) bool { return strings.HasPrefix(r.Detail, detailBlocked) }

// daysPerYear is the mean length of a year.
const daysPerYear = 365.25

// ageOf returns the age in years at the time of the study: Patient's Age, or
// else the difference of Study Date and birth date.
func ageOf(d *dicom.DataSet) (float64, bool) {
	if age, ok := dicom.ParseAge(d.String(dicom.PatientAge)); ok {
		if age.Unit == 'M' {
			return float64(age.Count) / 12, true // exact at birthdays, which the ends of a range are
		}
		return age.Years(), true
	}
	return ageAtStudy(d)
}

// agesDisagree reports whether Patient's Age and the dates are both there and
// two years or more apart: less is rounding, or an age counted to another day.
func agesDisagree(d *dicom.DataSet) bool {
	age, stated := dicom.ParseAge(d.String(dicom.PatientAge))
	years, dated := ageAtStudy(d)
	return stated && dated && math.Abs(age.Years()-years) >= 2
}

// ageAtStudy is the difference of Study Date and birth date in years.
func ageAtStudy(d *dicom.DataSet) (float64, bool) {
	born, known := d.Date(dicom.PatientBirthDate)
	study, dated := d.Date(dicom.StudyDate)
	if !known || !dated || study.Before(born) {
		return 0, false
	}
	years := study.Year() - born.Year()
	birthday := born.AddDate(years, 0, 0)
	if study.Before(birthday) {
		years--
		birthday = born.AddDate(years, 0, 0)
	}
	return float64(years) + min(study.Sub(birthday).Hours()/24/daysPerYear, 0.999), true
}

// shown returns a value that consists of expected characters, and otherwise
// only says that it does not: an attribute can hold anything, also a name.
func shown(value, allowed string, most int) string {
	if value == "" {
		return "none"
	}
	if len(value) > most || strings.Trim(value, allowed) != "" {
		return "not a registered one"
	}
	return value
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// terms lists places for a sentence, in words where the vocabulary has them.
func terms(places []Place, vocabulary map[string]vigie.Text, french bool) string {
	var names []string
	for _, place := range places {
		name := place.Term
		if words, ok := vocabulary[place.Term]; ok {
			if name = words.English; french {
				name = words.French
			}
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}
