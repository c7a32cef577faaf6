package train

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/vigie/vigie/onnx"
)

const demoPackage = "../models/chest-pneumonia-28"

// dataFile finds a data set, or skips saying so.
func dataFile(t testing.TB, name string) string {
	t.Helper()
	folder := os.Getenv("VIGIE_DATA")
	if folder == "" {
		folder = "../../shared/data"
	}
	path := filepath.Join(folder, name)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("SKIPPED, nothing was checked: no %s in %s; set VIGIE_DATA to the folder of data sets", name, folder)
	}
	return path
}

func demoReport(t *testing.T) Report {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(demoPackage, TrainingFile))
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// recordedCNN is the network as its record describes it.
func recordedCNN(t *testing.T, r *Report) CNN {
	t.Helper()
	raw, err := json.Marshal(r.Network)
	if err != nil {
		t.Fatal(err)
	}
	var c CNN
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheCommittedModelScoresWhatItsRecordSays(t *testing.T) {
	path := dataFile(t, "pneumoniamnist-trainval.npz")
	val, err := LoadMedMNIST(path, "val", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := onnx.Load(filepath.Join(demoPackage, ModelFile))
	if err != nil {
		t.Fatal(err)
	}
	logits, err := Logits(t.Context(), m, "image", "logits", val)
	skipWithoutRuntime(t, err)
	auc, err := val.MeanAUC(logits)
	if err != nil {
		t.Fatal(err)
	}
	r := demoReport(t)
	near(t, "validation AUC", auc, r.AUC.Value, 1e-4) // other processors round otherwise
	if auc < 0.997 {
		t.Errorf("validation AUC is %.4f, want at least 0.997", auc)
	}
	temperature, err := Temperature(logits, val.Labels)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "temperature", temperature, r.Temperature, 1e-3)
}

// The record names the recipe in the source, so that `make model` makes this
// model and no other.
func TestTheCommittedModelIsOfTheRecipeInTheSource(t *testing.T) {
	r := demoReport(t)
	if want := DemoRecipe.orDefault(); !reflect.DeepEqual(r.History.Recipe, want) {
		t.Errorf("recorded recipe %+v, source %+v", r.History.Recipe, want)
	}
	if got := recordedCNN(t, &r); !reflect.DeepEqual(got, DemoCNN) {
		t.Errorf("recorded network %+v, source %+v", got, DemoCNN)
	}
	info, err := os.Stat(filepath.Join(demoPackage, ModelFile))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 500<<10 {
		t.Errorf("model.onnx has %d bytes, want at most 500 KiB", info.Size())
	}
}

// A whole job on a part of the data: the files are there and agree.
func TestAJobLeavesAModelThatItsRecordDescribes(t *testing.T) {
	full := dataFile(t, "pneumoniamnist-trainval.npz")
	out := t.TempDir()
	cnn, recipe := DemoCNN, DemoRecipe
	cnn.Stages, cnn.Hidden = [][]int{{4}, {4}, {8}}, 0
	recipe.Epochs, recipe.Batch = 1, 128
	f := Fit{Data: "pneumoniamnist-trainval.npz", Recipe: recipe, Out: out, Checkpoint: true, About: &cnn}
	var err error
	if f.Train, err = LoadMedMNIST(full, "train", Limits{}); err != nil {
		t.Fatal(err)
	}
	if f.Validation, err = LoadMedMNIST(full, "val", Limits{}); err != nil {
		t.Fatal(err)
	}
	f.Test = f.Validation
	if f.Network, err = cnn.For(f.Train, recipe.Seed); err != nil {
		t.Fatal(err)
	}
	r, _, err := f.Run(context.Background(), nil)
	skipWithoutRuntime(t, err)
	m, err := onnx.Load(filepath.Join(out, ModelFile))
	if err != nil {
		t.Fatal(err)
	}
	val, err := LoadMedMNIST(full, "val", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	logits, err := Logits(t.Context(), m, r.Input, r.Output, val)
	if err != nil {
		t.Fatal(err)
	}
	auc, err := val.MeanAUC(logits)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "AUC of the file", auc, r.AUC.Value, 1e-9)
	built := recordedCNN(t, r)
	near(t, "mean of the pixels", float64(built.Mean), 0.5719, 1e-6)
	near(t, "deviation of the pixels", float64(built.Deviation), 0.1684, 1e-6)
	if r.LogLoss[1] > r.LogLoss[0]+1e-9 {
		t.Errorf("calibration raised the log loss from %g to %g", r.LogLoss[0], r.LogLoss[1])
	}
	for _, name := range []string{CalibrationFile, TrainingFile, CheckpointFile, CurvesPNG, CurvesSVG} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
}
