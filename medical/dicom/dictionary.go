package dicom

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"
)

// dictionary.txt holds the registry of data elements (PS3.6 sections 6 to 8 and
// PS3.7 annex E), one a line: tag (x stands for any digit of a repeating
// group), VR (alternatives separated by /), VM, keyword, R when retired.
//
//go:embed dictionary.txt
var dictionaryText string

// Attribute is an entry of the registry of data elements (PS3.6).
type Attribute struct {
	Tag     Tag // for a repeating group, the tag that was looked up
	VR      VR  // the first where the registry allows several
	Other   []VR
	VM      string // "1", "1-n", "3", …
	Keyword string // "PatientName"
	Retired bool
}

type repeating struct {
	mask, value uint32
	attribute   Attribute
}

type registry struct {
	plain    map[Tag]Attribute
	repeats  []repeating
	keywords map[string]Tag
}

var dictionary = sync.OnceValue(func() *registry {
	r := &registry{plain: make(map[Tag]Attribute, 5200), keywords: make(map[string]Tag, 5200)}
	for line := range strings.Lines(dictionaryText) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			panic("dicom: dictionary.txt has a line that is not an attribute: " + line)
		}
		first, rest, _ := strings.Cut(fields[1], "/")
		a := Attribute{VR: VR(first), VM: fields[2], Keyword: fields[3], Retired: len(fields) > 4}
		if rest != "" {
			for _, vr := range strings.Split(rest, "/") {
				a.Other = append(a.Other, VR(vr))
			}
		}
		digits, mask := fields[0], uint32(0xFFFFFFFF)
		if strings.Contains(digits, "x") {
			mask = 0
			for _, c := range digits {
				mask <<= 4
				if c != 'x' {
					mask |= 0xF
				}
			}
			digits = strings.ReplaceAll(digits, "x", "0")
		}
		number, err := strconv.ParseUint(digits, 16, 32)
		if err != nil {
			panic("dicom: dictionary.txt has a tag that is not hexadecimal: " + line)
		}
		a.Tag = Tag(number)
		r.keywords[a.Keyword] = a.Tag
		if mask == 0xFFFFFFFF {
			r.plain[a.Tag] = a
		} else {
			r.repeats = append(r.repeats, repeating{mask, uint32(number), a})
		}
	}
	return r
})

// Lookup finds a public attribute in the registry, repeating groups (50xx,
// 60xx, …) and group lengths included. Private creators (PS3.5 7.8.1) are LO;
// other private tags are unknown.
func Lookup(tag Tag) (Attribute, bool) {
	r := dictionary()
	if a, ok := r.plain[tag]; ok {
		return a, true
	}
	if tag.Element() == 0 {
		return Attribute{Tag: tag, VR: UL, VM: "1", Keyword: "GenericGroupLength", Retired: true}, true
	}
	if tag.Private() {
		if e := tag.Element(); e >= 0x10 && e <= 0xFF {
			return Attribute{Tag: tag, VR: LO, VM: "1", Keyword: "PrivateCreator"}, true
		}
		return Attribute{}, false
	}
	for _, repeat := range r.repeats {
		if uint32(tag)&repeat.mask == repeat.value {
			a := repeat.attribute
			a.Tag = tag
			return a, true
		}
	}
	return Attribute{}, false
}

// TagOf finds the tag of a keyword: "PatientName" → (0010,0010). A keyword of
// a repeating group gives its first group.
func TagOf(keyword string) (Tag, bool) {
	tag, ok := dictionary().keywords[keyword]
	return tag, ok
}

// vrOf returns the VR of the registry, or UN.
func vrOf(tag Tag) VR {
	if a, ok := Lookup(tag); ok {
		return a.VR
	}
	return UN
}
