package train

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx"
)

// plainCNN has convolutions with biases and no normalisation.
func plainCNN(t testing.TB, classes int, seed uint64) *Network {
	t.Helper()
	n, err := CNN{Channels: 1, Rows: 12, Columns: 12, Classes: classes, Stages: [][]int{{4}, {6}}, Hidden: 8, Mean: 0.2, Deviation: 0.15}.Build(rand.New(rand.NewPCG(seed, 0)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func trainerOf(t testing.TB, c Config) *trainer {
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

func upTo(n int) (at []int) {
	for i := range n {
		at = append(at, i)
	}
	return at
}

// The adversary's image must be allowed, and on average not better than the
// random image that it began with: for every norm, loss and kind of network.
func TestTheInnerMaximisationRaisesTheLossAndStaysInBallAndRange(t *testing.T) {
	three, labels := noise(32, 12, 3, 1), noise(32, 12, 3, 2)
	labels.Labels, labels.Marks = nil, nil
	for i := range 32 {
		labels.Marks = append(labels.Marks, uint8(i%2), uint8(i/2%2), uint8(i/4%2))
	}
	small := corners(32, 3)
	six := noise(32, 6, 2, 4)
	one := importedLogit(t)
	for name, c := range map[string]Config{
		"classes": {Network: plainCNN(t, 3, 1), Train: three}, "labels": {Network: plainCNN(t, 3, 2), Train: labels},
		"group norm": {Network: tiny(t, 1), Train: small}, "batch norm": {Network: normalised(t), Train: six}, "one logit": {Network: one, Train: small},
	} {
		for _, h := range []Hardening{
			{Method: PGDAT, Eps: 0.1}, {Method: TRADES, Norm: L2, Eps: 0.8}, {Method: PGDAT, Norm: Patch, Side: 3},
			{Method: PGDAT, Eps: 0.1, Noise: 0.1}, {Method: PGDAT, Norm: L2, Eps: 0.8, Occlusion: &Occlusion{Sizes: []int{3}, Fill: Grey}},
		} {
			t.Run(fmt.Sprintf("%s %s %s", name, h.Method, h.Norm), func(t *testing.T) {
				spec := h
				c.Validation, c.Recipe = c.Train, Recipe{Epochs: 1, Batch: 16, Seed: 5, Hardening: &spec}
				tr := trainerOf(t, c)
				a, r, per := tr.hardened.adversary, tr.hardened.room, len(tr.batch.inputs)/16
				for b := range 16 {
					tr.hardened.streams[b] = rand.New(rand.NewPCG(9, uint64(b)))
					c.Train.Fill(tr.batch.inputs[b*per:(b+1)*per], b)
					tr.aim(tr.batch.targets[b*tr.outputs:(b+1)*tr.outputs], c.Train, b)
				}
				start := slices.Clone(tr.batch.inputs)
				var laid [][]square
				if tr.hardened.masker != nil {
					var err error
					if laid, err = tr.hardened.masker.masks(t.Context(), start, tr.batch.targets, tr.variables(), func(b int) *rand.Rand { return tr.hardened.streams[b] }); err != nil {
						t.Fatal(err)
					}
				}
				a.load(tr.variables())
				copy(a.targets, tr.batch.targets)
				chance := func(b int) *rand.Rand { return rand.New(rand.NewPCG(9, uint64(b))) }
				value := func(steps int) float64 {
					if err := tr.hardened.openRooms(t.Context(), start, laid, spec.Eps, 2); err != nil {
						t.Fatal(err)
					}
					if err := a.climb(t.Context(), r, steps, chance); err != nil {
						t.Fatal(err)
					}
					if err := a.ask(t.Context()); err != nil {
						t.Fatal(err)
					}
					sum := 0.0
					for b := range 16 {
						sum += tr.loss.logOdds(a.logits[b*tr.outputs:(b+1)*tr.outputs], a.targets[b*tr.outputs:(b+1)*tr.outputs])
					}
					return sum / 16
				}
				before, after := value(0), value(7)
				if !(after > before) {
					t.Errorf("log-odds %v at random starts, %v after the climb", before, after)
				}
				moved := 0
				for b := range 16 {
					x, y := start[b*per:(b+1)*per], a.images[b*per:(b+1)*per]
					norm, changed := 0.0, 0
					for i := range x {
						d := float64(y[i]) - float64(x[i])
						norm += d * d
						if d != 0 {
							changed++
						}
						if spec.Noise == 0 && !(y[i] >= 0 && y[i] <= 1) {
							t.Fatalf("image %d: pixel %d is %v", b, i, y[i])
						}
						if h.Norm == "" && math.Abs(d) > spec.Eps {
							t.Fatalf("image %d: pixel %d moved by %v", b, i, d)
						}
					}
					if h.Norm == L2 && math.Sqrt(norm) > spec.Eps {
						t.Errorf("image %d moved by %v", b, math.Sqrt(norm))
					}
					if h.Norm == Patch && changed > 9 {
						t.Errorf("image %d: %d pixels changed by a patch of 3×3", b, changed)
					}
					if b < 2 && changed > 0 {
						t.Errorf("image %d was to stay clean and %d pixels changed", b, changed)
					}
					if laid != nil {
						if len(laid[b]) == 0 {
							t.Errorf("image %d has no mask", b)
						}
						again := make([]float32, per) // what a mask hides is as the mask fills it
						if tr.hardened.masker.hide(again, y, laid[b]...); !slices.Equal(again, y) {
							t.Errorf("image %d: the adversary wrote on a mask", b)
						}
					}
					moved += changed
				}
				if moved == 0 {
					t.Error("nothing moved")
				}
			})
		}
	}
}

// importedLogit is a network whose one logit is that of class 1.
func importedLogit(t testing.TB) *Network {
	t.Helper()
	b := onnx.NewBuilder(17)
	open := onnx.Dim{Value: -1, Param: "batch"}
	x := b.Input("x", onnx.Float, open, onnx.Dim{Value: 1}, onnx.Dim{Value: 12}, onnx.Dim{Value: 12})
	w := make([]float32, 144)
	for i := range w {
		w[i] = float32(i%7-3) / 10
	}
	z := b.Op("Gemm", []string{b.Op("Flatten", []string{x}), b.Weight("w", []int64{1, 144}, w), b.Weight("c", []int64{1}, []float32{0.1})}, onnx.IntAttribute("transB", 1))
	b.Output(z, onnx.Float, open, onnx.Dim{Value: 1})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	n, err := Import(m, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const torchTrades = `
import sys, numpy as np
try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("no torch")
    sys.exit()
for path in sys.argv[1:]:
    d = np.load(path)
    names = [k[2:] for k in d.files if k.startswith("w/")]
    w = {k: torch.from_numpy(d["w/" + k]).double().requires_grad_() for k in names}
    def net(w, x):
        x = (x - 0.2) / 0.15
        x = F.max_pool2d(F.relu(F.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1)), 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, w["conv2.weight"], w["conv2.bias"], padding=1)), 2)
        x = F.relu(F.linear(x.flatten(1), w["hidden.weight"], w["hidden.bias"]))
        return F.linear(x, w["head.weight"], w["head.bias"])
    x, y, t = (torch.from_numpy(d[k]).double() for k in ("x", "perturbed", "targets"))
    beta, awp, labels = float(d["beta"][0]), float(d["awp"][0]), "labels" in d
    def loss(w):
        if labels:
            z = net(w, x)
            out = F.binary_cross_entropy_with_logits(z, t)
            if beta > 0:
                q = net(w, y)
                p = torch.sigmoid(z)
                out = out + beta * (p * (F.logsigmoid(z) - F.logsigmoid(q)) + (1 - p) * (F.logsigmoid(-z) - F.logsigmoid(-q))).mean()
            return out
        z = net(w, x)
        out = -(t * F.log_softmax(z, 1)).sum(1).mean()
        if beta > 0: # as in the authors' code, without their factor 1/N, which the mean is
            out = out + beta * F.kl_div(F.log_softmax(net(w, y), 1), F.softmax(z, 1), reduction="batchmean")
        return out
    l = loss(w)
    g = dict(zip(names, torch.autograd.grad(l, [w[k] for k in names])))
    if awp > 0:
        moved = {k: (v + awp * v.norm() * g[k] / g[k].norm()).detach().requires_grad_() if v.dim() > 1 else v for k, v in w.items()}
        g = dict(zip(names, torch.autograd.grad(loss(moved), [moved[k] for k in names])))
    worst = abs(l.item() - d["loss"][0])
    for k in names:
        worst = max(worst, (g[k] - torch.from_numpy(d["g/" + k])).abs().max().item() / g[k].abs().max().item())
    print(worst)
    assert worst < 2e-4, (path, worst)
`

// Loss and gradients of TRADES, and of both methods at adversarially perturbed
// weights, are PyTorch's in double precision on the images that were perturbed.
func TestTRADESAndWeightPerturbationHaveTheGradientsOfPyTorch(t *testing.T) {
	arguments := []string{"-c", torchTrades}
	for i, h := range []Hardening{
		{Method: TRADES, Eps: 0.05, Beta: 4}, {Method: TRADES, Eps: 0.05, AWP: 0.01}, {Method: PGDAT, Eps: 0.05, AWP: 0.02}, {Method: TRADES, Norm: L2, Eps: 0.5, Beta: 1},
	} {
		for _, kind := range []string{"classes", "labels"} {
			set := noise(16, 12, 3, uint64(i))
			if kind == "labels" {
				set.Labels = nil
				for k := range 48 {
					set.Marks = append(set.Marks, uint8(k*k/3%2))
				}
			}
			n := plainCNN(t, 3, uint64(i))
			spec := h
			tr := trainerOf(t, Config{Network: n, Train: set, Validation: set, Recipe: Recipe{Epochs: 1, Batch: 16, Smoothing: 0.1, Seed: 2, Hardening: &spec}})
			loss, err := tr.gradients(t.Context(), 0, upTo(16), upTo(16), nil)
			if err != nil {
				t.Fatal(err)
			}
			perturbed := tr.batch.perturbed
			if perturbed == nil {
				perturbed = tr.batch.inputs
			}
			arrays := map[string]Array{
				"x": {Shape: []int64{16, 1, 12, 12}, Data: tr.batch.inputs}, "perturbed": {Shape: []int64{16, 1, 12, 12}, Data: perturbed},
				"targets": {Shape: []int64{16, 3}, Data: tr.batch.targets}, "loss": {Shape: []int64{1}, Data: []float64{loss}},
				"beta": {Shape: []int64{1}, Data: []float64{tr.config.Hardening.trades()}}, "awp": {Shape: []int64{1}, Data: []float64{h.AWP}},
			}
			if kind == "labels" {
				arrays["labels"] = Array{Shape: []int64{1}, Data: []float32{1}}
			}
			for k, name := range n.Weights {
				w := n.Model.Graph.Initializer(name)
				before, err := onnx.Values[float32](w)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(before, tr.state.Weights[k]) {
					t.Errorf("%s is not what it was before the gradient", name)
				}
				arrays["w/"+name] = Array{Shape: w.Dims, Data: before}
				arrays["g/"+name] = Array{Shape: w.Dims, Data: tr.gradient[k]}
			}
			var data bytes.Buffer
			if err := WriteNPZ(&data, arrays); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), fmt.Sprintf("%d-%s.npz", i, kind))
			if err := os.WriteFile(path, data.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			arguments = append(arguments, path)
		}
	}
	out, err := exec.Command("/usr/bin/python3", arguments...).CombinedOutput()
	var failed *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &failed), bytes.HasPrefix(out, []byte("no torch")):
		t.Skipf("SKIPPED, nothing was checked: Debian's python3-torch is not installed (make setup-peers): %v %s", err, out)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	default:
		t.Logf("largest differences: %s", bytes.Fields(out))
	}
}

// The same without PyTorch: along its gradient, the loss of TRADES rises as fast
// as the gradient is long.
func TestTheGradientOfTRADESIsItsSlope(t *testing.T) {
	set := noise(16, 12, 3, 4)
	tr := trainerOf(t, Config{Network: plainCNN(t, 3, 3), Train: set, Validation: set, Recipe: Recipe{Epochs: 1, Batch: 16, Seed: 2, Hardening: &Hardening{Method: TRADES, Eps: 0.1, Beta: 3}}})
	if _, err := tr.gradients(t.Context(), 0, upTo(16), upTo(16), nil); err != nil {
		t.Fatal(err)
	}
	gradient := clone(tr.gradient)
	norm := Clip(gradient, 0)
	move := func(by float64) float64 {
		for i, g := range gradient {
			for j, v := range g {
				tr.state.Weights[i][j] += float32(by / norm * float64(v))
			}
		}
		loss, err := tr.step.run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return loss
	}
	const h = 2e-3
	up := move(h)
	down := move(-2 * h)
	if slope := (up - down) / (2 * h); math.Abs(slope-norm) > 0.02*norm {
		t.Errorf("the loss rises by %v, the gradient's length is %v", slope, norm)
	}
}

// Everything at once, killed at any step.
func TestAHardenedRunTakenUpWithinAnEpochEndsBitForBitTheSame(t *testing.T) {
	set, val := noise(64, 6, 2, 1), noise(16, 6, 2, 2)
	for i, h := range []Hardening{
		{Method: TRADES, Eps: 0.1, Steps: 2, Ramp: 1, AWP: 0.01, Occlusion: &Occlusion{Sizes: []int{2}, Patch: 1, Grid: 3, WorstOf: 2, Share: 0.5}},
		{Method: PGDAT, Norm: L2, Eps: 0.5, Steps: 2, Clean: 0.25, Noise: 0.1},
	} {
		spec := h
		recipe := Recipe{Epochs: 2, Batch: 16, Rate: 1e-2, Average: 0.9, Mixup: 0.3, Clip: 0.5, Seed: 3, Augmentation: Augmentation{Shift: 1}, Hardening: &spec}
		whole := train(t, Config{Network: normalised(t), Train: set, Validation: val, Recipe: recipe})
		c := Config{Network: normalised(t), Train: set, Validation: val, Recipe: recipe, Checkpoint: filepath.Join(t.TempDir(), "checkpoint"), CheckpointEvery: 1}
		kills := 0
		var result *Result
		for {
			var err error
			if result, err = Run(countdownOf(t, []int{80, 35}[i]), c, nil); err == nil {
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if kills++; kills > 100 {
				t.Fatal("no progress over 100 kills")
			}
		}
		if bytesOf(t, result.Model) != bytesOf(t, whole.Model) || bytesOf(t, result.Strongest) != bytesOf(t, whole.Strongest) {
			t.Errorf("killed %d times: another model", kills)
		}
		if kills < 2 {
			t.Errorf("killed %d times only", kills)
		}
		for i, e := range result.History.Epochs {
			if w := whole.History.Epochs[i]; e.Loss != w.Loss || e.Robust != w.Robust {
				t.Errorf("epoch %d: %+v, was %+v", i+1, e, w)
			}
		}
	}
}

func TestAHardenedModelDoesNotDependOnTheNumberOfProcessors(t *testing.T) {
	set, val := corners(64, 1), corners(32, 2)
	var models []string
	for _, processors := range []int{1, 3} {
		before := runtime.GOMAXPROCS(processors)
		r := train(t, Config{Network: tiny(t, 1), Train: set, Validation: val, Recipe: Recipe{Epochs: 1, Batch: 16, Parts: 4, Rate: 1e-2, Seed: 7,
			Hardening: &Hardening{Method: PGDAT, Eps: 0.05, Steps: 3, Occlusion: &Occlusion{Sizes: []int{3, 5}, WorstOf: 3, Fill: Mean}}}})
		runtime.GOMAXPROCS(before)
		models = append(models, bytesOf(t, r.Model))
	}
	if models[0] != models[1] {
		t.Error("another model on three processors than on one")
	}
}

// A class is told by a faint pattern that an adversary can undo, and by a strong
// one that says so less often: the plain network leans on the faint one.
func fragile(n int, seed uint64) *Set {
	s := noise(n, 12, 2, seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	for i := range n {
		image, class := s.Image(i), s.Labels[i]
		for p := range image {
			image[p] = uint8(80 + rng.IntN(7) + 10*class*(p%2))
		}
		strong := class
		if rng.IntN(8) == 0 {
			strong = 1 - class
		}
		for y := range 4 {
			for x := range 4 {
				image[y*12+x] += uint8(50 * strong)
			}
		}
	}
	return s
}

// linear is a linear classifier of images of 12×12.
func linear(t testing.TB) *Network {
	t.Helper()
	b := onnx.NewBuilder(17)
	open := onnx.Dim{Value: -1, Param: "batch"}
	x := b.Input("x", onnx.Float, open, onnx.Dim{Value: 1}, onnx.Dim{Value: 12}, onnx.Dim{Value: 12})
	x = b.Op("Div", []string{b.Op("Sub", []string{x, b.Weight("mean", []int64{}, []float32{0.35})}), b.Weight("deviation", []int64{}, []float32{0.1})})
	z := b.Op("Gemm", []string{b.Op("Flatten", []string{x}), b.Weight("w", []int64{2, 144}, make([]float32, 288)), b.Weight("c", []int64{2}, make([]float32, 2))}, onnx.IntAttribute("transB", 1))
	b.Output(z, onnx.Float, open, onnx.Dim{Value: 2})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	n, err := Import(m, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestHardeningTeachesWhatAnAdversaryCannotUndo(t *testing.T) {
	set, val := fragile(256, 1), fragile(96, 2)
	h := *(&Hardening{Method: PGDAT, Eps: 10.0 / 255, Steps: 4}).orDefault()
	withstood := map[string]float64{}
	for _, method := range []string{"", PGDAT, TRADES} {
		r := Recipe{Epochs: 8, Batch: 16, Rate: 2e-2, Average: 0.9, Seed: 7}
		if method != "" {
			spec := h
			spec.Method, spec.Ramp = method, 3
			r.Hardening = &spec
		}
		n := linear(t)
		result := train(t, Config{Network: n, Train: set, Validation: val, Recipe: r})
		trained := *n
		trained.Model = result.Model
		v, err := Withstands(t.Context(), &trained, val, &h, 1)
		if err != nil {
			t.Fatal(err)
		}
		withstood[method] = v.Value
		if e := result.History; method == PGDAT && math.Abs(e.Epochs[e.Best-1].Robust-v.Value) > 0.05 {
			t.Errorf("the run says that its best epoch withstands %v, Withstands %v", e.Epochs[e.Best-1].Robust, v)
		}
	}
	if withstood[""] > 0.4 || withstood[PGDAT] < 0.75 || withstood[TRADES] < 0.75 {
		t.Errorf("share withstood, by method: %v", withstood)
	}
}

// Of epochs that keep the floor the strongest is kept, and never one below it
// while there is another.
func TestTheKeptEpochIsTheStrongestOfThoseThatKeepTheFloor(t *testing.T) {
	h := &Hardening{Floor: 0.9}
	order := []Epoch{ // from worst to best
		{ValidationAUC: 0.7, Robust: 0.9}, {ValidationAUC: 0.89, Robust: 0.95}, {ValidationAUC: 0.95, Robust: 0.1},
		{ValidationAUC: 0.9, Robust: 0.5, ValidationLoss: 0.4}, {ValidationAUC: 0.9, Robust: 0.5, ValidationLoss: 0.3}, {ValidationAUC: 0.92, Robust: 0.5},
	}
	for i, a := range order {
		for j, b := range order {
			if got := h.better(a, b); got != (i > j) {
				t.Errorf("%+v better than %+v: %v", a, b, got)
			}
		}
	}
	set, val := fragile(256, 1), fragile(96, 2)
	r := train(t, Config{Network: tiny(t, 1), Train: set, Validation: val, Recipe: Recipe{Epochs: 4, Batch: 16, Rate: 1e-2, Seed: 7,
		Hardening: &Hardening{Method: PGDAT, Eps: 10.0 / 255, Steps: 3, Ramp: 3, Floor: 0.97}}})
	best, strongest := r.History.Epochs[r.History.Best-1], r.History.Epochs[r.History.Strongest-1]
	for _, e := range r.History.Epochs {
		if e.ValidationAUC >= 0.97 && (best.ValidationAUC < 0.97 || e.Robust > best.Robust) || e.Robust > strongest.Robust {
			t.Errorf("kept %+v and as the strongest %+v, and there is %+v", best, strongest, e)
		}
	}
}

func TestHardeningThatIsNoneIsRefusedBeforeTraining(t *testing.T) {
	set := corners(64, 1)
	table := columns(64, 1)
	good := Hardening{Method: PGDAT, Eps: 0.03}
	for want, change := range map[string]func(*Config){
		"eps 0":                 func(c *Config) { c.Hardening.Eps = 0 },
		"eps -0.1":              func(c *Config) { c.Hardening.Eps = -0.1 },
		"eps NaN":               func(c *Config) { c.Hardening.Eps = math.NaN() },
		"eps 8":                 func(c *Config) { c.Hardening.Eps = 8 },
		"eps +Inf":              func(c *Config) { c.Hardening.Norm, c.Hardening.Eps = L2, math.Inf(1) },
		`method "madry"`:        func(c *Config) { c.Hardening.Method = "madry" },
		`norm "l1"`:             func(c *Config) { c.Hardening.Norm = "l1" },
		"-1 steps":              func(c *Config) { c.Hardening.Steps = -1 },
		"a ramp of 9":           func(c *Config) { c.Hardening.Ramp = 9 },
		"a beta of 3":           func(c *Config) { c.Hardening.Beta = 3 },
		"a clean share of 1":    func(c *Config) { c.Hardening.Clean = 1 },
		"a weight perturbation": func(c *Config) { c.Hardening.AWP = -0.1 },
		"noise of deviation -1": func(c *Config) { c.Hardening.Noise = -1 },
		"an AUC floor of 2":     func(c *Config) { c.Hardening.Floor = 2 },
		"a patch of side 0":     func(c *Config) { c.Hardening.Norm, c.Hardening.Eps = Patch, 0 },
		"a patch of side 13":    func(c *Config) { c.Hardening.Norm, c.Hardening.Eps, c.Hardening.Side = Patch, 0, 13 },
		"bounded by linf":       func(c *Config) { c.Hardening.Side = 3 },
		"no adversary, no mask": func(c *Config) { c.Hardening = &Hardening{} },
		"without an adversary":  func(c *Config) { c.Hardening = &Hardening{Eps: 0.1, Noise: 0.1} },
		"masks of no size":      func(c *Config) { c.Hardening.Occlusion = &Occlusion{} },
		"a mask of side 12":     func(c *Config) { c.Hardening.Occlusion = &Occlusion{Sizes: []int{12}} },
		"a patch of 12":         func(c *Config) { c.Hardening.Occlusion = &Occlusion{Patch: 12} },
		"9 masks":               func(c *Config) { c.Hardening.Occlusion = &Occlusion{Patch: 3, Masks: 9} },
		`filled with "pink"`:    func(c *Config) { c.Hardening.Occlusion = &Occlusion{Patch: 3, Fill: "pink"} },
		"a share of 2":          func(c *Config) { c.Hardening.Occlusion = &Occlusion{Patch: 3, Share: 2} },
		"the worst of -1":       func(c *Config) { c.Hardening.Occlusion = &Occlusion{Patch: 3, WorstOf: -1} },
		"differential privacy":  func(c *Config) { c.Private = &Privacy{Epsilon: 8, Delta: 1e-5} },
		"examples of shape":     func(c *Config) { c.Train, c.Validation = table, table },
	} {
		h := good
		c := Config{Network: tiny(t, 1), Train: set, Validation: set, Recipe: Recipe{Epochs: 3, Batch: 16, Hardening: &h}}
		change(&c)
		if _, err := Run(t.Context(), c, nil); !errors.Is(err, ErrHardening) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v", want, err)
		}
	}
}

func TestBetweenTwoModelsLieBoth(t *testing.T) {
	a, b := tiny(t, 1), tiny(t, 2)
	for share, want := range map[float64]*onnx.Model{0: a.Model, 1: b.Model} {
		m, err := Interpolate(a.Model, b.Model, share)
		if err != nil {
			t.Fatal(err)
		}
		if bytesOf(t, m) != bytesOf(t, want) {
			t.Errorf("at %g it is another model", share)
		}
	}
	m, err := Interpolate(a.Model, b.Model, 0.25)
	if err != nil {
		t.Fatal(err)
	}
	of := func(m *onnx.Model) float64 {
		v, err := onnx.Values[float32](m.Graph.Initializer("conv1.weight"))
		if err != nil {
			t.Fatal(err)
		}
		return float64(v[3])
	}
	near(t, "a quarter of the way", of(m), 0.75*of(a.Model)+0.25*of(b.Model), 1e-6)
	if _, err := Interpolate(a.Model, plainCNN(t, 2, 1).Model, 0.5); err == nil {
		t.Error("two networks of different graphs have a middle")
	}
}

func TestTheCostInAUCIsPaired(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	s := noise(200, 2, 2, 1)
	before, after := make([][]float64, 200), make([][]float64, 200)
	for i, l := range s.Labels {
		v := rng.NormFloat64() + 2*float64(l)
		before[i] = []float64{0, v}
		after[i] = []float64{0, v + 0.05*rng.NormFloat64()} // nearly the same order
	}
	same, err := s.AUCCost(before, before, 200, 1)
	if err != nil || same != (Interval{}) {
		t.Errorf("the cost of nothing is %+v, %v", same, err)
	}
	cost, err := s.AUCCost(before, after, 200, 1)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := s.MeanAUC(before)
	b, _ := s.MeanAUC(after)
	near(t, "cost", cost.Value, a-b, 1e-12)
	single, err := s.AUCInterval(before, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !(cost.Low <= cost.Value && cost.Value <= cost.High) || cost.High-cost.Low > 0.3*(single.High-single.Low) {
		t.Errorf("the cost is %+v; of one AUC the interval is %+v", cost, single)
	}
}

func TestATradeOffIsDrawnWhateverHappened(t *testing.T) {
	at := func(v float64) Interval { return Interval{v, v - 0.05, v + 0.05} }
	for _, d := range []TradeOff{
		{}, {Bounds: []string{"apgd-ce, 8/255"}, Floor: 0.9, Points: []TradePoint{
			{Name: "before", AUC: at(0.93), Robust: []Interval{at(0.1)}}, {Name: "epoch 3", Kept: true, AUC: at(0.92), Robust: []Interval{at(0.7)}}}},
	} {
		picture, err := d.PNG()
		if err != nil || !bytes.HasPrefix(picture, []byte("\x89PNG")) {
			t.Errorf("no picture: %v", err)
		}
		for _, p := range d.Points {
			if !bytes.Contains(d.SVG(), []byte(p.Name)) {
				t.Errorf("%s is not in the picture", p.Name)
			}
		}
	}
}

func TestAGraphOfOneBatchSizeIsNotHardened(t *testing.T) {
	set, n := corners(32, 1), tiny(t, 1)
	fixed := *n
	fixed.Model = n.Model.Clone()
	for i := range fixed.Model.Graph.Inputs {
		fixed.Model.Graph.Inputs[i].Shape[0] = onnx.Dim{Value: 16}
	}
	fixed.Model.Graph.Outputs[0].Shape[0] = onnx.Dim{Value: 16}
	_, err := Run(t.Context(), Config{Network: &fixed, Train: set, Validation: set, Recipe: Recipe{Epochs: 1, Batch: 16, Parts: 1, Hardening: &Hardening{Noise: 0.1}}}, nil)
	if !errors.Is(err, ErrHardening) || !strings.Contains(err.Error(), "batches of 16 only") {
		skipWithoutRuntime(t, err)
		t.Errorf("error is %v", err)
	}
}
