package dp

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/dsp/fourier"
)

// PLD is the privacy loss distribution accountant.
type PLD struct {
	// Interval is the grid of the privacy loss, > 0. Zero means 1e-4, widened
	// as needed to keep a composition within MaxPoints. Any interval gives an
	// upper bound; a finer one a tighter bound.
	Interval float64
}

const (
	defaultInterval = 1e-4
	// MaxPoints bounds the grid of a composition (2^22 points, 100 MB).
	MaxPoints = 1 << 22
	// tailMass is the probability that the discretisation may move to an
	// infinite loss, per direction: it is added to delta, never dropped.
	tailMass = 1e-13
)

// coarser is an accountant that is as safe, less tight and about twenty times as
// fast.
func (a PLD) coarser() PLD {
	if a.Interval > 0 {
		return PLD{Interval: 20 * a.Interval}
	}
	return PLD{Interval: 20 * defaultInterval}
}

// Epsilon returns an upper bound of epsilon for delta, accurate for
// delta >= 1e-9. It takes the worse of adding and removing a record.
func (a PLD) Epsilon(run Run, delta float64) (float64, error) {
	return a.Compose([]Run{run}, delta)
}

// Compose is Epsilon of several runs one after the other on the same records.
func (a PLD) Compose(runs []Run, delta float64) (float64, error) {
	runs, err := checkAll(runs, delta)
	if err != nil || len(runs) == 0 {
		return 0, err
	}
	interval := a.Interval
	if !(interval > 0) {
		interval = defaultInterval
	}
	worst := 0.0
	for _, direction := range []lossDirection{removeRecord, addRecord} {
		if direction == addRecord && !slices.ContainsFunc(runs, func(r Run) bool { return r.Rate < 1 }) {
			continue // symmetric without sampling
		}
		worst = math.Max(worst, composedEpsilon(runs, direction, interval, delta))
	}
	return worst, nil
}

type lossDirection int

const (
	removeRecord lossDirection = iota // upper distribution: with the record
	addRecord                         // upper distribution: without it
)

// lossDistribution is a discrete privacy loss: mass[i] at loss
// (lowest+i)*interval, and infinite where nothing is promised.
type lossDistribution struct {
	interval float64
	lowest   int
	mass     []float64
	infinite float64
}

// upperTail is P(N(mean, sigma²) > x).
func upperTail(x, mean, sigma float64) float64 {
	return 0.5 * math.Erfc((x-mean)/(math.Sqrt2*sigma))
}

// between is P(low < N(mean, sigma²) <= high), from the side that loses least
// to rounding.
func between(low, high, mean, sigma float64) float64 {
	if low > mean {
		return upperTail(low, mean, sigma) - upperTail(high, mean, sigma)
	}
	return upperTail(-high, -mean, sigma) - upperTail(-low, -mean, sigma)
}

// stepLoss discretises one step. In the remove direction the likelihood ratio
// at x is (1-q) + q·exp((2x-1)/(2σ²)), rising in x; the add direction is its
// inverse. Between two grid losses the masses of both distributions are moved to
// the two ends so that both totals are kept: that dominates the true loss
// (Doroshenko et al., "connect the dots").
func stepLoss(run Run, direction lossDirection, interval float64) lossDistribution {
	q, sigma := run.Rate, run.Sigma
	lossAt := func(x float64) float64 {
		exponent := (2*x - 1) / (2 * sigma * sigma)
		if q == 1 {
			return exponent
		}
		return logAdd(math.Log1p(-q), math.Log(q)+exponent)
	}
	// xOf inverts lossAt; below log(1-q) there is no x.
	xOf := func(loss float64) float64 {
		if q == 1 {
			return sigma*sigma*loss + 0.5
		}
		ratio := math.Exp(loss) - (1 - q)
		if ratio <= 0 {
			return math.Inf(-1)
		}
		return sigma*sigma*(math.Log(ratio)-math.Log(q)) + 0.5
	}
	// Ten standard deviations beyond either mean leave less than 1e-23.
	reach := 10 * sigma
	lowLoss, highLoss := lossAt(-reach), lossAt(1+reach)
	if direction == addRecord {
		lowLoss, highLoss = -highLoss, -lowLoss
	}
	lowest := int(math.Floor(lowLoss / interval))
	highest := int(math.Ceil(highLoss / interval))
	d := lossDistribution{interval: interval, lowest: lowest, mass: make([]float64, highest-lowest+1)}

	mixture := func(low, high float64) float64 {
		return (1-q)*between(low, high, 0, sigma) + q*between(low, high, 1, sigma)
	}
	plain := func(low, high float64) float64 { return between(low, high, 0, sigma) }
	// bucket gives both masses with losses in (low, high].
	bucket := func(low, high float64) (upper, lower float64) {
		if direction == removeRecord {
			a, b := xOf(low), xOf(high)
			return mixture(a, b), plain(a, b)
		}
		a, b := xOf(-high), xOf(-low)
		return plain(a, b), mixture(a, b)
	}

	// Losses below the grid are rounded up to its lowest point.
	below, _ := bucket(math.Inf(-1), float64(lowest)*interval)
	d.mass[0] += below
	ratioSpan := -math.Expm1(-interval) // (α_high - α_low) / α_high
	for i := 0; i+1 < len(d.mass); i++ {
		low := float64(lowest+i) * interval
		high := low + interval
		upper, lower := bucket(low, high)
		if upper <= 0 {
			continue
		}
		// Lower-distribution mass moved to the high end, times its ratio, is
		// the upper-distribution mass there.
		toHigh := (upper - math.Exp(low)*lower) / ratioSpan
		toHigh = math.Min(upper, math.Max(0, toHigh))
		d.mass[i+1] += toHigh
		d.mass[i] += upper - toHigh
	}
	above, _ := bucket(float64(highest)*interval, math.Inf(1))
	d.infinite = above
	return d
}

// logMoment is log E[exp(λ·loss)] over the finite part.
func (d lossDistribution) logMoment(lambda float64) float64 {
	peak := math.Inf(-1)
	for i, mass := range d.mass {
		if mass > 0 {
			peak = math.Max(peak, lambda*float64(d.lowest+i)*d.interval)
		}
	}
	sum := 0.0
	for i, mass := range d.mass {
		if mass > 0 {
			sum += mass * math.Exp(lambda*float64(d.lowest+i)*d.interval-peak)
		}
	}
	return peak + math.Log(sum)
}

// composition is several steps' losses, each as often as it is repeated.
type composition []struct {
	lossDistribution
	steps int
}

// window bounds, by Chernoff's inequality over a few exponents, where the sum
// of all losses lies but for tailMass at either side.
func (c composition) window() (low, high float64) {
	for _, d := range c {
		n := float64(d.steps)
		low += n * float64(d.lowest) * d.interval
		high += n * float64(d.lowest+len(d.mass)-1) * d.interval
	}
	for exponent := -6.0; exponent <= 9; exponent += 0.5 {
		lambda := math.Exp2(exponent)
		up, down := 0.0, 0.0
		for _, d := range c {
			up += float64(d.steps) * d.logMoment(lambda)
			down += float64(d.steps) * d.logMoment(-lambda)
		}
		high = math.Min(high, (up-math.Log(tailMass))/lambda)
		low = math.Max(low, -(down-math.Log(tailMass))/lambda)
	}
	return low, high
}

// laidOut discretises every run, on the widest grid of interval·2^k that keeps
// the composition within MaxPoints, a power of two.
func laidOut(runs []Run, direction lossDirection, interval float64) (c composition, low float64, points int) {
	for ; ; interval *= 2 {
		// The span of one step's losses is known before it is laid out, so a
		// huge one (tiny sigma) widens the grid instead of the memory.
		span := 0.0
		for _, run := range runs {
			span += (1 + 20*run.Sigma) / (run.Sigma * run.Sigma)
		}
		if span/interval >= MaxPoints {
			continue
		}
		c = make(composition, len(runs))
		longest := 0
		for k, run := range runs {
			c[k].lossDistribution, c[k].steps = stepLoss(run, direction, interval), run.Steps
			longest = max(longest, len(c[k].mass))
		}
		var high float64
		low, high = c.window()
		needed := int((high-low)/interval) + longest + 2
		points = 1
		for points < needed && points <= MaxPoints {
			points *= 2
		}
		if points <= MaxPoints {
			return c, low, points
		}
	}
}

// power is v^n by squaring; of |v| <= 1, so that errors stay below n·2^-52.
func power(v complex128, n int) complex128 {
	p := complex(1, 0)
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			p *= v
		}
		v *= v
	}
	return p
}

// composedEpsilon composes all steps by Fourier transforms.
func composedEpsilon(runs []Run, direction lossDirection, interval, delta float64) float64 {
	c, low, points := laidOut(runs, direction, interval)
	interval = c[0].interval

	// Circular layout: loss index k lives at k mod points.
	at := func(index int) int { return ((index % points) + points) % points }
	values := make([]float64, points)
	transform := fourier.NewFFT(points)
	var coefficients []complex128
	finite := 0.0 // log of the probability that no step's loss is infinite
	for k, step := range c {
		clear(values)
		for i, mass := range step.mass {
			values[at(step.lowest+i)] += mass
		}
		one := transform.Coefficients(nil, values)
		for i, v := range one {
			one[i] = power(v, step.steps)
			if k > 0 {
				one[i] *= coefficients[i]
			}
		}
		coefficients = one
		finite += float64(step.steps) * math.Log1p(-step.infinite)
	}
	transform.Sequence(values, coefficients)

	// What the window cut off (wrapped round by the transform) and the
	// transform's own rounding are added to delta's infinite part.
	rounding := 4 * float64(len(c)) * 0x1p-52 * math.Sqrt(float64(points)) * math.Log2(float64(points))
	infinite := -math.Expm1(finite) + 2*tailMass + rounding
	first := int(math.Floor(low / interval))
	scale := 1 / float64(points)
	if infinite >= delta {
		return math.Inf(1)
	}
	// δ(ε) = infinite + Σ_{l > ε} (1 - e^{ε-l}) p_l: walk down from the top
	// until the next grid loss would exceed delta, then solve in between.
	mass, discounted := 0.0, 0.0 // Σ p_l and Σ p_l·e^{loss-l} over l >= loss
	decay := math.Exp(-interval)
	for i := points - 1; i >= 0; i-- {
		loss := float64(first+i) * interval
		discounted *= decay
		if probability := values[at(first+i)] * scale; probability > 0 {
			mass += probability
			discounted += probability
		}
		if infinite+mass-decay*discounted > delta {
			return math.Max(0, loss+math.Log((infinite+mass-delta)/discounted))
		}
		if loss <= interval {
			return 0
		}
	}
	return 0
}
