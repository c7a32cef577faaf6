package deidentify

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

const (
	lutDescriptor        dicom.Tag = 0x00283002
	lutData              dicom.Tag = 0x00283006
	floatPixelData       dicom.Tag = 0x7FE00008
	doubleFloatPixelData dicom.Tag = 0x7FE00009
)

// renders are the attributes that decide how pixels look. Where one of them
// says something that cannot be vouched for, the copy shows another picture
// than the original, inverted perhaps, and nobody may take it for the same.
var renders = map[dicom.Tag]bool{
	dicom.PhotometricInterpretation: true, dicom.PresentationLUTShape: true, dicom.VOILUTFunction: true,
	dicom.WindowCenter: true, dicom.WindowWidth: true, dicom.RescaleIntercept: true, dicom.RescaleSlope: true,
	dicom.PixelPaddingValue: true, dicom.PixelPaddingRangeLimit: true, dicom.PixelRepresentation: true,
	dicom.BitsAllocated: true, dicom.BitsStored: true, dicom.HighBit: true, dicom.SamplesPerPixel: true,
	dicom.PlanarConfiguration: true, dicom.NumberOfFrames: true, dicom.Rows: true, dicom.Columns: true,
	dicom.ModalityLUTSequence: true, dicom.VOILUTSequence: true, lutDescriptor: true,
}

var rendersText = vigie.Text{
	English: "An attribute that decides how the image looks is in a form that cannot be vouched for and was left out of the copy.",
	French:  "Un attribut qui détermine l’aspect de l’image a une forme qui ne peut pas être garantie et est absent de la copie."}

// bulk decides about pixel data and look-up tables. They are measured by what
// stayed of the attributes that describe them (d), because nobody else will have
// more than that.
func (w *work) bulk(d *dicom.DataSet, e *dicom.Element, depth int) (*dicom.Element, Action, Basis, error) {
	if e.Tag != dicom.PixelData {
		if kept := lookupTable(d, e); kept != nil {
			return kept, K, ByKeep, nil
		}
		w.doubt(vigie.ReasonPixels, e.Tag.String(), tableText)
		return nil, X, ByValue, nil
	}
	if depth > 0 { // an icon, or an image inside an annotation
		return nil, X, Unlisted, nil
	}
	if w.syntax == "" { // said already, in Apply
		return nil, X, ByValue, nil
	}
	if syntax, _ := dicom.SyntaxOf(w.syntax); syntax.Encapsulated != (len(e.Fragments) > 0) {
		w.doubt(vigie.ReasonPixels, "pixel data are not encoded as the transfer syntax says", geometryText)
		return nil, X, ByValue, nil
	}
	if len(e.Fragments) > 0 {
		kept, err := scrubFrames(d, e, w.syntax)
		if err != nil {
			w.doubt(vigie.ReasonDeidentify, err.Error(), framesText)
			return nil, X, ByValue, nil
		}
		return kept, K, ByKeep, nil
	}
	kept, err := scrubNative(d, e)
	if err != nil {
		w.doubt(vigie.ReasonPixels, err.Error(), geometryText)
		return nil, X, ByValue, nil
	}
	return kept, K, ByKeep, nil
}

// lookupTable keeps a look-up table (PS3.3 C.11.1.1.1, C.7.6.3.1.5) that is
// exactly as long as its descriptor says, with no entry wider than it says, so
// that it holds nothing else. It returns nil for any other.
func lookupTable(d *dicom.DataSet, e *dicom.Element) *dicom.Element {
	descriptor := e.Tag - 0x100 // palettes: (0028,1201) is described by (0028,1101)
	if e.Tag == lutData {
		descriptor = lutDescriptor
	}
	numbers := d.Ints(descriptor)
	if len(numbers) != 3 || len(e.Fragments) > 0 {
		return nil
	}
	entries, bits := int(uint16(numbers[0])), numbers[2]
	if entries == 0 {
		entries = 1 << 16
	}
	bytes := 0
	switch {
	case len(e.Value) == 2*entries && bits >= 8 && bits <= 16:
		bytes = 2
	case len(e.Value) == entries+entries%2 && bits == 8:
		bytes = 1
	default:
		return nil
	}
	if bytes == 2 && bits < 16 {
		for v := e.Value; len(v) > 0; v = v[2:] {
			if binary.LittleEndian.Uint16(v)>>bits != 0 {
				return nil
			}
		}
	}
	vr := e.VR
	if vr != dicom.US && vr != dicom.OW {
		vr = dicom.OW
	}
	return &dicom.Element{Tag: e.Tag, VR: vr, Value: slices.Clone(e.Value)}
}

// geometry is what the header says of native pixels.
type geometry struct {
	bytes             int64 // that the pixels of all frames occupy
	allocated, stored int64 // bits
	high              int64
	signed            bool
}

func number(d *dicom.DataSet, keyword dicom.Tag, least, most, absent int64) (int64, error) {
	n, ok := d.Int(keyword)
	if !ok {
		n = absent
	}
	if n < least || n > most {
		return 0, fmt.Errorf("%s is missing or out of range", keyword)
	}
	return n, nil
}

func geometryOf(d *dicom.DataSet) (g geometry, err error) {
	get := func(tag dicom.Tag, least, most, absent int64) int64 {
		n, e := number(d, tag, least, most, absent)
		if e != nil && err == nil {
			err = e
		}
		return n
	}
	rows := get(dicom.Rows, 1, 65535, 0)
	columns := get(dicom.Columns, 1, 65535, 0)
	frames := get(dicom.NumberOfFrames, 1, 1<<20, 1)
	samples := get(dicom.SamplesPerPixel, 1, 4, 1)
	g.allocated = get(dicom.BitsAllocated, 1, 64, 0)
	g.stored = get(dicom.BitsStored, 1, g.allocated, g.allocated)
	g.high = get(dicom.HighBit, g.stored-1, g.allocated-1, g.stored-1)
	g.signed = get(dicom.PixelRepresentation, 0, 1, 0) == 1
	if err != nil {
		return g, err
	}
	if g.allocated != 1 && g.allocated%8 != 0 {
		return g, fmt.Errorf("%s is neither 1 nor a multiple of 8", dicom.BitsAllocated)
	}
	perPixel := samples
	if photometric := coded(d, dicom.PhotometricInterpretation); samples == 3 && (photometric == "YBR_FULL_422" || photometric == "YBR_PARTIAL_422") {
		perPixel = 2 // PS3.3 C.7.6.3.1.2: chrominance every second column
	}
	g.bytes = (frames*rows*columns*perPixel*g.allocated + 7) / 8
	return g, nil
}

// scrubNative drops the bytes after the last pixel and the bits that are not of
// a pixel: overlays used to be hidden there (PS3.5 8.1.2), and anything else
// can be. Signed pixels are sign-extended, as PS3.5 8.1.1 recommends.
func scrubNative(d *dicom.DataSet, e *dicom.Element) (*dicom.Element, error) {
	g, err := geometryOf(d)
	if err != nil {
		return nil, err
	}
	value, err := g.scrub(e.Value)
	if err != nil {
		return nil, err
	}
	vr := e.VR
	if vr != dicom.OB && vr != dicom.OW {
		vr = dicom.OW
	}
	return &dicom.Element{Tag: e.Tag, VR: vr, Value: value}, nil
}

// scrub returns a copy of native pixels with nothing in it but pixels.
func (g geometry) scrub(value []byte) ([]byte, error) {
	if even := g.bytes + g.bytes%2; int64(len(value)) > even {
		value = value[:even]
	}
	value = slices.Clone(value)
	if int64(len(value)) == g.bytes+1 {
		value[g.bytes] = 0
	}
	if g.stored < g.allocated {
		switch g.allocated {
		case 8:
			for i := range value {
				value[i] = byte(g.clean(uint64(value[i])))
			}
		case 16:
			for v := value; len(v) >= 2; v = v[2:] {
				binary.LittleEndian.PutUint16(v, uint16(g.clean(uint64(binary.LittleEndian.Uint16(v)))))
			}
		case 32:
			for v := value; len(v) >= 4; v = v[4:] {
				binary.LittleEndian.PutUint32(v, uint32(g.clean(uint64(binary.LittleEndian.Uint32(v)))))
			}
		default:
			return nil, fmt.Errorf("%d bits stored in %d allocated", g.stored, g.allocated)
		}
	}
	return value, nil
}

// clean keeps the bits of the pixel in a cell and clears the others, or, above
// a signed pixel, repeats its sign.
func (g geometry) clean(cell uint64) uint64 {
	low := g.high - g.stored + 1
	mask := (uint64(1)<<g.stored - 1) << low
	if g.signed && cell>>g.high&1 == 1 {
		return cell&mask | ^uint64(0)<<g.high
	}
	return cell & mask
}
