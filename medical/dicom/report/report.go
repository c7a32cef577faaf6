// Package report turns the answer of a model about one image into DICOM objects
// that go back beside the image: a structured report (Comprehensive SR with
// template TID 1500, "Measurement Report") and a Secondary Capture that shows
// where the model looked.
//
//	sr, err := report.StructuredReport(source, result)
//	picture, err := report.Overlay(luminance, heat, caption)
//	sc, err := report.SecondaryCapture(source, picture, capture)
//
// Both take the source's data set with its identity, since they belong to the
// same patient and study: patient and study attributes are copied, character
// set converted to UTF-8. UIDs and time are the caller's, so that the same
// answer always gives the same bytes and a second delivery is no second object.
//
// The package knows of no model: names, codes, probabilities and sentences are
// given to it.
package report

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

// ErrSource is returned for a source that cannot be referred to: it lacks a
// UID that names it, its series or its study.
var ErrSource = errors.New("the source image cannot be referenced")

// SOP classes that this package writes (PS3.4 B.5).
const (
	ComprehensiveSR       = "1.2.840.10008.5.1.4.1.1.88.33"
	SecondaryCaptureImage = "1.2.840.10008.5.1.4.1.1.7"
)

// Code is a coded concept (PS3.16 section 8).
type Code struct {
	Value   string // up to 16 characters
	Scheme  string // "SCT", "DCM", "UCUM", "RADLEX", …
	Meaning string // up to 64 characters
}

// Text is a sentence in both languages of the reports.
type Text struct{ English, French string }

// Model names what answered.
type Model struct {
	Name         string
	Version      string
	Digest       string // of the exact package; goes into Algorithm Parameters
	Manufacturer string
	DeviceUID    string // of the installation that ran it; empty leaves it out
}

// Finding is what was said about one label.
type Finding struct {
	Code        Code
	French      string  // the code's meaning in French
	TrackingUID string  // of this observation, stable over deliveries
	Probability float64 // calibrated, 0..1; not used when ByPerson
	Threshold   float64 // operating point on the same scale
	Positive    bool    // at or above the threshold, or found by the person
	ByPerson    bool    // a physician's judgement replaced the model's
}

// Reviewer is the person who is said to have decided: an observer of the
// report (TID 1003), not its verifier.
type Reviewer struct {
	Name         string // PN
	Organization string
}

// Result is everything that a structured report says.
type Result struct {
	SeriesUID, InstanceUID       string
	SeriesNumber, InstanceNumber int
	Time                         time.Time // of the content
	Model                        Model
	Findings                     []Finding
	Remarks                      []Text // reasons, limits, instructions; shown as they are
	Reviewer                     *Reviewer
}

// source attributes that make the same patient and study (PS3.3 C.7.1.1,
// C.7.2.1, C.7.2.2).
var inherited = []dicom.Tag{
	dicom.PatientName, dicom.PatientID, dicom.IssuerOfPatientID, dicom.IssuerOfPatientIDQualifiersSequence,
	dicom.PatientBirthDate, dicom.PatientBirthTime, dicom.PatientSex, dicom.OtherPatientIDsSequence, dicom.EthnicGroup,
	dicom.PatientAge, dicom.PatientSize, dicom.PatientWeight,
	dicom.PatientIdentityRemoved, dicom.DeidentificationMethod, dicom.DeidentificationMethodCodeSequence,
	dicom.StudyInstanceUID, dicom.StudyDate, dicom.StudyTime, dicom.StudyID, dicom.AccessionNumber,
	dicom.ReferringPhysicianName, dicom.StudyDescription, dicom.ProcedureCodeSequence, dicom.ReferencedStudySequence,
	dicom.TimezoneOffsetFromUTC,
}

// required of those, empty when the source has none (type 2).
var required = []dicom.Tag{
	dicom.PatientName, dicom.PatientID, dicom.PatientBirthDate, dicom.PatientSex,
	dicom.StudyDate, dicom.StudyTime, dicom.StudyID, dicom.AccessionNumber, dicom.ReferringPhysicianName,
}

// reference is how the source is pointed at.
type reference struct{ class, instance, series, study string }

func referenceTo(source *dicom.DataSet) (reference, error) {
	r := reference{source.UID(dicom.SOPClassUID), source.UID(dicom.SOPInstanceUID), source.UID(dicom.SeriesInstanceUID), source.UID(dicom.StudyInstanceUID)}
	for _, part := range []struct {
		uid string
		tag dicom.Tag
	}{{r.class, dicom.SOPClassUID}, {r.instance, dicom.SOPInstanceUID}, {r.series, dicom.SeriesInstanceUID}, {r.study, dicom.StudyInstanceUID}} {
		if part.uid == "" {
			return r, fmt.Errorf("report: %w: it has no %s", ErrSource, part.tag)
		}
	}
	return r, nil
}

// item is the reference as an item of a sequence (PS3.3 table 10-11).
func (r reference) item() *dicom.DataSet {
	d := new(dicom.DataSet)
	d.PutString(dicom.ReferencedSOPClassUID, r.class)
	d.PutString(dicom.ReferencedSOPInstanceUID, r.instance)
	return d
}

// begin makes a data set of the source's patient and study.
func begin(source *dicom.DataSet, sopClass, modality, seriesUID, instanceUID string, series, instance int, at time.Time) (*dicom.DataSet, error) {
	if seriesUID == "" || instanceUID == "" {
		return nil, errors.New("report: the result names no series or instance UID: derive them from the case and the model, so that a repeat is the same object")
	}
	if at.IsZero() {
		return nil, errors.New("report: the result has no time")
	}
	d := new(dicom.DataSet)
	d.PutString(dicom.SpecificCharacterSet, "ISO_IR 192")
	d.Copy(source, inherited...)
	dropMalformed(d)
	for _, tag := range required {
		if !d.Has(tag) {
			d.PutString(tag)
		}
	}
	d.PutString(dicom.SOPClassUID, sopClass)
	d.PutString(dicom.SOPInstanceUID, instanceUID)
	d.PutString(dicom.SeriesInstanceUID, seriesUID)
	d.PutString(dicom.Modality, modality)
	d.PutInt(dicom.SeriesNumber, int64(series))
	d.PutInt(dicom.InstanceNumber, int64(instance))
	d.PutDate(dicom.ContentDate, at)
	d.PutTime(dicom.ContentTime, at)
	d.PutDate(dicom.SeriesDate, at)
	d.PutTime(dicom.SeriesTime, at)
	d.PutDate(dicom.InstanceCreationDate, at)
	d.PutTime(dicom.InstanceCreationTime, at)
	if !source.Has(dicom.TimezoneOffsetFromUTC) {
		d.PutString(dicom.TimezoneOffsetFromUTC, at.Format("-0700"))
	}
	return d, nil
}

// dropMalformed takes out inherited values that their attribute cannot hold: a
// source that breaks the standard must not make a result that does, and an
// archive may refuse one. What a type 2 attribute loses is left empty.
func dropMalformed(d *dicom.DataSet) {
	for tag, wellFormed := range map[dicom.Tag]func(dicom.Tag) bool{
		dicom.PatientAge:       func(tag dicom.Tag) bool { _, ok := d.Age(tag); return ok },
		dicom.PatientSize:      func(tag dicom.Tag) bool { _, ok := d.Float(tag); return ok },
		dicom.PatientWeight:    func(tag dicom.Tag) bool { _, ok := d.Float(tag); return ok },
		dicom.PatientBirthDate: func(tag dicom.Tag) bool { _, ok := d.Date(tag); return ok },
		dicom.StudyDate:        func(tag dicom.Tag) bool { _, ok := d.Date(tag); return ok },
		dicom.PatientBirthTime: func(tag dicom.Tag) bool { _, ok := d.Time(tag); return ok },
		dicom.StudyTime:        func(tag dicom.Tag) bool { _, ok := d.Time(tag); return ok },
		dicom.PatientSex:       func(tag dicom.Tag) bool { return slices.Contains([]string{"M", "F", "O"}, d.String(tag)) },
	} {
		if !d.Empty(tag) && !wellFormed(tag) {
			d.Delete(tag)
		}
	}
}

// equipment puts what made the object (PS3.3 C.7.5.1).
func equipment(d *dicom.DataSet, m Model) {
	d.PutString(dicom.Manufacturer, clip(m.Manufacturer, 64))
	d.PutString(dicom.ManufacturerModelName, clip(m.Name, 64))
	d.PutString(dicom.SoftwareVersions, clip(m.Version, 64))
}

// clip cuts a text to what its VR holds, and takes out what separates values.
func clip(text string, length int) string {
	out := make([]rune, 0, length)
	for _, r := range text {
		if len(out) == length {
			break
		}
		if r == '\\' || r < ' ' {
			r = ' '
		}
		out = append(out, r)
	}
	return string(out)
}

// item makes the item of a code sequence.
func (c Code) item() *dicom.DataSet {
	d := new(dicom.DataSet)
	d.PutString(dicom.CodeValue, clip(c.Value, 16))
	d.PutString(dicom.CodingSchemeDesignator, clip(c.Scheme, 16))
	d.PutString(dicom.CodeMeaning, clip(c.Meaning, 64))
	return d
}
