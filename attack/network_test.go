package attack

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// The gradient of every objective must be what differences of it say.
func TestGradientsAgreeWithDifferences(t *testing.T) {
	for _, classes := range []int{2, 5} {
		n := small(t, 1, 6, classes, NetworkOptions{})
		pixels, labels := images(t, n, 5, 8)
		size := n.Describe().Size()
		k := &task{target: n, about: n.Describe(), size: size}
		for _, loss := range []Loss{CrossEntropy, Margin, DLR} {
			for _, aim := range []int{-1, 0} {
				var goals []goal
				for _, l := range labels {
					g := goal{l, aim}
					if aim >= 0 {
						g.class = (l + 1) % classes
					}
					goals = append(goals, g)
				}
				a, _, err := k.climb(context.Background(), pixels, goals, loss)
				if err != nil {
					t.Fatal(err)
				}
				rng := rand.New(rand.NewPCG(1, 1))
				for range 12 {
					i, p := rng.IntN(len(labels)), rng.IntN(size)
					const h = 1e-3
					var side [2]float64
					for s, d := range []float32{h, -h} {
						moved := slices.Clone(pixels)
						moved[i*size+p] += d
						answer, err := n.Ask(context.Background(), moved, nil)
						if err != nil {
							t.Fatal(err)
						}
						side[s] = loss.value(answer.Logits[i*classes:(i+1)*classes], goals[i])
					}
					want, got := (side[0]-side[1])/(2*h), float64(a.Gradient[i*size+p])
					if math.Abs(got-want) > 0.01+0.03*math.Abs(want) {
						t.Errorf("%d classes, %s, aim %d: slope %v by pixel %d, differences say %v", classes, loss, aim, got, p, want)
					}
				}
			}
		}
	}
}

// A graph that ends in probabilities is attacked below its last Softmax or
// Sigmoid, where the slope does not vanish, and answers the same classes.
func TestLogitsAreFoundBelowTheLastActivation(t *testing.T) {
	plain := small(t, 1, 6, 3, NetworkOptions{})
	pixels, labels := images(t, plain, 20, 9)
	want, err := plain.Ask(context.Background(), pixels, nil)
	if err != nil {
		t.Fatal(err)
	}
	softmax := func(b *onnx.Builder, z string) string {
		return b.Op("Softmax", []string{z}, onnx.IntAttribute("axis", 1))
	}
	ends := map[string]struct {
		end   []func(*onnx.Builder, string) string
		exact bool // the logits themselves come back
		o     NetworkOptions
	}{
		"softmax":              {[]func(*onnx.Builder, string) string{softmax}, true, NetworkOptions{}},
		"softmax and identity": {[]func(*onnx.Builder, string) string{softmax, func(b *onnx.Builder, z string) string { return b.Op("Identity", []string{z}) }}, true, NetworkOptions{}},
		"sigmoid":              {[]func(*onnx.Builder, string) string{func(b *onnx.Builder, z string) string { return b.Op("Sigmoid", []string{z}) }}, true, NetworkOptions{}},
		"log-softmax": {[]func(*onnx.Builder, string) string{func(b *onnx.Builder, z string) string {
			return b.Op("LogSoftmax", []string{z}, onnx.IntAttribute("axis", 1))
		}}, true, NetworkOptions{}},
		"probabilities by hand": {[]func(*onnx.Builder, string) string{func(b *onnx.Builder, z string) string {
			e := b.Op("Exp", []string{z})
			return b.Op("Div", []string{e, b.Op("ReduceSum", []string{e, b.Ints("axes", 1)}, onnx.IntAttribute("keepdims", 1))})
		}}, false, NetworkOptions{Probabilities: true}},
	}
	for name, c := range ends {
		n := small(t, 1, 6, 3, c.o, c.end...)
		got, err := n.Ask(context.Background(), pixels, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range labels {
			a, b := got.Logits[i*3:(i+1)*3], want.Logits[i*3:(i+1)*3]
			shift := float32(0) // log-probabilities differ from logits by a number
			if !c.exact {
				shift = a[0] - b[0]
			}
			for j := range a {
				if math.Abs(float64(a[j]-b[j]-shift)) > 1e-4 {
					t.Fatalf("%s: logits %v, want %v", name, a, b)
				}
			}
		}
		if len(n.Notes()) == 0 {
			t.Errorf("%s: nothing says that the output was not taken as it is", name)
		}
	}
}

// A single output is class 1 where it is positive (a probability: above one half).
func TestASingleOutputTellsTwoClassesApart(t *testing.T) {
	weights := []float32{1, -2, 0.5, 1}
	for _, sigmoid := range []bool{false, true} {
		b := onnx.NewBuilder(17)
		batch := onnx.Dim{Value: -1, Param: "n"}
		x := b.Input("x", onnx.Float, batch, onnx.Dim{Value: 1}, onnx.Dim{Value: 2}, onnx.Dim{Value: 2})
		z := b.Op("MatMul", []string{b.Op("Flatten", []string{x}, onnx.IntAttribute("axis", 1)), b.Weight("w", []int64{4, 1}, weights)})
		if sigmoid {
			z = b.Op("Sigmoid", []string{z})
		}
		b.Output(z, onnx.Float, batch, onnx.Dim{Value: 1})
		m, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		n, err := Open(m, NetworkOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		pixels := []float32{0.9, 0.1, 0.2, 0.3, 0.1, 0.8, 0.3, 0.2}
		a, err := n.Ask(context.Background(), pixels, &Objective{Weights: []float32{-1, 1, 1, -1}})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []float64{0.9 - 0.2 + 0.1 + 0.3, 0.1 - 1.6 + 0.15 + 0.2} {
			if a.Logits[2*i] != 0 || math.Abs(float64(a.Logits[2*i+1])-want) > 1e-5 {
				t.Errorf("sigmoid %v: logits %v, want 0 and %v", sigmoid, a.Logits[2*i:2*i+2], want)
			}
			for p, w := range weights {
				if i == 1 {
					w = -w
				}
				if math.Abs(float64(a.Gradient[4*i+p]-w)) > 1e-5 {
					t.Errorf("sigmoid %v: slope %v, want %v", sigmoid, a.Gradient[4*i:4*i+4], w)
				}
			}
		}
	}
}

// What a package does to an image is in the graph: window, area average,
// orientation, range, normalisation, layout, as model.Manifest.Prepare has it.
func TestAPackagesPreparationIsDifferentiated(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 1))
	for _, c := range []struct {
		rows, columns  int // of the image
		aspect, layout string
		photometric    string
		channels       int
	}{
		{8, 8, model.Stretch, "NCHW", model.Bright, 1}, {20, 13, model.Stretch, "NCHW", model.Inverted, 1},
		{21, 16, model.CentreCrop, "NHWC", model.Bright, 3}, {9, 30, model.Pad, "NCHW", model.Inverted, 3}, {5, 7, model.Pad, "NHWC", model.Bright, 1},
	} {
		in := model.Input{Name: "image", Layout: c.layout, Rows: 8, Columns: 8, Channels: c.channels, Aspect: c.aspect, Interpolation: model.Area,
			Photometric: c.photometric, Range: model.Range{Low: -1, High: 2}}
		for range c.channels {
			in.Mean, in.Std = append(in.Mean, rng.Float64()), append(in.Std, 0.5+rng.Float64())
		}
		manifest := &model.Manifest{Input: in, Output: model.Output{Name: "out"}}
		// The model gives back its input, so that logits are the prepared pixels.
		b := onnx.NewBuilder(17)
		shape := in.Shape(1)
		x := b.Input("image", onnx.Float, append([]onnx.Dim{{Value: -1, Param: "n"}}, onnx.Fixed(shape[1:]...)...)...)
		b.Node(&onnx.Node{OpType: "Flatten", Inputs: []string{x}, Outputs: []string{"out"}, Attributes: []onnx.Attribute{onnx.IntAttribute("axis", 1)}}, 1)
		b.Output("out", onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: int64(64 * c.channels)})
		m, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		n, err := Open(m, NetworkOptions{Manifest: manifest, Shape: []int64{1, int64(c.rows), int64(c.columns)}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		pixels := make([]float32, c.rows*c.columns)
		for i := range pixels {
			pixels[i] = rng.Float32()
		}
		a, err := n.Ask(context.Background(), pixels, nil)
		if err != nil {
			t.Fatal(err)
		}
		prepared, err := manifest.Prepare(&dicom.Luminance{Rows: c.rows, Columns: c.columns, Values: pixels})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range prepared.Data.([]float32) {
			if math.Abs(float64(a.Logits[i]-want)) > 1e-5 {
				t.Fatalf("%+v: element %d is %v in the graph and %v in the package", c, i, a.Logits[i], want)
			}
		}
	}
}

func TestABareGraphGetsImagesAsItWantsThem(t *testing.T) {
	build := func(shape ...int64) *onnx.Model {
		b := onnx.NewBuilder(17)
		x := b.Input("x", onnx.Float, append([]onnx.Dim{{Value: -1, Param: "n"}}, onnx.Fixed(shape...)...)...)
		y := b.Op("Flatten", []string{x}, onnx.IntAttribute("axis", 1))
		size := int64(1)
		for _, d := range shape {
			size *= d
		}
		b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: size})
		m, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	grey := []float32{0.1, 0.2, 0.3, 0.4}
	for name, c := range map[string]struct {
		m    *onnx.Model
		o    NetworkOptions
		want []float32
	}{
		"as it is":          {build(1, 2, 2), NetworkOptions{}, grey},
		"in three channels": {build(3, 2, 2), NetworkOptions{Shape: []int64{1, 2, 2}}, slices.Concat(grey, grey, grey)},
		"channels last":     {build(2, 2, 1), NetworkOptions{Shape: []int64{1, 2, 2}}, grey},
		"in a row":          {build(4), NetworkOptions{Shape: []int64{1, 2, 2}}, grey},
		"normalised":        {build(1, 2, 2), NetworkOptions{Mean: []float64{0.1}, Std: []float64{0.1}}, []float32{0, 1, 2, 3}},
		"three, normalised": {build(3, 2, 2), NetworkOptions{Shape: []int64{1, 2, 2}, Mean: []float64{0, 0.1, 0}, Std: []float64{0.1}}, []float32{1, 2, 3, 4, 0, 1, 2, 3, 1, 2, 3, 4}},
		"three, last":       {build(2, 2, 3), NetworkOptions{Shape: []int64{1, 2, 2}}, []float32{0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.4, 0.4, 0.4}},
	} {
		n, err := Open(c.m, c.o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer n.Close()
		a, err := n.Ask(context.Background(), grey, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range c.want {
			if math.Abs(float64(a.Logits[i]-want)) > 1e-5 {
				t.Errorf("%s: %v, want %v", name, a.Logits, c.want)
				break
			}
		}
	}
	for name, c := range map[string]struct {
		m *onnx.Model
		o NetworkOptions
	}{
		"another size":        {build(1, 3, 3), NetworkOptions{Shape: []int64{1, 2, 2}}},
		"too many channels":   {build(1, 2, 2), NetworkOptions{Shape: []int64{3, 2, 2}}},
		"no range":            {build(1, 2, 2), NetworkOptions{Low: 1, High: 1}},
		"a deviation of zero": {build(1, 2, 2), NetworkOptions{Std: []float64{0}}},
		"means for others":    {build(3, 2, 2), NetworkOptions{Mean: []float64{1, 2}}},
		"no such output":      {build(1, 2, 2), NetworkOptions{Output: "y"}},
	} {
		if n, err := Open(c.m, c.o); !errors.Is(err, ErrAsk) {
			t.Errorf("%s: got error %v, want %v", name, err, ErrAsk)
			if err == nil {
				n.Close()
			}
		}
	}
}

// A graph that takes only one size of batch, and any number of images, agree.
func TestABatchOfFixedSizeIsFilledUp(t *testing.T) {
	free := small(t, 1, 6, 3, NetworkOptions{})
	m := smallGraph(t, 1, 6, 3)
	m.Graph.Inputs[0].Shape[0] = onnx.Dim{Value: 4}
	m.Graph.Outputs[0].Shape[0] = onnx.Dim{Value: 4}
	fixed, err := Open(m, NetworkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pixels, _ := images(t, free, 7, 3)
	o := &Objective{Weights: make([]float32, 7*3), LogSumExp: slices.Repeat([]float32{1}, 7)}
	a, err := free.Ask(context.Background(), pixels, o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := fixed.Ask(context.Background(), pixels, o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range a.Gradient {
		if math.Abs(float64(a.Gradient[i]-b.Gradient[i])) > 1e-5 {
			t.Fatalf("gradient %d is %v and %v", i, a.Gradient[i], b.Gradient[i])
		}
	}
	if err := fixed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := fixed.Ask(context.Background(), pixels, nil); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("a closed target answers: %v", err)
	}
}

func TestAnAttackStopsWhenItIsTold(t *testing.T) {
	n := small(t, 1, 8, 2, NetworkOptions{})
	pixels, labels := images(t, n, 4, 1)
	ctx, stop := context.WithCancel(context.Background())
	o := Options{Eps: 1e-6, Steps: 1 << 20, Progress: func(float64) { stop() }}
	if _, err := Run(ctx, n, PGD, pixels, labels, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

// A graph without gradients can still be attacked by its scores and answers, and
// is refused at once for everything else.
func TestAGraphWithoutGradientsIsAttackedBlindly(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, append([]onnx.Dim{{Value: -1, Param: "n"}}, onnx.Fixed(1, 3, 3)...)...)
	steps := b.Op("Cast", []string{b.Op("Mul", []string{x, b.Weight("k", []int64{1}, []float32{50})})}, onnx.IntAttribute("to", int64(onnx.Int32)))
	flat := b.Op("Flatten", []string{b.Op("Cast", []string{steps}, onnx.IntAttribute("to", int64(onnx.Float)))}, onnx.IntAttribute("axis", 1))
	z := b.Op("MatMul", []string{flat, b.Weight("w", []int64{9, 2}, []float32{1, -1, 1, -1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1, -1, 1, -1, 1})})
	b.Output(z, onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: 2})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := Open(m, NetworkOptions{}); err == nil {
		n.Close()
		t.Error("a graph that rounds was opened for gradients")
	}
	n, err := Open(m, NetworkOptions{AnswersOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	pixels, labels := images(t, n, 4, 1)
	for _, row := range Attacks() {
		if !row.Blind() {
			continue
		}
		r, err := Run(context.Background(), n, row.Name, pixels, labels, Options{Norm: Linf, Eps: 0.5, Seed: 1, Steps: 40})
		if err != nil {
			t.Fatal(err)
		}
		if r.Gradients != 0 || r.Fooled() == 0 && row.Name == Square {
			t.Errorf("%s: %d gradients, %d fooled", row.Name, r.Gradients, r.Fooled())
		}
	}
	if _, err := Run(context.Background(), n, PGD, pixels, labels, Options{Eps: 0.5}); err == nil {
		t.Error("a graph that rounds was attacked along its gradient")
	}
}

// The slope by an inner tensor and by the input's own preparation is carried to
// the pixels as that of a logit is.
func TestSlopesOfInnerTensorsReachThePixels(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: 1}, onnx.Dim{Value: 2}, onnx.Dim{Value: 3})
	flat := b.Op("Flatten", []string{x}, onnx.IntAttribute("axis", 1))
	b.Node(&onnx.Node{OpType: "Tanh", Inputs: []string{b.Op("MatMul", []string{flat, b.Weight("w", []int64{6, 4}, []float32{
		1, 2, -1, 0, 0.5, -2, 1, 1, 0, 1, 2, -1, -1, 0, 1, 0.5, 2, -0.5, 0, 1, 1, 1, -1, -2})})}, Outputs: []string{"inner"}}, 1)
	b.Output(b.Op("MatMul", []string{"inner", b.Weight("v", []int64{4, 2}, []float32{1, -1, 0.5, 2, -1, 0, 1, 1})}), onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: 2})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	n, err := Open(m, NetworkOptions{Watch: []string{"inner", "x"}, Mean: []float64{0.5}, Std: []float64{0.25}, Shape: []int64{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	pixels := []float32{0.1, 0.9, 0.4, 0.6, 0.3, 0.5, 0.45, 0.55, 0.2, 0.8, 0.7, 0.6, 0.5, 0.52, 0.48, 0.4, 0.6, 0.3}
	o := &Objective{Weights: []float32{1, -1, 0, 0, 0, 2}}
	slopes := [][]float32{{1, 0, 2, -1, 0, 1, 0, 0, 0.5, -1, 0, 1}, make([]float32, 18)}
	for i := range slopes[1] {
		slopes[1][i] = float32(i%5) - 2
	}
	ctx := context.Background()
	value := func(pixels []float32) float64 {
		a, inside, err := n.AskInside(ctx, pixels, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for i, w := range o.Weights {
			sum += float64(w) * float64(a.Logits[i])
		}
		for k := range slopes {
			for i, w := range slopes[k] {
				sum += float64(w) * float64(inside[k][i])
			}
		}
		return sum
	}
	a, inside, err := n.AskInside(ctx, pixels, o, slopes)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := inside[1][1], (pixels[1]-0.5)/0.25; math.Abs(float64(got-want)) > 1e-6 {
		t.Errorf("the prepared input is %v, want %v", got, want)
	}
	for i := range pixels {
		up, down := slices.Clone(pixels), slices.Clone(pixels)
		up[i] += 1e-3
		down[i] -= 1e-3
		if want := (value(up) - value(down)) / 2e-3; math.Abs(want-float64(a.Gradient[i])) > 2e-2 {
			t.Errorf("pixel %d: difference %v, gradient %v", i, want, a.Gradient[i])
		}
	}
	for _, bad := range [][][]float32{{{1}}, {make([]float32, 12), {1}}} {
		if _, _, err := n.AskInside(ctx, pixels, o, bad); !errors.Is(err, ErrAsk) {
			t.Errorf("slopes of another size: got %v", err)
		}
	}
	if _, err := Open(m, NetworkOptions{Watch: []string{"elsewhere"}, Shape: []int64{1, 2, 3}}); !errors.Is(err, ErrAsk) {
		t.Errorf("a tensor that is not there: got %v", err)
	}
}
