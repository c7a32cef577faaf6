package job

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train/studies"
)

// demoCopy is the demo package in a folder of its own.
func demoCopy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	const from = "../../models/chest-pneumonia-28"
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, e.Name()), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// images names a split of a data set of MedMNIST.
func images(t *testing.T, name, split string) probe.Test {
	t.Helper()
	data := filepath.Join(os.Getenv("VIGIE_DATA"), name+"-trainval.npz")
	if _, err := os.Stat(data); os.Getenv("VIGIE_DATA") == "" || err != nil {
		t.Skipf("SKIPPED, nothing was fitted: no %s; set VIGIE_DATA to the folder of data sets", data)
	}
	return probe.Test{Options: studies.Options{Data: data, Seed: 1}, Split: split}
}

func TestGuardsThatWereFittedKnowTheirOwnImagesAndNoOthers(t *testing.T) {
	dir := demoCopy(t)
	val := images(t, "pneumoniamnist", "val")
	ctx := context.Background()
	fit := Fit{Package: dir, Data: val, Options: guard.FitOptions{Seed: 1}}
	first, err := fit.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if first.Calibrated != 299 || first.Expected != 0.01 || !first.Gradient || first.Digest == first.Replaced {
		t.Errorf("%+v", first)
	}
	again, err := fit.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if again.Digest != first.Digest || again.Subject != first.Subject || again.Replaced != first.Digest {
		t.Errorf("fitting again gives %s for %s, was %s for %s", again.Digest, again.Subject, first.Digest, first.Subject)
	}
	own, err := Try{Package: dir, Data: val}.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Of these images the calibration's own raise at most 1 %, and those fitted on fewer.
	if own.Images != 524 || own.Rate.Value > 0.015 {
		t.Errorf("%d alarms on its own %d images", own.Alarms, own.Images)
	}
	other, err := Try{Package: dir, Data: images(t, "breastmnist", "val"), Each: true}.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if other.Rate.Value < 0.8 || len(other.Each) != other.Images {
		t.Errorf("%d alarms on %d ultrasound images", other.Alarms, other.Images)
	}
	var text bytes.Buffer
	if err := errors.Join(first.Write(&text), other.Write(&text)); err != nil || !strings.Contains(text.String(), "promised") {
		t.Errorf("%s (%v)", text.String(), err)
	}
}

func TestAPackageWithoutGuardsAndTooFewImagesAreRefused(t *testing.T) {
	dir := demoCopy(t)
	few := images(t, "breastmnist", "val")
	before, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	// With verifiers alone the answers can be tried; without either nothing can.
	if _, err := before.WriteFitted(nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := (Try{Package: dir, Data: few}).Run(context.Background()); !errors.Is(err, model.ErrNoGuards) {
		t.Errorf("got %v", err)
	}
	if before, err = model.Open(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := (Fit{Package: dir, Data: few}).Run(context.Background()); !errors.Is(err, guard.ErrTooFew) {
		t.Errorf("got %v", err)
	}
	after, err := model.Open(dir)
	if err != nil || after.Digest != before.Digest {
		t.Errorf("a refused fit changed the package (%v)", err)
	}
}
