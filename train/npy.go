package train

import (
	"archive/zip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrFormat is returned for a file that is not a NumPy array or archive, or one
// in a form that is not supported.
var ErrFormat = errors.New("not a supported NumPy file")

// ErrLimit is returned for a file that declares more than the limits allow.
var ErrLimit = errors.New("larger than the limit")

// Limits bound what a data file may make the reader allocate.
type Limits struct {
	Elements int64 // of one array; 0 means DefaultLimits.Elements
	Arrays   int   // in one archive; 0 means DefaultLimits.Arrays
}

// DefaultLimits hold every MedMNIST set up to 224×224.
var DefaultLimits = Limits{Elements: 8 << 30, Arrays: 64}

func (l Limits) orDefault() Limits {
	if l.Elements <= 0 {
		l.Elements = DefaultLimits.Elements
	}
	if l.Arrays <= 0 {
		l.Arrays = DefaultLimits.Arrays
	}
	return l
}

// Array is a NumPy array in row-major order.
type Array struct {
	Shape []int64
	Data  any // []uint8, []int64, []float32 or []float64
}

// Len returns the number of elements.
func (a Array) Len() int64 {
	n := int64(1)
	for _, d := range a.Shape {
		n *= d
	}
	return n
}

// maxHeader bounds the text header of a .npy file: NumPy itself writes under
// 200 bytes for plain arrays.
const maxHeader = 64 << 10

// ReadNPY reads one array in NumPy's .npy format, versions 1 to 3
// (numpy.lib.format). Element types are truth values, integers and floats, in
// either order of bytes and of axes; integers of more than a byte come back as
// int64, halves as float32. The data is read in pieces, so that a header which
// promises more than the file holds costs no memory.
func ReadNPY(r io.Reader, limits Limits) (Array, error) {
	limits = limits.orDefault()
	var magic [8]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return Array{}, fmt.Errorf("train: reading an array: %w: %w", ErrFormat, err)
	}
	if string(magic[:6]) != "\x93NUMPY" {
		return Array{}, fmt.Errorf("train: reading an array: %w: no NumPy signature", ErrFormat)
	}
	var length int64
	switch magic[6] {
	case 1:
		var n uint16
		if err := binary.Read(r, binary.LittleEndian, &n); err != nil {
			return Array{}, fmt.Errorf("train: reading an array: %w: %w", ErrFormat, err)
		}
		length = int64(n)
	case 2, 3:
		var n uint32
		if err := binary.Read(r, binary.LittleEndian, &n); err != nil {
			return Array{}, fmt.Errorf("train: reading an array: %w: %w", ErrFormat, err)
		}
		length = int64(n)
	default:
		return Array{}, fmt.Errorf("train: reading an array: %w: version %d", ErrFormat, magic[6])
	}
	if length > maxHeader {
		return Array{}, fmt.Errorf("train: reading an array: header of %d bytes: %w", length, ErrLimit)
	}
	header := make([]byte, length)
	if _, err := io.ReadFull(r, header); err != nil {
		return Array{}, fmt.Errorf("train: reading an array: %w: %w", ErrFormat, err)
	}
	form, shape, count, err := parseHeader(string(header), limits)
	if err != nil {
		return Array{}, fmt.Errorf("train: reading an array: %w", err)
	}
	data, err := form.read(r, count)
	if err != nil {
		return Array{}, fmt.Errorf("train: reading an array of shape %v: %w", shape, err)
	}
	if form.columns {
		data = rowMajor(data, shape)
	}
	return Array{Shape: shape, Data: data}, nil
}

// form is how an array's elements are written.
type form struct {
	elementType
	big      bool // most significant byte first
	unsigned bool // of eight bytes, of which int64 holds half
	columns  bool // the first axis varies fastest (Fortran's order)
}

// resave is what to do about elements that are not read.
const resave = "save it as numbers of another type, with numpy.save(FILE, array.astype('float32')) or 'int64'"

var (
	descrField   = regexp.MustCompile(`'descr'\s*:\s*('([^']*)'|\[)`)
	descrNumber  = regexp.MustCompile(`^([<>|=]?)([a-z])(\d+)$`)
	fortranField = regexp.MustCompile(`'fortran_order'\s*:\s*(True|False)`)
	shapeField   = regexp.MustCompile(`'shape'\s*:\s*\(([\d,\sL]*)\)`)
)

// parseHeader reads the Python dictionary literal that describes the array.
func parseHeader(header string, limits Limits) (f form, shape []int64, count int64, err error) {
	descr, fortran, dims := descrField.FindStringSubmatch(header), fortranField.FindStringSubmatch(header), shapeField.FindStringSubmatch(header)
	if descr == nil || fortran == nil || dims == nil {
		return f, nil, 0, fmt.Errorf("%w: header %.80q", ErrFormat, header)
	}
	if descr[1] == "[" {
		return f, nil, 0, fmt.Errorf("%w: records of several fields; save each field as an array of its own", ErrFormat)
	}
	parts := descrNumber.FindStringSubmatch(descr[2])
	known := false
	if parts != nil {
		f.elementType, known = elementTypes[parts[2]+parts[3]]
	}
	if !known {
		return f, nil, 0, fmt.Errorf("%w: elements of type %q; %s", ErrFormat, descr[2], resave)
	}
	f.big, f.unsigned = parts[1] == ">" && f.size > 1, parts[2]+parts[3] == "u8"
	count = 1
	shape = []int64{}
	for field := range strings.SplitSeq(dims[1], ",") {
		field = strings.TrimSuffix(strings.TrimSpace(field), "L")
		if field == "" {
			continue
		}
		d, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return f, nil, 0, fmt.Errorf("%w: shape (%s)", ErrFormat, dims[1])
		}
		if d > 0 && count > limits.Elements/d {
			return f, nil, 0, fmt.Errorf("shape (%s): %w of %d elements", dims[1], ErrLimit, limits.Elements)
		}
		count *= d
		shape = append(shape, d)
	}
	f.columns = fortran[1] == "True" && len(shape) > 1
	return f, shape, count, nil
}

// elementType is a row of the table of NumPy types.
type elementType struct {
	size   int
	append func(dst any, raw []byte) any // decodes raw behind dst
}

var elementTypes = map[string]elementType{
	"u1": {1, func(dst any, raw []byte) any { d, _ := dst.([]uint8); return append(d, raw...) }},
	"b1": {1, func(dst any, raw []byte) any { d, _ := dst.([]uint8); return append(d, raw...) }},
	"i1": integer(1, func(b []byte) int64 { return int64(int8(b[0])) }),
	"i2": integer(2, func(b []byte) int64 { return int64(int16(binary.LittleEndian.Uint16(b))) }),
	"u2": integer(2, func(b []byte) int64 { return int64(binary.LittleEndian.Uint16(b)) }),
	"i4": integer(4, func(b []byte) int64 { return int64(int32(binary.LittleEndian.Uint32(b))) }),
	"u4": integer(4, func(b []byte) int64 { return int64(binary.LittleEndian.Uint32(b)) }),
	"i8": integer(8, func(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b)) }),
	"u8": integer(8, func(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b)) }), // see form.unsigned
	"f2": {2, func(dst any, raw []byte) any {
		d, _ := dst.([]float32)
		for ; len(raw) >= 2; raw = raw[2:] {
			d = append(d, half(binary.LittleEndian.Uint16(raw)))
		}
		return d
	}},
	"f4": {4, func(dst any, raw []byte) any {
		d, _ := dst.([]float32)
		for ; len(raw) >= 4; raw = raw[4:] {
			d = append(d, math.Float32frombits(binary.LittleEndian.Uint32(raw)))
		}
		return d
	}},
	"f8": {8, func(dst any, raw []byte) any {
		d, _ := dst.([]float64)
		for ; len(raw) >= 8; raw = raw[8:] {
			d = append(d, math.Float64frombits(binary.LittleEndian.Uint64(raw)))
		}
		return d
	}},
}

func integer(size int, decode func([]byte) int64) elementType {
	return elementType{size, func(dst any, raw []byte) any {
		d, _ := dst.([]int64)
		for ; len(raw) >= size; raw = raw[size:] {
			d = append(d, decode(raw))
		}
		return d
	}}
}

// half is the value of an IEEE 754 binary16.
func half(bits uint16) float32 {
	sign := uint32(bits>>15) << 31
	exponent, fraction := uint32(bits>>10&31), uint32(bits&1023)
	switch exponent {
	case 0: // zero or subnormal: fraction · 2⁻²⁴
		return math.Float32frombits(math.Float32bits(float32(fraction)*0x1p-24) | sign)
	case 31:
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
}

// rowMajor brings elements whose first axis varies fastest into the order in which
// the last one does.
func rowMajor(data any, shape []int64) any {
	switch d := data.(type) {
	case []uint8:
		return transposed(d, shape)
	case []int64:
		return transposed(d, shape)
	case []float32:
		return transposed(d, shape)
	case []float64:
		return transposed(d, shape)
	}
	return data
}

func transposed[T any](from []T, shape []int64) []T {
	out := make([]T, len(from))
	stride := make([]int, len(shape)) // of each axis in from
	for i, step := 0, 1; i < len(shape); i++ {
		stride[i] = step
		step *= int(shape[i])
	}
	at, index := 0, make([]int64, len(shape))
	for i := range out {
		out[i] = from[at]
		for axis := len(shape) - 1; axis >= 0; axis-- {
			if index[axis]++; index[axis] < shape[axis] {
				at += stride[axis]
				break
			}
			at -= int(shape[axis]-1) * stride[axis]
			index[axis] = 0
		}
	}
	return out
}

func (t form) read(r io.Reader, count int64) (any, error) {
	var data any
	piece := make([]byte, min(count*int64(t.size), 1<<20)/int64(t.size)*int64(t.size))
	data = t.append(nil, nil)
	for left := count * int64(t.size); left > 0; {
		n := min(left, int64(len(piece)))
		if _, err := io.ReadFull(r, piece[:n]); err != nil {
			return nil, fmt.Errorf("%w: the data ends early: %w", ErrFormat, err)
		}
		if t.big {
			for at := 0; at < int(n); at += t.size {
				slices.Reverse(piece[at : at+t.size])
			}
		}
		if t.unsigned && !fits(piece[:n]) {
			return nil, fmt.Errorf("%w: whole numbers of 2⁶³ or more; %s", ErrFormat, resave)
		}
		data = t.append(data, piece[:n])
		left -= n
	}
	return data, nil
}

// fits says that numbers of eight bytes without a sign are the same with one.
func fits(raw []byte) bool {
	for at := 7; at < len(raw); at += 8 {
		if raw[at] > 127 {
			return false
		}
	}
	return true
}

// ListNPZ lists the names of the arrays in an archive.
func ListNPZ(r io.ReaderAt, size int64, limits Limits) ([]string, error) {
	_, names, err := members(r, size, limits)
	return names, err
}

func members(r io.ReaderAt, size int64, limits Limits) (map[string]*zip.File, []string, error) {
	limits = limits.orDefault()
	archive, err := zip.NewReader(r, size)
	if err != nil {
		return nil, nil, fmt.Errorf("train: reading an archive: %w: %w", ErrFormat, err)
	}
	if len(archive.File) > limits.Arrays {
		return nil, nil, fmt.Errorf("train: reading an archive of %d arrays: %w of %d", len(archive.File), ErrLimit, limits.Arrays)
	}
	found := map[string]*zip.File{}
	var names []string
	for _, f := range archive.File {
		name := strings.TrimSuffix(f.Name, ".npy")
		found[name] = f
		names = append(names, name)
	}
	return found, names, nil
}

// ReadNPZ reads the named arrays of a NumPy .npz archive; a missing one is an
// error that lists what the archive has.
func ReadNPZ(r io.ReaderAt, size int64, limits Limits, names ...string) (map[string]Array, error) {
	found, has, err := members(r, size, limits)
	if err != nil {
		return nil, err
	}
	arrays := map[string]Array{}
	for _, name := range names {
		f := found[name]
		if f == nil {
			return nil, fmt.Errorf("train: reading an archive: %w: no array %q, it has %s", ErrFormat, name, strings.Join(has, ", "))
		}
		a, err := readMember(f, limits.orDefault())
		if err != nil {
			return nil, fmt.Errorf("train: reading array %q: %w", name, err)
		}
		arrays[name] = a
	}
	return arrays, nil
}

func readMember(f *zip.File, limits Limits) (Array, error) {
	rc, err := f.Open()
	if err != nil {
		return Array{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	defer rc.Close()
	return ReadNPY(rc, limits)
}
