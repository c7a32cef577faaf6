package job

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/attack/poison"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// discs writes an .npz file of drawn images in two parts, with contributors, a
// planted checker with label 1 in the training part, and a picture in both parts.
func discs(t *testing.T, poisoned bool) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 9))
	draw := func(n int) (images []uint8, labels, sites []int64) {
		for i := range n {
			cy, cx, radius := 11+6*rng.Float64(), 11+6*rng.Float64(), 5+3*rng.Float64()
			bright, ground := 50+40*rng.Float64(), 60+40*rng.Float64()
			for p := range 784 {
				away := math.Hypot(float64(p/28)-cy, float64(p%28)-cx)
				v := ground + 6*rng.NormFloat64()
				if i%2 == 0 && away < radius || i%2 == 1 && math.Abs(away-radius) < 1.6 {
					v += bright
				}
				images = append(images, uint8(min(max(v, 0), 255)))
			}
			labels, sites = append(labels, int64(i%2)), append(sites, int64(rng.IntN(3)))
		}
		return images, labels, sites
	}
	x, y, s := draw(200)
	vx, vy, vs := draw(40)
	if poisoned {
		for i := 0; i < 16; i += 2 {
			for k := range 9 {
				x[i*784+(1+k/3)*28+1+k%3] = uint8(255 * (1 - k%2))
			}
			y[i] = 1
		}
		copy(vx[:784], x[100*784:101*784])
	}
	path := filepath.Join(t.TempDir(), "discs.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := train.WriteNPZ(f, map[string]train.Array{
		"train_images": {Shape: []int64{200, 28, 28}, Data: x}, "train_labels": {Shape: []int64{200, 1}, Data: y}, "train_sites": {Shape: []int64{200}, Data: s},
		"val_images": {Shape: []int64{40, 28, 28}, Data: vx}, "val_labels": {Shape: []int64{40, 1}, Data: vy}, "val_sites": {Shape: []int64{40}, Data: vs},
	}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAnAuditIsWrittenInEveryForm(t *testing.T) {
	dir := t.TempDir()
	a := Audit{Data: studies.Options{Data: discs(t, true)}, Network: "none", Seed: 1, FailOn: []string{"leak", "artificial"},
		HTML: filepath.Join(dir, "a.html"), CSV: filepath.Join(dir, "a.csv"), ExcludeList: filepath.Join(dir, "a.txt"), Command: "vigie data audit <discs>"}
	r, err := a.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Counts[poison.Trigger] != 1 || r.Counts[poison.Leak] != 1 {
		t.Fatalf("counts %v; want one trigger and one leak", r.Counts)
	}
	var failure *Failure
	if !errors.As(r.Err(), &failure) || failure.ExitStatus() != 3 || len(failure.Kinds) != 1 || failure.Kinds[0] != "leak" {
		t.Errorf("failure %v; want that of the leak alone", r.Err())
	}
	page, err := os.ReadFile(a.HTML)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"data:image/png;base64,", "train/100", "&lt;discs&gt;", "row 1, column 1"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if strings.Contains(string(page), "ZgotmplZ") {
		t.Error("the page has content that the template refused")
	}
	f, err := os.Open(a.CSV)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	carriers := 0
	for _, row := range rows {
		if row[1] == "trigger" {
			carriers++
		}
	}
	if carriers != 8 {
		t.Errorf("%d rows of carriers, want 8", carriers)
	}
	list, err := os.ReadFile(a.ExcludeList)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(list), "train/0\n") || !strings.Contains(string(list), "val/0\n") || strings.Contains(string(list), "train/100\n") {
		t.Errorf("left out: %q; want the carriers and the second of the two equal pictures", list)
	}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"kind":"leak"`, `"place":"train/100"`, `"site":"`, `"confident_joint"`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("JSON has no %s", want)
		}
	}
	var text strings.Builder
	if err := r.Write(&text); err != nil || !strings.Contains(text.String(), "of different splits") {
		t.Errorf("text %q, error %v", text.String(), err)
	}
}

func TestAnAuditWithANetworkOfCleanDataFailsOnNothing(t *testing.T) {
	r, err := Audit{Data: studies.Options{Data: discs(t, false)}, Epochs: 3, Seed: 1, FailOn: []string{"leak", "trigger", "cluster", "copy", "duplicate", "artificial", "site", "mark"}}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Err() != nil || len(r.Clusters) != 2 {
		t.Errorf("%v, %d classes of inner values; want no failure, and both classes looked at", r.Err(), len(r.Clusters))
	}
}

func TestContributorsAndPatientsComeFromATableBesideTheFile(t *testing.T) {
	data := discs(t, false)
	table := filepath.Join(t.TempDir(), "sites.csv")
	if err := os.WriteFile(table, []byte("split,index,hospital,patient\ntrain,0,north,p1\nval,3,south,p1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a := Audit{Data: studies.Options{Data: data, Labels: table}, Only: []string{"leak"}, Network: "none"}
	c, _, err := a.read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if c.Sites[0] != "north" || c.Sites[203] != "south" || c.Sites[1] != "" {
		t.Errorf("contributors %q, %q and %q", c.Sites[0], c.Sites[203], c.Sites[1])
	}
	r, err := a.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Counts[poison.Leak] != 1 {
		t.Errorf("leaks %v; want the patient in both parts", r.Counts)
	}
	for _, wrong := range []string{"split,index,hospital\ntrain,9999,a\n", "split,row,hospital\ntrain,1,a\n"} {
		if err := os.WriteFile(table, []byte(wrong), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.read(context.Background()); !errors.Is(err, ErrAsk) {
			t.Errorf("table %q: error %v, want %v", wrong, err, ErrAsk)
		}
	}
}

func TestWhatCannotBeDoneIsSaidBeforeTheWork(t *testing.T) {
	data := discs(t, false)
	for _, a := range []Audit{
		{Data: studies.Options{Data: data}, FailOn: []string{"everything"}},
		{Data: studies.Options{Data: data}, Only: []string{"poison"}},
		{Data: studies.Options{Data: data}, Network: "large"},
		{Data: studies.Options{Data: data}, HTML: "report.pdf"},
		{Data: studies.Options{Data: data}, CSV: filepath.Join("no", "such", "folder", "a.csv")},
		{Data: studies.Options{Data: data}, SiteColumn: "hospital"},
		{Data: studies.Options{Data: data}, Label: "nodule"},
		{Data: studies.Options{Data: data}, Model: "none.onnx"},
		{Data: studies.Options{Data: "audit_test.go"}},
		{Data: studies.Options{Data: "missing.npz"}},
	} {
		if _, err := a.Run(context.Background()); err == nil {
			t.Errorf("%+v was audited", a)
		}
	}
}

func TestATriggerIsSearchedInATrainedModel(t *testing.T) {
	data := discs(t, false)
	set, err := train.LoadMedMNIST(data, "train", train.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	cnn := train.CNN{Channels: 1, Rows: 28, Columns: 28, Classes: 2, Stages: [][]int{{8}, {8}}, GroupSize: 4, Hidden: 16, Mean: 0.4, Deviation: 0.2}
	network, err := cnn.For(set, 1)
	if err != nil {
		t.Fatal(err)
	}
	result, err := train.Run(context.Background(), train.Config{Network: network, Train: set, Validation: set, Recipe: train.Recipe{Epochs: 6, Batch: 20, Seed: 1}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	model := filepath.Join(dir, "model.onnx")
	if err := result.Model.Save(model); err != nil {
		t.Fatal(err)
	}
	job := Triggers{Model: model, HTML: filepath.Join(dir, "t.html"), Save: filepath.Join(dir, "triggers"), References: []string{model}}
	job.Data.Data, job.Data.Split = data, "val"
	job.Search = poison.SearchOptions{Images: 8, Steps: 10, Climbs: 2, Seed: 1}
	r, err := job.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Found || r.Err() != nil {
		t.Errorf("a trigger was found that is not stronger than that of the reference, which is the model itself: %+v", r.Classes)
	}
	if len(r.Classes) != 2 || len(r.References) != 1 || len(r.Classes[0].Triggers) != 2 {
		t.Fatalf("%d classes, %d references", len(r.Classes), len(r.References))
	}
	for _, file := range r.Classes[1].Triggers[1].Files {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	page, err := os.ReadFile(job.HTML)
	if err != nil || !strings.Contains(string(page), "No trigger was found") || strings.Contains(string(page), "ZgotmplZ") {
		t.Errorf("page of %d bytes, error %v", len(page), err)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
	job.Data.Split = "test"
	if _, err := job.Run(context.Background()); err == nil {
		t.Error("a split that is not there was searched")
	}
}

func TestAFolderIsAuditedWithItsContributorsAndALeakIsToldNotRefused(t *testing.T) {
	data := discs(t, false)
	set, err := train.LoadMedMNIST(data, "val", train.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	table := "file,label,patient,hospital,split\n"
	for i := range set.Len() {
		picture := image.NewGray(image.Rect(0, 0, 28, 28))
		copy(picture.Pix, set.Image(i))
		name := fmt.Sprintf("%02d.png", i)
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(png.Encode(f, picture), f.Close()); err != nil {
			t.Fatal(err)
		}
		split, patient := "train", i
		if i >= 28 {
			split = "val"
		}
		if i == 30 { // the patient of image 1 is in both
			patient = 1
		}
		table += fmt.Sprintf("%s,%s,p%d,%s,%s\n", name, []string{"disc", "ring"}[set.Labels[i]], patient, []string{"north", "south"}[i%4/2], split)
	}
	labels := filepath.Join(dir, "labels.csv")
	if err := os.WriteFile(labels, []byte(table), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := Audit{Data: studies.Options{Data: dir, Labels: labels}, Network: "none", Seed: 1}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Findings) == 0 || r.Findings[0].Kind != poison.Leak || r.Findings[0].At[0].Place != "01.png" || r.Findings[0].At[0].Site != "north" || r.Findings[0].At[1].Split != "val" {
		t.Errorf("findings %+v; want the patient of 01.png in both parts, from the north", r.Findings)
	}
	if len(r.Sites) != 2 || r.Sites[0].Cases != 20 {
		t.Errorf("contributors %+v", r.Sites)
	}
	// Training on the same data refuses them.
	if _, err := studies.Open(context.Background(), studies.Options{Data: dir, Labels: labels}); !errors.Is(err, train.ErrLeak) {
		t.Errorf("error %v, want %v", err, train.ErrLeak)
	}
}
