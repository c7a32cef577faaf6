package dicom

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"time"
)

// trim removes the padding of a text value: NUL and blanks at the end always,
// blanks at the beginning where they carry no meaning.
func trim(vr VR, value []byte) []byte {
	end := len(value)
	for end > 0 && (value[end-1] == ' ' || value[end-1] == 0) {
		end--
	}
	value = value[:end]
	switch vr {
	case LT, ST, UT: // leading blanks are significant
	default:
		for len(value) > 0 && value[0] == ' ' {
			value = value[1:]
		}
	}
	return value
}

// Strings returns the values of a text attribute, in UTF-8, without padding.
// Numbers of a binary attribute are written in decimal, tags in hexadecimal.
// Absent or empty: nil. An empty value between backslashes is "".
func (d *DataSet) Strings(tag Tag) []string {
	e := d.Get(tag)
	if e == nil {
		return nil
	}
	if e.VR.Text() {
		return d.texts(e)
	}
	switch e.VR {
	case AT:
		var out []string
		for _, t := range d.Tags(tag) {
			out = append(out, t.Hex())
		}
		return out
	case FL, FD, OF, OD:
		var out []string
		for _, f := range d.Floats(tag) {
			out = append(out, strconv.FormatFloat(f, 'g', -1, 64))
		}
		return out
	case US, UL, SS, SL, SV, UV:
		var out []string
		for _, n := range d.Ints(tag) {
			out = append(out, strconv.FormatInt(n, 10))
		}
		return out
	}
	return nil
}

// String returns the first value as Strings gives it, or "".
func (d *DataSet) String(tag Tag) string {
	if values := d.Strings(tag); len(values) > 0 {
		return values[0]
	}
	return ""
}

// UID returns a UID without padding, or "".
func (d *DataSet) UID(tag Tag) string { return d.String(tag) }

// Ints returns the numbers of a binary or IS (or integral DS) attribute.
// Nonsense anywhere: nil. UV above the largest int64 is nonsense here.
func (d *DataSet) Ints(tag Tag) []int64 {
	e := d.Get(tag)
	if e == nil {
		return nil
	}
	if e.VR.Text() {
		var out []int64
		for _, text := range d.texts(e) {
			text = strings.TrimSpace(text)
			n, err := strconv.ParseInt(strings.TrimPrefix(text, "+"), 10, 64)
			if err != nil {
				f, ferr := parseDecimal(text)
				if ferr != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
					return nil
				}
				n = int64(f)
			}
			out = append(out, n)
		}
		return out
	}
	value, le := e.Value, binary.LittleEndian
	unit := representations[e.VR].unit
	if unit < 2 || len(value) < unit {
		return nil
	}
	out := make([]int64, 0, len(value)/unit)
	for ; len(value) >= unit; value = value[unit:] {
		switch e.VR {
		case US, OW:
			out = append(out, int64(le.Uint16(value)))
		case SS:
			out = append(out, int64(int16(le.Uint16(value))))
		case UL, OL:
			out = append(out, int64(le.Uint32(value)))
		case SL:
			out = append(out, int64(int32(le.Uint32(value))))
		case SV:
			out = append(out, int64(le.Uint64(value)))
		case UV, OV:
			n := le.Uint64(value)
			if n > math.MaxInt64 {
				return nil
			}
			out = append(out, int64(n))
		default:
			return nil
		}
	}
	return out
}

// Int returns the first number, and whether there is one.
func (d *DataSet) Int(tag Tag) (int64, bool) {
	if values := d.Ints(tag); len(values) > 0 {
		return values[0], true
	}
	return 0, false
}

// Floats returns the numbers of a binary, DS or IS attribute. Nonsense,
// infinities and NaN anywhere: nil.
func (d *DataSet) Floats(tag Tag) []float64 {
	e := d.Get(tag)
	if e == nil {
		return nil
	}
	var out []float64
	switch {
	case e.VR.Text():
		for _, text := range d.texts(e) {
			f, err := parseDecimal(text)
			if err != nil {
				return nil
			}
			out = append(out, f)
		}
	case e.VR == FL || e.VR == OF:
		for v := e.Value; len(v) >= 4; v = v[4:] {
			out = append(out, float64(math.Float32frombits(binary.LittleEndian.Uint32(v))))
		}
	case e.VR == FD || e.VR == OD:
		for v := e.Value; len(v) >= 8; v = v[8:] {
			out = append(out, math.Float64frombits(binary.LittleEndian.Uint64(v)))
		}
	default:
		for _, n := range d.Ints(tag) {
			out = append(out, float64(n))
		}
	}
	for _, f := range out {
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil
		}
	}
	return out
}

// Float returns the first number, and whether there is one.
func (d *DataSet) Float(tag Tag) (float64, bool) {
	if values := d.Floats(tag); len(values) > 0 {
		return values[0], true
	}
	return 0, false
}

// parseDecimal reads a DS: digits, sign, point and exponent only. ParseFloat
// alone would also take "inf", "0x1p4" and "1_000".
func parseDecimal(text string) (float64, error) {
	text = strings.TrimSpace(text)
	if strings.Trim(text, "0123456789+-.eE") != "" || strings.ContainsAny(text, "_xX ") {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseFloat(text, 64)
}

// Tags returns the values of an AT attribute.
func (d *DataSet) Tags(tag Tag) []Tag {
	e := d.Get(tag)
	if e == nil || e.VR != AT {
		return nil
	}
	var out []Tag
	for v := e.Value; len(v) >= 4; v = v[4:] {
		out = append(out, NewTag(binary.LittleEndian.Uint16(v), binary.LittleEndian.Uint16(v[2:])))
	}
	return out
}

// Date returns a DA (or the date of a DT) as midnight UTC. The ACR-NEMA form
// 1999.12.31 is read too.
func (d *DataSet) Date(tag Tag) (time.Time, bool) {
	text := strings.TrimSpace(d.String(tag))
	if len(text) == 10 && text[4] == '.' && text[7] == '.' {
		text = strings.ReplaceAll(text, ".", "")
	}
	if len(text) > 8 && d.Get(tag).VR == DT {
		text = text[:8]
	}
	if len(text) != 8 {
		return time.Time{}, false
	}
	t, err := time.Parse("20060102", text)
	return t, err == nil
}

// Time returns a TM as the time since midnight; minutes and seconds may be
// missing (PS3.5 table 6.2-1), and the ACR-NEMA form with colons is read.
func (d *DataSet) Time(tag Tag) (time.Duration, bool) {
	text := strings.ReplaceAll(strings.TrimSpace(d.String(tag)), ":", "")
	whole, fraction, _ := strings.Cut(text, ".")
	if len(whole) != 2 && len(whole) != 4 && len(whole) != 6 || len(fraction) > 6 || (fraction != "" && len(whole) != 6) {
		return 0, false
	}
	var part [3]int
	for i := 0; 2*i < len(whole); i++ {
		n, err := strconv.ParseUint(whole[2*i:2*i+2], 10, 8)
		if err != nil {
			return 0, false
		}
		part[i] = int(n)
	}
	if part[0] > 23 || part[1] > 59 || part[2] > 60 { // 60 is a leap second
		return 0, false
	}
	var micro uint64
	if fraction != "" {
		n, err := strconv.ParseUint((fraction + "000000")[:6], 10, 32)
		if err != nil {
			return 0, false
		}
		micro = n
	}
	return time.Duration(part[0])*time.Hour + time.Duration(part[1])*time.Minute +
		time.Duration(part[2])*time.Second + time.Duration(micro)*time.Microsecond, true
}

// DateTime joins a DA and a TM attribute into a moment of the time zone that
// (0008,0201) names, UTC when it names none. Without a readable time it is
// midnight; without a readable date there is none.
func (d *DataSet) DateTime(date, clock Tag) (time.Time, bool) {
	day, ok := d.Date(date)
	if !ok {
		return time.Time{}, false
	}
	offset, _ := d.Time(clock)
	zone := time.UTC
	if text := d.String(TimezoneOffsetFromUTC); len(text) == 5 && (text[0] == '+' || text[0] == '-') {
		h, herr := strconv.Atoi(text[1:3])
		m, merr := strconv.Atoi(text[3:])
		if herr == nil && merr == nil {
			seconds := h*3600 + m*60
			if text[0] == '-' {
				seconds = -seconds
			}
			if seconds != 0 {
				zone = time.FixedZone("", seconds)
			}
		}
	}
	return time.Date(day.Year(), day.Month(), day.Day(), 0, 0, 0, 0, zone).Add(offset), true
}

// Age is an AS value: a count of days, weeks, months or years.
type Age struct {
	Count int  // 0..999
	Unit  byte // 'D', 'W', 'M' or 'Y'
}

// ParseAge reads the form of PS3.5 table 6.2-1: three digits and D, W, M or Y.
func ParseAge(text string) (Age, bool) {
	text = strings.TrimSpace(text)
	if len(text) != 4 {
		return Age{}, false
	}
	n, err := strconv.ParseUint(text[:3], 10, 16)
	if err != nil || !strings.ContainsRune("DWMY", rune(text[3])) {
		return Age{}, false
	}
	return Age{Count: int(n), Unit: text[3]}, true
}

// Years returns the age in years; a year has 365.25 days.
func (a Age) Years() float64 {
	n := float64(a.Count)
	switch a.Unit {
	case 'D':
		return n / 365.25
	case 'W':
		return n * 7 / 365.25
	case 'M':
		return n / 12
	}
	return n
}

// Age returns an AS attribute.
func (d *DataSet) Age(tag Tag) (Age, bool) { return ParseAge(d.String(tag)) }

// PersonName is a PN value (PS3.5 6.2.1): up to three ways to write one name,
// each of up to five components.
type PersonName struct {
	Alphabetic, Ideographic, Phonetic NameComponents
}

// NameComponents are the five components of a component group.
type NameComponents struct {
	Family, Given, Middle, Prefix, Suffix string
}

// ParsePersonName splits a decoded PN value. It never fails: what has no caret
// is the family name.
func ParsePersonName(text string) PersonName {
	var name PersonName
	groups := []*NameComponents{&name.Alphabetic, &name.Ideographic, &name.Phonetic}
	for i, group := range strings.SplitN(text, "=", 3) {
		c := groups[i]
		parts := []*string{&c.Family, &c.Given, &c.Middle, &c.Prefix, &c.Suffix}
		for j, part := range strings.SplitN(group, "^", 5) {
			*parts[j] = strings.TrimSpace(part)
		}
	}
	return name
}

// Name returns the first person name of a PN attribute.
func (d *DataSet) Name(tag Tag) PersonName { return ParsePersonName(d.String(tag)) }
