package dicom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// explicit writes an explicit little endian element as a hostile hand would:
// with the length it is told.
func explicit(tag Tag, vr VR, length uint32, value string) []byte {
	b := binary.LittleEndian.AppendUint16(nil, tag.Group())
	b = binary.LittleEndian.AppendUint16(b, tag.Element())
	b = append(b, vr...)
	if representations[vr].long || !vr.Known() {
		b = binary.LittleEndian.AppendUint32(append(b, 0, 0), length)
	} else {
		b = binary.LittleEndian.AppendUint16(b, uint16(length))
	}
	return append(b, value...)
}

// structural writes an item or delimiter.
func structural(tag Tag, length uint32) []byte {
	b := binary.LittleEndian.AppendUint16(nil, tag.Group())
	b = binary.LittleEndian.AppendUint16(b, tag.Element())
	return binary.LittleEndian.AppendUint32(b, length)
}

func joined(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

const undefined = undefinedLength

func TestATruncatedFileIsAnErrorAndWhatWasComplete(t *testing.T) {
	whole := realFile(t, "CT_small.dcm")
	full := parseBytes(t, whole)
	last := 0
	for cut := 140; cut < len(whole)-200; cut += 97 {
		f, err := Parse(bytes.NewReader(whole[:cut]), Limits{})
		if err == nil {
			// a cut between two elements is a complete data set
			if f.DataSet.Len() >= full.DataSet.Len() {
				t.Fatalf("cut at %d: nothing is missing", cut)
			}
			continue
		}
		if !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if f.DataSet.Len() < last {
			t.Fatalf("cut at %d: %d elements, but %d were there before", cut, f.DataSet.Len(), last)
		}
		last = f.DataSet.Len()
		for e := range f.DataSet.All() {
			if want := full.DataSet.Get(e.Tag); want == nil || e.VR != SQ && !bytes.Equal(e.Value, want.Value) {
				t.Fatalf("cut at %d: %s is not what the whole file has", cut, e.Tag)
			}
		}
	}
	if last < 100 {
		t.Errorf("only %d elements before the last cut", last)
	}
}

func TestErrorsNameTagAndPositionAndNeverAValue(t *testing.T) {
	data := joined(explicit(PatientName, PN, 14, "Secret^Person "), explicit(PatientID, LO, 400, "SECRET-17"))
	d, err := ParseDataSet(bytes.NewReader(data), ExplicitLittleEndian, Limits{})
	if !errors.Is(err, ErrTruncated) || !strings.Contains(err.Error(), "(0010,0020)") || !strings.Contains(err.Error(), "byte 30") {
		t.Errorf("got %v", err)
	}
	if strings.Contains(strings.ToLower(err.Error()), "secret") {
		t.Errorf("the error holds a value: %v", err)
	}
	if d.String(PatientName) != "Secret^Person" || d.Has(PatientID) {
		t.Error("not what was complete")
	}
}

func TestMalformedDataSetsAreErrorsOfTheirKind(t *testing.T) {
	sequence := func(parts ...[]byte) []byte {
		return joined(append([][]byte{explicit(ReferencedImageSequence, SQ, undefined, "")}, parts...)...)
	}
	deep := func(n int) []byte {
		var b []byte
		for range n {
			b = joined(b, explicit(ReferencedImageSequence, SQ, undefined, ""), structural(item, undefined))
		}
		return b
	}
	for name, c := range map[string]struct {
		data   []byte
		want   error
		limits Limits
	}{
		"a value beyond its item":          {sequence(structural(item, 12), explicit(PatientID, LO, 100, strings.Repeat("x", 100))), ErrMalformed, Limits{}},
		"an item beyond its sequence":      {joined(explicit(ReferencedImageSequence, SQ, 10, ""), structural(item, 50), make([]byte, 50)), ErrMalformed, Limits{}},
		"an element where an item belongs": {sequence(explicit(PatientID, LO, 2, "ab")), ErrMalformed, Limits{}},
		"a delimiter outside a sequence":   {joined(explicit(PatientID, LO, 2, "ab"), structural(itemDelimitation, 0)), ErrMalformed, Limits{}},
		"a sequence without an end":        {sequence(structural(item, undefined)), ErrTruncated, Limits{}},
		"pixels without a fragment":        {explicit(PixelData, UT, undefined, "")[:12], ErrTruncated, Limits{}},
		"an undefined length of no SQ":     {explicit(ImageComments, UT, undefined, ""), ErrMalformed, Limits{}},
		"an attribute twice":               {joined(explicit(PatientID, LO, 2, "ab"), explicit(PatientID, LO, 2, "cd")), ErrMalformed, Limits{}},
		"a fragment of undefined length":   {joined(explicit(PixelData, OB, undefined, ""), structural(item, undefined)), ErrMalformed, Limits{}},
		"fragments without an end":         {joined(explicit(PixelData, OB, undefined, ""), structural(item, 0)), ErrTruncated, Limits{}},
		"half a header":                    {joined(explicit(PatientID, LO, 2, "ab"), []byte{0x10, 0x00, 0x30}), ErrTruncated, Limits{}},
		"nesting":                          {deep(40), ErrLimit, Limits{}},
		"nesting within a small limit":     {deep(4), ErrLimit, Limits{Depth: 3}},
		"a long value":                     {explicit(PixelData, OB, 2000, strings.Repeat("x", 2000)), ErrLimit, Limits{Element: 1000}},
		"many bytes":                       {joined(explicit(ImageComments, LT, 600, strings.Repeat("x", 600)), explicit(PixelData, OB, 600, strings.Repeat("x", 600))), ErrLimit, Limits{Total: 1000}},
		"many items":                       {sequence(bytes.Repeat(structural(item, 0), 500)), ErrLimit, Limits{Elements: 100}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseDataSet(bytes.NewReader(c.data), ExplicitLittleEndian, c.limits); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			// the same from a stream whose size nobody knows
			if _, err := ParseDataSet(iotest.OneByteReader(bytes.NewReader(c.data)), ExplicitLittleEndian, c.limits); !errors.Is(err, c.want) {
				t.Errorf("from a stream: got %v, want %v", err, c.want)
			}
		})
	}
}

func TestALengthThatIsOnlyClaimedIsNotAllocated(t *testing.T) {
	claim := joined(explicit(PatientID, LO, 2, "ab"), explicit(PixelData, OW, 1<<30-2, "few bytes"))
	for name, r := range map[string]io.Reader{"of known size": bytes.NewReader(claim), "of unknown size": io.MultiReader(bytes.NewReader(claim))} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ParseDataSet(r, ExplicitLittleEndian, Limits{})
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrTruncated) {
			t.Errorf("%s: %v", name, err)
		}
		if spent := after.TotalAlloc - before.TotalAlloc; spent > 1<<20 {
			t.Errorf("%s: %d bytes were allocated for a claim of a gigabyte", name, spent)
		}
	}
}

func TestADeflateBombIsStoppedByItsRatio(t *testing.T) {
	d := new(DataSet)
	d.PutString(SOPInstanceUID, "2.25.1")
	d.PutBytes(PixelData, OW, make([]byte, 64<<20))
	var out bytes.Buffer
	if err := d.Write(&out, DeflatedLittleEndian); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseDataSet(bytes.NewReader(out.Bytes()), DeflatedLittleEndian, Limits{}); !errors.Is(err, ErrLimit) {
		t.Errorf("%d bytes inflate to 64 MiB: %v", out.Len(), err)
	}
	if _, err := ParseDataSet(bytes.NewReader(out.Bytes()), DeflatedLittleEndian, Limits{Expansion: 2000}); err != nil {
		t.Errorf("with a limit that allows it: %v", err)
	}
	if _, err := ParseDataSet(bytes.NewReader(out.Bytes()[:out.Len()/2]), DeflatedLittleEndian, Limits{Expansion: 2000}); !errors.Is(err, ErrTruncated) {
		t.Errorf("half of it: %v", err)
	}
	if _, err := ParseDataSet(strings.NewReader("\xff\xff\xff\xff\xff"), DeflatedLittleEndian, Limits{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("not deflated at all: %v", err)
	}
}

func TestElementsOutOfOrderAreSortedInButNotByTheMillion(t *testing.T) {
	d, err := ParseDataSet(bytes.NewReader(joined(explicit(PatientID, LO, 2, "ab"), explicit(Modality, CS, 2, "CR"))), ExplicitLittleEndian, Limits{})
	if err != nil || d.String(Modality) != "CR" || d.elements[0].Tag != Modality {
		t.Errorf("two elements in the wrong order: %v", err)
	}
	var backwards []byte
	for i := 60000; i > 0; i-- {
		backwards = append(backwards, explicit(Tag(0x00110000+i), UN, 0, "")...)
	}
	if _, err := ParseDataSet(bytes.NewReader(backwards), ExplicitLittleEndian, Limits{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("sixty thousand elements backwards: %v", err)
	}
}

func TestFilesWithoutPreambleOrMetaAreRecognised(t *testing.T) {
	whole := realFile(t, "MR_small.dcm")
	f := parseBytes(t, whole)
	for _, syntax := range []string{ImplicitLittleEndian, ExplicitLittleEndian, ExplicitBigEndian} {
		var body bytes.Buffer
		if err := f.DataSet.Write(&body, syntax); err != nil {
			t.Fatal(err)
		}
		bare := parseBytes(t, body.Bytes())
		if bare.TransferSyntax != syntax || bare.DataSet.String(PatientID) != f.DataSet.String(PatientID) {
			t.Errorf("a bare data set in %s is taken for %s", syntax, bare.TransferSyntax)
		}
	}
	if headless := parseBytes(t, whole[132:]); headless.TransferSyntax != ExplicitLittleEndian || headless.DataSet.Len() != f.DataSet.Len() {
		t.Error("meta information without a preamble is not recognised")
	}
}

func TestWhatIsNotDICOMIsCalledThat(t *testing.T) {
	for name, data := range map[string]string{"nothing": "", "text": "hello, this is no image at all, but a letter", "a PNG": "\x89PNG\r\n\x1a\n0000000000000000", "zeros": strings.Repeat("\x00", 500), "few bytes": "abc"} {
		f, err := Parse(strings.NewReader(data), Limits{})
		if !errors.Is(err, ErrNotDICOM) && !errors.Is(err, ErrTruncated) || f != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheHeaderAloneIsReadWithoutThePixels(t *testing.T) {
	data := radiograph(t)
	r := &counted{r: bytes.NewReader(data)}
	f, err := ParseHeader(r, PixelData, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := f.DataSet.Int(Rows); n != 2140 || f.DataSet.Has(PixelData) {
		t.Error("not the header alone")
	}
	if r.n > 1<<16 {
		t.Errorf("%d bytes were read for it", r.n)
	}
}

type counted struct {
	r io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

func TestABrokenConnectionIsNotATruncatedFile(t *testing.T) {
	broken := errors.New("connection reset")
	data := radiograph(t)
	_, err := Parse(io.MultiReader(bytes.NewReader(data[:10000]), iotest.ErrReader(broken)), Limits{})
	if !errors.Is(err, broken) || errors.Is(err, ErrTruncated) {
		t.Errorf("got %v", err)
	}
}

func TestASequenceHiddenInUNIsFound(t *testing.T) {
	name := joined(structural(PatientName, 12), []byte("Hidden^Name "))
	hidden := joined(structural(item, uint32(len(name))), name)
	for label, data := range map[string][]byte{
		"defined length":   joined(explicit(RequestAttributesSequence, UN, uint32(len(hidden)), string(hidden))),
		"undefined length": joined(explicit(RequestAttributesSequence, UN, undefined, string(hidden)), structural(sequenceDelimitation, 0)),
	} {
		d, err := ParseDataSet(bytes.NewReader(data), ExplicitLittleEndian, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", label, err)
		}
		if got := d.Item(RequestAttributesSequence).String(PatientName); got != "Hidden^Name" {
			t.Errorf("%s: the name inside is %q", label, got)
		}
	}
	d, err := ParseDataSet(bytes.NewReader(explicit(RequestAttributesSequence, UN, 6, "chaos!")), ExplicitLittleEndian, Limits{})
	if err != nil || d.Get(RequestAttributesSequence).VR != UN {
		t.Errorf("UN that is no sequence: %v", err)
	}
}

func TestOddLengthsAreToleratedAndGroupLengthsForgotten(t *testing.T) {
	data := joined(explicit(NewTag(8, 0), UL, 4, "\x64\x00\x00\x00"), explicit(Modality, CS, 3, "CRX"), explicit(PatientID, LO, 5, "abcde"))
	d, err := ParseDataSet(bytes.NewReader(data), ExplicitLittleEndian, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if d.String(Modality) != "CRX" || d.String(PatientID) != "abcde" || d.Has(NewTag(8, 0)) {
		t.Errorf("read %v", d.Strings(Modality))
	}
}

func TestEveryCutAndEveryFlippedByteOfARealFileIsSurvived(t *testing.T) {
	whole := realFile(t, "test-SR.dcm")
	for cut := 0; cut < len(whole); cut += 13 {
		if f, err := Parse(bytes.NewReader(whole[:cut]), Limits{}); err == nil && f == nil {
			t.Fatalf("cut at %d: neither file nor error", cut)
		}
	}
	for at := 132; at < len(whole); at += 7 {
		bent := bytes.Clone(whole)
		bent[at] ^= 0xFF
		f, err := Parse(bytes.NewReader(bent), Limits{})
		if err == nil {
			if err := f.Write(io.Discard); err != nil {
				t.Fatalf("flipped at %d: read, but not written: %v", at, err)
			}
		}
	}
}

// FuzzParse: whatever parses is written and read back the same, and nothing
// panics or allocates beyond what it is given.
func FuzzParse(f *testing.F) {
	for _, d := range smallFiles() {
		var out bytes.Buffer
		if err := d.Write(&out); err != nil {
			f.Fatal(err)
		}
		f.Add(out.Bytes())
	}
	limits := Limits{Total: 1 << 20, Element: 1 << 18, Elements: 5000, Frame: 1 << 20}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(bytes.NewReader(data), limits)
		if file == nil {
			if err == nil {
				t.Fatal("neither file nor error")
			}
			return
		}
		file.DataSet.Walk(func(_ []Tag, within *DataSet, e *Element) bool {
			within.Strings(e.Tag)
			within.Floats(e.Tag)
			return true
		})
		if _, err := file.DataSet.MarshalJSON(); err != nil {
			t.Fatalf("JSON: %v", err)
		}
		file.DataSet.Overlays()
		if frame, err := file.Frame(0, limits); err == nil {
			if len(frame.Data) > 1<<20 {
				t.Fatalf("a frame of %d bytes", len(frame.Data))
			}
			_, _ = file.LuminanceOf(frame)
		}
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := file.Write(&out); err != nil {
			if errors.Is(err, ErrTransferSyntax) {
				return // pixels that contradict the syntax named
			}
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := Parse(bytes.NewReader(out.Bytes()), Limits{})
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if a, b := file.DataSet.Len(), again.DataSet.Len(); a != b {
			t.Fatalf("%d elements were read, written and read as %d", a, b)
		}
	})
}

// smallFiles are the seeds of the fuzzer: one of each shape.
func smallFiles() []*File {
	var out []*File
	for _, syntax := range nativeSyntaxes {
		out = append(out, NewFile(smallImage(8, 1), syntax))
	}
	rle := smallImage(16, 3)
	frame, err := NewFile(rle, ExplicitLittleEndian).Frame(0, Limits{})
	if err != nil {
		panic(err)
	}
	rle.Put(Encapsulate([][]byte{EncodeRLE(frame)}))
	out = append(out, NewFile(rle, RLELossless))
	nested := smallImage(8, 1)
	nested.PutItems(RequestAttributesSequence, smallImage(8, 1), new(DataSet))
	nested.PutBytes(NewTag(0x0011, 0x1001), UN, []byte{1, 2, 3, 4})
	nested.PutString(SpecificCharacterSet, "", "ISO 2022 IR 87", "ISO 2022 IR 149")
	return append(out, NewFile(nested, ExplicitLittleEndian))
}

// smallImage is 4 × 3 pixels of that many bits and samples.
func smallImage(bits, samples int) *DataSet {
	d := new(DataSet)
	d.PutString(SOPClassUID, "1.2.840.10008.5.1.4.1.1.7")
	d.PutString(SOPInstanceUID, "2.25.4")
	d.PutString(PatientName, "Small^Image")
	d.PutInt(Rows, 3)
	d.PutInt(Columns, 4)
	d.PutInt(SamplesPerPixel, int64(samples))
	d.PutString(PhotometricInterpretation, map[int]string{1: "MONOCHROME2", 3: "RGB"}[samples])
	if samples == 3 {
		d.PutInt(PlanarConfiguration, 0)
	}
	d.PutInt(BitsAllocated, int64(bits))
	d.PutInt(BitsStored, int64(bits))
	d.PutInt(HighBit, int64(bits-1))
	d.PutInt(PixelRepresentation, 0)
	pixels := make([]byte, 12*samples*bits/8)
	for i := range pixels {
		pixels[i] = byte(i * 7)
	}
	d.PutBytes(PixelData, OW, pixels)
	return d
}
