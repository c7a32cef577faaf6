package guard

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vigie/vigie/engine"
)

// strained opens a guard and returns what it says of one image's inner layers.
func strained(t *testing.T) (*Guard, []float32, [][]float32) {
	t.Helper()
	g := openGuard(t, fittedStatistics(t))
	values := testImages(1, 77).Images[0]
	m, names, err := g.Tapped()
	if err != nil {
		t.Fatal(err)
	}
	session, err := engine.Open(m, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	out, err := session.Run(context.Background(), map[string]engine.Tensor{g.network.Input: engine.Float32(append([]int64{1}, g.network.Shape...), values)})
	if err != nil {
		t.Fatal(err)
	}
	var taps [][]float32
	for _, name := range names {
		values, err := engine.Values[float32](out[name])
		if err != nil {
			t.Fatal(err)
		}
		taps = append(taps, values)
	}
	return g, values, taps
}

func TestTheStrainIsWhatTheFirstLookSays(t *testing.T) {
	g, values, taps := strained(t)
	look, err := g.Run(context.Background(), engine.Float32(g.network.Shape, values))
	if err != nil {
		t.Fatal(err)
	}
	of, _, err := g.measure(context.Background(), look, false)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := g.statistics.surprise(of, false)
	x, err := g.Strain(values, taps, look.class)
	if err != nil {
		t.Fatal(err)
	}
	if got := x.Surprise(); math.Abs(got-want) > 1e-4 {
		t.Errorf("surprise %v, the first look says %v", got, want)
	}
	if len(x.Terms) != len(g.statistics.Taps)+5 {
		t.Errorf("%d terms: %+v", len(x.Terms), x.Terms)
	}
}

// The limit is where the verdict turns, for whichever number of scores and
// promise.
func TestTheLimitIsWhereTheAlarmBegins(t *testing.T) {
	s := fittedStatistics(t)
	for class := range 2 {
		limit := s.Limit(class)
		if p := s.total.pvalue(limit, class); p <= s.FalseAlarms {
			t.Errorf("class %d: at the limit %v the p-value is %v", class, limit, p)
		}
		if p := s.total.pvalue(math.Nextafter(limit, math.Inf(1)), class); p > s.FalseAlarms {
			t.Errorf("class %d: above the limit %v the p-value is %v", class, limit, p)
		}
	}
	if got := limit([]float64{1, 2, 3}, 0.2); !math.IsInf(got, 1) {
		t.Errorf("with too few scores for an alarm the limit is %v", got)
	}
}

// Every term's slope against differences: by the inner layers as they are, by the
// pixels along random directions.
func TestSlopesOfTheStrainAgreeWithDifferences(t *testing.T) {
	g, values, taps := strained(t)
	rng := rand.New(rand.NewPCG(5, 6))
	above := func(values []float32, taps [][]float32, i int) float64 {
		x, err := g.Strain(values, taps, 1)
		if err != nil {
			t.Fatal(err)
		}
		return x.Terms[i].Above
	}
	x, err := g.Strain(values, taps, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i, term := range x.Terms {
		weights := make([]float64, len(x.Terms))
		weights[i] = 1
		byInput, byTaps := x.Slopes(weights)
		pixels := term.Guard == Texture || term.Guard == Perturbation || term.Guard == Patch
		if pixels == !slices.ContainsFunc(byInput, func(v float32) bool { return v != 0 }) {
			t.Errorf("%s: pixels matter: %v", term.Guard, pixels)
		}
		if pixels {
			continue // below, number by number
		}
		misses := 0 // where another reference comes nearest, or the step is long for the curve
		for range 9 {
			want, length := 0.0, 0.0
			up, down := make([][]float32, len(taps)), make([][]float32, len(taps))
			const h = 1e-4
			for k := range taps {
				up[k], down[k] = slices.Clone(taps[k]), slices.Clone(taps[k])
				for j := range taps[k] {
					d := rng.NormFloat64()
					up[k][j] += float32(h * d)
					down[k][j] -= float32(h * d)
					moved := (float64(up[k][j]) - float64(down[k][j])) / (2 * h)
					want += float64(byTaps[k][j]) * moved
					length += float64(byTaps[k][j]) * float64(byTaps[k][j])
				}
			}
			got := (above(values, up, i) - above(values, down, i)) / (2 * h)
			if math.Abs(got-want) > 0.02*math.Sqrt(length) {
				misses++
			}
		}
		if misses > 2 {
			t.Errorf("%s %d: %d of 9 differences are not what the slope says", term.Guard, term.Layer, misses)
		}
	}
}

// The numbers that are no quantiles have exact slopes; quantiles those of the
// order statistic, which over many steps of a few bins agree on average.
func TestSlopesOfWhatIsMeasuredAgreeWithDifferences(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	p := plane{28, 26, make([]float32, 28*26)}
	for i := range p.values {
		y, x := float64(i/26)/28, float64(i%26)/26
		p.values[i] = float32(0.5 + 0.3*math.Sin(5*x+3*y) + 0.04*rng.NormFloat64())
	}
	numbers := func(p plane) []float64 {
		m := p.measure()
		return append(slices.Clone(m.texture), m.peaks...)
	}
	m := p.measure()
	quantile := func(j int) bool {
		switch {
		case j < 49:
			return j%7 != 6
		case j < numbersLocal:
			return (j-49)%2 == 1
		case j >= textureNumbers && j < textureNumbers+21:
			return (j-textureNumbers)%3 != 0
		}
		return false
	}
	moved := func(direction []float64, h float64) plane {
		q := plane{p.rows, p.columns, slices.Clone(p.values)}
		for i, d := range direction {
			q.values[i] += float32(h * d)
		}
		return q
	}
	for j := range textureNumbers + peakNumbers {
		texture, peaks := make([]float64, textureNumbers), make([]float64, peakNumbers)
		if j < textureNumbers {
			texture[j] = 1
		} else {
			peaks[j-textureNumbers] = 1
		}
		slope := p.unmeasure(m, texture, peaks)
		length := 0.0
		for _, v := range slope {
			length += v * v
		}
		if length = math.Sqrt(length); length == 0 {
			t.Errorf("number %d does not depend on the pixels", j)
			continue
		}
		if quantile(j) {
			// Contrast scales every residual and detail, and with them the quantiles.
			want := 0.0
			for i, v := range slope {
				want += v * float64(p.values[i])
			}
			direction := make([]float64, len(slope))
			for i, v := range p.values {
				direction[i] = float64(v)
			}
			const h = 0.3
			got := (numbers(moved(direction, h))[j] - numbers(moved(direction, -h))[j]) / (2 * h)
			if math.Abs(got-want) > 0.2*max(0.3, math.Abs(want)) {
				t.Errorf("number %d: with contrast it changes by %v, its slope says %v", j, got, want)
			}
			together, ours, theirs := 0.0, 0.0, 0.0
			for range 30 { // along directions in which it is likely to move
				want := 0.0
				sense := float64(1 - 2*rng.IntN(2))
				for i := range direction {
					direction[i] = 0.3*rng.NormFloat64() + 4*sense*slope[i]/length
					want += direction[i] * slope[i]
				}
				got := (numbers(moved(direction, 2e-3))[j] - numbers(moved(direction, -2e-3))[j]) / 4e-3
				together, ours, theirs = together+got*want, ours+want*want, theirs+got*got
			}
			if cos := together / math.Sqrt(ours*theirs); !(cos > 0.4) {
				t.Errorf("number %d: slopes and differences have a cosine of %.2f", j, cos)
			}
			continue
		}
		misses := 0 // at kinks
		for range 9 {
			direction, want := make([]float64, len(slope)), 0.0
			for i := range direction {
				direction[i] = rng.NormFloat64()
				want += direction[i] * slope[i]
			}
			const h = 5e-5
			got := (numbers(moved(direction, h))[j] - numbers(moved(direction, -h))[j]) / (2 * h)
			if math.Abs(got-want) > 0.03*length {
				misses++
			}
		}
		if misses > 3 {
			t.Errorf("number %d: %d of 9 differences are not what its slope says", j, misses)
		}
	}
}

func TestWideLayersAreUnfoldedAsTheyWereFolded(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 9))
	x, y := make([]float32, 300), make([]float64, maxChannels)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	for i := range y {
		y[i] = rng.NormFloat64()
	}
	a, b := 0.0, 0.0
	for i, v := range fold(x) {
		a += v * y[i]
	}
	for i, v := range unfold(y, len(x)) {
		b += float64(v) * float64(x[i])
	}
	if math.Abs(a-b) > 1e-4 {
		t.Errorf("⟨fold x, y⟩ = %v, ⟨x, unfold y⟩ = %v", a, b)
	}
}

// The terms of the second look are what it says, and their slopes agree with
// differences, where its own gradient stays as it is.
func TestSlopesOfTheSecondLookAgreeWithDifferences(t *testing.T) {
	g, values, taps := strained(t)
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(9, 6))
	for i := range values { // something to say for every guard
		values[i] += float32(0.1 * rng.NormFloat64())
	}
	measured := func(values []float32) *Strain {
		look, err := g.Run(ctx, engine.Float32(g.network.Shape, values))
		if err != nil {
			t.Fatal(err)
		}
		x, err := g.Strain(values, taps, look.class)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.Second(ctx, values, look.Output); err != nil {
			t.Fatal(err)
		}
		return x
	}
	x := measured(values)
	look, err := g.Run(ctx, engine.Float32(g.network.Shape, values))
	if err != nil {
		t.Fatal(err)
	}
	of, _, err := g.measure(ctx, look, true)
	if err != nil {
		t.Fatal(err)
	}
	for i := x.asked; i < len(x.Terms); i++ {
		name := x.Terms[i].Guard
		want := g.statistics.Tails[kindOf(name)].surprise(of[kindOf(name)]) - g.statistics.Unasked(x.class)
		if math.Abs(x.Terms[i].Above-want) > 1e-4*(1+math.Abs(want)) {
			t.Errorf("%s: %v, the second look says %v", name, x.Terms[i].Above, want)
		}
		// The copy of fewer grey levels moves by jumps: the median is compared alone.
		median := func(x *Strain) { x.more.answers[0] = x.more.output }
		if name == Squeezing {
			median(x)
		}
		weights := make([]float64, len(x.Terms))
		weights[i] = 1
		slope, err := x.SecondSlopes(ctx, weights)
		if err != nil {
			t.Fatal(err)
		}
		value := func(x *Strain) float64 {
			if name != Squeezing {
				return x.Terms[i].Above
			}
			median(x)
			_, most := x.squeezed()
			return math.Log(most+1e-6) / g.statistics.Tails[kindOf(name)].Scale
		}
		length := 0.0
		for _, v := range slope {
			length += float64(v) * float64(v)
		}
		if length = math.Sqrt(length); length == 0 {
			t.Errorf("%s: no slope", name)
			continue
		}
		misses := 0 // where a sign of the gradient, the hottest place or a median changes
		for range 9 {
			up, down, want := slices.Clone(values), slices.Clone(values), 0.0
			for k := range values {
				d := float32(2e-4 * rng.NormFloat64())
				up[k], down[k] = up[k]+d, down[k]-d
				want += float64(slope[k]) * float64(up[k]-down[k])
			}
			got := value(measured(up)) - value(measured(down))
			if math.Abs(got-want) > 0.1*length*4e-4 {
				misses++
			}
		}
		if misses > 3 {
			t.Errorf("%s: %d of 9 differences are not what the slope says (of %v)", name, misses, length)
		}
	}
}
