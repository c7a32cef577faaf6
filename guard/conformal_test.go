package guard

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The promise: over calibrations of any size and scores of any distribution, at
// most the promised share of new clean scores gets so small a p-value.
func TestTheShareOfFalseAlarmsIsThePromisedOne(t *testing.T) {
	for name, draw := range map[string]func(*rand.Rand) float64{
		"normal":      func(r *rand.Rand) float64 { return r.NormFloat64() },
		"heavy tails": func(r *rand.Rand) float64 { return math.Tan(math.Pi * (r.Float64() - 0.5)) },
		"with ties":   func(r *rand.Rand) float64 { return math.Floor(3 * r.Float64()) },
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			for _, test := range []struct {
				n     int
				level float64
			}{{99, 0.01}, {199, 0.01}, {120, 0.05}, {1000, 0.01}} {
				const trials, each = 1500, 40
				alarms := 0
				for range trials {
					column, class := make([]float64, test.n), make([]int, test.n)
					for i := range column {
						column[i] = draw(rng)
					}
					c := calibrate(column, class, true, 1)
					for range each {
						if c.pvalue(draw(rng), 0) <= test.level {
							alarms++
						}
					}
				}
				rate := float64(alarms) / (trials * each)
				// The mean over calibrations is floor(α(n+1))/(n+1) without ties, less
				// with them; its standard error over so many calibrations is below
				// the deviation of one, sqrt(α/n), over sqrt(trials).
				expected := math.Floor(test.level*float64(test.n+1)+1e-9) / float64(test.n+1)
				slack := 5 * (math.Sqrt(test.level/float64(test.n))/math.Sqrt(trials) + math.Sqrt(test.level/(trials*each)))
				if rate > expected+slack {
					t.Errorf("%d scores: %.4f alarms, at most %.4f are promised", test.n, rate, expected)
				}
				if name != "with ties" && rate < expected-slack {
					t.Errorf("%d scores: %.4f alarms, %.4f are to be expected: the p-values are too large", test.n, rate, expected)
				}
			}
		})
	}
}

// By class, the promise holds for each class by itself, however rare it is.
func TestTheShareHoldsWithinEachClass(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	draw := func() (float64, int) {
		if rng.Float64() < 0.2 {
			return rng.NormFloat64() + 3, 1 // rare, and its scores are higher
		}
		return rng.NormFloat64(), 0
	}
	var alarms, images [2]float64
	for range 400 {
		column, class := make([]float64, 1000), make([]int, 1000)
		for i := range column {
			column[i], class[i] = draw()
		}
		c := calibrate(column, class, true, 99)
		if c.Class[len(c.Class)-1] != 1 {
			t.Fatal("two classes with enough scores each were not told apart")
		}
		for range 200 {
			s, k := draw()
			images[k]++
			if c.pvalue(s, k) <= 0.05 {
				alarms[k]++
			}
		}
	}
	for k := range alarms {
		if rate := alarms[k] / images[k]; math.Abs(rate-0.05) > 0.005 {
			t.Errorf("class %d: %.4f alarms, want 0.05", k, rate)
		}
	}
}

// With too few scores of a class no p-value could be small enough: then classes
// are not told apart, and an alarm stays possible.
func TestAClassWithFewScoresDoesNotSilenceTheAlarm(t *testing.T) {
	column, class := make([]float64, 300), make([]int, 300)
	for i := range column {
		column[i] = float64(i)
		if i%30 == 0 {
			class[i] = 1
		}
	}
	c := calibrate(column, class, true, 99)
	if p := c.pvalue(1e9, 1); p > 0.01 {
		t.Errorf("a score above all others of a rare class has p = %v", p)
	}
	if p := c.pvalue(math.NaN(), 0); p > 0.01 {
		t.Errorf("a score that is no number has p = %v", p)
	}
	if p := c.pvalue(-1, 0); p != 1 {
		t.Errorf("the lowest score has p = %v", p)
	}
}
