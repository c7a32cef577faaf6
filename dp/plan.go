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
	if u := p.unknown(); u != nil {
		x, err := p.search(u, accountant)
		if err != nil {
			return p, err
		}
		u.set(&p.Run, x)
	}
	var err error
	p.Epsilon, err = accountant.Compose(append(slices.Clone(p.Before), p.Run), p.Delta)
	return p, err
}

// unknown is the number to find: what surely keeps within a budget, what would
// be best, and where it belongs. Nil means epsilon.
type unknown struct {
	safe, bold float64
	set        func(r *Run, v float64)
}

func (p Plan) unknown() *unknown {
	switch {
	case p.Epsilon == 0:
		return nil
	case p.Run.Sigma == 0:
		return &unknown{maxSigma, minSigma, func(r *Run, v float64) { r.Sigma = v }}
	case p.Run.Rate == 0:
		return &unknown{minRate, 1, func(r *Run, v float64) { r.Rate = v }}
	}
	return &unknown{1, maxSteps, func(r *Run, v float64) { r.Steps = int(v) }}
}

// planTolerance is how near to the best number a plan comes, relatively.
const planTolerance = 1e-4

// search finds the number. An accountant of a coarser grid, which is as safe,
// leads near it where there is one: it takes a twentieth of the time.
func (p Plan) search(u *unknown, accountant Accountant) (float64, error) {
	keeps := func(a Accountant) func(float64) (bool, error) {
		return func(v float64) (bool, error) {
			run := p.Run
			u.set(&run, v)
			spent, err := a.Compose(append(slices.Clone(p.Before), run), p.Delta)
			return spent <= p.Epsilon, err
		}
	}
	if exact, ok := accountant.(PLD); ok {
		if near, err := bisect(u.safe, u.bold, planTolerance, 4, keeps(exact.coarser())); err == nil {
			if found, err := bisect(near, u.bold, planTolerance, 1.002, keeps(exact)); err == nil {
				return found, nil
			}
		}
	}
	return bisect(u.safe, u.bold, planTolerance, 4, keeps(accountant))
}

// bisect returns the value nearest to bold (within a relative tolerance) at
// which holds is still true, given that it is true at safe and both are
// positive. It walks from safe in steps of the given factor, each the square of
// the one before, since the accountant is cheapest where little is spent. It
// returns bold itself if it holds there.
func bisect(safe, bold, tolerance, step float64, holds func(float64) (bool, error)) (float64, error) {
	if ok, err := holds(safe); err != nil {
		return 0, err
	} else if !ok {
		return 0, fmt.Errorf("dp: searching between %v and %v: %w: no value keeps within the budget; allow a larger epsilon or fewer steps", bold, safe, ErrRun)
	}
	for safe != bold {
		next := math.Min(bold, safe*step)
		if bold < safe {
			next = math.Max(bold, safe/step)
		}
		ok, err := holds(next)
		if err != nil {
			return 0, err
		}
		if !ok {
			bold = next
			break
		}
		safe, step = next, math.Min(4, step*step)
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
