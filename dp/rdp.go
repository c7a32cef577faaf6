package dp

import (
	"fmt"
	"math"
)

// RDP is the Rényi accountant.
type RDP struct {
	// Orders at which the Rényi divergence is bounded, each > 1. Nil means
	// DefaultOrders.
	Orders []float64
}

// DefaultOrders returns 1.1, 1.2 … 10.9, 11 … 63, 128, 256, 512 and 1024.
func DefaultOrders() []float64 {
	orders := make([]float64, 0, 160)
	for tenth := 11; tenth < 110; tenth++ {
		orders = append(orders, float64(tenth)/10)
	}
	for order := 11; order < 64; order++ {
		orders = append(orders, float64(order))
	}
	return append(orders, 128, 256, 512, 1024)
}

// Divergence bounds the Rényi divergence of the given order (> 1) of one step
// of the run's mechanism.
func (RDP) Divergence(run Run, order float64) (float64, error) {
	if err := run.check(); err != nil {
		return 0, err
	}
	if !(order > 1) || math.IsInf(order, 0) {
		return 0, fmt.Errorf("dp: Rényi order %v: %w: it must be finite and above 1", order, ErrRun)
	}
	return divergence(run.Rate, run.Sigma, order), nil
}

// Epsilon converts the composed divergences to (epsilon, delta) with
// proposition 12 of Canonne, Kamath and Steinke (2020) and takes the best order.
func (a RDP) Epsilon(run Run, delta float64) (float64, error) {
	return a.Compose([]Run{run}, delta)
}

// Compose is Epsilon of several runs one after the other on the same records.
func (a RDP) Compose(runs []Run, delta float64) (float64, error) {
	epsilon, _, err := a.best(runs, delta)
	return epsilon, err
}

// EpsilonAndOrder is Epsilon, with the order that gave it.
func (a RDP) EpsilonAndOrder(run Run, delta float64) (epsilon, order float64, err error) {
	return a.best([]Run{run}, delta)
}

func (a RDP) best(runs []Run, delta float64) (epsilon, order float64, err error) {
	runs, err = checkAll(runs, delta)
	if err != nil || len(runs) == 0 {
		return 0, 0, err
	}
	orders := a.Orders
	if orders == nil {
		orders = DefaultOrders()
	}
	epsilon = math.Inf(1)
	for _, candidate := range orders {
		if !(candidate > 1) {
			return 0, 0, fmt.Errorf("dp: Rényi order %v: %w: it must be above 1", candidate, ErrRun)
		}
		composed := 0.0
		for _, run := range runs {
			composed += divergence(run.Rate, run.Sigma, candidate) * float64(run.Steps)
		}
		bound := composed + math.Log1p(-1/candidate) - math.Log(delta*candidate)/(candidate-1)
		if bound < epsilon {
			epsilon, order = bound, candidate
		}
	}
	return math.Max(0, epsilon), order, nil
}

// divergence is equation 5 of Mironov et al. for integer orders and their
// section 3.3 for fractional ones.
func divergence(rate, sigma, order float64) float64 {
	if rate == 1 {
		return order / (2 * sigma * sigma)
	}
	var logMoment float64
	if order == math.Trunc(order) {
		logMoment = logMomentInteger(rate, sigma, int(order))
	} else {
		logMoment = logMomentFraction(rate, sigma, order)
	}
	return math.Max(0, logMoment/(order-1))
}

func logMomentInteger(rate, sigma float64, order int) float64 {
	total := math.Inf(-1)
	for k := 0; k <= order; k++ {
		kf := float64(k)
		term := logBinomial(float64(order), kf) + kf*math.Log(rate) +
			float64(order-k)*math.Log1p(-rate) + (kf*kf-kf)/(2*sigma*sigma)
		total = logAdd(total, term)
	}
	return total
}

// logMomentFraction sums the two infinite series of section 3.3 until both
// tails are negligible. Binomial coefficients of a fractional order alternate
// in sign, so positive and negative parts are kept apart.
func logMomentFraction(rate, sigma, order float64) float64 {
	positive, negative := math.Inf(-1), math.Inf(-1)
	split := sigma*sigma*math.Log(1/rate-1) + 0.5
	logCoefficient, sign := 0.0, 1.0
	for i := 0; ; i++ {
		k := float64(i)
		j := order - k
		left := logCoefficient + k*math.Log(rate) + j*math.Log1p(-rate)
		right := logCoefficient + j*math.Log(rate) + k*math.Log1p(-rate)
		left += math.Log(0.5) + logErfc((k-split)/(math.Sqrt2*sigma)) + (k*k-k)/(2*sigma*sigma)
		right += math.Log(0.5) + logErfc((split-j)/(math.Sqrt2*sigma)) + (j*j-j)/(2*sigma*sigma)
		if sign > 0 {
			positive = logAdd(positive, logAdd(left, right))
		} else {
			negative = logAdd(negative, logAdd(left, right))
		}
		if k > order && math.Max(left, right) < -40 || i > 10000 {
			break
		}
		factor := (order - k) / (k + 1)
		if factor < 0 {
			sign = -sign
		}
		logCoefficient += math.Log(math.Abs(factor))
	}
	return positive + math.Log1p(-math.Exp(negative-positive))
}

func logBinomial(n, k float64) float64 {
	a, _ := math.Lgamma(n + 1)
	b, _ := math.Lgamma(k + 1)
	c, _ := math.Lgamma(n - k + 1)
	return a - b - c
}

func logAdd(a, b float64) float64 {
	if a < b {
		a, b = b, a
	}
	if math.IsInf(b, -1) {
		return a
	}
	return a + math.Log1p(math.Exp(b-a))
}

// logErfc is log(erfc(x)), by its asymptotic expansion (Abramowitz and Stegun
// 7.1.23) where erfc itself underflows.
func logErfc(x float64) float64 {
	if x < 25 {
		return math.Log(math.Erfc(x))
	}
	inverse := 1 / (x * x)
	return -x*x - math.Log(x) - 0.5*math.Log(math.Pi) +
		math.Log1p(inverse*(-0.5+inverse*(0.75+inverse*(-1.875+inverse*6.5625))))
}
