package report

import (
	"errors"
	"fmt"
	"image"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

// Capture is what a Secondary Capture says beside its pixels.
type Capture struct {
	SeriesUID, InstanceUID       string
	SeriesNumber, InstanceNumber int
	Time                         time.Time
	Model                        Model
	SeriesDescription            string // up to 64 characters
	Derivation                   string // how the picture came about; up to 1024 characters
	Comment                      Text   // shown by viewers that show ImageComments
}

// SecondaryCapture wraps a picture of the source as a Secondary Capture image
// (PS3.3 A.8.1) that refers to it: RGB, or MONOCHROME2 for an *image.Gray.
//
// BurnedInAnnotation is what the source says of its own pixels: the picture's
// own writing must hold no identity.
func SecondaryCapture(source *dicom.DataSet, picture image.Image, c Capture) (*dicom.File, error) {
	ref, err := referenceTo(source)
	if err != nil {
		return nil, err
	}
	if picture == nil || picture.Bounds().Empty() {
		return nil, errors.New("report: capturing a picture: it has no pixels")
	}
	size := picture.Bounds().Size()
	if size.X > 65535 || size.Y > 65535 {
		return nil, fmt.Errorf("report: capturing a picture of %d × %d pixels: DICOM has room for 65535", size.X, size.Y)
	}
	d, err := begin(source, SecondaryCaptureImage, "OT", c.SeriesUID, c.InstanceUID, c.SeriesNumber, c.InstanceNumber, c.Time)
	if err != nil {
		return nil, err
	}
	equipment(d, c.Model)
	d.PutString(dicom.SeriesDescription, clip(c.SeriesDescription, 64))
	d.PutString(dicom.ConversionType, "WSD")
	d.PutDate(dicom.DateOfSecondaryCapture, c.Time)
	d.PutTime(dicom.TimeOfSecondaryCapture, c.Time)
	d.PutString(dicom.SecondaryCaptureDeviceManufacturer, clip(c.Model.Manufacturer, 64))
	d.PutString(dicom.SecondaryCaptureDeviceManufacturerModelName, clip(c.Model.Name, 64))
	d.PutString(dicom.SecondaryCaptureDeviceSoftwareVersions, clip(c.Model.Version, 64))
	d.PutString(dicom.ImageType, "DERIVED", "SECONDARY")
	d.PutString(dicom.DerivationDescription, clip(c.Derivation, 1024))
	if comment := both(c.Comment, " / "); comment != "" {
		d.PutString(dicom.ImageComments, clip(comment, 10240))
	}
	origin := ref.item()
	origin.PutItems(dicom.PurposeOfReferenceCodeSequence, sourceForProcessing.item())
	d.PutItems(dicom.SourceImageSequence, origin)
	d.Copy(source, dicom.BodyPartExamined, dicom.PatientOrientation, dicom.Laterality)
	if !d.Has(dicom.PatientOrientation) {
		d.PutString(dicom.PatientOrientation)
	}
	d.PutString(dicom.BurnedInAnnotation, "NO")
	if source.String(dicom.BurnedInAnnotation) == "YES" {
		d.PutString(dicom.BurnedInAnnotation, "YES")
	}
	if source.String(dicom.LossyImageCompression) == "01" { // once lossy, always lossy
		d.Copy(source, dicom.LossyImageCompression, dicom.LossyImageCompressionRatio, dicom.LossyImageCompressionMethod)
	}
	putPicture(d, picture, size)
	d.ConvertToUTF8()
	return dicom.NewFile(d, dicom.ExplicitLittleEndian), nil
}

// putPicture puts the image pixel module (PS3.3 C.7.6.3), 8 bits a sample.
func putPicture(d *dicom.DataSet, picture image.Image, size image.Point) {
	origin := picture.Bounds().Min
	var pixels []byte
	samples := 3
	switch p := picture.(type) {
	case *image.Gray:
		samples = 1
		for y := range size.Y {
			at := p.PixOffset(origin.X, origin.Y+y)
			pixels = append(pixels, p.Pix[at:at+size.X]...)
		}
	default:
		pixels = make([]byte, 0, 3*size.X*size.Y)
		for y := range size.Y {
			for x := range size.X {
				r, g, b, _ := picture.At(origin.X+x, origin.Y+y).RGBA()
				pixels = append(pixels, byte(r>>8), byte(g>>8), byte(b>>8))
			}
		}
	}
	d.PutInt(dicom.SamplesPerPixel, int64(samples))
	if samples == 3 {
		d.PutString(dicom.PhotometricInterpretation, "RGB")
		d.PutInt(dicom.PlanarConfiguration, 0)
	} else {
		d.PutString(dicom.PhotometricInterpretation, "MONOCHROME2")
	}
	d.PutInt(dicom.Rows, int64(size.Y))
	d.PutInt(dicom.Columns, int64(size.X))
	d.PutInt(dicom.BitsAllocated, 8)
	d.PutInt(dicom.BitsStored, 8)
	d.PutInt(dicom.HighBit, 7)
	d.PutInt(dicom.PixelRepresentation, 0)
	d.PutBytes(dicom.PixelData, dicom.OB, pixels)
}
