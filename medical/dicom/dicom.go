// Package dicom reads and writes DICOM data sets and files (PS3.5, PS3.10) and
// decodes their pixels. It knows nothing of networks, models or stores.
package dicom

// Tag is an attribute tag: group in the high 16 bits, element in the low.
type Tag uint32

// VR is a value representation (PS3.5 section 6.2), two upper-case letters.
type VR string

// Element is one attribute. Exactly one of Value, Items and Fragments is used.
type Element struct {
	Tag       Tag
	VR        VR
	Value     []byte     // value bytes in little-endian order, padding kept
	Items     []*DataSet // VR SQ
	Fragments [][]byte   // encapsulated pixel data (PS3.5 A.4), Fragments[0] is the basic offset table
}

// DataSet is a list of elements in ascending order of tag.
type DataSet struct {
	elements []*Element
}

// File is a data set with its file meta information (PS3.10 section 7.1).
type File struct {
	Meta           *DataSet // group 0002
	TransferSyntax string   // UID; how the pixel data are encoded
	DataSet        *DataSet
}
