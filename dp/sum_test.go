package dp

import (
	"errors"
	"math"
	"testing"
)

// pmf is a distribution on the integers from -len/2 to len/2.
type pmf []float64

func (p pmf) at(x int) float64 {
	if x += len(p) / 2; x < 0 || x >= len(p) {
		return 0
	}
	return p[x]
}

// shares is the distribution of the sum of so many discrete Gaussians, by
// convolution, as far as so many deviations.
func shares(variance uint64, n int, deviations float64) pmf {
	reach := int(deviations * math.Sqrt(float64(variance)*float64(n)))
	one := make(pmf, 2*reach+1)
	for i := range one {
		one[i] = exactly(variance, int64(i-reach))
	}
	sum := one
	for range n - 1 {
		next := make(pmf, 2*reach+1)
		for i := range next {
			for x := -reach; x <= reach; x++ {
				next[i] += one[x+reach] * sum.at(i-reach-x)
			}
		}
		sum = next
	}
	return sum
}

// trueEpsilon is the epsilon that steps really spend, from below: the losses of
// each outcome, without or with the record, are rounded down to a grid and
// composed by convolution; what is left out counts as no loss at all.
func trueEpsilon(without, with []float64, rate float64, steps int, delta float64) float64 {
	const grid = 4e-3
	worst := 0.0
	for _, adding := range []bool{false, true} {
		const reach = 1 << 12 // grid points on either side
		one := make([]float64, 2*reach+1)
		for i, q := range without {
			p := (1-rate)*q + rate*with[i]
			upper, lower := p, q
			if adding {
				upper, lower = q, p
			}
			if upper > 1e-18 && lower > 0 {
				one[reach+int(math.Floor(math.Log(upper/lower)/grid))] += upper
			}
		}
		sum := one
		for range steps - 1 {
			next := make([]float64, 2*reach+1)
			for a, p := range sum {
				for b, q := range one {
					if at := a + b - reach; p > 1e-12 && q > 0 && at >= 0 && at < len(next) {
						next[at] += p * q
					}
				}
			}
			sum = next
		}
		spends := func(epsilon float64) float64 {
			out := 0.0
			for at, p := range sum {
				if l := float64(at-reach) * grid; l > epsilon {
					out += p * -math.Expm1(epsilon-l)
				}
			}
			return out
		}
		low, high := 0.0, 50.0
		for range 50 {
			if middle := (low + high) / 2; spends(middle) > delta {
				low = middle
			} else {
				high = middle
			}
		}
		worst = math.Max(worst, low)
	}
	return worst
}

// plane is the distribution of two numbers' sums, moved by a vector.
func plane(p pmf, dx, dy int) []float64 {
	n := len(p) / 2
	var out []float64
	for x := -n; x <= n; x++ {
		for y := -n; y <= n; y++ {
			out = append(out, p.at(x-dx)*p.at(y-dy))
		}
	}
	return out
}

func line(p pmf, dx int) []float64 {
	n := len(p) / 2
	var out []float64
	for x := -n; x <= n+dx; x++ {
		out = append(out, p.at(x-dx))
	}
	return out
}

// The account is held against what the noise that is really drawn really gives
// away: sums of shares, counted out, one or two numbers, several steps.
func TestTheAccountOfASumIsNeverBelowTheTruthAndNearIt(t *testing.T) {
	for _, c := range []struct {
		sum    Sum
		dx, dy int
		rate   float64
		steps  int
	}{
		{Sum{Sensitivity: 60, Variance: 900, Shares: 5, Length: 1}, 60, 0, 1, 1},
		{Sum{Sensitivity: 60, Variance: 900, Shares: 5, Length: 1}, 60, 0, 0.1, 3},
		{Sum{Sensitivity: 40, Variance: 1200, Shares: 3, Length: 1}, 40, 0, 0.3, 4},
		{Sum{Sensitivity: 30, Variance: 300, Shares: 3, Length: 2}, 18, 24, 0.2, 2},
		{Sum{Sensitivity: 30, Variance: 300, Shares: 3, Length: 2}, 30, 0, 0.2, 2},
	} {
		noise := shares(c.sum.Variance, c.sum.Shares, 9)
		without, with := line(noise, 0), line(noise, c.dx)
		if c.dy == 0 && c.sum.Length == 1 {
			without = append(without, make([]float64, len(with)-len(without))...)
		} else {
			without, with = plane(noise, 0, 0), plane(noise, c.dx, c.dy)
		}
		const delta = 1e-5
		truth := trueEpsilon(without, with, c.rate, c.steps, delta)
		tight, err := c.sum.Epsilon(PLD{}, c.rate, c.steps, delta)
		if err != nil {
			t.Fatal(err)
		}
		renyi, err := c.sum.Renyi(c.rate, c.steps, delta)
		if err != nil {
			t.Fatal(err)
		}
		loss, _ := c.sum.Slack(c.steps, tight)
		t.Logf("%+v moved by (%d, %d), rate %v, %d steps: truth %.4f, tight %.4f (slack %.1e), Rényi %.4f", c.sum, c.dx, c.dy, c.rate, c.steps, truth, tight, loss, renyi)
		if tight < truth || renyi < truth {
			t.Errorf("%+v: claimed %v and %v, really %v", c.sum, tight, renyi, truth)
		}
		// the grid and the slack explain this much
		if room := 4e-3*float64(c.steps) + loss + 0.02; tight > truth+room {
			t.Errorf("%+v: claimed %v, really %v: more than %v apart", c.sum, tight, truth, room)
		}
	}
}

func TestMomentsOfTheDiscreteNoiseAreThoseOfTheGaussianAtWholeOrders(t *testing.T) {
	sum := Sum{Sensitivity: 13, Variance: 40, Shares: 4, Length: 2}
	noise := shares(sum.Variance, sum.Shares, 14)
	without, with := plane(noise, 0, 0), plane(noise, 5, 12)
	for _, rate := range []float64{0.05, 0.4, 1} {
		for _, order := range []int{2, 3, 5} {
			moment := func(reverse bool) float64 {
				out := 0.0
				for i, q := range without {
					p := (1-rate)*q + rate*with[i]
					if reverse {
						p, q = q, p
					}
					if p > 0 && q > 0 {
						out += math.Pow(p, float64(order)) * math.Pow(q, float64(1-order))
					}
				}
				return math.Log(out)
			}
			sigma := math.Sqrt(sum.total()) / 13
			want := logMomentInteger(rate, sigma, order)
			if rate == 1 {
				want = float64(order*(order-1)) / (2 * sigma * sigma)
			}
			if got := moment(false); math.Abs(got-want) > 1e-7*(1+want) {
				t.Errorf("rate %v, order %d: log moment %v, by the formula %v", rate, order, got, want)
			}
			if got := moment(true); got > want*(1+1e-7) {
				t.Errorf("rate %v, order %d: the other way %v, above %v", rate, order, got, want)
			}
		}
	}
}

// Step 2 of the proof, measured: a rounded Gaussian and the discrete one differ by
// the factor that is told, and not by far less, so that the comparison is of the
// right two.
func TestADiscreteGaussianIsARoundedOneButForTheFactor(t *testing.T) {
	for _, variance := range []uint64{60, 400} {
		s := Sum{Sensitivity: 1, Variance: variance, Shares: 1, Length: 1}
		small, total := s.rounded(), s.total()
		if got := 1/small - 1/(12*small*small); math.Abs(got*total-1) > 1e-12 {
			t.Fatalf("s = %v does not solve its equation", small)
		}
		worst := 0.0
		for k := int64(0); float64(k) < 12*math.Sqrt(total); k++ {
			rounded := between(float64(k)-0.5, float64(k)+0.5, 0, math.Sqrt(small))
			worst = math.Max(worst, math.Abs(math.Log(rounded/exactly(variance, k))))
		}
		bound, _ := s.Slack(1, 1)
		if bound /= 2; worst > bound || worst < bound/500 {
			t.Errorf("variance %d: the factor is exp(%.3g), told exp(%.3g)", variance, worst, bound)
		}
		// the Gaussian of variance S itself, uncorrected, is farther away
		plain := 0.0
		for k := int64(0); float64(k) < 12*math.Sqrt(total); k++ {
			rounded := between(float64(k)-0.5, float64(k)+0.5, 0, math.Sqrt(total))
			plain = math.Max(plain, math.Abs(math.Log(rounded/exactly(variance, k))))
		}
		if plain < 10*worst {
			t.Errorf("variance %d: uncorrected %v, corrected %v", variance, plain, worst)
		}
	}
}

func TestAtTheScaleOfAFederationBeingDiscreteCostsNothing(t *testing.T) {
	const sensitivity = 1 << 22
	variance, err := ShareFor(1.3, sensitivity, 8)
	if err != nil {
		t.Fatal(err)
	}
	s := Sum{Sensitivity: sensitivity, Variance: variance, Shares: 8, Length: 40_000}
	if loss, slip := s.Slack(1000, 8); loss > 1e-12 || slip > 1e-20 {
		t.Errorf("slack %v and %v", loss, slip)
	}
	got, err := s.Epsilon(PLD{Interval: 1e-3}, 0.05, 300, 1e-5)
	if err != nil {
		t.Fatal(err)
	}
	want, err := PLD{Interval: 1e-3}.Epsilon(Run{Sigma: 1.3, Rate: 0.05, Steps: 300}, 1e-5)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(got-want) > 1e-9 {
		t.Errorf("epsilon %v, of the Gaussian %v", got, want)
	}
}

func TestASumThatIsNotAccountedForIsRefused(t *testing.T) {
	good := Sum{Sensitivity: 1000, Variance: 1e6, Shares: 3, Length: 10}
	for what, change := range map[string]func(*Sum){
		"no sensitivity": func(s *Sum) { s.Sensitivity = 0 },
		"no shares":      func(s *Sum) { s.Shares = 0 },
		"no numbers":     func(s *Sum) { s.Length = 0 },
		"little noise":   func(s *Sum) { s.Variance = 15 },
	} {
		s := good
		change(&s)
		if _, err := s.Epsilon(PLD{}, 0.1, 1, 1e-5); !errors.Is(err, ErrRun) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := s.Renyi(0.1, 1, 1e-5); !errors.Is(err, ErrRun) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// so coarse that the two noises differ by more than is negligible
	coarse := Sum{Sensitivity: 5, Variance: 20, Shares: 2, Length: 1000}
	if e, err := coarse.Epsilon(PLD{}, 0.1, 1, 1e-5); err != nil || !math.IsInf(e, 1) {
		t.Errorf("a coarse sum is promised %v, %v", e, err)
	}
	if _, err := ShareFor(1, 3, 10); !errors.Is(err, ErrRun) {
		t.Errorf("a share of almost nothing: %v", err)
	}
}
