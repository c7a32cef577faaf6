package guarded

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/onnx"
)

const (
	side    = 16
	subject = vigie.ModelDigest("sha256:00000000000000000000000000000000000000000000000000000000000000ab")
)

// network is small, with fixed random weights and smooth activations, whose
// gradients agree with differences everywhere.
func network(t testing.TB) guard.Network {
	t.Helper()
	rng := rand.New(rand.NewPCG(11, 12))
	weights := func(n int, scale float64) []float32 {
		w := make([]float32, n)
		for i := range w {
			w[i] = float32(scale * rng.NormFloat64())
		}
		return w
	}
	b := onnx.NewBuilder(17)
	batch, size := onnx.Dim{Value: -1, Param: "batch"}, onnx.Dim{Value: side}
	x := b.Input("image", onnx.Float, batch, onnx.Dim{Value: 1}, size, size)
	conv := func(x, name string, out, in int64) string {
		return b.Op("Tanh", []string{b.Op("Conv", []string{x, b.Weight(name, []int64{out, in, 3, 3}, weights(int(9*out*in), math.Sqrt(2/float64(9*in))))},
			onnx.IntsAttribute("kernel_shape", 3, 3), onnx.IntsAttribute("pads", 1, 1, 1, 1))})
	}
	x = b.Op("AveragePool", []string{conv(x, "w1", 6, 1)}, onnx.IntsAttribute("kernel_shape", 2, 2), onnx.IntsAttribute("strides", 2, 2))
	x = b.Op("Flatten", []string{b.Op("GlobalAveragePool", []string{conv(x, "w2", 8, 6)})})
	b.Node(&onnx.Node{OpType: "Gemm", Inputs: []string{x, b.Weight("w3", []int64{8, 2}, weights(16, 6)), b.Weight("b3", []int64{2}, []float32{0, 0})}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, batch, onnx.Dim{Value: 2})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return guard.Network{Model: m, Input: "image", Output: "logits", Activation: guard.Softmax, Shape: []int64{1, side, side}, Black: []float64{0}, White: []float64{1}}
}

// blobs are smooth images with a little noise.
func blobs(n int, seed uint64) [][]float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	var out [][]float32
	for range n {
		values := make([]float32, side*side)
		cx, cy, width, height := 4+8*rng.Float64(), 4+8*rng.Float64(), 3+4*rng.Float64(), 0.3+0.4*rng.Float64()
		for i := range values {
			y, x := float64(i/side)-cy, float64(i%side)-cx
			values[i] = float32(min(max(0.2+height*math.Exp(-(x*x+y*y)/(2*width*width))+0.006*rng.NormFloat64(), 0), 1))
		}
		out = append(out, values)
	}
	return out
}

var fitted = sync.OnceValues(func() (*guard.Statistics, error) {
	s, _, err := guard.Fit(context.Background(), network(&testing.T{}), guard.Examples{Images: blobs(240, 7)},
		guard.FitOptions{Subject: subject, FalseAlarms: 0.05, Seed: 3, Threads: 1, Data: "blobs"})
	return s, err
})

func opened(t testing.TB, o Options) (*Target, *guard.Guard) {
	t.Helper()
	s, err := fitted()
	if err != nil {
		t.Fatal(err)
	}
	g, err := guard.Open(network(t).Model, s, guard.Options{Subject: subject, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	o.Network.Shape = []int64{1, side, side}
	target, err := Open(g, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close(); g.Close() })
	return target, g
}

// noticed says what the guards themselves say.
func noticed(t *testing.T, g *guard.Guard, pixels []float32) bool {
	t.Helper()
	alarm, _, err := Judge(context.Background(), g, nil, engine.Float32([]int64{1, side, side}, pixels))
	if err != nil {
		t.Fatal(err)
	}
	return alarm
}

func TestTheGradientIsThatOfTheObjectiveWithItsGuards(t *testing.T) {
	target, _ := opened(t, Options{})
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 2))
	pixels := slices.Clone(blobs(1, 50)[0])
	for i := range pixels { // noisy, so that guards have something to say
		pixels[i] = float32(min(max(float64(pixels[i])+0.03*rng.NormFloat64(), 0), 1))
	}
	likes, err := target.Inside(ctx, blobs(1, 51)[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct {
		name  string
		o     attack.Objective
		exact bool // no quantiles in it
	}{
		{"imitation", attack.Objective{Weights: []float32{1e-20, 0}, Guards: []float32{0}, Like: likes}, true},
		{"guards", attack.Objective{Weights: []float32{1e-20, 0}, Guards: []float32{1}}, false},
		{"everything", attack.Objective{Weights: []float32{2, -2}, Guards: []float32{0.3}, Like: likes}, false},
	} {
		value := func(pixels []float32) float64 {
			a, err := target.Ask(ctx, pixels, &part.o)
			if err != nil {
				t.Fatal(err)
			}
			return float64(part.o.Weights[0])*float64(a.Logits[0]) + float64(part.o.Weights[1])*float64(a.Logits[1]) - float64(a.Penalty[0])
		}
		a, err := target.Ask(ctx, pixels, &part.o)
		if err != nil {
			t.Fatal(err)
		}
		if a.Penalty[0] <= 0 {
			t.Errorf("%s: the penalty is %v: the test says nothing", part.name, a.Penalty[0])
		}
		length, largest := 0.0, 0.0
		for _, v := range a.Gradient {
			length += float64(v) * float64(v)
			largest = max(largest, math.Abs(float64(v)))
		}
		for range 6 {
			// Along the gradient, where it must rise as fast as it says, and with what is
			// exact in random directions too.
			up, down, want := slices.Clone(pixels), slices.Clone(pixels), 0.0
			for i, v := range a.Gradient {
				d := float32(4e-3 * float64(v) / largest)
				if part.exact {
					d = float32(1e-3 * rng.NormFloat64())
				}
				up[i], down[i] = up[i]+d, down[i]-d
				want += float64(v) * float64(up[i]-down[i])
			}
			got := value(up) - value(down)
			if part.exact && math.Abs(got-want) > 0.02*2e-3*math.Sqrt(length) || !part.exact && !(got > 0.6*want && got < 1.6*want) {
				t.Errorf("%s: it rises by %v, the gradient says %v", part.name, got, want)
			}
			if !part.exact {
				break
			}
		}
	}
}

func TestWhatKnowsTheGuardsGetsThroughThemAndWhatDoesNotIsNoticed(t *testing.T) {
	target, g := opened(t, Options{})
	bare, err := attack.Open(network(t).Model, attack.NetworkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	ctx := context.Background()
	images := blobs(20, 60)
	pixels := slices.Concat(images...)
	a, err := bare.Ask(ctx, pixels, nil)
	if err != nil {
		t.Fatal(err)
	}
	labels := make([]int, len(images)) // what it answers, so that every image counts
	for i := range labels {
		labels[i] = top(a.Logits[2*i:2*i+2], -1)
	}
	o := attack.Options{Eps: 12.0 / 255, Seed: 1, AlsoHeld: true, Steps: 60}
	oblivious, err := attack.Run(ctx, bare, attack.PGD, pixels, labels, o)
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for i, c := range oblivious.Cases {
		if c.Fooled && !noticed(t, g, oblivious.Pixels[i*side*side:(i+1)*side*side]) {
			passed++
		}
	}
	knowing, err := attack.Run(ctx, target, attack.Adaptive, pixels, labels, o)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range knowing.Cases {
		if c.Fooled && noticed(t, g, knowing.Pixels[i*side*side:(i+1)*side*side]) {
			t.Errorf("image %d is called released and raises an alarm", i)
		}
	}
	t.Logf("fooled %d, of these released %d; released knowing the guards %d", oblivious.Fooled(), passed, knowing.Fooled())
	if oblivious.Fooled() < 5 || knowing.Fooled() <= passed {
		t.Errorf("of %d fooled %d are released without knowing the guards and %d knowing them", oblivious.Fooled(), passed, knowing.Fooled())
	}
}

func TestReviewHoldsWhatTheGuardsLetPass(t *testing.T) {
	all, _ := opened(t, Options{Review: func(context.Context, engine.Tensor, []float32) bool { return true }})
	none, _ := opened(t, Options{})
	pixels := blobs(1, 70)[0]
	for _, part := range []struct {
		target *Target
		held   bool
	}{{all, true}, {none, false}} {
		a, err := part.target.Ask(context.Background(), pixels, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.Held[0] != part.held {
			t.Errorf("held is %v, want %v", a.Held[0], part.held)
		}
	}
}

// The same question twice has the same answer, and another question another one:
// what is remembered of the last images is theirs.
func TestWhatIsRememberedIsOfTheseImages(t *testing.T) {
	target, _ := opened(t, Options{})
	fresh, _ := opened(t, Options{})
	ctx := context.Background()
	a, b := blobs(1, 80)[0], blobs(1, 81)[0]
	o := &attack.Objective{Weights: []float32{1, -1}, Guards: []float32{1}}
	for _, x := range [][]float32{a, a, b, a} {
		got, err := target.Ask(ctx, x, o)
		if err != nil {
			t.Fatal(err)
		}
		fresh.last = nil
		want, err := fresh.Ask(ctx, x, o)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Logits, want.Logits) || !slices.Equal(got.Gradient, want.Gradient) || !slices.Equal(got.Held, want.Held) || got.Penalty[0] != want.Penalty[0] {
			t.Errorf("remembered %v %v %v, asked anew %v %v %v", got.Logits, got.Penalty, got.Held, want.Logits, want.Penalty, want.Held)
		}
	}
	if _, err := target.Ask(ctx, a, &attack.Objective{Weights: []float32{1, -1}, Like: [][]float32{{1}}}); !errors.Is(err, attack.ErrAsk) {
		t.Errorf("a likeness of another size: got %v", err)
	}
}
