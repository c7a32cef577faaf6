package train

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx"
)

// corners is an easy set: class 1 is bright at the top left, class 0 is not.
func corners(n int, seed uint64) *Set {
	s := noise(n, 12, 2, seed)
	for i := range n {
		image := s.Image(i)
		for p := range image {
			image[p] /= 3
		}
		if s.Labels[i] == 1 {
			for y := range 4 {
				for x := range 4 {
					image[y*12+x] += 120
				}
			}
		}
	}
	return s
}

func tiny(t testing.TB, seed uint64) *Network {
	t.Helper()
	n, err := CNN{Channels: 1, Rows: 12, Columns: 12, Classes: 2, Stages: [][]int{{4}, {8}}, GroupSize: 4, Hidden: 8, Mean: 0.2, Deviation: 0.15}.Build(rand.New(rand.NewPCG(seed, 0)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var quick = Recipe{Epochs: 3, Batch: 16, Rate: 1e-2, Warmup: 0.5, Decay: 0.01, Average: 0.9, Seed: 7,
	Augmentation: Augmentation{Shift: 1, Noise: 0.05}, Mixup: 0.2, Smoothing: 0.05}

func train(t testing.TB, c Config) *Result {
	t.Helper()
	r, err := Run(context.Background(), c, nil)
	skipWithoutRuntime(t, err)
	return r
}

// bytesOf is the model as a file.
func bytesOf(t testing.TB, m *onnx.Model) string {
	t.Helper()
	data, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestTheSameSeedGivesTheSameModelBitForBit(t *testing.T) {
	set, val := corners(96, 1), corners(32, 2)
	run := func(seed uint64) string {
		r := quick
		r.Seed = seed
		return bytesOf(t, train(t, Config{Network: tiny(t, seed), Train: set, Validation: val, Recipe: r}).Model)
	}
	first := run(7)
	if run(7) != first {
		t.Error("two runs of one seed differ")
	}
	if run(8) == first {
		t.Error("another seed gives the same model")
	}
}

func TestAnEasyProblemIsLearned(t *testing.T) {
	for _, optimizer := range []string{"adamw", "sgd"} {
		r := quick
		r.Optimizer, r.Epochs = optimizer, 6
		if optimizer == "sgd" {
			r.Rate = 0.05
		}
		result := train(t, Config{Network: tiny(t, 1), Train: corners(256, 1), Validation: corners(64, 2), Recipe: r})
		best := result.History.Epochs[result.History.Best-1]
		if best.ValidationAUC < 0.99 {
			t.Errorf("%s: validation AUC is %.3f", optimizer, best.ValidationAUC)
		}
		// The model file answers as the report says.
		logits, err := Logits(t.Context(), result.Model, "image", "logits", corners(64, 2))
		if err != nil {
			t.Fatal(err)
		}
		auc, err := corners(64, 2).MeanAUC(logits)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "AUC of the saved model", auc, best.ValidationAUC, 1e-9)
	}
}

// A run that is killed after any epoch and started again ends with the weights
// of one that was never interrupted.
func TestAResumedRunEndsBitForBitWhereAnUninterruptedOneDoes(t *testing.T) {
	set, val := corners(96, 1), corners(32, 2)
	for _, optimizer := range []string{"adamw", "sgd"} {
		r := quick
		r.Optimizer = optimizer
		whole := train(t, Config{Network: tiny(t, 3), Train: set, Validation: val, Recipe: r})
		checkpoint := filepath.Join(t.TempDir(), "checkpoint")
		c := Config{Network: tiny(t, 3), Train: set, Validation: val, Recipe: r, Checkpoint: checkpoint}
		ctx, kill := context.WithCancel(context.Background())
		_, err := Run(ctx, c, func(Epoch) { kill() })
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("%s: error is %v", optimizer, err)
		}
		c.Network = tiny(t, 3) // a new process
		resumed := train(t, c)
		if bytesOf(t, resumed.Model) != bytesOf(t, whole.Model) {
			t.Errorf("%s: the resumed run ended elsewhere", optimizer)
		}
		if len(resumed.History.Epochs) != r.Epochs {
			t.Errorf("%s: history has %d epochs", optimizer, len(resumed.History.Epochs))
		}
		c.Seed++
		if _, err := Run(context.Background(), c, nil); err == nil || !strings.Contains(err.Error(), "another recipe") {
			t.Errorf("%s: a checkpoint of another recipe is taken up: %v", optimizer, err)
		}
	}
}

// Splitting a batch changes only the order of sums.
func TestTheGradientDoesNotDependOnHowABatchIsSplit(t *testing.T) {
	set := corners(32, 1)
	var reference [][]float32
	var loss float64
	for _, parts := range []int{1, 2, 4} {
		r := quick
		r.Parts = parts
		r.ClassWeights = []float64{1, 3}
		tr, err := newTrainer(Config{Network: tiny(t, 5), Train: set, Validation: set, Recipe: r.orDefault()})
		skipWithoutRuntime(t, err)
		rng := rand.New(rand.NewPCG(1, 1))
		at, partner := rng.Perm(16), rng.Perm(16)
		got, err := tr.gradients(t.Context(), 0, at, partner, rng)
		if err != nil {
			t.Fatal(err)
		}
		if reference == nil {
			reference, loss = clone(tr.gradient), got
		}
		near(t, "loss", got, loss, 1e-5)
		for i, w := range tr.gradient {
			for j := range w {
				near(t, tr.config.Network.Weights[i], float64(w[j]), float64(reference[i][j]), 1e-5)
			}
		}
		tr.close()
	}
}

func TestPatienceEndsARunThatNoLongerImproves(t *testing.T) {
	r := quick
	r.Epochs, r.Patience, r.Rate = 40, 2, 1e-9
	r.Average = 0
	result := train(t, Config{Network: tiny(t, 1), Train: corners(64, 1), Validation: corners(32, 2), Recipe: r})
	if n := len(result.History.Epochs); n > 20 || n != result.History.Best+2 {
		t.Errorf("%d epochs, best %d", n, result.History.Best)
	}
}

func TestARunThatDivergesSaysSo(t *testing.T) {
	r := Recipe{Epochs: 3, Batch: 16, Optimizer: "sgd", Rate: 1e30, Seed: 1}
	network, err := CNN{Channels: 1, Rows: 12, Columns: 12, Classes: 2, Stages: [][]int{{4}}, Mean: 0.2, Deviation: 0.15}.Build(rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(context.Background(), Config{Network: network, Train: corners(64, 1), Validation: corners(32, 2), Recipe: r}, nil)
	if err != nil && !errors.Is(err, ErrDiverged) {
		skipWithoutRuntime(t, err)
	}
	if !errors.Is(err, ErrDiverged) {
		t.Errorf("error is %v", err)
	}
}

func TestMistakesAreFoundBeforeTrainingStarts(t *testing.T) {
	good := Config{Network: tiny(t, 1), Train: corners(64, 1), Validation: corners(32, 2), Recipe: quick}
	for says, change := range map[string]func(*Config){
		"epochs":        func(c *Config) { c.Epochs = 0 },
		"parts":         func(c *Config) { c.Parts = 3 },
		"fill one":      func(c *Config) { c.Train = corners(8, 1) },
		"class weights": func(c *Config) { c.ClassWeights = []float64{1} },
		"optimizer":     func(c *Config) { c.Optimizer = "lion" },
		"smoothing":     func(c *Config) { c.Smoothing = 1 },
		"are needed":    func(c *Config) { c.Validation = nil },
		"has label 5":   func(c *Config) { c.Train = corners(64, 1); c.Train.Labels[3] = 5 },
		"no weight":     func(c *Config) { n := *c.Network; n.Weights = []string{"missing"}; c.Network = &n },
	} {
		c := good
		change(&c)
		if _, err := Run(context.Background(), c, nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
}

func TestBalancedWeightsMakeClassesCountAlike(t *testing.T) {
	s := noise(12, 2, 3, 1)
	s.Labels = []int{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2}
	w := BalancedWeights(s)
	total := 0.0
	for c, n := range s.Counts() {
		near(t, "weight of a class", w[c]*float64(n), 4, 1e-12)
		total += w[c] * float64(n)
	}
	near(t, "mean weight", total/12, 1, 1e-12)
}

func TestMixupDrawsFromTheBetaDistribution(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	sum, squares, n := 0.0, 0.0, 20000
	for range n {
		v := beta(rng, 0.4)
		sum += v
		squares += v * v
	}
	mean := sum / float64(n)
	near(t, "mean", mean, 0.5, 0.01)
	near(t, "variance", squares/float64(n)-mean*mean, 1/(4*(2*0.4+1)), 0.005)
}

func TestInitialWeightsKeepTheVariance(t *testing.T) {
	n, err := DemoCNN.Build(rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range n.Weights {
		w := n.Model.Graph.Initializer(name)
		v, err := onnx.Values[float32](w)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(name, "conv") || len(v) < 2000 {
			continue
		}
		squares := 0.0
		for _, x := range v {
			squares += float64(x) * float64(x)
		}
		fan := float64(w.Dims[1] * w.Dims[2] * w.Dims[3])
		near(t, name+": variance times fan-in", squares/float64(len(v))*fan, 2, 0.2)
	}
	if !slices.Contains(n.Weights, "head.bias") || n.Layer != "relu5" {
		t.Errorf("weights %v, layer %q", n.Weights, n.Layer)
	}
}

func TestNetworksThatCannotBeBuiltAreRefused(t *testing.T) {
	for says, change := range map[string]func(*CNN){
		"groups":   func(c *CNN) { c.GroupSize = 5 },
		"nothing":  func(c *CNN) { c.Stages = [][]int{{4}, {4}, {4}, {4}, {4}, {4}, {4}} },
		"classes":  func(c *CNN) { c.Classes = 1 },
		"positive": func(c *CNN) { c.Deviation = 0 },
	} {
		c := DemoCNN
		change(&c)
		if _, err := c.Build(rand.New(rand.NewPCG(1, 0))); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
}

func TestTheHistoryHoldsTheRecipe(t *testing.T) {
	result := train(t, Config{Network: tiny(t, 1), Train: corners(64, 1), Validation: corners(32, 2), Recipe: quick})
	if !reflect.DeepEqual(result.History.Recipe, quick.orDefault()) || result.History.Images != 64 || result.History.Validation != 32 {
		t.Errorf("history is %+v", result.History)
	}
	for _, e := range result.History.Epochs {
		if math.IsNaN(e.Loss) || e.Duration <= 0 {
			t.Errorf("epoch is %+v", e)
		}
	}
}
