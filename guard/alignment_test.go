package guard

import (
	"math"
	"math/rand/v2"
	"testing"
)

// A perturbation of a few grey levels that shows in a quiet half of an image must
// be found beside a half that is loud.
func TestAQuietPlaceIsNotDrownedByALoudOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 2))
	const n = 28
	higher := 0
	const rounds = 40
	for range rounds {
		gradient := plane{n, n, make([]float32, n*n)}
		clean, attacked := plane{n, n, make([]float32, n*n)}, plane{n, n, make([]float32, n*n)}
		for i := range gradient.values {
			gradient.values[i] = float32(rng.NormFloat64())
			noise := 1.0 / 255
			if i%n >= n/2 {
				noise = 30.0 / 255
			}
			clean.values[i] = float32(0.5 + noise*rng.NormFloat64())
			attacked.values[i] = clean.values[i] + float32(sign(gradient.values[i])*1.5/255)
		}
		if alignment(attacked.measure().high, gradient) > 3*alignment(clean.measure().high, gradient) {
			higher++
		}
	}
	if higher < rounds*9/10 {
		t.Errorf("in %d of %d images a perturbation stands out", higher, rounds)
	}
}

func TestTheEnergyAroundIsTheMeanSquareOfFiveByFive(t *testing.T) {
	const rows, columns = 9, 11
	high := make([]float32, rows*columns)
	high[4*columns+5] = 10
	for i, got := range localEnergy(high, rows, columns) {
		want := 0.0
		if r, c := i/columns, i%columns; r >= 2 && r <= 6 && c >= 3 && c <= 7 {
			want = 4
		}
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("at %d: %v, want %v", i, got, want)
		}
	}
}
