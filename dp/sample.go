package dp

import (
	"fmt"
	"io"
	"math"
)

// Sampler draws batches by Poisson sampling: every record is in or out on its
// own. That, and that nobody knows who was in, is what the accountants'
// amplification by sampling rests on; batches of a shuffled order would need
// another analysis and usually cost more.
type Sampler struct {
	bits io.Reader // nil: crypto/rand
}

// NewSampler returns the sampler for production: crypto/rand.
func NewSampler() *Sampler { return &Sampler{} }

// SamplerFrom draws from the given random bits. It exists for tests: batches
// that others can predict are not amplified.
func SamplerFrom(bits io.Reader) *Sampler { return &Sampler{bits} }

// Draw returns the positions, rising, of the records of 0..records-1 that are in
// the batch, each with probability rate (rounded down to a multiple of 2^-53,
// never up). It may be none.
func (s *Sampler) Draw(records int, rate float64) ([]int, error) {
	if records < 0 || !(rate > 0 && rate <= 1) {
		return nil, fmt.Errorf("dp: sampling %d records at rate %v: %w: the rate must lie in (0, 1]", records, rate, ErrRun)
	}
	limit := uint64(math.Floor(rate * 0x1p53))
	bits := newStream(s.bits)
	drawn := make([]int, 0, int(float64(records)*rate)+64)
	for i := range records {
		if bits.next()>>11 < limit {
			drawn = append(drawn, i)
		}
	}
	if bits.err != nil {
		return nil, fmt.Errorf("dp: reading random bits: %w", bits.err)
	}
	return drawn, nil
}
