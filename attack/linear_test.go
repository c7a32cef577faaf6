package attack

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/vigie/vigie/onnx"
)

// linear is the model logits = W·pixels + b over images of one row, whose nearest
// adversarial example is known in closed form.
func linear(t *testing.T, weights [][]float32, bias []float32, o NetworkOptions) *Network {
	t.Helper()
	n, err := Open(linearGraph(t, weights, bias), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func linearGraph(t *testing.T, weights [][]float32, bias []float32) *onnx.Model {
	t.Helper()
	classes, size := len(weights), len(weights[0])
	flat := make([]float32, size*classes)
	for c, row := range weights {
		for i, v := range row {
			flat[i*classes+c] = v
		}
	}
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: 1}, onnx.Dim{Value: 1}, onnx.Dim{Value: int64(size)})
	y := b.Op("MatMul", []string{b.Op("Flatten", []string{x}, onnx.IntAttribute("axis", 1)), b.Weight("w", []int64{int64(size), int64(classes)}, flat)})
	y = b.Op("Add", []string{y, b.Weight("b", []int64{int64(classes)}, bias)})
	b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: int64(classes)})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// drawnLinear is a random two-class linear model and images that it answers
// rightly, all pixels at least 0.3 from the ends of the range, so that the range
// does not matter for small bounds.
func drawnLinear(t *testing.T, seed uint64, images, size int) (n *Network, slope []float64, pixels []float32, labels []int, margins []float64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	weights := [][]float32{make([]float32, size), make([]float32, size)}
	for i := range size {
		weights[0][i], weights[1][i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
		slope = append(slope, float64(weights[1][i])-float64(weights[0][i]))
	}
	n = linear(t, weights, []float32{0.1, -0.1}, NetworkOptions{})
	for range images {
		z := -0.2
		for i := range size {
			v := float32(0.3 + 0.4*rng.Float64())
			pixels = append(pixels, v)
			z += slope[i] * float64(v)
		}
		label := 0
		if z > 0 {
			label = 1
		}
		labels, margins = append(labels, label), append(margins, math.Abs(z))
	}
	return n, slope, pixels, labels, margins
}

// dual is the norm by which a bound on the perturbation limits a linear answer.
func dual(norm Norm, slope []float64) float64 {
	sum := 0.0
	for _, v := range slope {
		switch norm {
		case Linf:
			sum += math.Abs(v)
		case L2:
			sum += v * v
		case L1:
			sum = max(sum, math.Abs(v))
		}
	}
	if norm == L2 {
		return math.Sqrt(sum)
	}
	return sum
}

// Of a linear model an image can be turned exactly where its margin is below
// eps times the dual norm of the slope; every gradient attack must find that.
func TestGradientAttacksAreExactOnALinearModel(t *testing.T) {
	const images, size = 60, 12
	n, slope, pixels, labels, margins := drawnLinear(t, 3, images, size)
	for _, row := range Attacks() {
		if !row.Bounded || row.Name == Universal {
			continue
		}
		for _, norm := range row.Norms {
			if norm == L0 {
				continue
			}
			limit := dual(norm, slope)
			eps := 0.0 // at which half of the images can be turned
			for _, m := range margins {
				eps += m / limit / images
			}
			eps = min(eps, 0.29)
			r, err := Run(context.Background(), n, row.Name, pixels, labels, Options{Norm: norm, Eps: eps, Seed: 1})
			if err != nil {
				t.Fatal(err)
			}
			b := ball{norm, eps, 0, 1}
			possible := 0
			for i, c := range r.Cases {
				reach := eps * limit / margins[i]
				if reach > 1 {
					possible++
				}
				if c.Fooled != (reach > 1) && math.Abs(reach-1) > tolerated(row.Name, norm) {
					t.Errorf("%s %s: image %d fooled %v, but eps reaches %.4f of its margin", row.Name, norm, i, c.Fooled, reach)
				}
				if !b.holds(pixels[i*size:(i+1)*size], r.Pixels[i*size:(i+1)*size]) {
					t.Errorf("%s %s: image %d is outside the bound or the range", row.Name, norm, i)
				}
			}
			if possible < 5 || possible > images-5 {
				t.Errorf("%s: %d of %d images can be turned: the test says nothing", norm, possible, images)
			}
		}
	}
}

// tolerated is how near to the limit an attack may fail: nothing but float
// rounding where it is exact in one step, a little where it walks.
func tolerated(name Name, norm Norm) float64 {
	switch {
	case name == FGSM:
		return 1e-4
	case name == Square && norm == L2: // it adds bumps of one shape
		return 0.15
	}
	return 0.02
}

func TestWhatCannotBeAttackedIsAnErrorThatNamesIt(t *testing.T) {
	n, _, pixels, labels, _ := drawnLinear(t, 5, 4, 12)
	nan := append([]float32{}, pixels...)
	nan[3] = float32(math.NaN())
	wrong := make([]int, len(labels))
	for i, l := range labels {
		wrong[i] = 1 - l
	}
	bad := 7
	for what, c := range map[string]struct {
		pixels []float32
		labels []int
		o      Options
		want   error
	}{
		"a pixel that is no number":  {nan, labels, Options{Eps: 0.1}, ErrAsk},
		"half an image":              {pixels[:18], labels, Options{Eps: 0.1}, ErrAsk},
		"no image":                   {nil, nil, Options{Eps: 0.1}, ErrAsk},
		"a missing label":            {pixels, labels[:3], Options{Eps: 0.1}, ErrAsk},
		"a class that is not there":  {pixels, []int{0, 1, 2, 0}, Options{Eps: 0.1}, ErrAsk},
		"no bound":                   {pixels, labels, Options{}, ErrAsk},
		"a bound below zero":         {pixels, labels, Options{Eps: -1}, ErrAsk},
		"a bound that is no number":  {pixels, labels, Options{Eps: math.NaN()}, ErrAsk},
		"a norm of another attack":   {pixels, labels, Options{Norm: L0, Eps: 3}, ErrAsk},
		"an aim that is not there":   {pixels, labels, Options{Eps: 0.1, Class: &bad}, ErrAsk},
		"a loss that is not there":   {pixels, labels, Options{Eps: 0.1, Loss: "hinge"}, ErrAsk},
		"nothing answered rightly":   {pixels, wrong, Options{Eps: 0.1}, ErrNothing},
		"a step size without a sign": {pixels, labels, Options{Eps: 0.1, StepSize: math.Inf(1)}, ErrAsk},
	} {
		if _, err := Run(context.Background(), n, PGD, c.pixels, c.labels, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: got error %v, want %v", what, err, c.want)
		}
	}
	if _, err := Run(context.Background(), n, "pgdd", pixels, labels, Options{Eps: 0.1}); err == nil {
		t.Error("an attack that does not exist ran")
	}
}

func TestAConstantImageIsAttackedLikeAnother(t *testing.T) {
	n := linear(t, [][]float32{{1, 1, 1, 1}, {0, 0, 0, 0}}, []float32{0, 0.1}, NetworkOptions{})
	for _, v := range []float32{0, 0.5, 1} {
		pixels := []float32{v, v, v, v}
		label := 0
		if v == 0 {
			label = 1
		}
		r, err := Run(context.Background(), n, PGD, pixels, []int{label}, Options{Eps: 0.6, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		if want := v < 1; r.Cases[0].Fooled != want {
			t.Errorf("an image of %v: fooled %v, want %v", v, r.Cases[0].Fooled, want)
		}
	}
}

// What looks for the nearest adversarial example must find, on a linear model,
// the distance that is known: margin over dual norm.
func TestTheNearestExampleOfALinearModelIsFound(t *testing.T) {
	const images, size = 12, 12
	n, slope, pixels, labels, margins := drawnLinear(t, 4, images, size)
	for _, c := range []struct {
		name Name
		over float64 // how much further than the nearest it may be
		o    Options
	}{{DeepFool, 0.03, Options{}}, {FAB, 0.01, Options{Steps: 30}}, {CW, 0.08, Options{Steps: 200}}, {HopSkipJump, 0.35, Options{}}} {
		row, err := Find(c.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, norm := range row.Norms {
			c.o.Norm, c.o.Seed = norm, 1
			r, err := Run(context.Background(), n, c.name, pixels, labels, c.o)
			if err != nil {
				t.Fatal(err)
			}
			for i, found := range r.Cases {
				nearest := margins[i] / dual(norm, slope)
				if nearest > 0.29 && norm != L2 {
					continue // the range cuts it off
				}
				if !found.Fooled {
					t.Errorf("%s %s: image %d is not fooled", c.name, norm, i)
				} else if over := found.Distance[norm]/nearest - 1; over > c.over || over < -1e-4 {
					t.Errorf("%s %s: image %d at %.5f, the nearest is at %.5f", c.name, norm, i, found.Distance[norm], nearest)
				}
			}
		}
	}
}

// Towards one class the same perturbation is best for every image of a linear
// model: the universal one must then do as much as one for each.
func TestAUniversalPerturbationIsBestForEveryImageOfALinearModel(t *testing.T) {
	const images, size = 60, 12
	n, slope, pixels, labels, margins := drawnLinear(t, 3, images, size)
	class := 1
	for _, norm := range []Norm{Linf, L2} {
		eps := min(0.29, margins[0]*1.5/dual(norm, slope))
		r, err := Run(context.Background(), n, Universal, pixels, labels, Options{Norm: norm, Eps: eps, Class: &class, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		if zeros := r.count(func(c Case) bool { return c.Label == 0 }); r.Made != zeros/2 || r.Attacked() != zeros-zeros/2 || r.Considered() != r.Attacked() {
			t.Errorf("%s: made of %d and judged on %d of %d", norm, r.Made, r.Attacked(), zeros)
		}
		var shared []float32
		for i, c := range r.Cases {
			if (c.Attacked || c.Made) != (labels[i] == 0) || c.Attacked && c.Made || c.Made && c.Fooled {
				t.Errorf("image %d of class %d: attacked %v, made of %v, fooled %v", i, labels[i], c.Attacked, c.Made, c.Fooled)
			}
			reach := eps * dual(norm, slope) / margins[i]
			if c.Attacked && c.Fooled != (reach > 1) && math.Abs(reach-1) > 0.02 {
				t.Errorf("%s: image %d fooled %v, but eps reaches %.4f of its margin", norm, i, c.Fooled, reach)
			}
			if !c.Fooled {
				continue
			}
			var delta []float32
			for p := range size {
				delta = append(delta, r.Pixels[i*size+p]-pixels[i*size+p])
			}
			if shared == nil {
				shared = delta
			}
			for p, v := range delta {
				if math.Abs(float64(v-shared[p])) > 1e-6 {
					t.Fatalf("%s: image %d has a perturbation of its own", norm, i)
				}
			}
		}
	}
}

// Where one place and one content is best for every image of a linear model, the
// shared patch must find it, and do to images that it never saw what it can.
func TestAUniversalPatchFindsTheBestPlaceOfALinearModel(t *testing.T) {
	const rows, columns, count = 9, 10, 40
	rng := rand.New(rand.NewPCG(8, 1))
	weights := [][]float32{make([]float32, rows*columns), make([]float32, rows*columns)}
	for i := range weights[0] {
		weights[1][i] = float32(0.3 * rng.NormFloat64())
	}
	for _, at := range []int{35, 36, 37, 45, 46, 47, 55, 56, 57} { // row 3, column 5
		weights[1][at] = float32(2 * (1 - 2*rng.IntN(2)))
	}
	middle := float32(0) // of the answers to grey images
	for _, w := range weights[1] {
		middle += w / 2
	}
	var n *Network
	for _, printable := range []*[2]float64{nil, {0.2, 0.9}} {
		// Class 0 leads by what a patch gains at the best place, more or less.
		low, high, lead := 0.0, 1.0, 9.0
		if printable != nil {
			low, high, lead = printable[0], printable[1], 6.3
		}
		n = linear(t, weights, []float32{middle + float32(lead), 0}, NetworkOptions{})
		n.about.Shape = []int64{1, rows, columns}
		var pixels []float32
		var labels []int
		reach := []bool{}
		for range count {
			x, z, gain := make([]float32, rows*columns), -float64(middle)-lead, 0.0
			for i := range x {
				x[i] = float32(0.2 + 0.6*rng.Float64())
				w := float64(weights[1][i])
				z += w * float64(x[i])
				if r, c := i/columns, i%columns; r >= 3 && r < 6 && c >= 5 && c < 8 {
					gain += max(w*(low-float64(x[i])), w*(high-float64(x[i])))
				}
			}
			if z >= 0 {
				continue
			}
			pixels, labels, reach = append(pixels, x...), append(labels, 0), append(reach, z+gain > 0)
		}
		class := 1
		r, err := Run(context.Background(), n, UniversalPatch, pixels, labels, Options{Class: &class, Seed: 2, Printable: printable, Steps: 20})
		if err != nil {
			t.Fatal(err)
		}
		if r.Fooled() < 3 || r.Attacked()-r.Fooled() < 3 {
			t.Errorf("%d of %d images are fooled: the test says nothing", r.Fooled(), r.Attacked())
		}
		for i, c := range r.Cases {
			if c.Attacked && c.Fooled != reach[i] {
				t.Errorf("image %d: fooled %v, the best patch fools it: %v", i, c.Fooled, reach[i])
			}
			if c.Fooled && *c.Place != (Place{3, 5, 3}) {
				t.Errorf("image %d: patch at %+v", i, *c.Place)
			}
			for p := range rows * columns {
				if v := r.Pixels[i*rows*columns+p]; v != pixels[i*rows*columns+p] && (float64(v) < low-1e-6 || float64(v) > high+1e-6) {
					t.Fatalf("image %d: a pixel of %v, printable are %v to %v", i, v, low, high)
				}
			}
		}
	}
	for _, bad := range []Options{{Printable: &[2]float64{0.5, 0.5}}, {Printable: &[2]float64{0, 1.5}}} {
		if _, err := Run(context.Background(), n, Patch, make([]float32, rows*columns), []int{0}, bad); !errors.Is(err, ErrAsk) {
			t.Errorf("printable %v: got %v", *bad.Printable, err)
		}
	}
	if _, err := Run(context.Background(), n, PGD, make([]float32, rows*columns), []int{0}, Options{Eps: 0.1, Printable: &[2]float64{0, 0.5}}); !errors.Is(err, ErrAsk) {
		t.Errorf("a printable range of no patch: got %v", err)
	}
}
