package deidentify

import (
	"sync"

	"github.com/vigie/vigie/medical/dicom"
)

// Action is an action code of PS3.15 Table E.1-1a, or one of the compounds that
// Table E.1-1 uses where the type of the attribute differs between IODs.
type Action string

// The action codes of the Basic Application Level Confidentiality Profile.
const (
	K Action = "K" // kept: not an action of the basic profile, used in Result for attributes on the keep list
	X Action = "X" // removed
	Z Action = "Z" // emptied, or replaced by a dummy
	D Action = "D" // replaced by a dummy of the same VR
	U Action = "U" // UID replaced, the same one everywhere

	XZ  Action = "X/Z"    // X, unless the IOD needs it present (type 2)
	XD  Action = "X/D"    // X, unless the IOD needs a value (type 1)
	ZD  Action = "Z/D"    // Z, unless the IOD needs a value
	XZD Action = "X/Z/D"  // X, unless type 2 or type 1
	XZU Action = "X/Z/U*" // a sequence of references: its items stay, with the UIDs in them replaced
)

// resolve turns a compound into the one action that is taken. The rightmost
// code of a compound conforms whatever the type of the attribute is (a value
// satisfies types 1, 2 and 3; presence satisfies 2 and 3), and a dummy says no
// more than that the attribute was there. So the rightmost is taken, and the
// result never depends on which IOD the object claims to be.
func (a Action) resolve() Action {
	switch a {
	case XZ:
		return Z
	case XD, ZD, XZD:
		return D
	case XZU:
		return U
	}
	return a
}

// row is a row of Table E.1-1: PS3.15 edition 2024e, column "Basic Prof.".
type row struct {
	tag     dicom.Tag
	action  Action
	keyword string
}

// The rows that are patterns. Private attributes come first: a private tag
// never reaches the others.
var patterns = []struct {
	name    string
	matches func(dicom.Tag) bool
	action  Action
}{
	{"private attributes (gggg odd)", func(t dicom.Tag) bool { return t.Group()%2 == 1 }, X},
	{"(50xx,xxxx) CurveData", func(t dicom.Tag) bool { return t.Group()&0xFF00 == 0x5000 }, X},
	{"(60xx,3000) OverlayData", func(t dicom.Tag) bool { return t.Group()&0xFF00 == 0x6000 && t.Element() == 0x3000 }, X},
	{"(60xx,4000) OverlayComments", func(t dicom.Tag) bool { return t.Group()&0xFF00 == 0x6000 && t.Element() == 0x4000 }, X},
}

var tables = [][]row{identity, acquisition, procedure, therapy}

var actions = sync.OnceValue(func() map[dicom.Tag]Action {
	all := make(map[dicom.Tag]Action, 640)
	for _, table := range tables {
		for _, r := range table {
			all[r.tag] = r.action
		}
	}
	return all
})

// ActionFor returns what Table E.1-1 says of the attribute, compounds not
// resolved, and false where the table has no row for it.
func ActionFor(tag dicom.Tag) (Action, bool) {
	for _, p := range patterns {
		if p.matches(tag) {
			return p.action, true
		}
	}
	a, ok := actions()[tag]
	return a, ok
}

// dummies are the values that stand in for D, by VR. They are plainly not data:
// a reader of 1900-01-01 or REMOVED is not misled.
var dummies = map[dicom.VR]string{
	dicom.AE: "REMOVED", dicom.AS: "000D", dicom.CS: "REMOVED", dicom.DA: "19000101",
	dicom.DT: "19000101000000", dicom.LO: "REMOVED", dicom.LT: "REMOVED", dicom.PN: "REMOVED",
	dicom.SH: "REMOVED", dicom.ST: "REMOVED", dicom.TM: "000000", dicom.UC: "REMOVED",
	dicom.UR: "urn:removed", dicom.UT: "REMOVED", dicom.OB: "\x00\x00", dicom.UN: "\x00\x00",
	dicom.DS: "0", dicom.IS: "0",
}
