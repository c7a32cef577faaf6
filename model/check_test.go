package model

import (
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

func demo(t testing.TB) *Manifest {
	t.Helper()
	m, err := ParseManifest([]byte(demoManifest(t)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// chest returns the attributes of an image that the demo model reads.
func chest(changes ...func(*dicom.DataSet)) *dicom.DataSet {
	d := &dicom.DataSet{}
	d.PutString(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.1")
	d.PutString(dicom.Modality, "CR")
	d.PutString(dicom.BodyPartExamined, "CHEST")
	d.PutString(dicom.ViewPosition, "AP")
	d.PutString(dicom.PatientAge, "004Y")
	for _, change := range changes {
		change(d)
	}
	return d
}

func put(tag dicom.Tag, values ...string) func(*dicom.DataSet) {
	return func(d *dicom.DataSet) { d.PutString(tag, values...) }
}

func drop(tag dicom.Tag) func(*dicom.DataSet) { return func(d *dicom.DataSet) { d.Delete(tag) } }

func code(sequence dicom.Tag, value, scheme string) func(*dicom.DataSet) {
	return func(d *dicom.DataSet) {
		item := &dicom.DataSet{}
		item.PutString(dicom.CodeValue, value)
		item.PutString(dicom.CodingSchemeDesignator, scheme)
		d.PutItems(sequence, item)
	}
}

func TestAnImageOutsideTheManifestIsBlockedOrReviewed(t *testing.T) {
	m := demo(t)
	for name, c := range map[string]struct {
		d        *dicom.DataSet
		code     vigie.ReasonCode // "" for none
		blocking bool
	}{
		"a chest":                        {chest(), "", false},
		"a photograph":                   {chest(func(d *dicom.DataSet) { d.PutInt(dicom.SamplesPerPixel, 3) }), vigie.ReasonPixels, true},
		"a thorax":                       {chest(put(dicom.BodyPartExamined, "THORAX")), "", false},
		"a portable chest":               {chest(put(dicom.BodyPartExamined, "PORT CHEST")), "", false},
		"chest in lower case":            {chest(put(dicom.BodyPartExamined, "Chest")), "", false},
		"a chest by code":                {chest(drop(dicom.BodyPartExamined), code(dicom.AnatomicRegionSequence, "51185008", "SCT")), "", false},
		"a chest by old code":            {chest(drop(dicom.BodyPartExamined), code(dicom.AnatomicRegionSequence, "T-D3000", "SRT")), "", false},
		"a view by code":                 {chest(drop(dicom.ViewPosition), code(viewCodeSequence, "272479007", "SCT")), "", false},
		"DX":                             {chest(put(dicom.Modality, "DX"), put(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.1.1")), "", false},
		"MR":                             {chest(put(dicom.Modality, "MR")), vigie.ReasonModality, true},
		"no modality":                    {chest(drop(dicom.Modality)), vigie.ReasonModality, false},
		"a CT object that says CR":       {chest(put(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.2")), vigie.ReasonModality, true},
		"no SOP class":                   {chest(drop(dicom.SOPClassUID)), vigie.ReasonModality, true},
		"an abdomen":                     {chest(put(dicom.BodyPartExamined, "ABDOMEN")), vigie.ReasonBodyPart, true},
		"an abdomen by code":             {chest(drop(dicom.BodyPartExamined), code(dicom.AnatomicRegionSequence, "818981001", "SCT")), vigie.ReasonBodyPart, true},
		"chest and abdomen":              {chest(put(dicom.BodyPartExamined, "CHEST ABDOMEN")), vigie.ReasonBodyPart, false},
		"chest by word, abdomen by code": {chest(code(dicom.AnatomicRegionSequence, "818981001", "SCT")), vigie.ReasonBodyPart, false},
		"a word nobody knows":            {chest(put(dicom.BodyPartExamined, "GARANCE")), vigie.ReasonBodyPart, false},
		"no body part":                   {chest(drop(dicom.BodyPartExamined)), vigie.ReasonBodyPart, false},
		"a local code":                   {chest(drop(dicom.BodyPartExamined), code(dicom.AnatomicRegionSequence, "CH1", "99WARD")), vigie.ReasonBodyPart, false},
		"a lateral":                      {chest(put(dicom.ViewPosition, "LL")), vigie.ReasonView, false},
		"no view":                        {chest(drop(dicom.ViewPosition)), vigie.ReasonView, false},
		"an empty view":                  {chest(put(dicom.ViewPosition)), vigie.ReasonView, false},
		"a cine loop":                    {chest(func(d *dicom.DataSet) { d.PutInt(dicom.NumberOfFrames, 60) }), vigie.ReasonPixels, true},
		"one frame":                      {chest(func(d *dicom.DataSet) { d.PutInt(dicom.NumberOfFrames, 1) }), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			reasons := m.Check(c.d)
			if c.code == "" {
				if len(reasons) > 0 {
					t.Errorf("objections: %v", reasons)
				}
				return
			}
			if len(reasons) != 1 || reasons[0].Code != c.code || Blocking(reasons[0]) != c.blocking {
				t.Fatalf("got %+v, want one of %s, blocking %v", reasons, c.code, c.blocking)
			}
			if reasons[0].Text.English == "" || reasons[0].Text.French == "" || reasons[0].Text.English == reasons[0].Text.French {
				t.Errorf("texts: %+v", reasons[0].Text)
			}
		})
	}
}

func TestAgeIsCheckedOnTheOriginalAndNeverBlocksInTheDemo(t *testing.T) {
	m := demo(t)
	for name, c := range map[string]struct {
		d  *dicom.DataSet
		ok bool
	}{
		"4 years":                   {chest(), true},
		"12 months":                 {chest(put(dicom.PatientAge, "012M")), true},
		"11 months":                 {chest(put(dicom.PatientAge, "011M")), false},
		"5 years":                   {chest(put(dicom.PatientAge, "005Y")), true},
		"71 months":                 {chest(put(dicom.PatientAge, "071M")), true},
		"6 years":                   {chest(put(dicom.PatientAge, "006Y")), false},
		"67 years":                  {chest(put(dicom.PatientAge, "067Y")), false},
		"20 days":                   {chest(put(dicom.PatientAge, "020D")), false},
		"none":                      {chest(drop(dicom.PatientAge)), false},
		"nonsense":                  {chest(put(dicom.PatientAge, "old")), false},
		"first birthday today":      {chest(drop(dicom.PatientAge), put(dicom.PatientBirthDate, "20200315"), put(dicom.StudyDate, "20210315")), true},
		"first birthday tomorrow":   {chest(drop(dicom.PatientAge), put(dicom.PatientBirthDate, "20200316"), put(dicom.StudyDate, "20210315")), false},
		"sixth birthday today":      {chest(drop(dicom.PatientAge), put(dicom.PatientBirthDate, "20150315"), put(dicom.StudyDate, "20210315")), false},
		"sixth birthday tomorrow":   {chest(drop(dicom.PatientAge), put(dicom.PatientBirthDate, "20150316"), put(dicom.StudyDate, "20210315")), true},
		"born after the study":      {chest(drop(dicom.PatientAge), put(dicom.PatientBirthDate, "20220101"), put(dicom.StudyDate, "20210315")), false},
		"born on the 29th February": {chest(drop(dicom.PatientAge), put(dicom.PatientBirthDate, "20200229"), put(dicom.StudyDate, "20210301")), true},
		"age and dates agree":       {chest(put(dicom.PatientBirthDate, "20160601"), put(dicom.StudyDate, "20210315")), true},
		"age against birth date":    {chest(put(dicom.PatientBirthDate, "19400101"), put(dicom.StudyDate, "20210315")), false},
	} {
		t.Run(name, func(t *testing.T) {
			reasons := m.CheckPatient(c.d)
			if ok := len(reasons) == 0; ok != c.ok {
				t.Fatalf("objections %v, want none: %v", reasons, c.ok)
			}
			for _, r := range reasons {
				if r.Code != vigie.ReasonAge || Blocking(r) {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	m.Accepts.Age.Outside = Block
	if r := m.CheckPatient(chest(put(dicom.PatientAge, "067Y"))); len(r) != 1 || !Blocking(r[0]) {
		t.Errorf("a manifest that blocks other ages: %+v", r)
	}
}

// What the attributes hold may be a name typed into the wrong field, and
// reasons are logged and audited.
func TestAReasonRepeatsNothingThatTheImageSays(t *testing.T) {
	m := demo(t)
	d := chest(put(dicom.Modality, "GARANCE REINE"), put(dicom.BodyPartExamined, "REINE ABDOMEN"), put(dicom.ViewPosition, "REINE LL"),
		put(dicom.SOPClassUID, "REINE"), put(dicom.PatientAge, "REIN"), put(dicom.PatientName, "Garance^Reine"))
	reasons := append(m.Check(d), m.CheckPatient(d)...)
	if len(reasons) != 5 {
		t.Fatalf("%d reasons: %+v", len(reasons), reasons)
	}
	for _, r := range reasons {
		for _, text := range []string{r.Text.English, r.Text.French, r.Detail} {
			if upper := strings.ToUpper(text); strings.Contains(upper, "REIN") || strings.Contains(upper, "GARANCE") {
				t.Errorf("%s repeats what the image says: %q", r.Code, text)
			}
		}
	}
}

func TestAnEmptyDataSetIsAnObjectionNotAPanic(t *testing.T) {
	m := demo(t)
	for _, d := range []*dicom.DataSet{nil, {}} {
		if len(m.Check(d)) == 0 || len(m.CheckPatient(d)) == 0 {
			t.Errorf("no objection to %v", d)
		}
	}
}
