package onnx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrNotFinite says that a constant holds NaN; the message names it.
var ErrNotFinite = errors.New("not a number among the weights")

// CheckWeights reports the first constant of floats that holds a NaN, which
// would spread through whatever is computed with it. Infinities are legal:
// attention masks are made of them. Check does not look at the elements.
func (m *Model) CheckWeights() error {
	return m.Graph.checkWeights()
}

func (g *Graph) checkWeights() error {
	if g == nil {
		return nil
	}
	for _, t := range g.Initializers {
		if err := t.checkNaN(); err != nil {
			return err
		}
	}
	for _, n := range g.Nodes {
		for _, a := range n.Attributes {
			for _, t := range append([]*Tensor{a.Tensor}, a.Tensors...) {
				if err := t.checkNaN(); err != nil {
					return err
				}
			}
			for _, inner := range append([]*Graph{a.Graph}, a.Graphs...) {
				if err := inner.checkWeights(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (t *Tensor) checkNaN() error {
	if t == nil {
		return nil
	}
	at := -1
	switch t.Type {
	case Float:
		for i := 0; i+4 <= len(t.Raw) && at < 0; i += 4 {
			// All exponent bits set and a fraction: IEEE 754, section 6.2.1.
			if binary.LittleEndian.Uint32(t.Raw[i:])&math.MaxInt32 > 0x7f800000 {
				at = i / 4
			}
		}
	case Double:
		for i := 0; i+8 <= len(t.Raw) && at < 0; i += 8 {
			if binary.LittleEndian.Uint64(t.Raw[i:])&math.MaxInt64 > 0x7ff0000000000000 {
				at = i / 8
			}
		}
	case Float16, Bfloat16:
		infinite := uint16(0x7c00)
		if t.Type == Bfloat16 {
			infinite = 0x7f80
		}
		for i := 0; i+2 <= len(t.Raw) && at < 0; i += 2 {
			if binary.LittleEndian.Uint16(t.Raw[i:])&math.MaxInt16 > infinite {
				at = i / 2
			}
		}
	}
	if at >= 0 {
		return fmt.Errorf("onnx: tensor %q: element %d: %w: the training that made the model diverged, or the file is damaged", t.Name, at, ErrNotFinite)
	}
	return nil
}
