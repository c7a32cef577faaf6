package train

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/vigie/vigie/engine"
)

// noise is a set without structure, for timing and plumbing.
func noise(n, side, classes int, seed uint64) *Set {
	rng := rand.New(rand.NewPCG(seed, 0))
	s := &Set{Name: "noise", Channels: 1, Rows: side, Columns: side, Classes: classes, Pixels: make([]uint8, n*side*side)}
	for i := range s.Pixels {
		s.Pixels[i] = uint8(rng.Uint32())
	}
	for i := range n {
		s.Labels = append(s.Labels, i%classes)
	}
	return s
}

// skipWithoutRuntime skips, loudly, what needs ONNX Runtime in a build without it.
func skipWithoutRuntime(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkDemoStep is a training step of the demo network on 32 images:
// forward, backward and sum of the parts' gradients, without augmentation and
// optimiser. bench/pytorch_demo_model.py times the same step in PyTorch.
func BenchmarkDemoStep(b *testing.B) {
	for _, c := range []struct {
		name  string
		parts int
	}{{"one-core", 1}, {"two-cores", 2}} {
		b.Run(c.name, func(b *testing.B) {
			set := noise(64, 28, 2, 1)
			network, err := DemoCNN.Build(rand.New(rand.NewPCG(1, 0)))
			if err != nil {
				b.Fatal(err)
			}
			t, err := newTrainer(Config{Network: network, Train: set, Validation: set, Recipe: Recipe{Epochs: 1, Batch: 32, Parts: c.parts}.orDefault()})
			skipWithoutRuntime(b, err)
			defer t.close()
			rng := rand.New(rand.NewPCG(1, 1))
			at := rng.Perm(32)
			for b.Loop() {
				if _, err := t.gradients(b.Context(), 0, at, at, rng); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
