package dicom

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"time"
)

// PutString puts text values, given in UTF-8, with the VR of the registry (LO
// for a tag that it does not know). Values that the character set of the data
// set cannot express make the whole data set UTF-8 first, so nothing is lost.
// No values make the attribute empty.
func (d *DataSet) PutString(tag Tag, values ...string) {
	vr := vrOf(tag)
	if !vr.Text() {
		vr = LO
	}
	d.putText(tag, vr, values)
}

// PutText is PutString for an attribute whose VR the caller knows.
func (d *DataSet) PutText(tag Tag, vr VR, values ...string) { d.putText(tag, vr, values) }

func (d *DataSet) putText(tag Tag, vr VR, values []string) {
	text := strings.Join(values, "\\")
	value := []byte(text)
	if representations[vr].coded {
		encoded, ok := d.charset().encode(text)
		if !ok {
			d.ConvertToUTF8()
			encoded = []byte(text)
		}
		value = encoded
	}
	d.Put(&Element{Tag: tag, VR: vr, Value: pad(vr, value)})
}

// pad makes the length even (PS3.5 6.2).
func pad(vr VR, value []byte) []byte {
	if len(value)&1 == 0 {
		return value
	}
	return append(value[:len(value):len(value)], representations[vr].pad)
}

// PutInt puts whole numbers with the VR of the registry, binary or IS. Where
// it leaves US or SS open, the sign decides.
func (d *DataSet) PutInt(tag Tag, values ...int64) {
	a, _ := Lookup(tag)
	vr := a.VR
	if vr == US && len(a.Other) > 0 {
		for _, v := range values {
			if v < 0 {
				vr = SS
			}
		}
	}
	var value []byte
	le := binary.LittleEndian
	for _, v := range values {
		switch representations[vr].unit {
		case 2:
			value = le.AppendUint16(value, uint16(v))
		case 4:
			value = le.AppendUint32(value, uint32(v))
		case 8:
			value = le.AppendUint64(value, uint64(v))
		}
	}
	switch vr {
	case US, SS, UL, SL, UV, SV, OW:
		d.Put(&Element{Tag: tag, VR: vr, Value: value})
		return
	case FL, FD:
		floats := make([]float64, len(values))
		for i, v := range values {
			floats[i] = float64(v)
		}
		d.PutFloat(tag, floats...)
		return
	case DS:
	default:
		vr = IS
	}
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = strconv.FormatInt(v, 10)
	}
	d.putText(tag, vr, texts)
}

// PutFloat puts numbers with the VR of the registry, FL, FD or DS.
func (d *DataSet) PutFloat(tag Tag, values ...float64) {
	vr := vrOf(tag)
	var value []byte
	switch vr {
	case FL, OF:
		for _, v := range values {
			value = binary.LittleEndian.AppendUint32(value, math.Float32bits(float32(v)))
		}
	case FD, OD:
		for _, v := range values {
			value = binary.LittleEndian.AppendUint64(value, math.Float64bits(v))
		}
	default:
		texts := make([]string, len(values))
		for i, v := range values {
			texts[i] = FormatDecimal(v)
		}
		d.putText(tag, DS, texts)
		return
	}
	d.Put(&Element{Tag: tag, VR: vr, Value: value})
}

// FormatDecimal writes v as a DS of at most 16 characters, as precisely as
// that allows.
func FormatDecimal(v float64) string {
	text := strconv.FormatFloat(v, 'g', -1, 64)
	for digits := 16; len(text) > 16 && digits > 0; digits-- {
		text = strconv.FormatFloat(v, 'g', digits, 64)
	}
	return text
}

// PutTags puts the values of an AT attribute.
func (d *DataSet) PutTags(tag Tag, values ...Tag) {
	var value []byte
	for _, v := range values {
		value = binary.LittleEndian.AppendUint16(value, v.Group())
		value = binary.LittleEndian.AppendUint16(value, v.Element())
	}
	d.Put(&Element{Tag: tag, VR: AT, Value: value})
}

// PutBytes puts an uninterpreted value, little endian, of the VR.
func (d *DataSet) PutBytes(tag Tag, vr VR, value []byte) {
	d.Put(&Element{Tag: tag, VR: vr, Value: pad(vr, value)})
}

// PutItems puts a sequence. The data set adopts the items.
func (d *DataSet) PutItems(tag Tag, items ...*DataSet) {
	d.Put(&Element{Tag: tag, VR: SQ, Items: items})
}

// PutDate puts the date of t as a DA.
func (d *DataSet) PutDate(tag Tag, t time.Time) { d.putText(tag, DA, []string{t.Format("20060102")}) }

// PutTime puts the time of day of t as a TM, to the second.
func (d *DataSet) PutTime(tag Tag, t time.Time) { d.putText(tag, TM, []string{t.Format("150405")}) }

// PutDateTime puts t as a DT with its offset from UTC.
func (d *DataSet) PutDateTime(tag Tag, t time.Time) {
	d.putText(tag, DT, []string{t.Format("20060102150405-0700")})
}
