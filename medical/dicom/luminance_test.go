package dicom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"testing"
)

// ramp is one row of unsigned 16-bit values.
func ramp(values ...uint16) *DataSet {
	d := new(DataSet)
	d.PutInt(Rows, 1)
	d.PutInt(Columns, int64(len(values)))
	d.PutInt(SamplesPerPixel, 1)
	d.PutString(PhotometricInterpretation, "MONOCHROME2")
	d.PutInt(BitsAllocated, 16)
	d.PutInt(BitsStored, 16)
	d.PutInt(HighBit, 15)
	d.PutInt(PixelRepresentation, 0)
	var pixels []byte
	for _, v := range values {
		pixels = binary.LittleEndian.AppendUint16(pixels, v)
	}
	d.PutBytes(PixelData, OW, pixels)
	return d
}

func luminance(t *testing.T, d *DataSet) []float32 {
	t.Helper()
	l, err := NewFile(d, ExplicitLittleEndian).Luminance(0)
	if err != nil {
		t.Fatal(err)
	}
	return l.Values
}

func near(t *testing.T, what string, got []float32, want ...float64) {
	t.Helper()
	for i, w := range want {
		if i >= len(got) || math.Abs(float64(got[i])-w) > 1e-5 {
			t.Errorf("%s: %v, want %v", what, got, want)
			return
		}
	}
}

func TestTheVOIFunctionsAreThoseOfTheStandard(t *testing.T) {
	windowed := func(function string, c, w float64) []float32 {
		d := ramp(0, 1, 2, 3, 4, 5)
		d.PutFloat(WindowCenter, c)
		d.PutFloat(WindowWidth, w)
		if function != "" {
			d.PutString(VOILUTFunction, function)
		}
		return luminance(t, d)
	}
	// PS3.3 C.11.2.1.2.1: c - 0.5 - (w-1)/2 is black, c - 0.5 + (w-1)/2 white
	near(t, "LINEAR 2.5/5", windowed("", 2.5, 5), 0, 0.25, 0.5, 0.75, 1, 1)
	near(t, "LINEAR 3/1", windowed("LINEAR", 3, 1), 0, 0, 0, 1, 1, 1)
	near(t, "LINEAR_EXACT 2/4", windowed("LINEAR_EXACT", 2, 4), 0, 0.25, 0.5, 0.75, 1, 1)
	sigmoid := func(x float64) float64 { return 1 / (1 + math.Exp(-4*(x-2)/3)) }
	near(t, "SIGMOID 2/3", windowed("SIGMOID", 2, 3), sigmoid(0), sigmoid(1), 0.5, sigmoid(3), sigmoid(4), sigmoid(5))
	// A width without meaning is no window: the range of the frame.
	for _, function := range []string{"LINEAR", "LINEAR_EXACT", "SIGMOID"} {
		near(t, function+" of width 0", windowed(function, 2, 0), 0, 0.2, 0.4, 0.6, 0.8, 1)
	}
}

// Where it does not say so, no pixel changes another; where it does, one can
// change all.
func TestAnImageScaledByItsOwnExtremesSaysSo(t *testing.T) {
	read := func(width float64, values ...uint16) *Luminance {
		d := ramp(values...)
		if width >= 0 {
			d.PutFloat(WindowCenter, 50)
			d.PutFloat(WindowWidth, width)
		}
		l, err := NewFile(d, ExplicitLittleEndian).Luminance(0)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for width, stretched := range map[float64]bool{100: false, 0: true, -1: true} {
		one, two := read(width, 10, 20, 80), read(width, 10, 20, 800)
		if one.Stretched != stretched || two.Stretched != stretched {
			t.Errorf("width %v: stretched %v, want %v", width, one.Stretched, stretched)
		}
		if same := slices.Equal(one.Values[:2], two.Values[:2]); same == stretched {
			t.Errorf("width %v: another last pixel leaves the first as they are: %v", width, same)
		}
	}
}

func TestTheFirstOfSeveralWindowsCounts(t *testing.T) {
	d := ramp(0, 50, 100)
	d.PutFloat(WindowCenter, 50.5, 3)
	d.PutFloat(WindowWidth, 101, 5)
	near(t, "two windows", luminance(t, d), 0, 0.5, 1)
}

func TestRescalePaddingAndInversion(t *testing.T) {
	d := ramp(0, 10, 20, 30)
	d.PutFloat(RescaleSlope, 2)
	d.PutFloat(RescaleIntercept, -20)
	near(t, "full range", luminance(t, d), 0, 1.0/3, 2.0/3, 1)
	d.PutFloat(WindowCenter, 0.5)
	d.PutFloat(WindowWidth, 41)
	near(t, "a window on modality values", luminance(t, d), 0, 0.5, 1, 1)
	d.PutString(PhotometricInterpretation, "MONOCHROME1")
	near(t, "MONOCHROME1", luminance(t, d), 1, 0.5, 0, 0)
	d.PutString(PhotometricInterpretation, "MONOCHROME2")
	d.PutString(PresentationLUTShape, "INVERSE")
	near(t, "PresentationLUTShape INVERSE", luminance(t, d), 1, 0.5, 0, 0)

	d = ramp(5, 10, 15, 4000)
	d.PutInt(PixelPaddingValue, 4000)
	near(t, "padding is left out and black", luminance(t, d), 0, 0.5, 1, 0)
	d = ramp(5, 10, 15, 4000, 4094)
	d.PutInt(PixelPaddingValue, 4095)
	d.PutInt(PixelPaddingRangeLimit, 4000)
	near(t, "a range of padding", luminance(t, d), 0, 0.5, 1, 0, 0)
	near(t, "one value everywhere", luminance(t, ramp(7, 7)), 0, 0)
}

func table(descriptor []int64, values ...uint16) *DataSet {
	d := new(DataSet)
	var data []byte
	for _, v := range values {
		data = binary.LittleEndian.AppendUint16(data, v)
	}
	d.PutInt(LUTDescriptor, descriptor...)
	d.PutBytes(LUTData, OW, data)
	return d
}

func TestLookupTablesClampAndScaleByTheirBits(t *testing.T) {
	d := ramp(0, 5, 6, 7, 9)
	d.PutItems(VOILUTSequence, table([]int64{3, 5, 8}, 0, 51, 255))
	d.PutFloat(WindowCenter, 1) // the table goes first
	d.PutFloat(WindowWidth, 1)
	near(t, "VOI table", luminance(t, d), 0, 0, 0.2, 1, 1)
	d = ramp(0, 1, 2)
	d.PutItems(ModalityLUTSequence, table([]int64{3, 0, 16}, 100, 300, 200))
	near(t, "modality table, full range", luminance(t, d), 0, 1, 0.5)

	d = ramp(0xFFFE, 0xFFFF, 0) // -2, -1, 0
	d.PutInt(PixelRepresentation, 1)
	lut := table([]int64{3, -2, 8}, 0, 102, 255)
	d.PutItems(VOILUTSequence, lut)
	near(t, "a table that begins below zero", luminance(t, d), 0, 0.4, 1)

	for name, bad := range map[string]*DataSet{
		"no data": func() *DataSet { x := table([]int64{3, 0, 8}, 1, 2, 3); x.Delete(LUTData); return x }(),
		"too few": table([]int64{9, 0, 12}, 1, 2, 3),
		"40 bits": table([]int64{3, 0, 40}, 1, 2, 3),
		"no size": table([]int64{3, 0}, 1, 2, 3),
	} {
		d := ramp(0, 1)
		d.PutItems(VOILUTSequence, bad)
		if _, err := NewFile(d, ExplicitLittleEndian).Luminance(0); !errors.Is(err, ErrPixels) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnhancedImagesKeepTheirWindowsInFunctionalGroups(t *testing.T) {
	d := ramp(0, 50, 100, 0, 50, 100)
	d.PutInt(Columns, 3)
	d.PutInt(NumberOfFrames, 2)
	wrap := func(tag Tag, inner *DataSet) *DataSet {
		out := new(DataSet)
		out.PutItems(tag, inner)
		return out
	}
	window := func(c, w float64) *DataSet {
		x := new(DataSet)
		x.PutFloat(WindowCenter, c)
		x.PutFloat(WindowWidth, w)
		return wrap(FrameVOILUTSequence, x)
	}
	d.PutItems(SharedFunctionalGroupsSequence, window(50.5, 101))
	d.PutItems(PerFrameFunctionalGroupsSequence, new(DataSet), window(100.5, 201))
	f := NewFile(d, ExplicitLittleEndian)
	for i, want := range [][]float64{{0, 0.5, 1}, {0, 0.25, 0.5}} {
		l, err := f.Luminance(i)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "frame", l.Values, want...)
	}
}

func TestStoredBitsAreCutOutOfTheirCells(t *testing.T) {
	d := ramp(0xF00A, 0x0FF0, 0x8001)
	d.PutInt(BitsStored, 12)
	d.PutInt(HighBit, 11)
	frame, err := NewFile(d, ExplicitLittleEndian).Frame(0, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got := frame.Values(); !slices.Equal(got, []int32{0x00A, 0xFF0, 0x001}) {
		t.Errorf("unsigned: %v", got)
	}
	d.PutInt(PixelRepresentation, 1)
	frame, _ = NewFile(d, ExplicitLittleEndian).Frame(0, Limits{})
	if got := frame.Values(); !slices.Equal(got, []int32{0x00A, 0xFF0 - 0x1000, 0x001}) {
		t.Errorf("signed: %v", got)
	}
	d.PutInt(HighBit, 15)
	frame, _ = NewFile(d, ExplicitLittleEndian).Frame(0, Limits{})
	if got := frame.Values(); !slices.Equal(got, []int32{-256, 0x0FF, 0x800 - 0x1000}) {
		t.Errorf("signed, high bit 15: %v", got)
	}
}

func TestOneBitImagesArePackedAcrossFrames(t *testing.T) {
	d := smallImage(8, 1)
	d.PutInt(Rows, 1)
	d.PutInt(Columns, 5)
	d.PutInt(NumberOfFrames, 3)
	d.PutInt(BitsAllocated, 1)
	d.PutInt(BitsStored, 1)
	d.PutInt(HighBit, 0)
	d.PutBytes(PixelData, OB, []byte{0b10110010, 0b01100101})
	f := NewFile(d, ExplicitLittleEndian)
	for i, want := range [][]int32{{0, 1, 0, 0, 1}, {1, 0, 1, 1, 0}, {1, 0, 0, 1, 1}} {
		frame, err := f.Frame(i, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got := frame.Values(); !slices.Equal(got, want) {
			t.Errorf("frame %d: %v, want %v", i, got, want)
		}
	}
}

func TestColourBecomesLuma(t *testing.T) {
	colour := func(photometric string, planar int64, pixels ...byte) []float32 {
		d := smallImage(8, 3)
		d.PutInt(Rows, 1)
		d.PutInt(Columns, 2)
		d.PutString(PhotometricInterpretation, photometric)
		d.PutInt(PlanarConfiguration, planar)
		d.PutBytes(PixelData, OB, pixels)
		return luminance(t, d)
	}
	near(t, "RGB", colour("RGB", 0, 255, 0, 0, 0, 255, 0), 0.299, 0.587)
	near(t, "RGB in planes", colour("RGB", 1, 255, 0, 0, 255, 0, 0), 0.299, 0.587)
	near(t, "YBR_FULL", colour("YBR_FULL", 0, 255, 1, 2, 51, 3, 4), 1, 0.2)
	near(t, "YBR_FULL_422", colour("YBR_FULL_422", 0, 255, 51, 9, 9), 1, 0.2)
	near(t, "YBR_PARTIAL_422", colour("YBR_PARTIAL_422", 0, 235, 16, 9, 9), 1, 0)

	d := smallImage(8, 1)
	d.PutInt(Rows, 1)
	d.PutInt(Columns, 2)
	d.PutString(PhotometricInterpretation, "PALETTE COLOR")
	d.PutBytes(PixelData, OB, []byte{0, 1})
	for i, values := range [][]byte{{0xFF, 0xFF, 0, 0}, {0, 0, 0xFF, 0xFF}, {0, 0, 0, 0}} {
		d.PutInt(RedPaletteColorLookupTableDescriptor+Tag(i), 2, 0, 16)
		d.PutBytes(RedPaletteColorLookupTableData+Tag(i), OW, values)
	}
	near(t, "PALETTE COLOR", luminance(t, d), 0.299, 0.587)
}

func TestPixelsThatContradictTheirDescriptionAreRefused(t *testing.T) {
	for name, change := range map[string]func(*DataSet){
		"no pixels":             func(d *DataSet) { d.Delete(PixelData) },
		"too few bytes":         func(d *DataSet) { d.PutBytes(PixelData, OW, []byte{1, 2}) },
		"more bytes than told":  func(d *DataSet) { d.PutBytes(PixelData, OW, bytes.Repeat([]byte{7}, 48)) },
		"no rows":               func(d *DataSet) { d.Delete(Rows) },
		"zero columns":          func(d *DataSet) { d.PutInt(Columns, 0) },
		"two samples":           func(d *DataSet) { d.PutInt(SamplesPerPixel, 2) },
		"gray with three":       func(d *DataSet) { d.PutInt(SamplesPerPixel, 3) },
		"12 bits allocated":     func(d *DataSet) { d.PutInt(BitsAllocated, 12) },
		"more stored than are":  func(d *DataSet) { d.PutInt(BitsStored, 17) },
		"high bit too low":      func(d *DataSet) { d.PutInt(BitsStored, 8); d.PutInt(HighBit, 3) },
		"zero frames":           func(d *DataSet) { d.PutInt(NumberOfFrames, 0) },
		"frames that are words": func(d *DataSet) { d.PutBytes(NumberOfFrames, IS, []byte("many")) },
		"unknown photometric":   func(d *DataSet) { d.PutString(PhotometricInterpretation, "CMYK") },
		"no photometric":        func(d *DataSet) { d.Delete(PhotometricInterpretation) },
		"floating point": func(d *DataSet) {
			d.Delete(PixelData)
			d.PutBytes(FloatPixelData, OF, make([]byte, 48))
		},
		"a palette in segments": func(d *DataSet) {
			d.PutString(PhotometricInterpretation, "PALETTE COLOR")
			d.PutBytes(SegmentedRedPaletteColorLookupTableData, OW, []byte{0, 0})
		},
	} {
		d := smallImage(16, 1)
		change(d)
		if _, err := NewFile(d, ExplicitLittleEndian).Luminance(0); !errors.Is(err, ErrPixels) {
			t.Errorf("%s: %v", name, err)
		}
	}
	padded := smallImage(16, 1)
	padded.PutBytes(PixelData, OW, append(bytes.Clone(padded.Get(PixelData).Value), make([]byte, 100)...))
	luminance(t, padded) // zeros behind the last frame are padding
	if _, err := NewFile(smallImage(16, 1), ExplicitLittleEndian).Frame(1, Limits{}); !errors.Is(err, ErrPixels) {
		t.Errorf("a frame that is not there: %v", err)
	}
	if _, err := NewFile(smallImage(16, 1), ExplicitLittleEndian).Frame(0, Limits{Frame: 20}); !errors.Is(err, ErrLimit) {
		t.Errorf("a frame beyond the limit: %v", err)
	}
}

func TestASyntaxWithoutADecoderIsNamed(t *testing.T) {
	f := parseBytes(t, realFile(t, "JPEG2000.dcm"))
	_, err := f.Frame(0, Limits{})
	if !errors.Is(err, ErrTransferSyntax) || !bytes.Contains([]byte(err.Error()), []byte("JPEG 2000")) {
		t.Errorf("got %v", err)
	}
	f.TransferSyntax = "1.2.3\nforged log line"
	if _, err := f.Frame(0, Limits{}); !errors.Is(err, ErrTransferSyntax) || bytes.Contains([]byte(err.Error()), []byte("forged")) {
		t.Errorf("got %v", err)
	}
}

func TestOverlaysAreReportedWhateverTheirGroup(t *testing.T) {
	d := smallImage(8, 1)
	if len(d.Overlays()) != 0 {
		t.Error("an image without overlays has one")
	}
	put := func(group uint16, data []byte) {
		d.PutInt(NewTag(group, OverlayRows.Element()), 3)
		d.PutInt(NewTag(group, OverlayColumns.Element()), 4)
		d.PutBytes(NewTag(group, OverlayType.Element()), CS, []byte("G "))
		if data != nil {
			d.PutBytes(NewTag(group, OverlayData.Element()), OW, data)
		}
	}
	put(0x6000, []byte{0b00100001, 0b1000})
	put(0x601E, []byte{0, 0})
	put(0x6002, nil)
	got := d.Overlays()
	if len(got) != 3 || got[0].Group != 0x6000 || got[1].Group != 0x6002 || got[2].Group != 0x601E {
		t.Fatalf("overlays %+v", got)
	}
	if !got[0].Drawn() || !got[0].Set(0, 0) || !got[0].Set(1, 1) || !got[0].Set(2, 3) || got[0].Set(0, 1) || got[0].Set(3, 0) || got[0].Set(0, -1) {
		t.Error("the marks of the first plane are elsewhere")
	}
	if !got[1].Embedded || !got[1].Drawn() {
		t.Error("a plane inside the pixels is vouched for")
	}
	if got[2].Drawn() {
		t.Error("an empty plane is drawn")
	}
}
