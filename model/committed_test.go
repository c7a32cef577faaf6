package model_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/train"
)

const committed = "../models/chest-pneumonia-28"

func openCommitted(t *testing.T) (*model.Package, train.Report) {
	t.Helper()
	p, err := model.Open(committed)
	if err != nil {
		t.Fatal(err)
	}
	var report train.Report
	if err := json.Unmarshal(p.Training, &report); err != nil {
		t.Fatalf("training.json: %v", err)
	}
	return p, report
}

func TestTheCommittedPackageIsSoundSmallAndGood(t *testing.T) {
	p, report := openCommitted(t)
	size := 0
	for _, name := range append(p.Files, model.DigestFile) {
		info, err := os.Stat(filepath.Join(committed, name))
		if err != nil {
			t.Fatal(err)
		}
		size += int(info.Size())
	}
	if size > 1<<20 {
		t.Errorf("the package has %d bytes, more than 1 MiB", size)
	}
	if report.AUC.Value < 0.99 {
		t.Errorf("validation AUC %v, want 0.99", report.AUC.Value)
	}
	for i, name := range p.Manifest.Explanation.Methods() {
		surveyed := p.Explained.Of(name)
		if surveyed == nil || surveyed.Images < 20 || !surveyed.Tested || !surveyed.Randomised {
			t.Fatalf("what %s is worth on this model was not measured on enough images: %+v", name, surveyed)
		}
		if failures := surveyed.Failures(); i == 0 && (len(failures) > 0 || surveyed.Explained < surveyed.Images*3/4) {
			t.Errorf("the method that the demo shows explains nothing: %+v", surveyed)
		}
	}
	if p.Calibration.Temperature != report.Temperature {
		t.Errorf("temperature %v, trained with %v", p.Calibration.Temperature, report.Temperature)
	}
}

// What people read must be what was measured.
func TestTheCommittedCardAndManifestRepeatTheMeasuredNumbers(t *testing.T) {
	p, report := openCommitted(t)
	method := p.Explained.Of(p.Manifest.Explanation.Method)
	for _, want := range []string{
		p.Manifest.Name + " " + p.Manifest.Version, p.Explained.Images,
		fmt.Sprintf("| %s | %d of %d | %+.2f |", method.Name, method.Explained, method.Images, method.Similarity),
		fmt.Sprintf("%.4f", report.AUC.Value), fmt.Sprintf("%.4f", report.AUC.Low), fmt.Sprintf("%.4f", report.AUC.High),
		fmt.Sprintf("%.1f %%", 100*report.Operating.Sensitivity), fmt.Sprintf("%.1f %%", 100*report.Operating.Specificity),
		fmt.Sprintf("%.3f", report.Operating.Threshold), fmt.Sprintf("%.2f", report.Temperature), fmt.Sprint(report.Parameters),
		fmt.Sprintf("seed %d", report.Seed), "CC BY 4.0", "Kermany", "MedMNIST",
	} {
		if !strings.Contains(p.Card, want) {
			t.Errorf("card.md does not say %s", want)
		}
	}
	for _, label := range p.Manifest.Output.Labels {
		want := report.Operating.Threshold
		if label.Name != p.Manifest.Output.Target {
			want = 1 - want
		}
		if math.Abs(label.Threshold-want) > 5e-4 {
			t.Errorf("the threshold of %s is %v, chosen was %v", label.Name, label.Threshold, want)
		}
	}
}

// The figures of training.json come out again when the validation images take
// the product's own way: luminance, Prepare, engine, Predictions.
func TestTheCommittedModelRepeatsItsValidationFiguresThroughThePackage(t *testing.T) {
	data := os.Getenv("VIGIE_DATA")
	if data == "" {
		data = "../../shared/data"
	}
	set, err := train.LoadMedMNIST(filepath.Join(data, "pneumoniamnist-trainval.npz"), "val", train.Limits{})
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("PneumoniaMNIST is not in VIGIE_DATA (%s)", data)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, report := openCommitted(t)
	session, err := engine.OpenBytes(p.ONNX, engine.Options{Threads: 1})
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()

	pixels := set.Rows * set.Columns
	var hit, miss, correct, alarm, band, bandWrong, wrong int
	for i := range set.Len() {
		l := &dicom.Luminance{Rows: set.Rows, Columns: set.Columns, Values: make([]float32, pixels)}
		for j := range l.Values {
			l.Values[j] = float32(set.Pixels[i*pixels+j]) / 255
		}
		input, err := p.Manifest.Prepare(l)
		if err != nil {
			t.Fatal(err)
		}
		outputs, err := session.Run(context.Background(), map[string]engine.Tensor{p.Manifest.Input.Name: input}, p.Manifest.Output.Name)
		if err != nil {
			t.Fatal(err)
		}
		logits, err := engine.Values[float32](outputs[p.Manifest.Output.Name])
		if err != nil {
			t.Fatal(err)
		}
		predictions, err := p.Predictions(logits)
		if err != nil {
			t.Fatal(err)
		}
		sick, said := set.Labels[i] == 1, predictions[1].Positive
		switch {
		case sick && said:
			hit++
		case sick:
			miss++
		case said:
			alarm++
		default:
			correct++
		}
		if sick != said {
			wrong++
		}
		if len(p.Manifest.Review(predictions, nil)) > 0 {
			band++
			if sick != said {
				bandWrong++
			}
		}
	}
	t.Logf("sensitivity %.4f, specificity %.4f, borderline %d of %d with %d of the %d errors",
		float64(hit)/float64(hit+miss), float64(correct)/float64(correct+alarm), band, set.Len(), bandWrong, wrong)
	if got := float64(hit) / float64(hit+miss); math.Abs(got-report.Operating.Sensitivity) > 0.004 {
		t.Errorf("sensitivity %v, training.json says %v", got, report.Operating.Sensitivity)
	}
	if got := float64(correct) / float64(correct+alarm); math.Abs(got-report.Operating.Specificity) > 0.008 {
		t.Errorf("specificity %v, training.json says %v", got, report.Operating.Specificity)
	}
}
