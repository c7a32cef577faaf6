package dicom

// The value representations of PS3.5 table 6.2-1.
const (
	AE VR = "AE"
	AS VR = "AS"
	AT VR = "AT"
	CS VR = "CS"
	DA VR = "DA"
	DS VR = "DS"
	DT VR = "DT"
	FD VR = "FD"
	FL VR = "FL"
	IS VR = "IS"
	LO VR = "LO"
	LT VR = "LT"
	OB VR = "OB"
	OD VR = "OD"
	OF VR = "OF"
	OL VR = "OL"
	OV VR = "OV"
	OW VR = "OW"
	PN VR = "PN"
	SH VR = "SH"
	SL VR = "SL"
	SQ VR = "SQ"
	SS VR = "SS"
	ST VR = "ST"
	SV VR = "SV"
	TM VR = "TM"
	UC VR = "UC"
	UI VR = "UI"
	UL VR = "UL"
	UN VR = "UN"
	UR VR = "UR"
	US VR = "US"
	UT VR = "UT"
	UV VR = "UV"
)

// representation is how a VR is encoded (PS3.5 6.2, 7.1.2, 7.3).
type representation struct {
	long    bool // explicit encoding has a reserved field and a 32-bit length
	unit    int  // bytes of one number, swapped together in big endian; 1 for text and OB
	pad     byte // what makes an odd value even
	text    bool // a string of characters
	coded   bool // its characters are governed by (0008,0005)
	several bool // backslash separates values
}

var representations = map[VR]representation{
	AE: {unit: 1, pad: ' ', text: true, several: true},
	AS: {unit: 1, pad: ' ', text: true, several: true},
	AT: {unit: 2},
	CS: {unit: 1, pad: ' ', text: true, several: true},
	DA: {unit: 1, pad: ' ', text: true, several: true},
	DS: {unit: 1, pad: ' ', text: true, several: true},
	DT: {unit: 1, pad: ' ', text: true, several: true},
	FD: {unit: 8},
	FL: {unit: 4},
	IS: {unit: 1, pad: ' ', text: true, several: true},
	LO: {unit: 1, pad: ' ', text: true, coded: true, several: true},
	LT: {unit: 1, pad: ' ', text: true, coded: true},
	OB: {unit: 1, long: true},
	OD: {unit: 8, long: true},
	OF: {unit: 4, long: true},
	OL: {unit: 4, long: true},
	OV: {unit: 8, long: true},
	OW: {unit: 2, long: true},
	PN: {unit: 1, pad: ' ', text: true, coded: true, several: true},
	SH: {unit: 1, pad: ' ', text: true, coded: true, several: true},
	SL: {unit: 4},
	SQ: {unit: 1, long: true},
	SS: {unit: 2},
	ST: {unit: 1, pad: ' ', text: true, coded: true},
	SV: {unit: 8, long: true},
	TM: {unit: 1, pad: ' ', text: true, several: true},
	UC: {unit: 1, long: true, pad: ' ', text: true, coded: true, several: true},
	UI: {unit: 1, pad: 0, text: true, several: true},
	UL: {unit: 4},
	UN: {unit: 1, long: true},
	UR: {unit: 1, long: true, pad: ' ', text: true},
	US: {unit: 2},
	UT: {unit: 1, long: true, pad: ' ', text: true, coded: true},
	UV: {unit: 8, long: true},
}

// Known reports whether vr is one of PS3.5 table 6.2-1.
func (vr VR) Known() bool { _, ok := representations[vr]; return ok }

// Text reports whether values of vr are strings of characters.
func (vr VR) Text() bool { return representations[vr].text }

// letters reports whether vr could be a VR of this or a later edition.
func (vr VR) letters() bool {
	return len(vr) == 2 && vr[0] >= 'A' && vr[0] <= 'Z' && vr[1] >= 'A' && vr[1] <= 'Z'
}

// swap exchanges the byte order of every unit of value, in place. A last,
// incomplete unit is left as it is.
func swap(value []byte, unit int) {
	switch unit {
	case 2:
		for i := 0; i+2 <= len(value); i += 2 {
			value[i], value[i+1] = value[i+1], value[i]
		}
	case 4, 8:
		for i := 0; i+unit <= len(value); i += unit {
			for a, b := i, i+unit-1; a < b; a, b = a+1, b-1 {
				value[a], value[b] = value[b], value[a]
			}
		}
	}
}
