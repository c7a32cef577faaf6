package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// noisy writes images of noise on grey, of which those of one class are lighter. No
// patient is behind them.
func noisy(t *testing.T, n, rare int) probe.Test {
	t.Helper()
	rng := rand.New(rand.NewPCG(9, 9))
	pixels, labels := make([]uint8, n*28*28), make([]uint8, n)
	for i := range n {
		if i%rare == 0 {
			labels[i] = 1
		}
		level := 40 + 90*rng.Float64() + 60*float64(labels[i])
		for p := range 28 * 28 {
			pixels[i*28*28+p] = uint8(level + 12*rng.Float64())
		}
	}
	path := filepath.Join(t.TempDir(), "noise.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	err = train.WriteNPZ(f, map[string]train.Array{
		"val_images": {Shape: []int64{int64(n), 28, 28}, Data: pixels}, "val_labels": {Shape: []int64{int64(n), 1}, Data: labels}})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return probe.Test{Options: studies.Options{Data: path, Seed: 1}, Split: "val"}
}

func withDisagreement(t *testing.T, dir, section string) {
	t.Helper()
	path := filepath.Join(dir, model.ManifestFile)
	manifest, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, append(manifest, []byte("\n"+section+"\n")...), 0o644)
	}
	if err == nil {
		_, err = model.Seal(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestVerifiersAreFittedSealedAndTriedWithoutGuards(t *testing.T) {
	dir := demoCopy(t)
	withDisagreement(t, dir, "disagreement: {mode: on}")
	data := noisy(t, 300, 3)
	ctx := context.Background()
	before, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	fit := Fit{Package: dir, Data: data, Options: guard.FitOptions{Seed: 4}, WithoutGuards: true, Verify: Verifying{Coverage: 0.9}}
	first, err := fit.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := first.Verifiers
	if first.Report != nil || !first.Labelled || v.Sets == nil || v.Sets.Alpha < 0.0999 || v.Apart == nil || v.Apart.By != guard.Views || len(first.Promises) != 2 || first.Digest == first.Replaced {
		t.Fatalf("%+v", first)
	}
	again, err := fit.Run(ctx)
	if err != nil || again.Digest != first.Digest || again.Verifiers.Subject != v.Subject {
		t.Fatalf("fitting again gives %+v (%v)", again, err)
	}
	opened, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := Verifiers(opened)
	if err != nil || shown.Subject != v.Subject || opened.Digest == before.Digest {
		t.Fatalf("%+v (%v)", shown, err)
	}
	var text bytes.Buffer
	if err := errors.Join(first.Write(&text), WriteVerifiers(&text, shown)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"prediction sets    coverage 90 % of each label", "disagreement       6 views", "no budget was stated", "without input guards"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, text.String())
		}
	}
	tried, err := Try{Package: dir, Data: data}.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a := tried.Answers
	if a == nil || len(a.Labels) != 2 || a.Decided == nil || a.Right == nil && a.Released > 0 || a.Again <= 0 {
		t.Fatalf("%+v", a)
	}
	for _, l := range a.Labels { // on the images calibrated on, less is impossible
		if l.Held.Value < 0.9-1e-9 {
			t.Errorf("%s is held in %.3f", l.Label, l.Held.Value)
		}
	}
	if err := tried.Write(&text); err != nil || !strings.Contains(text.String(), "to people") {
		t.Errorf("%v\n%s", err, text.String())
	}
}

func TestABudgetIsChosenOrRefusedBeforeAnythingChanges(t *testing.T) {
	dir := demoCopy(t)
	data := noisy(t, 300, 3)
	ctx := context.Background()
	before, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		fit  Fit
		want error
	}{
		"no budget suffices for the manifest's band": {Fit{Verify: Verifying{Review: 0.004, Margin: 0.05}}, guard.ErrBudget},
		"a coverage without enough images":           {Fit{Verify: Verifying{Coverage: 0.999}}, guard.ErrTooFew},
		"a level of what nobody asks for":            {Fit{Verify: Verifying{Unstable: 0.05}}, ErrAsk},
		"a margin of more than all":                  {Fit{Verify: Verifying{Margin: 0.7}}, ErrAsk},
	} {
		c.fit.Package, c.fit.Data, c.fit.WithoutGuards = dir, data, true
		if _, err := c.fit.Run(ctx); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := model.Open(dir); err != nil || after.Digest != before.Digest {
			t.Errorf("%s: the package changed (%v)", name, err)
		}
	}
	withDisagreement(t, dir, "disagreement: {mode: on, by: members}")
	if _, err := (Fit{Package: dir, Data: data, WithoutGuards: true}).Run(ctx); !errors.Is(err, ErrAsk) {
		t.Errorf("members of what is no ensemble: %v", err)
	}
	fitted, err := Fit{Package: demoCopy(t), Data: data, WithoutGuards: true, Options: guard.FitOptions{Seed: 2}, Verify: Verifying{Review: 0.9, Margin: 0.05}}.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if b := fitted.Verifiers.Budget; b.Stated != 0.9 || b.Expected > 0.9 || len(b.Parts) < 3 {
		t.Errorf("%+v", b)
	}
}

func TestABudgetCountsTheCertificateThatTheManifestAsksFor(t *testing.T) {
	dir := demoCopy(t)
	withDisagreement(t, dir, "certificate: {when: on, patch: {size: 3, masks: 3, rounds: 1}}")
	data := noisy(t, 60, 3)
	fitted, err := Fit{Package: dir, Data: data, WithoutGuards: true, Verify: Verifying{Coverage: -1}}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	certified, err := Certify{Model: dir, Data: data}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := certified.Patch.FalseReview.Value
	at := slices.IndexFunc(fitted.Verifiers.Budget.Parts, func(p guard.Part) bool { return p.Name == guard.Uncertified })
	if at < 0 || want == 0 || math.Abs(fitted.Verifiers.Budget.Parts[at].Share-want) > 1e-9 {
		t.Errorf("%+v, vigie certify finds %v", fitted.Verifiers.Budget.Parts, want)
	}
}

func TestARareLabelLeavesNoSetsAndSaysSo(t *testing.T) {
	fitted, err := Fit{Package: demoCopy(t), Data: noisy(t, 120, 40), WithoutGuards: true}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if v := fitted.Verifiers; v.Sets != nil || !strings.Contains(v.WithoutSets, `"pneumonia" has 3 labelled images`) {
		t.Errorf("%+v", v)
	}
}

// The budget counts the guards, whose alarms the sets do not know of.
func TestABudgetWithGuardsIsKeptOnTheImagesItWasChosenOn(t *testing.T) {
	dir := demoCopy(t)
	data := noisy(t, 130, 3)
	const budget = 0.95 // the manifest's band takes most of what is noise
	fitted, err := Fit{Package: dir, Data: data, Options: guard.FitOptions{Seed: 1, FalseAlarms: 0.1}, Verify: Verifying{Review: budget}}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	b := fitted.Verifiers.Budget
	if b.Expected > budget || b.Parts[0].Name != guard.InputPart || b.On != fitted.Calibrated || b.Stated != budget {
		t.Errorf("%+v, calibrated on %d", b, fitted.Calibrated)
	}
	tried, err := Try{Package: dir, Data: data}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if a := tried.Answers; a.Sent.Low > budget || a.ByPart[string(guard.InputPart)] != tried.Alarms || a.Budget != budget {
		t.Errorf("%+v of %d alarms", a, tried.Alarms)
	}
	// Verifiers alone would leave guards that no budget counts.
	if _, err := (Fit{Package: dir, Data: data, WithoutGuards: true}).Run(context.Background()); !errors.Is(err, ErrAsk) {
		t.Errorf("without the guards that are there: %v", err)
	}
}

func TestTheCommittedPackageHasVerifiersOfItsOwnWhoseFiguresTheCardRepeats(t *testing.T) {
	p, err := model.Open("../../models/chest-pneumonia-28")
	if err != nil {
		t.Fatal(err)
	}
	v, err := Verifiers(p)
	if err != nil || v == nil || v.Sets == nil || v.Budget == nil {
		t.Fatalf("%+v (%v): any change of the package takes vigie model fit again, as scripts/model.sh has it", v, err)
	}
	for _, want := range []string{
		fmt.Sprintf("--review-budget %v", v.Budget.Stated), fmt.Sprintf("coverage of %.4g %%", 100*(1-v.Sets.Alpha)), fmt.Sprintf("%d validation images", v.Images),
		fmt.Sprintf("%.2f %% of the %d images", 100*v.Budget.Parts[0].Share, v.Budget.On), fmt.Sprintf("seed %d", v.Seed),
	} {
		if !strings.Contains(p.Card, want) {
			t.Errorf("card.md does not say %s", want)
		}
	}
	if v.Budget.Parts[0].Name != guard.Borderline || v.Budget.Expected > v.Budget.Stated || !strings.Contains(v.Data, "pneumoniamnist") {
		t.Errorf("%+v of %s", v.Budget, v.Data)
	}
}
