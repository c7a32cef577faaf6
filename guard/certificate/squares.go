package certificate

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/vigie/vigie/engine"
)

// Squares is what covering an image place by place says of its answer.
type Squares struct {
	Cover  Cover
	Answer Answer // on the image as it is
	// Covered are the answers on the image with each mask in turn, and Agree how
	// many of them are Answer.
	Covered []Answer
	Agree   int
	// Recovered is the answer of double masking (Xiang et al. 2022, algorithm 1):
	// that of the masks where they all agree; else that of a mask which no second
	// one changes; else the most frequent.
	Recovered Answer
	// Pairs of masks were asked to certify, and PairsAgree of them gave Answer. A
	// pair that does not ends the round.
	Pairs, PairsAgree int
	Certified         bool // every mask and every pair gives Answer
	Runs              int  // examples that the model was asked about
}

// Agreed reports whether every mask gives the answer of the image as it is.
func (s *Squares) Agreed() bool { return s.Agree == len(s.Covered) }

// Squares covers places of one input in turn. answer is what is reported of it,
// computed elsewhere: if the model here answers otherwise, there is nothing to
// certify, and the error is ErrOther. patch is what a patch may touch of the
// region in which the image lies.
func (c *Certifier) Squares(ctx context.Context, input engine.Tensor, answer Answer, patch Size, region Region) (*Squares, error) {
	s, err := c.squares(ctx, input, answer, patch, region)
	if err != nil {
		return nil, fmt.Errorf("certificate: covering an image: %w", err)
	}
	return s, nil
}

func (c *Certifier) squares(ctx context.Context, input engine.Tensor, answer Answer, patch Size, region Region) (*Squares, error) {
	if c.options.Patch == nil {
		return nil, fmt.Errorf("no squares were asked for: %w", ErrAsk)
	}
	if region.Top+region.Rows > c.geometry.rows || region.Left+region.Columns > c.geometry.columns {
		return nil, fmt.Errorf("an image of %d by %d at %d, %d of an input of %d by %d: %w", region.Rows, region.Columns, region.Top, region.Left, c.geometry.rows, c.geometry.columns, ErrAsk)
	}
	values, err := c.values(input)
	if err != nil {
		return nil, err
	}
	cover, err := Covering(region, patch, c.options.Patch.Masks)
	if err != nil {
		return nil, err
	}
	s := &Squares{Cover: cover, Answer: answer, Covered: make([]Answer, len(cover.Masks))}
	own := answer
	// The image as it is goes with the first round: example 0.
	err = c.answers(ctx, 1+len(cover.Masks), func(i int, row []float32) {
		if copy(row, values); i > 0 {
			c.hide(row, values, cover.Masks[i-1])
		}
	}, func(i int, a Answer) bool {
		if s.Runs++; i == 0 {
			own = a
		} else if s.Covered[i-1] = a; a == answer {
			s.Agree++
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	if own != answer {
		return nil, ErrOther
	}
	if err := c.recover(ctx, s, values); err != nil {
		return nil, err
	}
	if s.Agreed() && c.options.Patch.Rounds == 2 {
		if err := c.pairs(ctx, s, values); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// ErrOther says that the model answers otherwise than was reported.
var ErrOther = fmt.Errorf("the model answers otherwise here: %w", ErrOutput)

// hide covers masks of a row that holds the image.
func (c *Certifier) hide(row, values []float32, masks ...Mask) {
	g := c.geometry
	brightness, mean, _ := Brightness(c.options.Patch.Fill) // was checked
	covered := func(p int) bool {
		for _, m := range masks {
			if m.Holds(p/g.columns, p%g.columns) {
				return true
			}
		}
		return false
	}
	for channel := range g.channels {
		with := g.black[channel] + g.scale[channel]*float32(brightness)
		if mean {
			// Summed over what stays, never by taking away from a sum over all: the
			// last bit must not depend on what is hidden.
			sum, n := 0.0, 0
			for p := range g.rows * g.columns {
				if !covered(p) {
					sum += float64(values[g.index(channel, p)])
					n++
				}
			}
			if n > 0 {
				with = float32(sum / float64(n))
			}
		}
		for _, m := range masks {
			for y := m.Top; y < m.Bottom; y++ {
				for x := m.Left; x < m.Right; x++ {
					row[g.index(channel, y*g.columns+x)] = with
				}
			}
		}
	}
}

// recover finds the answer of double masking. Where the masks agree it costs
// nothing; else second masks are put over those that say otherwise than most.
func (c *Certifier) recover(ctx context.Context, s *Squares, values []float32) error {
	counts := map[Answer]int{}
	for _, a := range s.Covered {
		counts[a]++
	}
	var seen []Answer
	for a := range counts {
		seen = append(seen, a)
	}
	slices.SortFunc(seen, func(a, b Answer) int { // of equally frequent answers, the first by name
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	s.Recovered = seen[0]
	n := len(s.Covered)
	for first, a := range s.Covered {
		if a == seen[0] {
			continue
		}
		agree := 0
		err := c.answers(ctx, n-1, func(i int, row []float32) {
			second := i
			if second >= first {
				second++
			}
			copy(row, values)
			c.hide(row, values, s.Cover.Masks[first], s.Cover.Masks[second])
		}, func(_ int, b Answer) bool {
			if s.Runs++; a == b {
				agree++
			}
			return a == b
		})
		if err != nil {
			return err
		}
		if agree == n-1 {
			s.Recovered = a
			return nil
		}
	}
	return nil
}

// pairs asks about every two masks, until one says otherwise.
func (c *Certifier) pairs(ctx context.Context, s *Squares, values []float32) error {
	var pairs [][2]Mask
	for i, first := range s.Cover.Masks {
		for _, second := range s.Cover.Masks[i+1:] {
			pairs = append(pairs, [2]Mask{first, second})
		}
	}
	err := c.answers(ctx, len(pairs), func(i int, row []float32) {
		copy(row, values)
		c.hide(row, values, pairs[i][0], pairs[i][1])
	}, func(_ int, a Answer) bool {
		s.Runs++
		s.Pairs++
		if a == s.Answer {
			s.PairsAgree++
		}
		return a == s.Answer
	})
	s.Certified = err == nil && s.PairsAgree == len(pairs)
	return err
}

// Answer is the model's answer on an input as it is, computed as those under
// masks are.
func (c *Certifier) Answer(ctx context.Context, input engine.Tensor) (Answer, error) {
	values, err := c.values(input)
	if err == nil {
		var own Answer
		if err = c.answers(ctx, 1, func(_ int, row []float32) { copy(row, values) }, func(_ int, a Answer) bool {
			own = a
			return true
		}); err == nil {
			return own, nil
		}
	}
	return "", fmt.Errorf("certificate: asking a model: %w", err)
}
