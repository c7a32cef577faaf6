package certificate

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"

	"github.com/vigie/vigie/engine"
)

// Smoothed is what noise says of an answer.
type Smoothed struct {
	// Answer is the one that noisy copies of the image give most often, of those
	// that chose it.
	Answer  Answer
	Agree   int     // of Samples others
	Samples int     //
	Bound   float64 // the share of Answer among all noisy copies is at least this, but for a chance of alpha
	// Radius is the Euclidean length, in pixels of brightness 0 to 1 of the
	// model's input, up to which no change of the image turns the smoothed
	// answer; 0 if it abstains.
	Radius  float64
	Abstain bool // Bound is no more than a half: nothing is certified
	Runs    int
}

// Seed is what the noise is drawn from.
type Seed [32]byte

// FreshSeed draws a seed that nobody knows beforehand, as the certificate of a
// real case needs: who knows the noise can make an image for it.
func FreshSeed() Seed {
	var s Seed
	rand.Read(s[:]) // never fails
	return s
}

// Smooth certifies the answer of the smoothed model on one input (Cohen et al.
// 2019, Certify and theorem 1). The same seed gives the same noise.
func (c *Certifier) Smooth(ctx context.Context, input engine.Tensor, seed Seed) (*Smoothed, error) {
	s, err := c.smooth(ctx, input, seed)
	if err != nil {
		return nil, fmt.Errorf("certificate: smoothing an answer: %w", err)
	}
	return s, nil
}

func (c *Certifier) smooth(ctx context.Context, input engine.Tensor, seed Seed) (*Smoothed, error) {
	o := c.options.Smoothing
	if o == nil {
		return nil, fmt.Errorf("no smoothing was asked for: %w", ErrAsk)
	}
	values, err := c.values(input)
	if err != nil {
		return nil, err
	}
	first := o.First
	if first == 0 {
		first = DefaultFirst
	}
	noise := &noise{geometry: c.geometry, grey: c.model.Grey, sigma: o.Sigma, seed: seed, values: values}
	s := &Smoothed{Samples: o.Samples}
	counts := map[Answer]int{}
	if err := c.answers(ctx, first, noise.add, func(_ int, a Answer) bool {
		s.Runs++
		counts[a]++
		return true
	}); err != nil {
		return nil, err
	}
	for a, n := range counts { // of equally frequent answers, the first by name
		if best := counts[s.Answer]; n > best || n == best && a < s.Answer {
			s.Answer = a
		}
	}
	// Others than those that chose the answer: else the bound would not hold.
	if err := c.answers(ctx, o.Samples, func(i int, row []float32) { noise.add(first+i, row) }, func(_ int, a Answer) bool {
		s.Runs++
		if a == s.Answer {
			s.Agree++
		}
		return true
	}); err != nil {
		return nil, err
	}
	s.Bound = lowerBound(s.Agree, s.Samples, o.Alpha)
	if s.Abstain = !(s.Bound > 0.5); !s.Abstain {
		s.Radius = o.Sigma * quantile(s.Bound)
	}
	return s, nil
}

// noise makes noisy copies of an image.
type noise struct {
	geometry
	grey   bool
	sigma  float64
	seed   Seed
	values []float32
}

// add writes copy i: each has a stream of its own, so that it does not depend on
// which of several runs at once asks for it.
func (n *noise) add(i int, row []float32) {
	seed := n.seed
	for k := range 8 { // the counter is mixed into the key, not added to a state
		seed[24+k] ^= byte(uint64(i) >> (8 * k))
	}
	random := mathrand.New(mathrand.NewChaCha8(seed))
	pixels := n.rows * n.columns
	if n.grey {
		for p := range pixels {
			v := random.NormFloat64() * n.sigma
			for c := range n.channels {
				at := n.index(c, p)
				row[at] = float32(float64(n.values[at]) + float64(n.scale[c])*v)
			}
		}
		return
	}
	for c := range n.channels {
		for p := range pixels {
			at := n.index(c, p)
			row[at] = float32(float64(n.values[at]) + float64(n.scale[c])*random.NormFloat64()*n.sigma)
		}
	}
}
