package deidentify

import (
	"bytes"
	"errors"
	"math/big"
	"regexp"
	"strings"
	"testing"

	"github.com/vigie/vigie/medical/dicom"
)

var validUID = regexp.MustCompile(`^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*$`)

func TestAUIDBecomesAValidOneThatOnlyTheKeyReproduces(t *testing.T) {
	p, same := profile(t), profile(t)
	other, err := New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]string)
	for _, uid := range []string{"1.2.3", "1.2.4", "2.25.1", "1.2.840.10008.1.2", strings.Repeat("1.", 31) + "9", "GARANCE", "1.2.3.4"} {
		got := p.UID(uid)
		if !validUID.MatchString(got) || len(got) > 64 || !strings.HasPrefix(got, "2.25.") {
			t.Errorf("%s becomes %s", uid, got)
		}
		n, ok := new(big.Int).SetString(strings.TrimPrefix(got, "2.25."), 10)
		if !ok || n.BitLen() > 128 || new(big.Int).And(new(big.Int).Rsh(n, 76), big.NewInt(15)).Int64() != 8 || new(big.Int).And(new(big.Int).Rsh(n, 62), big.NewInt(3)).Int64() != 2 {
			t.Errorf("%s is not a version 8 UUID", got)
		}
		if got != same.UID(uid) || got == other.UID(uid) {
			t.Errorf("%s: the key does not decide", uid)
		}
		if first, twice := seen[got]; twice {
			t.Errorf("%s and %s become the same", first, uid)
		}
		seen[got] = uid
	}
	if p.UID("") != "" || p.UID("\x00") != "" {
		t.Error("an empty UID does not stay empty")
	}
	if p.UID("1.2.3\x00") != p.UID("1.2.3") || p.UID("1.2.3 ") != p.UID("1.2.3") {
		t.Error("padding makes another UID")
	}
}

func TestAPatientsPseudonymDependsOnIssuerIdAndKeyOnly(t *testing.T) {
	p := profile(t)
	a := p.Pseudonym("HOSPITAL", "4711")
	if !regexp.MustCompile(`^[a-z2-7]{26}$`).MatchString(string(a)) {
		t.Errorf("pseudonym %q", a)
	}
	if a != p.Pseudonym("HOSPITAL ", " 4711") {
		t.Error("padding makes another patient")
	}
	for _, other := range [][2]string{{"", "4711"}, {"HOSPITAL", "4712"}, {"HOSPITAL4", "711"}, {"4711", "HOSPITAL"}} {
		if p.Pseudonym(other[0], other[1]) == a {
			t.Errorf("%v has the same pseudonym", other)
		}
	}
	d := &dicom.DataSet{}
	d.PutString(dicom.PatientID, "4711")
	d.PutString(dicom.IssuerOfPatientID, "HOSPITAL")
	if p.Patient(d) != a {
		t.Error("the data set's patient is another")
	}
	// The same number as a UID, as a patient and as a study must not be linkable.
	if strings.Contains(p.UID("4711"), string(p.Pseudonym("", "4711"))) {
		t.Error("a UID's pseudonym is a patient's")
	}
}

func TestPatientsWithoutIdAreNotOneAndTheSame(t *testing.T) {
	p := profile(t)
	study := func(uid, instance string) *dicom.DataSet {
		d := &dicom.DataSet{}
		d.PutString(dicom.StudyInstanceUID, uid)
		d.PutString(dicom.SOPInstanceUID, instance)
		d.PutString(dicom.PatientID, "")
		return d
	}
	if p.Patient(study("1.2.3", "1.2.3.1")) == p.Patient(study("1.2.4", "1.2.4.1")) {
		t.Error("two studies without patient id are taken for one patient")
	}
	if p.Patient(study("1.2.3", "1.2.3.1")) != p.Patient(study("1.2.3", "1.2.3.2")) {
		t.Error("two images of one study without patient id are taken for two patients")
	}
}

func TestAShortKeyIsRefused(t *testing.T) {
	for n := range KeySize {
		if _, err := New(make([]byte, n)); !errors.Is(err, ErrKey) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestReferencesStillLinkAfterPseudonymisation(t *testing.T) {
	f := radiograph()
	reference, sop := &dicom.DataSet{}, &dicom.DataSet{}
	reference.PutString(dicom.ReferencedSOPClassUID, "1.2.840.10008.5.1.4.1.1.1")
	reference.PutString(dicom.ReferencedSOPInstanceUID, "1.2.3.4.99")
	purpose := &dicom.DataSet{}
	purpose.PutString(dicom.CodeValue, "121311")
	purpose.PutString(dicom.CodingSchemeDesignator, "DCM")
	purpose.PutString(dicom.CodeMeaning, "Localizer of Mrs Garance")
	reference.PutItems(0x0040A170, purpose)
	reference.PutItems(dicom.SourceImageSequence, sop)
	sop.PutString(dicom.ReferencedSOPInstanceUID, "1.2.3.4.5")
	f.DataSet.PutItems(dicom.ReferencedImageSequence, reference)
	f.DataSet.PutString(dicom.FrameOfReferenceUID, "1.2.3.4.50")
	f.DataSet.PutString(0x00081195, "1.2.3.4.5", "1.2.3.4") // TransactionUID, made to hold two
	p := profile(t)
	result, err := p.Apply(f)
	if err != nil {
		t.Fatal(err)
	}
	out := result.File.DataSet
	item := out.Item(dicom.ReferencedImageSequence)
	for _, c := range []struct{ got, want string }{
		{out.UID(dicom.SOPInstanceUID), p.UID("1.2.3.4.5")},
		{out.UID(dicom.StudyInstanceUID), p.UID("1.2.3.4")},
		{item.UID(dicom.ReferencedSOPInstanceUID), p.UID("1.2.3.4.99")},
		{item.UID(dicom.ReferencedSOPClassUID), "1.2.840.10008.5.1.4.1.1.1"},
		{item.Item(dicom.SourceImageSequence).UID(dicom.ReferencedSOPInstanceUID), out.UID(dicom.SOPInstanceUID)},
		{out.UID(dicom.FrameOfReferenceUID), p.UID("1.2.3.4.50")},
		{strings.Join(out.Strings(0x00081195), " "), p.UID("1.2.3.4.5") + " " + p.UID("1.2.3.4")},
		{item.Item(0x0040A170).String(dicom.CodeMeaning), "Localizer"},
		{result.File.Meta.UID(dicom.MediaStorageSOPInstanceUID), p.UID("1.2.3.4.5")},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
