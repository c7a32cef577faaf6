package model_test

import (
	"fmt"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
)

func Example() {
	pkg, err := model.Open("../models/chest-pneumonia-28")
	if err != nil {
		panic(err)
	}
	d := &dicom.DataSet{}
	d.PutString(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.2")
	d.PutString(dicom.Modality, "CT")
	d.PutString(dicom.BodyPartExamined, "ABDOMEN")
	d.PutString(dicom.ViewPosition, "AP")
	for _, reason := range pkg.Manifest.Check(d) {
		fmt.Println(model.Blocking(reason), reason.Text.English)
	}
	// Output:
	// true The object is not of a kind (SOP class) that the model reads.
	// true The model reads CR, DX, RG, not CT.
	// true The image shows abdomen; the model reads chest.
}
