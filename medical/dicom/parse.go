package dicom

import (
	"bufio"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Parse reads a file of PS3.10. It also reads what archives really hold: files
// without preamble, without file meta information, or whose meta information
// names no transfer syntax; then the syntax is inferred from the first element.
//
// On error the file holds what was read completely, and is nil only when not
// even the beginning could be read. See the package's errors.
func Parse(r io.Reader, limits Limits) (*File, error) {
	return parse(r, limits, 0)
}

// ParseHeader is Parse up to, and without, the first attribute whose tag is
// until or greater: with PixelData it reads everything but the image. What
// follows is neither read nor checked.
func ParseHeader(r io.Reader, until Tag, limits Limits) (*File, error) {
	return parse(r, limits, until)
}

// ParseDataSet reads a data set without meta information, in a transfer syntax
// that the caller knows.
func ParseDataSet(r io.Reader, transferSyntax string, limits Limits) (*DataSet, error) {
	d := new(DataSet)
	err := parseBody(bufio.NewReaderSize(r, 1<<14), remaining(r), d, transferSyntax, limits.withDefaults(), 0)
	return d, err
}

// remaining returns how many bytes an in-memory reader still has, else -1.
func remaining(r io.Reader) int64 {
	if sized, ok := r.(interface{ Len() int }); ok {
		return int64(sized.Len())
	}
	return -1
}

func parse(r io.Reader, limits Limits, until Tag) (*File, error) {
	limits = limits.withDefaults()
	size := remaining(r)
	in := bufio.NewReaderSize(r, 1<<14)
	preamble, err := in.Peek(132)
	preambled := err == nil && string(preamble[128:]) == "DICM"
	if preambled {
		if _, err := in.Discard(132); err != nil {
			return nil, fmt.Errorf("dicom: reading the preamble: %w", err)
		}
		if size >= 0 {
			size -= 132
		}
	} else if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("dicom: reading the preamble: %w", err)
	}
	f := &File{Meta: new(DataSet), DataSet: new(DataSet)}
	used, err := parseMeta(in, size, f.Meta, limits)
	if err != nil {
		return f, err
	}
	if size >= 0 {
		size -= used
	}
	f.TransferSyntax = f.Meta.UID(TransferSyntaxUID)
	if f.TransferSyntax == "" {
		if f.TransferSyntax, err = guess(in, preambled); err != nil {
			if f.Meta.Len() == 0 {
				return nil, err
			}
			return f, err
		}
	}
	return f, parseBody(in, size, f.DataSet, f.TransferSyntax, limits, until)
}

// parseMeta reads group 0002, which is always explicit little endian, as long
// as elements of it follow: the group length is often wrong. It returns how
// many bytes it used.
func parseMeta(in *bufio.Reader, size int64, meta *DataSet, limits Limits) (int64, error) {
	r := &reader{in: in, size: size, limits: limits}
	for {
		b, err := in.Peek(6)
		if err != nil || binary.LittleEndian.Uint16(b) != 2 || !VR(b[4:6]).letters() {
			return r.at, nil
		}
		h, err := r.header(encodingOf{}, 0)
		if err != nil {
			return r.at, err
		}
		if h.vr == SQ || h.length == undefinedLength {
			return r.at, r.fail(ErrMalformed, h.tag, "a sequence in the file meta information")
		}
		if err := r.element(meta, h, encodingOf{}, 0); err != nil {
			return r.at, err
		}
	}
}

// guess infers the transfer syntax of a data set from its first element: the
// byte order from which reading of the group number is small, the encoding
// from whether a VR of the standard follows the tag. Deflated and encapsulated
// syntaxes cannot be told; the latter parse as explicit little endian. Behind a
// preamble any group may come first.
func guess(in *bufio.Reader, preambled bool) (string, error) {
	b, err := in.Peek(8)
	if err != nil {
		if errors.Is(err, io.EOF) {
			if len(b) == 0 {
				return "", fmt.Errorf("dicom: reading the first element: %w: there is no data set", ErrTruncated)
			}
			return "", fmt.Errorf("dicom: reading the first element: %w: %d bytes", ErrNotDICOM, len(b))
		}
		return "", fmt.Errorf("dicom: reading the first element: %w", err)
	}
	little, big := binary.LittleEndian.Uint16(b), binary.BigEndian.Uint16(b)
	explicit := VR(b[4:6]).Known()
	first := func(group uint16) bool { return group >= 4 && group <= 0x0050 && group&1 == 0 }
	if preambled && !first(big) {
		first = func(group uint16) bool { return group == little }
	}
	switch {
	case first(little) && explicit:
		return ExplicitLittleEndian, nil
	case first(big) && explicit:
		return ExplicitBigEndian, nil
	case first(little):
		// Implicit: the value must be of a plausible length for a first element.
		if length := binary.LittleEndian.Uint32(b[4:]); length < 1<<16 || length == undefinedLength {
			return ImplicitLittleEndian, nil
		}
	}
	return "", fmt.Errorf("dicom: reading the first element: %w: neither a preamble nor an element of a low group", ErrNotDICOM)
}

// parseBody reads the data set after the meta information.
func parseBody(in *bufio.Reader, size int64, d *DataSet, transferSyntax string, limits Limits, until Tag) error {
	ts, _ := SyntaxOf(transferSyntax)
	r := &reader{in: in, size: size, limits: limits, until: until}
	if ts.Deflated {
		inflater := &bounded{compressed: &counter{in: in}, limits: limits}
		inflater.inflate = flate.NewReader(inflater.compressed)
		r.in, r.size = bufio.NewReaderSize(inflater, 1<<15), -1
	}
	return r.dataSet(d, encodingOf{implicit: ts.Implicit, big: ts.BigEndian}, unbounded, false, 0)
}

// counter counts the compressed bytes that the inflater takes.
type counter struct {
	in *bufio.Reader
	n  int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *counter) ReadByte() (byte, error) {
	b, err := c.in.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

// bounded inflates, and stops when the ratio says that nobody made this for
// reading.
type bounded struct {
	compressed *counter
	inflate    io.Reader
	n          int64
	limits     Limits
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.inflate.Read(p)
	b.n += int64(n)
	if b.n > freeExpansion && b.n/int64(b.limits.Expansion) > b.compressed.n {
		return 0, fmt.Errorf("%w: the data inflate more than %d times", ErrLimit, b.limits.Expansion)
	}
	var corrupt flate.CorruptInputError
	if errors.As(err, &corrupt) {
		err = fmt.Errorf("%w: corrupt deflated data", ErrMalformed)
	}
	return n, err
}
