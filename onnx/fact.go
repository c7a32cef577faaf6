package onnx

import (
	"fmt"
	"math"
	"slices"
)

// fact is what is known of a tensor before the graph runs.
type fact struct {
	typ   DataType
	shape []Dim // nil if the rank is unknown
	data  data  // the elements, where they are few and known
}

// data are the elements of a small tensor in row-major order: integers and
// truth values (as 0 and 1) in ints, floats in floats. The zero value knows
// nothing.
type data struct {
	ints   []integer
	floats []float64
}

// integer is an element: a number, or the size of a named dimension, or (the
// zero value) something not known.
type integer struct {
	known bool
	value int64
	param string
}

func exactly(v int64) integer { return integer{known: true, value: v} }

// element returns a dimension as an element.
func (d Dim) element() integer {
	if d.Known() {
		return exactly(d.Value)
	}
	return integer{param: d.Param}
}

// dim returns an element as a dimension.
func (n integer) dim() Dim {
	switch {
	case n.param != "":
		return Dim{Value: -1, Param: n.param}
	case n.known && n.value >= 0:
		return Dim{Value: n.value}
	}
	return anyDim
}

// maxFolded is the most elements that are followed by value: shapes, axes,
// pads and what exporters compute them from are far smaller.
const maxFolded = 1024

var anyDim = Dim{Value: -1}

func (d data) known() bool { return d.ints != nil || d.floats != nil }

func (d data) len() int { return max(len(d.ints), len(d.floats)) }

// pick returns the elements at the given places.
func (d data) pick(places []int) data {
	switch {
	case d.ints != nil:
		return data{ints: picked(d.ints, places)}
	case d.floats != nil:
		return data{floats: picked(d.floats, places)}
	}
	return data{}
}

func picked[T any](list []T, places []int) []T {
	out := make([]T, len(places))
	for i, p := range places {
		out[i] = list[p]
	}
	return out
}

// numbers returns the elements if they are integers and every one is known.
func (f *fact) numbers() ([]int64, bool) {
	if f == nil || f.data.ints == nil {
		return nil, false
	}
	out := make([]int64, len(f.data.ints))
	for i, d := range f.data.ints {
		if !d.known {
			return nil, false
		}
		out[i] = d.value
	}
	return out, true
}

// number returns the first element as an integer if it is known.
func (f *fact) number() (int64, bool) {
	list, ok := f.numbers()
	if !ok || len(list) != 1 {
		return 0, false
	}
	return list[0], true
}

// rank returns the number of dimensions, -1 if it is unknown.
func (f *fact) rank() int {
	if f == nil || f.shape == nil {
		return -1
	}
	return len(f.shape)
}

// static is that of Value.
func (f *fact) static() ([]int64, bool) { return Value{Shape: f.shape}.Static() }

// String is that of Value.
func (f *fact) String() string { return Value{Type: f.typ, Shape: f.shape}.String() }

// agrees reports whether a declaration does not contradict the fact.
func (f *fact) agrees(typ DataType, shape []Dim) bool {
	if f.typ != Undefined && typ != Undefined && f.typ != typ {
		return false
	}
	if f.shape == nil || shape == nil {
		return true
	}
	return slices.EqualFunc(f.shape, shape, func(a, b Dim) bool {
		return !a.Known() || !b.Known() || a.Value == b.Value
	})
}

// complete fills in from a declaration what is not known.
func (f *fact) complete(typ DataType, shape []Dim) {
	if f.typ == Undefined {
		f.typ = typ
	}
	switch {
	case shape == nil:
	case f.shape == nil:
		f.shape = shape
	case len(f.shape) == len(shape):
		f.shape = slices.Clone(f.shape)
		for i, d := range f.shape {
			if d == anyDim || d.Param != "" && shape[i].Known() {
				f.shape[i] = shape[i]
			}
		}
	}
}

// measure refuses a tensor of more elements than MaxElements, so that nobody
// who multiplies the sizes of a shape can overflow.
func (f *fact) measure() error {
	n := int64(1)
	for _, d := range f.shape {
		if d.Known() && d.Value > MaxElements/max(n, 1) {
			return fmt.Errorf("%w: %v has more than %d elements", ErrLimit, f, int64(MaxElements))
		}
		if d.Known() {
			n *= max(d.Value, 1)
		}
	}
	return nil
}

// limit forgets elements that are too many or do not fit the shape.
func (f *fact) limit() {
	n, known := product(f.shape)
	if f.data.known() && (f.shape == nil || !known || n > maxFolded || int(n) != f.data.len()) {
		f.data = data{}
	}
}

// constantFact returns what is known of a constant: everything.
func constantFact(t *Tensor) (*fact, error) {
	n, err := t.Count()
	if err != nil {
		return nil, err
	}
	f := &fact{typ: t.Type, shape: Fixed(t.Dims...)}
	if n > maxFolded || len(t.Raw) != n*t.Type.Size() {
		return f, nil
	}
	switch t.Type {
	case Float, Double, Float16:
		f.data.floats, err = t.Floats()
	case Bool:
		f.data.ints = make([]integer, n)
		for i, b := range t.Raw {
			f.data.ints[i] = exactly(int64(min(b, 1)))
		}
	case Int64, Int32, Int16, Int8, Uint32, Uint16, Uint8:
		var ints []int64
		ints, err = t.Ints()
		f.data.ints = constantInts(ints)
	}
	return f, err
}

func constantInts(ints []int64) []integer {
	out := make([]integer, len(ints))
	for i, v := range ints {
		out[i] = exactly(v)
	}
	return out
}

// product returns the number of elements of a shape, false if it is not known
// or beyond 2⁶³.
func product(shape []Dim) (int64, bool) {
	n := int64(1)
	for _, d := range shape {
		if !d.Known() {
			return 0, false
		}
		if d.Value == 0 {
			return 0, allKnown(shape)
		}
	}
	for _, d := range shape {
		if n > math.MaxInt64/d.Value {
			return 0, false
		}
		n *= d.Value
	}
	return n, true
}

func allKnown(shape []Dim) bool {
	return !slices.ContainsFunc(shape, func(d Dim) bool { return !d.Known() })
}
