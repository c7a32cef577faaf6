package dicom

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
)

// What Vigie says about itself in the files that it writes (PS3.7 D.3.3.2).
const (
	ImplementationUID  = "2.25.144217352671253869012354780412361597201"
	ImplementationName = "VIGIE_1"
)

// Write writes the file as PS3.10: preamble, meta information, data set in
// f.TransferSyntax. Media storage UIDs and the transfer syntax in the meta
// information are taken from the data set and from f; other attributes of
// f.Meta are kept.
func (f *File) Write(w io.Writer) error {
	meta := f.Meta.Clone()
	if meta == nil {
		meta = new(DataSet)
	}
	meta.DeleteFunc(func(e *Element) bool { return e.Tag.Group() != 2 || e.Tag.Element() == 0 })
	meta.PutBytes(FileMetaInformationVersion, OB, []byte{0, 1})
	if uid := f.DataSet.UID(SOPClassUID); uid != "" {
		meta.PutString(MediaStorageSOPClassUID, uid)
	}
	if uid := f.DataSet.UID(SOPInstanceUID); uid != "" {
		meta.PutString(MediaStorageSOPInstanceUID, uid)
	}
	meta.PutString(TransferSyntaxUID, f.TransferSyntax)
	if meta.Empty(ImplementationClassUID) {
		meta.PutString(ImplementationClassUID, ImplementationUID)
		meta.PutString(ImplementationVersionName, ImplementationName)
	}
	var head bytes.Buffer
	if err := meta.Write(&head, ExplicitLittleEndian); err != nil {
		return err
	}
	begin := make([]byte, 128, 144)
	begin = append(begin, "DICM\x02\x00\x00\x00UL\x04\x00"...)
	begin = binary.LittleEndian.AppendUint32(begin, uint32(head.Len()))
	if _, err := w.Write(append(begin, head.Bytes()...)); err != nil {
		return fmt.Errorf("dicom: writing the file meta information: %w", err)
	}
	return f.DataSet.Write(w, f.TransferSyntax)
}

// Write writes the data set in the transfer syntax. Native pixel data can be
// written in any native syntax, fragments only in an encapsulated one.
func (d *DataSet) Write(w io.Writer, transferSyntax string) error {
	ts, known := SyntaxOf(transferSyntax)
	if !known && transferSyntax == "" {
		return fmt.Errorf("dicom: writing a data set: %w: none given", ErrTransferSyntax)
	}
	if pixels := d.Get(PixelData); pixels != nil {
		if ts.Encapsulated && pixels.Fragments == nil && len(pixels.Value) > 0 {
			return fmt.Errorf("dicom: writing native pixel data as %s: %w: encode it first, or choose a native syntax", ts.Name, ErrTransferSyntax)
		}
		if !ts.Encapsulated && pixels.Fragments != nil {
			return fmt.Errorf("dicom: writing compressed pixel data as %s: %w: decode it first, or keep its syntax", ts.Name, ErrTransferSyntax)
		}
	}
	enc := encodingOf{implicit: ts.Implicit, big: ts.BigEndian}
	if ts.Deflated {
		return d.deflate(w, enc)
	}
	out := &writer{bufio.NewWriterSize(w, 1<<15), enc}
	if err := out.dataSet(d); err != nil {
		return err
	}
	return flushed(out.out)
}

// deflate writes the data set compressed, and even in length (PS3.5 A.5).
func (d *DataSet) deflate(w io.Writer, enc encodingOf) error {
	compressed := &counting{w: bufio.NewWriterSize(w, 1<<15)}
	deflater, err := flate.NewWriter(compressed, flate.DefaultCompression)
	if err != nil {
		return fmt.Errorf("dicom: deflating a data set: %w", err)
	}
	out := &writer{bufio.NewWriterSize(deflater, 1<<15), enc}
	if err := out.dataSet(d); err != nil {
		return err
	}
	if err := flushed(out.out); err != nil {
		return err
	}
	if err := deflater.Close(); err != nil {
		return fmt.Errorf("dicom: deflating a data set: %w", err)
	}
	if compressed.n&1 == 1 {
		compressed.w.WriteByte(0)
	}
	return flushed(compressed.w)
}

// counting counts what passes to w.
type counting struct {
	w *bufio.Writer
	n int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func flushed(w *bufio.Writer) error {
	if err := w.Flush(); err != nil {
		return fmt.Errorf("dicom: writing a data set: %w", err)
	}
	return nil
}

// writer writes elements. Errors of the output surface at the final flush.
type writer struct {
	out *bufio.Writer
	enc encodingOf
}

func (w *writer) u16(v uint16) {
	var b [2]byte
	w.enc.order().PutUint16(b[:], v)
	w.out.Write(b[:])
}

func (w *writer) u32(v uint32) {
	var b [4]byte
	w.enc.order().PutUint32(b[:], v)
	w.out.Write(b[:])
}

func (w *writer) tag(t Tag) {
	w.u16(t.Group())
	w.u16(t.Element())
}

func (w *writer) dataSet(d *DataSet) error {
	for e := range d.All() {
		if e.Tag.Element() == 0 && e.Tag.Group() > 2 {
			continue // group lengths are retired
		}
		if err := w.element(e); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) element(e *Element) error {
	if e.Tag.Group() == 0xFFFE {
		return fmt.Errorf("dicom: writing %s: %w: an item is not an attribute", e.Tag, ErrMalformed)
	}
	length := uint32(undefinedLength)
	vr, value := e.VR, e.Value
	if !vr.letters() {
		vr = UN
	}
	simple := vr != SQ && e.Fragments == nil
	if simple {
		if value = pad(vr, value); int64(len(value)) >= math.MaxUint32 {
			return fmt.Errorf("dicom: writing %s: %w: a value of %d bytes", e.Tag, ErrLimit, len(value))
		}
		length = uint32(len(value))
	}
	w.tag(e.Tag)
	w.head(vr, length)
	switch {
	case simple:
		if w.enc.big && representations[e.VR].unit > 1 {
			value = slices.Clone(value)
			swap(value, representations[e.VR].unit)
		}
		w.out.Write(value)
		return nil
	case vr == SQ:
		for _, inner := range e.Items {
			w.tag(item)
			w.u32(undefinedLength)
			if err := w.dataSet(inner); err != nil {
				return err
			}
			w.tag(itemDelimitation)
			w.u32(0)
		}
	default:
		for _, fragment := range e.Fragments {
			w.tag(item)
			fragment = pad(OB, fragment)
			w.u32(uint32(len(fragment)))
			w.out.Write(fragment)
		}
	}
	w.tag(sequenceDelimitation)
	w.u32(0)
	return nil
}

// head writes VR and length. A value too long for the 16-bit length of its VR
// is written as UN (PS3.5 6.2.2 note).
func (w *writer) head(vr VR, length uint32) {
	if w.enc.implicit {
		w.u32(length)
		return
	}
	known, ok := representations[vr]
	if ok && !known.long && length <= math.MaxUint16 {
		w.out.WriteString(string(vr))
		w.u16(uint16(length))
		return
	}
	if ok && !known.long {
		vr = UN
	}
	w.out.WriteString(string(vr))
	w.u16(0)
	w.u32(length)
}
