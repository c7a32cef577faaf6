package dp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"runtime"
	"sync"
)

// Gaussian draws the noise of the Gaussian mechanism.
//
// The draws are exact up to the resolution of float64: the ziggurat method with
// 256 layers (Marsaglia and Tsang 2000; layer, sign and position from different
// bits, as Doornik 2005 asks for) on 53 random bits, with an exact tail. What is
// released is not the float64 sum: its lowest bits show which draws were
// possible, and with that the value under the noise (Mironov 2012). So Perturb
// rounds each sum to a fixed grid, 2^20 steps or more to a standard deviation and
// chosen from the deviation alone. Rounding is post-processing, and every point
// of the grid near the centre stands for about 2^33 possible draws, so the
// pattern of the generator's floats is gone.
//
// This is a mitigation and not a proof: the distribution on the grid is the
// rounded Gaussian to about 2^-30 of each probability in the bulk, coarser in
// the far tail, while a discrete Gaussian ([Discrete]) is exact by construction, at
// several times the cost, for sums that are in integers. Nor is the time that a draw takes independent of its value; an attacker
// who can time single draws is outside this model.
type Gaussian struct {
	bits io.Reader // nil: crypto/rand, expanded
}

// NewGaussian returns the source for production: seeds from crypto/rand, a fresh
// one for every call.
func NewGaussian() *Gaussian { return &Gaussian{} }

// GaussianFrom draws from the given random bits. It exists for tests of the
// distribution and of what is built on it: noise from any generator that can be
// seeded or replayed protects nobody.
func GaussianFrom(bits io.Reader) *Gaussian { return &Gaussian{bits} }

// The ziggurat's constants for 256 layers (Doornik 2005, table 1): where the
// tail begins, and the area of a layer.
const (
	zigguratLayers = 256
	zigguratTail   = 3.6541528853610088
	zigguratArea   = 0.00492867323399
)

// zigguratEdge is the right end of each layer, from the widest; the base layer's
// first, as wide as its area demands with the tail folded in.
var zigguratEdge = func() (edge [zigguratLayers + 1]float64) {
	density := func(x float64) float64 { return math.Exp(-x * x / 2) }
	edge[0] = zigguratArea / density(zigguratTail)
	edge[1] = zigguratTail
	for i := 2; i < zigguratLayers; i++ {
		edge[i] = math.Sqrt(-2 * math.Log(zigguratArea/edge[i-1]+density(edge[i-1])))
	}
	return edge // the last stays 0
}()

// zigguratDensity is the density at each edge.
var zigguratDensity = func() (density [zigguratLayers + 1]float64) {
	for i, x := range zigguratEdge {
		density[i] = math.Exp(-x * x / 2)
	}
	return density
}()

// stream reads random words through a buffer of its own.
type stream struct {
	bits   io.Reader
	buffer [1 << 15]byte
	unread []byte
	err    error
}

func newStream(bits io.Reader) *stream {
	if bits == nil {
		bits = expanded()
	}
	return &stream{bits: bits}
}

// keystream is AES-256 in counter mode.
type keystream struct{ cipher.Stream }

func (k keystream) Read(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, len(zeros))
		k.XORKeyStream(p[done:done+n], zeros[:n])
		done += n
	}
	return len(p), nil
}

var zeros [1 << 12]byte // what is encrypted; never written

// expanded turns 48 bytes of crypto/rand into as many random bits as the noise
// of one call needs: key and first counter of AES-256 in counter mode, the
// generator of NIST SP 800-90A, section 10.2, without reseeding, for far less
// than the 2^48 blocks that it allows. Every call and every goroutine has a key
// of its own, which is forgotten with it. Asking crypto/rand for every bit costs
// more than the rest of the noise.
func expanded() io.Reader {
	seed := make([]byte, 48)
	rand.Read(seed) // never fails: it ends the program instead
	block, err := aes.NewCipher(seed[:32])
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	return keystream{cipher.NewCTR(block, seed[32:])}
}

// next is 64 random bits. After an error they mean nothing.
func (s *stream) next() uint64 {
	if len(s.unread) == 0 {
		n, err := io.ReadAtLeast(s.bits, s.buffer[:], 8)
		if err != nil {
			s.err = err
			return 0
		}
		s.unread = s.buffer[:n&^7]
	}
	word := binary.LittleEndian.Uint64(s.unread)
	s.unread = s.unread[8:]
	return word
}

// unit is uniform on the odd multiples of 2^-54 in (0, 1).
func unit(word uint64) float64 { return (float64(word>>11) + 0.5) * 0x1p-53 }

// normal is one draw from N(0, 1). After an error its value means nothing. Nearly
// all draws lie well within their layer, and are made here.
func (s *stream) normal() float64 {
	if len(s.unread) < 8 {
		return s.unlikely(s.next())
	}
	word := binary.LittleEndian.Uint64(s.unread)
	s.unread = s.unread[8:]
	layer := word & 0xff
	x := unit(word) * zigguratEdge[layer]
	if x < zigguratEdge[layer+1] {
		return math.Float64frombits(math.Float64bits(x) | word<<55&(1<<63)) // bit 8 is the sign
	}
	return s.unlikely(word)
}

// unlikely is a draw that begins with the given word, whatever comes of it.
func (s *stream) unlikely(word uint64) float64 {
	for ; s.err == nil; word = s.next() {
		layer, negative := word&0xff, word&0x100 != 0
		x := unit(word) * zigguratEdge[layer]
		switch {
		case x < zigguratEdge[layer+1]:
		case layer == 0: // the tail, by Marsaglia (1964)
			for s.err == nil {
				a, b := -math.Log(unit(s.next()))/zigguratTail, -math.Log(unit(s.next()))
				if 2*b > a*a {
					x = zigguratTail + a
					break
				}
			}
		default:
			low, high := zigguratDensity[layer], zigguratDensity[layer+1]
			if low+unit(s.next())*(high-low) >= math.Exp(-x*x/2) {
				continue
			}
		}
		if negative {
			return -x
		}
		return x
	}
	return 0
}

// gridOf is the step of the grid that sums with noise of this deviation are
// rounded to: a power of two between 2^-21 and 2^-20 deviations.
func gridOf(deviation float64) float64 {
	_, exponent := math.Frexp(deviation)
	return math.Ldexp(1, exponent-21)
}

// nearest is the integer nearest to x, of two the even one.
func nearest(x float64) float64 {
	const whole = 3 << 51 // from there to 2^53 the numbers are the integers
	if math.Abs(x) < 1<<51 {
		return (x + whole) - whole
	}
	return math.RoundToEven(x)
}

// perturbChunk is how many elements one goroutine takes at a time.
const perturbChunk = 1 << 14

// Perturb adds independent noise N(0, deviation²) to every element of sum and
// writes the result, rounded to the grid and scaled by scale, to dst, which is
// as long. If it fails, dst holds nothing that may be used.
func (g *Gaussian) Perturb(dst []float32, sum []float64, deviation, scale float64) error {
	if !(deviation > 0) || math.IsInf(deviation, 0) {
		return fmt.Errorf("dp: noise of standard deviation %v: %w: it must be a positive number", deviation, ErrRun)
	}
	if len(dst) != len(sum) {
		return fmt.Errorf("dp: noise for %d sums into %d places: %w", len(sum), len(dst), ErrRun)
	}
	grid := gridOf(deviation)
	steps := 1 / grid // exact: a power of two
	add := func(s *stream, from, to int) error {
		dst, sum := dst[from:to], sum[from:to]
		for i := range dst {
			v := sum[i] + deviation*s.normal()
			dst[i] = float32(nearest(float64(v*steps)) * grid * scale)
		}
		return s.err
	}
	workers := min(runtime.GOMAXPROCS(0), len(sum)/perturbChunk)
	if g.bits != nil || workers < 2 { // given bits are read in one order
		if err := add(newStream(g.bits), 0, len(sum)); err != nil {
			return fmt.Errorf("dp: reading random bits: %w", err)
		}
		return nil
	}
	var drawing sync.WaitGroup
	errs := make([]error, workers)
	for k := range workers {
		drawing.Go(func() { errs[k] = add(newStream(nil), k*len(sum)/workers, (k+1)*len(sum)/workers) })
	}
	drawing.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("dp: reading random bits: %w", err)
		}
	}
	return nil
}

// Accumulate adds part, clipped gradients of some records, to sum, which is as
// long, on all processors.
func Accumulate(sum []float64, part []float32) {
	if len(part) != len(sum) {
		panic(fmt.Sprintf("dp: %d gradients added to %d sums", len(part), len(sum)))
	}
	add := func(sum []float64, part []float32) {
		for i, v := range part {
			sum[i] += float64(v)
		}
	}
	workers := min(runtime.GOMAXPROCS(0), len(sum)/perturbChunk)
	if workers < 2 {
		add(sum, part)
		return
	}
	var adding sync.WaitGroup
	for k := range workers {
		from, to := k*len(sum)/workers, (k+1)*len(sum)/workers
		adding.Go(func() { add(sum[from:to], part[from:to]) })
	}
	adding.Wait()
}

// Value is one perturbed number: a count or a sum, plus N(0, deviation²), on the
// grid.
func (g *Gaussian) Value(sum, deviation float64) (float64, error) {
	if !(deviation > 0) || math.IsInf(deviation, 0) {
		return 0, fmt.Errorf("dp: noise of standard deviation %v: %w: it must be a positive number", deviation, ErrRun)
	}
	s := newStream(g.bits)
	grid := gridOf(deviation)
	v := math.RoundToEven((sum+deviation*s.normal())/grid) * grid
	if s.err != nil {
		return 0, fmt.Errorf("dp: reading random bits: %w", s.err)
	}
	return v, nil
}
