package dicom

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// undefinedLength marks a sequence, item or encapsulated value whose end is a
// delimiter (PS3.5 7.1.1).
const undefinedLength = math.MaxUint32

// encoding is how the elements of a data set are written.
type encodingOf struct{ implicit, big bool }

func (e encodingOf) order() binary.ByteOrder {
	if e.big {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// reader reads elements and counts what they cost.
type reader struct {
	in       *bufio.Reader
	size     int64 // bytes that in can still deliver at position 0, or -1
	at       int64 // position in the data set, for errors and ends
	limits   Limits
	elements int
	moved    int64 // places by which elements out of order displaced others
	until    Tag   // of the outermost data set: stop before this tag; 0 for none
}

// maxMoved bounds the work of sorting a data set that is out of order.
const maxMoved = 1 << 24

// unbounded is the end of a data set that ends with its input or a delimiter.
const unbounded = math.MaxInt64

func (r *reader) fail(kind error, tag Tag, format string, arguments ...any) error {
	return fmt.Errorf("dicom: reading %s at byte %d: %w: %s", tag, r.at, kind, fmt.Sprintf(format, arguments...))
}

// full reads len(p) bytes. Input that ends within is ErrTruncated; an error of
// the input itself (a limit, a broken connection) is passed on.
func (r *reader) full(p []byte, tag Tag) error {
	if r.at+int64(len(p)) > r.limits.Total {
		return r.fail(ErrLimit, tag, "the data set has more than %d bytes", r.limits.Total)
	}
	n, err := io.ReadFull(r.in, p)
	r.at += int64(n)
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return r.fail(ErrTruncated, tag, "%d of %d bytes are there", n, len(p))
	}
	return fmt.Errorf("dicom: reading %s at byte %d: %w", tag, r.at, err)
}

// chunk is how much is allocated before the first byte of a value has been
// seen, when the input's size is unknown.
const chunk = 1 << 16

// value reads n bytes, allocating only as the bytes arrive.
func (r *reader) value(n int64, tag Tag) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if n > r.limits.Element {
		return nil, r.fail(ErrLimit, tag, "a value of %d bytes; %d are allowed", n, r.limits.Element)
	}
	if r.at+n > r.limits.Total {
		return nil, r.fail(ErrLimit, tag, "the data set has more than %d bytes", r.limits.Total)
	}
	if r.size >= 0 {
		if left := r.size - r.at; n > left {
			return nil, r.fail(ErrTruncated, tag, "a value of %d bytes, but %d are left", n, max(left, 0))
		}
		p := make([]byte, n)
		return p, r.full(p, tag)
	}
	p := make([]byte, min(n, chunk))
	if err := r.full(p, tag); err != nil {
		return nil, err
	}
	for int64(len(p)) < n {
		more := min(n-int64(len(p)), int64(len(p)))
		next := make([]byte, int64(len(p))+more)
		copy(next, p)
		if err := r.full(next[len(p):], tag); err != nil {
			return nil, err
		}
		p = next
	}
	return p, nil
}

func (r *reader) count(tag Tag) error {
	if r.elements++; r.elements > r.limits.Elements {
		return r.fail(ErrLimit, tag, "more than %d elements", r.limits.Elements)
	}
	return nil
}

// header is what stands before a value.
type header struct {
	tag    Tag
	vr     VR
	length uint32
}

// errEnd says that the data set ended where a data set may end.
var errEnd = errors.New("end of the data set")

// header reads the next tag, VR and length.
func (r *reader) header(enc encodingOf, previous Tag) (header, error) {
	var b [8]byte
	if _, err := r.in.Peek(1); errors.Is(err, io.EOF) {
		return header{}, errEnd
	}
	if err := r.full(b[:], previous); err != nil {
		return header{}, err
	}
	order := enc.order()
	h := header{tag: NewTag(order.Uint16(b[0:]), order.Uint16(b[2:]))}
	if h.tag.Group() == 0xFFFE { // items and delimiters have no VR (PS3.5 7.5)
		h.length = order.Uint32(b[4:])
		return h, nil
	}
	vr := VR(b[4:6])
	// An element whose VR cannot be one was written implicitly in an explicit
	// data set. Several devices do that inside private sequences.
	if enc.implicit || !vr.letters() {
		h.vr, h.length = vrOf(h.tag), order.Uint32(b[4:])
		return h, nil
	}
	h.vr = vr
	// Every VR newer than those with a 16-bit length has a 32-bit one.
	if known, ok := representations[vr]; ok && !known.long {
		h.length = uint32(order.Uint16(b[6:]))
		return h, nil
	}
	if err := r.full(b[:4], h.tag); err != nil {
		return h, err
	}
	h.length = order.Uint32(b[:4])
	return h, nil
}

// dataSet reads elements into d until end, a delimiter, or the end of the
// input at depth 0. On error d holds what was complete.
func (r *reader) dataSet(d *DataSet, enc encodingOf, end int64, delimited bool, depth int) error {
	var previous Tag
	for r.at < end {
		if depth == 0 && r.stopHere(enc) {
			return nil
		}
		h, err := r.header(enc, previous)
		if errors.Is(err, errEnd) {
			if depth == 0 && end == unbounded {
				return nil
			}
			return r.fail(ErrTruncated, previous, "the data end inside a sequence")
		}
		if err != nil {
			return err
		}
		if h.tag == itemDelimitation && delimited {
			return nil
		}
		if h.tag.Group() == 0xFFFE {
			return r.fail(ErrMalformed, h.tag, "an item or delimiter outside a sequence")
		}
		if h.tag.Group() == 2 {
			return r.fail(ErrMalformed, h.tag, "file meta information inside the data set")
		}
		if h.length != undefinedLength && int64(h.length) > end-r.at {
			return r.fail(ErrMalformed, h.tag, "a value of %d bytes, but its item ends after %d", h.length, end-r.at)
		}
		if err := r.element(d, h, enc, depth); err != nil {
			return err
		}
		previous = h.tag
	}
	return nil
}

// stopHere reports whether the outermost data set ends here: at the tag that
// the caller named, or where only zero bytes follow (files padded to a block).
func (r *reader) stopHere(enc encodingOf) bool {
	b, err := r.in.Peek(8)
	if err != nil {
		return len(b) > 0 && zero(b)
	}
	tag := NewTag(enc.order().Uint16(b), enc.order().Uint16(b[2:]))
	if r.until != 0 && tag >= r.until && tag.Group() != 0xFFFE {
		return true
	}
	return r.at > 0 && zero(b)
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// element reads the value of h into d.
func (r *reader) element(d *DataSet, h header, enc encodingOf, depth int) error {
	if err := r.count(h.tag); err != nil {
		return err
	}
	i, twice := d.find(h.tag)
	if twice {
		return r.again(d.elements[i], h)
	}
	// Elements out of order are tolerated, but not so many that sorting them
	// in becomes an attack.
	if r.moved += int64(d.Len() - i); r.moved > maxMoved {
		return r.fail(ErrMalformed, h.tag, "the elements are not in order")
	}
	e := &Element{Tag: h.tag, VR: h.vr}
	groupLength := h.tag.Element() == 0 && h.tag.Group() > 2
	switch {
	case groupLength && (h.length == undefinedLength || h.vr == SQ):
		return r.fail(ErrMalformed, h.tag, "a group length that is no number")
	case h.length == undefinedLength && (h.vr == OB || h.vr == OW || h.tag == PixelData):
		e.VR = OB
		d.Put(e)
		return r.fragments(e, enc)
	case h.length == undefinedLength && h.vr != SQ && h.vr != UN:
		return r.fail(ErrMalformed, h.tag, "VR %s with undefined length", h.vr)
	case h.vr == SQ || h.length == undefinedLength:
		inner := enc
		if h.vr == UN { // PS3.5 6.2.2: the items are implicit little endian
			inner = encodingOf{implicit: true}
		}
		e.VR = SQ
		d.Put(e)
		return r.sequence(d, e, h.length, inner, depth+1)
	}
	value, err := r.value(int64(h.length), h.tag)
	if err != nil {
		return err
	}
	e.Value = value
	if groupLength {
		return nil // ignored (PS3.5 7.2)
	}
	if a, ok := Lookup(h.tag); ok && len(a.Other) > 0 && enc.implicit {
		e.VR = choose(d, a, value)
	}
	if enc.big {
		swap(e.Value, representations[e.VR].unit)
	}
	if e.VR == UN && !enc.big {
		if err := r.recover(d, e, depth); err != nil {
			return err
		}
	}
	d.Put(e)
	return nil
}

// again reads a repeated attribute. Some readers take the first, others the
// last, so one that says anything else would mean different patients to
// different systems.
func (r *reader) again(first *Element, h header) error {
	if h.length != undefinedLength && h.vr != SQ && first.Items == nil && first.Fragments == nil && int64(h.length) == int64(len(first.Value)) && len(first.Value) <= chunk {
		value, err := r.value(int64(h.length), h.tag)
		if err != nil {
			return err
		}
		if bytes.Equal(value, first.Value) && h.vr == first.VR {
			return nil
		}
	}
	return r.fail(ErrMalformed, h.tag, "the attribute is there twice, and readers disagree on which counts")
}

// recover gives a public attribute that was written as UN its real VR; the
// value is implicit little endian (PS3.5 6.2.2). What does not parse as a
// sequence stays UN.
func (r *reader) recover(d *DataSet, e *Element, depth int) error {
	a, ok := Lookup(e.Tag)
	if !ok || a.VR == UN {
		return nil
	}
	if a.VR != SQ {
		if len(a.Other) > 0 {
			a.VR = choose(d, a, e.Value)
		}
		e.VR = a.VR
		return nil
	}
	if len(e.Value) == 0 {
		e.VR = SQ
		return nil
	}
	inner := &reader{in: bufio.NewReaderSize(bytes.NewReader(e.Value), 64), size: int64(len(e.Value)), limits: r.limits, elements: r.elements}
	sequence := &Element{Tag: e.Tag, VR: SQ}
	err := inner.sequence(d, sequence, uint32(len(e.Value)), encodingOf{implicit: true}, depth+1)
	r.elements = inner.elements
	if errors.Is(err, ErrLimit) {
		return err
	}
	if err == nil {
		e.VR, e.Items, e.Value = SQ, sequence.Items, nil
	}
	return nil
}

// choose decides between the VRs that the registry allows, as PS3.5 annex A.1
// and the attributes' definitions tell.
func choose(d *DataSet, a Attribute, value []byte) VR {
	switch {
	case a.VR == OB: // OB/OW
		return OW
	case a.Other[len(a.Other)-1] == OW:
		if len(value) > 2 {
			return OW
		}
		return US
	}
	for within := d; within != nil; within = within.parent {
		if signed, ok := within.Int(PixelRepresentation); ok {
			if signed == 1 {
				return SS
			}
			break
		}
	}
	return US
}

// sequence reads the items of e.
func (r *reader) sequence(d *DataSet, e *Element, length uint32, enc encodingOf, depth int) error {
	if depth > r.limits.Depth {
		return r.fail(ErrLimit, e.Tag, "sequences nested deeper than %d", r.limits.Depth)
	}
	end := int64(unbounded)
	if length != undefinedLength {
		end = r.at + int64(length)
	}
	for r.at < end {
		h, err := r.header(enc, e.Tag)
		if errors.Is(err, errEnd) {
			return r.fail(ErrTruncated, e.Tag, "the data end inside a sequence")
		}
		if err != nil {
			return err
		}
		switch {
		case h.tag == sequenceDelimitation:
			if length == undefinedLength {
				return nil
			}
			continue // superfluous in a sequence of defined length
		case h.tag == itemDelimitation:
			continue // superfluous after an item of defined length
		case h.tag != item:
			return r.fail(ErrMalformed, e.Tag, "%s where an item should begin", h.tag)
		}
		if err := r.count(e.Tag); err != nil {
			return err
		}
		inner := &DataSet{parent: d}
		e.Items = append(e.Items, inner)
		itemEnd := end
		if h.length != undefinedLength {
			if int64(h.length) > end-r.at {
				return r.fail(ErrMalformed, e.Tag, "an item of %d bytes, but its sequence ends after %d", h.length, end-r.at)
			}
			itemEnd = r.at + int64(h.length)
		}
		if err := r.dataSet(inner, enc, itemEnd, h.length == undefinedLength, depth); err != nil {
			return err
		}
	}
	return nil
}

// fragments reads encapsulated pixel data (PS3.5 A.4).
func (r *reader) fragments(e *Element, enc encodingOf) error {
	for {
		h, err := r.header(enc, e.Tag)
		if errors.Is(err, errEnd) {
			return r.fail(ErrTruncated, e.Tag, "the data end between fragments")
		}
		if err != nil {
			return err
		}
		if h.tag == sequenceDelimitation {
			return nil
		}
		if h.tag != item || h.length == undefinedLength {
			return r.fail(ErrMalformed, e.Tag, "%s where a fragment should begin", h.tag)
		}
		if err := r.count(e.Tag); err != nil {
			return err
		}
		fragment, err := r.value(int64(h.length), e.Tag)
		if err != nil {
			return err
		}
		if fragment == nil {
			fragment = []byte{}
		}
		e.Fragments = append(e.Fragments, fragment)
	}
}
