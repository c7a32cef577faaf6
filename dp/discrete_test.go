package dp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/big"
	"testing"
)

// exactly is P(x) of the discrete Gaussian, by summation.
func exactly(variance uint64, x int64) float64 {
	v, total := float64(variance), 1.0
	for k := 1.0; k < 40*math.Sqrt(v); k++ {
		total += 2 * math.Exp(-k*k/(2*v))
	}
	return math.Exp(-float64(x)*float64(x)/(2*v)) / total
}

func discreteDraws(t testing.TB, variance uint64, seed byte, n int) []int64 {
	t.Helper()
	d, err := DiscreteFrom(variance, seeded(seed))
	if err != nil {
		t.Fatal(err)
	}
	out := make([]int64, n)
	if err := d.Draw(out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDrawsHaveTheProbabilitiesOfTheDiscreteGaussian(t *testing.T) {
	const n = 400_000
	for _, variance := range []uint64{16, 100, 1001, 70_000} { // widths 1, 1, 2, 32
		counts := map[int64]float64{}
		for _, x := range discreteDraws(t, variance, 3, n) {
			counts[x]++
		}
		// neighbours are put together until 20 are expected
		chi, cells, want, got := 0.0, 0, 0.0, 0.0
		edge := int64(8 * math.Sqrt(float64(variance)))
		seen := 0.0
		for x := -edge; x <= edge; x++ {
			want += n * exactly(variance, x)
			got += counts[x]
			seen += counts[x]
			if want >= 20 {
				chi += (got - want) * (got - want) / want
				cells, want, got = cells+1, 0, 0
			}
		}
		if n-seen > 0 {
			t.Errorf("variance %d: %v draws beyond 8 deviations", variance, n-seen)
		}
		// χ² of so many cells is normal enough: five deviations
		if free := float64(cells - 1); math.Abs(chi-free) > 5*math.Sqrt(2*free) {
			t.Errorf("variance %d: χ² %.0f of %d cells", variance, chi, cells)
		}
	}
}

func TestLargeDrawsHaveTheMomentsAndTailsOfTheGaussian(t *testing.T) {
	const n = 300_000
	for _, variance := range []uint64{1 << 30, 3<<40 + 7, MaxVariance} {
		deviation := math.Sqrt(float64(variance))
		var m1, m2, m4, beyond float64
		low := [4]float64{}
		for _, x := range discreteDraws(t, variance, 5, n) {
			y := float64(x) / deviation
			m1, m2, m4 = m1+y, m2+y*y, m4+y*y*y*y
			if math.Abs(y) > 3 {
				beyond++
			}
			low[x&3]++
		}
		m1, m2, m4 = m1/n, m2/n, m4/n
		if math.Abs(m1) > 5/math.Sqrt(n) || math.Abs(m2-1) > 5*math.Sqrt(2.0/n) || math.Abs(m4-3) > 5*math.Sqrt(96.0/n) {
			t.Errorf("variance %d: mean %.4f, variance %.4f, fourth moment %.4f", variance, m1, m2, m4)
		}
		if want := 0.0026998 * n; math.Abs(beyond-want) > 5*math.Sqrt(want) {
			t.Errorf("variance %d: %v beyond three deviations, want about %.0f", variance, beyond, want)
		}
		for r, count := range low { // no number is favoured for its last bits
			if math.Abs(count-n/4) > 5*math.Sqrt(n*3.0/16) {
				t.Errorf("variance %d: %v draws are %d modulo 4", variance, count, r)
			}
		}
	}
}

// script is random bits that repeat one word.
func script(word uint64) *bytes.Reader {
	return bytes.NewReader(bytes.Repeat(binary.LittleEndian.AppendUint64(nil, word), 1<<12))
}

// Where floating point cannot decide, the exact comparison does: on both sides of
// every threshold, bit by bit, it says what a hundred more digits say.
func TestAtAThresholdTheExactComparisonDecides(t *testing.T) {
	d, err := NewDiscrete(12345)
	if err != nil {
		t.Fatal(err)
	}
	fine := d.cumulative(512)
	for b := range 20 {
		word := new(big.Int).Rsh(fine[b], 512-64)
		rest := new(big.Int).Rsh(fine[b], 512-128)
		next := rest.And(rest, new(big.Int).SetUint64(math.MaxUint64)).Uint64()
		for _, move := range []int64{-1000, 1000} {
			want := b
			if move > 0 {
				want++
			}
			// the second word is just below or above the threshold's
			s := newStream(script(next + uint64(move)))
			if got := d.blockExactly(s, word.Uint64()); got != want || s.err != nil {
				t.Errorf("threshold %d moved by %d: block %d, %v", b, move, got, s.err)
			}
		}
		// and the fast way agrees two words from it
		if d.upper[b] != word.Uint64() {
			t.Errorf("threshold %d is %d, want %d", b, d.upper[b], word)
		}
	}
	for _, above := range []uint64{1, 77, 5000, 30_000} {
		p := expMinus(new(big.Int).SetUint64(above), d.twice(), 256)
		if got, want := mustFloat(p), math.Exp(-float64(above)/24690); math.Abs(got-want) > 1e-15 {
			t.Errorf("exp(-%d/24690) is %v, want %v", above, got, want)
		}
		scaled, _ := new(big.Float).SetMantExp(p, 96).Int(nil)
		lead := new(big.Int).Rsh(scaled, 64).Uint64()
		next := new(big.Int).And(scaled, new(big.Int).SetUint64(math.MaxUint64)).Uint64()
		for _, move := range []int64{-1000, 1000} {
			s := newStream(script(next + uint64(move)))
			if got := d.acceptExactly(s, lead, above); got != (move < 0) {
				t.Errorf("%d/24690 moved by %d: accepted %v", above, move, got)
			}
		}
	}
}

func mustFloat(f *big.Float) float64 {
	v, _ := f.Float64()
	return v
}

// With the filters' room made wide, nearly every draw is decided exactly; the
// draws are the same as by the fast way.
func TestTheFastWayAndTheExactOneDrawTheSame(t *testing.T) {
	const variance = 5000
	d, err := NewDiscrete(variance)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range byte(60) {
		words := newStream(seeded(seed))
		word := words.next()
		fast := d.first[word>>56]
		for d.upper[fast] < word {
			fast++
		}
		if got := d.blockExactly(newStream(seeded(seed+100)), word); got != fast {
			t.Errorf("word %x: block %d exactly, %d fast", word, got, fast)
		}
		lead, above := words.next()>>32, words.next()>>51
		want := float64(lead) < math.Exp(-float64(above)*d.half)*(1<<32)
		if got := d.acceptExactly(newStream(seeded(seed+100)), lead, above); got != want {
			t.Errorf("lead %x, above %d: accepted %v exactly, %v fast", lead, above, got, want)
		}
	}
}

func TestNoiseIsAddedModuloTheRing(t *testing.T) {
	const n = 3 * perturbChunk
	sum := make([]uint32, n)
	for i := range sum {
		sum[i] = math.MaxUint32 // −1
	}
	d, err := DiscreteFrom(1<<20, seeded(9))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Add(sum); err != nil {
		t.Fatal(err)
	}
	for i, x := range discreteDraws(t, 1<<20, 9, n) {
		if int64(int32(sum[i])) != x-1 {
			t.Fatalf("place %d is %d, want %d", i, int32(sum[i]), x-1)
		}
	}
	fresh, err := NewDiscrete(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	a, b := make([]int64, n), make([]int64, n)
	if fresh.Draw(a) != nil || fresh.Draw(b) != nil {
		t.Fatal("crypto/rand failed")
	}
	same := 0
	for i := range a {
		if a[i] == b[i] {
			same++
		}
	}
	if same > n/100 {
		t.Errorf("two draws agree in %d of %d places", same, n)
	}
}

func TestADiscreteGaussianThatCannotBeDrawnIsRefused(t *testing.T) {
	for _, variance := range []uint64{0, 15, MaxVariance + 1} {
		if _, err := NewDiscrete(variance); !errors.Is(err, ErrRun) {
			t.Errorf("variance %d: %v", variance, err)
		}
	}
	d, err := DiscreteFrom(100, bytes.NewReader(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Draw(make([]int64, 3)); err == nil {
		t.Error("drawn without random bits")
	}
}

func BenchmarkDiscrete(b *testing.B) {
	d, err := NewDiscrete(3 << 40)
	if err != nil {
		b.Fatal(err)
	}
	x := make([]uint32, 1<<13)
	b.SetBytes(1 << 13)
	for b.Loop() {
		if err := d.Add(x); err != nil {
			b.Fatal(err)
		}
	}
}
