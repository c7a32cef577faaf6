package deidentify_test

import (
	"fmt"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/deidentify"
)

func Example() {
	profile, err := deidentify.New([]byte("thirty-two secret bytes of a site"))
	if err != nil {
		panic(err)
	}
	d := &dicom.DataSet{}
	d.PutString(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.1")
	d.PutString(dicom.SOPInstanceUID, "1.2.3.4")
	d.PutString(dicom.PatientName, "Garance^Reine")
	d.PutString(dicom.PatientID, "4711")
	d.PutString(dicom.PatientBirthDate, "20200101")
	d.PutString(dicom.StudyDescription, "Chest of Reine Garance")
	d.PutString(dicom.BodyPartExamined, "CHEST")

	result, err := profile.Apply(&dicom.File{TransferSyntax: dicom.ExplicitLittleEndian, DataSet: d})
	if err != nil {
		panic(err)
	}
	out := result.File.DataSet
	fmt.Println(out.String(dicom.PatientName))
	fmt.Println(out.UID(dicom.SOPInstanceUID))
	fmt.Println(out.Has(dicom.PatientBirthDate), out.Empty(dicom.PatientBirthDate), out.Has(dicom.StudyDescription))
	fmt.Println(out.String(dicom.BodyPartExamined), out.String(dicom.PatientIdentityRemoved))
	// Output:
	// yabkftm4bhsrfw2yruape7432e
	// 2.25.255526254383540195602845799201738415107
	// true true false
	// CHEST YES
}
