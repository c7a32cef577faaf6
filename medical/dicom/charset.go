package dicom

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// singleByte maps the registration number in a defined term of (0008,0005)
// (PS3.3 C.12.1.1.2) to its right half; all have ASCII as the left. Number 13
// (JIS X 0201) is handled beside them.
var singleByte = map[string]*charmap.Charmap{
	"100": charmap.ISO8859_1,
	"101": charmap.ISO8859_2,
	"109": charmap.ISO8859_3,
	"110": charmap.ISO8859_4,
	"144": charmap.ISO8859_5,
	"127": charmap.ISO8859_6,
	"126": charmap.ISO8859_7,
	"138": charmap.ISO8859_8,
	"148": charmap.ISO8859_9,
	"203": charmap.ISO8859_15,
	"166": charmap.Windows874, // TIS 620-2533 and a few signs outside it
}

// half is one code element of ISO 2022: what the bytes of one half of the code
// table mean.
type half struct {
	width  int // bytes of a character
	decode func(character []byte) rune
}

func oneByte(decode func(byte) rune) half {
	return half{1, func(c []byte) rune { return decode(c[0]) }}
}

// through decodes one character by an encoding of x/text, after moving it to
// where that encoding expects it.
func through(e encoding.Encoding, prefix []byte) half {
	return half{2, func(c []byte) rune {
		in := append(append([]byte(nil), prefix...), c[0]|0x80, c[1]|0x80)
		out, err := e.NewDecoder().Bytes(in)
		if err != nil {
			return utf8.RuneError
		}
		r, size := utf8.DecodeRune(out)
		if size != len(out) {
			return utf8.RuneError
		}
		return r
	}}
}

var (
	halfASCII    = oneByte(func(b byte) rune { return rune(b & 0x7F) })
	halfKatakana = oneByte(func(b byte) rune {
		if b >= 0xA1 && b <= 0xDF {
			return 0xFF61 + rune(b-0xA1)
		}
		return utf8.RuneError
	})
	// A byte ≥ 0x80 where none is allowed is read as Latin-1: such files are
	// common and nearly always mean that.
	halfLatin1  = oneByte(func(b byte) rune { return rune(b) })
	halfJIS0208 = through(japanese.EUCJP, nil)
	halfJIS0212 = through(japanese.EUCJP, []byte{0x8F})
	halfKSX1001 = through(korean.EUCKR, nil)
	halfGB2312  = through(simplifiedchinese.GBK, nil)
)

// escapes are the code extensions of PS3.3 tables C.12-3 and C.12-4: the
// sequence after ESC, the half that it designates, and whether to G1.
var escapes = []struct {
	sequence string
	half     half
	right    bool
}{
	{"(B", halfASCII, false},
	{"(J", halfASCII, false}, // JIS X 0201 romaji: yen and overline stand for backslash and tilde
	{"$B", halfJIS0208, false},
	{"$@", halfJIS0208, false},
	{"$(D", halfJIS0212, false},
	{")I", halfKatakana, true},
	{"$)C", halfKSX1001, true},
	{"$)A", halfGB2312, true},
	{"-A", right("100"), true},
	{"-B", right("101"), true},
	{"-C", right("109"), true},
	{"-D", right("110"), true},
	{"-L", right("144"), true},
	{"-G", right("127"), true},
	{"-F", right("126"), true},
	{"-H", right("138"), true},
	{"-M", right("148"), true},
	{"-b", right("203"), true},
	{"-T", right("166"), true},
}

func right(number string) half { return oneByte(singleByte[number].DecodeByte) }

// charset is the value of (0008,0005) that governs a data set.
type charset []string

// charset finds the character set: the data set's own or, for an item, that of
// the data set around it.
func (d *DataSet) charset() charset {
	for ; d != nil; d = d.parent {
		e := d.Get(SpecificCharacterSet)
		if e == nil {
			continue
		}
		var terms charset
		for _, term := range strings.Split(string(e.Value), "\\") {
			terms = append(terms, strings.Trim(term, " \x00"))
		}
		return terms
	}
	return nil
}

// whole returns the encoding of a character set that is not built from halves.
func (c charset) whole() encoding.Encoding {
	if len(c) == 0 {
		return nil
	}
	switch c[0] {
	case "GB18030":
		return simplifiedchinese.GB18030
	case "GBK":
		return simplifiedchinese.GBK
	}
	return nil
}

func (c charset) utf8() bool { return len(c) > 0 && c[0] == "ISO_IR 192" }

// number returns the registration number of the first term, "" for the default
// repertoire.
func (c charset) number() string {
	if len(c) == 0 {
		return ""
	}
	_, number, _ := strings.Cut(strings.Replace(c[0], "ISO 2022 IR", "ISO_IR", 1), "ISO_IR ")
	return number
}

// decode turns bytes of the character set into UTF-8. What has no meaning in
// it becomes U+FFFD.
func (c charset) decode(value []byte) string {
	ascii := true
	for _, b := range value {
		if b >= 0x80 || b == 0x1B {
			ascii = false
			break
		}
	}
	switch {
	case ascii:
		return string(value)
	case c.utf8():
		return strings.ToValidUTF8(string(value), "\uFFFD")
	case c.whole() != nil:
		out, err := c.whole().NewDecoder().Bytes(value)
		if err != nil {
			return strings.ToValidUTF8(string(value), "\uFFFD")
		}
		return string(out)
	}
	return c.decodeHalves(value)
}

// initial returns what G0 and G1 mean at the beginning of a value.
func (c charset) initial() (g0, g1 half) {
	number := c.number()
	if table, ok := singleByte[number]; ok {
		return halfASCII, oneByte(table.DecodeByte)
	}
	if number == "13" {
		return halfASCII, halfKatakana
	}
	return halfASCII, halfLatin1
}

func (c charset) decodeHalves(value []byte) string {
	extensions := len(c) > 1 || (len(c) == 1 && strings.HasPrefix(c[0], "ISO 2022"))
	var out strings.Builder
	g0, g1 := c.initial()
	for len(value) > 0 {
		b := value[0]
		if b == 0x1B && extensions {
			known := false
			for _, escape := range escapes {
				if bytes.HasPrefix(value[1:], []byte(escape.sequence)) {
					if escape.right {
						g1 = escape.half
					} else {
						g0 = escape.half
					}
					value, known = value[1+len(escape.sequence):], true
					break
				}
			}
			if known {
				continue
			}
		}
		current := g0
		if b >= 0x80 {
			current = g1
		}
		switch {
		case b < 0x20, current.width == 1 && b < 0x80:
			out.WriteByte(b)
			value = value[1:]
			// Control characters and the delimiters of PS3.5 6.1.2.5.3 return to
			// the initial state; only PN has ^ and =, and nothing else designates
			// by a caret in practice, so one rule serves all.
			if b == '\\' || b == '^' || b == '=' || b == '\r' || b == '\n' || b == '\t' || b == '\f' {
				g0, g1 = c.initial()
			}
		case len(value) < current.width:
			out.WriteRune(utf8.RuneError)
			value = nil
		default:
			out.WriteRune(current.decode(value[:current.width]))
			value = value[current.width:]
		}
	}
	return out.String()
}

// encode turns UTF-8 into the character set, or reports that it cannot. Code
// extensions are read but never written.
func (c charset) encode(text string) ([]byte, bool) {
	ascii := strings.IndexFunc(text, func(r rune) bool { return r >= 0x80 }) < 0
	switch {
	case ascii || c.utf8():
		return []byte(text), true
	case len(c) > 1:
		return nil, false
	case c.whole() != nil:
		out, err := c.whole().NewEncoder().Bytes([]byte(text))
		return out, err == nil
	}
	table, ok := singleByte[c.number()]
	if !ok || c[0] != "ISO_IR "+c.number() {
		return nil, false
	}
	out, err := table.NewEncoder().Bytes([]byte(text))
	return out, err == nil
}

// texts decodes the values of a text element of d.
func (d *DataSet) texts(e *Element) []string {
	r := representations[e.VR]
	text := ""
	if r.coded {
		text = d.charset().decode(e.Value)
	} else {
		text = charset(nil).decode(e.Value)
	}
	if !r.several {
		if text = string(trim(e.VR, []byte(text))); text == "" {
			return nil
		}
		return []string{text}
	}
	values := strings.Split(text, "\\")
	for i := range values {
		values[i] = string(trim(e.VR, []byte(values[i])))
	}
	if len(values) == 1 && values[0] == "" {
		return nil
	}
	return values
}

// ConvertToUTF8 rewrites every text of the data set and its items in UTF-8 and
// says so in (0008,0005).
func (d *DataSet) ConvertToUTF8() {
	d.recode()
	d.Put(&Element{Tag: SpecificCharacterSet, VR: CS, Value: []byte("ISO_IR 192")})
}

func (d *DataSet) recode() {
	terms := d.charset()
	for _, e := range d.elements {
		for _, item := range e.Items {
			item.recode()
			item.Delete(SpecificCharacterSet)
		}
		if representations[e.VR].coded {
			e.Value = pad(e.VR, []byte(terms.decode(e.Value)))
		}
	}
}
