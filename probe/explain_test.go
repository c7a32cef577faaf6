package probe_test

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

func openDemo(t *testing.T) *probe.Model {
	t.Helper()
	m, err := probe.Open(demoPackage)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func answered(t *testing.T, m *probe.Model, q probe.Question) *probe.Explanation {
	t.Helper()
	e, err := m.Explain(t.Context(), q)
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// The same radiograph from a data set, as a picture and as numbers is the same
// input: one answer, one map.
func TestAnExplanationDoesNotDependOnTheFileThatTheImageCameIn(t *testing.T) {
	m := openDemo(t)
	data := pneumonia(t)
	set, err := train.LoadMedMNIST(data, "val", train.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	const index = 5
	folder := t.TempDir()
	grey := image.NewGray(image.Rect(0, 0, set.Columns, set.Rows))
	copy(grey.Pix, set.Image(index))
	colour := image.NewRGBA(grey.Bounds())
	for y := range set.Rows {
		for x := range set.Columns {
			v := grey.GrayAt(x, y).Y
			colour.SetRGBA(x, y, color.RGBA{v, v, v, 255})
		}
	}
	for name, picture := range map[string]image.Image{"grey.png": grey, "colour.png": colour} {
		var b bytes.Buffer
		if err := png.Encode(&b, picture); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	numbers := make([]float32, set.Rows*set.Columns)
	set.Fill(numbers, index)
	if err := probe.Save(filepath.Join(folder, "x.npy"), map[string]engine.Tensor{"x": engine.Float32([]int64{1, 28, 28}, numbers)}, nil); err != nil {
		t.Fatal(err)
	}
	want := answered(t, m, probe.Question{Example: probe.Example{Data: data, Split: "val", Index: index}, Method: explain.Occlusion})
	for _, name := range []string{"grey.png", "colour.png", "x.npy"} {
		got := answered(t, m, probe.Question{Example: probe.Example{Input: filepath.Join(folder, name)}, Method: explain.Occlusion})
		if math.Abs(got.Probability-want.Probability) > 1e-5 || got.Label != "pneumonia" {
			t.Errorf("%s: %s with probability %v, the data set gives %v", name, got.Label, got.Probability, want.Probability)
		}
		for i := range want.Map.Values {
			if math.Abs(float64(got.Map.Values[i]-want.Map.Values[i])) > 1e-4 {
				t.Fatalf("%s: value %d of the map is %v, the data set gives %v", name, i, got.Map.Values[i], want.Map.Values[i])
			}
		}
	}
}

// A picture by itself reaches a bare graph as it does from the folder that it is
// evaluated in: in grey if the graph wants grey, brought to its size.
func TestAPictureIsReadTheSameWayAloneAndInItsFolder(t *testing.T) {
	m := brightness(t, -1, 1, []float32{0, 4}, []float32{2, 0}) // reads 2×2
	folder := t.TempDir()
	for i := range 20 {
		picture := image.NewRGBA(image.Rect(0, 0, 6, 4))
		for p := range 24 {
			picture.Set(p%6, p/6, color.RGBA{uint8(10*i + p), uint8(200 * (i % 2)), 30, 255})
		}
		var b bytes.Buffer
		if err := png.Encode(&b, picture); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(folder, []string{"dark", "light"}[i%2], fmt.Sprintf("%02d.png", i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	set, err := studies.Open(t.Context(), studies.Options{Data: folder, Rows: 2, Columns: 2, Channels: 1, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range set.Test.Names {
		within := answered(t, m, probe.Question{Example: probe.Example{Data: folder, Split: "test", Index: i, Reading: studies.Options{Seed: 1}}, Method: explain.Occlusion, Class: "1"})
		alone := answered(t, m, probe.Question{Example: probe.Example{Input: filepath.Join(folder, name)}, Method: explain.Occlusion, Class: "1"})
		// A folder of 8-bit pictures is kept in 8 bits.
		if math.Abs(float64(within.Logits[1]-alone.Logits[1])) > 4*0.6/255 || alone.Logits[1] == 0 {
			t.Errorf("%s: %v in its folder, %v alone", name, within.Logits, alone.Logits)
		}
	}
}

func TestATestedMapIsDrawnWithItsLabelAndSavedAsItIs(t *testing.T) {
	m := openDemo(t)
	data := pneumonia(t)
	q := probe.Question{Example: probe.Example{Data: data, Split: "val", Index: 1}, Method: explain.Occlusion, Check: true,
		Tests: explain.CheckOptions{RandomMaps: 19, Randomisations: 2, Layers: 2}}
	e := answered(t, m, q)
	if e.Tests == nil || e.Tests.RandomMaps != 19 || e.Tests.English == "" || e.Tests.French == "" || e.Tests.Similarity == nil || len(e.Tests.Cascading) != 2 {
		t.Fatalf("tests: %+v", e.Tests)
	}
	if e.Tests.Explains != (len(e.Tests.Failures) == 0) || e.Tests.Explains != e.Verdict.Explains {
		t.Errorf("verdict %v with failures %v", e.Tests.Explains, e.Tests.Failures)
	}
	folder := t.TempDir()
	for _, name := range []string{"map.png", "map.npy"} {
		if err := e.Save(filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
	}
	back, err := probe.ReadArray(filepath.Join(folder, "map.npy"))
	if err != nil {
		t.Fatal(err)
	}
	if values, _ := back.Data.([]float32); !slices.Equal(values, e.Map.Values) || !slices.Equal(back.Shape, []int64{28, 28}) {
		t.Errorf("the saved map has shape %v", back.Shape)
	}
	f, err := os.Open(filepath.Join(folder, "map.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	drawn, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if b := drawn.Bounds(); b.Dx() < 2*420 || b.Dy() <= 420 {
		t.Errorf("the drawing is %v: want two panels and a band", b)
	}
	if entries, _ := os.ReadDir(folder); len(entries) != 2 {
		t.Errorf("%d files were left, want 2", len(entries))
	}
	for _, name := range []string{"map.csv", "map.gif"} {
		if err := e.Save(filepath.Join(folder, name)); err == nil {
			t.Errorf("%s was written", name)
		}
	}
}

func TestBackgroundsCanBeNamed(t *testing.T) {
	m := openDemo(t)
	data := pneumonia(t)
	rows := filepath.Join(t.TempDir(), "rows.npy")
	if err := probe.Save(rows, map[string]engine.Tensor{"x": engine.Float32([]int64{2, 1, 28, 28}, make([]float32, 2*28*28))}, nil); err != nil {
		t.Fatal(err)
	}
	said := map[string]float64{}
	for _, name := range []string{"", "black", "mean", "blur", "data", rows} {
		q := probe.Question{Example: probe.Example{Data: data, Split: "val", Index: 3}, Method: explain.GradientSHAP, Background: name, Options: explain.Options{Samples: 20, Seed: 1}}
		e := answered(t, m, q)
		if e.Background == "" {
			t.Errorf("background %q is not said", name)
		}
		said[name] = e.Additive.Reference
	}
	if said[""] != said["mean"] || math.Abs(said["black"]-said[rows]) > 1e-4 || said["black"] == said["mean"] || said["blur"] == said["mean"] || said["data"] == said["mean"] {
		t.Errorf("mean scores by background: %v", said)
	}
	if _, err := m.Explain(t.Context(), probe.Question{Example: probe.Example{Data: data, Split: "val"}, Method: explain.LIME, Background: "nothing"}); err == nil {
		t.Error("a background that is no file was accepted")
	}
}

func TestADICOMFileIsExplainedAsItsCaseIsRead(t *testing.T) {
	m := openDemo(t)
	file, err := phantom.Chest(3, phantom.Options{})
	if err != nil {
		t.Fatal(err)
	}
	luminance, err := file.Luminance(0)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "chest.dcm")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Write(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	e := answered(t, m, probe.Question{Example: probe.Example{Input: path}, Method: explain.GradCAM})
	prepared, err := m.Package.Manifest.Prepare(luminance)
	if err != nil {
		t.Fatal(err)
	}
	run, err := m.Run(t.Context(), map[string]engine.Tensor{"image": prepared})
	if err != nil {
		t.Fatal(err)
	}
	for i, z := range run.Tensors["logits"].Data.([]float32) {
		if math.Abs(float64(e.Logits[i]-z)) > 1e-4 {
			t.Errorf("logit %d is %v, the case's is %v", i, e.Logits[i], z)
		}
	}
	if !slices.ContainsFunc(e.Map.Values, func(v float32) bool { return v > 0 }) {
		t.Error("the map is empty")
	}
}
