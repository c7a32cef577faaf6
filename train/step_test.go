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
