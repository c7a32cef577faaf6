package dp

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"
)

// seeded is a reader of random bits that repeats: for tests only, and so in a
// test file.
func seeded(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

func draws(t *testing.T, g *Gaussian, n int, deviation float64) []float64 {
	t.Helper()
	out := make([]float32, n)
	if err := g.Perturb(out, make([]float64, n), deviation, 1); err != nil {
		t.Fatal(err)
	}
	wide := make([]float64, n)
	for i, v := range out {
		wide[i] = float64(v)
	}
	return wide
}

func normalBelow(x float64) float64 { return 0.5 * math.Erfc(-x/math.Sqrt2) }

// One million draws against the normal distribution: Kolmogorov and Smirnov's
// distance stays under its 0.1 % point, and every tail that privacy rests on has
// the mass it should.
func TestTheNoiseIsGaussianInItsTailsToo(t *testing.T) {
	const n, deviation = 1 << 20, 3.0
	for name, g := range map[string]*Gaussian{"crypto/rand": NewGaussian(), "a fixed sequence": GaussianFrom(seeded(1))} {
		x := draws(t, g, n, deviation)
		slices.Sort(x)
		worst := 0.0
		for i, v := range x {
			p := normalBelow(v / deviation)
			worst = math.Max(worst, math.Max(math.Abs(p-float64(i)/n), math.Abs(float64(i+1)/n-p)))
		}
		// 1.95/√n is the 0.1 % point; the run on crypto/rand gets the 1e-9 point,
		// so that it does not fail one build in a thousand.
		limit := 1.95
		if name == "crypto/rand" {
			limit = 3.3
		}
		if worst > limit/math.Sqrt(n) {
			t.Errorf("%s: distance to the normal distribution %v", name, worst)
		}
		for _, at := range []float64{1, 2, 3, zigguratTail, 4, 4.5} {
			want := 2 * n * normalBelow(-at)
			got := 0.0
			for _, v := range x {
				if math.Abs(v) > at*deviation {
					got++
				}
			}
			if math.Abs(got-want) > 6*math.Sqrt(want)+1 {
				t.Errorf("%s: %v draws beyond %v deviations, want about %.0f", name, got, at, want)
			}
		}
	}
}

func TestNeighbouringDrawsHaveNothingToDoWithEachOther(t *testing.T) {
	const n = 1 << 19
	x := draws(t, NewGaussian(), n, 1)
	for _, lag := range []int{1, 2, 7, perturbChunk} {
		sum := 0.0
		for i := range n - lag {
			sum += x[i] * x[i+lag]
		}
		if r := sum / float64(n-lag); math.Abs(r) > 6/math.Sqrt(n) {
			t.Errorf("correlation at distance %d is %v", lag, r)
		}
	}
}

func TestWorkersDoNotShareTheirNoise(t *testing.T) {
	x := draws(t, NewGaussian(), 8*perturbChunk, 1)
	seen := map[float64]int{}
	twice := 0
	for _, v := range x {
		if seen[v]++; seen[v] == 2 {
			twice++
		}
	}
	// On a grid of 2^20 to a deviation, some of 131,072 draws fall together by
	// chance (n²·2^-21/(2√π) = 2,300 pairs); repeated streams would be half of all.
	if twice > 4000 {
		t.Errorf("%d values were drawn twice", twice)
	}
}

// The lowest bits are what the floating-point attack reads.
func TestWhatIsReleasedLiesOnTheGrid(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, deviation := range []float64{1e-4, 0.7, 1, 33} {
		grid := gridOf(deviation)
		if steps := deviation / grid; steps < 1<<20 || steps > 1<<21 {
			t.Errorf("a deviation of %v has %v steps of the grid", deviation, steps)
		}
		sum := make([]float64, 1000)
		for i := range sum {
			sum[i] = rng.NormFloat64() * deviation
		}
		out := make([]float32, len(sum))
		if err := NewGaussian().Perturb(out, sum, deviation, 1); err != nil {
			t.Fatal(err)
		}
		for _, v := range out {
			if steps := float64(v) / grid; steps != math.Trunc(steps) {
				t.Fatalf("%v is %v steps of the grid %v", v, steps, grid)
			}
		}
		v, err := NewGaussian().Value(math.Pi, deviation)
		if err != nil {
			t.Fatal(err)
		}
		if steps := v / grid; steps != math.Trunc(steps) {
			t.Errorf("value %v is off the grid", v)
		}
	}
}

func TestEveryCallDrawsNewNoise(t *testing.T) {
	a, b := draws(t, NewGaussian(), 100, 1), draws(t, NewGaussian(), 100, 1)
	if slices.Equal(a, b) {
		t.Error("two calls drew the same noise")
	}
}

func TestNoiseWithoutBitsIsAnError(t *testing.T) {
	for name, bits := range map[string]io.Reader{"ends": bytes.NewReader(make([]byte, 100)), "fails": iotest.ErrReader(errors.New("broken"))} {
		if err := GaussianFrom(bits).Perturb(make([]float32, 1000), make([]float64, 1000), 1, 1); err == nil {
			t.Errorf("a source that %s gave noise", name)
		}
		if _, err := SamplerFrom(bits).Draw(1000, 0.5); err == nil {
			t.Errorf("a source that %s gave a batch", name)
		}
		if _, err := GaussianFrom(bits).Value(1, 1); err == nil {
			t.Errorf("a source that %s gave a value", name)
		}
	}
	for _, deviation := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		if err := NewGaussian().Perturb(make([]float32, 1), make([]float64, 1), deviation, 1); !errors.Is(err, ErrRun) {
			t.Errorf("noise of deviation %v: %v", deviation, err)
		}
		if _, err := NewGaussian().Value(0, deviation); !errors.Is(err, ErrRun) {
			t.Errorf("noise of deviation %v: %v", deviation, err)
		}
	}
	if err := NewGaussian().Perturb(make([]float32, 1), make([]float64, 2), 1, 1); !errors.Is(err, ErrRun) {
		t.Errorf("sums and places disagree: %v", err)
	}
}

func TestBatchesAreDrawnRecordByRecord(t *testing.T) {
	const records, rate, trials = 400, 0.1, 2000
	counts, pairs, size, squares := make([]int, records), 0, 0.0, 0.0
	for range trials {
		batch, err := NewSampler().Draw(records, rate)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSorted(batch) {
			t.Fatal("positions do not rise")
		}
		for _, i := range batch {
			counts[i]++
		}
		if slices.Contains(batch, 3) && slices.Contains(batch, 4) {
			pairs++
		}
		size += float64(len(batch))
		squares += float64(len(batch) * len(batch))
	}
	mean := size / trials
	if want := records * rate; math.Abs(mean-want) > 6*math.Sqrt(want*(1-rate)/trials) {
		t.Errorf("batches hold %v records, want %v", mean, want)
	}
	variance := squares/trials - mean*mean // of the binomial distribution: a shuffled order has none
	if want := records * rate * (1 - rate); math.Abs(variance-want) > 0.25*want {
		t.Errorf("sizes vary by %v, want %v", variance, want)
	}
	for i, n := range counts {
		if math.Abs(float64(n)-trials*rate) > 6*math.Sqrt(trials*rate*(1-rate)) {
			t.Errorf("record %d was drawn %d times of %d", i, n, trials)
		}
	}
	if want := trials * rate * rate; math.Abs(float64(pairs)-want) > 6*math.Sqrt(want) {
		t.Errorf("records 3 and 4 came together %d times, want %v", pairs, want)
	}
	if all, err := NewSampler().Draw(50, 1); err != nil || len(all) != 50 {
		t.Errorf("rate 1 drew %d of 50 (%v)", len(all), err)
	}
	for _, rate := range []float64{0, -1, 1.1, math.NaN()} {
		if _, err := NewSampler().Draw(5, rate); !errors.Is(err, ErrRun) {
			t.Errorf("rate %v: %v", rate, err)
		}
	}
}

// A gradient and a count with the split noise cost what one step with the whole
// multiplier does: both are Gaussian with shifts of 1 and 1/2, so the multiplier
// of the pair is (1/z² + (1/2)²/b²)^-1/2.
func TestTheCountIsPaidFor(t *testing.T) {
	c := Clip{Norm: 1, Quantile: 0.5, Rate: 0.2, CountNoise: 12}
	z, err := c.Split(1.1)
	if err != nil {
		t.Fatal(err)
	}
	if z <= 1.1 {
		t.Errorf("the gradients get noise %v, no more than without a count", z)
	}
	if together := 1 / math.Sqrt(1/(z*z)+0.25/(12*12)); math.Abs(together-1.1) > 1e-12 {
		t.Errorf("gradients and count together are a step of %v", together)
	}
	if _, err := (Clip{Norm: 1, Quantile: 0.5, Rate: 0.2, CountNoise: 0.5}).Split(1.1); !errors.Is(err, ErrRun) {
		t.Errorf("a count that costs more than all was accepted: %v", err)
	}
}

// Norms are log-normal here; the bound must find the quantile from far off.
func TestTheBoundFindsTheQuantile(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for _, start := range []float64{0.01, 100} {
		c := Clip{Norm: start, Quantile: 0.7, Rate: 0.2, CountNoise: 10}
		for range 400 {
			drawn := 180 + rng.IntN(40)
			within := 0
			for range drawn {
				if math.Exp(rng.NormFloat64()) <= c.Norm {
					within++
				}
			}
			if err := c.Move(NewGaussian(), within, drawn, 200); err != nil {
				t.Fatal(err)
			}
		}
		if share := normalBelow(math.Log(c.Norm)); math.Abs(share-0.7) > 0.06 {
			t.Errorf("from %v the bound went to %v, below which lie %.3f of the norms", start, c.Norm, share)
		}
	}
	still := Clip{Norm: 3}
	if err := still.Move(NewGaussian(), 1, 2, 3); err != nil || still.Norm != 3 {
		t.Errorf("a fixed bound moved to %v (%v)", still.Norm, err)
	}
	for _, c := range []Clip{{Norm: 0}, {Norm: math.NaN()}, {Norm: 1, Quantile: 1.5, Rate: 1, CountNoise: 1}, {Norm: 1, Quantile: 0.5}} {
		if err := c.Check(); !errors.Is(err, ErrRun) {
			t.Errorf("%+v accepted", c)
		}
	}
}

func BenchmarkNoise(b *testing.B) {
	sum, out := make([]float64, 1<<20), make([]float32, 1<<20)
	b.SetBytes(1 << 20)
	for b.Loop() {
		if err := NewGaussian().Perturb(out, sum, 1, 1); err != nil {
			b.Fatal(err)
		}
	}
}
