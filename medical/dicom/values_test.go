package dicom

import (
	"math"
	"math/rand"
	"reflect"
	"testing"
	"testing/quick"
	"time"
)

func TestTextComesOutAsUTF8WhateverTheCharacterSet(t *testing.T) {
	for _, c := range []struct{ set, bytes, want string }{
		{"", "Wang^XiaoDong", "Wang^XiaoDong"},
		{"ISO_IR 6", "B\xfcc", "Büc"}, // not allowed, but common
		{"ISO_IR 100", "Buc^J\xe9r\xf4me", "Buc^Jérôme"},
		{"ISO_IR 101", "Wa\xb3\xeasa", "Wałęsa"},
		{"ISO_IR 109", "\xe6a\xbf", "ĉaż"},
		{"ISO_IR 110", "\xe0\xbf", "āŋ"},
		{"ISO_IR 144", "\xbb\xee\xda\x63\xd5\xdc\xd1\xe3\xe0\xd3", "Люкcембург"},
		{"ISO_IR 127", "\xe2\xc8\xc7\xe6\xea", "قباني"},
		{"ISO_IR 126", "\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"},
		{"ISO_IR 138", "\xf9\xf8\xe5\xef", "שרון"},
		{"ISO_IR 148", "\xc7avu\xfeo\xf0lu", "Çavuşoğlu"},
		{"ISO_IR 166", "\xb9\xd2\xc1", "นาม"},
		{"ISO_IR 13", "\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"},
		{"ISO_IR 192", "Wang^XiaoDong=王^小東=", "Wang^XiaoDong=王^小東="},
		{"GB18030", "Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab=", "Wang^XiaoDong=王^小东="},
		{`\ISO 2022 IR 87`, "Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B", "Yamada^Tarou=山田^太郎=やまだ^たろう"},
		{`ISO 2022 IR 13\ISO 2022 IR 87`, "\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎"},
		{`\ISO 2022 IR 149`, "Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf", "Hong^Gildong=洪^吉洞=홍^길동"},
		{`\ISO 2022 IR 58`, "Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=", "Zhang^XiaoDong=张^小东="},
		{`ISO 2022 IR 100\ISO 2022 IR 144`, "J\xe9r\xf4me \x1b-L\xbb\xee\xda", "Jérôme Люк"},
	} {
		d := new(DataSet)
		d.PutBytes(SpecificCharacterSet, CS, []byte(c.set))
		d.PutBytes(PatientName, PN, []byte(c.bytes))
		if got := d.String(PatientName); got != c.want {
			t.Errorf("%s: %q, want %q", c.set, got, c.want)
		}
		inside := new(DataSet) // an item inherits the set
		inside.PutBytes(PatientName, PN, []byte(c.bytes))
		d.PutItems(RequestAttributesSequence, inside)
		if got := d.Item(RequestAttributesSequence).String(PatientName); got != c.want {
			t.Errorf("%s in an item: %q", c.set, got)
		}
		d.ConvertToUTF8()
		if got := d.String(PatientName); got != c.want || string(d.Get(PatientName).Value[:len(c.want)]) != c.want {
			t.Errorf("%s converted: %q", c.set, got)
		}
		if got := d.Item(RequestAttributesSequence).String(PatientName); got != c.want {
			t.Errorf("%s converted in an item: %q", c.set, got)
		}
	}
}

func TestABackslashByteInsideAChineseCharacterSeparatesNothing(t *testing.T) {
	d := new(DataSet)
	d.PutString(SpecificCharacterSet, "GB18030")
	d.PutString(OtherPatientNames, "誠^一", "二") // 誠 has 0x5C as its second byte in GBK
	if got := d.Strings(OtherPatientNames); !reflect.DeepEqual(got, []string{"誠^一", "二"}) {
		t.Errorf("got %q", got)
	}
}

func TestTextThatTheCharacterSetLacksMakesTheDataSetUTF8(t *testing.T) {
	d := new(DataSet)
	d.PutString(SpecificCharacterSet, "ISO_IR 100")
	d.PutString(PatientName, "Jérôme")
	if v := d.Get(PatientName).Value; v[1] != 0xE9 {
		t.Errorf("Latin-1 was written as % x", v)
	}
	d.PutString(StudyDescription, "Thorax 胸部")
	if set := d.String(SpecificCharacterSet); set != "ISO_IR 192" {
		t.Errorf("the character set is %s", set)
	}
	if d.String(PatientName) != "Jérôme" || d.String(StudyDescription) != "Thorax 胸部" {
		t.Errorf("got %q and %q", d.String(PatientName), d.String(StudyDescription))
	}
}

func TestNumbersDatesTimesAndAges(t *testing.T) {
	d := new(DataSet)
	put := func(tag Tag, vr VR, text string) { d.PutBytes(tag, vr, []byte(text)) }

	put(WindowCenter, DS, ` 40.5\-1e2\+3 `)
	if got := d.Floats(WindowCenter); !reflect.DeepEqual(got, []float64{40.5, -100, 3}) {
		t.Errorf("DS: %v", got)
	}
	for _, nonsense := range []string{"abc", "1_000", "0x10", "inf", "NaN", "1 2", "1e999", `1\x`} {
		put(WindowCenter, DS, nonsense)
		if got := d.Floats(WindowCenter); got != nil {
			t.Errorf("DS %q is %v", nonsense, got)
		}
	}
	put(InstanceNumber, IS, `+12\ -7\8.0`)
	if got := d.Ints(InstanceNumber); !reflect.DeepEqual(got, []int64{12, -7, 8}) {
		t.Errorf("IS: %v", got)
	}
	put(InstanceNumber, IS, "8.5")
	if got, ok := d.Int(InstanceNumber); ok {
		t.Errorf("IS 8.5 is %d", got)
	}

	for text, want := range map[string]string{"20240229": "2024-02-29", "1999.12.31": "1999-12-31"} {
		put(StudyDate, DA, text)
		if got, ok := d.Date(StudyDate); !ok || got.Format("2006-01-02") != want {
			t.Errorf("DA %q: %v", text, got)
		}
	}
	for _, nonsense := range []string{"", "20230229", "2024", "today"} {
		put(StudyDate, DA, nonsense)
		if got, ok := d.Date(StudyDate); ok {
			t.Errorf("DA %q is %v", nonsense, got)
		}
	}
	for text, want := range map[string]time.Duration{"07": 7 * time.Hour, "0730": 7*time.Hour + 30*time.Minute, "235960.5": 24*time.Hour + 500*time.Millisecond,
		"10:20:30": 10*time.Hour + 20*time.Minute + 30*time.Second, "000000.000001": time.Microsecond} {
		put(StudyTime, TM, text)
		if got, ok := d.Time(StudyTime); !ok || got != want {
			t.Errorf("TM %q: %v", text, got)
		}
	}
	for _, nonsense := range []string{"", "7", "240000", "0760", "12.5", "1234567", "-10000"} {
		put(StudyTime, TM, nonsense)
		if got, ok := d.Time(StudyTime); ok {
			t.Errorf("TM %q is %v", nonsense, got)
		}
	}
	put(StudyDate, DA, "20260314")
	put(StudyTime, TM, "092653")
	put(TimezoneOffsetFromUTC, SH, "-0530")
	if got, ok := d.DateTime(StudyDate, StudyTime); !ok || got.UTC().Format(time.RFC3339) != "2026-03-14T14:56:53Z" {
		t.Errorf("date and time: %v", got)
	}

	for text, years := range map[string]float64{"004Y": 4, "018M": 1.5, "052W": 52 * 7 / 365.25, "000D": 0} {
		put(PatientAge, AS, text)
		if age, ok := d.Age(PatientAge); !ok || math.Abs(age.Years()-years) > 1e-9 {
			t.Errorf("AS %q: %v years", text, age.Years())
		}
	}
	for _, nonsense := range []string{"4Y", "-04Y", "004X", "0004Y", "+04Y"} {
		if age, ok := ParseAge(nonsense); ok {
			t.Errorf("AS %q is %v", nonsense, age)
		}
	}
}

func TestPersonNamesSplitIntoGroupsAndComponents(t *testing.T) {
	name := ParsePersonName("Adams^John Robert Quincy^^Rev.^B.A. M.Div.=王^小東=おう^しょうとう")
	if name.Alphabetic != (NameComponents{Family: "Adams", Given: "John Robert Quincy", Prefix: "Rev.", Suffix: "B.A. M.Div."}) ||
		name.Ideographic.Family != "王" || name.Phonetic.Given != "しょうとう" {
		t.Errorf("got %+v", name)
	}
	if got := ParsePersonName("just a name").Alphabetic.Family; got != "just a name" {
		t.Errorf("got %q", got)
	}
}

func TestADecimalStringHasSixteenCharactersAtMostAndLosesLittle(t *testing.T) {
	check := func(v float64) bool {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return true
		}
		text := FormatDecimal(v)
		got, err := parseDecimal(text)
		return err == nil && len(text) <= 16 && math.Abs(got-v) <= math.Abs(v)*1e-8
	}
	if err := quick.Check(check, &quick.Config{Rand: rand.New(rand.NewSource(1))}); err != nil {
		t.Error(err)
	}
	for v, want := range map[float64]string{0.1: "0.1", -1024: "-1024", 1.0 / 3: "0.33333333333333", math.Pi * 1e-9: "3.1415926536e-09"} {
		if got := FormatDecimal(v); got != want {
			t.Errorf("%v is written %s", v, got)
		}
	}
}

func TestWhatIsPutComesOutAgain(t *testing.T) {
	d := new(DataSet)
	d.PutInt(Rows, 2140)
	d.PutInt(SmallestImagePixelValue, -5)
	d.PutInt(InstanceNumber, 7)
	d.PutFloat(RescaleSlope, 0.25)
	angle, _ := TagOf("DopplerCorrectionAngle")
	d.PutFloat(angle, 1.5)
	d.PutTags(FrameIncrementPointer, NewTag(0x0018, 0x1063))
	if d.Get(SmallestImagePixelValue).VR != SS || d.Get(Rows).VR != US || d.Get(InstanceNumber).VR != IS {
		t.Error("the VR does not follow the registry")
	}
	if n, _ := d.Int(SmallestImagePixelValue); n != -5 {
		t.Errorf("-5 became %d", n)
	}
	if f, _ := d.Float(RescaleSlope); f != 0.25 {
		t.Errorf("0.25 became %v", f)
	}
	if f, _ := d.Float(angle); f != 1.5 || d.Get(angle).VR != FD {
		t.Errorf("1.5 became %v", f)
	}
	if tags := d.Tags(FrameIncrementPointer); len(tags) != 1 || tags[0].String() != "(0018,1063)" {
		t.Errorf("AT: %v", tags)
	}
	d.Delete(Rows)
	if d.Has(Rows) || d.String(Rows) != "" || d.Len() != 5 {
		t.Error("deleted, but there")
	}
}

func TestACloneIsIndependent(t *testing.T) {
	d := new(DataSet)
	inner := new(DataSet)
	inner.PutString(PatientName, "Inner")
	d.PutItems(RequestAttributesSequence, inner)
	c := d.Clone()
	c.Item(RequestAttributesSequence).PutString(PatientName, "Changed")
	c.PutString(PatientID, "new")
	if d.Item(RequestAttributesSequence).String(PatientName) != "Inner" || d.Has(PatientID) {
		t.Error("a change of the clone shows in the original")
	}
}

func TestTheWalkVisitsEveryItemWithItsPath(t *testing.T) {
	leaf, middle, d := new(DataSet), new(DataSet), new(DataSet)
	leaf.PutString(PatientID, "deep")
	middle.PutItems(ReferencedImageSequence, leaf, leaf.Clone())
	d.PutItems(ReferencedStudySequence, middle)
	d.PutString(PatientID, "top")
	var seen [][]Tag
	d.Walk(func(path []Tag, _ *DataSet, e *Element) bool {
		if e.Tag == PatientID {
			seen = append(seen, append([]Tag(nil), path...))
		}
		return true
	})
	in := []Tag{ReferencedStudySequence, ReferencedImageSequence}
	if len(seen) != 3 || !reflect.DeepEqual(seen[0], in) || !reflect.DeepEqual(seen[1], in) || len(seen[2]) != 0 {
		t.Errorf("seen at %v", seen)
	}
	visits := 0
	d.Walk(func([]Tag, *DataSet, *Element) bool { visits++; return visits < 2 })
	if visits != 2 {
		t.Errorf("the walk went on for %d visits after it was stopped", visits)
	}
}

func TestTheRegistryKnowsRepeatingGroupsAndPrivateCreators(t *testing.T) {
	for tag, want := range map[Tag]string{
		PatientName:                    "PatientName",
		NewTag(0x6004, 0x3000):         "OverlayData",
		NewTag(0x501E, 0x0010):         "NumberOfPoints",
		NewTag(0x0020, 0x3142):         "SourceImageIDs",
		NewTag(0x0009, 0x0010):         "PrivateCreator",
		NewTag(0x0010, 0x0000):         "GenericGroupLength",
		NewTag(0x0028, 0x0412):         "CoefficientCoding",
		NewTag(0x7F02, 0x0010):         "VariablePixelData",
		FileMetaInformationGroupLength: "FileMetaInformationGroupLength",
	} {
		if a, ok := Lookup(tag); !ok || a.Keyword != want || a.Tag != tag {
			t.Errorf("%s is %+v, want %s", tag, a, want)
		}
	}
	for _, tag := range []Tag{NewTag(0x0009, 0x1001), NewTag(0x6001, 0x3000), NewTag(0x0010, 0xFFFF)} {
		if a, ok := Lookup(tag); ok {
			t.Errorf("%s is %+v", tag, a)
		}
	}
	if tag, ok := TagOf("PixelData"); !ok || tag != PixelData {
		t.Errorf("PixelData is %s", tag)
	}
}
