package enclave

import (
	"bytes"
	"errors"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// decodeLimits bounds what one case may cost. The largest radiographs
// (mammography, 16 bit) have frames of about 100 MB.
var decodeLimits = dicom.Limits{
	Total: 2 * MaxDICOM,
	Frame: 128 << 20,
}

// parse reads the file and holds it to what a gateway promises of a copy: one
// image of this pseudonym, declared de-identified. The reasons are empty if so.
//
// The checks are the enclave's own protection against learning an identity
// through a gateway's mistake; they do not replace de-identification.
func parse(patient vigie.PatientPseudonym, file []byte) (*dicom.File, []vigie.Reason) {
	parsed, err := dicom.Parse(bytes.NewReader(file), decodeLimits)
	if err != nil { // package dicom's errors never quote a value
		return nil, []vigie.Reason{reasonUnreadable(err.Error())}
	}
	d := parsed.DataSet
	switch {
	case d.String(dicom.PatientIdentityRemoved) != "YES":
		return nil, []vigie.Reason{reasonIdentified("Patient Identity Removed is not YES")}
	case patient == "" || d.String(dicom.PatientID) != string(patient):
		return nil, []vigie.Reason{reasonIdentified("the Patient ID is not the pseudonym")}
	case d.String(dicom.PatientName) != string(patient) && !d.Empty(dicom.PatientName):
		return nil, []vigie.Reason{reasonIdentified("the Patient Name is not the pseudonym")}
	}
	return parsed, nil
}

// decode turns the first frame into brightness. (Whether there may be more is
// the manifest's to say.)
func decode(file *dicom.File) (*dicom.Luminance, []vigie.Reason) {
	frame, err := file.Frame(0, decodeLimits)
	if err == nil {
		var image *dicom.Luminance
		if image, err = file.LuminanceOf(frame); err == nil {
			return image, nil
		}
	}
	if errors.Is(err, dicom.ErrTransferSyntax) {
		syntax, known := dicom.SyntaxOf(file.TransferSyntax)
		if !known {
			return nil, []vigie.Reason{reasonTransferSyntax("unknown transfer syntax")}
		}
		return nil, []vigie.Reason{reasonTransferSyntax(syntax.Name + ", " + syntax.UID)}
	}
	return nil, []vigie.Reason{reasonPixels(err.Error())}
}
