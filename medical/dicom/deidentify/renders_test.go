package deidentify

import (
	"bytes"
	"math"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

func TestACopyThatLooksDifferentIsReferred(t *testing.T) {
	profile, err := New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	text := func(vr dicom.VR, values map[dicom.Tag]string) func(*dicom.DataSet) {
		return func(d *dicom.DataSet) {
			for tag, value := range values {
				d.Put(&dicom.Element{Tag: tag, VR: vr, Value: []byte(value)})
			}
		}
	}
	for name, test := range map[string]struct {
		change func(*dicom.DataSet)
		refer  bool
	}{
		"as it is":           {func(*dicom.DataSet) {}, false},
		"another window":     {text(dicom.DS, map[dicom.Tag]string{dicom.WindowCenter: "700 ", dicom.WindowWidth: "300 "}), false},
		"inverted":           {text(dicom.CS, map[dicom.Tag]string{dicom.PresentationLUTShape: "INVERSE "}), false},
		"inverted, as LO":    {text(dicom.LO, map[dicom.Tag]string{dicom.PresentationLUTShape: "INVERSE "}), true},
		"window too precise": {text(dicom.DS, map[dicom.Tag]string{dicom.WindowCenter: "700.0000000000000000000000", dicom.WindowWidth: "300 "}), true},
		"window as LO":       {text(dicom.LO, map[dicom.Tag]string{dicom.WindowCenter: "700 ", dicom.WindowWidth: "300 "}), true},
		"window as UN":       {text(dicom.UN, map[dicom.Tag]string{dicom.WindowCenter: "700 ", dicom.WindowWidth: "300 "}), true},
		"slope as LO":        {text(dicom.LO, map[dicom.Tag]string{dicom.RescaleSlope: "3 ", dicom.RescaleIntercept: "50"}), true},
		"padding as IS":      {text(dicom.IS, map[dicom.Tag]string{dicom.PixelPaddingValue: "0 ", dicom.PixelPaddingRangeLimit: "700 "}), true},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := phantom.Chest(1, phantom.Options{Rows: 64, Columns: 64})
			if err != nil {
				t.Fatal(err)
			}
			test.change(file.DataSet)
			before, err := file.Luminance(0)
			if err != nil {
				t.Fatal(err)
			}
			result, err := profile.Apply(file)
			if err != nil {
				t.Fatal(err)
			}
			after, err := result.File.Luminance(0)
			if err != nil {
				t.Fatal(err)
			}
			different := false
			for i, v := range before.Values {
				different = different || math.Abs(float64(v-after.Values[i])) > 1e-6
			}
			if different != test.refer {
				t.Errorf("the copy looks different: %v, want %v", different, test.refer)
			}
			if refers := len(result.Refer) > 0; refers != test.refer {
				t.Errorf("referred: %v, want %v", result.Refer, test.refer)
			}
			for _, r := range result.Refer {
				if r.Code != vigie.ReasonPixels {
					t.Errorf("the reason is %s", r.Code)
				}
			}
		})
	}
}
