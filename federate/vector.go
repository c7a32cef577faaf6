package federate

import (
	"encoding/binary"
	"fmt"
	"math"
)

const vectorName = "vector"

// encodeVector writes the numbers in little-endian order.
func encodeVector(v []uint32) []byte {
	b := make([]byte, 4*len(v))
	for i, x := range v {
		binary.LittleEndian.PutUint32(b[4*i:], x)
	}
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
	for i, x := range v {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(x))
	}
	return b
}

func decodeFloats(b []byte, length int) ([]float32, error) {
	v, err := decodeVector(b, length)
	if err != nil {
		return nil, err
	}
	out := make([]float32, length)
	for i, x := range v {
		out[i] = math.Float32frombits(x)
	}
	return out, nil
}
