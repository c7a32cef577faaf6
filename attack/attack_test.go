package attack

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/vigie/vigie/onnx"
)

// A projection must be allowed, as float32 numbers; leave what is allowed where
// it is; and be nearer than any other allowed point.
func TestProjectionsAreTheNearestAllowedPoints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 12).Draw(t, "size")
		norm := rapid.SampledFrom([]Norm{Linf, L2, L1}).Draw(t, "norm")
		eps := rapid.Float64Range(1e-4, 3).Draw(t, "eps")
		b := ball{norm, eps, 0, 1}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		x, y := make([]float32, size), make([]float64, size)
		for i := range x {
			x[i] = rng.Float32()
			if rng.IntN(4) == 0 {
				x[i] = float32(rng.IntN(2)) // at an end of the range
			}
			y[i] = float64(x[i]) + eps*rng.NormFloat64()*2
		}
		wanted := slices.Clone(y)
		out := make([]float32, size)
		b.project(x, y, out)
		if !b.holds(x, out) {
			t.Fatalf("%s: the projection %v of %v around %v is not within %v", norm, out, wanted, x, eps)
		}
		distance := func(p []float32) float64 {
			sum := 0.0
			for i, v := range p {
				sum += (float64(v) - wanted[i]) * (float64(v) - wanted[i])
			}
			return math.Sqrt(sum)
		}
		found := distance(out)
		other := make([]float32, size)
		for range 200 {
			// Random allowed points, and points on the way to the projection.
			share := rng.Float64()
			away := make([]float64, size)
			for i := range away {
				away[i] = float64(x[i]) + share*(float64(out[i])-float64(x[i])) + (1-share)*eps*rng.NormFloat64()
			}
			b.round(x, clampedInto(b, x, away), other)
			if b.holds(x, other) && distance(other) < found-1e-6*(1+eps) {
				t.Fatalf("%s: %v is nearer to %v (%v) than the projection %v (%v)", norm, other, wanted, distance(other), out, found)
			}
		}
		again, same := make([]float64, size), make([]float32, size)
		for i, v := range out {
			again[i] = float64(v)
		}
		b.project(x, again, same)
		for i := range same {
			if math.Abs(float64(same[i]-out[i])) > 1e-6 {
				t.Fatalf("%s: what is allowed, %v, is projected to %v", norm, out, same)
			}
		}
	})
}

// clampedInto brings a point into ball and range by scaling alone.
func clampedInto(b ball, x []float32, y []float64) []float64 {
	out := make([]float64, len(y))
	for i := range y {
		out[i] = min(max(y[i], b.low), b.high)
	}
	p := make([]float32, len(y))
	for i, v := range out {
		p[i] = float32(v)
	}
	if d := b.norm.Distance(x, p); d > b.eps {
		for i := range out {
			out[i] = float64(x[i]) + (out[i]-float64(x[i]))*b.eps/d*(1-1e-6)
		}
	}
	return out
}

// The step that FGSM takes must raise a linear function at least as much as any
// other allowed example.
func TestTheSteepestExampleIsBestForALinearFunction(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 10).Draw(t, "size")
		norm := rapid.SampledFrom([]Norm{Linf, L2, L1}).Draw(t, "norm")
		b := ball{norm, rapid.Float64Range(1e-3, 3).Draw(t, "eps"), 0, 1}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
		x, g := make([]float32, size), make([]float32, size)
		for i := range x {
			x[i] = rng.Float32()
			if rng.IntN(4) > 0 {
				g[i] = float32(rng.NormFloat64())
			}
		}
		y, out, other := make([]float64, size), make([]float32, size), make([]float32, size)
		b.steepest(x, g, y)
		b.project(x, y, out)
		rise := func(p []float32) float64 {
			sum := 0.0
			for i, v := range p {
				sum += float64(g[i]) * (float64(v) - float64(x[i]))
			}
			return sum
		}
		for range 100 {
			for i := range y {
				y[i] = float64(x[i]) + b.eps*rng.NormFloat64() + rng.Float64()*4*float64(g[i])
			}
			b.project(x, y, other)
			if rise(other) > rise(out)+1e-5*(1+b.eps) {
				t.Fatalf("%s: %v rises by %v, the steepest %v by %v", norm, other, rise(other), out, rise(out))
			}
		}
	})
}

// small is a random two-layer network of a few classes over images with curved
// boundaries.
func small(t *testing.T, channels, side, classes int, o NetworkOptions, ends ...func(b *onnx.Builder, z string) string) *Network {
	t.Helper()
	n, err := Open(smallGraph(t, channels, side, classes, ends...), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func smallGraph(t *testing.T, channels, side, classes int, ends ...func(b *onnx.Builder, z string) string) *onnx.Model {
	t.Helper()
	rng := rand.New(rand.NewPCG(9, uint64(classes)))
	draw := func(n int, scale float64) []float32 {
		out := make([]float32, n)
		for i := range out {
			out[i] = float32(scale * rng.NormFloat64())
		}
		return out
	}
	const maps = 6
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "n"}
	x := b.Input("x", onnx.Float, append([]onnx.Dim{batch}, onnx.Fixed(int64(channels), int64(side), int64(side))...)...)
	h := b.Op("Conv", []string{x, b.Weight("k", []int64{maps, int64(channels), 3, 3}, draw(maps*channels*9, 0.5)), b.Weight("c", []int64{maps}, draw(maps, 0.3))}, onnx.IntsAttribute("pads", 1, 1, 1, 1))
	h = b.Op("Flatten", []string{b.Op("Relu", []string{h})}, onnx.IntAttribute("axis", 1))
	wide := maps * side * side
	z := b.Op("Gemm", []string{h, b.Weight("w", []int64{int64(wide), int64(classes)}, draw(wide*classes, 1.0/math.Sqrt(float64(wide)))), b.Weight("b", []int64{int64(classes)}, draw(classes, 0.1))})
	for _, end := range ends {
		z = end(b, z)
	}
	b.Output(z, onnx.Float, batch, onnx.Dim{Value: int64(classes)})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// images are random, labelled by what the target answers.
func images(t *testing.T, target Target, n int, seed uint64) ([]float32, []int) {
	t.Helper()
	d := target.Describe()
	rng := rand.New(rand.NewPCG(seed, 3))
	pixels := make([]float32, n*d.Size())
	for i := range pixels {
		pixels[i] = float32(d.Low + (d.High-d.Low)*rng.Float64())
	}
	a, err := target.Ask(context.Background(), pixels, nil)
	if err != nil {
		t.Fatal(err)
	}
	labels := make([]int, n)
	for i := range labels {
		labels[i] = argmax(a.Logits[i*d.Classes : (i+1)*d.Classes])
	}
	return pixels, labels
}

// quick are few steps of each attack, enough to be seen at work.
func quick(row Row, norm Norm) Options {
	o := Options{Norm: norm, Seed: 7, Steps: min(row.Steps, 12)}
	switch row.Name {
	case Square:
		o.Steps = 60
	case HopSkipJump:
		o.Steps = 2
	case NES:
		o.Steps = 4
	}
	if row.Bounded {
		o.Eps = map[Norm]float64{Linf: 0.08, L2: 0.5, L1: 2, L0: 3}[norm]
	}
	return o
}

// Whatever an attack hands out is within the bound and the range, fools as the
// target itself sees it, leaves untouched what it does not fool, and comes again
// from the same seed.
func TestEveryAttackKeepsItsBoundAndItsSeed(t *testing.T) {
	const count = 6
	for _, classes := range []int{2, 5} {
		n := small(t, 1, 8, classes, NetworkOptions{})
		pixels, labels := images(t, n, count, 1)
		labels[0] = (labels[0] + 1) % classes // one that is answered wrongly
		before := slices.Clone(pixels)
		size := n.Describe().Size()
		for _, row := range Attacks() {
			fooled := 0
			for _, norm := range row.Norms {
				o := quick(row, norm)
				r, err := Run(context.Background(), n, row.Name, pixels, labels, o)
				if err != nil {
					t.Fatal(err)
				}
				b := ball{norm, r.Options.Eps, 0, 1}
				for i, c := range r.Cases {
					x, after := pixels[i*size:(i+1)*size], r.Pixels[i*size:(i+1)*size]
					if !c.Fooled && !slices.Equal(x, after) {
						t.Errorf("%s %s: image %d is not fooled and was changed", row.Name, norm, i)
					}
					if !c.Fooled {
						continue
					}
					fooled++
					if !c.Attacked || !c.Correct {
						t.Errorf("%s %s: image %d is fooled and was not attacked", row.Name, norm, i)
					}
					if !b.holds(x, after) {
						t.Errorf("%s %s: image %d is at %v, the bound is %v, or beyond the range", row.Name, norm, i, norm.Distance(x, after), b.eps)
					}
					a, err := n.Ask(context.Background(), after, nil)
					if err != nil {
						t.Fatal(err)
					}
					if got := argmax(a.Logits); got != c.After || got == c.Label {
						t.Errorf("%s %s: image %d of class %d is said to be %d after and is %d", row.Name, norm, i, c.Label, c.After, got)
					}
					if row.Sized && (c.Place == nil || changed(n.Describe(), x, after) > r.Options.Side*r.Options.Side) {
						t.Errorf("%s: image %d is changed outside its patch", row.Name, i)
					}
				}
				same, err := Run(context.Background(), n, row.Name, pixels, labels, o)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(same.Pixels, r.Pixels) {
					t.Errorf("%s %s: the same seed gave other images", row.Name, norm)
				}
			}
			if fooled == 0 && !row.Shared {
				t.Errorf("%s of %d classes: no image was fooled: the test says nothing of it", row.Name, classes)
			}
		}
		if !slices.Equal(pixels, before) {
			t.Error("an attack wrote into the images given")
		}
	}
}

func TestATargetedAttackReachesItsClassAndLeavesThatClassAlone(t *testing.T) {
	n := small(t, 1, 8, 5, NetworkOptions{})
	pixels, labels := images(t, n, 8, 2)
	class := labels[0]
	for _, name := range []Name{FGSM, PGD, APGDCE, APGDDLR, APGDT, FAB, DeepFool, CW, Square, Patch, Auto} {
		row, err := Find(name)
		if err != nil {
			t.Fatal(err)
		}
		o := quick(row, row.Norms[0])
		if row.Bounded {
			o.Eps = 0.2
		}
		o.Class = &class
		r, err := Run(context.Background(), n, name, pixels, labels, o)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range r.Cases {
			if c.Attacked == (c.Label == class) || c.Fooled && c.After != class {
				t.Errorf("%s: image %d of class %d, aim %d: attacked %v, after %d", name, i, c.Label, class, c.Attacked, c.After)
			}
		}
		if r.Fooled() == 0 {
			t.Errorf("%s: no image reached the class", name)
		}
		if r.Considered() != r.Attacked() || r.RobustAccuracy() != float64(r.Attacked()-r.Fooled())/float64(r.Considered()) {
			t.Errorf("%s: %d considered, %d attacked, %d fooled, robust %v", name, r.Considered(), r.Attacked(), r.Fooled(), r.RobustAccuracy())
		}
	}
}

// guarded is a linear model behind a guard that watches the first half of the
// pixels: it holds an image whose score there is above a limit.
type guarded struct {
	Target
	slope  []float64 // of the guard's score
	weight float64   // of the score in the penalty
	limit  float64
}

func (g guarded) Ask(ctx context.Context, pixels []float32, o *Objective) (Answer, error) {
	a, err := g.Target.Ask(ctx, pixels, o)
	if err != nil {
		return a, err
	}
	size := g.Describe().Size()
	for i := range len(pixels) / size {
		score := 0.0
		for p, s := range g.slope {
			score += s * float64(pixels[i*size+p])
		}
		near := score - g.limit + 0.05 // the penalty begins a little before the limit
		for p, s := range g.slope {
			if o != nil && near > 0 {
				a.Gradient[i*size+p] -= float32(g.weight * weigh(o, i) * s)
			}
		}
		penalty := g.weight * max(0, near)
		if o != nil {
			penalty *= weigh(o, i)
		}
		a.Penalty, a.Held = append(a.Penalty, float32(penalty)), append(a.Held, score > g.limit)
	}
	return a, nil
}

func weigh(o *Objective, i int) float64 {
	if o.Guards == nil {
		return 1
	}
	return float64(o.Guards[i])
}

// An attack that knows the guard must get past it where one that does not is held.
func TestAGuardInTheTargetIsObeyedAndPassed(t *testing.T) {
	const size, eps = 12, 0.2
	n, slope, _, _, _ := drawnLinear(t, 3, 1, size)
	slope = slices.Clone(slope)
	watched, free := slope[:size/2], slope[size/2:]
	// Images of class 0 that the free half alone can turn.
	pixels, labels := make([]float32, 0), []int(nil)
	score, reach := 0.0, 0.0
	for _, s := range watched {
		score += s / 2
		reach += math.Abs(s) * eps
	}
	rng := rand.New(rand.NewPCG(6, 6))
	for len(labels) < 8 {
		x, z, room := make([]float32, size), score-0.2, 0.0
		for i := range x {
			if x[i] = 0.5; i >= size/2 {
				x[i] = float32(0.3 + 0.4*rng.Float64())
				z += slope[i] * float64(x[i])
				room += math.Abs(slope[i]) * eps
			}
		}
		if z < -0.1*room && z > -0.8*room {
			pixels, labels = append(pixels, x...), append(labels, 0)
		}
	}
	if len(free) != size/2 {
		t.Fatal("the halves are not halves")
	}
	limit := score + 0.3*reach
	fooled := func(weight, limit float64, name Name) int {
		target := guarded{n, watched, weight, limit}
		r, err := Run(context.Background(), target, name, pixels, labels, Options{Eps: eps, Seed: 1, Loss: Margin})
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range r.Cases {
			a, err := target.Ask(context.Background(), r.Pixels[i*size:(i+1)*size], nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.Fooled && a.held(0) {
				t.Errorf("%s: image %d is called fooled and is held", name, i)
			}
		}
		return r.Fooled()
	}
	for _, name := range []Name{PGD, APGDDLR, FAB} {
		if got := fooled(0, 1e9, name); got != len(labels) {
			t.Errorf("%s: without a guard %d of %d were fooled", name, got, len(labels))
		}
		if got := fooled(3, limit, name); got != len(labels) {
			t.Errorf("%s: knowing the guard, %d of %d were fooled", name, got, len(labels))
		}
	}
	if got := fooled(0, limit, FGSM); got != 0 {
		t.Errorf("not knowing the guard, %d were fooled in one step", got)
	}
	target := guarded{n, watched, 0, score - 1}
	if _, err := Run(context.Background(), target, PGD, pixels, labels, Options{Eps: eps}); !errors.Is(err, ErrNothing) {
		t.Errorf("images that are held anyway: got error %v, want %v", err, ErrNothing)
	}
}

// noisy answers with noise on its gradients, anew at each Ask.
type noisy struct {
	Target
	rng *rand.Rand
}

func (n noisy) Ask(ctx context.Context, pixels []float32, o *Objective) (Answer, error) {
	a, err := n.Target.Ask(ctx, pixels, o)
	for i := range a.Gradient {
		a.Gradient[i] += float32(n.rng.NormFloat64())
	}
	return a, err
}

func TestAnExpectationAveragesGradients(t *testing.T) {
	plain := small(t, 1, 8, 2, NetworkOptions{})
	pixels, _ := images(t, plain, 2, 5)
	o := &Objective{Weights: []float32{-1, 1, -1, 1}}
	exact, err := plain.Ask(context.Background(), pixels, o)
	if err != nil {
		t.Fatal(err)
	}
	const draws = 400
	mean, err := Expectation(noisy{plain, rand.New(rand.NewPCG(1, 1))}, draws).Ask(context.Background(), pixels, o)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range exact.Gradient {
		if math.Abs(float64(mean.Gradient[i]-v)) > 6/math.Sqrt(draws) {
			t.Fatalf("gradient %d is %v on average, want %v", i, mean.Gradient[i], v)
		}
	}
	if !slices.Equal(mean.Held, exact.Held) || math.Abs(float64(mean.Logits[0]-exact.Logits[0])) > 1e-4 {
		t.Errorf("the mean of equal answers is %v, want %v", mean.Logits[0], exact.Logits[0])
	}
}

// Where a model is so sure that one minus its probability is 0 in float32, every
// loss must still show the way.
func TestAModelThatIsVerySureIsStillClimbed(t *testing.T) {
	n := linear(t, [][]float32{{-400, 300, -200, 100}, {400, -300, 200, -100}}, []float32{0, 0}, NetworkOptions{})
	pixels := []float32{0.6, 0.45, 0.55, 0.5, 0.3, 0.6, 0.4, 0.55}
	for _, loss := range []Loss{CrossEntropy, Margin, DLR} {
		r, err := Run(context.Background(), n, PGD, pixels, []int{1, 0}, Options{Eps: 0.2, Seed: 1, Loss: loss, FromHere: true})
		if err != nil {
			t.Fatal(err)
		}
		if r.Fooled() != 2 || r.Cases[0].Margin < 60 || r.Cases[1].Margin < 60 {
			t.Errorf("%s: %d of 2 fooled, margins %v and %v", loss, r.Fooled(), r.Cases[0].Margin, r.Cases[1].Margin)
		}
	}
}
