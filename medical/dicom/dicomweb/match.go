package dicomweb

import (
	"path"
	"strings"

	"github.com/vigie/vigie/medical/dicom"
)

// key is one attribute to match (PS3.18 section 8.3.4.1).
type key struct {
	path  []dicom.Tag // the last is the attribute, those before are sequences
	value string      // not empty
}

// matches reports whether any value of the attribute, in any item, matches
// (PS3.4 section C.2.2.2).
func (k key) matches(header *dicom.DataSet) bool {
	if len(k.path) > 1 {
		for _, item := range header.Items(k.path[0]) {
			if (key{k.path[1:], k.value}).matches(item) {
				return true
			}
		}
		return false
	}
	tag := k.path[0]
	if tag == dicom.ModalitiesInStudy { // of the study; an instance contributes its own
		tag = dicom.Modality
	}
	for _, value := range header.Strings(tag) {
		if matchValue(vrOf(header, tag), k.value, value) {
			return true
		}
	}
	return false
}

// vrOf is the VR in the data set, or the registry's.
func vrOf(header *dicom.DataSet, tag dicom.Tag) dicom.VR {
	if e := header.Get(tag); e != nil {
		return e.VR
	}
	attribute, _ := dicom.Lookup(tag)
	return attribute.VR
}

// matchValue matches one value in the way its VR has: UIDs by list, dates and
// times by range, text with wildcards, names without regard to case.
func matchValue(vr dicom.VR, pattern, value string) bool {
	switch vr {
	case dicom.UI:
		for _, uid := range strings.FieldsFunc(pattern, func(r rune) bool { return r == ',' || r == '\\' }) {
			if uid == value {
				return true
			}
		}
		return false
	case dicom.DA, dicom.TM, dicom.DT:
		return matchMoment(pattern, value)
	case dicom.PN:
		return matchText(strings.ToLower(pattern), strings.TrimRight(strings.ToLower(value), "^= "))
	case dicom.IS, dicom.DS, dicom.US, dicom.UL, dicom.SS, dicom.SL, dicom.FL, dicom.FD:
		return pattern == value
	}
	return matchText(pattern, value)
}

// matchMoment matches a date or time, or a range of them: what is written
// shorter stands for all it begins.
func matchMoment(pattern, value string) bool {
	from, to, isRange := strings.Cut(pattern, "-")
	if !isRange {
		return strings.HasPrefix(value, pattern)
	}
	return (from == "" || value >= from) && (to == "" || value <= to || strings.HasPrefix(value, to))
}

// matchText matches with * and ?; the other signs of path.Match have no
// meaning in DICOM.
func matchText(pattern, value string) bool {
	if !strings.ContainsAny(pattern, "*?") {
		return pattern == value
	}
	escape := strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`)
	// path.Match keeps * from crossing a slash, which is nothing special here.
	slash := strings.NewReplacer("/", "\x00")
	ok, err := path.Match(slash.Replace(escape.Replace(pattern)), slash.Replace(value))
	return err == nil && ok
}
