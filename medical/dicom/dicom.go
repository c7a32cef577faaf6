// Package dicom reads and writes DICOM data sets and files (PS3.5, PS3.10) and
// decodes their pixels. It knows nothing of networks, models or stores.
//
// # Reading
//
// [Parse] reads a PS3.10 file, [ParseDataSet] the bytes of a data set whose
// transfer syntax is already known (an association negotiated it). Both take
// [Limits], never allocate from a length that the data only claim, and return
// what they could read beside the error: a truncated file is [ErrTruncated]
// and a *File with every complete element before the cut.
//
//	file, err := dicom.Parse(r, dicom.Limits{})
//	if err != nil {
//		return err // errors.Is(err, dicom.ErrTruncated), dicom.ErrMalformed, …
//	}
//	modality := file.DataSet.String(dicom.Modality)
//
// # Elements
//
// A [DataSet] is an ordered list of [Element]. Values are kept as the bytes of
// the file, always in little-endian order and with their padding, so what is
// not understood survives a round trip. Accessors interpret on demand: text
// comes out as UTF-8 whatever the character set (0008,0005) says, numbers from
// binary and from decimal strings alike, and an accessor that finds nothing
// usable returns the zero value or false, never an error: absent, empty and
// nonsense are the same to a caller that must then ask a person.
//
// Public attributes that arrive as VR UN are given back their real VR, so that
// a name hidden in a UN sequence is found by whoever looks for names.
//
// # Pixels
//
// [File.Frame] decodes one frame to raw samples, [File.Luminance] applies the
// grayscale pipeline of PS3.4 N.2 (modality LUT, VOI LUT, presentation) and
// yields 0..1. [TransferSyntaxes] lists what this build can decode; another
// syntax is [ErrTransferSyntax], named.
//
// # Writing
//
// [File.Write] and [DataSet.Write] encode in any of the four native transfer
// syntaxes, or wrap fragments that are already compressed. Sequences are
// written with undefined length and group lengths are left out (PS3.5 7.2).
//
// No error of this package contains an attribute's value: tags, positions,
// lengths and transfer syntaxes only, so that errors may be logged.
package dicom

import (
	"errors"
	"fmt"
)

// Errors that callers branch on. Each is wrapped with what was being done and
// where; use errors.Is.
var (
	// ErrTruncated: the data end before the data set does. What was complete
	// is returned beside the error.
	ErrTruncated = errors.New("the data end too early")
	// ErrMalformed: the bytes do not follow PS3.5, or two readers could
	// understand them differently.
	ErrMalformed = errors.New("not a well-formed DICOM data set")
	// ErrNotDICOM: nothing at the beginning looks like DICOM.
	ErrNotDICOM = errors.New("not DICOM")
	// ErrLimit: a bound of Limits was reached.
	ErrLimit = errors.New("larger than the limit allows")
	// ErrTransferSyntax: this build cannot decode or encode the named syntax.
	ErrTransferSyntax = errors.New("transfer syntax not supported")
	// ErrPixels: the pixel data are absent or contradict their description.
	ErrPixels = errors.New("pixel data unusable")
)

// Tag is an attribute tag: group in the high 16 bits, element in the low.
type Tag uint32

// NewTag returns the tag (group,element).
func NewTag(group, element uint16) Tag { return Tag(uint32(group)<<16 | uint32(element)) }

// Group returns the group number.
func (t Tag) Group() uint16 { return uint16(t >> 16) }

// Element returns the element number.
func (t Tag) Element() uint16 { return uint16(t) }

// Private reports whether the group is odd (PS3.5 section 7.8).
func (t Tag) Private() bool { return t.Group()&1 == 1 }

// String writes the tag as "(0008,0018)".
func (t Tag) String() string { return fmt.Sprintf("(%04X,%04X)", t.Group(), t.Element()) }

// Hex writes the tag as PS3.18 does: "00080018".
func (t Tag) Hex() string { return fmt.Sprintf("%08X", uint32(t)) }

// VR is a value representation (PS3.5 section 6.2), two upper-case letters.
type VR string

// Element is one attribute. At most one of Value, Items and Fragments is used;
// an empty value uses none.
//
// The bytes of Value and Fragments are treated as immutable: Clone shares
// them. To change an attribute, Put another Element.
type Element struct {
	Tag       Tag
	VR        VR
	Value     []byte     // value bytes in little-endian order, padding kept
	Items     []*DataSet // VR SQ
	Fragments [][]byte   // encapsulated pixel data (PS3.5 A.4), Fragments[0] is the basic offset table
}

// DataSet is a list of elements in ascending order of tag, each tag once. The
// zero value is empty and ready to use. Reading is safe from many goroutines,
// writing is not.
type DataSet struct {
	elements []*Element
	parent   *DataSet // of an item: where the character set comes from when the item names none
}

// File is a data set with its file meta information (PS3.10 section 7.1).
type File struct {
	Meta           *DataSet // group 0002
	TransferSyntax string   // UID; how the pixel data are encoded
	DataSet        *DataSet
}

// NewFile returns a file around ds, to be written in the transfer syntax.
func NewFile(ds *DataSet, transferSyntax string) *File {
	return &File{Meta: new(DataSet), TransferSyntax: transferSyntax, DataSet: ds}
}

// Clone returns a deep copy that shares only the value bytes.
func (f *File) Clone() *File {
	return &File{Meta: f.Meta.Clone(), TransferSyntax: f.TransferSyntax, DataSet: f.DataSet.Clone()}
}
