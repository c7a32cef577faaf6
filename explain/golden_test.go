package explain_test

import (
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
)

// goldens are what testdata/golden.py computed with PyTorch and NumPy.
type goldens struct {
	CNN struct {
		X, Base             []float32
		Class               int
		Logits              []float64
		GradCAM             []float64 `json:"gradcam"`
		GradCAMPlusPlus     []float64 `json:"gradcam++"`
		Gradient            []float64 `json:"gradient"`
		LogOdds             []float64 `json:"gradient log-odds"`
		Probability         []float64 `json:"gradient probability"`
		IntegratedGradients []float64 `json:"integrated-gradients"`
	}
	Transformer struct {
		X        []float32
		Class    int
		Rollout  []float64 `json:"rollout"`
		Weighted []float64 `json:"gradient-rollout"`
	}
	Similarity struct {
		A, B          []float32
		Rows, Columns int
		Rank          float64
		AbsRank       float64 `json:"abs_rank"`
		SSIM          float64 `json:"ssim"`
	}
}

func readGoldens(t *testing.T) goldens {
	t.Helper()
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var g goldens
	if err := json.Unmarshal(data, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func load(t *testing.T, path string) *onnx.Model {
	t.Helper()
	m, err := onnx.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// enlarged is what a coarse golden looks like over the input.
func enlarged(coarse []float64, rows, columns, toRows, toColumns int) []float64 {
	values := make([]float32, len(coarse))
	for i, v := range coarse {
		values[i] = float32(v)
	}
	out := make([]float64, toRows*toColumns)
	for i, v := range explain.Enlarge(values, rows, columns, toRows, toColumns) {
		out[i] = float64(v)
	}
	return out
}

func TestGradientMethodsAgreeWithPyTorch(t *testing.T) {
	g := readGoldens(t).CNN
	m := load(t, "testdata/cnn.onnx")
	shape := []int64{1, 2, 8, 8}
	x := engine.Float32(shape, g.X)
	o := explain.Options{Background: explain.References(engine.Float32(shape, g.Base)), Tolerance: 5e-3}
	cam := explained(t, explain.GradCAM, m, o, x, g.Class)
	near(t, "logits", cam.Logits, g.Logits, 1e-5)
	near(t, "gradcam", cam.Values, enlarged(g.GradCAM, 4, 4, 8, 8), 1e-5)
	near(t, "gradcam++", explained(t, explain.GradCAMPlusPlus, m, o, x, g.Class).Values, enlarged(g.GradCAMPlusPlus, 4, 4, 8, 8), 1e-5)
	for score, want := range map[explain.Score][]float64{explain.Logit: g.Gradient, explain.LogOdds: g.LogOdds, explain.Probability: g.Probability} {
		o := o
		o.Score = score
		near(t, "gradient of the "+string(score), explained(t, explain.Gradient, m, o, x, g.Class).Values, want, 1e-5)
	}
	ig := explained(t, explain.IntegratedGradients, m, o, x, g.Class)
	// The golden has 4000 midpoints, ours as many points as its gap asks for.
	near(t, "integrated gradients", ig.Values, g.IntegratedGradients, 1e-4)
	if a := ig.Additive; !a.Converged || math.Abs(a.Gap) > 5e-3*math.Abs(a.Output-a.Reference) {
		t.Errorf("gap %v of %v after %d steps, said to be converged: %v", a.Gap, a.Output-a.Reference, a.Steps, a.Converged)
	}
}

func TestRolloutAgreesWithNumPy(t *testing.T) {
	g := readGoldens(t).Transformer
	m := load(t, "testdata/transformer.onnx")
	x := engine.Float32([]int64{1, 1, 6, 9}, g.X)
	plain := explained(t, explain.Rollout, m, explain.Options{}, x, g.Class)
	near(t, "rollout", plain.Values, enlarged(g.Rollout, 2, 3, 6, 9), 1e-5)
	near(t, "gradient rollout", explained(t, explain.GradientRollout, m, explain.Options{}, x, g.Class).Values, enlarged(g.Weighted, 2, 3, 6, 9), 1e-5)
	if plain.Layer != (explain.Size{Rows: 2, Columns: 3}) {
		t.Errorf("the grid of patches is %v, want 2×3", plain.Layer)
	}
}

func TestSimilaritiesAgreeWithNumPy(t *testing.T) {
	g := readGoldens(t).Similarity
	a := &explain.Map{Rows: g.Rows, Columns: g.Columns, Values: g.A}
	b := &explain.Map{Rows: g.Rows, Columns: g.Columns, Values: g.B}
	got := explain.Compare(a, b)
	for what, pair := range map[string][2]float64{"rank": {got.Rank, g.Rank}, "rank of sizes": {got.AbsRank, g.AbsRank}, "SSIM": {got.SSIM, g.SSIM}} {
		if math.Abs(pair[0]-pair[1]) > 1e-5 {
			t.Errorf("%s is %v, NumPy has %v", what, pair[0], pair[1])
		}
	}
	if same := explain.Compare(a, a); math.Abs(same.Rank-1) > 1e-12 || math.Abs(same.AbsRank-1) > 1e-12 || math.Abs(same.SSIM-1) > 1e-6 {
		t.Errorf("a map compared with itself gives %+v", same)
	}
	flat := &explain.Map{Rows: g.Rows, Columns: g.Columns, Values: make([]float32, len(g.A))}
	if c := explain.Compare(a, flat); c.Rank != 0 || c.AbsRank != 0 || math.IsNaN(c.SSIM) {
		t.Errorf("a map compared with an empty one gives %+v", c)
	}
}
