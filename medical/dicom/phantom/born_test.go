package phantom

import (
	"math"
	"testing"

	"github.com/vigie/vigie/medical/dicom"
)

func TestTheBirthDateAgreesWithTheAge(t *testing.T) {
	for seed, age := range []string{"", "001Y", "061Y", "018M", "012W", "003D"} {
		file, err := Chest(uint64(seed), Options{Age: age, Rows: 64, Columns: 64})
		if err != nil {
			t.Fatal(err)
		}
		d := file.DataSet
		stated, _ := dicom.ParseAge(d.String(dicom.PatientAge))
		born, ok := d.Date(dicom.PatientBirthDate)
		study, dated := d.Date(dicom.StudyDate)
		if years := study.Sub(born).Hours() / 24 / 365.25; !ok || !dated || math.Abs(years-stated.Years()) > 1 {
			t.Errorf("age %s, born %s, seen %s: %.2f years", d.String(dicom.PatientAge), born, study, years)
		}
	}
}
