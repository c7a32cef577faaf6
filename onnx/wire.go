package onnx

import (
	"encoding/binary"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// field is one field of a protobuf message: number and type, and its value in
// bytes (for a length-delimited one) or bits (for a number).
type field struct {
	number protowire.Number
	typ    protowire.Type
	bytes  []byte
	bits   uint64
}

// fields calls f for each field of a message, in the order of the bytes.
func fields(message []byte, f func(field) error) error {
	for len(message) > 0 {
		number, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrCorrupt, protowire.ParseError(n))
		}
		message = message[n:]
		one := field{number: number, typ: typ}
		switch typ {
		case protowire.VarintType:
			one.bits, n = protowire.ConsumeVarint(message)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(message)
			one.bits = uint64(v)
		case protowire.Fixed64Type:
			one.bits, n = protowire.ConsumeFixed64(message)
		case protowire.BytesType:
			one.bytes, n = protowire.ConsumeBytes(message)
		default: // groups: not used by ONNX, skipped
			n = protowire.ConsumeFieldValue(number, typ, message)
		}
		if n < 0 {
			return fmt.Errorf("%w: field %d: %w", ErrCorrupt, number, protowire.ParseError(n))
		}
		message = message[n:]
		if err := f(one); err != nil {
			return err
		}
	}
	return nil
}

// want reports an error unless the field has the given wire type.
func (f field) want(typ protowire.Type) error {
	if f.typ != typ {
		return fmt.Errorf("%w: field %d has wire type %d, want %d", ErrCorrupt, f.number, f.typ, typ)
	}
	return nil
}

// text stores a string or bytes field.
func (f field) text(s *string) error {
	*s = string(f.bytes)
	return f.want(protowire.BytesType)
}

// number64 stores a varint field.
func (f field) number64(n *int64) error {
	*n = int64(f.bits)
	return f.want(protowire.VarintType)
}

// numbers appends a repeated varint field, packed or not.
func (f field) numbers(list *[]int64) error {
	if f.typ != protowire.BytesType {
		*list = append(*list, int64(f.bits))
		return f.want(protowire.VarintType)
	}
	for rest := f.bytes; len(rest) > 0; {
		v, n := protowire.ConsumeVarint(rest)
		if n < 0 {
			return fmt.Errorf("%w: field %d: %w", ErrCorrupt, f.number, protowire.ParseError(n))
		}
		*list = append(*list, int64(v))
		rest = rest[n:]
	}
	return nil
}

// floats appends a repeated float field, packed or not.
func (f field) floats(list *[]float32) error {
	if f.typ != protowire.BytesType {
		*list = append(*list, math.Float32frombits(uint32(f.bits)))
		return f.want(protowire.Fixed32Type)
	}
	if len(f.bytes)%4 != 0 {
		return fmt.Errorf("%w: field %d: %d bytes are not floats", ErrCorrupt, f.number, len(f.bytes))
	}
	for rest := f.bytes; len(rest) > 0; rest = rest[4:] {
		*list = append(*list, math.Float32frombits(binary.LittleEndian.Uint32(rest)))
	}
	return nil
}

// fixed appends the little-endian bytes of a repeated float or double field.
func (f field) fixed(raw *[]byte, size int) error {
	want := protowire.Fixed32Type
	if size == 8 {
		want = protowire.Fixed64Type
	}
	switch {
	case f.typ == protowire.BytesType && len(f.bytes)%size != 0:
		return fmt.Errorf("%w: field %d: %d bytes are not numbers of %d", ErrCorrupt, f.number, len(f.bytes), size)
	case f.typ == protowire.BytesType:
		*raw = append(*raw, f.bytes...)
		return nil
	case f.typ != want:
		return f.want(want)
	case size == 8:
		*raw = binary.LittleEndian.AppendUint64(*raw, f.bits)
	default:
		*raw = binary.LittleEndian.AppendUint32(*raw, uint32(f.bits))
	}
	return nil
}

// The writing half. Fields with the default value are left out, as protobuf
// encoders do, so that the encoding of a model is unique.

func appendText(b []byte, number protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return appendBytes(b, number, s)
}

func appendBytes[T string | []byte](b []byte, number protowire.Number, v T) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendInt(b []byte, number protowire.Number, v int64) []byte {
	b = protowire.AppendTag(b, number, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(v))
}

func appendInts(b []byte, number protowire.Number, list []int64) []byte {
	if len(list) == 0 {
		return b
	}
	size := 0
	for _, v := range list {
		size += protowire.SizeVarint(uint64(v))
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	for _, v := range list {
		b = protowire.AppendVarint(b, uint64(v))
	}
	return b
}
