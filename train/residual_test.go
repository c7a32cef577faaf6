package train

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// residual has sums at its second and fourth convolution, where channels go in
// that come out.
func residual(t testing.TB, seed uint64) *Network {
	t.Helper()
	n, err := CNN{Channels: 1, Rows: 12, Columns: 12, Classes: 2, Stages: [][]int{{4, 4}, {8, 8}}, GroupSize: 2, Hidden: 6, Residual: true, Mean: 0.2, Deviation: 0.15}.Build(rand.New(rand.NewPCG(seed, 0)))
	if err != nil {
		t.Fatal(err)
	}
	// Scales and shifts begin as 1 and 0, which would hide one that is left out.
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, name := range n.Weights {
		if w := n.Model.Graph.Initializer(name); strings.HasSuffix(name, ".scale") || strings.HasSuffix(name, ".shift") {
			values, err := onnx.Values[float32](w)
			if err != nil {
				t.Fatal(err)
			}
			for i := range values {
				values[i] += float32(rng.NormFloat64()) / 3
			}
			*w = *onnx.NewTensor(name, w.Dims, values)
		}
	}
	return n
}

// planes is a feature map, [channels][rows·columns], computed in float64.
type planes struct {
	rows, columns int
	of            [][]float64
}

// byHand computes a residual CNN's layers as they are described.
type byHand struct {
	t *testing.T
	n *Network
}

func (h byHand) weight(name string) []float64 {
	h.t.Helper()
	values, err := h.n.Model.Graph.Initializer(name).Floats()
	if err != nil {
		h.t.Fatal(err)
	}
	return values
}

func (h byHand) conv(x planes, name string, out int) planes {
	w := h.weight(name + ".weight")
	y := planes{x.rows, x.columns, make([][]float64, out)}
	for o := range y.of {
		y.of[o] = make([]float64, x.rows*x.columns)
		for i, plane := range x.of {
			for r := range x.rows {
				for c := range x.columns {
					for k := range 9 {
						yy, xx := r+k/3-1, c+k%3-1
						if yy >= 0 && yy < x.rows && xx >= 0 && xx < x.columns {
							y.of[o][r*x.columns+c] += w[(o*len(x.of)+i)*9+k] * plane[yy*x.columns+xx]
						}
					}
				}
			}
		}
	}
	return y
}

// norm is group normalisation (Wu and He 2018, equations 1 to 7).
func (h byHand) norm(x planes, name string, size int) planes {
	scale, shift := h.weight(name+".scale"), h.weight(name+".shift")
	y := planes{x.rows, x.columns, make([][]float64, len(x.of))}
	for g := 0; g < len(x.of); g += size {
		mean, variance, count := 0.0, 0.0, float64(size*x.rows*x.columns)
		for _, plane := range x.of[g : g+size] {
			for _, v := range plane {
				mean += v / count
			}
		}
		for _, plane := range x.of[g : g+size] {
			for _, v := range plane {
				variance += (v - mean) * (v - mean) / count
			}
		}
		for k := g; k < g+size; k++ {
			for _, v := range x.of[k] {
				y.of[k] = append(y.of[k], (v-mean)/math.Sqrt(variance+1e-5)*scale[k]+shift[k])
			}
		}
	}
	return y
}

func each(x planes, f func(k, i int, v float64) float64) planes {
	y := planes{x.rows, x.columns, make([][]float64, len(x.of))}
	for k, plane := range x.of {
		for i, v := range plane {
			y.of[k] = append(y.of[k], f(k, i, v))
		}
	}
	return y
}

func pooled(x planes) planes {
	y := planes{x.rows / 2, x.columns / 2, make([][]float64, len(x.of))}
	for k, plane := range x.of {
		for r := range y.rows {
			for c := range y.columns {
				at := 2*r*x.columns + 2*c
				y.of[k] = append(y.of[k], max(plane[at], plane[at+1], plane[at+x.columns], plane[at+x.columns+1]))
			}
		}
	}
	return y
}

func (h byHand) dense(x []float64, name string) []float64 {
	w, y := h.weight(name+".weight"), h.weight(name+".bias")
	for o := range y {
		for i, v := range x {
			y[o] += w[o*len(x)+i] * v
		}
	}
	return y
}

// ScaleNorm (Klause et al. 2022): what a convolution reads is added to what it
// gives, and the sum is normalised again.
func TestAResidualSumIsNormalisedAgain(t *testing.T) {
	n := residual(t, 5)
	h := byHand{t, n}
	rng := rand.New(rand.NewPCG(6, 6))
	image := make([]float32, 144)
	x := planes{12, 12, [][]float64{nil}}
	for i := range image {
		image[i] = rng.Float32()
		x.of[0] = append(x.of[0], (float64(image[i])-float64(float32(0.2)))/float64(float32(0.15)))
	}
	relu := func(_, _ int, v float64) float64 { return max(0, v) }
	layer := func(x planes, number string, out int, sum bool) planes {
		y := each(h.norm(h.conv(x, "conv"+number, out), "norm"+number, 2), relu)
		if sum {
			y = h.norm(each(y, func(k, i int, v float64) float64 { return v + x.of[k][i] }), "scale"+number, 2)
		}
		return y
	}
	x = layer(layer(x, "1", 4, false), "2", 4, true)
	x = pooled(layer(layer(pooled(x), "3", 8, false), "4", 8, true))
	var flat []float64
	for _, plane := range x.of {
		flat = append(flat, plane...)
	}
	hidden := h.dense(flat, "hidden")
	for i, v := range hidden {
		hidden[i] = max(0, v)
	}
	want := h.dense(hidden, "head")

	session, err := engine.Open(n.Model, engine.Options{})
	skipWithoutRuntime(t, err)
	defer session.Close()
	out, err := session.Run(t.Context(), map[string]engine.Tensor{n.Input: engine.Float32([]int64{1, 1, 12, 12}, image)}, n.Logits)
	if err != nil {
		t.Fatal(err)
	}
	for k, z := range out[n.Logits].Data.([]float32) {
		if math.Abs(float64(z)-want[k]) > 1e-4*math.Max(1, math.Abs(want[k])) {
			t.Errorf("logit %d is %v, by hand %v", k, z, want[k])
		}
	}
	for _, name := range []string{"scale2.scale", "scale2.shift", "scale4.scale"} {
		if n.Model.Graph.Initializer(name) == nil {
			t.Errorf("there is no weight %s", name)
		}
	}
	if n.Model.Graph.Initializer("scale1.scale") != nil || n.Model.Graph.Initializer("scale3.scale") != nil {
		t.Error("a sum where the channels differ")
	}
}

// Each image keeps a gradient of its own through sums and both normalisations, and
// private steps teach it.
func TestAPrivateResidualNetworkClipsEachImageAndLearns(t *testing.T) {
	c := secretConfig(t)
	c.Network = residual(t, 2)
	c.Private.Views = 1
	tr := trainerFor(t, c)
	drawn := []int{1, 2, 30, 31, 200, 299}
	for _, norm := range []float64{0.3, 50} {
		want := clippedByHand(t, tr, drawn, 3, norm)
		if _, err := tr.private.step.run(t.Context(), tr, drawn, 3, norm); err != nil {
			t.Fatal(err)
		}
		for k, name := range tr.network.Weights {
			top, apart := 1e-9, 0.0
			for j, x := range want[k] {
				top, apart = math.Max(top, math.Abs(x)), math.Max(apart, math.Abs(x-tr.private.step.sums[k][j]))
			}
			if apart > 1e-3*top {
				t.Errorf("norm %v: %s differs by %.2g of its largest element", norm, name, apart/top)
			}
		}
	}
	tr.private.state = &privateState{Sigma: 0.5, Planned: 20, Clip: dp.Clip{Norm: 1}} // unplanned: accounting takes seconds
	for range 15 {
		if err := tr.private.gradients(t.Context(), tr); err != nil {
			t.Fatal(err)
		}
		tr.state.Optimizer.Step(0.02, tr.state.Weights, tr.gradient, tr.decay)
	}
	logits, err := tr.evaluate(t.Context(), tr.variables())
	if err != nil {
		t.Fatal(err)
	}
	if auc, err := c.Validation.MeanAUC(logits); err != nil || auc < 0.9 {
		t.Errorf("validation AUC %v, %v", auc, err)
	}
}

func TestResidualSumsWithoutNormalisationAreRefused(t *testing.T) {
	c := CNN{Channels: 1, Rows: 12, Columns: 12, Classes: 2, Stages: [][]int{{4, 4}}, Residual: true, Deviation: 1}
	if _, err := c.Build(rand.New(rand.NewPCG(1, 1))); err == nil || !strings.Contains(err.Error(), "a group size is needed") {
		t.Errorf("error is %v", err)
	}
}
