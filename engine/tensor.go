package engine

import (
	"fmt"
	"math"
	"strings"

	"github.com/vigie/vigie/onnx"
)

// Element is a type that tensors of this package hold.
type Element interface {
	float32 | float64 | int64 | int32 | uint8 | int8 | bool
}

// Tensor is a dense array in row-major order. A nil or empty Shape is a scalar
// with one element.
type Tensor struct {
	Shape []int64
	Data  any // []float32, []float64, []int64, []int32, []uint8, []int8 or []bool
}

// Float32 returns the tensor of the given shape over data, without copying.
// So do the other constructors. None checks that shape and data agree: Check
// does, and every use of the tensor calls it.
func Float32(shape []int64, data []float32) Tensor { return Tensor{shape, data} }

// Float64 is Float32 for double precision.
func Float64(shape []int64, data []float64) Tensor { return Tensor{shape, data} }

// Int64 is Float32 for 64-bit integers.
func Int64(shape []int64, data []int64) Tensor { return Tensor{shape, data} }

// Int32 is Float32 for 32-bit integers.
func Int32(shape []int64, data []int32) Tensor { return Tensor{shape, data} }

// Uint8 is Float32 for bytes.
func Uint8(shape []int64, data []uint8) Tensor { return Tensor{shape, data} }

// Int8 is Float32 for signed bytes.
func Int8(shape []int64, data []int8) Tensor { return Tensor{shape, data} }

// Bool is Float32 for truth values.
func Bool(shape []int64, data []bool) Tensor { return Tensor{shape, data} }

// Zeros returns a tensor of zeros (false for Bool), for instance to bind as an
// output. The error says which types and shapes exist.
func Zeros(typ onnx.DataType, shape ...int64) (Tensor, error) {
	n, err := count(shape)
	if err != nil {
		return Tensor{}, fmt.Errorf("engine: making a tensor of shape %v: %w", shape, err)
	}
	row, ok := elements[typ]
	if !ok {
		return Tensor{}, fmt.Errorf("engine: making a tensor of type %v: this type is not supported", typ)
	}
	return Tensor{append([]int64{}, shape...), row.make(n)}, nil
}

// Values returns the elements of t, in place, if they are of type T.
func Values[T Element](t Tensor) ([]T, error) {
	data, ok := t.Data.([]T)
	if !ok {
		return nil, fmt.Errorf("engine: reading a tensor as %T: it holds %T", data, t.Data)
	}
	return data, nil
}

// FromONNX returns a copy of a constant as a tensor to run with.
func FromONNX(t *onnx.Tensor) (Tensor, error) {
	row, ok := elements[t.Type]
	if !ok {
		return Tensor{}, fmt.Errorf("engine: reading tensor %q: type %v is not supported", t.Name, t.Type)
	}
	data, err := row.decode(t)
	if err != nil {
		return Tensor{}, fmt.Errorf("engine: reading tensor %q: %w", t.Name, err)
	}
	return Tensor{append([]int64{}, t.Dims...), data}, nil
}

// Type returns the element type, onnx.Undefined if Data is none of those a
// tensor may hold.
func (t Tensor) Type() onnx.DataType {
	typ, _ := t.measure()
	return typ
}

// Len returns the number of elements in Data.
func (t Tensor) Len() int {
	_, n := t.measure()
	return n
}

// Check reports whether Data is of a supported type and as long as Shape says.
func (t Tensor) Check() error {
	typ, n := t.measure()
	if typ == onnx.Undefined {
		return fmt.Errorf("data of type %T is not supported: want a slice of float32, float64, int64, int32, uint8, int8 or bool", t.Data)
	}
	want, err := count(t.Shape)
	if err != nil {
		return err
	}
	if want != n {
		return fmt.Errorf("shape %v has %d elements, the data %d", t.Shape, want, n)
	}
	return nil
}

// String describes the tensor without its data, for error messages.
func (t Tensor) String() string { return describe(t.Type(), t.Shape) }

func describe(typ onnx.DataType, shape []int64) string {
	dims := make([]string, len(shape))
	for i, d := range shape {
		dims[i] = fmt.Sprint(d)
	}
	return fmt.Sprintf("%v[%s]", typ, strings.Join(dims, ","))
}

// elementRow is what the package needs to know of one element type.
type elementRow struct {
	make   func(n int) any
	decode func(*onnx.Tensor) (any, error)
	proto  string                                // datatype in the Open Inference Protocol
	parse  func(text []byte, n int) (any, error) // from JSON
	copy   func(to, from any)
}

// elements is the table of supported element types.
var elements = map[onnx.DataType]elementRow{
	onnx.Float:  row[float32]("FP32"),
	onnx.Double: row[float64]("FP64"),
	onnx.Int64:  row[int64]("INT64"),
	onnx.Int32:  row[int32]("INT32"),
	onnx.Uint8:  row[uint8]("UINT8"),
	onnx.Int8:   row[int8]("INT8"),
	onnx.Bool:   row[bool]("BOOL"),
}

func row[T Element](proto string) elementRow {
	return elementRow{
		make:   func(n int) any { return make([]T, n) },
		decode: func(t *onnx.Tensor) (any, error) { return onnx.Values[T](t) },
		proto:  proto,
		parse:  parseElements[T],
		copy:   func(to, from any) { copy(to.([]T), from.([]T)) },
	}
}

func (t Tensor) measure() (onnx.DataType, int) {
	switch data := t.Data.(type) {
	case []float32:
		return onnx.Float, len(data)
	case []float64:
		return onnx.Double, len(data)
	case []int64:
		return onnx.Int64, len(data)
	case []int32:
		return onnx.Int32, len(data)
	case []uint8:
		return onnx.Uint8, len(data)
	case []int8:
		return onnx.Int8, len(data)
	case []bool:
		return onnx.Bool, len(data)
	}
	return onnx.Undefined, 0
}

// count returns the number of elements of a shape, refusing negative sizes and
// products that do not fit an int.
func count(shape []int64) (int, error) {
	n := int64(1)
	for _, d := range shape {
		if d < 0 {
			return 0, fmt.Errorf("shape %v has a negative dimension", shape)
		}
		if d > 0 && n > math.MaxInt/d {
			return 0, fmt.Errorf("shape %v has too many elements", shape)
		}
		n *= d
	}
	return int(n), nil
}
