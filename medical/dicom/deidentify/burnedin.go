package deidentify

import (
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

const (
	burnedInAnnotation         dicom.Tag = 0x00280301
	recognizableVisualFeatures dicom.Tag = 0x00280302
)

// photographed are the modalities whose images are usually photographs, screens
// or films with text on them.
var photographed = vocabulary("US IVUS BDUS SC XC ES GM HC OT DOC EPS SMR VA")

// digitised are the conversion types of images that were something else before
// (PS3.3 C.8.6.1): digitised film, scanned document, scanned image, video,
// drawing.
var digitised = vocabulary("DF SD SI DV DRW")

// screens are words of Image Type that say the pixels are a screen or a report.
var screens = vocabulary("SCREEN SCREENSHOT SAVE CAPTURE CAPTURED REPORT DOSE SUMMARY PATIENT PROTOCOL")

// burnedIn says why the pixels of the original may show an identity. Only an
// explicit NO in Burned In Annotation clears an image whose kind is suspect;
// nothing clears one that declares annotation, recognisable features, or has
// overlay planes.
func burnedIn(d *dicom.DataSet) []vigie.Reason {
	if !d.Has(dicom.PixelData) && !d.Has(floatPixelData) && !d.Has(doubleFloatPixelData) {
		return nil // nothing to see: no pixels, nothing burned into them
	}
	var reasons []vigie.Reason
	add := func(detail string, text vigie.Text) {
		reasons = append(reasons, vigie.Reason{Code: vigie.ReasonBurnedIn, Text: text, Detail: detail})
	}
	declared := coded(d, burnedInAnnotation)
	if declared != "" && declared != "NO" { // YES, or something that is neither
		add("(0028,0301) BurnedInAnnotation is not NO", burnedInText)
	}
	if features := coded(d, recognizableVisualFeatures); features != "" && features != "NO" {
		add("(0028,0302) RecognizableVisualFeatures is not NO", recognizableText)
	}
	for e := range d.All() {
		if e.Tag.Group()&0xFF01 == 0x6000 {
			add("group 60xx: overlay planes", overlayText)
			break
		}
	}
	if declared == "" {
		if kind := suspectKind(d); kind != "" {
			add(kind, kindText)
		}
	}
	return reasons
}

// suspectKind names what makes the kind of image suspect, or "".
func suspectKind(d *dicom.DataSet) string {
	if uid := significant(d.UID(dicom.SOPClassUID)); oftenAnnotated(uid) {
		return "SOP class " + uid
	}
	if modality := coded(d, dicom.Modality); photographed[modality] {
		return "modality " + modality
	}
	if conversion := coded(d, dicom.ConversionType); digitised[conversion] {
		return "conversion type " + conversion
	}
	for _, value := range d.Strings(dicom.ImageType) {
		for _, word := range strings.FieldsFunc(strings.ToUpper(value), func(r rune) bool { return r == ' ' || r == '_' }) {
			if screens[word] {
				return "image type " + word
			}
		}
	}
	return ""
}

func coded(d *dicom.DataSet, tag dicom.Tag) string {
	return strings.ToUpper(significant(d.String(tag)))
}
