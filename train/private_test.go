package train

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx/autodiff"
)

// secret is a private recipe for corners; few steps, so that planning is quick.
func secret() Recipe {
	return Recipe{Epochs: 3, Batch: 60, Rate: 2e-2, Average: 0.8, Seed: 7, Augmentation: Augmentation{Shift: 1},
		Private: &Privacy{Epsilon: 8, Delta: 1e-4, Clip: 1, Views: 2, Micro: 32}}
}

func secretConfig(t testing.TB) Config {
	return Config{Network: tiny(t, 1), Train: corners(300, 1), Validation: corners(80, 2), Recipe: secret()}
}

// trainerFor is a trainer with a private step, planned or not.
func trainerFor(t *testing.T, c Config) *trainer {
	t.Helper()
	c.Recipe = c.Recipe.orDefault()
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	tr, err := newTrainer(c)
	skipWithoutRuntime(t, err)
	t.Cleanup(tr.close)
	return tr
}

// clippedByHand clips and sums materialised gradients in float64.
func clippedByHand(t *testing.T, tr *trainer, drawn []int, at int, norm float64) [][]float64 {
	t.Helper()
	loss, err := tr.loss.appendTo(tr.network.Model, tr.network.Logits)
	if err != nil {
		t.Fatal(err)
	}
	g, err := autodiff.Gradient(loss.Model, autodiff.Request{Loss: loss.Each, WithRespectTo: tr.network.Weights, PerExample: true, Batch: 1, WeightsAsInputs: true})
	if err != nil {
		t.Fatal(err)
	}
	session, err := engine.Open(g.Model, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	sums := make([][]float64, len(tr.network.Weights))
	views, shape := tr.config.Private.Views, append([]int64{1}, tr.example()...)
	for _, i := range drawn {
		mean := make([][]float64, len(sums))
		for v := range views {
			image, target := make([]float32, product(shape)), make([]float32, tr.outputs)
			tr.augmented(image, at*views+v, i)
			tr.label(target, i, 1)
			feed := map[string]engine.Tensor{
				tr.network.Input: engine.Float32(shape, image), loss.Target: engine.Float32([]int64{1, int64(tr.outputs)}, target),
			}
			for k, name := range tr.network.Weights {
				feed[name] = engine.Float32(tr.network.Model.Graph.Initializer(name).Dims, tr.state.Weights[k])
			}
			out, err := session.Run(t.Context(), feed)
			if err != nil {
				t.Fatal(err)
			}
			for k, name := range tr.network.Weights {
				values := out[g.Of[name]].Data.([]float32)
				if mean[k] == nil {
					mean[k] = make([]float64, len(values))
				}
				for j, x := range values {
					mean[k][j] += float64(x) / float64(views)
				}
			}
		}
		square := 0.0
		for _, w := range mean {
			for _, x := range w {
				square += x * x
			}
		}
		factor := min(1, norm/math.Sqrt(square))
		for k, w := range mean {
			if sums[k] == nil {
				sums[k] = make([]float64, len(w))
			}
			for j, x := range w {
				sums[k][j] += factor * x
			}
		}
	}
	return sums
}

// However the batch is cut, the sum is that of single images clipped by hand:
// no padding, no leftover of another microbatch, no image twice.
func TestMicrobatchesAddUpToTheBatch(t *testing.T) {
	drawn := []int{3, 4, 10, 11, 12, 50, 51, 99, 150, 151, 200, 201, 299}
	for _, cut := range []struct{ micro, parts, views int }{{32, 2, 2}, {6, 3, 2}, {64, 1, 1}, {9, 2, 3}, {1, 1, 1}} {
		c := secretConfig(t)
		c.Private.Micro, c.Private.Views = cut.micro, cut.views
		c.Parts = cut.parts
		tr := trainerFor(t, c)
		p := tr.private.step
		for _, norm := range []float64{0.3, 50} {
			want := clippedByHand(t, tr, drawn, 5, norm)
			within := 0
			for range 2 { // the second time over what the first left behind
				var err error
				if within, err = p.run(t.Context(), tr, drawn, 5, norm); err != nil {
					t.Fatal(err)
				}
			}
			if norm == 50 && within != len(drawn) || norm == 0.3 && within == len(drawn) {
				t.Errorf("%+v: %d of %d gradients are within %v", cut, within, len(drawn), norm)
			}
			for k, name := range tr.network.Weights {
				top, apart := 1e-9, 0.0
				for j, x := range want[k] {
					top, apart = math.Max(top, math.Abs(x)), math.Max(apart, math.Abs(x-p.sums[k][j]))
				}
				if apart > 1e-3*top {
					t.Errorf("%+v, norm %v: %s differs by %.2g of its largest element", cut, norm, name, apart/top)
				}
			}
		}
		if _, err := p.run(t.Context(), tr, nil, 5, 1); err != nil {
			t.Errorf("an empty batch: %v", err)
		}
		for k, sum := range p.sums {
			if slices.ContainsFunc(sum, func(v float64) bool { return v != 0 }) {
				t.Errorf("an empty batch left a sum in %s", tr.network.Weights[k])
			}
		}
	}
}

func TestAStepAddsTheNoiseThatWasPlanned(t *testing.T) {
	for _, clipping := range []string{ClipFlat, ClipLayer, ClipAdaptive} {
		c := secretConfig(t)
		c.Private.Clipping = clipping
		tr := trainerFor(t, c)
		tr.private.state = &privateState{Sigma: 3, Planned: 100, Clip: dp.Clip{Norm: 0.5}}
		want := 3 * 0.5 / 60.0 // σ·C over the expected batch
		if clipping == ClipAdaptive {
			tr.private.state.Clip = dp.Clip{Norm: 0.5, Quantile: 0.5, Rate: 1e-9, CountNoise: 3}
			want /= math.Sqrt(1 - 3*3/(4*3*3.0)) // the rest goes to the count
		}
		var sum, square, n float64
		var last [][]float32
		for range 6 {
			if err := tr.private.gradients(t.Context(), tr); err != nil {
				t.Fatal(err)
			}
			for i, g := range tr.gradient {
				for j, v := range g {
					if last != nil { // the difference of two steps has no gradient, but twice the noise
						d := float64(v) - float64(last[i][j])
						sum, square, n = sum+d, square+d*d, n+1
					}
				}
			}
			last = clone(tr.gradient)
		}
		got := math.Sqrt(square/n) / math.Sqrt2
		// The clipped gradients differ between batches, too: at most C·√B a step,
		// spread over all weights.
		weights := 0.0
		for _, w := range tr.state.Weights {
			weights += float64(len(w))
		}
		extra := 0.5 * math.Sqrt(60) / 60 / math.Sqrt(weights)
		// The noise is real, so the estimate strays: six standard errors of it,
		// n draws of which neighbours share a step, are left to chance.
		stray := 6 * math.Sqrt(1.5/n)
		if got < (1-stray)*want || got > (1+stray)*math.Hypot(want, extra) {
			t.Errorf("%s: noise of %.5g a weight, want %.5g within %.1f %%", clipping, got, want, 100*stray)
		}
		if tr.private.ledger.Steps() != 6 {
			t.Errorf("%s: 6 steps, %d charged", clipping, tr.private.ledger.Steps())
		}
	}
}

func TestAPrivateRunLearnsWithinItsBudgetAndSaysSo(t *testing.T) {
	c := secretConfig(t)
	c.Ledger = filepath.Join(t.TempDir(), "ledger")
	r := train(t, c)
	s := r.Privacy
	if s == nil || s.Epsilon > 8 || s.Epsilon < 7.8 || s.Steps != 15 || s.Lost != 0 || s.EpsilonRDP < s.Epsilon {
		t.Fatalf("statement %+v", s)
	}
	again, err := dp.PLD{}.Epsilon(dp.Run{Sigma: s.Sigma, Rate: 60.0 / 300, Steps: 15}, 1e-4)
	if err != nil || math.Abs(again-s.Epsilon) > 1e-9 {
		t.Errorf("the statement says %v, the accountant %v (%v)", s.Epsilon, again, err)
	}
	if best := r.History.Epochs[r.History.Best-1]; best.ValidationAUC < 0.9 {
		t.Errorf("validation AUC %.3f on an easy set", best.ValidationAUC)
	}
	for _, e := range r.History.Epochs {
		if e.Loss != 0 {
			t.Error("the training loss was released")
		}
	}
	var b bytes.Buffer
	if err := s.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"add or remove one record", "Poisson", "hyper-parameters", "validation images", "crypto/rand", "patient with k images"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the printed statement does not mention %q:\n%s", want, b.String())
		}
	}
	accounts, err := dp.Account(c.Ledger, 1e-4)
	if err != nil || accounts.Epsilon != s.Epsilon {
		t.Errorf("the ledger alone says %+v (%v)", accounts, err)
	}

	// The same again would double the loss.
	if _, err := Run(context.Background(), c, nil); !errors.Is(err, ErrBudget) {
		t.Errorf("a second run on a spent ledger: %v", err)
	}
	// With a larger budget it gets the rest, and both count.
	c.Recipe = secret()
	c.Private.Epsilon, c.Epochs = 12, 1
	more := train(t, c)
	if len(more.Privacy.Composition) != 2 || more.Privacy.Epsilon > 12 || more.Privacy.Epsilon < 11.5 {
		t.Errorf("after a second run: %+v", more.Privacy)
	}
	c.Train = corners(300, 3)
	if _, err := Run(context.Background(), c, nil); err == nil || !strings.Contains(err.Error(), "ledger of its own") {
		t.Errorf("another data set on the same ledger: %v", err)
	}
}

// The process dies in the middle of an epoch, after steps that no checkpoint
// holds. They stay charged, and the run ends that many steps earlier.
func TestAKilledPrivateRunPaysForTheStepsItLost(t *testing.T) {
	dir := t.TempDir()
	c := secretConfig(t)
	c.Checkpoint, c.Ledger = filepath.Join(dir, "checkpoint"), filepath.Join(dir, "ledger")
	ctx, cancel := context.WithCancel(context.Background())
	c.bits = &killer{bits: rand.NewChaCha8([32]byte{1}), after: killAfterSteps(t, 8), kill: cancel}
	var saved []byte // after the first epoch; a killed process saves nothing more
	_, err := Run(ctx, c, func(e Epoch) {
		if e.Epoch == 1 {
			var err error
			if saved, err = os.ReadFile(c.Checkpoint); err != nil {
				t.Error(err)
			}
		}
	})
	if !errors.Is(err, context.Canceled) {
		skipWithoutRuntime(t, err)
		t.Fatalf("the run was not cut off: %v", err)
	}
	if err := os.WriteFile(c.Checkpoint, saved, 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := dp.Account(c.Ledger, 1e-4)
	if err != nil {
		t.Fatal(err)
	}
	charged := before.Runs[0].Steps
	if charged <= 5 || charged >= 10 {
		t.Fatalf("%d steps were charged before the kill; the test wants the second epoch of 5", charged)
	}
	c.bits = rand.NewChaCha8([32]byte{2})
	r := train(t, c)
	if s := r.Privacy; s.Steps != 15 || s.Lost != charged-5 || s.Epsilon > 8 {
		t.Errorf("%d steps charged before the kill, then %+v", charged, s)
	}
	if n := len(r.History.Epochs); n != 3 {
		t.Errorf("%d epochs", n)
	}
	if r.History.Withheld == "" || r.History.Epochs[0].Loss != 0 {
		t.Errorf("the loss of the training images is %v, withheld %q", r.History.Epochs[0].Loss, r.History.Withheld)
	}

	// A ledger that has lost entries is not this run's.
	raw, err := os.ReadFile(c.Ledger)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(raw), "\n")
	if err := os.WriteFile(c.Ledger, []byte(strings.Join(lines[:4], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), c, nil); err == nil || !strings.Contains(err.Error(), "count too little") {
		t.Errorf("a shortened ledger was accepted: %v", err)
	}
}

// killer cancels the run when so many bytes have been read: in the middle of a
// step, as far as the trainer can tell.
type killer struct {
	bits  *rand.ChaCha8
	after int
	kill  func()
}

func (k *killer) Read(p []byte) (int, error) {
	if k.after -= len(p); k.after < 0 {
		k.kill()
	}
	return k.bits.Read(p)
}

// killAfterSteps is how many bytes that many steps read.
func killAfterSteps(t *testing.T, steps int) int {
	t.Helper()
	tr := trainerFor(t, secretConfig(t))
	counted := &killer{bits: rand.NewChaCha8([32]byte{1}), after: math.MaxInt, kill: func() {}}
	tr.private.sampler, tr.private.noise = dp.SamplerFrom(counted), dp.GaussianFrom(counted)
	tr.private.state = &privateState{Sigma: 1, Planned: 100, Clip: dp.Clip{Norm: 1}}
	if err := tr.private.gradients(t.Context(), tr); err != nil {
		t.Fatal(err)
	}
	return (math.MaxInt - counted.after) * steps
}

func TestNoiseIsNeverDrawnTwice(t *testing.T) {
	var first [][]float32
	for range 2 { // the same seed, the same everything but the noise
		tr := trainerFor(t, secretConfig(t))
		tr.private.state = &privateState{Sigma: 1, Planned: 100, Clip: dp.Clip{Norm: 1}}
		if err := tr.private.gradients(t.Context(), tr); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = clone(tr.gradient)
		} else if reflect.DeepEqual(first, tr.gradient) {
			t.Error("two runs drew the same noise")
		}
	}
}

// With given bits, as tests give them, a run repeats bit for bit, so that what
// is random in it is the given bits and nothing else; and the statement says so.
func TestGivenBitsAreSaidToBeNotPrivate(t *testing.T) {
	var models []string
	for range 2 {
		c := secretConfig(t)
		c.Epochs = 1
		c.bits = rand.NewChaCha8([32]byte{9})
		r := train(t, c)
		models = append(models, bytesOf(t, r.Model))
		if last := r.Privacy.Notes[len(r.Privacy.Notes)-1]; !strings.HasPrefix(last, "NOT PRIVATE") {
			t.Errorf("the last note is %q", last)
		}
	}
	if models[0] != models[1] {
		t.Error("the same bits gave two models")
	}
}

func TestWhatWouldSpoilPrivacyIsRefused(t *testing.T) {
	for want, spoil := range map[string]func(c *Config){
		"a privacy budget of epsilon":          func(c *Config) { c.Private.Epsilon = 0 },
		"delta 1: want it in":                  func(c *Config) { c.Private.Delta = 1 },
		"giving away one of them":              func(c *Config) { c.Private.Delta = 0.01 },
		"a clipping norm of":                   func(c *Config) { c.Private.Clip = -1 },
		"want flat, layer or adaptive":         func(c *Config) { c.Private.Clipping = "global" },
		"clipping to quantile":                 func(c *Config) { c.Private.Clipping, c.Private.Quantile = ClipAdaptive, 2 },
		"views of one image do its work":       func(c *Config) { c.Mixup = 0.2 },
		"class weights follow":                 func(c *Config) { c.ClassWeights = []float64{1, 2} },
		"leave it out":                         func(c *Config) { c.Clip = 1 },
		"microbatches of":                      func(c *Config) { c.Private.Views = 1 << 11 },
		"build the network with group normali": func(c *Config) { c.Network = withBatchNorm(t) },
	} {
		c := secretConfig(t)
		spoil(&c)
		_, err := Run(context.Background(), c, nil)
		if errors.Is(err, engine.ErrNoRuntime) {
			skipWithoutRuntime(t, err)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
	c := secretConfig(t)
	c.Network = withBatchNorm(t)
	if _, err := Run(context.Background(), c, nil); !errors.Is(err, ErrMixes) {
		t.Errorf("batch normalisation: %v", err)
	}
	tr := trainerFor(t, secretConfig(t))
	if err := tr.private.gradients(t.Context(), tr); err == nil {
		t.Error("a step was taken without a plan")
	}
}

// withBatchNorm puts a trained batch normalisation in front of the network.
func withBatchNorm(t *testing.T) *Network {
	t.Helper()
	n := tiny(t, 1)
	g := n.Model.Graph
	vector := func(name string, v float32) string {
		w := g.Initializer("norm1.scale").Clone()
		w.Name, w.Dims, w.Raw = name, []int64{1}, binary.LittleEndian.AppendUint32(nil, math.Float32bits(v))
		g.Initializers = append(g.Initializers, w)
		return name
	}
	names := []string{"image", vector("bn.scale", 1), vector("bn.shift", 0), vector("bn.mean", 0), vector("bn.variance", 1)}
	first := g.Nodes[0].Clone()
	first.Name, first.OpType, first.Inputs, first.Outputs, first.Attributes = "bn", "BatchNormalization", names, []string{"normal"}, nil
	for _, node := range g.Nodes {
		for i, in := range node.Inputs {
			if in == "image" {
				node.Inputs[i] = "normal"
			}
		}
	}
	g.Nodes = slices.Insert(g.Nodes, 0, first)
	n.Weights = append(n.Weights, "bn.scale", "bn.shift")
	return n
}

func TestNamedRecipesAreWhole(t *testing.T) {
	for _, r := range Recipes() {
		found, err := RecipeNamed(r.Name)
		if err != nil || !reflect.DeepEqual(found, r) {
			t.Errorf("%s: %v", r.Name, err)
		}
		set := corners(100, 1)
		set.Rows, set.Columns, set.Pixels, set.Labels = 28, 28, make([]uint8, 5000*28*28), make([]int, 5000)
		set.Labels[0], set.Pixels[0] = 1, 255
		r.Recipe = r.Recipe.orDefault()
		if err := (Config{Network: &Network{}, Train: set, Validation: set, Recipe: r.Recipe}).check(); err != nil {
			t.Errorf("%s: %v", r.Name, err)
		}
		if _, err := r.Network.ForRecipe(set, r.Recipe); err != nil {
			t.Fatal(err)
		}
		if r.Recipe.Private != nil && (r.Network.Mean != publicMean || r.Network.Deviation != publicDeviation || r.Network.GroupSize == 0) {
			t.Errorf("%s: the network %+v knows the data, or has no group normalisation", r.Name, r.Network)
		}
	}
	if _, err := RecipeNamed("nothing"); err == nil || !strings.Contains(err.Error(), "private-28") {
		t.Errorf("error is %v", err)
	}
}
