package federate

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
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

// putHalves writes as many of the numbers as there is room for in 16 bits each,
// which they have, and fills up with zeros.
func putHalves(b []byte, v []float32) {
	n := min(len(v), len(b)/2)
	for j, x := range v[:n] {
		h, _ := toHalf(x)
		binary.LittleEndian.PutUint16(b[2*j:], h)
	}
	clear(b[2*n:])
}

// toHalf rounds a number to IEEE 754 binary16, half to even. It returns false for
// one that is too large, or none.
func toHalf(x float32) (uint16, bool) {
	bits := math.Float32bits(x)
	sign := uint16(bits >> 16 & 0x8000)
	size := math.Float32frombits(bits &^ (1 << 31))
	if !(size < 65520) { // which would be rounded to infinity
		return 0, false
	}
	if size < 0x1p-14 { // below the smallest normal one a step is 2^-24
		return sign | uint16(math.RoundToEven(float64(size)*0x1p24)), true
	}
	rest := bits&^(1<<31) - 112<<23 // the exponent's other bias
	rest += 0xfff + rest>>13&1      // half to even: it may carry into the exponent
	return sign | uint16(rest>>13), true
}

// halves are all numbers of 16 bits.
var halves = sync.OnceValue(func() *[1 << 16]float32 {
	all := new([1 << 16]float32)
	for h := range all {
		all[h] = fromHalf(uint16(h))
	}
	return all
})

func fromHalf(h uint16) float32 {
	exponent, steps := int(h>>10&0x1f), float64(h&0x3ff)
	if exponent > 0 {
		steps += 1024
	}
	x := float32(math.Ldexp(steps, max(exponent, 1)-25))
	if exponent == 31 { // written by nobody
		x = float32(math.Inf(1))
		if h&0x3ff != 0 {
			x = float32(math.NaN())
		}
	}
	if h&0x8000 != 0 {
		x = -x
	}
	return x
}
