package federate

import (
	"encoding/binary"
	"fmt"
	"math"
)

const vectorName = "vector"

// putWords writes as many of the numbers as there is room for, in little-endian
// order.
func putWords[T uint32 | float32](b []byte, v []T) {
	v = v[:len(b)/4]
	switch v := any(v).(type) {
	case []uint32:
		for i, x := range v {
			binary.LittleEndian.PutUint32(b[4*i:], x)
		}
	case []float32:
		for i, x := range v {
			binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(x))
		}
	}
}

// encodeVector writes the numbers in little-endian order.
func encodeVector(v []uint32) []byte {
	b := make([]byte, 4*len(v))
	putWords(b, v)
	return b
}

func decodeVector(b []byte, length int) ([]uint32, error) {
	if len(b) != 4*length {
		return nil, fmt.Errorf("federate: reading a vector: %d bytes, want %d", len(b), 4*length)
	}
	v := make([]uint32, length)
	for i := range v {
		v[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return v, nil
}

func encodeFloats(v []float32) []byte {
	b := make([]byte, 4*len(v))
	putWords(b, v)
	return b
}

func decodeFloats(b []byte, length int) ([]float32, error) {
	if len(b) != 4*length {
		return nil, fmt.Errorf("federate: reading a vector: %d bytes, want %d", len(b), 4*length)
	}
	out := make([]float32, length)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out, nil
}
