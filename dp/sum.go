package dp

import (
	"fmt"
	"math"
	"slices"
)

// Sum is a sum of vectors of integers, one of each record, to which several
// parties add discrete Gaussian noise, a share each ([Discrete]). It says what
// the sum gives away of a record to somebody who knows all noise but Shares
// shares of it.
//
// Two accounts are given, by different proofs.
//
// [Sum.Epsilon]. Such noise is, but for a factor that is told, a Gaussian rounded to
// integers; and rounding is done to the sum of a record's integers and a Gaussian,
// because integers pass through it: so the sum gives away no more than the
// Gaussian mechanism itself, whose account PLD is. The factor, for one number:
//
//  1. Shares are put together one by one. With c = ab/(a+b), x ↦ Σ_y
//     exp(-y²/2a-(x-y)²/2b) is exp(-x²/2(a+b)) times Σ_y exp(-(y-xa/(a+b))²/2c),
//     which by Poisson's summation is √(2πc)·(1 ± 2Σ_{j≥1} exp(-2π²cj²)). As c is
//     at least V/2, N_Z(0,a) + N_Z(0,b) and N_Z(0,a+b) are within a factor of
//     (1+η)/(1-η) of each other, η = 2.1·exp(-π²V). (Kairouz, Liu and Steinke
//     2021 have the like, theorem 11 and corollary 12.)
//  2. Let S be the variance of all Shares and s the one with 1/S = 1/s - 1/(12s²).
//     log P(round N(0,s) = k) = const - k²/2s + F(k/s), where F(a) = log
//     E[exp(-au-u²/2s)] for u uniform in ±½; log P(N_Z(0,S) = k) = const - k²/2s +
//     (k/s)²/24. F is a cumulant generating function: its second derivative at 0
//     lies within 1/(96s) below 1/12, its fourth is at most 3/16 everywhere. So for
//     |k| ≤ K, with a = K/s, the two logarithms differ by const ± ρ,
//     ρ = a²/(192s) + a⁴/128, and const is at most ρ and twice the tails' mass.
//  3. Beyond K = 14 deviations lie less than 5·exp(-98) of either, which is
//     counted as lost.
//
// For Length numbers and all steps the factors multiply; they and the tails are
// added to epsilon and delta ([Sum.Slack]): with a deviation of 10^5 integers,
// 10^5 numbers and 1,000 steps, 2e-9 and 1e-20. Where they would matter nothing is
// promised.
//
// [Sum.Renyi]. For integers Δ_j and integer orders k the moments E[(P/Q)^k] of
// N_Z(Δ, S) over N_Z(0, S) are exp(k(k-1)‖Δ‖²/2S) exactly as for the Gaussian
// (because Σ_x exp(-(x-kΔ_j)²/2S) does not depend on kΔ_j), so with Poisson
// sampling they are those of Mironov et al. 2019, equation 5; their theorem 5,
// which covers removing as well as adding, needs only that x ↦ Δ-x swaps P and Q.
// Between integer orders the logarithm of a moment is convex: chords bound it.
type Sum struct {
	// Sensitivity is the largest Euclidean length of a record's vector; in
	// integers, and held exactly.
	Sensitivity uint64
	Variance    uint64 // of a share, see Discrete
	Shares      int    // of honest parties that are surely in the sum
	Length      int    // numbers of a vector
}

// Check returns an error that wraps ErrRun for a sum that is not accounted for.
func (s Sum) Check() error {
	switch {
	case s.Sensitivity < 1 || s.Shares < 1 || s.Shares > 1<<20 || s.Length < 1 || s.Length > 1<<31:
		return fmt.Errorf("dp: a sum of %d numbers with sensitivity %d and %d shares of noise: %w: all must be at least 1", s.Length, s.Sensitivity, s.Shares, ErrRun)
	case s.Variance < MinVariance || s.Variance > MaxVariance:
		return fmt.Errorf("dp: shares of noise of variance %d: %w: want %d to 2^52; write the sum in finer or coarser units", s.Variance, ErrRun, MinVariance)
	}
	return nil
}

// ShareFor is the variance of a share such that the shares counted on have a
// standard deviation of sigma sensitivities, or a hair more.
func ShareFor(sigma float64, sensitivity uint64, shares int) (uint64, error) {
	v := math.Ceil(sigma * sigma * float64(sensitivity) * float64(sensitivity) / float64(shares) * (1 + 1e-12))
	if !(v >= MinVariance && v <= MaxVariance) || shares < 1 {
		return 0, fmt.Errorf("dp: shares of noise for a multiplier of %v, sensitivity %d and %d parties: %w: their variance must lie within %d and 2^52", sigma, sensitivity, shares, ErrRun, MinVariance)
	}
	return uint64(v), nil
}

// total is S.
func (s Sum) total() float64 { return float64(s.Shares) * float64(s.Variance) }

// Sigma is the multiplier of the Gaussian mechanism that gives away as much: that
// of s, rounded down.
func (s Sum) Sigma() float64 {
	return math.Sqrt(s.rounded()) / float64(s.Sensitivity) * (1 - 1e-14)
}

// rounded is s of the doc comment: 12s² - 12Ss + S = 0, the root near S.
func (s Sum) rounded() float64 {
	t := s.total()
	return (t + math.Sqrt(t*t-t/3)) / 2
}

const tailDeviations = 14

// Slack is what is added for being discrete, for so many steps: to epsilon,
// and to delta, given the epsilon that is claimed.
func (s Sum) Slack(steps int, epsilon float64) (loss, slip float64) {
	small, length, n := s.rounded(), float64(s.Length), float64(steps)
	a := (tailDeviations*math.Sqrt(s.total()) + 1) / small
	rho := a*a/(192*small) + a*a*a*a/128
	eta := 2.1 * math.Exp(-math.Pi*math.Pi*float64(s.Variance))
	tail := 5 * math.Exp(-tailDeviations*tailDeviations/2)
	step := length * (2*rho + 4*tail + float64(s.Shares-1)*(math.Log1p(eta)-math.Log1p(-eta)))
	loss = 2 * n * step
	slip = n * length * tail * math.Exp(n*step) * (1 + math.Exp(epsilon+n*step))
	return loss, slip
}

// Epsilon is the tight account of so many steps with Poisson sampling at the
// rate, by the given accountant of the Gaussian mechanism; PLD is the tight one.
func (s Sum) Epsilon(gaussian Accountant, rate float64, steps int, delta float64) (float64, error) {
	if err := s.Check(); err != nil {
		return 0, err
	}
	run := Run{Sigma: s.Sigma(), Rate: rate, Steps: steps}
	if err := run.check(); err != nil {
		return 0, err
	}
	if err := checkDelta(delta); err != nil {
		return 0, err
	}
	if steps == 0 {
		return 0, nil
	}
	// e^{nκ}·δ' + slip ≤ δ; the slip is taken at an epsilon that is beyond any use
	const useless = 30
	loss, slip := s.Slack(steps, useless)
	if loss > 0.01 || slip > delta/100 {
		return math.Inf(1), nil
	}
	epsilon, err := gaussian.Epsilon(run, (delta-slip)*math.Exp(-loss/2))
	if epsilon += loss; epsilon > useless {
		epsilon = math.Inf(1)
	}
	return epsilon, err
}

// Renyi is the other account, by Rényi divergences of the discrete noise itself.
func (s Sum) Renyi(rate float64, steps int, delta float64) (float64, error) {
	if err := s.Check(); err != nil {
		return 0, err
	}
	// the exact S, not s: nothing is rounded here
	sigma := math.Sqrt(s.total()) / float64(s.Sensitivity) * (1 - 1e-14)
	if err := (Run{Sigma: sigma, Rate: rate, Steps: steps}).check(); err != nil {
		return 0, err
	}
	if err := checkDelta(delta); err != nil || steps == 0 {
		return 0, err
	}
	eta := 2.1 * math.Exp(-math.Pi*math.Pi*float64(s.Variance))
	factor := float64(s.Length) * float64(s.Shares-1) * (math.Log1p(eta) - math.Log1p(-eta))
	moment := func(order float64) float64 {
		if order == 1 {
			return 0
		}
		if rate == 1 {
			return order*(order-1)/(2*sigma*sigma) + (2*order-1)*factor
		}
		return math.Max(0, logMomentInteger(rate, sigma, int(order))) + (2*order-1)*factor
	}
	epsilon := math.Inf(1)
	orders := DefaultOrders()
	slices.Sort(orders)
	for _, order := range orders {
		low := math.Floor(order)
		m := moment(low)
		if part := order - low; part > 0 {
			m += part * (moment(low+1) - m)
		}
		bound := float64(steps)*m/(order-1) + math.Log1p(-1/order) - math.Log(delta*order)/(order-1)
		epsilon = math.Min(epsilon, bound)
	}
	return math.Max(0, epsilon), nil
}
