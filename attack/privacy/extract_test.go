package privacy

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

func TestTheLeastSureAreAskedFirst(t *testing.T) {
	p := [][]float64{{0.9, 0.1}, {0.5, 0.5}, {0.6, 0.4}, {0.4, 0.6}, {1, 0}}
	if got := MostUncertain(p, map[int]bool{1: true}, 2); !slices.Equal(got, []int{2, 3}) {
		t.Errorf("%v", got)
	}
	if got := MostUncertain(p, map[int]bool{0: true, 1: true}, 9); !slices.Equal(got, []int{2, 3, 4}) {
		t.Errorf("%v", got)
	}
}

func TestASurrogateLearnsProbabilities(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, open, onnx.Dim{Value: 3})
	b.Node(&onnx.Node{OpType: "Gemm", Inputs: []string{x, b.Weight("w", []int64{3, 2}, make([]float32, 6)), b.Weight("b", []int64{2}, make([]float32, 2))}, Outputs: []string{"z"}}, 1)
	b.Output("z", onnx.Float, open, onnx.Dim{Value: 2})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSurrogate(&train.Network{Model: m, Input: "x", Logits: "z", Weights: []string{"w", "b"}}, 16)
	needsRuntime(t, err)
	defer s.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	var examples, soft []float32
	odds := func(row []float32) float64 { return float64(2*row[0]-row[1]) + 0.5 }
	for range 200 {
		row := random(rng, 3, 1)
		p := float32(sigmoid(odds(row)))
		examples, soft = append(examples, row...), append(soft, 1-p, p)
	}
	if err := s.Fit(context.Background(), examples, soft, FitOptions{Steps: 800, Rate: 0.05, Decay: 1e-9, Seed: 1}); err != nil {
		t.Fatal(err)
	}
	copied, err := s.Model()
	if err != nil {
		t.Fatal(err)
	}
	target, err := attack.Open(copied, attack.NetworkOptions{})
	needsRuntime(t, err)
	defer target.Close()
	a, err := target.Ask(context.Background(), examples, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		got, want := float64(a.Logits[2*i+1]-a.Logits[2*i]), odds(examples[3*i:3*i+3])
		if math.Abs(sigmoid(got)-sigmoid(want)) > 0.01 {
			t.Fatalf("example %d: log-odds %v, want %v", i, got, want)
		}
	}
	if err := s.Fit(context.Background(), examples, soft[:10], FitOptions{Steps: 1}); !errors.Is(err, ErrAsk) {
		t.Errorf("too few answers: %v", err)
	}
}

func TestTransferredImagesStayWithinTheBound(t *testing.T) {
	m := multilayer(t, 10, 2, false)
	source, err := attack.Open(m, attack.NetworkOptions{})
	needsRuntime(t, err)
	defer source.Close()
	all, labels := images(5, 3)
	flat := slices.Concat(all...)
	x, err := Transferable(context.Background(), source, flat, labels, 0.1, 7)
	if err != nil {
		t.Fatal(err)
	}
	moved := 0
	for i, v := range x {
		if d := math.Abs(float64(v - flat[i])); d > 0.1+1e-6 || v < 0 || v > 1 {
			t.Fatalf("pixel %d went from %v to %v", i, flat[i], v)
		} else if d > 0.09 {
			moved++
		}
	}
	if moved < len(x)/2 {
		t.Errorf("%d of %d pixels went to the bound", moved, len(x))
	}
	before, err := source.Ask(context.Background(), flat, nil)
	if err != nil {
		t.Fatal(err)
	}
	after, err := source.Ask(context.Background(), x, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range labels {
		margin := func(a attack.Answer) float32 { return a.Logits[2*i+c] - a.Logits[2*i+1-c] }
		if margin(after) >= margin(before) {
			t.Errorf("image %d: margin %v, was %v", i, margin(after), margin(before))
		}
	}
}

func TestImputationKnowsWhatTheOtherAttributesSay(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	var x [][]float64
	var v []int
	for range 400 {
		a := rng.NormFloat64()
		value := 0
		if a+0.3*rng.NormFloat64() > 0.5 {
			value = 2
		}
		x, v = append(x, []float64{a, rng.NormFloat64()}), append(v, value)
	}
	m, err := FitImputer(x, v, 3)
	if err != nil {
		t.Fatal(err)
	}
	right := 0
	for i := range x {
		p := m.Prior(x[i])
		if total := p[0] + p[1] + p[2]; math.Abs(total-1) > 1e-9 || p[1] > 0.01 {
			t.Fatalf("prior %v", p)
		}
		if GuessAttribute(p, nil) == v[i] {
			right++
		}
	}
	if right < 340 {
		t.Errorf("%d of 400", right)
	}
	if GuessAttribute([]float64{0.6, 0.4}, []float64{0.2, 0.9}) != 1 || GuessAttribute(nil, []float64{0.5, 0.5}) != 0 {
		t.Error("the product decides, and of equal ones the first")
	}
	if _, err := FitImputer(x, v, 2); !errors.Is(err, ErrAsk) {
		t.Errorf("a value beyond the last: %v", err)
	}
}

func TestInversionClimbsToWhatTheModelHolds(t *testing.T) {
	// The logit of class 1 falls with the distance from one image.
	held, _ := images(1, 8)
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, open, onnx.Dim{Value: 1}, onnx.Dim{Value: side}, onnx.Dim{Value: side})
	d := b.Op("Sub", []string{x, b.Weight("held", []int64{1, 1, side, side}, held[0])})
	sum := b.Op("ReduceSum", []string{b.Op("Mul", []string{d, d}), b.Ints("axes", 1, 2, 3)}, onnx.IntAttribute("keepdims", 0))
	z := b.Op("Sub", []string{b.Weight("far", []int64{}, []float32{-6}), b.Op("Mul", []string{sum, b.Weight("scale", []int64{}, []float32{9})})})
	b.Node(&onnx.Node{OpType: "Unsqueeze", Inputs: []string{z, b.Ints("column", 1)}, Outputs: []string{"z"}}, 1)
	b.Output("z", onnx.Float, open, onnx.Dim{Value: 1})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	target, err := attack.Open(m, attack.NetworkOptions{})
	needsRuntime(t, err)
	defer target.Close()
	found, err := Invert(context.Background(), target, 1, InvertOptions{Steps: 200, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	similarity, _, err := MostSimilar(found.Pixels, held, side, side)
	if err != nil {
		t.Fatal(err)
	}
	if similarity < 0.95 {
		t.Errorf("SSIM %v", similarity)
	}
	if _, err := Invert(context.Background(), target, 2, InvertOptions{}); !errors.Is(err, ErrAsk) {
		t.Errorf("a class that is not there: %v", err)
	}
}
