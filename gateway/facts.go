package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// announced is what the transport said of an object, before anybody looked.
type announced struct {
	sopClass, sopInstance, transferSyntax string
	target                                string // the one study that the object may belong to; "": any
}

// facts is what intake reads from an object's attributes. It holds identities:
// it lives in memory and is sealed before it is stored.
type facts struct {
	announced
	study, series     string
	patientID, issuer string
	header            *dicom.DataSet // everything before the pixels that could be read; nil if nothing
	unreadable        []vigie.Reason // why the object is not what it should be: codes that quarantine it
}

// headerLimits bounds what intake holds in memory of one object: a header is
// small. The limit leaves room for an encapsulated document.
var headerLimits = dicom.Limits{Total: 72 << 20, Element: 64 << 20, Elements: 1 << 18}

var validUID = regexp.MustCompile(`^[0-9]+(\.[0-9]+)*$`)

func isUID(uid string) bool { return len(uid) <= 64 && validUID.MatchString(uid) }

// readFacts reads the attributes before the pixel data. It never fails: what
// cannot be read is a reason, because an object that was accepted is kept.
func readFacts(r io.Reader, said announced) (*facts, error) {
	f := &facts{announced: said}
	// The reader's own errors (a disk, a seal) are ours, not the object's.
	tracked := &trackedReader{r: r}
	file, err := dicom.ParseHeader(tracked, dicom.PixelData, headerLimits)
	if tracked.err != nil {
		return nil, fmt.Errorf("gateway: reading back a received object: %w", tracked.err)
	}
	if err != nil {
		f.unreadable = append(f.unreadable, unreadableReason(err))
	}
	if file == nil || file.DataSet == nil {
		return f, nil
	}
	d := file.DataSet
	f.header = d
	f.study, f.series = d.UID(dicom.StudyInstanceUID), d.UID(dicom.SeriesInstanceUID)
	f.patientID, f.issuer = strings.TrimSpace(d.String(dicom.PatientID)), strings.TrimSpace(d.String(dicom.IssuerOfPatientID))
	if f.transferSyntax == "" {
		f.transferSyntax = file.TransferSyntax
	}
	f.adopt(&f.sopInstance, d.UID(dicom.SOPInstanceUID), "SOP Instance UID")
	f.adopt(&f.sopClass, d.UID(dicom.SOPClassUID), "SOP Class UID")
	if err == nil {
		for _, uid := range []struct{ name, value string }{
			{"Study Instance UID", f.study}, {"Series Instance UID", f.series}, {"SOP Instance UID", f.sopInstance}} {
			if !isUID(uid.value) {
				wrong := " is malformed"
				if uid.value == "" {
					wrong = " is missing"
				}
				f.unreadable = append(f.unreadable, reason(ReasonUnnamed, uid.name+wrong))
			}
		}
	}
	return f, nil
}

// adopt takes a UID from the data set where the transport named none, and
// notes a contradiction where it named another.
func (f *facts) adopt(announced *string, inside, name string) {
	switch {
	case *announced == "":
		*announced = inside
	case inside != "" && inside != *announced:
		f.unreadable = append(f.unreadable, reason(ReasonUnnamed, name+" of the data set contradicts the transport"))
	}
}

// unreadableReason names the kind of a parse error. The errors of package
// dicom hold no attribute values.
func unreadableReason(err error) vigie.Reason {
	for _, kind := range []error{dicom.ErrTruncated, dicom.ErrNotDICOM, dicom.ErrLimit, dicom.ErrMalformed} {
		if errors.Is(err, kind) {
			return reason(vigie.ReasonUnreadable, kind.Error())
		}
	}
	return reason(vigie.ReasonUnreadable, "the object does not parse")
}

type trackedReader struct {
	r   io.Reader
	err error // other than io.EOF
}

func (t *trackedReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		t.err = err
	}
	return n, err
}

// keptValue is the largest value, or sequence with all that is in it, kept in
// a sealed header, in bytes; keptHeader is the largest header.
const (
	keptValue  = 16 << 10
	keptHeader = 256 << 10
)

// alwaysKept are kept however full the header is: without them a result would
// belong to nobody.
var alwaysKept = []dicom.Tag{
	dicom.SpecificCharacterSet, dicom.SOPClassUID, dicom.SOPInstanceUID, dicom.StudyDate, dicom.StudyTime, dicom.AccessionNumber,
	dicom.PatientName, dicom.PatientID, dicom.IssuerOfPatientID, dicom.PatientBirthDate, dicom.PatientSex,
	dicom.StudyInstanceUID, dicom.SeriesInstanceUID, dicom.StudyID,
}

// sealableHeader is the header as it is kept, sealed, beside the object: the
// attributes that a result needs from its source, without bulk data.
func (f *facts) sealableHeader() ([]byte, error) {
	kept := f.header.Clone()
	if kept == nil {
		kept = new(dicom.DataSet)
	}
	dropUnkept(kept)
	if kept.Empty(dicom.SOPInstanceUID) {
		kept.PutString(dicom.SOPInstanceUID, f.sopInstance)
	}
	if kept.Empty(dicom.SOPClassUID) {
		kept.PutString(dicom.SOPClassUID, f.sopClass)
	}
	var out bytes.Buffer
	if err := dicom.NewFile(kept, dicom.ExplicitLittleEndian).Write(&out); err != nil {
		return nil, fmt.Errorf("gateway: writing the attributes to keep: %w", err)
	}
	return out.Bytes(), nil
}

// dropUnkept deletes what is not kept beside an object.
func dropUnkept(header *dicom.DataSet) {
	total := 0
	header.DeleteFunc(func(e *dicom.Element) bool {
		size := weight(e)
		if size > keptValue || total+size > keptHeader && !slices.Contains(alwaysKept, e.Tag) || len(e.Fragments) > 0 || e.Tag.Private() || e.Tag.Group() < 0x0008 {
			return true
		}
		total += size
		return false
	})
}

// weight is the size of an element with everything below it, in bytes, headers
// included. The parser has bounded the depth.
func weight(e *dicom.Element) int {
	const header = 12
	size := header + len(e.Value)
	for _, item := range e.Items {
		size += header
		for inner := range item.All() {
			size += weight(inner)
		}
	}
	return size
}

// readHeader reads back what sealableHeader wrote.
func readHeader(data []byte) (*dicom.DataSet, error) {
	file, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		return nil, fmt.Errorf("gateway: reading the kept attributes: %w", err)
	}
	return file.DataSet, nil
}
