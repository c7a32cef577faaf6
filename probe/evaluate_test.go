package probe_test

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

const demoPackage = "../models/chest-pneumonia-28"

// pneumonia finds the data set, or skips saying so.
func pneumonia(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("VIGIE_DATA")
	if folder == "" {
		folder = "../../shared/data"
	}
	path := filepath.Join(folder, "pneumoniamnist-trainval.npz")
	if _, err := os.Stat(path); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: no %s; set VIGIE_DATA to the folder of data sets", path)
	}
	return path
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-6 {
		t.Errorf("%s is %v, the record says %v", what, got, want)
	}
}

func TestTheDemoPackageScoresWhatItsRecordSays(t *testing.T) {
	data := pneumonia(t)
	raw, err := os.ReadFile(filepath.Join(demoPackage, train.TrainingFile))
	if err != nil {
		t.Fatal(err)
	}
	var record train.Report
	if err := json.Unmarshal(raw, &record); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{demoPackage, filepath.Join(demoPackage, train.ModelFile)} {
		m, err := probe.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		e, err := m.Evaluate(t.Context(), probe.Test{Options: studies.Options{Data: data, Seed: record.Seed}, Split: "val"})
		skipWithoutRuntime(t, err)
		near(t, path+": AUC", e.AUC.Value, record.AUC.Value)
		near(t, path+": DeLong's lower end", e.AUC.Low, record.AUC.Low)
		near(t, path+": DeLong's upper end", e.AUC.High, record.AUC.High)
		near(t, path+": bootstrap's lower end", e.AUCBootstrap.Low, record.Bootstrap.Low)
		near(t, path+": accuracy", e.Accuracy.Value, record.Accuracy)
		before := 1 // calibrated
		if m.Package == nil {
			before = 0
		}
		near(t, path+": log loss", e.LogLoss, record.LogLoss[before])
		near(t, path+": calibration error", e.CalibrationError, record.Calibration[before])
		if e.DataDigest != record.DataDigest || !slices.Equal(e.Images, record.Images) {
			t.Errorf("%s: other data: %s %v", path, e.DataDigest, e.Images)
		}
		if m.Package == nil {
			if e.Operating != nil {
				t.Error("a bare graph has no operating point")
			}
			continue
		}
		o := e.Operating
		near(t, "sensitivity", o.Sensitivity.Value, record.Operating.Sensitivity)
		near(t, "specificity", o.Specificity.Value, record.Operating.Specificity)
		if total := o.TruePositive + o.FalseNegative + o.FalsePositive + o.TrueNegative; total != 524 || o.Label != "pneumonia" {
			t.Errorf("%d images judged for %s", total, o.Label)
		}
		var text strings.Builder
		if err := e.Write(&text); err != nil || !strings.Contains(text.String(), "0.9986") {
			t.Errorf("%v in\n%s", err, &text)
		}
	}
}

// dataset writes an .npz of 2×2 images of one grey value each, with labels.
func dataset(t *testing.T, values []uint8, labels []int64) string {
	t.Helper()
	var pixels []uint8
	for _, v := range values {
		pixels = append(pixels, v, v, v, v)
	}
	path := filepath.Join(t.TempDir(), "set.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	n := int64(len(values))
	err = train.WriteNPZ(f, map[string]train.Array{"test_images": {Shape: []int64{n, 2, 2}, Data: pixels}, "test_labels": {Shape: []int64{n, 1}, Data: labels}})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// brightness writes a model whose logits are the image's mean times each weight
// plus each bias, for a batch of the given size (-1: any) and channels.
func brightness(t *testing.T, n, channels int64, weights, bias []float32) *probe.Model {
	t.Helper()
	size := onnx.Dim{Value: n}
	if n < 0 {
		size.Param = "batch"
	}
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, size, onnx.Dim{Value: channels}, onnx.Dim{Value: 2}, onnx.Dim{Value: 2})
	mean := b.Op("ReduceMean", []string{x}, onnx.IntsAttribute("axes", 1, 2, 3), onnx.IntAttribute("keepdims", 0))
	classes := int64(len(weights))
	column := b.Op("Unsqueeze", []string{mean, b.Ints("axes", 1)})
	z := b.Op("Add", []string{b.Op("Mul", []string{column, b.Weight("w", []int64{1, classes}, weights)}), b.Weight("b", []int64{classes}, bias)})
	b.Output(z, onnx.Float, size, onnx.Dim{Value: classes})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	p, err := probe.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFiguresOfASmallSetAreThoseByHand(t *testing.T) {
	// dark images are class 0 but for one; the threshold lies at half
	data := dataset(t, []uint8{0, 50, 200, 255, 100}, []int64{0, 0, 1, 1, 1})
	for name, m := range map[string]*probe.Model{
		"any batch":           brightness(t, -1, 1, []float32{0, 4}, []float32{2, 0}),
		"batch of two":        brightness(t, 2, 1, []float32{0, 4}, []float32{2, 0}),
		"one logit":           brightness(t, -1, 1, []float32{4}, []float32{-2}),
		"grey in three times": brightness(t, 1, 3, []float32{0, 4}, []float32{2, 0}),
	} {
		e, err := m.Evaluate(t.Context(), probe.Test{Options: studies.Options{Data: data, Seed: 1}, Split: "test"})
		skipWithoutRuntime(t, err)
		if e.AUC.Value != 1 || e.Accuracy.Value != 0.8 || !slices.Equal(e.Confusion[0], []int{2, 0}) || !slices.Equal(e.Confusion[1], []int{1, 2}) {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestThreeClassesAreEachHeldAgainstTheRest(t *testing.T) {
	data := dataset(t, []uint8{0, 10, 128, 120, 250, 255}, []int64{0, 0, 1, 1, 2, 2})
	m := brightness(t, -1, 1, []float32{-10, 0, 10}, []float32{5, 3, -5})
	e, err := m.Evaluate(t.Context(), probe.Test{Options: studies.Options{Data: data}, Split: "test"})
	skipWithoutRuntime(t, err)
	if e.AUC != nil || len(e.ClassAUC) != 3 || e.MeanAUC != 1 || e.Accuracy.Value != 1 {
		t.Errorf("%+v", e)
	}
	var text strings.Builder
	if err := e.Write(&text); err != nil || !strings.Contains(text.String(), "class 2") || !slices.Equal(e.Classes, []string{"0", "1", "2"}) {
		t.Errorf("classes %q, %v in\n%s", e.Classes, err, &text)
	}
	// Every question calls a class without a name the same.
	x := answered(t, m, probe.Question{Example: probe.Example{Data: data, Split: "test", Index: 5}, Method: explain.Occlusion})
	text.Reset()
	if err := x.Write(&text); err != nil || x.Label != "2" || !strings.Contains(text.String(), ": class 2, probability") {
		t.Errorf("label %q, %v in\n%s", x.Label, err, &text)
	}
	_, err = m.Explain(t.Context(), probe.Question{Example: probe.Example{Data: data, Split: "test"}, Method: explain.Occlusion, Class: "nope"})
	if err == nil || !strings.Contains(err.Error(), "its classes have no names; a number from 0 to 2 will do") {
		t.Errorf("a class by another name: %v", err)
	}
	// A model that knows names says them of data that have numbers.
	if err := train.Describe(m.Graph, []string{"dark", "grey", "light"}, nil); err != nil {
		t.Fatal(err)
	}
	if e, err = m.Evaluate(t.Context(), probe.Test{Options: studies.Options{Data: data}, Split: "test"}); err != nil || e.Classes[2] != "light" {
		t.Errorf("%v, classes %q", err, e.Classes)
	}
}

func TestDataThatDoNotFitAreAnErrorThatSaysSo(t *testing.T) {
	two := brightness(t, -1, 1, []float32{0, 4}, []float32{2, 0})
	good := dataset(t, []uint8{0, 255}, []int64{0, 1})
	for name, c := range map[string]struct {
		model       *probe.Model
		data, split string
		says        string
	}{
		"label outside": {two, dataset(t, []uint8{0, 1, 2}, []int64{0, 1, 2}), "test", "labels up to 2"},
		"class missing": {brightness(t, -1, 1, []float32{0, 1, 2}, []float32{0, 0, 0}), good, "test", "2 classes, the model knows 3"},
		"empty class":   {two, dataset(t, []uint8{0, 1}, []int64{1, 1}), "test", "class 0 has no example"},
		"split":         {two, good, "val", "no such split"},
		"channels":      {brightness(t, -1, 2, []float32{0, 1}, []float32{0, 0}), good, "test", "want float[batch,2,2,2]"},
		"not images":    {linear(t, "", ones...), good, "test", "want one input"},
		"NaN":           {brightness(t, -1, 1, []float32{0, float32(math.NaN())}, []float32{0, 0}), good, "test", "output 1 of image 0 is NaN"},
	} {
		_, err := c.model.Evaluate(t.Context(), probe.Test{Options: studies.Options{Data: c.data}, Split: c.split})
		if err != nil && strings.Contains(err.Error(), "make runtime") {
			t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
		}
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q in it", name, err, c.says)
		}
	}
}
