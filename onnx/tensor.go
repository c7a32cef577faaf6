package onnx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// typeRow is what the package knows of an element type.
type typeRow struct {
	name string
	size int // bytes in Raw; 0 for strings
}

var types = map[DataType]typeRow{
	Float: {"float", 4}, Uint8: {"uint8", 1}, Int8: {"int8", 1}, Uint16: {"uint16", 2}, Int16: {"int16", 2},
	Int32: {"int32", 4}, Int64: {"int64", 8}, String: {"string", 0}, Bool: {"bool", 1}, Float16: {"float16", 2},
	Double: {"double", 8}, Uint32: {"uint32", 4}, Uint64: {"uint64", 8}, Bfloat16: {"bfloat16", 2},
}

// String returns ONNX's name of the type, such as "float" or "int64".
func (t DataType) String() string {
	if row, ok := types[t]; ok {
		return row.name
	}
	if t == Undefined {
		return "undefined"
	}
	return fmt.Sprintf("type %d", int32(t))
}

// Size returns the bytes of one element in Tensor.Raw: 0 for String and for
// types that this package does not know.
func (t DataType) Size() int { return types[t].size }

// Scalar is a type of Go whose values a tensor can hold.
type Scalar interface {
	float32 | float64 | int64 | int32 | int16 | int8 | uint64 | uint32 | uint16 | uint8 | bool
}

// TypeOf returns the element type of tensors that hold values of T.
func TypeOf[T Scalar]() DataType {
	var v T
	switch any(v).(type) {
	case float32:
		return Float
	case float64:
		return Double
	case int64:
		return Int64
	case int32:
		return Int32
	case int16:
		return Int16
	case int8:
		return Int8
	case uint64:
		return Uint64
	case uint32:
		return Uint32
	case uint16:
		return Uint16
	case uint8:
		return Uint8
	}
	return Bool
}

// NewTensor returns a constant with the given elements in row-major order. It
// does not check that their number is what dims says; Check does.
func NewTensor[T Scalar](name string, dims []int64, values []T) *Tensor {
	raw := make([]byte, 0, len(values)*TypeOf[T]().Size())
	raw, err := binary.Append(raw, binary.LittleEndian, values)
	if err != nil {
		panic(err) // every Scalar has a fixed size
	}
	return &Tensor{Name: name, Type: TypeOf[T](), Dims: slices.Clone(dims), Raw: raw}
}

// Values returns a copy of the elements of t, which must be of type T.
func Values[T Scalar](t *Tensor) ([]T, error) {
	if t.Type != TypeOf[T]() {
		return nil, fmt.Errorf("onnx: reading tensor %q as %v: it is of type %v", t.Name, TypeOf[T](), t.Type)
	}
	n, err := t.Count()
	if err != nil {
		return nil, err
	}
	if len(t.Raw) != n*t.Type.Size() {
		return nil, fmt.Errorf("onnx: reading tensor %q: %d bytes, want %d", t.Name, len(t.Raw), n*t.Type.Size())
	}
	values := make([]T, n)
	if _, err := binary.Decode(t.Raw, binary.LittleEndian, values); err != nil {
		return nil, fmt.Errorf("onnx: reading tensor %q: %w", t.Name, err)
	}
	return values, nil
}

// Count returns the number of elements that Dims says, or an error if a
// dimension is negative or the product is beyond what a file can hold.
func (t *Tensor) Count() (int, error) {
	n := int64(1)
	zero := false
	for _, d := range t.Dims {
		if d < 0 {
			return 0, fmt.Errorf("onnx: tensor %q: dimensions %v: negative", t.Name, t.Dims)
		}
		zero = zero || d == 0
	}
	if zero {
		return 0, nil
	}
	for _, d := range t.Dims {
		if d > MaxBytes/n {
			return 0, fmt.Errorf("onnx: tensor %q: dimensions %v: %w", t.Name, t.Dims, ErrLimit)
		}
		n *= d
	}
	return int(n), nil
}

// Check reports whether the tensor is of a known type and holds as many
// elements as its dimensions say.
func (t *Tensor) Check() error {
	row, ok := types[t.Type]
	if !ok {
		return fmt.Errorf("onnx: tensor %q: element %v: %w", t.Name, t.Type, ErrUnsupported)
	}
	if len(t.Dims) > MaxRank {
		return fmt.Errorf("onnx: tensor %q: %d dimensions: %w", t.Name, len(t.Dims), ErrLimit)
	}
	n, err := t.Count()
	if err != nil {
		return err
	}
	if t.Type == String {
		if len(t.Strings) != n || len(t.Raw) != 0 {
			return fmt.Errorf("onnx: tensor %q: %d strings for dimensions %v: %w", t.Name, len(t.Strings), t.Dims, ErrCorrupt)
		}
		return nil
	}
	if len(t.Raw) != n*row.size || len(t.Strings) != 0 {
		return fmt.Errorf("onnx: tensor %q: %d bytes for %v of dimensions %v: %w", t.Name, len(t.Raw), t.Type, t.Dims, ErrCorrupt)
	}
	return nil
}

// tensor reads a TensorProto and brings its elements, in whichever of the
// seven fields they are, into the one form of Tensor.
func (p *parser) tensor(f field) (*Tensor, error) {
	if err := p.message(f); err != nil {
		return nil, err
	}
	t := &Tensor{}
	var fixed []byte    // float_data, double_data
	var wide []int64    // int32_data, int64_data, uint64_data
	var forms [12]bool  // which data fields are there
	var beside [][]byte // entries of external_data
	elsewhere := int64(0)
	err := fields(f.bytes, func(f field) error {
		switch f.number {
		case 1:
			if err := f.numbers(&t.Dims); err != nil {
				return err
			}
			if len(t.Dims) > MaxRank {
				return fmt.Errorf("%w: more than %d dimensions", ErrLimit, MaxRank)
			}
			return nil
		case 2:
			n := int64(0)
			err := f.number64(&n)
			t.Type = DataType(n)
			return err
		case 3:
			return fmt.Errorf("%w: a tensor in segments", ErrUnsupported)
		case 4:
			forms[4] = true
			return f.fixed(&fixed, 4)
		case 6:
			forms[6] = true
			if err := p.message(f); err != nil {
				return err
			}
			t.Strings = append(t.Strings, f.bytes)
			return nil
		case 5, 7, 11:
			forms[f.number] = true
			return f.numbers(&wide)
		case 8:
			return f.text(&t.Name)
		case 9:
			forms[9] = true
			t.Raw = f.bytes
			return f.want(protowire.BytesType)
		case 10:
			forms[10] = true
			return f.fixed(&fixed, 8)
		case 13:
			return p.entry(f, &beside)
		case 14:
			return f.number64(&elsewhere)
		}
		return nil
	})
	switch {
	case err != nil:
	case elsewhere == 1 && slices.Contains(forms[:], true) || elsewhere == 0 && beside != nil:
		err = fmt.Errorf("%w: elements both in the model and as external data", ErrCorrupt)
	case elsewhere == 1:
		err = p.fetch(t, beside)
	case elsewhere != 0:
		err = fmt.Errorf("%w: elements at the place %d", ErrUnsupported, elsewhere)
	default:
		err = t.normalise(forms, fixed, wide)
	}
	if err == nil {
		err = t.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	return t, nil
}

// dataField is the field of TensorProto that may hold elements of each type
// beside raw_data (onnx.proto, comments of TensorProto).
var dataField = map[DataType]protowire.Number{
	Float: 4, Int32: 5, Int16: 5, Int8: 5, Uint16: 5, Uint8: 5, Bool: 5, Float16: 5, Bfloat16: 5,
	String: 6, Int64: 7, Double: 10, Uint32: 11, Uint64: 11,
}

func (t *Tensor) normalise(forms [12]bool, fixed []byte, wide []int64) error {
	var found []protowire.Number
	for number, present := range forms {
		if present {
			found = append(found, protowire.Number(number))
		}
	}
	if len(found) == 0 {
		return nil
	}
	if len(found) > 1 {
		return fmt.Errorf("%w: elements in two fields", ErrCorrupt)
	}
	if found[0] == 9 {
		return nil
	}
	if want, ok := dataField[t.Type]; !ok || want != found[0] {
		return fmt.Errorf("%w: %v elements in field %d", ErrCorrupt, t.Type, found[0])
	}
	switch found[0] {
	case 4, 10:
		t.Raw = fixed
	case 5, 7, 11:
		size := t.Type.Size()
		t.Raw = make([]byte, 0, len(wide)*size)
		for _, v := range wide {
			switch size {
			case 1:
				t.Raw = append(t.Raw, byte(v))
			case 2:
				t.Raw = binary.LittleEndian.AppendUint16(t.Raw, uint16(v))
			case 4:
				t.Raw = binary.LittleEndian.AppendUint32(t.Raw, uint32(v))
			case 8:
				t.Raw = binary.LittleEndian.AppendUint64(t.Raw, uint64(v))
			}
		}
	}
	return nil
}

// Ints returns the elements of an integer tensor as int64, for shapes and axes.
func (t *Tensor) Ints() ([]int64, error) {
	switch t.Type {
	case Int64:
		return Values[int64](t)
	case Int32:
		return widen[int32](t)
	case Int16:
		return widen[int16](t)
	case Int8:
		return widen[int8](t)
	case Uint32:
		return widen[uint32](t)
	case Uint16:
		return widen[uint16](t)
	case Uint8:
		return widen[uint8](t)
	}
	return nil, fmt.Errorf("onnx: reading tensor %q as integers: it is of type %v", t.Name, t.Type)
}

func widen[T int32 | int16 | int8 | uint32 | uint16 | uint8](t *Tensor) ([]int64, error) {
	values, err := Values[T](t)
	if err != nil {
		return nil, err
	}
	wide := make([]int64, len(values))
	for i, v := range values {
		wide[i] = int64(v)
	}
	return wide, nil
}

// Floats returns the elements of a Float, Double or Float16 tensor as float64.
func (t *Tensor) Floats() ([]float64, error) {
	switch t.Type {
	case Double:
		return Values[float64](t)
	case Float:
		values, err := Values[float32](t)
		wide := make([]float64, len(values))
		for i, v := range values {
			wide[i] = float64(v)
		}
		return wide, err
	case Float16:
		n, err := t.Count()
		if err == nil && len(t.Raw) != 2*n {
			err = errors.New("the dimensions do not fit the data")
		}
		if err != nil {
			return nil, fmt.Errorf("onnx: reading tensor %q: %w", t.Name, err)
		}
		wide := make([]float64, n)
		for i := range wide {
			wide[i] = half(binary.LittleEndian.Uint16(t.Raw[2*i:]))
		}
		return wide, nil
	}
	return nil, fmt.Errorf("onnx: reading tensor %q as floats: it is of type %v", t.Name, t.Type)
}

// half returns the value of an IEEE 754 binary16.
func half(bits uint16) float64 {
	sign := 1.0
	if bits>>15 == 1 {
		sign = -1
	}
	exponent, fraction := int(bits>>10&31), float64(bits&1023)/1024
	switch exponent {
	case 0:
		return sign * math.Ldexp(fraction, -14)
	case 31:
		if fraction != 0 {
			return math.NaN()
		}
		return sign * math.Inf(1)
	}
	return sign * math.Ldexp(1+fraction, exponent-15)
}
