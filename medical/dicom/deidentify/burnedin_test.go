package deidentify

import (
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

func TestPixelsThatMayShowAnIdentityGoToAPerson(t *testing.T) {
	put := func(tag dicom.Tag, values ...string) func(*dicom.DataSet) {
		return func(d *dicom.DataSet) { d.PutString(tag, values...) }
	}
	for name, c := range map[string]struct {
		changes []func(*dicom.DataSet)
		refer   bool
	}{
		"a radiograph":                     {nil, false},
		"declared YES":                     {[]func(*dicom.DataSet){put(burnedInAnnotation, "YES")}, true},
		"declared yes":                     {[]func(*dicom.DataSet){put(burnedInAnnotation, "yes ")}, true},
		"declared something else":          {[]func(*dicom.DataSet){put(burnedInAnnotation, "MAYBE")}, true},
		"declared NO":                      {[]func(*dicom.DataSet){put(burnedInAnnotation, "NO")}, false},
		"declared nothing":                 {[]func(*dicom.DataSet){put(burnedInAnnotation)}, false},
		"a face":                           {[]func(*dicom.DataSet){put(recognizableVisualFeatures, "YES")}, true},
		"no face":                          {[]func(*dicom.DataSet){put(recognizableVisualFeatures, "NO")}, false},
		"a face, though no annotation":     {[]func(*dicom.DataSet){put(recognizableVisualFeatures, "YES"), put(burnedInAnnotation, "NO")}, true},
		"an overlay plane":                 {[]func(*dicom.DataSet){func(d *dicom.DataSet) { d.PutInt(0x60000010, 4) }}, true},
		"the last overlay plane":           {[]func(*dicom.DataSet){func(d *dicom.DataSet) { d.PutInt(0x601E0010, 4) }}, true},
		"an overlay, though no annotation": {[]func(*dicom.DataSet){func(d *dicom.DataSet) { d.PutInt(0x60000010, 4) }, put(burnedInAnnotation, "NO")}, true},
		"ultrasound":                       {[]func(*dicom.DataSet){put(dicom.Modality, "US")}, true},
		"ultrasound that says NO":          {[]func(*dicom.DataSet){put(dicom.Modality, "US"), put(burnedInAnnotation, "NO")}, false},
		"an ultrasound object":             {[]func(*dicom.DataSet){put(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.6.1")}, true},
		"secondary capture":                {[]func(*dicom.DataSet){put(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.7")}, true},
		"a multi-frame secondary capture":  {[]func(*dicom.DataSet){put(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.7.4")}, true},
		"a photograph":                     {[]func(*dicom.DataSet){put(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.77.1.4")}, true},
		"endoscopy":                        {[]func(*dicom.DataSet){put(dicom.Modality, "ES")}, true},
		"a digitised film":                 {[]func(*dicom.DataSet){put(dicom.ConversionType, "DF")}, true},
		"a workstation's image":            {[]func(*dicom.DataSet){put(dicom.ConversionType, "WSD")}, false},
		"a screen":                         {[]func(*dicom.DataSet){put(dicom.ImageType, "DERIVED", "SECONDARY", "SCREEN SAVE")}, true},
		"a dose report":                    {[]func(*dicom.DataSet){put(dicom.ImageType, "DERIVED", "SECONDARY", "DOSE_REPORT")}, true},
		"mammography":                      {[]func(*dicom.DataSet){put(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.1.2")}, false},
		"CT":                               {[]func(*dicom.DataSet){put(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.2"), put(dicom.Modality, "CT")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := radiograph()
			for _, change := range c.changes {
				change(f.DataSet)
			}
			if got := refers(apply(t, f), vigie.ReasonBurnedIn); got != c.refer {
				t.Errorf("referred: %v, want %v", got, c.refer)
			}
		})
	}
	f := radiograph()
	f.DataSet.Delete(dicom.PixelData)
	f.DataSet.PutString(dicom.Modality, "US")
	if refers(apply(t, f), vigie.ReasonBurnedIn) {
		t.Error("an object without pixels is referred for what its pixels may show")
	}
}
