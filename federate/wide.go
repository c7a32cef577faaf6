package federate

import (
	"fmt"
	"math"

	"github.com/vigie/vigie/federate/secagg"
)

// Sums of statistics are written finer than those of updates: a number within
// ±wideBound becomes a whole number of 60 bits, in steps of 2⁻²⁹, which is
// written as three limbs of 20 bits. Each limb is one number of the masked
// vector, so that the limbs of at most 2¹² sites add up without overflow. Counts
// are exact; a sum of others is off by at most 2⁻³⁰ for each site.
const (
	wideLimbs = 3
	wideBits  = 20
	wideBound = 1 << 30
	wideSites = 1 << (32 - wideBits)
	wideScale = 1 << (wideLimbs*wideBits - 1 - 30)
)

// encodeWide writes numbers as limbs, the lowest first, each number's together. A
// number that is not finite or beyond the bound is refused with secagg.ErrRange.
func encodeWide(x []float64) ([]uint32, error) {
	out := make([]uint32, 0, wideLimbs*len(x))
	for i, v := range x {
		if !(math.Abs(v) < wideBound) { // false for NaN, too
			return nil, fmt.Errorf("federate: encoding number %d of an answer, %g: %w: ±%g", i, v, secagg.ErrRange, float64(wideBound))
		}
		whole := int64(math.RoundToEven(v * wideScale))
		const low = 1<<wideBits - 1
		out = append(out, uint32(whole&low), uint32(whole>>wideBits&low), uint32(whole>>(2*wideBits))) // the last keeps the sign
	}
	return out, nil
}

// decodeWide writes the numbers that a sum of limbs stands for.
func decodeWide(sum []uint32) []float64 {
	out := make([]float64, len(sum)/wideLimbs)
	for i := range out {
		limbs := sum[wideLimbs*i:]
		// from the top, whose cancellation with the middle is exact
		high := math.Ldexp(float64(int32(limbs[2])), 2*wideBits) + math.Ldexp(float64(limbs[1]), wideBits)
		out[i] = (high + float64(limbs[0])) / wideScale
	}
	return out
}
