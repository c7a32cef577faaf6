package guard

import (
	"math/rand/v2"
	"testing"
)

func BenchmarkMeasure(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := plane{28, 28, make([]float32, 784)}
	for i := range p.values {
		p.values[i] = rng.Float32()
	}
	for b.Loop() {
		p.measure()
	}
}
