package explain_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
)

// onSquare is the share of a map's positive mass within reach of the square.
func onSquare(m *explain.Map, place [2]int, reach int) float64 {
	inside, mass := 0.0, 0.0
	for p, v := range m.Values {
		if m.Kind == explain.Sensitivity {
			v = float32(math.Abs(float64(v)))
		}
		if v <= 0 {
			continue
		}
		mass += float64(v)
		y, x := p/side-place[0], p%side-place[1]
		if y >= -reach && y < 4+reach && x >= -reach && x < 4+reach {
			inside += float64(v)
		}
	}
	return inside / math.Max(mass, 1e-30)
}

var quick = explain.CheckOptions{RandomMaps: 39, Randomisations: 3, Layers: 3}

// A model that finds bright squares: the maps of all methods must lie there, and
// be said to explain. Two may fail: a single gradient is noisy, and the maps of
// Grad-CAM++, which counts positive gradients only, stay where the image is
// bright when the weights are random.
func TestMapsOfAModelThatLooksAtAPlaceExplainIt(t *testing.T) {
	m := model(t)
	set, places := squares(4, 9)
	const image = 1
	allowed := map[explain.Method]explain.Failure{explain.Gradient: explain.NoBetter, explain.GradCAMPlusPlus: explain.WeightsNoMatter}
	for _, d := range explain.Methods() {
		if d.Method == explain.Rollout || d.Method == explain.GradientRollout {
			continue
		}
		t.Run(string(d.Method), func(t *testing.T) {
			// Without the square the background is the noise's mean.
			o := explain.Options{Background: explain.Constant(0.27), Score: explain.LogOdds, Samples: 400, Segments: 40}
			if d.Method == explain.SmoothGrad {
				o.Samples, o.Noise = 30, 0.05
			}
			r, err := explain.Check(t.Context(), d.Method, m, picture(set, image), 1, o, quick)
			if err != nil {
				t.Fatal(err)
			}
			share := onSquare(r.Map, places[image], 3)
			t.Logf("%.2f on the square, insertion %.3f, deletion %.3f, p %.3f, similarity %.2f", share, r.Fidelity.Insertion.Area, r.Fidelity.Deletion.Area, r.Fidelity.P, r.Sanity.Similarity)
			failures := slices.DeleteFunc(slices.Clone(r.Verdict.Failures), func(f explain.Failure) bool { return f == allowed[d.Method] })
			if len(failures) > 0 || r.Verdict.Explains != (len(r.Verdict.Failures) == 0) {
				t.Errorf("verdict: %s", r.Verdict.Text.English)
			}
			if share < 0.5 { // the area is a quarter of the image
				t.Errorf("%.2f of the map lies around the square", share)
			}
		})
	}
}

func TestARandomMapIsLabelledAsExplainingNothing(t *testing.T) {
	m := model(t)
	set, _ := squares(12, 9)
	o := explain.Options{Background: explain.Constant(0.27), Score: explain.LogOdds}
	rng := rand.New(rand.NewPCG(8, 8))
	called := 0
	const maps = 40
	for i := range maps {
		values := make([]float32, side*side)
		for p := range values {
			values[p] = rng.Float32()
		}
		made := &explain.Map{Method: "random", Kind: explain.Relevance, Rows: side, Columns: side, Values: values, Class: 1}
		f, err := explain.Measure(t.Context(), m, picture(set, 2*(i%6)+1), made, o, quick)
		if err != nil {
			t.Fatal(err)
		}
		v := explain.Judge(made, f, nil)
		if v.Explains {
			called++
			continue
		}
		if !slices.Contains(v.Failures, explain.NoBetter) || !strings.HasPrefix(v.Text.English, "This map does not explain the answer: removing") || !strings.HasPrefix(v.Text.French, "Cette carte n’explique pas la réponse : retirer") {
			t.Fatalf("verdict %+v", v)
		}
	}
	// 1 in 20 by chance: of 40 maps more than 6 has a probability of 0.4 %.
	t.Logf("%d of %d random maps were said to explain", called, maps)
	if called > 6 {
		t.Errorf("%d of %d random maps were said to explain", called, maps)
	}
}

// averages is a network whose kernels are all constant: it computes local means,
// and drawing its weights anew from their own spread changes nothing, as an edge
// detector's map does not change.
func averages(t *testing.T) *onnx.Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "N"}
	x := b.Input("x", onnx.Float, n, onnx.Dim{Value: 1}, onnx.Dim{Value: side}, onnx.Dim{Value: side})
	kernel := make([]float32, 9)
	for i := range kernel {
		kernel[i] = 1. / 9
	}
	y := b.Op("Relu", []string{b.Op("Conv", []string{x, b.Weight("kernel", []int64{1, 1, 3, 3}, kernel)}, onnx.IntsAttribute("pads", 1, 1, 1, 1))})
	z := b.Op("Flatten", []string{b.Op("GlobalAveragePool", []string{y})})
	z = b.Op("MatMul", []string{z, b.Weight("head", []int64{1, 2}, []float32{3, 3})})
	b.Output(z, onnx.Float, n, onnx.Dim{Value: 2})
	m := built(t, b)
	requireRuntime(t)
	return m
}

func TestAMapThatTheWeightsDoNotChangeIsLabelled(t *testing.T) {
	m := averages(t)
	set, _ := squares(2, 9)
	r, err := explain.Check(t.Context(), explain.GradCAM, m, picture(set, 1), 1, explain.Options{Background: explain.Constant(0)}, explain.CheckOptions{Score: explain.Logit, RandomMaps: 19})
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict.Explains || !slices.Contains(r.Verdict.Failures, explain.WeightsNoMatter) || !strings.Contains(r.Verdict.Text.English, "randomised") || !strings.Contains(r.Verdict.Text.French, "hasard") {
		t.Errorf("verdict %+v with a similarity of %v", r.Verdict, r.Sanity.Similarity)
	}
}

func TestEmptyAndIncompleteMapsAreLabelled(t *testing.T) {
	empty := &explain.Map{Rows: 1, Columns: 3, Values: make([]float32, 3)}
	if v := explain.Judge(empty, nil, nil); v.Explains || !slices.Equal(v.Failures, []explain.Failure{explain.Empty}) {
		t.Errorf("an empty map: %+v", v)
	}
	short := &explain.Map{Rows: 1, Columns: 2, Values: []float32{1, 2}, Additive: &explain.Additive{Output: 5, Reference: 1, Gap: 1}}
	v := explain.Judge(short, &explain.Fidelity{P: 0.01}, &explain.Sanity{Similarity: 0})
	if v.Explains || !slices.Equal(v.Failures, []explain.Failure{explain.Incomplete}) || !strings.Contains(v.Text.English, "25 %") {
		t.Errorf("contributions that miss a quarter: %+v", v)
	}
	// Nothing speaks against an untested map, and nothing for it.
	untested := &explain.Map{Rows: 1, Columns: 2, Values: []float32{1, 2}}
	if v := explain.Judge(untested, nil, nil); v.Explains || len(v.Failures) != 0 || !strings.Contains(v.Text.English, "not tested") {
		t.Errorf("an untested map: %+v", v)
	}
}

// Deletion and insertion by hand: of x1 + 2·x2 with both at 1 and a background
// of 0, removing x2 first leaves 3, 1, 0; putting it back first gives 0, 2, 3.
func TestDeletionAndInsertionAreTheCurvesTheySay(t *testing.T) {
	m := linear(t, 2, 1, []float32{1, 2}, []float32{0})
	requireRuntime(t)
	made := &explain.Map{Kind: explain.Contribution, Rows: 1, Columns: 2, Values: []float32{1, 2}}
	f, err := explain.Measure(t.Context(), m, engine.Float32([]int64{1, 2}, []float32{1, 1}), made,
		explain.Options{Background: explain.Constant(0)}, explain.CheckOptions{RandomMaps: 200})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.Deletion.Score, []float64{3, 1, 0}) || !slices.Equal(f.Insertion.Score, []float64{0, 2, 3}) || !slices.Equal(f.Deletion.Changed, []float64{0, 0.5, 1}) {
		t.Errorf("deletion %v, insertion %v at %v", f.Deletion.Score, f.Insertion.Score, f.Deletion.Changed)
	}
	if f.Deletion.Area != 1.25 || f.Insertion.Area != 1.75 || f.Score != 0.5 {
		t.Errorf("areas %v and %v", f.Deletion.Area, f.Insertion.Area)
	}
	// The only other order does the opposite; half of the random maps are equal.
	if f.P < 0.4 || f.P > 0.6 {
		t.Errorf("p is %v: of two orders, each comes up half of the time", f.P)
	}
}

func TestRandomisationReachesDownToTheFirstLayer(t *testing.T) {
	m := model(t)
	set, _ := squares(2, 9)
	cam := camOf(t, m)
	made, err := cam.Explain(t.Context(), picture(set, 1), 1)
	if err != nil {
		t.Fatal(err)
	}
	s, err := explain.Randomise(t.Context(), explain.GradCAM, m, picture(set, 1), made, explain.Options{}, explain.CheckOptions{Layers: 100, Randomisations: 2})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, stage := range s.Cascading {
		for _, n := range m.Graph.Nodes {
			if n.Name == stage.Layer {
				kinds = append(kinds, n.OpType)
			}
		}
	}
	if !slices.Equal(kinds, []string{"Gemm", "Gemm", "Conv", "Conv", "Conv"}) && !slices.Equal(kinds, []string{"Gemm", "Conv", "Conv", "Conv"}) {
		t.Errorf("the cascade goes through %v", kinds)
	}
	if len(s.Independent) != len(s.Cascading) {
		t.Errorf("%d layers alone, %d in the cascade", len(s.Independent), len(s.Cascading))
	}
}
