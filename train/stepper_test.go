package train

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/vigie/vigie/onnx"
)

func TestAStepByHandIsThatOfARun(t *testing.T) {
	set := noise(16, 8, 2, 1)
	network, err := CNN{Channels: 1, Rows: 8, Columns: 8, Classes: 2, Stages: [][]int{{4}}, GroupSize: 4, Deviation: 1}.Build(rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	config := Config{Network: network, Train: set, Validation: set, Recipe: Recipe{Epochs: 1, Batch: 16, Rate: 1e-2, Clip: 0.5, Decay: 0.1, Seed: 3}}
	result, err := Run(t.Context(), config, nil)
	skipWithoutRuntime(t, err)
	s, err := NewStepper(config)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	order := rand.New(rand.NewPCG(9, 9)).Perm(16)
	first, err := s.Step(t.Context(), order, 1e-2)
	if err != nil {
		t.Fatal(err)
	}
	if want := result.History.Epochs[0].Loss; math.Abs(first-want) > 1e-5 {
		t.Errorf("loss %v, the run's is %v", first, want)
	}
	for i, name := range network.Weights {
		want, err := onnx.Values[float32](result.Model.Graph.Initializer(name))
		if err != nil {
			t.Fatal(err)
		}
		for j, v := range s.Weights()[i] {
			// AdamW's first step is the rate times the gradient's sign, unless
			// the gradient is nothing but rounding.
			if math.Abs(float64(v-want[j])) > 1e-4 {
				t.Fatalf("%s[%d] is %v, after the run %v", name, j, v, want[j])
			}
		}
	}
	for range 20 {
		if _, err := s.Step(t.Context(), order, 1e-2); err != nil {
			t.Fatal(err)
		}
	}
	if last, err := s.Step(t.Context(), order, 1e-2); err != nil || !(last < first) {
		t.Errorf("the loss went from %v to %v (%v)", first, last, err)
	}
	for _, at := range [][]int{order[:3], append(order[:15:15], 16)} {
		if _, err := s.Step(t.Context(), at, 1e-2); err == nil {
			t.Errorf("a step on %v was taken", at)
		}
	}
}
