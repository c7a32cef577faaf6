package deidentify

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/vigie/vigie/medical/dicom"
)

var testKey = []byte("a key for tests, thirty-two bytes")

func profile(t testing.TB) *Profile {
	t.Helper()
	p, err := New(testKey)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// radiograph returns a small but complete CR object.
func radiograph() *dicom.File {
	d := &dicom.DataSet{}
	d.PutString(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.1")
	d.PutString(dicom.SOPInstanceUID, "1.2.3.4.5")
	d.PutString(dicom.StudyInstanceUID, "1.2.3.4")
	d.PutString(dicom.SeriesInstanceUID, "1.2.3.4.1")
	d.PutString(dicom.Modality, "CR")
	d.PutString(dicom.PatientName, "Garance^Reine")
	d.PutString(dicom.PatientID, "IPP-4711-X")
	d.PutString(dicom.BodyPartExamined, "CHEST")
	d.PutString(dicom.ViewPosition, "AP")
	d.PutInt(dicom.Rows, 4)
	d.PutInt(dicom.Columns, 4)
	d.PutInt(dicom.SamplesPerPixel, 1)
	d.PutString(dicom.PhotometricInterpretation, "MONOCHROME2")
	d.PutInt(dicom.BitsAllocated, 16)
	d.PutInt(dicom.BitsStored, 12)
	d.PutInt(dicom.HighBit, 11)
	d.PutInt(dicom.PixelRepresentation, 0)
	d.PutBytes(dicom.PixelData, dicom.OW, bytes.Repeat([]byte{1, 2}, 16))
	return &dicom.File{Meta: &dicom.DataSet{}, TransferSyntax: dicom.ExplicitLittleEndian, DataSet: d}
}

func written(t testing.TB, f *dicom.File) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := f.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// traces returns the forms in which a planted text could survive in a file.
func traces(text string) map[string][]byte {
	wide := utf16.Encode([]rune(text))
	little, big := make([]byte, 0, 2*len(wide)), make([]byte, 0, 2*len(wide))
	for _, u := range wide {
		little = append(little, byte(u), byte(u>>8))
		big = append(big, byte(u>>8), byte(u))
	}
	swapped := []byte(text)
	for i := 0; i+1 < len(swapped); i += 2 {
		swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
	}
	return map[string][]byte{
		"as it is": []byte(text), "upper case": []byte(strings.ToUpper(text)), "lower case": []byte(strings.ToLower(text)),
		"UTF-16LE": little, "UTF-16BE": big, "byte-swapped": swapped,
	}
}

func absent(t testing.TB, file []byte, text string) {
	t.Helper()
	lower := bytes.ToLower(file)
	for form, trace := range traces(text) {
		if bytes.Contains(file, trace) || bytes.Contains(lower, bytes.ToLower(trace)) {
			t.Errorf("%q survives %s", text, form)
		}
	}
}

// planted returns an element of the tag that carries text, in the VR that the
// standard gives it where that can hold text, and the text.
func planted(tag dicom.Tag, n int) (*dicom.Element, string) {
	a, ok := dicom.Lookup(tag)
	vr := a.VR
	if !ok {
		vr = dicom.LO
	}
	text := fmt.Sprintf("Plant%05dx", n)
	switch vr {
	case dicom.SQ:
		item := &dicom.DataSet{}
		item.PutText(dicom.PatientComments, dicom.LT, text)
		item.PutText(dicom.CodeValue, dicom.SH, text)
		item.PutText(dicom.CodingSchemeDesignator, dicom.SH, "99"+text)
		item.PutText(dicom.CodeMeaning, dicom.LO, text)
		item.PutText(0x0040A160, dicom.UT, text) // TextValue: not in the basic profile's table, not on the keep list
		return &dicom.Element{Tag: tag, VR: dicom.SQ, Items: []*dicom.DataSet{item}}, text
	case dicom.UI:
		text = fmt.Sprintf("1.2.3.99%05d.77", n)
	}
	value := []byte(text)
	for len(value)%8 != 0 { // a whole number of elements in any binary VR
		value = append(value, '.')
	}
	if vr == dicom.UI {
		value = append([]byte(text), make([]byte, len(text)%2)...)
	}
	return &dicom.Element{Tag: tag, VR: vr, Value: value}, text
}

// every calls check for each row of the table and for tags that its patterns cover.
func everyRow(check func(r row)) {
	for _, table := range tables {
		for _, r := range table {
			check(r)
		}
	}
	for _, r := range []row{
		{0x50000005, X, "CurveDimensions"}, {0x50003000, X, "CurveData"}, {0x501E0022, X, "CurveDescription"},
		{0x60003000, X, "OverlayData"}, {0x601E3000, X, "OverlayData"}, {0x60004000, X, "OverlayComments"}, {0x601E4000, X, "OverlayComments"},
		{0x00090010, X, "private creator"}, {0x00091001, X, "private"}, {0x60013000, X, "private, like an overlay"},
		{0x00110010, X, "private creator"}, {0x7FE11010, X, "private"}, {0xFFF50099, X, "private"},
	} {
		check(r)
	}
}

func TestTheTableHasEveryRowOfTheStandardWithItsKeyword(t *testing.T) {
	rows, last := 0, dicom.Tag(0)
	byAction := map[Action]int{}
	for _, table := range tables {
		for _, r := range table {
			rows++
			byAction[r.action]++
			if r.tag <= last && rows > 1 {
				t.Errorf("%s is out of order or twice", r.tag)
			}
			last = r.tag
			a, ok := dicom.Lookup(r.tag)
			if !ok || a.Keyword != r.keyword {
				t.Errorf("%s is %s in PS3.6, %s in the table", r.tag, a.Keyword, r.keyword)
			}
			if r.action.resolve() == D && a.VR != dicom.SQ && a.VR != dicom.UI && dummies[a.VR] == "" {
				t.Errorf("%s has no dummy for %s", r.keyword, a.VR)
			}
			if r.action.resolve() == U && a.VR != dicom.UI && a.VR != dicom.SQ {
				t.Errorf("%s is U but %s", r.keyword, a.VR)
			}
		}
	}
	for _, p := range patterns {
		rows++
		byAction[p.action]++
	}
	// Counted in the table of edition 2024e.
	want := map[Action]int{X: 384, D: 92, U: 54, Z: 42, XD: 22, XZ: 11, XZD: 8, ZD: 6, XZU: 2}
	if rows != 621 {
		t.Errorf("%d rows, the standard has 621", rows)
	}
	for a, n := range want {
		if byAction[a] != n {
			t.Errorf("%d rows of action %s, the standard has %d", byAction[a], a, n)
		}
	}
}

func TestEveryRowOfTheTableIsAppliedAtTheTopAndNested(t *testing.T) {
	p := profile(t)
	n := 0
	everyRow(func(r row) {
		n++
		if r.tag.Group() < 8 {
			return // not attributes of a data set: tested below
		}
		e, text := planted(r.tag, n)
		inner, innerText := planted(r.tag, n+50000)
		deep, deepText := planted(r.tag, n+70000)
		f := radiograph()
		f.DataSet.Put(e)
		region, modifier, deepest := &dicom.DataSet{}, &dicom.DataSet{}, &dicom.DataSet{}
		region.Put(inner)
		deepest.Put(deep)
		modifier.PutItems(dicom.AnatomicRegionSequence, deepest)
		f.DataSet.PutItems(dicom.SharedFunctionalGroupsSequence, region)
		region.PutItems(dicom.FrameVOILUTSequence, modifier)
		result, err := p.Apply(f)
		if err != nil {
			t.Errorf("%s: %v", r.keyword, err)
			return
		}
		file := written(t, result.File)
		absent(t, file, text)
		absent(t, file, innerText)
		absent(t, file, deepText)

		out := result.File.DataSet
		nested := out.Item(dicom.SharedFunctionalGroupsSequence)
		for where, d := range map[string]*dicom.DataSet{"at the top": out, "nested": nested,
			"nested three deep": nested.Item(dicom.FrameVOILUTSequence).Item(dicom.AnatomicRegionSequence)} {
			got := d.Get(r.tag)
			identity := where == "at the top" && (r.tag == dicom.PatientName || r.tag == dicom.PatientID)
			switch action := r.action.resolve(); {
			case identity:
				if d.String(r.tag) != string(result.Patient) {
					t.Errorf("%s is %q, want the pseudonym", r.keyword, d.String(r.tag))
				}
			case action == X && got != nil:
				t.Errorf("%s %s: X must remove it", r.keyword, where)
			case action == Z && (got == nil || !got.Empty() || len(got.Items) > 0):
				t.Errorf("%s %s: Z must leave it empty", r.keyword, where)
			case action == D && got.Empty():
				t.Errorf("%s %s: D must leave a dummy", r.keyword, where)
			case action == U && got == nil:
				t.Errorf("%s %s: U must leave it", r.keyword, where)
			case action == U && got.VR == dicom.UI && !strings.HasPrefix(d.UID(r.tag), "2.25."):
				t.Errorf("%s %s: U left %q", r.keyword, where, d.UID(r.tag))
			}
		}
	})
	if n < 617 {
		t.Fatalf("%d rows tried", n)
	}
}

func TestCommandsAndFileMetaInsideADataSetAreRemoved(t *testing.T) {
	p := profile(t)
	for i, tag := range []dicom.Tag{0x00001000, 0x00001001, 0x00000110, 0x00020003, 0x00020016, 0x00020100, 0x00041511, 0x00041500, 0x00080000, 0x00100000} {
		f := radiograph()
		e, text := planted(tag, i)
		f.DataSet.Put(e)
		result, err := p.Apply(f)
		if err != nil {
			t.Fatal(err)
		}
		if result.File.DataSet.Has(tag) {
			t.Errorf("%s stayed in the data set", tag)
		}
		absent(t, written(t, result.File), text)
	}
}

func TestTheFileMetaInformationIsRewrittenNotCopied(t *testing.T) {
	f := radiograph()
	f.Meta.PutString(dicom.MediaStorageSOPInstanceUID, "1.2.3.4.5")
	f.Meta.PutString(dicom.SourceApplicationEntityTitle, "GARANCEWARD7")
	f.Meta.PutString(0x00020102, "1.2.3.777777")                        // PrivateInformationCreatorUID
	f.Meta.PutBytes(0x00020102+0, dicom.OB, []byte("secret of ward 7")) // and as bytes
	result, err := profile(t).Apply(f)
	if err != nil {
		t.Fatal(err)
	}
	file := written(t, result.File)
	for _, text := range []string{"GARANCEWARD7", "777777", "secret of ward 7", "1.2.3.4.5"} {
		absent(t, file, text)
	}
	if !bytes.Equal(file[:128], make([]byte, 128)) {
		t.Error("the preamble is not zero")
	}
	if got, want := result.File.Meta.UID(dicom.MediaStorageSOPInstanceUID), profile(t).UID("1.2.3.4.5"); got != want {
		t.Errorf("media storage SOP instance UID %q, want %q", got, want)
	}
}

// A safety net under the keep list: nothing that the table acts on is kept, and
// nothing of free text is kept as it came. (keepers panics on the first.)
func TestTheKeepListKeepsNoFreeText(t *testing.T) {
	if len(keepers()) < 250 {
		t.Fatalf("%d attributes on the keep list", len(keepers()))
	}
	free := map[dicom.VR]bool{dicom.LO: true, dicom.SH: true, dicom.LT: true, dicom.ST: true, dicom.UT: true, dicom.UC: true,
		dicom.PN: true, dicom.UR: true, dicom.UN: true, dicom.AE: true, dicom.DA: true, dicom.DT: true, dicom.TM: true, dicom.AS: true}
	for tag, k := range keepers() {
		a, _ := dicom.Lookup(tag)
		if free[a.VR] && k.check == nil && !k.blank && !k.replace {
			t.Errorf("%s (%s) is kept without a check", a.Keyword, a.VR)
		}
		if k.number && units[a.VR] == 0 && a.VR != dicom.DS && a.VR != dicom.IS {
			t.Errorf("%s (%s) is no number", a.Keyword, a.VR)
		}
		if k.sequence != (a.VR == dicom.SQ) {
			t.Errorf("%s (%s): sequence %v", a.Keyword, a.VR, k.sequence)
		}
		if a.VR == dicom.UI && k.check == nil {
			t.Errorf("%s: a UID is kept without a check", a.Keyword)
		}
		if k.check != nil {
			if _, ok := k.check([]string{"GARANCE"}); ok && tag != dicom.ImageType {
				t.Errorf("%s lets a name through", a.Keyword)
			}
		}
	}
}
