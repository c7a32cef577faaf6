package guard

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"testing"
)

// testdata/mahalanobis.json was computed by testdata/mahalanobis.py with
// scikit-learn's LedoitWolf and numpy.
func TestDistancesAreThoseOfScikitLearn(t *testing.T) {
	data, err := os.ReadFile("testdata/mahalanobis.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden []struct {
		Rows       [][]float64 `json:"rows"`
		Class      []int       `json:"class"`
		Query      [][]float64 `json:"query"`
		Shrinkage  float64     `json:"shrinkage"`
		Covariance [][]float64 `json:"covariance"`
		Distances  [][]float64 `json:"distances"` // [query][class], squared
	}
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden) < 3 {
		t.Fatalf("%d examples", len(golden))
	}
	for i, g := range golden {
		model, err := fitGaussian(g.Rows, g.Class, 2)
		if err != nil {
			t.Fatal(err)
		}
		centred := make([][]float64, len(g.Rows))
		for r, x := range g.Rows {
			for j, v := range x {
				centred[r] = append(centred[r], v-model.Means[g.Class[r]][j])
			}
		}
		covariance, shrinkage := ledoitWolf(centred)
		if math.Abs(shrinkage-g.Shrinkage) > 1e-9 {
			t.Errorf("%d: shrinkage %v, want %v", i, shrinkage, g.Shrinkage)
		}
		for r := range covariance {
			for c := range covariance[r] {
				if math.Abs(covariance[r][c]-g.Covariance[r][c]) > 1e-9*(1+math.Abs(g.Covariance[r][c])) {
					t.Fatalf("%d: covariance [%d][%d] %v, want %v", i, r, c, covariance[r][c], g.Covariance[r][c])
				}
			}
		}
		for q, x := range g.Query {
			for class, want := range g.Distances[q] {
				got := math.Exp(model.distance(x, class))*float64(len(x)) - 1e-12
				if math.Abs(got-want) > 1e-4*want { // a millionth of the trace is added to the diagonal
					t.Errorf("%d: distance of query %d from class %d is %v, want %v", i, q, class, got, want)
				}
			}
		}
	}
}

func TestExamplesWithoutVariationHaveNoDistance(t *testing.T) {
	rows := make([][]float64, 20)
	for i := range rows {
		rows[i] = []float64{1, 2, 3}
	}
	if _, err := fitGaussian(rows, make([]int, 20), 1); err == nil {
		t.Error("a covariance of nothing was inverted")
	}
}

// What a classifier of two Gaussians should find is known: w = Σ⁻¹(μ₁-μ₀).
func TestTheClassifierFindsTheDirectionBetweenTwoKinds(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	draw := func(n int, shift float64) (rows [][]float64) {
		for range n {
			rows = append(rows, []float64{rng.NormFloat64() + shift, 2 * rng.NormFloat64(), rng.NormFloat64() - shift})
		}
		return rows
	}
	m, err := fitLogistic(draw(3000, 0), draw(6000, 1))
	if err != nil {
		t.Fatal(err)
	}
	for j, want := range []float64{1, 0, -1} {
		if got := m.Weights[j] / m.Scale[j]; math.Abs(got-want) > 0.12 {
			t.Errorf("weight %d is %.3f, want %.0f", j, got, want)
		}
	}
	right := 0
	for range 2000 {
		if m.score(draw(1, 0)[0]) < 0 {
			right++
		}
		if m.score(draw(1, 1)[0]) > 0 {
			right++
		}
	}
	if share := float64(right) / 4000; math.Abs(share-0.760) > 0.03 { // Φ(√2/2)
		t.Errorf("%.3f right, want 0.760", share)
	}
}
