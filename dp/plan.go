package dp

import (
	"fmt"
	"math"
	"slices"
)

// Plan is a privacy budget with exactly one unknown, written as zero: Epsilon,
// Run.Sigma, Run.Rate or Run.Steps. Delta is always given.
type Plan struct {
	Epsilon float64 // total budget, > 0
	Delta   float64 // in (0, 1); well below one over the number of records
	Run     Run
	// Before is what was spent on the same records already; Epsilon is the
	// budget of it and the Run together.
	Before []Run
}

// Bounds of the search; beyond them a plan is of no use to anybody.
const (
	maxSigma = 1e4
	minSigma = 0.3 // below, even one sampled step spends an epsilon above 10
	minRate  = 1e-7
	maxSteps = 1 << 24
)

// Solve fills in the unknown so that the whole run stays within the budget: the
// least noise, the largest rate or the most steps, and then the epsilon that the
// result really spends.
func (p Plan) Solve(accountant Accountant) (Plan, error) {
	if err := checkDelta(p.Delta); err != nil {
		return p, err
	}
	unknown := 0
	for _, absent := range []bool{p.Epsilon == 0, p.Run.Sigma == 0, p.Run.Rate == 0, p.Run.Steps == 0} {
		if absent {
			unknown++
		}
	}
	if unknown != 1 {
		return p, fmt.Errorf("dp: a plan with %d unknowns among epsilon, sigma, rate and steps: %w: leave out exactly one", unknown, ErrRun)
	}
	if p.Epsilon < 0 || math.IsNaN(p.Epsilon) || math.IsInf(p.Epsilon, 0) {
		return p, fmt.Errorf("dp: epsilon %v: %w: it must be positive", p.Epsilon, ErrRun)
	}
	spent := func(run Run) (float64, error) {
		return accountant.Compose(append(slices.Clone(p.Before), run), p.Delta)
	}
	var err error
	switch {
	case p.Epsilon == 0:
	case p.Run.Sigma == 0:
		p.Run.Sigma, err = bisect(maxSigma, minSigma, 1e-4, func(sigma float64) (bool, error) {
			run := p.Run
			run.Sigma = sigma
			e, err := spent(run)
			return e <= p.Epsilon, err
		})
	case p.Run.Rate == 0:
		p.Run.Rate, err = bisect(minRate, 1, 1e-4, func(rate float64) (bool, error) {
			run := p.Run
			run.Rate = rate
			e, err := spent(run)
			return e <= p.Epsilon, err
		})
	case p.Run.Steps == 0:
		var steps float64
		steps, err = bisect(1, maxSteps, 1e-4, func(steps float64) (bool, error) {
			run := p.Run
			run.Steps = int(steps)
			e, err := spent(run)
			return e <= p.Epsilon, err
		})
		p.Run.Steps = int(steps)
	}
	if err != nil {
		return p, err
	}
	p.Epsilon, err = spent(p.Run)
	return p, err
}

// bisect returns the value nearest to bold (within a relative tolerance) at
// which holds is still true, given that it is true at safe and both are
// positive. It walks from safe in growing steps first: the accountant is
// cheapest where little is spent. It returns bold itself if it holds there.
func bisect(safe, bold, tolerance float64, holds func(float64) (bool, error)) (float64, error) {
	if ok, err := holds(safe); err != nil {
		return 0, err
	} else if !ok {
		return 0, fmt.Errorf("dp: searching between %v and %v: %w: no value keeps within the budget; allow a larger epsilon or fewer steps", bold, safe, ErrRun)
	}
	for safe != bold {
		next := safe * 4
		if bold < safe {
			next = math.Max(bold, safe/4)
		} else {
			next = math.Min(bold, next)
		}
		ok, err := holds(next)
		if err != nil {
			return 0, err
		}
		if !ok {
			bold = next
			break
		}
		safe = next
	}
	for safe != bold && math.Abs(math.Log(safe/bold)) > tolerance {
		middle := math.Sqrt(safe * bold)
		ok, err := holds(middle)
		if err != nil {
			return 0, err
		}
		if ok {
			safe = middle
		} else {
			bold = middle
		}
	}
	return safe, nil
}
