package explain_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
)

// linear is x·w + b with features inputs and classes outputs.
func linear(t *testing.T, features, classes int, w, b []float32) *onnx.Model {
	t.Helper()
	g := onnx.NewBuilder(17)
	x := g.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "N"}, onnx.Dim{Value: int64(features)})
	z := g.Op("Gemm", []string{x, g.Weight("w", []int64{int64(features), int64(classes)}, w), g.Weight("b", []int64{int64(classes)}, b)})
	g.Output(z, onnx.Float, onnx.Dim{Value: -1, Param: "N"}, onnx.Dim{Value: int64(classes)})
	return built(t, g)
}

func built(t *testing.T, b *onnx.Builder) *onnx.Model {
	t.Helper()
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// explained runs one method once.
func explained(t *testing.T, method explain.Method, m *onnx.Model, o explain.Options, input engine.Tensor, class int) *explain.Map {
	t.Helper()
	e, err := explain.New(method, m, o)
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	made, err := e.Explain(t.Context(), input, class)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func near(t *testing.T, what string, got []float32, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range want {
		if !(math.Abs(float64(got[i])-want[i]) <= tolerance*math.Max(1, math.Abs(want[i]))) {
			t.Errorf("%s: value %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

func normals(n int, rng *rand.Rand) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(rng.NormFloat64())
	}
	return out
}

// backgroundOf is a few random rows.
func backgroundOf(t *testing.T, n, features int, rng *rand.Rand) (explain.Background, []float64) {
	t.Helper()
	rows := normals(n*features, rng)
	mean := make([]float64, features)
	for i, v := range rows {
		mean[i%features] += float64(v) / float64(n)
	}
	b, err := explain.Rows(engine.Float32([]int64{int64(n), int64(features)}, rows))
	if err != nil {
		t.Fatal(err)
	}
	return b, mean
}

// Of a linear model all contributions are w·(x - mean of the background):
// Sundararajan et al. 2017, section 3; Lundberg and Lee 2017, corollary 1.
func TestALinearModelsContributionsHaveAClosedForm(t *testing.T) {
	const features, classes, class = 12, 3, 1
	rng := rand.New(rand.NewPCG(1, 1))
	w := normals(features*classes, rng)
	m := linear(t, features, classes, w, normals(classes, rng))
	x := normals(features, rng)
	background, mean := backgroundOf(t, 7, features, rng)
	want, slope := make([]float64, features), make([]float64, features)
	for i := range want {
		slope[i] = float64(w[i*classes+class])
		want[i] = slope[i] * (float64(x[i]) - mean[i])
	}
	input := engine.Float32([]int64{1, features}, x)
	o := explain.Options{Background: background, Samples: 300}
	for method, tolerance := range map[explain.Method]float64{
		explain.IntegratedGradients: 1e-5,
		explain.KernelSHAP:          1e-5, // 300 of 4094 coalitions: sampled, and still exact for a sum
		explain.Occlusion:           1e-5,
		// The mean over backgrounds is exact at any points of a straight line.
		explain.GradientSHAP: 1e-5,
	} {
		got := explained(t, method, m, o, input, class)
		near(t, string(method), got.Values, want, tolerance)
		if got.Kind != explain.Contribution || got.Method != method || got.Class != class {
			t.Errorf("%s: the map calls itself %s, %s of class %d", method, got.Kind, got.Method, got.Class)
		}
	}
	near(t, "gradient", explained(t, explain.Gradient, m, o, input, class).Values, slope, 1e-5)
	near(t, "smoothgrad", explained(t, explain.SmoothGrad, m, o, input, class).Values, slope, 1e-5)
	// LIME shrinks: its ridge of strength 1 against about 300 samples of variance ¼.
	o.Samples = 20000
	lime := explained(t, explain.LIME, m, o, input, class)
	near(t, "lime", lime.Values, want, 1e-2)
	if lime.Surrogate < 0.999 {
		t.Errorf("LIME's linear model of a linear model has R² %v", lime.Surrogate)
	}
}

// Two features of a group are covered together: of a model that needs either of
// them, each alone would seem to do nothing.
func TestOcclusionCoversAGroupAsAWhole(t *testing.T) {
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	x := b.Input("x", onnx.Float, batch, onnx.Dim{Value: 3})
	either := b.Op("Clip", []string{b.Op("MatMul", []string{x, b.Weight("w", []int64{3, 1}, []float32{1, 1, 0})}), "", b.Weight("one", nil, []float32{1})})
	third := b.Op("MatMul", []string{x, b.Weight("v", []int64{3, 1}, []float32{0, 0, 2})})
	b.Output(b.Op("Add", []string{either, third}), onnx.Float, batch, onnx.Dim{Value: 1})
	m := built(t, b)
	input := engine.Float32([]int64{1, 3}, []float32{1, 1, 1})
	o := explain.Options{Background: explain.Constant(0)}
	near(t, "one at a time", explained(t, explain.Occlusion, m, o, input, 0).Values, []float64{0, 0, 2}, 1e-6)
	o.Groups = []int{1, 1, 0}
	near(t, "the first two together", explained(t, explain.Occlusion, m, o, input, 0).Values, []float64{0.5, 0.5, 2}, 1e-6)
	o.Groups = []int{0, 2, 2}
	explainer, err := explain.New(explain.Occlusion, m, o)
	if err == nil {
		_, err = explainer.Explain(t.Context(), input, 0)
		explainer.Close()
	}
	if !errors.Is(err, explain.ErrInput) {
		t.Errorf("groups with a gap: %v", err)
	}
}
