package harden_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/harden"
	"github.com/vigie/vigie/train/job"
)

// fragile writes images of 12×12 whose class a faint pattern tells always and a
// bright corner seven times of eight: what is left of a network's accuracy where an
// adversary undoes the pattern says what it looks at.
func fragile(t testing.TB) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	arrays := map[string]train.Array{}
	for split, n := range map[string]int{"train": 256, "val": 96} {
		pixels, labels := make([]uint8, n*144), make([]uint8, n)
		for i := range labels {
			class, corner := i%2, i%2
			if rng.IntN(8) == 0 {
				corner = 1 - class
			}
			labels[i] = uint8(class)
			for p := range 144 {
				v := 80 + rng.IntN(7) + 10*class*(p%2)
				if p/12 < 4 && p%12 < 4 {
					v += 50 * corner
				}
				pixels[i*144+p] = uint8(v)
			}
		}
		arrays[split+"_images"] = train.Array{Shape: []int64{int64(n), 12, 12}, Data: pixels}
		arrays[split+"_labels"] = train.Array{Shape: []int64{int64(n), 1}, Data: labels}
	}
	path := filepath.Join(t.TempDir(), "fragile.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(train.WriteNPZ(f, arrays), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// quick is a job of seconds.
func quick(data, out string) harden.Options {
	o := harden.Default()
	o.Job.Data.Data, o.Job.Out = data, out
	o.Job.CNN = train.CNN{Channels: 1, Stages: [][]int{{4}, {8}}, Hidden: 8}
	o.Job.Augment = "none"
	o.Job.Recipe.Epochs, o.Job.Recipe.Batch, o.Job.Recipe.Rate, o.Job.Recipe.Average, o.Job.Recipe.Seed = 6, 16, 1e-2, 0.9, 3
	o.Hardening.Eps, o.Hardening.Steps, o.Hardening.Ramp = 10.0/255, 3, 3
	o.Budget, o.Between = 0.15, []float64{0.5}
	o.Bounds = []harden.Bound{{Text: "4/255", Value: 4.0 / 255}, {Text: "10/255", Value: 10.0 / 255}}
	o.Steps, o.Verdict = 10, attack.APGDCE
	return o
}

func run(t testing.TB, o harden.Options, p harden.Progress) *harden.Report {
	t.Helper()
	r, err := o.Run(t.Context(), p)
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestWhatIsKeptWithstandsMoreWithinTheBudgetAndTheRecordSaysSo(t *testing.T) {
	data, out := fragile(t), filepath.Join(t.TempDir(), "out")
	r := run(t, quick(data, out), harden.Progress{})
	before, kept := r.Candidates[0], r.Candidates[slices.IndexFunc(r.Candidates, func(c harden.Candidate) bool { return c.Name == r.Kept })]
	if before.Share != 0 || before.AUC != r.Baseline || before.Cost.Value != 0 {
		t.Errorf("the first candidate is %+v, the baseline %+v", before, r.Baseline)
	}
	if before.Curve[1].Robust.Value > 0.4 || kept.Curve[1].Robust.Value < before.Curve[1].Robust.Value+0.3 {
		t.Errorf("robust accuracy %v before, %v of what is kept", before.Curve[1].Robust, kept.Curve[1].Robust)
	}
	if !r.Met || kept.AUC.Value < r.Floor || r.Floor != r.Baseline.Value-0.15 || kept.Share == 0 {
		t.Errorf("kept is %+v of a floor of %v", kept, r.Floor)
	}
	for _, c := range r.Candidates[1:] { // none that may be lost for is stronger
		if c.AUC.Value >= r.Floor && c.Curve[1].Robust.Value > kept.Curve[1].Robust.Value {
			t.Errorf("%s was kept, and %s is stronger", kept.Name, c.Name)
		}
		for _, p := range append(slices.Clone(c.Curve), r.Verdict.Curve...) {
			if !(p.Robust.Low <= p.Robust.Value && p.Robust.Value <= p.Robust.High && p.Robust.Value <= p.Clean.Value) || p.Images != 96 {
				t.Errorf("%s: %+v", c.Name, p)
			}
		}
	}
	// The files are those of the report.
	var record train.Report
	if err := json.Unmarshal(read(t, filepath.Join(out, train.TrainingFile)), &record); err != nil {
		t.Fatal(err)
	}
	h := record.Hardened
	if h == nil || h.Candidate != r.Kept || !h.Met || h.Budget != 0.15 || h.Withstood != kept.Withstood || !strings.Contains(h.Against, "10/255") ||
		record.History.Recipe.Hardening.Eps != 10.0/255 || record.AUC != kept.AUC {
		t.Errorf("training.json says %+v, AUC %v", h, record.AUC)
	}
	var again harden.Report
	if err := json.Unmarshal(read(t, filepath.Join(out, harden.ReportFile)), &again); err != nil || again.Kept != r.Kept || len(again.Candidates) != len(r.Candidates) {
		t.Errorf("hardening.json reads back as %+v, %v", again, err)
	}
	for _, name := range []string{"calibration.json", "curves.png", harden.TradeOffPNG, harden.TradeOffSVG, "plain/model.onnx", "plain/training.json"} {
		if len(read(t, filepath.Join(out, name))) == 0 {
			t.Errorf("%s is empty", name)
		}
	}
	var text bytes.Buffer
	if err := r.Write(&text, out); err != nil || !strings.Contains(text.String(), "* "+r.Kept) || !strings.Contains(text.String(), "commonest class is right on 50.0 %") {
		t.Errorf("%v\n%s", err, &text)
	}
	// The model on disk, attacked by itself, is as the verdict says.
	m, err := onnx.Load(filepath.Join(out, "model.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	target, err := attack.Open(m, attack.NetworkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	arrays, err := train.ReadNPZ(bytes.NewReader(read(t, data)), int64(len(read(t, data))), train.Limits{}, "val_images", "val_labels")
	if err != nil {
		t.Fatal(err)
	}
	pixels, labels := make([]float32, 96*144), make([]int, 96)
	for i, v := range arrays["val_images"].Data.([]uint8) {
		pixels[i] = float32(v) / 255
	}
	for i, v := range arrays["val_labels"].Data.([]uint8) {
		labels[i] = int(v)
	}
	result, err := attack.Run(t.Context(), target, attack.APGDCE, pixels, labels, attack.Options{Eps: 10.0 / 255, Seed: 3})
	if err != nil || math.Abs(result.RobustAccuracy()-r.Verdict.Curve[1].Robust.Value) > 1e-9 {
		t.Errorf("attacked by itself %v (%v), the verdict says %v", result.RobustAccuracy(), err, r.Verdict.Curve[1].Robust)
	}
}

// Interrupted in the training before, and in the hardening, and taken up: the end
// is the same.
func TestAnInterruptedHardeningEndsBitForBitWhereAnUndisturbedOneDoes(t *testing.T) {
	data := fragile(t)
	job := func(out string) harden.Options {
		o := quick(data, out)
		o.Job.Checkpoint, o.Verdict, o.Bounds, o.Job.Recipe.Epochs, o.Hardening.Ramp = true, "", nil, 3, 1
		return o
	}
	whole, stopped := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "stopped")
	want := run(t, job(whole), harden.Progress{})
	for _, phase := range []string{"before", "hardening"} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p := harden.Progress{}
		at := func(e train.Epoch, _ int) {
			if e.Epoch == 2 {
				cancel()
			}
		}
		if p.Hardening.Epoch = at; phase == "before" {
			p.Plain.Epoch = at
		}
		var interrupted *train.Interrupted
		if _, err := job(stopped).Run(ctx, p); !errors.As(err, &interrupted) || interrupted.Checkpoint == "" || interrupted.Epochs != 2 {
			t.Fatalf("interrupted in the training %s: %v", phase, err)
		}
	}
	got := run(t, job(stopped), harden.Progress{})
	if !bytes.Equal(read(t, filepath.Join(whole, "model.onnx")), read(t, filepath.Join(stopped, "model.onnx"))) || got.Kept != want.Kept {
		t.Error("another model")
	}
}

// A model that wants normalised pixels is hardened in pixels: what comes out
// prepares them itself, and answers as the model did on prepared ones.
func TestThePreparationOfAModelBecomesPartOfItsGraph(t *testing.T) {
	data, dir := fragile(t), t.TempDir()
	n, err := train.CNN{Channels: 1, Rows: 12, Columns: 12, Classes: 2, Stages: [][]int{{4}}, Mean: 0, Deviation: 1}.Build(rand.New(rand.NewPCG(1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "bought.onnx")
	if err := n.Model.Save(path); err != nil {
		t.Fatal(err)
	}
	o := quick(data, filepath.Join(dir, "out"))
	o.Model, o.Mean, o.Std, o.Job.Network = path, []float64{0.35}, []float64{0.1}, ""
	o.Bounds, o.Verdict, o.Between, o.Job.Recipe.Epochs, o.Hardening.Ramp = nil, "", nil, 1, 0
	r := run(t, o, harden.Progress{})
	if len(r.Notes) != 1 {
		t.Errorf("notes: %v", r.Notes)
	}
	before, err := onnx.Load(filepath.Join(o.Job.Out, harden.BeforeFile))
	if err != nil {
		t.Fatal(err)
	}
	answer := func(m *onnx.Model, input string, of func(i int) float32) []float32 {
		s, err := engine.Open(m, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		v := make([]float32, 144)
		for i := range v {
			v[i] = of(i)
		}
		out, err := s.Run(t.Context(), map[string]engine.Tensor{input: engine.Float32([]int64{1, 1, 12, 12}, v)})
		if err != nil {
			t.Fatal(err)
		}
		z, err := engine.Values[float32](out["logits"])
		if err != nil {
			t.Fatal(err)
		}
		return z
	}
	a := answer(before, "pixels", func(i int) float32 { return float32(i) / 143 })
	b := answer(n.Model, "image", func(i int) float32 { return (float32(i)/143 - 0.35) / 0.1 })
	for i := range a {
		if math.Abs(float64(a[i]-b[i])) > 1e-4*math.Max(1, math.Abs(float64(b[i]))) {
			t.Errorf("logits %v, the model's %v", a, b)
		}
	}
	if r.Training.Input != "pixels" {
		t.Errorf("the record calls the input %q", r.Training.Input)
	}
}

func TestWhatCannotBeHardenedIsRefusedBeforeTraining(t *testing.T) {
	data := fragile(t)
	for want, change := range map[string]func(*harden.Options){
		"an output are needed":     func(o *harden.Options) { o.Job.Out = "" },
		"the output is a folder":   func(o *harden.Options) { o.Job.Out = "model.onnx" },
		"an AUC budget of -1":      func(o *harden.Options) { o.Budget = -1 },
		"a candidate at a share":   func(o *harden.Options) { o.Between = []float64{1} },
		"neither a package nor":    func(o *harden.Options) { o.Model = "no such file" },
		"attack \"fgsmm\"":         func(o *harden.Options) { o.Attack = "fgsmm" },
		"attack deepfool":          func(o *harden.Options) { o.Verdict = attack.DeepFool },
		"a limit of -1":            func(o *harden.Options) { o.Limit = -1 },
		"it follows from the bud":  func(o *harden.Options) { o.Hardening.Floor = 0.5 },
		"either that of":           func(o *harden.Options) { o.Model, o.Job.Network = data, job.Demo },
		"eps 0":                    func(o *harden.Options) { o.Hardening.Eps = 0 },
		"method \"magic\"":         func(o *harden.Options) { o.Hardening.Method = "magic" },
		"no mask and no noise":     func(o *harden.Options) { o.Hardening.Method = "" },
		"mean and std are of":      func(o *harden.Options) { o.Mean = []float64{0.5} },
		"a mask of side 12":        func(o *harden.Options) { o.Hardening.Occlusion = &train.Occlusion{Sizes: []int{12}} },
		"differentially private":   func(o *harden.Options) { o.Job.Recipe.Private = &train.Privacy{Epsilon: 1, Delta: 1e-5} },
		"a ramp of 3 epochs":       func(o *harden.Options) { o.Job.Recipe.Epochs = 2 },
		"no such file or director": func(o *harden.Options) { o.Job.Data.Data = "nowhere.npz" },
	} {
		out := filepath.Join(t.TempDir(), "out")
		o := quick(data, out)
		change(&o)
		began := harden.Progress{}
		began.Plain.Epoch = func(train.Epoch, int) { t.Errorf("%s: training began", want) }
		_, err := o.Run(t.Context(), began)
		if errors.Is(err, engine.ErrNoRuntime) {
			t.Skipf("SKIPPED, nothing was checked: %v", err)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v", want, err)
		}
		if left, err := filepath.Glob(filepath.Join(out, "*")); err == nil && len(left) > 0 {
			t.Errorf("%s: %v was left", want, left)
		}
	}
}
