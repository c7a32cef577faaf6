package phantom

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/jpeg"

	"github.com/vigie/vigie/medical/dicom"
)

// picture is a drawn image before encoding: stored values of up to 16 bits.
type picture struct {
	rows, columns int
	stored        int // bits
	signed        bool
	values        []int32
}

// encode puts the pixel module and wraps the data set, in the transfer syntax
// of the options.
func (o Options) encode(d *dicom.DataSet, p picture) (*dicom.File, error) {
	allocated := 16
	if o.TransferSyntax == dicom.JPEGBaseline {
		if p.signed {
			return nil, fmt.Errorf("phantom: encoding signed pixels as baseline JPEG: it has 8 bits without sign; choose another transfer syntax")
		}
		for i := range p.values {
			p.values[i] >>= p.stored - 8
		}
		p.stored, allocated = 8, 8
	}
	d.PutInt(dicom.SamplesPerPixel, 1)
	d.PutString(dicom.PhotometricInterpretation, o.Photometric)
	d.PutInt(dicom.Rows, int64(p.rows))
	d.PutInt(dicom.Columns, int64(p.columns))
	d.PutInt(dicom.BitsAllocated, int64(allocated))
	d.PutInt(dicom.BitsStored, int64(p.stored))
	d.PutInt(dicom.HighBit, int64(p.stored-1))
	signed := int64(0)
	if p.signed {
		signed = 1
	}
	d.PutInt(dicom.PixelRepresentation, signed)

	data := make([]byte, 0, len(p.values)*allocated/8)
	for _, v := range p.values {
		if allocated == 8 {
			data = append(data, byte(v))
		} else {
			data = binary.LittleEndian.AppendUint16(data, uint16(v))
		}
	}
	switch o.TransferSyntax {
	case dicom.ImplicitLittleEndian, dicom.ExplicitLittleEndian, dicom.ExplicitBigEndian, dicom.DeflatedLittleEndian:
		d.PutBytes(dicom.PixelData, dicom.OW, data)
	case dicom.RLELossless:
		frame := &dicom.Frame{Rows: p.rows, Columns: p.columns, Samples: 1, Allocated: allocated, Stored: p.stored, High: p.stored - 1, Data: data}
		d.Put(dicom.Encapsulate([][]byte{dicom.EncodeRLE(frame)}))
	case dicom.JPEGBaseline:
		var out bytes.Buffer
		gray := &image.Gray{Pix: data, Stride: p.columns, Rect: image.Rect(0, 0, p.columns, p.rows)}
		if err := jpeg.Encode(&out, gray, &jpeg.Options{Quality: 92}); err != nil {
			return nil, fmt.Errorf("phantom: encoding as baseline JPEG: %w", err)
		}
		d.PutString(dicom.LossyImageCompression, "01")
		d.PutFloat(dicom.LossyImageCompressionRatio, float64(int(10*len(data)/out.Len()))/10)
		d.PutString(dicom.LossyImageCompressionMethod, "ISO_10918_1")
		d.Put(dicom.Encapsulate([][]byte{out.Bytes()}))
	default:
		return nil, fmt.Errorf("phantom: encoding in transfer syntax %s: %w: choose a native one, RLE Lossless or JPEG Baseline", o.TransferSyntax, dicom.ErrTransferSyntax)
	}
	return dicom.NewFile(d, o.TransferSyntax), nil
}
