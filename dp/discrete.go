package dp

import (
	"fmt"
	"io"
	"math"
	"math/big"
	"runtime"
	"sort"
	"sync"
)

// Discrete draws from the discrete Gaussian N_Z(0, V) on the integers,
//
//	P(x) ∝ exp(-x²/(2V)),
//
// exactly (Canonne, Kamath and Steinke 2020 on why it should be this one, and
// exactly). It is the noise of sums that are made in integers, such as those of
// secure aggregation.
//
// A draw is made of whole numbers only. Blocks of w = 2^k neighbouring sizes are
// the proposal: block b is drawn with probability ∝ exp(-(bw)²/(2V)), a size
// m = bw + r in it uniformly, and m is taken with probability
// exp(-(m²-(bw)²)/(2V)), else all is drawn anew. A sign is drawn, too, and -0
// thrown away. Both choices compare a uniform number, bit after bit, with a real
// number: floating point is a filter that decides where it surely can, with an
// error bound to spare; where it cannot (once in 2^30 draws), more bits are drawn
// and the real number is computed to as many digits as it takes. So no result
// depends on how a float is rounded, and there is no floating-point leak
// (Mironov 2012).
//
// Random bits are those of [Gaussian]: AES-256 in counter mode under a fresh seed
// of crypto/rand for every call. How long a draw takes depends on its value;
// whoever can time single draws is outside this model.
type Discrete struct {
	variance uint64
	bits     io.Reader // nil: crypto/rand, expanded

	width uint     // k of w = 2^k
	upper []uint64 // ⌊2^64·P(block ≤ b)⌋, within one
	first [256]int // the first block whose upper is not below a word with these leading bits
	half  float64  // 1/(2V)
}

// Limits of a discrete Gaussian's variance: below, a sum of several would not be
// one; above, squares would not fit their words.
const (
	MinVariance = 16
	MaxVariance = 1 << 52
)

// NewDiscrete returns the source of N_Z(0, variance) for production; the standard
// deviation is √variance within 1e-60 of itself, as for every variance of 16 or
// more.
func NewDiscrete(variance uint64) (*Discrete, error) {
	if variance < MinVariance || variance > MaxVariance {
		return nil, fmt.Errorf("dp: a discrete Gaussian of variance %d: %w: want %d to 2^52", variance, ErrRun, MinVariance)
	}
	d := &Discrete{variance: variance, half: 1 / (2 * float64(variance))}
	for root := math.Sqrt(float64(variance)); math.Ldexp(1, int(d.width)+1) <= root/8; {
		d.width++
	}
	cumulative := d.cumulative(128)
	for _, c := range cumulative {
		word := new(big.Int).Rsh(c, 64)
		if word.BitLen() > 64 { // rounded up to one
			word.SetUint64(math.MaxUint64)
		}
		d.upper = append(d.upper, word.Uint64())
	}
	for lead := range d.first {
		d.first[lead] = sort.Search(len(d.upper), func(b int) bool { return d.upper[b] >= uint64(lead)<<56 })
	}
	return d, nil
}

// DiscreteFrom is [NewDiscrete] on the given random bits. It exists for tests:
// noise that can be drawn again protects nobody.
func DiscreteFrom(variance uint64, bits io.Reader) (*Discrete, error) {
	d, err := NewDiscrete(variance)
	if err == nil {
		d.bits = bits
	}
	return d, err
}

// cumulative is 2^precision·P(block ≤ b) for b = 0, 1, … until what is left is
// nothing at this precision; each within slack(precision).
func (d *Discrete) cumulative(precision uint) []*big.Int {
	var masses []*big.Float
	total := new(big.Float).SetPrec(precision + 64)
	least := new(big.Float).SetMantExp(big.NewFloat(1), -int(precision)-32)
	for b := uint64(0); ; b++ {
		at := new(big.Int).SetUint64(b << d.width)
		mass := expMinus(at.Mul(at, at), d.twice(), precision+64)
		if mass.Cmp(least) < 0 {
			break
		}
		masses = append(masses, mass)
		total.Add(total, mass)
	}
	sum := new(big.Float).SetPrec(precision + 64)
	var out []*big.Int
	for _, mass := range masses {
		sum.Add(sum, mass)
		share := new(big.Float).SetPrec(precision+64).Quo(sum, total)
		whole, _ := share.SetMantExp(share, int(precision)).Int(nil)
		out = append(out, whole)
	}
	return out
}

// slack is by how much numbers of cumulative may be off: the sum of a few hundred
// blocks with 64 bits to spare and a tail below 2^-(precision+32) of the first is
// within 1, and one more is rounded off.
const slack = 4

func (d *Discrete) twice() *big.Int {
	v := new(big.Int).SetUint64(d.variance)
	return v.Lsh(v, 1)
}

// expMinus is exp(-a/b) for a ≥ 0 < b, to a relative error below 2^(16-precision).
func expMinus(a, b *big.Int, precision uint) *big.Float {
	work := precision + 64
	x := new(big.Float).SetPrec(work).Quo(new(big.Float).SetPrec(work).SetInt(a), new(big.Float).SetPrec(work).SetInt(b))
	halvings := max(0, x.MantExp(nil)+8) // to below 2^-8
	x.SetMantExp(x, -halvings)
	x.Neg(x)
	sum, term := new(big.Float).SetPrec(work).SetInt64(1), new(big.Float).SetPrec(work).SetInt64(1)
	for n := int64(1); ; n++ {
		term.Mul(term, x)
		term.Quo(term, new(big.Float).SetPrec(work).SetInt64(n))
		if term.Sign() == 0 || term.MantExp(nil) < -int(work) {
			break
		}
		sum.Add(sum, term)
	}
	for range halvings {
		sum.Mul(sum, sum)
	}
	return sum.SetPrec(precision)
}

// draw is one draw. After an error its value means nothing.
func (d *Discrete) draw(s *stream) int64 {
	for s.err == nil {
		word := s.next()
		block := d.first[word>>56]
		for block < len(d.upper) && d.upper[block] < word {
			block++
		}
		// upper[block-1] < word ≤ upper[block]: sure, but within two of either
		if block == len(d.upper) || d.upper[block]-word < 2 || block > 0 && word-d.upper[block-1] < 2 {
			block = d.blockExactly(s, word)
		}
		word = s.next()
		start := uint64(block) << d.width
		size := start + word&(1<<d.width-1)
		above := size*size - start*start
		if limit, u := math.Exp(-float64(above)*d.half)*(1<<32), float64(word>>32); u > limit-1-filter && (u > limit+filter || !d.acceptExactly(s, word>>32, above)) {
			continue
		}
		if word>>31&1 == 0 {
			return int64(size)
		}
		if size > 0 {
			return -int64(size)
		}
	}
	return 0
}

// filter is what a threshold of 2^32 in float64 may be off by, with room: the
// product of three roundings and an exponential that is good to an ulp.
const filter = 0x1p-12

// blockExactly finds the block of a uniform number that begins with the given 64
// bits, drawing more of it until it lies clearly within one.
func (d *Discrete) blockExactly(s *stream, word uint64) int {
	u := new(big.Int).SetUint64(word)
	for precision := uint(64); s.err == nil; {
		for range precision / 64 { // doubled
			u.Lsh(u, 64).Or(u, new(big.Int).SetUint64(s.next()))
		}
		precision *= 2
		cumulative := d.cumulative(precision)
		block := sort.Search(len(cumulative), func(b int) bool { return cumulative[b].Cmp(u) > 0 })
		apart := func(b int) bool {
			gap := new(big.Int).Sub(cumulative[b], u)
			return gap.CmpAbs(big.NewInt(slack)) > 0
		}
		if block < len(cumulative) && apart(block) && (block == 0 || apart(block-1)) {
			return block
		}
	}
	return 0
}

// acceptExactly says whether a uniform number that begins with the given 32 bits
// is below exp(-above/(2V)).
func (d *Discrete) acceptExactly(s *stream, lead, above uint64) bool {
	u := new(big.Int).SetUint64(lead)
	for precision := uint(32); s.err == nil; {
		u.Lsh(u, 64).Or(u, new(big.Int).SetUint64(s.next()))
		precision += 64
		p := expMinus(new(big.Int).SetUint64(above), d.twice(), precision+64)
		limit, _ := p.SetMantExp(p, int(precision)).Int(nil)
		if gap := new(big.Int).Sub(limit, u); gap.CmpAbs(big.NewInt(slack)) > 0 {
			return gap.Sign() > 0
		}
	}
	return false
}

// Add adds an independent draw to every number, modulo 2^32. If it fails, dst
// holds nothing that may be used.
func (d *Discrete) Add(dst []uint32) error {
	return d.each(len(dst), func(s *stream, from, to int) {
		part := dst[from:to]
		for i := range part {
			part[i] += uint32(d.draw(s))
		}
	})
}

// Draw fills dst with independent draws.
func (d *Discrete) Draw(dst []int64) error {
	return d.each(len(dst), func(s *stream, from, to int) {
		part := dst[from:to]
		for i := range part {
			part[i] = d.draw(s)
		}
	})
}

// each divides n places among the processors, each with bits of its own.
func (d *Discrete) each(n int, work func(s *stream, from, to int)) error {
	workers := max(1, min(runtime.GOMAXPROCS(0), n/perturbChunk))
	if d.bits != nil { // given bits are read in one order
		workers = 1
	}
	var drawing sync.WaitGroup
	errs := make([]error, workers)
	for k := range workers {
		drawing.Go(func() {
			s := newStream(d.bits)
			work(s, k*n/workers, (k+1)*n/workers)
			errs[k] = s.err
		})
	}
	drawing.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("dp: reading random bits: %w", err)
		}
	}
	return nil
}
