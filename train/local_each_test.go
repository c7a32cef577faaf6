package train

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vigie/vigie/engine"
)

// every is the gradient of each record.
func every(t *testing.T, l *Local, s *Set, o EachRun) [][]float32 {
	t.Helper()
	var out [][]float32
	if err := l.Each(t.Context(), s, o, func(g []float32) error {
		out = append(out, slices.Clone(g))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func singles(at []int) [][]int {
	var out [][]int
	for _, i := range at {
		out = append(out, []int{i})
	}
	return out
}

// What a record adds to a sum must not hang on the others, bit for bit: else
// leaving one record out changes more than its own part.
func TestARecordsGradientIsItsOwnWhereverItStands(t *testing.T) {
	for kernels := range engine.KernelTerms() + 1 { // 0 is without
		set := noise(101, 8, 2, 1)
		l := newLocal(t, Recipe{Batch: 4, Kernels: kernels, Augmentation: Augmentation{Shift: 1}}, set)
		order := rand.New(rand.NewPCG(5, 5)).Perm(101)
		o := EachRun{Seed: 9, Round: 3}
		o.Records = singles(order)
		shuffled := every(t, l, set, o)
		if len(shuffled) != 101 {
			t.Fatalf("%d gradients of 101 records", len(shuffled))
		}
		for k, i := range order {
			if k%5 > 0 {
				continue
			}
			o.Records = [][]int{{i}}
			if alone := every(t, l, set, o)[0]; !slices.Equal(alone, shuffled[k]) {
				t.Fatalf("kernels %d: example %d at place %d of a batch has another gradient than alone", kernels, i, k)
			}
		}
		fewer := set.Subset(order[:40]) // in another order, without the rest
		for i := range fewer.Len() {
			o.Records = [][]int{{i}}
			if got := every(t, l, fewer, o)[0]; !slices.Equal(got, shuffled[i]) {
				t.Fatalf("kernels %d: example %d has another gradient in a smaller set", kernels, order[i])
			}
		}
		o.Round++
		o.Records = [][]int{{order[100]}}
		if next := every(t, l, set, o)[0]; slices.Equal(next, shuffled[100]) {
			t.Error("the next round draws the same augmentation")
		}
	}
}

func TestTheGradientsOfRecordsAreThoseOfTheirExamplesMean(t *testing.T) {
	set := noise(90, 8, 2, 1)
	l := newLocal(t, Recipe{Batch: 4, Augmentation: Augmentation{Shift: 1}}, set)
	all := make([]int, 90)
	for i := range all {
		all[i] = i
	}
	o := EachRun{Seed: 1, Round: 2, Records: singles(all)}
	one := every(t, l, set, o)
	o.Records = [][]int{{7}, {1, 2, 3}, all[10:80], {8}} // one of them over three batches
	joined := every(t, l, set, o)
	for r, record := range o.Records {
		for j := range joined[r] {
			mean := 0.0
			for _, i := range record {
				mean += float64(one[i][j]) / float64(len(record))
			}
			if math.Abs(mean-float64(joined[r][j])) > 1e-6 {
				t.Fatalf("record %d, number %d: %v, want %v", r, j, joined[r][j], mean)
			}
		}
	}
	// and the mean over all is what an ordinary step descends along
	plain := newLocal(t, Recipe{Batch: 90, Parts: 1, Optimizer: "sgd"}, set)
	before := clone(plain.Variables())
	mean := make([]float64, len(one[0]))
	if err := plain.Each(t.Context(), set, EachRun{Records: singles(all)}, func(g []float32) error {
		for j, v := range g {
			mean[j] += float64(v) / 90
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := plain.Run(t.Context(), set, LocalRun{Epochs: 1, Rate: 1}); err != nil {
		t.Fatal(err)
	}
	at := 0
	for i, w := range plain.Variables() {
		for j := range w {
			if moved := float64(before[i][j] - w[j]); math.Abs(moved-mean[at]) > 1e-5 {
				t.Fatalf("%s[%d]: a step moved by %v, the gradients' mean is %v", plain.Names()[i], j, moved, mean[at])
			}
			at++
		}
	}
}

func TestRecordsThatCannotBeToldApartAreRefused(t *testing.T) {
	set := noise(8, 8, 2, 1)
	l := newLocal(t, Recipe{Batch: 4}, set)
	for what, records := range map[string][][]int{"an empty record": {{}}, "an example that is not there": {{8}}} {
		if err := l.Each(t.Context(), set, EachRun{Records: records}, func([]float32) error { return nil }); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	stop := errors.New("enough")
	if err := l.Each(t.Context(), set, EachRun{Records: [][]int{{1}, {2}}}, func([]float32) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

func TestANetworkThatMixesExamplesHasNoGradientsOfRecords(t *testing.T) {
	set := corners(20, 1)
	l, err := NewLocal(withBatchNorm(t), Recipe{Batch: 4}, set)
	skipWithoutRuntime(t, err)
	defer l.Close()
	if err := l.Each(t.Context(), set, EachRun{Records: [][]int{{1}}}, func([]float32) error { return nil }); !errors.Is(err, ErrMixes) {
		t.Errorf("%v", err)
	}
}

func TestTheRecipesNetworkTreatsARecordAlikeWhereverItStands(t *testing.T) {
	set := noise(45, 28, 2, 3)
	network, err := PrivateCNN.Build(rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLocal(network, Recipe{Batch: 4, Kernels: engine.KernelTerms(), Augmentation: PrivateRecipe.Augmentation}, set)
	skipWithoutRuntime(t, err)
	defer l.Close()
	order := rand.New(rand.NewPCG(5, 5)).Perm(45)
	o := EachRun{Seed: 9, Round: 3, Records: singles(order)}
	shuffled := every(t, l, set, o)
	for k := 0; k < 45; k += 9 {
		o.Records = singles(order[k : k+1])
		if alone := every(t, l, set, o)[0]; !slices.Equal(alone, shuffled[k]) {
			t.Errorf("example %d at place %d of a batch has another gradient than alone", order[k], k)
		}
	}
}
