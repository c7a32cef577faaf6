package engine

import (
	"fmt"
	"runtime"

	ort "github.com/yalue/onnxruntime_go"
)

// holder owns the values of ONNX Runtime that stand for tensors of ours, and
// keeps the tensors' memory where it is while they do: the C side keeps a
// pointer to it beyond the call, which cgo allows for pinned memory only.
type holder struct {
	values  []ort.Value
	pins    runtime.Pinner
	scalars []scalar
}

// scalar carries the one element of a scalar over, since the wrapper keeps it
// in memory of its own.
type scalar interface {
	load()  // from the tensor to ONNX Runtime
	store() // back
}

type scalarOf[T Element] struct {
	value *ort.Scalar[T]
	data  []T
}

func (s scalarOf[T]) load()  { s.value.Set(s.data[0]) }
func (s scalarOf[T]) store() { s.data[0] = s.value.GetData() }

// value returns a value over t's memory (for a scalar: a copy), owned by h.
func (h *holder) value(t Tensor) (ort.Value, error) {
	switch data := t.Data.(type) {
	case []float32:
		return hold(h, t.Shape, data)
	case []float64:
		return hold(h, t.Shape, data)
	case []int64:
		return hold(h, t.Shape, data)
	case []int32:
		return hold(h, t.Shape, data)
	case []uint8:
		return hold(h, t.Shape, data)
	case []int8:
		return hold(h, t.Shape, data)
	case []bool:
		return hold(h, t.Shape, data)
	}
	return nil, fmt.Errorf("data of type %T is not supported", t.Data)
}

func hold[T Element](h *holder, shape []int64, data []T) (ort.Value, error) {
	if len(shape) == 0 {
		value, err := ort.NewScalar(data[0])
		if err != nil {
			return nil, err
		}
		h.values = append(h.values, value)
		h.scalars = append(h.scalars, scalarOf[T]{value, data})
		return value, nil
	}
	if len(data) > 0 {
		h.pins.Pin(&data[0])
	}
	value, err := ort.NewTensor(ort.Shape(shape), data)
	if err != nil {
		return nil, err
	}
	h.values = append(h.values, value)
	return value, nil
}

// release frees every value and unpins their memory.
func (h *holder) release() {
	for _, v := range h.values {
		v.Destroy()
	}
	h.pins.Unpin()
	h.values, h.scalars = nil, nil
}

// taken returns the tensor that ONNX Runtime allocated as v. Its data are in
// Go's memory and outlive v.
func taken(v ort.Value) (Tensor, error) {
	switch v := v.(type) {
	case *ort.Tensor[float32]:
		return Tensor{v.GetShape(), v.GetData()}, nil
	case *ort.Tensor[float64]:
		return Tensor{v.GetShape(), v.GetData()}, nil
	case *ort.Tensor[int64]:
		return Tensor{v.GetShape(), v.GetData()}, nil
	case *ort.Tensor[int32]:
		return Tensor{v.GetShape(), v.GetData()}, nil
	case *ort.Tensor[uint8]:
		return Tensor{v.GetShape(), v.GetData()}, nil
	case *ort.Tensor[int8]:
		return Tensor{v.GetShape(), v.GetData()}, nil
	case *ort.Tensor[bool]:
		return Tensor{v.GetShape(), v.GetData()}, nil
	}
	return Tensor{}, fmt.Errorf("a value of type %T is not supported", v)
}
