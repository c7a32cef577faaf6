package dp

import (
	"fmt"
	"math"
)

// Clip is a clipping norm that may follow a quantile of the gradients' norms
// (Andrew, Thakkar, McMahan and Ramaswamy 2021). After a step the norm C moves
//
//	C ← C·exp(-Rate·(b̃ - Quantile))
//
// where b̃ is the share of records whose gradient was at most C long, with noise
// of its own: the count is released too, and paid for (see [Clip.Split]).
type Clip struct {
	Norm float64 // C now, > 0
	// Quantile is the share of records that should not be clipped, in (0, 1). 0
	// keeps Norm as it is and releases no count.
	Quantile float64
	Rate     float64 // of the move; the paper's 0.2 is a good one
	// CountNoise is the standard deviation of the noise on the count, in records.
	// A twentieth of the expected batch costs next to nothing.
	CountNoise float64
}

// Adaptive says whether the norm moves.
func (c Clip) Adaptive() bool { return c.Quantile != 0 }

// Check says what is wrong with the settings.
func (c Clip) Check() error {
	if !(c.Norm > 0) || math.IsInf(c.Norm, 0) {
		return fmt.Errorf("dp: clipping norm %v: %w: it must be a positive number", c.Norm, ErrRun)
	}
	if !c.Adaptive() {
		return nil
	}
	if !(c.Quantile > 0 && c.Quantile < 1) || !(c.Rate > 0) || !(c.CountNoise > 0) || math.IsInf(c.Rate, 0) || math.IsInf(c.CountNoise, 0) {
		return fmt.Errorf("dp: clipping to quantile %v at rate %v with noise %v on the count: %w: the quantile must lie in (0, 1), the others must be positive", c.Quantile, c.Rate, c.CountNoise, ErrRun)
	}
	return nil
}

// Split returns the noise multiplier for the gradients such that gradients and
// count together cost what one Gaussian step with multiplier sigma does:
// (sigma^-2 - (2·CountNoise)^-2)^(-1/2), theorem 1 of the paper. The count's
// sensitivity is 1/2, because each record adds b - 1/2.
func (c Clip) Split(sigma float64) (float64, error) {
	if !c.Adaptive() {
		return sigma, nil
	}
	rest := 1/(sigma*sigma) - 1/(4*c.CountNoise*c.CountNoise)
	if !(rest > 0) {
		return 0, fmt.Errorf("dp: the count's noise %v leaves nothing of a noise multiplier of %v: %w: it must be above %v", c.CountNoise, sigma, ErrRun, sigma/2)
	}
	return 1 / math.Sqrt(rest), nil
}

// Move adapts the norm after a step: within records of the drawn ones had
// gradients of at most Norm; expected is the expected size of a batch.
func (c *Clip) Move(noise *Gaussian, within, drawn int, expected float64) error {
	if !c.Adaptive() {
		return nil
	}
	centred, err := noise.Value(float64(within)-float64(drawn)/2, c.CountNoise)
	if err != nil {
		return err
	}
	// The paper's clients are of a fixed number; here only the expected size of
	// the batch is public, so that the share is of that.
	share := centred/expected + 0.5
	c.Norm *= math.Exp(-c.Rate * (share - c.Quantile))
	return nil
}
