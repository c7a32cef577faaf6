package deidentify

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/vigie/vigie/medical/dicom"
)

// tagsToDraw are all tags that a random data set may have: those of the table,
// of the keep list, private ones, unknown ones, and common others.
func tagsToDraw() []dicom.Tag {
	var tags []dicom.Tag
	everyRow(func(r row) {
		if r.tag.Group() >= 8 {
			tags = append(tags, r.tag)
		}
	})
	for tag, k := range keepers() {
		if !k.custom {
			tags = append(tags, tag)
		}
	}
	for _, keyword := range strings.Fields(`ProcedureCodeSequence ConvolutionKernel SequenceName ContributingEquipmentSequence
		WindowCenterWidthExplanation TextValue ConceptNameCodeSequence CodeValue CodeMeaning CodingSchemeDesignator ViewName
		RadiopharmaceuticalInformationSequence FrameLabel PixelDataProviderURL SpecificCharacterSet QueryRetrieveLevel`) {
		if tag, ok := dicom.TagOf(keyword); ok {
			tags = append(tags, tag)
		} else {
			panic(keyword)
		}
	}
	tags = append(tags, 0x00091234, 0x00290010, 0x0029ABCD, 0x00081111+0x7000, 0x0018FFFE)
	slices.Sort(tags)
	return tags
}

var anyTag = rapid.SampledFrom(tagsToDraw())

// plants are the identities in random data sets: words, so that none is a
// number or a term by chance.
var plants = []string{"Garance^Reine", "GARANCE", "REINE DE LA TOUR", "garance.reine@example.org", "Ward Zebra", "Zebra^Otto"}

// traceOf are the words to look for afterwards.
var traceOf = []string{"garance", "reine", "zebra"}

func drawDataSet(t *rapid.T, depth int) *dicom.DataSet {
	d := &dicom.DataSet{}
	for range rapid.IntRange(0, 12).Draw(t, "elements") {
		tag := anyTag.Draw(t, "tag")
		a, _ := dicom.Lookup(tag)
		vr := a.VR
		if vr == "" || rapid.IntRange(0, 9).Draw(t, "liar") == 0 {
			vr = rapid.SampledFrom([]dicom.VR{dicom.LO, dicom.CS, dicom.UN, dicom.OB, dicom.UT, dicom.PN, dicom.UI, dicom.US, dicom.FD}).Draw(t, "vr")
		}
		if a.VR == dicom.SQ && vr == dicom.SQ {
			var items []*dicom.DataSet
			if depth < 4 {
				for range rapid.IntRange(0, 3).Draw(t, "items") {
					items = append(items, drawDataSet(t, depth+1))
				}
			}
			d.PutItems(tag, items...)
			continue
		}
		text := rapid.SampledFrom(plants).Draw(t, "plant")
		switch rapid.IntRange(0, 5).Draw(t, "form") {
		case 0:
			text = "CHEST\\" + text
		case 1:
			text = text + "\\" + text
		case 2:
			text = ""
		}
		value := []byte(text)
		for len(value)%8 != 0 {
			value = append(value, ' ')
		}
		d.Put(&dicom.Element{Tag: tag, VR: vr, Value: value})
	}
	return d
}

// shape is a data set without its values.
func shape(d *dicom.DataSet) string {
	var b strings.Builder
	d.Walk(func(path []dicom.Tag, _ *dicom.DataSet, e *dicom.Element) bool {
		fmt.Fprintf(&b, "%v %s %s %d items, empty %v\n", path, e.Tag, e.VR, len(e.Items), e.Empty())
		return true
	})
	return b.String()
}

func TestWhateverTheDataSetNoPlantedIdentitySurvives(t *testing.T) {
	p := profile(t)
	rapid.Check(t, func(t *rapid.T) {
		f := radiograph()
		for e := range drawDataSet(t, 0).All() {
			if e.Tag != dicom.PixelData {
				f.DataSet.Put(e)
			}
		}
		for _, tag := range []dicom.Tag{dicom.SOPClassUID, dicom.SOPInstanceUID, dicom.StudyInstanceUID, dicom.SeriesInstanceUID} {
			if f.DataSet.Empty(tag) || f.DataSet.Get(tag).VR != dicom.UI {
				f.DataSet.PutString(tag, "1.2.3."+tag.Hex()[4:])
			}
		}
		result, err := p.Apply(f)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := result.File.Write(&b); err != nil {
			t.Fatal(err)
		}
		lower := bytes.ToLower(b.Bytes())
		for _, trace := range traceOf {
			if bytes.Contains(lower, []byte(trace)) {
				t.Fatalf("%q survives:\n%s", trace, shape(result.File.DataSet))
			}
		}
		result.File.DataSet.Walk(func(path []dicom.Tag, within *dicom.DataSet, e *dicom.Element) bool {
			if _, registered := dicom.Lookup(e.Tag); e.Tag.Private() || !registered {
				t.Fatalf("%v %s stays", path, e.Tag)
			}
			return true
		})
		// The copy is a file, and de-identifying it again changes no more than names.
		back, err := dicom.Parse(&b, dicom.Limits{})
		if err != nil {
			t.Fatalf("the copy does not parse: %v", err)
		}
		again, err := p.Apply(back)
		if err != nil {
			t.Fatal(err)
		}
		if one, two := shape(result.File.DataSet), shape(again.File.DataSet); one != two {
			t.Fatalf("de-identified twice, the shape changes:\n%s\n%s", one, two)
		}
		// The same UID is the same everywhere, and the same in the next object.
		if got := result.File.DataSet.UID(dicom.StudyInstanceUID); got != p.UID(f.DataSet.UID(dicom.StudyInstanceUID)) {
			t.Fatalf("study %q", got)
		}
		if second, err := p.Apply(f); err != nil || second.Patient != result.Patient || second.File.DataSet.UID(dicom.SOPInstanceUID) != result.File.DataSet.UID(dicom.SOPInstanceUID) {
			t.Fatalf("two copies of one object differ: %v", err)
		}
	})
}

func FuzzApply(f *testing.F) {
	var b bytes.Buffer
	if err := radiograph().Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	compressed := radiograph()
	compressed.TransferSyntax = dicom.JPEGBaseline
	compressed.DataSet.Put(&dicom.Element{Tag: dicom.PixelData, VR: dicom.OB, Fragments: [][]byte{{}, {0xFF, 0xD8, 0xFF, 0xFE, 0, 4, 'G', 'a', 0xFF, 0xD9}}})
	b.Reset()
	if err := compressed.Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	p := profile(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{Total: 1 << 20, Element: 1 << 20, Elements: 1 << 12})
		if err != nil {
			return
		}
		result, err := p.Apply(file)
		if err != nil {
			return
		}
		for _, tag := range []dicom.Tag{dicom.PatientBirthDate, dicom.AccessionNumber, dicom.OtherPatientIDs, dicom.PatientAddress} {
			if !result.File.DataSet.Empty(tag) {
				t.Errorf("%s has a value", tag)
			}
		}
		var out bytes.Buffer
		if err := result.File.Write(&out); err != nil {
			t.Fatalf("the copy cannot be written: %v", err)
		}
		if _, err := dicom.Parse(&out, dicom.Limits{}); err != nil {
			t.Fatalf("the copy cannot be read: %v", err)
		}
	})
}

func FuzzScrubbers(f *testing.F) {
	f.Add([]byte{0xFF, 0xD8, 0xFF, 0xE0, 0, 16, 'J', 'F', 'I', 'F', 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0xFF, 0xDA, 0, 2, 1, 0xFF, 0, 0xFF, 0xD9})
	f.Add([]byte{0xFF, 0x4F, 0xFF, 0x64, 0, 4, 0, 1, 0xFF, 0x90, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 0xFF, 0x93, 1, 2, 0xFF, 0xD9})
	f.Add(append([]byte{1, 0, 0, 0, 64}, make([]byte, 70)...))
	f.Fuzz(func(t *testing.T, frame []byte) {
		for syntax, scrub := range scrubbers {
			clean, err := scrub(frame)
			if err != nil {
				continue
			}
			if len(clean) > len(frame)+2 {
				t.Errorf("%s: %d bytes become %d", syntax, len(frame), len(clean))
			}
			again, err := scrub(clean)
			if err != nil || !bytes.Equal(again, clean) {
				t.Errorf("%s: scrubbing twice is not scrubbing once: %v", syntax, err)
			}
		}
	})
}
