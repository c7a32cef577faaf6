package poison

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// What is predicted of a patient is the same as from a regression that was made
// without the patient.
func TestAPatientIsPredictedAsIfItHadNotBeenThere(t *testing.T) {
	ctx := context.Background()
	c := drawnCases(40, 2)
	d, err := describe(ctx, c, func(float64) {})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	all, group := make([]int, 40), make([]int, 40)
	for i := range all {
		all[i], group[i] = i, i/3
	}
	got, err := d.outOfFold(ctx, all, all, c.Set.Labels, 2, group, true, 1)
	if err != nil {
		t.Fatal(err)
	}
	// By the dual form, with the same small ridge on the kernel of the landmarks.
	k, err := d.kernel(ctx, all, all, true, 1)
	if err != nil {
		t.Fatal(err)
	}
	self := square(40)
	for i := range 40 {
		for j := range 40 {
			self[i][j] = float64(k[i*40+j]+k[j*40+i]) / 2
		}
		self[i][i] += 1e-3
	}
	if err := cholesky(self); err != nil {
		t.Fatal(err)
	}
	inverse := inverted(self)
	phi := square(40)
	for i := range 40 {
		for j := range 40 {
			for l := range j + 1 {
				phi[i][j] += inverse[j][l] * float64(k[i*40+l])
			}
		}
	}
	mean := 0.0
	for _, l := range c.Set.Labels {
		mean += sign(l == 1) / 40
	}
	for g := range 14 {
		gram, right := square(40), make([]float64, 40)
		for i := range 40 {
			if group[i] == g {
				continue
			}
			for a := range 40 {
				right[a] += phi[i][a] * (sign(c.Set.Labels[i] == 1) - mean)
				for b := range 40 {
					gram[a][b] += phi[i][a] * phi[i][b]
				}
			}
		}
		for a := range 40 {
			gram[a][a] += ridge
		}
		if err := cholesky(gram); err != nil {
			t.Fatal(err)
		}
		w := solve(gram, right)
		for i := range 40 {
			if group[i] != g {
				continue
			}
			want := mean
			for a, v := range phi[i] {
				want += v * w[a]
			}
			if math.Abs(got[i][1]-want) > 2e-3 {
				t.Errorf("case %d: %.5f out of fold, %.5f by a regression without its patient", i, got[i][1], want)
			}
		}
	}
}

// A case's own label does not reach what is said of it.
func TestTheOwnLabelIsNotSeen(t *testing.T) {
	ctx := context.Background()
	c := drawnCases(60, 4)
	d, err := describe(ctx, c, func(float64) {})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	all, group := make([]int, 60), make([]int, 60)
	for i := range all {
		all[i], group[i] = i, i
	}
	labels := slices.Clone(c.Set.Labels)
	// Two labels change places so that the mean stays.
	before, err := d.outOfFold(ctx, all, all, labels, 2, group, true, 1)
	if err != nil {
		t.Fatal(err)
	}
	labels[0], labels[1] = labels[1], labels[0]
	group[1] = 0 // both are one patient's: neither sees the other
	one, err := d.outOfFold(ctx, all, all, labels, 2, group, true, 1)
	if err != nil {
		t.Fatal(err)
	}
	labels[0], labels[1] = labels[1], labels[0]
	two, err := d.outOfFold(ctx, all, all, labels, 2, group, true, 1)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(one[0][1]-two[0][1]) > 1e-3 || math.Abs(one[1][1]-two[1][1]) > 1e-3 {
		t.Errorf("a case is judged %.4f or %.4f, depending on its own label", one[0][1], two[0][1])
	}
	if before[2][1] == one[2][1] {
		t.Error("a case's judgement does not depend on the labels of others")
	}
}

// Labels drawn by a known noise, from scores of a known link: the noise is found.
func TestTheNoiseOfLabelsIsEstimated(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	const n = 3000
	scores, labels, at := make([][]float64, n), make([]int, n), make([]int, n)
	for i := range n {
		class := rng.IntN(2)
		z := (2*float64(class)-1)*0.8 + 0.35*rng.NormFloat64()
		scores[i], labels[i], at[i] = []float64{-z, z}, class, i
		if u := rng.Float64(); class == 0 && u < 0.12 || class == 1 && u < 0.04 {
			labels[i] = 1 - class
		}
	}
	l := fitLink(scores, labels, 2, at)
	if math.Abs(l.noise[0][1]-0.12) > 0.025 || math.Abs(l.noise[1][0]-0.04) > 0.02 {
		t.Errorf("noise %v; want about 0.12 and 0.04", l.noise)
	}
}

func TestStatisticsAgreeWithKnownValues(t *testing.T) {
	near := func(what string, got, want, within float64) {
		t.Helper()
		if math.Abs(got-want) > within {
			t.Errorf("%s: %.6g, want %.6g", what, got, want)
		}
	}
	// Fisher's tea: three of four right.
	near("at least 3 of 4", AtLeast(3, 4, 4, 8), 17.0/70, 1e-9)
	near("no mark", AtLeast(0, 4, 4, 8), 1, 1e-9)
	near("boundary", boundary(2.7055), 0.05, 1e-4)
	q := Discoveries([]float64{0.01, 0.04, 0.03, 0.5})
	for i, want := range []float64{0.04, 0.16 / 3, 0.16 / 3, 0.5} {
		near("adjusted", q[i], want, 1e-9)
	}
	exceeds, p := rankSum([]float64{1, 2, 3, 4, 5, 6, 7, 8}, []float64{9, 10, 11, 12, 13, 14, 15, 16})
	near("exceeds", exceeds, 0, 1e-9)
	near("rank sum", p, 0.00078, 2e-4)
	r := RateOf(95, 100)
	near("Wilson, low", r.Low, 0.8882, 1e-3)
	near("Wilson, high", r.High, 0.9785, 1e-3)
}

// Few cases of a label that lie far from the rest of it are found, exactly; one
// cloud, and two halves, are not.
func TestFewCasesFarFromTheirLabelsOthersAreFound(t *testing.T) {
	c := drawnCases(200, 12)
	l := &Labels{}
	for _, label := range c.Set.Labels {
		p := []float64{0.1, 0.1}
		p[label] = 0.9
		l.Probabilities = append(l.Probabilities, p)
	}
	for _, few := range []int{0, 9, 50} {
		rng := rand.New(rand.NewPCG(uint64(few), 5))
		values := make([][]float32, 200)
		var apart []int
		for i := range values {
			values[i] = make([]float32, 24)
			for k := range values[i] {
				values[i][k] = float32(rng.NormFloat64())
			}
			if i%2 == 1 && len(apart) < few {
				apart = append(apart, i)
				for k := range 8 {
					values[i][k] += 9
				}
			}
		}
		signatures, out := activations(c, l, values, 1)
		if out[0].Found || out[1].Found != (few == 9) {
			t.Errorf("%d apart: found %v and %v (silhouettes %.2f, %.2f)", few, out[0].Found, out[1].Found, out[0].Silhouette, out[1].Silhouette)
		}
		if few != 9 {
			continue
		}
		if !slices.Equal(out[1].Members, apart) {
			t.Errorf("found %v, want %v", out[1].Members, apart)
		}
		for i := 1; i < 200; i += 2 {
			if slices.Contains(apart, i) != (signatures[i] > 50) {
				t.Errorf("the spectral signature of case %d is %.1f", i, signatures[i])
			}
		}
	}
}
