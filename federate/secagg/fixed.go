package secagg

import (
	"errors"
	"fmt"
	"math"
	"unsafe"
)

// ErrRange is returned for a number that cannot be added without overflow.
var ErrRange = errors.New("beyond the bound that the sum was planned for")

// Fixed turns numbers within ±Bound into whole numbers modulo 2³² and back, so
// that a sum over Sites sites is exact and cannot overflow: with the scale s,
// each site adds at most Bound·s + ½ in size, and Sites·(Bound·s + ½) < 2³¹. With
// fewer Bits the modulus is 2^Bits, rounding may be at random, and the bound is
// Sites·(Bound·s + 1) < 2^(Bits−1).
type Fixed struct {
	Bound float64 // largest size of a number; finite, above 0
	Sites int     // at most so many vectors are added; at least 1
	Bits  int     // 0 is 32
}

// most is the largest sum and what rounding may add to a number, in steps.
func (f Fixed) most() (sum, rounding float64) {
	if f.Bits == 0 {
		return math.MaxInt32, 0.5
	}
	return math.Ldexp(1, f.Bits-1) - 1, 1
}

// Error is by how much, at most, a number of a site is changed when it is written.
func (f Fixed) Error() float64 {
	_, rounding := f.most()
	return rounding / f.Scale()
}

// Scale is the largest power of two that cannot overflow: the step between
// neighbouring numbers is its inverse. It returns 0 if there is none.
func (f Fixed) Scale() float64 {
	most, rounding := f.most()
	room := (most/float64(f.Sites) - rounding) / f.Bound
	if !(f.Bound > 0) || math.IsInf(f.Bound, 0) || f.Sites < 1 || !(room > 0) {
		return 0
	}
	_, exponent := math.Frexp(room) // room in [2^(e-1), 2^e)
	return math.Ldexp(1, exponent-1)
}

// Check returns an error if the numbers of a vector would have fewer than
// eight bits of their own.
func (f Fixed) Check() error {
	if s := f.Scale(); !(s*f.Bound >= 128) {
		return fmt.Errorf("secagg: planning a sum of %d sites with numbers up to %g: no scale leaves eight bits for a number", f.Sites, f.Bound)
	}
	return nil
}

// Encode writes round(x·Scale) modulo 2³², half to even, of each number. A
// number that is not finite or beyond the bound is refused with ErrRange: a
// site clips first.
func (f Fixed) Encode(dst []uint32, x []float32) error {
	if err := f.Check(); err != nil {
		return err
	}
	if len(dst) != len(x) {
		return fmt.Errorf("secagg: encoding %d numbers into %d places", len(x), len(dst))
	}
	scale := f.Scale()
	for i, v := range x {
		if !(math.Abs(float64(v)) <= f.Bound) { // false for NaN, too
			return fmt.Errorf("secagg: encoding number %d of a vector, %g: %w: ±%g", i, v, ErrRange, f.Bound)
		}
		dst[i] = uint32(int32(math.RoundToEven(float64(v) * scale)))
	}
	return nil
}

// InPlace is the memory of numbers, for Encode to write into: each is read before it
// is written.
func InPlace(x []float32) []uint32 {
	if len(x) == 0 {
		return nil
	}
	return unsafe.Slice((*uint32)(unsafe.Pointer(&x[0])), len(x)) // same size, same alignment
}

// Decode writes the numbers that a sum stands for.
func (f Fixed) Decode(dst []float64, sum []uint32) {
	inverse := 1 / f.Scale()
	for i, v := range sum {
		dst[i] = float64(int32(v)) * inverse
	}
}

// DecodeInPlace turns a sum into the numbers that it stands for, each divided by
// the divisor: in the memory of the sum, which is lost.
func (f Fixed) DecodeInPlace(sum []uint32, divisor float64) []float32 {
	if len(sum) == 0 {
		return nil
	}
	inverse := 1 / f.Scale()
	out := unsafe.Slice((*float32)(unsafe.Pointer(&sum[0])), len(sum)) // same size, same alignment
	for i, v := range sum {
		out[i] = float32(float64(int32(v)) * inverse / divisor)
	}
	return out
}
