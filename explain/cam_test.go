package explain_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

const side = 20

// squares draws noise images; those of class 1 hold one bright 4×4 square at a
// random place, whose top left corner is returned.
func squares(n int, seed uint64) (*train.Set, [][2]int) {
	rng := rand.New(rand.NewPCG(seed, 3))
	s := &train.Set{Name: "squares", Channels: 1, Rows: side, Columns: side, Classes: 2}
	var places [][2]int
	for i := range n {
		image := make([]uint8, side*side)
		for p := range image {
			image[p] = uint8(40 + rng.IntN(60))
		}
		y, x := rng.IntN(side-3), rng.IntN(side-3)
		if i%2 == 1 {
			for dy := range 4 {
				for dx := range 4 {
					image[(y+dy)*side+x+dx] = uint8(200 + rng.IntN(55))
				}
			}
		}
		s.Pixels = append(s.Pixels, image...)
		s.Labels = append(s.Labels, i%2)
		places = append(places, [2]int{y, x})
	}
	return s, places
}

// detector has no normalisation: its channels then answer to what lies under
// them alone, and the claim about places can be sharp.
var detector = train.CNN{Channels: 1, Rows: side, Columns: side, Classes: 2, Stages: [][]int{{8}, {8, 8}}, Mean: .3, Deviation: .2}

func network(t *testing.T, c train.CNN, seed uint64) *train.Network {
	t.Helper()
	n, err := c.Build(rand.New(rand.NewPCG(seed, 0)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// trained is one network for all tests: it finds bright squares.
var trained = sync.OnceValues(func() (*onnx.Model, error) {
	n, err := detector.Build(rand.New(rand.NewPCG(5, 0)))
	if err != nil {
		return nil, err
	}
	set, _ := squares(512, 1)
	val, _ := squares(128, 2)
	r, err := train.Run(context.Background(), train.Config{Network: n, Train: set, Validation: val, Recipe: train.Recipe{Epochs: 8, Batch: 32, Rate: 1e-2, Warmup: 1, Seed: 1}}, nil)
	if err != nil {
		return nil, err
	}
	return r.Model, nil
})

func model(t *testing.T) *onnx.Model {
	t.Helper()
	m, err := trained()
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func camOf(t *testing.T, m *onnx.Model) explain.Explainer {
	t.Helper()
	cam, err := explain.New(explain.GradCAM, m, explain.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cam.Close() })
	return cam
}

func picture(s *train.Set, i int) engine.Tensor {
	v := make([]float32, side*side)
	for p, b := range s.Image(i) {
		v[p] = float32(b) / 255
	}
	return engine.Float32([]int64{1, 1, side, side}, v)
}

func TestTheMapLiesWhereTheClassIs(t *testing.T) {
	m := model(t)
	cam := camOf(t, m)
	set, places := squares(40, 9)
	inside, hits, images := 0.0, 0, 0
	for i := 1; i < set.Len(); i += 2 {
		e, err := cam.Explain(t.Context(), picture(set, i), 1)
		if err != nil {
			t.Fatal(err)
		}
		if e.Rows != side || e.Columns != side || len(e.Values) != side*side {
			t.Fatalf("map is %d×%d with %d values", e.Rows, e.Columns, len(e.Values))
		}
		// The layer has half the resolution and sees two pixels further: 4
		// around the square.
		mass, near, best := 0.0, 0.0, 0
		for p, v := range e.Values {
			if v < 0 || v > 1 {
				t.Fatalf("value %g is outside 0..1", v)
			}
			mass += float64(v)
			y, x := p/side-places[i][0], p%side-places[i][1]
			if y >= -4 && y < 8 && x >= -4 && x < 8 {
				near += float64(v)
			}
			if v > e.Values[best] {
				best = p
			}
		}
		inside += near / mass
		images++
		if y, x := best/side-places[i][0], best%side-places[i][1]; y >= -2 && y < 6 && x >= -2 && x < 6 {
			hits++
		}
	}
	if mean := inside / float64(images); mean < 0.8 {
		t.Errorf("%.0f %% of the maps' mass lies around the square, want at least 80 %%", 100*mean)
	}
	if hits < images*9/10 {
		t.Errorf("the strongest place lies on the square in %d of %d images", hits, images)
	}
}

// Adebayo et al. 2018: a map that survives random weights explains the image,
// not the model.
func TestRandomWeightsChangeTheMap(t *testing.T) {
	m := model(t)
	set, _ := squares(20, 9)
	a := camOf(t, m)
	similarity, images := 0.0, 0
	for seed := range uint64(10) {
		b := camOf(t, network(t, detector, 100+seed).Model)
		for i := 1; i < set.Len(); i += 2 {
			x, err := a.Explain(t.Context(), picture(set, i), 1)
			if err != nil {
				t.Fatal(err)
			}
			y, err := b.Explain(t.Context(), picture(set, i), 1)
			if err != nil {
				t.Fatal(err)
			}
			similarity += correlation(x.Values, y.Values)
			images++
		}
	}
	if mean := similarity / float64(images); mean > 0.5 { // with itself it is 1
		t.Errorf("maps of trained and random weights correlate by %.2f", mean)
	}
}

func correlation(a, b []float32) float64 {
	var ma, mb, saa, sbb, sab float64
	for i := range a {
		ma += float64(a[i]) / float64(len(a))
		mb += float64(b[i]) / float64(len(b))
	}
	for i := range a {
		x, y := float64(a[i])-ma, float64(b[i])-mb
		saa, sbb, sab = saa+x*x, sbb+y*y, sab+x*y
	}
	if saa == 0 || sbb == 0 {
		return 0
	}
	return sab / math.Sqrt(saa*sbb)
}

func TestTheLogitsAreThoseOfThePlainModel(t *testing.T) {
	m := model(t)
	set, _ := squares(6, 11)
	want, err := train.Logits(t.Context(), m, "image", "logits", set)
	if err != nil {
		t.Fatal(err)
	}
	cam := camOf(t, m)
	for i := range set.Len() {
		for class := range 2 {
			e, err := cam.Explain(t.Context(), picture(set, i), class)
			if err != nil {
				t.Fatal(err)
			}
			for c, z := range e.Logits {
				if math.Abs(float64(z)-want[i][c]) > 1e-4*math.Max(1, math.Abs(want[i][c])) {
					t.Errorf("image %d: logit %d is %g, plain model says %g", i, c, z, want[i][c])
				}
			}
		}
	}
}

func TestTheLayerIsTheLastBlocksActivation(t *testing.T) {
	grouped := detector
	grouped.GroupSize = 4
	n := network(t, grouped, 1)
	layer, err := explain.LastLayer(n.Model, n.Logits)
	if err != nil {
		t.Fatal(err)
	}
	if layer != n.Layer || layer != "relu3" {
		t.Errorf("layer is %q, want %q", layer, n.Layer)
	}
}

func TestAModelWithoutAFeatureMapIsRefused(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Fixed(1, 4)...)
	w := b.Weight("w", []int64{4, 2}, make([]float32, 8))
	b.Output(b.Op("MatMul", []string{x, w}), onnx.Float, onnx.Fixed(1, 2)...)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := explain.New(explain.GradCAM, m, explain.Options{}); !errors.Is(err, explain.ErrNoLayer) {
		t.Errorf("error is %v", err)
	}
}

func TestAnUnknownClassIsAnError(t *testing.T) {
	cam := camOf(t, model(t))
	set, _ := squares(1, 1)
	for _, class := range []int{-1, 2} {
		if _, err := cam.Explain(t.Context(), picture(set, 0), class); err == nil {
			t.Errorf("class %d was explained", class)
		}
	}
}

func TestEnlargingKeepsCentresAndBorders(t *testing.T) {
	got := explain.Enlarge([]float32{0, 1}, 1, 2, 1, 4)
	want := []float32{0, 0.25, 0.75, 1}
	for i := range want {
		if math.Abs(float64(got[i]-want[i])) > 1e-6 {
			t.Fatalf("enlarged to %v, want %v", got, want)
		}
	}
	same := []float32{1, 2, 3, 4, 5, 6}
	for i, v := range explain.Enlarge(same, 2, 3, 2, 3) {
		if v != same[i] {
			t.Fatalf("enlarging to the same size changed value %d to %g", i, v)
		}
	}
}
