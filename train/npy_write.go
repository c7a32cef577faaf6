package train

import (
	"archive/zip"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// WriteNPY writes one array in NumPy's .npy format, version 1. Data may also be
// []int32, []int8 or []bool, which ReadNPY gives back wider.
func WriteNPY(w io.Writer, a Array) error {
	descr, count := describeElements(a.Data)
	if descr == "" {
		return fmt.Errorf("train: writing an array of %T: %w: want floats, integers, bytes or truth values", a.Data, ErrFormat)
	}
	if count != a.Len() {
		return fmt.Errorf("train: writing an array: %d elements for shape %v", count, a.Shape)
	}
	dims := make([]string, len(a.Shape))
	for i, d := range a.Shape {
		dims[i] = strconv.FormatInt(d, 10)
	}
	shape := strings.Join(dims, ", ")
	if len(dims) == 1 {
		shape += "," // Python's tuple of one
	}
	header := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr, shape)
	const before = 10                                                                      // signature, version, length
	header += strings.Repeat(" ", 63-(before+len(header))%64) + "\n"                       // the data begins at a multiple of 64
	prefix := append([]byte("\x93NUMPY\x01\x00"), byte(len(header)), byte(len(header)>>8)) // 32 dimensions stay below 64 KiB
	if _, err := w.Write(append(prefix, header...)); err != nil {
		return fmt.Errorf("train: writing an array: %w", err)
	}
	if err := binary.Write(w, binary.LittleEndian, a.Data); err != nil {
		return fmt.Errorf("train: writing an array: %w", err)
	}
	return nil
}

// describeElements returns NumPy's name of the element type and the number of
// elements, "" for a type that is not supported.
func describeElements(data any) (descr string, count int64) {
	switch d := data.(type) {
	case []float32:
		return "<f4", int64(len(d))
	case []float64:
		return "<f8", int64(len(d))
	case []int64:
		return "<i8", int64(len(d))
	case []int32:
		return "<i4", int64(len(d))
	case []int8:
		return "|i1", int64(len(d))
	case []uint8:
		return "|u1", int64(len(d))
	case []bool:
		return "|b1", int64(len(d))
	}
	return "", 0
}

// WriteNPZ writes arrays as a NumPy .npz archive, uncompressed and in the order
// of their names, so that equal arrays give equal bytes.
func WriteNPZ(w io.Writer, arrays map[string]Array) error {
	archive := zip.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(arrays)) {
		member, err := archive.CreateHeader(&zip.FileHeader{Name: name + ".npy", Method: zip.Store})
		if err != nil {
			return fmt.Errorf("train: writing array %q: %w", name, err)
		}
		if err := WriteNPY(member, arrays[name]); err != nil {
			return fmt.Errorf("array %q: %w", name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("train: writing an archive: %w", err)
	}
	return nil
}
