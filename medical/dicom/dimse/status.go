package dimse

import "fmt"

// Status is the outcome of a DIMSE operation (PS3.7 annex C, and for C-STORE
// PS3.4 table B.2-1).
type Status uint16

// The statuses this package sends or that an owner's Store may answer with.
const (
	Success                 Status = 0x0000
	ProcessingFailure       Status = 0x0110
	DuplicateSOPInstance    Status = 0x0111 // an object of this UID with other content is already kept
	InvalidSOPInstance      Status = 0x0117 // the UID breaks the rules for UIDs
	MissingAttribute        Status = 0x0120
	SOPClassNotSupported    Status = 0x0122
	NotAuthorized           Status = 0x0124
	UnrecognizedOperation   Status = 0x0211
	OutOfResources          Status = 0xA700 // no room, or the object is larger than allowed: send again later
	DataSetMismatch         Status = 0xA900 // the data set does not match the SOP class
	CannotUnderstand        Status = 0xC000 // the data set cannot be read
	CoercedElements         Status = 0xB000 // warning: stored with changed elements
	ElementsDiscarded       Status = 0xB006 // warning
	DataSetMismatchWarning  Status = 0xB007 // warning
	Cancelled               Status = 0xFE00
	Pending                 Status = 0xFF00
	PendingOptionalWarnings Status = 0xFF01
)

var statusText = map[Status]string{
	Success:                 "success",
	ProcessingFailure:       "processing failure",
	DuplicateSOPInstance:    "duplicate SOP instance",
	InvalidSOPInstance:      "invalid SOP instance",
	MissingAttribute:        "missing attribute",
	SOPClassNotSupported:    "SOP class not supported",
	NotAuthorized:           "not authorized",
	UnrecognizedOperation:   "unrecognized operation",
	OutOfResources:          "out of resources",
	DataSetMismatch:         "data set does not match SOP class",
	CannotUnderstand:        "cannot understand",
	CoercedElements:         "warning: coercion of data elements",
	ElementsDiscarded:       "warning: elements discarded",
	DataSetMismatchWarning:  "warning: data set does not match SOP class",
	Cancelled:               "cancelled",
	Pending:                 "pending",
	PendingOptionalWarnings: "pending, optional keys unsupported",
}

// String gives the status in words and in the standard's four digits.
func (s Status) String() string {
	text, ok := statusText[s]
	if !ok {
		switch {
		case s.Warning():
			text = "warning"
		case s&0xFF00 == 0xA700:
			text = statusText[OutOfResources]
		case s&0xFF00 == 0xA900:
			text = statusText[DataSetMismatch]
		case s&0xF000 == 0xC000:
			text = statusText[CannotUnderstand]
		default:
			text = "failure"
		}
	}
	return fmt.Sprintf("%s (0x%04X)", text, uint16(s))
}

// Warning reports whether the operation was done with a remark: 0x0001 and
// 0xBxxx, and the general warnings 0x0107 and 0x0116.
func (s Status) Warning() bool {
	return s == 0x0001 || s == 0x0107 || s == 0x0116 || s&0xF000 == 0xB000
}

// Stored reports whether the peer of a C-STORE now keeps the object: success
// or warning.
func (s Status) Stored() bool { return s == Success || s.Warning() }

// Transient reports whether the same C-STORE may well succeed later: the peer
// was out of resources (0xA7xx).
func (s Status) Transient() bool { return s&0xFF00 == 0xA700 }
