package deidentify

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/vigie/vigie/medical/dicom"
)

// keep decides about an attribute on the keep list. A value that cannot be
// vouched for is emptied rather than removed, so that an attribute of type 2
// stays conforming.
func (w *work) keep(out *dicom.DataSet, e *dicom.Element, attribute dicom.Attribute, k keeper, depth int) (*dicom.Element, Action, Basis, error) {
	blank := &dicom.Element{Tag: e.Tag, VR: attribute.VR}
	if k.sequence {
		if e.VR != dicom.SQ {
			return blank, Z, ByValue, nil
		}
		kept, err := w.items(e, depth, false)
		return kept, K, ByKeep, err
	}
	if e.Empty() {
		return blank, K, ByKeep, nil
	}
	if len(e.Items) > 0 {
		return blank, Z, ByValue, nil
	}
	if k.custom {
		return w.bulk(out, e, depth)
	}
	if len(e.Fragments) > 0 {
		return blank, Z, ByValue, nil
	}
	vr := e.VR
	if vr == dicom.UN {
		vr = attribute.VR
	}
	switch {
	case k.blank:
		return blank, Z, ByValue, nil
	case k.replace:
		return &dicom.Element{Tag: e.Tag, VR: attribute.VR, Value: padded(dummies[attribute.VR], attribute.VR)}, D, ByValue, nil
	case k.number:
		if (vr == attribute.VR || slices.Contains(attribute.Other, vr)) && plainNumbers(e.Value, vr, attribute.VM) {
			return &dicom.Element{Tag: e.Tag, VR: vr, Value: slices.Clone(e.Value)}, K, ByKeep, nil
		}
	case k.pointer:
		if vr == dicom.AT && publicTags(e.Value) {
			return &dicom.Element{Tag: e.Tag, VR: vr, Value: slices.Clone(e.Value)}, K, ByKeep, nil
		}
	case vr == attribute.VR:
		if values, ok := asciiValues(e.Value); ok {
			if kept, ok := k.check(values); ok {
				return &dicom.Element{Tag: e.Tag, VR: vr, Value: padded(strings.Join(kept, "\\"), vr)}, K, ByKeep, nil
			}
		}
	}
	return blank, Z, ByValue, nil
}

// maxText bounds a kept text: the longest value that its VR allows (LO, 64),
// a few times over for several values.
const maxText = 1024

// asciiValues splits a text into its values, without padding; false where it
// has characters that no term has.
func asciiValues(value []byte) ([]string, bool) {
	text := significant(string(value))
	if len(text) > maxText {
		return nil, false
	}
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return nil, false
		}
	}
	values := strings.Split(text, "\\")
	for i := range values {
		values[i] = significant(values[i])
		if len(values[i]) > 64 {
			return nil, false
		}
	}
	return values, true
}

// multiplicity returns the most values that a VM of PS3.6 allows; n is many.
func multiplicity(vm string) int {
	_, upper, ranged := strings.Cut(vm, "-")
	if !ranged {
		upper = vm
	}
	n, err := strconv.Atoi(upper)
	if err != nil {
		return 1 << 16
	}
	return n
}

var units = map[dicom.VR]int{dicom.US: 2, dicom.SS: 2, dicom.UL: 4, dicom.SL: 4, dicom.FL: 4, dicom.FD: 8}

// plainNumbers reports whether value is numbers and no more of them than vm
// allows. Text in the shape of binary numbers is refused: several integers must
// be small (two letters make at least 0x2020), and eight or more bytes must not
// all be letters, digits or what stands between them in a name.
func plainNumbers(value []byte, vr dicom.VR, vm string) bool {
	most := multiplicity(vm)
	if vr == dicom.DS || vr == dicom.IS {
		texts := strings.Split(significant(string(value)), "\\")
		for _, text := range texts {
			text = significant(text)
			if text == "" {
				continue
			}
			if len(text) > 24 || strings.Trim(text, "0123456789+-.eE") != "" {
				return false
			}
			if _, err := strconv.ParseFloat(text, 64); err != nil {
				return false
			}
			if _, err := strconv.ParseInt(strings.TrimPrefix(text, "+"), 10, 64); vr == dicom.IS && err != nil {
				return false
			}
		}
		return len(texts) <= most
	}
	unit := units[vr]
	if unit == 0 || len(value)%unit != 0 || len(value)/unit > most {
		return false
	}
	if len(value) >= 8 && readable(value) {
		return false
	}
	if len(value)/unit <= 4 {
		return true
	}
	for v := value; len(v) > 0; v = v[unit:] {
		switch vr {
		case dicom.US, dicom.SS:
			if binary.LittleEndian.Uint16(v) >= 0x2000 && vr == dicom.US {
				return false
			}
		case dicom.UL, dicom.SL:
			if binary.LittleEndian.Uint32(v) >= 0x20000000 && vr == dicom.UL {
				return false
			}
		case dicom.FL:
			if f := float64(math.Float32frombits(binary.LittleEndian.Uint32(v))); !(math.Abs(f) < 1e9) {
				return false
			}
		case dicom.FD:
			if f := math.Float64frombits(binary.LittleEndian.Uint64(v)); !(math.Abs(f) < 1e9) {
				return false
			}
		}
	}
	return true
}

func readable(value []byte) bool {
	for _, c := range value {
		letter := c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune(" ^=-.,'/\\", rune(c)) {
			return false
		}
	}
	return true
}

func publicTags(value []byte) bool {
	if len(value)%4 != 0 {
		return false
	}
	for v := value; len(v) > 0; v = v[4:] {
		tag := dicom.NewTag(binary.LittleEndian.Uint16(v), binary.LittleEndian.Uint16(v[2:]))
		if _, registered := dicom.Lookup(tag); !registered || tag.Private() || tag.Element() == 0 {
			return false
		}
	}
	return true
}
