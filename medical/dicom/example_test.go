package dicom_test

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/vigie/vigie/medical/dicom"
)

func Example() {
	// A data set, written as a file …
	d := new(dicom.DataSet)
	d.PutString(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.1")
	d.PutString(dicom.SOPInstanceUID, "2.25.42")
	d.PutString(dicom.PatientName, "Müller^Zoë")
	d.PutString(dicom.PhotometricInterpretation, "MONOCHROME1")
	d.PutInt(dicom.SamplesPerPixel, 1)
	d.PutInt(dicom.Rows, 1)
	d.PutInt(dicom.Columns, 3)
	d.PutInt(dicom.BitsAllocated, 8)
	d.PutInt(dicom.BitsStored, 8)
	d.PutInt(dicom.HighBit, 7)
	d.PutInt(dicom.PixelRepresentation, 0)
	d.PutBytes(dicom.PixelData, dicom.OW, []byte{0, 50, 100})
	var stored bytes.Buffer
	if err := dicom.NewFile(d, dicom.ExplicitBigEndian).Write(&stored); err != nil {
		panic(err)
	}

	// … comes back with its text, and its pixels as they are meant to be seen.
	file, err := dicom.Parse(bytes.NewReader(stored.Bytes()), dicom.Limits{})
	if err != nil {
		panic(err)
	}
	image, err := file.Luminance(0)
	if err != nil {
		panic(err)
	}
	fmt.Println(file.DataSet.Name(dicom.PatientName).Alphabetic.Given, image.Values)

	// What is cut off is an error, and what was complete is there.
	cut, err := dicom.Parse(bytes.NewReader(stored.Bytes()[:stored.Len()-2]), dicom.Limits{})
	fmt.Println(errors.Is(err, dicom.ErrTruncated), cut.DataSet.UID(dicom.SOPInstanceUID))
	// Output:
	// Zoë [1 0.5 0]
	// true 2.25.42
}
