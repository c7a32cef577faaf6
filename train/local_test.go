package train

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func localNetwork(t *testing.T) *Network {
	t.Helper()
	network, err := CNN{Channels: 1, Rows: 8, Columns: 8, Classes: 2, Stages: [][]int{{4}}, GroupSize: 4, Deviation: 1}.Build(rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	return network
}

func newLocal(t *testing.T, r Recipe, like *Set) *Local {
	t.Helper()
	l, err := NewLocal(localNetwork(t), r, like)
	skipWithoutRuntime(t, err)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// settle runs once from the given weights and returns where it ends.
func settle(t *testing.T, l *Local, from [][]float32, s *Set, o LocalRun) [][]float32 {
	t.Helper()
	for i, w := range l.Variables() {
		copy(w, from[i])
	}
	if _, _, err := l.Run(t.Context(), s, o); err != nil {
		t.Fatal(err)
	}
	return clone(l.Variables())
}

func TestALocalRunIsThatOfItsSeedAlone(t *testing.T) {
	set := noise(37, 8, 2, 1)
	r := Recipe{Batch: 16, Optimizer: "sgd", Momentum: 0.9, Augmentation: Augmentation{Shift: 1}}
	l := newLocal(t, r, set)
	start := clone(l.Variables())
	o := LocalRun{Epochs: 2, Rate: 0.05, Seed: 3, Round: 4}
	first := settle(t, l, start, set, o)
	settle(t, l, start, noise(20, 8, 2, 9), LocalRun{Epochs: 1, Rate: 0.1, Seed: 8}) // somebody else's turn
	if again := settle(t, l, start, set, o); !slices.EqualFunc(first, again, slices.Equal[[]float32]) {
		t.Error("the same run after another's has other weights")
	}
	o.Round++
	if other := settle(t, l, start, set, o); slices.EqualFunc(first, other, slices.Equal[[]float32]) {
		t.Error("the next round draws the same order and augmentation")
	}
}

func TestABatchThatIsNotFullIsTheMeanOverItsExamples(t *testing.T) {
	// one example alone, and four times the same in a full batch: equal gradients
	set := noise(1, 8, 2, 1)
	r := Recipe{Batch: 4, Optimizer: "sgd"}
	l := newLocal(t, r, set)
	start := clone(l.Variables())
	o := LocalRun{Epochs: 1, Rate: 0.5}
	one, four := settle(t, l, start, set, o), settle(t, l, start, set.Subset([]int{0, 0, 0, 0}), o)
	for i := range one {
		for j := range one[i] {
			if math.Abs(float64(one[i][j]-four[i][j])) > 1e-5 {
				t.Fatalf("%s[%d]: %v alone, %v in a full batch", l.Names()[i], j, one[i][j], four[i][j])
			}
		}
	}
}

func TestTheProximalTermAndTheCorrectionEnterTheStepAsInTheirPapers(t *testing.T) {
	set := noise(4, 8, 2, 1)
	r := Recipe{Batch: 4, Optimizer: "sgd"} // one step an epoch, no momentum
	l := newLocal(t, r, set)
	start := clone(l.Variables())
	const rate, mu = 0.1, 0.7
	one := settle(t, l, start, set, LocalRun{Epochs: 1, Rate: rate})
	// the second step from there, with and without the pull back to the start
	plain := settle(t, l, start, set, LocalRun{Epochs: 2, Rate: rate})
	proximal := settle(t, l, start, set, LocalRun{Epochs: 2, Rate: rate, Pull: Pull{Proximal: mu}})
	correction := clone(start)
	for i := range correction {
		for j := range correction[i] {
			correction[i][j] = float32(i+1) * 0.01
		}
	}
	corrected := settle(t, l, start, set, LocalRun{Epochs: 1, Rate: rate, Pull: Pull{Correction: correction}})
	for i := range start {
		for j := range start[i] {
			want := float64(plain[i][j]) - rate*mu*float64(one[i][j]-start[i][j])
			if math.Abs(float64(proximal[i][j])-want) > 1e-5 {
				t.Fatalf("%s[%d] with the proximal term is %v, want %v", l.Names()[i], j, proximal[i][j], want)
			}
			want = float64(one[i][j]) - rate*float64(correction[i][j])
			if math.Abs(float64(corrected[i][j])-want) > 1e-5 {
				t.Fatalf("%s[%d] with the correction is %v, want %v", l.Names()[i], j, corrected[i][j], want)
			}
		}
	}
}

func TestASiteMayLackAClassButNotBeOfAnotherForm(t *testing.T) {
	set := noise(6, 8, 2, 1)
	l := newLocal(t, Recipe{Batch: 4, Optimizer: "sgd"}, set)
	one := set.Subset([]int{0, 1, 2})
	for i := range one.Labels {
		one.Labels[i] = 1
	}
	if _, loss, err := l.Run(t.Context(), one, LocalRun{Epochs: 1, Rate: 0.1}); err != nil || !(loss > 0) {
		t.Errorf("a site with one class: loss %v, %v", loss, err)
	}
	wrong := set.Subset([]int{0, 1})
	wrong.Labels[1] = 2
	for what, s := range map[string]*Set{"other size": noise(3, 6, 2, 1), "more classes": noise(3, 8, 3, 1), "no example": set.Subset(nil), "a label outside": wrong, "none": nil} {
		if _, _, err := l.Run(t.Context(), s, LocalRun{Epochs: 1, Rate: 0.1}); err == nil {
			t.Errorf("%s: trained", what)
		}
	}
	for what, r := range map[string]Recipe{
		"mixup": {Batch: 4, Mixup: 0.2}, "an average": {Batch: 4, Average: 0.9}, "privacy": {Batch: 4, Private: &Privacy{}},
		"uneven parts": {Batch: 5}, "an unknown optimiser": {Batch: 4, Optimizer: "lion"},
	} {
		if _, err := NewLocal(localNetwork(t), r, set); err == nil || !strings.HasPrefix(err.Error(), "train: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
