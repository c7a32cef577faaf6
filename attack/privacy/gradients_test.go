package privacy

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

const side = 10

var open = onnx.Dim{Value: -1, Param: "n"}

// needsRuntime skips a test where ONNX Runtime is absent.
func needsRuntime(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was computed: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func random(rng *rand.Rand, n int, scale float64) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(scale * rng.NormFloat64())
	}
	return v
}

// multilayer normalises pixels and has one hidden layer; transposed says how its
// weight lies.
func multilayer(t *testing.T, hidden, outputs int, transposed bool) *onnx.Model {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, open, onnx.Dim{Value: 1}, onnx.Dim{Value: side}, onnx.Dim{Value: side})
	x = b.Op("Sub", []string{x, b.Weight("mean", []int64{}, []float32{0.4})})
	x = b.Op("Div", []string{x, b.Weight("deviation", []int64{}, []float32{0.3})})
	x = b.Op("Flatten", []string{x})
	const n = side * side
	if transposed {
		x = b.Op("Add", []string{b.Op("MatMul", []string{x, b.Weight("w", []int64{n, int64(hidden)}, random(rng, n*hidden, 0.1))}), b.Weight("b", []int64{int64(hidden)}, random(rng, hidden, 0.1))})
	} else {
		x = b.Op("Gemm", []string{x, b.Weight("w", []int64{int64(hidden), n}, random(rng, n*hidden, 0.1)), b.Weight("b", []int64{int64(hidden)}, random(rng, hidden, 0.1))}, onnx.IntAttribute("transB", 1))
	}
	x = b.Op("Relu", []string{x})
	x = b.Op("Gemm", []string{x, b.Weight("head", []int64{int64(hidden), int64(outputs)}, random(rng, hidden*outputs, 0.3)), b.Weight("shift", []int64{int64(outputs)}, random(rng, outputs, 0.3))})
	b.Node(&onnx.Node{OpType: "Identity", Inputs: []string{x}, Outputs: []string{"z"}}, 1)
	b.Output("z", onnx.Float, open, onnx.Dim{Value: int64(outputs)})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func images(n int, seed uint64) ([][]float32, []int) {
	rng := rand.New(rand.NewPCG(seed, 5))
	var all [][]float32
	var labels []int
	for range n {
		image := make([]float32, side*side)
		level, slope := rng.Float64(), rng.Float64()-0.5
		for i := range image {
			image[i] = float32(max(0, min(1, level+slope*float64(i%side)/side+0.15*rng.NormFloat64())))
		}
		all, labels = append(all, image), append(labels, rng.IntN(2))
	}
	return all, labels
}

func TestOneImageIsReadOffALinearLayerExactly(t *testing.T) {
	for _, transposed := range []bool{false, true} {
		for _, outputs := range []int{1, 2, 3} {
			m := multilayer(t, 20, outputs, transposed)
			layer, err := FirstLayer(context.Background(), m, "x")
			needsRuntime(t, err)
			leak, err := NewLeak(m, LeakOptions{Input: "x", Logits: "z", Weights: []string{layer.Weight, layer.Bias}, Batch: 1})
			needsRuntime(t, err)
			defer leak.Close()
			all, labels := images(3, 9)
			for i, image := range all {
				g, err := leak.Gradients(context.Background(), [][]float32{image}, labels[i:i+1])
				if err != nil {
					t.Fatal(err)
				}
				found := layer.Found(g[0], g[1], 0, 1)
				if len(found) == 0 {
					t.Fatal("nothing was found")
				}
				for _, f := range found { // every unit that it moved holds all of it
					for j := range f {
						if math.Abs(float64(f[j]-image[j])) > 1e-4 {
							t.Fatalf("transposed %v, %d outputs, image %d: pixel %d is %v, was %v", transposed, outputs, i, j, f[j], image[j])
						}
					}
				}
			}
		}
	}
}

func TestPairsOfUnitsGiveImagesThatNoUnitGivesAlone(t *testing.T) {
	for _, outputs := range []int{1, 2} {
		m := multilayer(t, 120, outputs, outputs == 1)
		layer, err := FirstLayer(context.Background(), m, "x")
		needsRuntime(t, err)
		leak, err := NewLeak(m, LeakOptions{Input: "x", Logits: "z", Weights: []string{layer.Weight, layer.Bias}, Batch: 12})
		needsRuntime(t, err)
		defer leak.Close()
		all, labels := images(12, 21)
		never, _ := images(12, 22)
		g, err := leak.Gradients(context.Background(), all, labels)
		if err != nil {
			t.Fatal(err)
		}
		count := func() *Hits {
			h, err := Count(layer.Found(g[0], g[1], 0, 1), all, never, append(append([][]float32{}, all...), never...), Matching{side, side, 0.9})
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		both := count()
		layer.Share = nil
		alone := count()
		if both.Hits < alone.Hits+2 || both.NeverHits != 0 {
			t.Errorf("%d outputs: %d of 12 by pairs, %d by units alone, %d that were never there", outputs, both.Hits, alone.Hits, both.NeverHits)
		}
	}
}

func TestAModelThatBeginsWithAConvolutionHasNoLinearLayerToRead(t *testing.T) {
	_, err := FirstLayer(context.Background(), convolution(t, random(rand.New(rand.NewPCG(1, 1)), 18, 0.5), random(rand.New(rand.NewPCG(1, 3)), 2*64*2, 0.2)), "x")
	if !errors.Is(err, ErrAsk) || !strings.Contains(err.Error(), "begins with Conv") {
		t.Errorf("%v", err)
	}
}

func TestAnImprintReadsABatchAndLeavesTheAnswersAsTheyAre(t *testing.T) {
	m := multilayer(t, 20, 2, false)
	all, labels := images(24, 3)
	p, err := NewImprint(m, "x", 256, 0.5, 0.3, ImprintShare)
	if err != nil {
		t.Fatal(err)
	}
	leak, err := NewLeak(p.Model, LeakOptions{Input: "x", Logits: "z", Weights: []string{p.Weight, p.Bias}, Batch: len(all)})
	needsRuntime(t, err)
	defer leak.Close()
	g, err := leak.Gradients(context.Background(), all, labels)
	if err != nil {
		t.Fatal(err)
	}
	found := p.Found(g[0], g[1], 0, 1)
	never, _ := images(24, 4)
	hits, err := Count(found, all, never, append(append([][]float32{}, all...), never...), Matching{side, side, 0.9})
	if err != nil {
		t.Fatal(err)
	}
	if hits.Hits < 18 || hits.NeverHits != 0 {
		t.Errorf("%d of 24 hits, %d of 24 that were never there", hits.Hits, hits.NeverHits)
	}
	before, after := answers(t, m, all), answers(t, p.Model, all)
	for i := range before {
		if math.Abs(float64(before[i]-after[i])) > 0.02 {
			t.Fatalf("answer %d was %v and is %v", i, before[i], after[i])
		}
	}
}

func answers(t *testing.T, m *onnx.Model, all [][]float32) []float32 {
	t.Helper()
	session, err := engine.Open(m, engine.Options{Threads: 1})
	needsRuntime(t, err)
	defer session.Close()
	var x []float32
	for _, image := range all {
		x = append(x, image...)
	}
	out, err := session.Run(context.Background(), map[string]engine.Tensor{"x": engine.Float32([]int64{int64(len(all)), 1, side, side}, x)}, "z")
	if err != nil {
		t.Fatal(err)
	}
	v, err := engine.Values[float32](out["z"])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// convolution is two channels of 3×3, Relu, and a dense layer.
func convolution(t *testing.T, kernel, dense []float32) *onnx.Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, open, onnx.Dim{Value: 1}, onnx.Dim{Value: side}, onnx.Dim{Value: side})
	x = b.Op("Conv", []string{x, b.Weight("conv", []int64{2, 1, 3, 3}, kernel)}, onnx.IntsAttribute("kernel_shape", 3, 3))
	x = b.Op("Flatten", []string{b.Op("Relu", []string{x})})
	b.Node(&onnx.Node{OpType: "Gemm", Inputs: []string{x, b.Weight("dense", []int64{2, 128}, dense), b.Weight("bias", []int64{2}, []float32{0.1, -0.2})},
		Outputs: []string{"z"}, Attributes: []onnx.Attribute{onnx.IntAttribute("transB", 1)}}, 1)
	b.Output("z", onnx.Float, open, onnx.Dim{Value: 2})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const torchMismatch = `
import sys, json
try:
    import torch
except ImportError:
    print("absent"); sys.exit()
import torch.nn.functional as F
d = json.load(sys.stdin)
T = lambda v, *s: torch.tensor(v, dtype=torch.float64).reshape(*s)
conv, dense, bias = T(d['conv'], 2, 1, 3, 3).requires_grad_(), T(d['dense'], 2, 128).requires_grad_(), T([.1, -.2], 2).requires_grad_()
W = [conv, dense, bias]
net = lambda x: F.relu(F.conv2d(x, conv)).flatten(1) @ dense.T + bias
y = torch.tensor(d['labels'])
x = T(d['x'], -1, 1, 10, 10)
target = [g.detach() for g in torch.autograd.grad(F.cross_entropy(net(x), y), W)]
z = T(d['z'], -1, 1, 10, 10).requires_grad_()
g = torch.autograd.grad(F.cross_entropy(net(z), y), W, create_graph=True)
dot = sum((a * b).sum() for a, b in zip(g, target))
cost = 1 - dot / (sum((a * a).sum() for a in g).sqrt() * sum((b * b).sum() for b in target).sqrt())
cost.backward()
clipped = [torch.zeros_like(w) for w in W]
for i in range(len(y)):
    gi = torch.autograd.grad(F.cross_entropy(net(x[i:i+1]), y[i:i+1]), W)
    n = sum((a * a).sum() for a in gi).sqrt()
    for c, a in zip(clipped, gi):
        c += a * min(1, .7 / n.item())
flat = lambda l: torch.cat([v.flatten() for v in l]).tolist()
print(json.dumps(dict(gradient=flat(target), cost=cost.item(), slope=flat([z.grad]), clipped=flat(clipped))))`

func TestGradientsAndTheGradientOfTheirMismatchAreWhatPyTorchHas(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	kernel, dense := random(rng, 18, 0.5), random(rng, 256, 0.2)
	m := convolution(t, kernel, dense)
	x, labels := images(4, 1)
	z, _ := images(4, 2)
	leak, err := NewLeak(m, LeakOptions{Input: "x", Logits: "z", Weights: []string{"conv", "dense", "bias"}, Batch: 4})
	needsRuntime(t, err)
	defer leak.Close()
	ctx := context.Background()
	observed, err := leak.Gradients(ctx, x, labels)
	if err != nil {
		t.Fatal(err)
	}
	flat := func(groups [][]float32) (out []float64) {
		for _, g := range groups {
			for _, v := range g {
				out = append(out, float64(v))
			}
		}
		return out
	}
	var want struct {
		Gradient, Slope, Clipped []float64
		Cost                     float64
	}
	raw, err := json.Marshal(map[string]any{"conv": kernel, "dense": dense, "labels": labels, "x": flat(x), "z": flat(z)})
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command("/usr/bin/python3", "-c", torchMismatch)
	command.Env = append(command.Environ(), "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1")
	command.Stdin = strings.NewReader(string(raw))
	answer, err := command.Output()
	if err != nil || strings.HasPrefix(string(answer), "absent") {
		t.Skipf("SKIPPED, nothing was compared: no PyTorch (%v)", err)
	}
	if err := json.Unmarshal(answer, &want); err != nil {
		t.Fatal(err)
	}
	near(t, "gradient", flat(observed), want.Gradient, 1e-5)
	noisy, err := leak.Noisy(ctx, x, labels, 0.7, 0, rng)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "clipped sum", flat(noisy), want.Clipped, 1e-5)
	s, err := leak.matching(observed)
	if err != nil {
		t.Fatal(err)
	}
	defer s.session.Close()
	targets, err := leak.targets(labels)
	if err != nil {
		t.Fatal(err)
	}
	s.inputs[targetsName] = engine.Float32([]int64{4, 2}, targets)
	var at []float32
	for _, image := range z {
		at = append(at, image...)
	}
	cost, slope, err := s.run(ctx, at)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "mismatch", []float64{cost}, []float64{want.Cost}, 1e-5)
	near(t, "its slope", flat([][]float32{slope}), want.Slope, 1e-5)
}

func TestASearchFindsTheImageOfASmallBatch(t *testing.T) {
	m := multilayer(t, 30, 2, false)
	all, labels := images(1, 9)
	leak, err := NewLeak(m, LeakOptions{Input: "x", Logits: "z", Weights: []string{"w", "b", "head", "shift"}, Batch: 1})
	needsRuntime(t, err)
	defer leak.Close()
	ctx := context.Background()
	observed, err := leak.Gradients(ctx, all, labels)
	if err != nil {
		t.Fatal(err)
	}
	o := MatchOptions{Steps: 250, Seed: 1, Rows: side, Columns: side, TV: 1e-5}
	found, err := Match(ctx, leak, observed, labels, o)
	if err != nil {
		t.Fatal(err)
	}
	similarity, err := SSIM(found.Images[0], all[0], side, side)
	if err != nil {
		t.Fatal(err)
	}
	if similarity < 0.9 || found.Mismatch > 0.01 {
		t.Errorf("SSIM %v, mismatch %v", similarity, found.Mismatch)
	}
	again, err := Match(ctx, leak, observed, labels, o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range again.Images[0] {
		if again.Images[0][i] != found.Images[0][i] {
			t.Fatal("the same seed found another image")
		}
	}
	observed[0] = make([]float32, 3)
	if _, err := Match(ctx, leak, observed, labels, o); !errors.Is(err, ErrAsk) {
		t.Errorf("a gradient of another model: %v", err)
	}
}

func TestNoiseHidesTheImageThatThePlainGradientGivesAway(t *testing.T) {
	m := multilayer(t, 20, 2, false)
	layer, err := FirstLayer(context.Background(), m, "x")
	needsRuntime(t, err)
	leak, err := NewLeak(m, LeakOptions{Input: "x", Logits: "z", Weights: []string{"w", "b", "head", "shift"}, Batch: 1})
	needsRuntime(t, err)
	defer leak.Close()
	all, labels := images(20, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	var plain, noisy Hits
	for i := range all {
		for k, to := range []*Hits{&plain, &noisy} {
			sigma := float64(k)
			g, err := leak.Noisy(context.Background(), all[i:i+1], labels[i:i+1], 1, sigma, rng)
			if err != nil {
				t.Fatal(err)
			}
			h, err := Count(layer.Found(g[0], g[1], 0, 1), all[i:i+1], nil, all, Matching{side, side, 0.9})
			if err != nil {
				t.Fatal(err)
			}
			to.Add(h)
		}
	}
	if plain.Hits != 20 || noisy.Hits != 0 {
		t.Errorf("%d of 20 without noise, %d with", plain.Hits, noisy.Hits)
	}
}

func TestAResemblanceIsNoHit(t *testing.T) {
	all, _ := images(6, 1)
	batch, never := all[:3], all[3:]
	blurred := append([]float32{}, batch[0]...)
	for i := range blurred {
		blurred[i] += 0.001
	}
	// A found image that is nearest to somebody else does not count for the one it
	// resembles; a copy of an image that was never there counts as chance.
	twin := append([]float32{}, batch[1]...)
	for i := range twin {
		twin[i] += 0.002
	}
	candidates := append(append([][]float32{}, all...), twin)
	h, err := Count([][]float32{blurred, twin, never[0]}, batch, never, candidates, Matching{side, side, 0.9})
	if err != nil {
		t.Fatal(err)
	}
	if h.Hits != 1 || h.Similar != 2 || h.NeverHits != 1 || h.NeverSimilar != 1 || h.Trials != 3 || h.NeverTrials != 3 {
		t.Errorf("%+v", h)
	}
	h, err = Count(nil, batch, never, candidates, Matching{side, side, 0.9})
	if err != nil || h.Hits != 0 || h.Trials != 3 || h.SSIM[0] != -1 {
		t.Errorf("nothing found: %+v, %v", h, err)
	}
	if _, err := Count(nil, batch, never, batch[:1], Matching{side, side, 0.9}); !errors.Is(err, ErrAsk) {
		t.Errorf("fewer candidates than images: %v", err)
	}
}

func TestSimilarityIsWhatTheFormulaSays(t *testing.T) {
	a, _ := images(1, 1)
	b, _ := images(1, 2)
	var want []float64
	python(t, `
import numpy as np
def ssim(a, b, w=7):
    a, b = np.array(a).reshape(10, 10), np.array(b).reshape(10, 10)
    out = []
    for y in range(10 - w + 1):
        for x in range(10 - w + 1):
            p, q = a[y:y+w, x:x+w].ravel(), b[y:y+w, x:x+w].ravel()
            c = np.cov(p, q)
            out.append((2*p.mean()*q.mean() + .01**2) * (2*c[0, 1] + .03**2) / ((p.mean()**2 + q.mean()**2 + .01**2) * (c[0, 0] + c[1, 1] + .03**2)))
    return float(np.mean(out))
print(json.dumps([ssim(d[0], d[1]), ssim(d[0], d[0])]))`, [][]float32{a[0], b[0]}, &want)
	first, err := SSIM(a[0], b[0], side, side)
	if err != nil {
		t.Fatal(err)
	}
	second, err := SSIM(a[0], a[0], side, side)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "SSIM", []float64{first, second}, want, 1e-9)
	if _, err := SSIM(a[0][:36], b[0][:36], 6, 6); !errors.Is(err, ErrAsk) {
		t.Errorf("6×6: %v", err)
	}
}

func TestAnImplantReadsABatchThroughTheAgreedArchitecture(t *testing.T) {
	for _, transposed := range []bool{false, true} {
		for _, outputs := range []int{1, 2} {
			m := multilayer(t, 256, outputs, transposed)
			all, labels := images(24, 3)
			layer, err := FirstLayer(context.Background(), m, "x")
			needsRuntime(t, err)
			p, err := layer.Implant(m, 0.5, 0.3, 2)
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range p.Model.Graph.Initializers {
				if old := m.Graph.Initializers[i]; old.Name != w.Name || !slices.Equal(old.Dims, w.Dims) {
					t.Fatalf("weight %q %v has become %q %v: the architecture has changed", old.Name, old.Dims, w.Name, w.Dims)
				}
			}
			leak, err := NewLeak(p.Model, LeakOptions{Input: "x", Logits: "z", Weights: []string{"w", "b"}, Batch: len(all)})
			needsRuntime(t, err)
			defer leak.Close()
			g, err := leak.Gradients(context.Background(), all, labels)
			if err != nil {
				t.Fatal(err)
			}
			never, _ := images(24, 4)
			hits, err := Count(p.Found(g[0], g[1], 0, 1), all, never, append(append([][]float32{}, all...), never...), Matching{side, side, 0.9})
			if err != nil {
				t.Fatal(err)
			}
			if hits.Hits < 18 || hits.NeverHits != 0 {
				t.Errorf("transposed %v, %d outputs: %d of 24 hits, %d of 24 that were never there", transposed, outputs, hits.Hits, hits.NeverHits)
			}
		}
	}
	m := multilayer(t, 20, 3, false)
	layer, err := FirstLayer(context.Background(), m, "x")
	needsRuntime(t, err)
	if _, err := layer.Implant(m, 0.5, 0.3, 1); !errors.Is(err, ErrAsk) {
		t.Errorf("three classes: %v", err)
	}
}
