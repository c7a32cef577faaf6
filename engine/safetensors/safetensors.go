// Package safetensors reads and writes named tensors in the safetensors format
// (https://github.com/huggingface/safetensors, "Format"): eight bytes with the
// length of a header, the header as JSON, then the tensors' bytes end to end,
// row-major and little-endian. PyTorch, JAX and NumPy users have readers for it,
// and unlike a pickle it cannot run code.
//
//	err := safetensors.Write(f, map[string]engine.Tensor{"fc.weight": w}, nil)
//	file, err := safetensors.Read(f, size, safetensors.Limits{})
//	w := file.Tensors["fc.weight"]
//
// Read is strict, as the format asks: every byte belongs to exactly one tensor,
// no name comes twice, and nothing is allocated on the word of a header alone.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// ErrFormat says that the bytes are not a safetensors file.
var ErrFormat = errors.New("not a well-formed safetensors file")

// ErrLimit says that a file is larger than the limits.
var ErrLimit = errors.New("larger than the limit")

// ErrType says that a file holds an element type that the engine does not have.
var ErrType = errors.New("unsupported element type")

// Limits bound what Read accepts. Zero fields take the values in brackets.
type Limits struct {
	Header int64 // bytes of the JSON header [100 MB, the format's own bound]
	Data   int64 // bytes of all tensors together [4 GiB]
}

func (l Limits) orDefault() Limits {
	if l.Header <= 0 {
		l.Header = 100_000_000
	}
	if l.Data <= 0 {
		l.Data = 4 << 30
	}
	return l
}

// maxRank is the most dimensions that a tensor may have.
const maxRank = onnx.MaxRank

// File is what a safetensors file holds.
type File struct {
	Tensors  map[string]engine.Tensor
	Metadata map[string]string // free text, such as what made the file
}

// entry is a tensor's line in the header. Offsets count from the header's end.
type entry struct {
	Type    string  `json:"dtype"`
	Shape   []int64 `json:"shape"`
	Offsets []int64 `json:"data_offsets"` // from, to
}

// metadataKey is the one name in a header that is not a tensor.
const metadataKey = "__metadata__"

// elementType is a row of the table of element types.
type elementType struct {
	name   string
	size   int64
	decode func([]byte) any
}

// types are those that Read knows. The two 16-bit floats come back as float32,
// which holds all of their values; Write never makes them.
var types = map[string]elementType{
	"F64":  {"F64", 8, decode[float64]},
	"F32":  {"F32", 4, decode[float32]},
	"F16":  {"F16", 2, func(raw []byte) any { return widen(raw, half) }},
	"BF16": {"BF16", 2, func(raw []byte) any { return widen(raw, brain) }},
	"I64":  {"I64", 8, decode[int64]},
	"I32":  {"I32", 4, decode[int32]},
	"I8":   {"I8", 1, decode[int8]},
	"U8":   {"U8", 1, decode[uint8]},
	"BOOL": {"BOOL", 1, func(raw []byte) any {
		out := make([]bool, len(raw))
		for i, b := range raw {
			out[i] = b != 0
		}
		return out
	}},
}

var names = map[onnx.DataType]string{
	onnx.Double: "F64", onnx.Float: "F32", onnx.Int64: "I64", onnx.Int32: "I32",
	onnx.Int8: "I8", onnx.Uint8: "U8", onnx.Bool: "BOOL",
}

func decode[T float32 | float64 | int64 | int32 | int8 | uint8](raw []byte) any {
	var zero T
	out := make([]T, len(raw)/binary.Size(zero))
	binary.Decode(raw, binary.LittleEndian, out) // cannot fail: the length is a multiple
	return out
}

func widen(raw []byte, value func(uint16) float32) []float32 {
	out := make([]float32, len(raw)/2)
	for i := range out {
		out[i] = value(binary.LittleEndian.Uint16(raw[2*i:]))
	}
	return out
}

// brain is bfloat16: the upper half of a float32.
func brain(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// half is IEEE 754 binary16.
func half(b uint16) float32 {
	sign, exponent, fraction := uint32(b>>15)<<31, uint32(b>>10)&31, uint32(b)&0x3ff
	switch exponent {
	case 0: // zero or subnormal: fraction · 2⁻²⁴
		v := float32(fraction) / (1 << 24)
		return math.Float32frombits(math.Float32bits(v) | sign)
	case 31:
		return math.Float32frombits(sign | 0x7f800000 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
}

// Read reads a file of the given size.
func Read(r io.ReaderAt, size int64, limits Limits) (*File, error) {
	f, err := read(r, size, limits.orDefault())
	if err != nil {
		return nil, fmt.Errorf("safetensors: reading a file: %w", err)
	}
	return f, nil
}

func read(r io.ReaderAt, size int64, limits Limits) (*File, error) {
	var prefix [8]byte
	if _, err := r.ReadAt(prefix[:], 0); err != nil {
		return nil, fmt.Errorf("%w: the length of the header: %w", ErrFormat, err)
	}
	length := binary.LittleEndian.Uint64(prefix[:])
	switch {
	case length > uint64(limits.Header):
		return nil, fmt.Errorf("header of %d bytes: %w of %d", length, ErrLimit, limits.Header)
	case size < 8 || length > uint64(size-8):
		return nil, fmt.Errorf("%w: a header of %d bytes in a file of %d", ErrFormat, length, size)
	}
	start := 8 + int64(length)
	if size-start > limits.Data {
		return nil, fmt.Errorf("%d bytes of tensors: %w of %d", size-start, ErrLimit, limits.Data)
	}
	header := make([]byte, length)
	if _, err := r.ReadAt(header, 8); err != nil && !(errors.Is(err, io.EOF) && size == start) {
		return nil, fmt.Errorf("%w: the header: %w", ErrFormat, err)
	}
	entries, metadata, err := parseHeader(header)
	if err != nil {
		return nil, err
	}
	if err := checkLayout(entries, size-start); err != nil {
		return nil, err
	}
	f := &File{Tensors: make(map[string]engine.Tensor, len(entries)), Metadata: metadata}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		e := entries[name]
		raw := make([]byte, e.Offsets[1]-e.Offsets[0])
		if n, err := r.ReadAt(raw, start+e.Offsets[0]); n < len(raw) {
			return nil, fmt.Errorf("%w: tensor %q: %w", ErrFormat, name, err)
		}
		f.Tensors[name] = engine.Tensor{Shape: e.Shape, Data: types[e.Type].decode(raw)}
	}
	return f, nil
}

// parseHeader reads the JSON object by hand at its outermost level, because
// encoding/json lets the last of two equal names win.
func parseHeader(header []byte) (map[string]entry, map[string]string, error) {
	if len(header) == 0 || header[0] != '{' {
		return nil, nil, fmt.Errorf("%w: the header does not begin with {", ErrFormat)
	}
	d := json.NewDecoder(bytes.NewReader(header))
	d.DisallowUnknownFields()
	d.Token() // the brace
	entries := map[string]entry{}
	var metadata map[string]string
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, nil, fmt.Errorf("%w: the header: %w", ErrFormat, err)
		}
		name := token.(string) // the decoder lets nothing else be a key
		_, twice := entries[name]
		switch {
		case twice || name == metadataKey && metadata != nil:
			return nil, nil, fmt.Errorf("%w: %q comes twice", ErrFormat, name)
		case name == metadataKey:
			metadata = map[string]string{}
			if err := d.Decode(&metadata); err != nil {
				return nil, nil, fmt.Errorf("%w: %s: %w", ErrFormat, metadataKey, err)
			}
			continue
		}
		var e entry
		if err := d.Decode(&e); err != nil {
			return nil, nil, fmt.Errorf("%w: tensor %q: %w", ErrFormat, name, err)
		}
		if len(e.Offsets) != 2 {
			return nil, nil, fmt.Errorf("%w: tensor %q has %d offsets, want 2", ErrFormat, name, len(e.Offsets))
		}
		entries[name] = e
	}
	if _, err := d.Token(); err != nil {
		return nil, nil, fmt.Errorf("%w: the header: %w", ErrFormat, err)
	}
	if rest := bytes.TrimRight(header[d.InputOffset():], " \n\r\t"); len(rest) > 0 {
		return nil, nil, fmt.Errorf("%w: %d bytes behind the header's object", ErrFormat, len(rest))
	}
	return entries, metadata, nil
}

// checkLayout makes sure that each tensor has the bytes that its shape needs
// and that together they cover the data exactly once.
func checkLayout(entries map[string]entry, size int64) error {
	order := slices.SortedFunc(maps.Keys(entries), func(a, b string) int {
		return cmp.Or(cmp.Compare(entries[a].Offsets[0], entries[b].Offsets[0]), cmp.Compare(entries[a].Offsets[1], entries[b].Offsets[1]), cmp.Compare(a, b))
	})
	end := int64(0)
	for _, name := range order {
		e := entries[name]
		typ, ok := types[e.Type]
		if !ok {
			return fmt.Errorf("tensor %q: %w %.20q", name, ErrType, e.Type)
		}
		if len(e.Shape) > maxRank {
			return fmt.Errorf("tensor %q: %d dimensions: %w of %d", name, len(e.Shape), ErrLimit, maxRank)
		}
		bytes := typ.size
		for _, d := range e.Shape {
			if d < 0 || d > 0 && bytes > math.MaxInt64/d {
				return fmt.Errorf("%w: tensor %q has shape %v", ErrFormat, name, e.Shape)
			}
			bytes *= d
		}
		if e.Offsets[0] != end || e.Offsets[1] < end || e.Offsets[1]-e.Offsets[0] != bytes || e.Offsets[1] > size {
			return fmt.Errorf("%w: tensor %q of %d bytes lies at %v, want it from %d within %d", ErrFormat, name, bytes, e.Offsets, end, size)
		}
		end = e.Offsets[1]
	}
	if end != size {
		return fmt.Errorf("%w: %d bytes belong to no tensor", ErrFormat, size-end)
	}
	return nil
}

// Write writes tensors and metadata (which may be nil). Equal tensors give
// equal bytes: wide elements come first, so that all are aligned, then names in
// order.
func Write(w io.Writer, tensors map[string]engine.Tensor, metadata map[string]string) error {
	size := func(name string) int64 { return types[names[tensors[name].Type()]].size }
	order := slices.SortedFunc(maps.Keys(tensors), func(a, b string) int {
		return cmp.Or(cmp.Compare(size(b), size(a)), cmp.Compare(a, b))
	})
	header := map[string]any{}
	if metadata != nil {
		header[metadataKey] = metadata
	}
	end := int64(0)
	for _, name := range order {
		t := tensors[name]
		if name == metadataKey {
			return fmt.Errorf("safetensors: writing tensor %q: the format keeps that name for its metadata; rename the tensor", name)
		}
		if err := t.Check(); err != nil {
			return fmt.Errorf("safetensors: writing tensor %q: %w", name, err)
		}
		bytes := int64(t.Len()) * size(name)
		header[name] = entry{names[t.Type()], append([]int64{}, t.Shape...), []int64{end, end + bytes}}
		end += bytes
	}
	text, err := json.Marshal(header)
	if err != nil {
		return fmt.Errorf("safetensors: writing the header: %w", err)
	}
	for len(text)%8 != 0 { // so that the data begins aligned
		text = append(text, ' ')
	}
	if err := binary.Write(w, binary.LittleEndian, uint64(len(text))); err != nil {
		return fmt.Errorf("safetensors: writing the header: %w", err)
	}
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("safetensors: writing the header: %w", err)
	}
	for _, name := range order {
		if err := binary.Write(w, binary.LittleEndian, tensors[name].Data); err != nil {
			return fmt.Errorf("safetensors: writing tensor %q: %w", name, err)
		}
	}
	return nil
}
