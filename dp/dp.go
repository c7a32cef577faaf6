// Package dp accounts for differential privacy: how much privacy a sequence of
// Poisson-subsampled Gaussian steps (DP-SGD) spends, and which noise a budget
// demands.
//
// Two accountants answer the same question. [RDP] follows Mironov, Talwar and
// Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism" (2019):
// closed formulas, an upper bound that is a few per cent loose. [PLD] composes
// the privacy loss distribution itself (Koskela, Jälkö and Honkela 2020) after
// the "connect the dots" discretisation of Doroshenko, Ghazi, Kamath, Kumar and
// Manurangsi (2022): tight, and never below the true value.
//
// Both use the add-or-remove-one relation: two data sets are neighbours when
// one has one record more. Records are patients if the sampler draws patients;
// the guarantee is about whatever the sampler draws.
//
// The mechanism itself is here too: [Sampler] draws batches, [Gaussian] the
// noise, both from crypto/rand; [Ledger] holds what was spent, on disk before
// the noise is drawn; [Clip] is the clipping norm, fixed or following a quantile.
// Where several parties add noise to one sum in integers, each draws a share from
// [Discrete], and [Sum] accounts for all of them.
// The package must not know of models or training.
//
//	epsilon, err := dp.PLD{}.Epsilon(dp.Run{Sigma: 1.1, Rate: 256.0 / 60000, Steps: 14062}, 1e-5)
package dp

import (
	"errors"
	"fmt"
	"math"
)

// Run describes the steps whose privacy cost is asked.
type Run struct {
	Sigma float64 `json:"noise_multiplier"` // noise standard deviation divided by the clipping norm, > 0
	Rate  float64 `json:"sampling_rate"`    // probability q that a record is in a step's batch, 0 < q <= 1 (Poisson sampling)
	Steps int     `json:"steps"`            // number of steps, >= 0
}

// ErrRun is wrapped by every error about a Run, a delta or an epsilon out of range.
var ErrRun = errors.New("out of range")

func (r Run) check() error {
	switch {
	case !(r.Sigma > 0) || math.IsInf(r.Sigma, 0):
		return fmt.Errorf("dp: noise multiplier %v: %w: it must be a positive number", r.Sigma, ErrRun)
	case !(r.Rate > 0 && r.Rate <= 1):
		return fmt.Errorf("dp: sampling rate %v: %w: it must lie in (0, 1]", r.Rate, ErrRun)
	case r.Steps < 0:
		return fmt.Errorf("dp: %d steps: %w: it must not be negative", r.Steps, ErrRun)
	}
	return nil
}

func checkDelta(delta float64) error {
	if !(delta > 0 && delta < 1) {
		return fmt.Errorf("dp: delta %v: %w: it must lie in (0, 1)", delta, ErrRun)
	}
	return nil
}

// checkAll checks every run and drops those without steps.
func checkAll(runs []Run, delta float64) ([]Run, error) {
	var out []Run
	for _, run := range runs {
		if err := run.check(); err != nil {
			return nil, err
		}
		if run.Steps > 0 {
			out = append(out, run)
		}
	}
	return out, checkDelta(delta)
}

// Accountant bounds the privacy cost of runs: the mechanism is
// (epsilon, delta)-differentially private.
type Accountant interface {
	// Epsilon returns an upper bound of epsilon at the given delta in (0, 1).
	// It is +Inf where the accountant can promise nothing.
	Epsilon(run Run, delta float64) (float64, error)
	// Compose is Epsilon of several runs on the same records, each chosen with
	// knowledge of the results of those before it or not.
	Compose(runs []Run, delta float64) (float64, error)
}

var (
	_ Accountant = RDP{}
	_ Accountant = PLD{}
)
