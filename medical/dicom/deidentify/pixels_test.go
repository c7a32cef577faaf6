package deidentify

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"image/jpeg"
	"slices"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

func TestBitsBesideThePixelsAndBytesAfterThemAreCleared(t *testing.T) {
	f := radiograph() // 4 × 4, 12 bits of 16
	cells := make([]byte, 0, 64)
	for i := range 16 {
		cells = binary.LittleEndian.AppendUint16(cells, uint16(0xF000|i*100))
	}
	f.DataSet.PutBytes(dicom.PixelData, dicom.OW, append(slices.Clone(cells), "Garance after the pixels"...))
	result := apply(t, f)
	got := result.File.DataSet.Get(dicom.PixelData).Value
	if len(got) != 32 || len(result.Refer) > 0 {
		t.Fatalf("%d bytes of pixels, reasons %v", len(got), result.Refer)
	}
	for i := range 16 {
		if v := binary.LittleEndian.Uint16(got[2*i:]); v != uint16(i*100) {
			t.Errorf("pixel %d is %#x", i, v)
		}
	}
	if !bytes.Equal(f.DataSet.Get(dicom.PixelData).Value[:32], cells) {
		t.Error("the original was changed")
	}
}

func TestSignedPixelsKeepTheirSign(t *testing.T) {
	f := radiograph()
	f.DataSet.PutInt(dicom.PixelRepresentation, 1)
	values := []int16{-2048, -1, 0, 2047}
	cells := make([]byte, 0, 32)
	for i := range 16 {
		cells = binary.LittleEndian.AppendUint16(cells, uint16(values[i%4])&0x0FFF|0x5000)
	}
	f.DataSet.PutBytes(dicom.PixelData, dicom.OW, cells)
	got := apply(t, f).File.DataSet.Get(dicom.PixelData).Value
	for i := range 16 {
		if v := int16(binary.LittleEndian.Uint16(got[2*i:])); v != values[i%4] {
			t.Errorf("pixel %d is %d, want %d", i, v, values[i%4])
		}
	}
}

func TestPixelsThatDoNotFitTheirDescriptionAreLeftOutAndReferred(t *testing.T) {
	for name, change := range map[string]func(*dicom.DataSet){
		"no rows":             func(d *dicom.DataSet) { d.Delete(dicom.Rows) },
		"no bits":             func(d *dicom.DataSet) { d.Delete(dicom.BitsAllocated) },
		"12 bits allocated":   func(d *dicom.DataSet) { d.PutInt(dicom.BitsAllocated, 12) },
		"more stored":         func(d *dicom.DataSet) { d.PutInt(dicom.BitsStored, 17) },
		"a high bit too high": func(d *dicom.DataSet) { d.PutInt(dicom.HighBit, 16) },
		"a high bit too low":  func(d *dicom.DataSet) { d.PutInt(dicom.HighBit, 3) },
		"frames without end":  func(d *dicom.DataSet) { d.PutInt(dicom.NumberOfFrames, 1<<31) },
		"fragments": func(d *dicom.DataSet) {
			d.Put(&dicom.Element{Tag: dicom.PixelData, VR: dicom.OB, Fragments: [][]byte{{}, {1, 2}}})
		},
	} {
		f := radiograph()
		change(f.DataSet)
		result := apply(t, f)
		if result.File.DataSet.Has(dicom.PixelData) || !refers(result, vigie.ReasonPixels) {
			t.Errorf("%s: reasons %v", name, result.Refer)
		}
	}
}

// picture returns a JPEG stream with the segments put after its start.
func picture(t *testing.T, segments ...[]byte) []byte {
	t.Helper()
	img := image.NewGray(image.Rect(0, 0, 16, 16))
	for i := range img.Pix {
		img.Pix[i] = byte(i * 7)
	}
	img.SetGray(3, 3, color.Gray{255})
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, nil); err != nil {
		t.Fatal(err)
	}
	return slices.Concat(append([][]byte{b.Bytes()[:2]}, append(segments, b.Bytes()[2:])...)...)
}

func segment(marker byte, body string) []byte {
	return append([]byte{0xFF, marker, byte((len(body) + 2) >> 8), byte(len(body) + 2)}, body...)
}

func TestACompressedFrameLosesItsCommentsAndKeepsItsPicture(t *testing.T) {
	plain := picture(t)
	dirty := picture(t,
		segment(0xE0, "JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x02\x02"+"Garance thumb"), segment(0xE1, "Exif\x00\x00Garance"),
		segment(0xFE, "a comment on Garance"), []byte{0xFF, 0xFF}, segment(0xEE, "Adobe\x00\x64\x00\x00\x00\x00\x00Garance"),
		segment(0xE8, "SPIFF Garance"), segment(0xEF, "Garance"))
	dirty = append(dirty, "Garance after the end"...)
	clean, err := scrubJPEG(dirty)
	if err != nil {
		t.Fatal(err)
	}
	absent(t, clean, "Garance")
	absent(t, clean, "thumb")
	for _, kept := range []string{"JFIF", "Adobe"} {
		if !bytes.Contains(clean, []byte(kept)) {
			t.Errorf("the %s segment is gone", kept)
		}
	}
	want, err := jpeg.Decode(bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	got, err := jpeg.Decode(bytes.NewReader(clean))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.(*image.Gray).Pix, want.(*image.Gray).Pix) {
		t.Error("the picture changed")
	}
	again, err := scrubJPEG(clean)
	if err != nil || !bytes.Equal(again, clean) {
		t.Errorf("scrubbing twice is not scrubbing once: %v", err)
	}
	for n := range len(dirty) - 21 {
		scrubbed, err := scrubJPEG(dirty[:n])
		if err == nil {
			absent(t, scrubbed, "Garance")
		}
	}
}

func TestAJPEG2000CodestreamLosesItsComments(t *testing.T) {
	comment := segment(0x64, "\x00\x01Garance was here")
	header := slices.Concat([]byte{0xFF, 0x4F}, segment(0x51, "the size of the image"), comment, segment(0x52, "coding style"))
	tile := slices.Concat(comment, []byte{0xFF, 0x93}, []byte("entropy coded data"))
	sot := segment(0x90, "\x00\x00\x00\x00\x00\x00\x00\x01")
	binary.BigEndian.PutUint32(sot[6:], uint32(len(sot)+len(tile)))
	end := []byte{0xFF, 0xD9}
	whole := slices.Concat(header, sot, tile, end, []byte("Garance"))
	clean, err := scrubJPEG2000(whole)
	if err != nil {
		t.Fatal(err)
	}
	absent(t, clean, "Garance")
	for _, kept := range []string{"size of the image", "coding style", "entropy coded data"} {
		if !bytes.Contains(clean, []byte(kept)) {
			t.Errorf("%q is gone", kept)
		}
	}
	if want := len(whole) - len(comment) - len("Garance"); len(clean) != want {
		t.Errorf("%d bytes, want %d", len(clean), want)
	}
	open := slices.Clone(sot)
	binary.BigEndian.PutUint32(open[6:], 0) // the last tile-part may leave its length open
	if again, err := scrubJPEG2000(slices.Concat(header, open, tile, end, []byte("Garance"))); err != nil || len(again) != len(clean) {
		t.Errorf("open length: %d bytes, %v", len(again), err)
	}
	box := func(kind string, body []byte) []byte {
		return slices.Concat(binary.BigEndian.AppendUint32(nil, uint32(len(body)+8)), []byte(kind), body)
	}
	boxed := slices.Concat(box("jP  ", []byte{0x0D, 0x0A, 0x87, 0x0A}), box("xml ", []byte("<patient>Garance</patient>")), box("jp2c", whole[:len(whole)-7]))
	if again, err := scrubJPEG2000(boxed); err != nil || !bytes.Equal(again, clean) {
		t.Errorf("in a JP2 file: %v", err)
	}
	for n := range len(whole) {
		if scrubbed, err := scrubJPEG2000(whole[:n]); err == nil {
			absent(t, scrubbed, "Garance")
		}
	}
}

func TestTheUnusedPartOfAnRLEHeaderIsCleared(t *testing.T) {
	frame := make([]byte, 80)
	binary.LittleEndian.PutUint32(frame, 1)
	binary.LittleEndian.PutUint32(frame[4:], 64)
	copy(frame[8:], "Garance in the header")
	copy(frame[64:], "segment")
	clean, err := scrubRLE(frame)
	if err != nil || bytes.Contains(clean, []byte("Garance")) || !bytes.Equal(clean[64:], frame[64:]) || !bytes.Equal(clean[:8], frame[:8]) {
		t.Errorf("%q, %v", clean, err)
	}
	for _, bad := range [][]byte{nil, make([]byte, 63), make([]byte, 64), bytes.Repeat([]byte{0xFF}, 64)} {
		if _, err := scrubRLE(bad); err == nil {
			t.Errorf("%d bytes: no error", len(bad))
		}
	}
}

func TestFragmentsAreJoinedIntoFramesByTheOffsetTable(t *testing.T) {
	a, b, c := []byte("aaaa"), []byte("bbbbbb"), []byte("cc")
	table := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 0), 8+4+8+6)
	for name, w := range map[string]struct {
		fragments [][]byte
		count     int
		want      []string
	}{
		"one frame":               {[][]byte{{}, a, b, c}, 1, []string{"aaaabbbbbbcc"}},
		"a frame each":            {[][]byte{{}, a, b, c}, 3, []string{"aaaa", "bbbbbb", "cc"}},
		"by the table":            {[][]byte{table, a, b, c}, 2, []string{"aaaabbbbbb", "cc"}},
		"no table":                {[][]byte{{}, a, b, c}, 2, nil},
		"too few":                 {[][]byte{{}, a}, 2, nil},
		"a table that points off": {[][]byte{append(table[:4:4], 1, 0, 0, 0), a, b, c}, 2, nil},
	} {
		frames, err := framesOf(w.fragments, w.count)
		var got []string
		for _, f := range frames {
			got = append(got, string(f))
		}
		if (err != nil) != (w.want == nil) || !slices.Equal(got, w.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestAFrameThatCannotBeCheckedIsLeftOutAndReferred(t *testing.T) {
	for syntax, frame := range map[string]string{
		dicom.JPEGBaseline: "not a JPEG Garance", "1.2.840.10008.1.2.4.90": "not JPEG 2000 Garance",
		"1.2.840.10008.1.2.4.100": "an MPEG film of Garance ", "1.2.840.10008.1.2.4.110": "JPEG XL of Garance",
	} {
		f := radiograph()
		f.TransferSyntax = syntax
		f.DataSet.Put(&dicom.Element{Tag: dicom.PixelData, VR: dicom.OB, Fragments: [][]byte{{}, []byte(frame)}})
		result := apply(t, f)
		if result.File.DataSet.Has(dicom.PixelData) || !refers(result, vigie.ReasonDeidentify) {
			t.Errorf("%s: reasons %v", syntax, result.Refer)
		}
		absent(t, written(t, result.File), "Garance")
	}
}

func TestALookUpTableOfAnotherLengthIsLeftOutAndReferred(t *testing.T) {
	for name, table := range map[string][]byte{
		"longer": []byte{0, 0, 1, 0, 2, 0, 3, 0, 'G', 'a'}, "shorter": {0, 0}, "wider": []byte("Garance "),
	} {
		f := radiograph()
		lut := &dicom.DataSet{}
		lut.PutInt(lutDescriptor, 4, 0, 12)
		lut.PutBytes(lutData, dicom.OW, table)
		f.DataSet.PutItems(0x00283010, lut)
		result := apply(t, f)
		if result.File.DataSet.Item(0x00283010).Has(lutData) || !refers(result, vigie.ReasonPixels) {
			t.Errorf("%s: kept", name)
		}
	}
}
