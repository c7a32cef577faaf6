package deidentify

import (
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

func apply(t testing.TB, f *dicom.File) *Result {
	t.Helper()
	result, err := profile(t).Apply(f)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestWhatAModelNeedsOfAnImageIsKept(t *testing.T) {
	f := radiograph()
	d := f.DataSet
	d.PutString(dicom.ImageType, "DERIVED", "PRIMARY", "POST_PROCESSED", "", "100000")
	d.PutString(dicom.Manufacturer, "FUJIFILM Corporation")
	d.PutString(dicom.BodyPartExamined, "PORT CHEST")
	d.PutString(dicom.KVP, "100.5")
	d.PutString(dicom.PatientOrientation, "L", "F")
	d.PutString(dicom.ImagerPixelSpacing, "0.20", "0.20")
	d.PutString(0x00281054, "US") // RescaleType
	view := &dicom.DataSet{}
	view.PutString(dicom.CodeValue, "R-10206")
	view.PutString(dicom.CodingSchemeDesignator, "SRT")
	view.PutString(dicom.CodeMeaning, "AP of Mr Garance")
	d.PutItems(0x00540220, view)
	lut := &dicom.DataSet{}
	lut.PutInt(lutDescriptor, 4, 0, 12)
	lut.PutBytes(lutData, dicom.OW, []byte{0, 0, 1, 0, 2, 0, 0xFF, 0x0F})
	lut.PutString(0x00283003, "LUT of Garance") // LUTExplanation
	d.PutItems(0x00283010, lut)
	out := apply(t, f).File.DataSet
	for tag, want := range map[dicom.Tag]string{
		dicom.ImageType: `DERIVED\PRIMARY\POST_PROCESSED\\OTHER`, dicom.Manufacturer: "FUJIFILM Corporation", dicom.BodyPartExamined: "PORT CHEST",
		dicom.KVP: "100.5", dicom.PatientOrientation: `L\F`, dicom.ImagerPixelSpacing: `0.20\0.20`, 0x00281054: "US",
		dicom.Modality: "CR", dicom.ViewPosition: "AP", dicom.PhotometricInterpretation: "MONOCHROME2", dicom.BitsStored: "12",
	} {
		if got := strings.Join(out.Strings(tag), `\`); got != want {
			t.Errorf("%s is %q, want %q", tag, got, want)
		}
	}
	item := out.Item(0x00540220)
	if item.String(dicom.CodeValue) != "R-10206" || item.String(dicom.CodeMeaning) != "antero-posterior" {
		t.Errorf("view code %q %q", item.String(dicom.CodeValue), item.String(dicom.CodeMeaning))
	}
	if kept := out.Item(0x00283010); len(kept.Get(lutData).Value) != 8 || kept.Has(0x00283003) {
		t.Error("the VOI LUT was not kept, or its explanation was")
	}
}

func TestATextInACodedOrNumericFieldDoesNotRideAlong(t *testing.T) {
	for _, e := range []dicom.Element{
		{Tag: dicom.BodyPartExamined, VR: dicom.CS, Value: []byte("GARANCE CHEST ")},
		{Tag: dicom.Modality, VR: dicom.CS, Value: []byte("GARANCE ")},
		{Tag: dicom.ViewPosition, VR: dicom.CS, Value: []byte("GARANCE ")},
		{Tag: dicom.Manufacturer, VR: dicom.LO, Value: []byte("GE for Garance")},
		{Tag: dicom.Manufacturer, VR: dicom.LO, Value: []byte("SIEMENS\\Garance ")},
		{Tag: dicom.ManufacturerModelName, VR: dicom.LO, Value: []byte("Garance ")},
		{Tag: dicom.SoftwareVersions, VR: dicom.LO, Value: []byte("Garance ")},
		{Tag: dicom.PositionReferenceIndicator, VR: dicom.LO, Value: []byte("Garance ")},
		{Tag: dicom.ImageType, VR: dicom.CS, Value: []byte("GARANCE\\PRIMARY ")},
		{Tag: dicom.ImageType, VR: dicom.CS, Value: []byte("ORIGINAL\\PRIMARY\\GARANCE ")},
		{Tag: dicom.PatientOrientation, VR: dicom.CS, Value: []byte("GARANCE ")},
		{Tag: dicom.KVP, VR: dicom.DS, Value: []byte("Garance ")},
		{Tag: dicom.KVP, VR: dicom.LO, Value: []byte("Garance ")},
		{Tag: dicom.KVP, VR: dicom.UN, Value: []byte("Garance ")},
		{Tag: dicom.KVP, VR: dicom.OB, Value: []byte("Garance ")},
		{Tag: dicom.InstanceNumber, VR: dicom.IS, Value: []byte("1 Garance ")},
		{Tag: dicom.Rows, VR: dicom.US, Value: []byte("Garance ")},
		{Tag: dicom.WindowCenter, VR: dicom.DS, Value: []byte("1\\Garance ")},
		{Tag: 0x00189087, VR: dicom.FD, Value: []byte("Garance ")},                   // DiffusionBValue
		{Tag: 0x00540010, VR: dicom.US, Value: []byte("Garance^Reine=1950 ")},        // EnergyWindowVector, any number of US
		{Tag: 0x00280009, VR: dicom.AT, Value: []byte("Garance ")},                   // FrameIncrementPointer
		{Tag: 0x00209165, VR: dicom.AT, Value: []byte{0x09, 0x00, 0x10, 0x10}},       // DimensionIndexPointer to a private tag
		{Tag: 0x00281201, VR: dicom.OW, Value: []byte("Garance^Reine, 1950-01-01 ")}, // a palette without descriptor
		{Tag: dicom.SpecificCharacterSet, VR: dicom.CS, Value: []byte("GARANCE ")},
		{Tag: dicom.CodeValue, VR: dicom.SH, Value: []byte("Garance ")}, // a code outside an item
		{Tag: dicom.CodeMeaning, VR: dicom.LO, Value: []byte("Garance ")},
		{Tag: 0x00189999, VR: dicom.LO, Value: []byte("Garance ")}, // not in PS3.6
		{Tag: 0x7FE00008, VR: dicom.OF, Value: []byte("Garance ")},
		{Tag: dicom.DeidentificationMethod, VR: dicom.LO, Value: []byte("by Garance")},
	} {
		f := radiograph()
		copied := e
		f.DataSet.Put(&copied)
		nested := &dicom.DataSet{}
		inner := e
		nested.Put(&inner)
		f.DataSet.PutItems(0x52009229, nested) // SharedFunctionalGroupsSequence
		absent(t, written(t, apply(t, f).File), "Garance")
	}
}

func TestACodeOutsideTheVocabularyIsDropped(t *testing.T) {
	f := radiograph()
	item := func(value, scheme string) *dicom.DataSet {
		d := &dicom.DataSet{}
		d.PutString(dicom.CodeValue, value)
		d.PutString(dicom.CodingSchemeDesignator, scheme)
		d.PutString(dicom.CodeMeaning, "Garance")
		return d
	}
	f.DataSet.PutItems(dicom.AnatomicRegionSequence, item("GAR-1950", "99WARD"), item("51185008", "SCT"), item("51185008", "99WARD"))
	result := apply(t, f)
	items := result.File.DataSet.Items(dicom.AnatomicRegionSequence)
	if len(items) != 1 || items[0].String(dicom.CodeMeaning) != "Chest" {
		t.Errorf("%d items stay", len(items))
	}
	file := written(t, result.File)
	absent(t, file, "Garance")
	absent(t, file, "GAR-1950")
}

func TestAnUnregisteredSOPClassOrTransferSyntaxIsReferredAndItsUIDGone(t *testing.T) {
	f := radiograph()
	f.DataSet.PutString(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.1.19500101")
	result := apply(t, f)
	absent(t, written(t, result.File), "19500101")
	if !refers(result, vigie.ReasonDeidentify) {
		t.Errorf("reasons: %v", result.Refer)
	}
	f = radiograph()
	f.TransferSyntax = "1.2.840.10008.1.2.19500101"
	result = apply(t, f)
	absent(t, written(t, result.File), "19500101")
	if !refers(result, vigie.ReasonTransferSyntax) || result.File.DataSet.Has(dicom.PixelData) {
		t.Errorf("reasons: %v", result.Refer)
	}
}

func refers(r *Result, code vigie.ReasonCode) bool {
	for _, reason := range r.Refer {
		if reason.Code == code && reason.Text.English != "" && reason.Text.French != "" {
			return true
		}
	}
	return false
}

func TestTheCopySaysWhatWasDoneToIt(t *testing.T) {
	f := radiograph()
	f.DataSet.PutString(dicom.PatientIdentityRemoved, "NO")
	f.DataSet.PutString(0x00280303, "UNMODIFIED")
	d := apply(t, f).File.DataSet
	item := d.Item(dicom.DeidentificationMethodCodeSequence)
	if d.String(dicom.PatientIdentityRemoved) != "YES" || d.String(0x00280303) != "REMOVED" || d.Empty(dicom.DeidentificationMethod) ||
		len(d.String(dicom.DeidentificationMethod)) > 64 || item.String(dicom.CodeValue) != "113100" || item.String(dicom.CodingSchemeDesignator) != "DCM" {
		t.Error("the attributes of PS3.15 E.1.1 are not set")
	}
}

func TestTheAuditCountsTagsNotValues(t *testing.T) {
	f := radiograph()
	for i := range 100 {
		f.DataSet.Put(&dicom.Element{Tag: dicom.NewTag(0x0009, uint16(0x1000+i)), VR: dicom.LO, Value: []byte("Garance ")})
		f.DataSet.Put(&dicom.Element{Tag: dicom.NewTag(0x0F08, uint16(i+1)), VR: dicom.LO, Value: []byte("Garance ")})
	}
	counts := map[Applied]int{}
	for _, a := range apply(t, f).Applied {
		n := a.Count
		a.Count = 0
		counts[a] = n
	}
	for a, want := range map[Applied]int{
		{Tag: 0x00090000, Action: X, Basis: ByTable}:           100,
		{Tag: 0x0F080000, Action: X, Basis: Unlisted}:          100,
		{Tag: dicom.PatientName, Action: Z, Basis: ByTable}:    1,
		{Tag: dicom.SOPInstanceUID, Action: U, Basis: ByTable}: 1,
		{Tag: dicom.Modality, Action: K, Basis: ByKeep}:        1,
	} {
		if counts[a] != want {
			t.Errorf("%v: %d, want %d", a, counts[a], want)
		}
	}
}

func TestAnObjectWithoutInstanceOrDataIsAnError(t *testing.T) {
	p := profile(t)
	for _, tag := range []dicom.Tag{dicom.SOPClassUID, dicom.SOPInstanceUID} {
		f := radiograph()
		f.DataSet.Delete(tag)
		if _, err := p.Apply(f); err == nil {
			t.Errorf("no error without %s", tag)
		}
	}
	for _, f := range []*dicom.File{nil, {}} {
		if _, err := p.Apply(f); err == nil {
			t.Error("no error without a data set")
		}
	}
	f := radiograph()
	inner := f.DataSet
	for range maxDepth + 2 {
		item := &dicom.DataSet{}
		inner.PutItems(0x52009229, item)
		inner = item
	}
	if _, err := p.Apply(f); err == nil {
		t.Error("no error for sequences without end")
	}
}
