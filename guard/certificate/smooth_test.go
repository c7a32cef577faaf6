package certificate

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/vigie/vigie/onnx"
)

// half is a model that says "1" where the mean of the image, in its own values,
// is above a level: under noise its answer is known in closed form.
func half(t testing.TB, side int, level float64, black, white float64) Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	x := b.Input("image", onnx.Float, batch, fixed(1), fixed(side), fixed(side))
	mean := b.Op("Flatten", []string{b.Op("GlobalAveragePool", []string{x})})
	scaled := b.Op("MatMul", []string{mean, b.Weight("w", []int64{1, 2}, []float32{0, 1})})
	b.Node(&onnx.Node{OpType: "Add", Inputs: []string{scaled, b.Weight("b", []int64{2}, []float32{float32(level), 0})}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, batch, fixed(2))
	graph, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return Model{Graph: graph, Input: "image", Output: "logits", Shape: []int64{1, int64(side), int64(side)}, Black: []float64{black}, White: []float64{white}, Decide: argmax}
}

// A linear decision is the case for which the radius is exact (Cohen et al.
// 2019, appendix A): the distance to the boundary. Whatever the noise draws, the
// certified radius must not be longer, and with many samples it comes near.
func TestTheCertifiedRadiusIsTheDistanceToALinearBoundaryAtMost(t *testing.T) {
	const side, sigma = 8, 0.5
	for _, range_ := range [][2]float64{{0, 1}, {-2, 3}, {1, -1}} { // brightness 0 and 1 of the input
		black, white := range_[0], range_[1]
		level := black + 0.5*(white-black)
		m := half(t, side, level, black, white)
		c := open(t, m, Options{Smoothing: &Smoothing{Sigma: sigma, Samples: 2000, Alpha: 0.001}})
		for _, brightness := range []float64{0.45, 0.53, 0.6} {
			image := make([]float32, side*side)
			for i := range image {
				image[i] = float32(black + brightness*(white-black))
			}
			distance := math.Abs(brightness-0.5) * side // ‖δ‖ that moves the mean of side² pixels that far
			s, err := c.Smooth(context.Background(), example(m, image), Seed{1})
			if err != nil {
				t.Fatal(err)
			}
			want := Answer("0")
			if brightness > 0.5 == (white > black) {
				want = "1"
			}
			if s.Answer != want || s.Radius > distance || s.Radius < 0.75*distance-0.02 {
				t.Errorf("range %v, brightness %v: %s within %.4f, the boundary is %.4f away (%d of %d)", range_, brightness, s.Answer, s.Radius, distance, s.Agree, s.Samples)
			}
		}
	}
}

// The chance of a certificate that is too long is alpha: over many seeds no more
// are, and near a half it abstains.
func TestACertificateIsWrongAsSeldomAsItSays(t *testing.T) {
	const side, sigma, alpha = 4, 0.25, 0.05
	m := half(t, side, 0.5, 0, 1)
	c := open(t, m, Options{Smoothing: &Smoothing{Sigma: sigma, First: 20, Samples: 100, Alpha: alpha}, Batch: 32})
	image := make([]float32, side*side)
	for i := range image {
		image[i] = 0.52
	}
	distance, long, abstained := 0.02*side, 0, 0
	const seeds = 300
	for i := range seeds {
		s, err := c.Smooth(context.Background(), example(m, image), Seed{byte(i), byte(i >> 8), 7})
		if err != nil {
			t.Fatal(err)
		}
		if s.Abstain {
			abstained++
		}
		if s.Answer == "1" && s.Radius > distance || s.Answer == "0" && !s.Abstain {
			long++
		}
	}
	// 15 are expected at most; 29 or more would come by chance once in 2000 times.
	if long > 28 {
		t.Errorf("%d of %d certificates are wrong at alpha %v", long, seeds, alpha)
	}
	if abstained == 0 || abstained == seeds {
		t.Errorf("%d of %d abstained: the test looks at one side", abstained, seeds)
	}
}

func TestTheSameSeedGivesTheSameNoiseWhateverRunsAtOnce(t *testing.T) {
	m := drawn(t, rand.New(rand.NewPCG(1, 1)), 9, 9, 3)
	image := make([]float32, 81)
	for i := range image {
		image[i] = 0.5
	}
	var first *Smoothed
	for _, o := range []Options{{Threads: 1, Batch: 16}, {Threads: 4, Batch: 16}, {Threads: 2, Batch: 1}} {
		o.Smoothing = &Smoothing{Sigma: 0.2, Samples: 300, Alpha: 0.01}
		c := open(t, m, o)
		s, err := c.Smooth(context.Background(), example(m, image), Seed{9})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = s
		} else if s.Answer != first.Answer || s.Agree != first.Agree || s.Radius != first.Radius {
			t.Errorf("%+v: %+v, before %+v", o, s, first)
		}
		other, err := c.Smooth(context.Background(), example(m, image), Seed{10})
		if err != nil {
			t.Fatal(err)
		}
		if other.Agree == s.Agree && other.Answer == s.Answer && s.Agree < s.Samples && s.Agree > 0 && o.Threads == 1 {
			t.Logf("another seed gave the same count, %d", s.Agree)
		}
	}
	one, two := FreshSeed(), FreshSeed()
	if first.Runs != 400 || one == two {
		t.Errorf("%d runs", first.Runs)
	}
}

// The noise is normal, of the deviation that was asked for in brightness,
// independent from copy to copy, and the same in channels that carry one plane.
func TestTheNoiseIsWhatWasAskedFor(t *testing.T) {
	g := geometry{channels: 3, rows: 20, columns: 20, black: []float32{-1, 0, 2}, scale: []float32{2, 1, -4}}
	for _, grey := range []bool{true, false} {
		for _, last := range []bool{false, true} {
			g.last = last
			n := &noise{geometry: g, grey: grey, sigma: 0.3, seed: Seed{3}, values: make([]float32, g.elements())}
			var sum, squares, across float64
			rows := [2][]float32{make([]float32, g.elements()), make([]float32, g.elements())}
			const copies = 60
			for i := range copies {
				n.add(i, rows[i%2])
				for p := range 400 {
					first := float64(rows[i%2][g.index(0, p)]) / 2
					sum += first
					squares += first * first
					across += first * float64(rows[i%2][g.index(2, p)]) / -4
				}
				if i > 0 && rows[0][5] == rows[1][5] {
					t.Error("two copies have the same noise")
				}
			}
			count := float64(copies * 400)
			mean, deviation, correlation := sum/count, math.Sqrt(squares/count), across/count/0.09
			if math.Abs(mean) > 0.01 || math.Abs(deviation-0.3) > 0.01 || grey != (correlation > 0.9) || !grey && math.Abs(correlation) > 0.05 {
				t.Errorf("grey %v, channels last %v: mean %.4f, deviation %.4f, correlation of channels %.3f", grey, last, mean, deviation, correlation)
			}
		}
	}
}
