package dicom

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// MarshalJSON writes the DICOM JSON model (PS3.18 annex F), every value inline,
// binary as base64. Encapsulated pixel data have no inline form and are left
// out: use JSON to refer to them.
func (d *DataSet) MarshalJSON() ([]byte, error) { return d.JSON(nil) }

// JSON writes the DICOM JSON model. Where bulk returns an address for a binary
// element, BulkDataURI names it instead of the bytes; path holds the tags of
// the sequences around it. Text is UTF-8 and (0008,0005) says so.
func (d *DataSet) JSON(bulk func(path []Tag, e *Element) string) ([]byte, error) {
	w := &jsonWriter{bulk: bulk}
	if err := w.dataSet(d, nil); err != nil {
		return nil, err
	}
	return w.out.Bytes(), nil
}

type jsonWriter struct {
	out  bytes.Buffer
	bulk func([]Tag, *Element) string
}

func (w *jsonWriter) dataSet(d *DataSet, path []Tag) error {
	w.out.WriteByte('{')
	first := true
	for e := range d.All() {
		if e.Tag.Group() <= 2 || e.Tag.Element() == 0 {
			continue
		}
		if !first {
			w.out.WriteByte(',')
		}
		first = false
		fmt.Fprintf(&w.out, `"%s":{"vr":"%s"`, e.Tag.Hex(), jsonVR(e.VR))
		if err := w.value(d, e, path); err != nil {
			return fmt.Errorf("dicom: writing %s as JSON: %w", e.Tag, err)
		}
		w.out.WriteByte('}')
	}
	w.out.WriteByte('}')
	return nil
}

// jsonVR keeps a VR of no standard, which may hold any two bytes, out of JSON.
func jsonVR(vr VR) VR {
	if vr.letters() {
		return vr
	}
	return UN
}

func (w *jsonWriter) value(d *DataSet, e *Element, path []Tag) error {
	switch {
	case e.VR == SQ:
		if len(e.Items) == 0 {
			return nil
		}
		inner := append(path[:len(path):len(path)], e.Tag)
		w.out.WriteString(`,"Value":[`)
		for i, item := range e.Items {
			if i > 0 {
				w.out.WriteByte(',')
			}
			if err := w.dataSet(item, inner); err != nil {
				return err
			}
		}
		w.out.WriteByte(']')
		return nil
	case e.Tag == SpecificCharacterSet:
		w.out.WriteString(`,"Value":["ISO_IR 192"]`)
		return nil
	case e.binary():
		return w.bytes(e, path)
	case e.Empty():
		return nil
	}
	values, err := jsonValues(d, e)
	if err != nil || len(values) == 0 {
		return err
	}
	text, err := json.Marshal(values)
	if err != nil {
		return err
	}
	w.out.WriteString(`,"Value":`)
	w.out.Write(text)
	return nil
}

// binary reports whether the value has no JSON form of its own.
func (e *Element) binary() bool {
	switch e.VR {
	case OB, OD, OF, OL, OV, OW, UN:
		return true
	}
	return e.Fragments != nil || !e.VR.Known()
}

func (w *jsonWriter) bytes(e *Element, path []Tag) error {
	if len(e.Value) == 0 && e.Fragments == nil {
		return nil
	}
	if w.bulk != nil {
		if uri := w.bulk(path, e); uri != "" {
			text, err := json.Marshal(uri)
			if err != nil {
				return err
			}
			w.out.WriteString(`,"BulkDataURI":`)
			w.out.Write(text)
			return nil
		}
	}
	if e.Fragments != nil {
		return nil
	}
	w.out.WriteString(`,"InlineBinary":"`)
	encoder := base64.NewEncoder(base64.StdEncoding, &w.out)
	if _, err := encoder.Write(e.Value); err != nil {
		return err
	}
	if err := encoder.Close(); err != nil {
		return err
	}
	w.out.WriteByte('"')
	return nil
}

// jsonValues returns the values as PS3.18 table F.2.3-1 has them; an empty one
// among several is null.
func jsonValues(d *DataSet, e *Element) ([]any, error) {
	var out []any
	switch e.VR {
	case FL, FD:
		return append(out, jsonFloats(e)...), nil
	case US, UL, SS, SL, SV, UV:
		for _, n := range d.Strings(e.Tag) {
			out = append(out, json.Number(n))
		}
		return out, nil
	}
	for _, text := range d.Strings(e.Tag) {
		switch {
		case text == "":
			out = append(out, nil)
		case e.VR == PN:
			out = append(out, jsonName(text))
		case e.VR == DS || e.VR == IS:
			out = append(out, jsonDecimal(text))
		default:
			out = append(out, text)
		}
	}
	return out, nil
}

// jsonFloats keeps what JSON numbers cannot say as strings.
func jsonFloats(e *Element) []any {
	d := &DataSet{elements: []*Element{e}}
	if floats := d.Floats(e.Tag); floats != nil {
		out := make([]any, len(floats))
		for i, f := range floats {
			out[i] = json.Number(strconv.FormatFloat(f, 'g', -1, map[VR]int{FL: 32, FD: 64}[e.VR]))
		}
		return out
	}
	return []any{"NaN"}
}

// jsonDecimal writes a number as a number, and as the text that it is when it
// is none.
func jsonDecimal(text string) any {
	f, err := parseDecimal(text)
	if err != nil || math.IsInf(f, 0) {
		return text
	}
	text = strings.TrimSpace(text)
	if json.Valid([]byte(text)) {
		return json.Number(text)
	}
	return f
}

// jsonName splits the component groups of a PN.
func jsonName(text string) map[string]string {
	out := map[string]string{}
	for i, group := range strings.SplitN(text, "=", 3) {
		if group = strings.TrimRight(group, "^ "); group != "" {
			out[[]string{"Alphabetic", "Ideographic", "Phonetic"}[i]] = group
		}
	}
	return out
}
