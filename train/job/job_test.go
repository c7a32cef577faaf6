package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/job"
)

func run(t testing.TB, o job.Options) *train.Report {
	t.Helper()
	r, err := o.Run(t.Context(), job.Progress{})
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func load(t testing.TB, path string) *onnx.Model {
	t.Helper()
	m, err := onnx.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// table writes a table whose outcome is decided by two of its columns.
func table(t testing.TB, dir string, outcomes ...string) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 3))
	var b strings.Builder
	b.WriteString("patient_id,age,site,marker,outcome\n")
	for i := range 600 {
		site := []string{"Lyon", "Paris"}[rng.IntN(2)]
		z := rng.NormFloat64()
		k := 0
		for k < len(outcomes)-1 && z+map[string]float64{"Lyon": 0.5, "Paris": -0.5}[site] > -0.5+1.2*float64(k) {
			k++
		}
		marker := fmt.Sprintf("%.3f", z)
		if rng.IntN(20) == 0 {
			marker = "NA"
		}
		fmt.Fprintf(&b, "P%d,%d,%s,%s,%s\n", i/2, 40+rng.IntN(40), site, marker, outcomes[k])
	}
	path := filepath.Join(dir, "patients.csv")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func quick(network, data, out string) job.Options {
	o := job.Default()
	o.Network, o.Data.Data, o.Out = network, data, out
	o.Recipe.Epochs, o.Recipe.Batch, o.Recipe.Rate = 8, 32, 1e-2
	return o
}

func TestATableBecomesACalibratedModelThatExplainsItself(t *testing.T) {
	dir := t.TempDir()
	o := quick("tabular-mlp", table(t, dir, "low", "medium", "very high"), filepath.Join(dir, "risk.onnx"))
	o.Data.LabelColumns = []string{"outcome"}
	o.Data.Classes = []string{"low", "medium", "very high"}
	o.ClassWeights = "balanced"
	r := run(t, o)
	if r.AUC.Value < 0.85 || r.Test == nil || r.Test.AUC.Value < 0.85 || len(r.ClassAUC) != 3 || len(r.ByClass) != 3 || r.Operating != nil {
		t.Errorf("AUC %v, test %+v, by class %v", r.AUC, r.Test, r.ByClass)
	}
	if r.LogLoss[1] > r.LogLoss[0]+1e-9 {
		t.Errorf("calibration raised the log loss from %g to %g", r.LogLoss[0], r.LogLoss[1])
	}
	m := load(t, o.Out)
	classes, columns, err := train.Described(m)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(classes, o.Data.Classes) || len(columns.Columns) != 3 || m.Metadata["labels"] != "low,medium,very-high" {
		t.Errorf("the model says classes %q, columns %+v, labels %q", classes, columns, m.Metadata["labels"])
	}
	for _, name := range []string{"calibration.json", "training.json", "curves.png", "curves.svg", "weights.safetensors"} {
		if _, err := os.Stat(filepath.Join(dir, "risk."+name)); err != nil {
			t.Error(err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "risk.training.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back train.Report
	if err := json.Unmarshal(raw, &back); err != nil || back.Test.AUC != r.Test.AUC || len(back.History.Epochs) != 8 {
		t.Errorf("training.json reads back as %+v, %v", back.Test, err)
	}
	// The weights beside the model are the model's.
	file, err := os.Open(filepath.Join(dir, "risk.weights.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	held, err := safetensors.Read(file, info.Size(), safetensors.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range m.Graph.Initializers {
		if w.Type != onnx.Float {
			continue
		}
		want, _ := onnx.Values[float32](w)
		got, err := engine.Values[float32](held.Tensors[w.Name])
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: the weights differ: %v", w.Name, err)
		}
	}
}

// A model that was trained on other classes takes a new head, keeps what is
// frozen, and learns; its weights may come from a file of safetensors.
func TestTransferLearningKeepsWhatIsFrozenAndLearnsTheRest(t *testing.T) {
	dir := t.TempDir()
	first := quick("tabular-mlp", table(t, dir, "a", "b", "c"), filepath.Join(dir, "first.onnx"))
	first.Data.LabelColumns = []string{"outcome"}
	run(t, first)
	second := filepath.Join(dir, "second")
	if err := os.Mkdir(second, 0o755); err != nil {
		t.Fatal(err)
	}
	o := quick("", table(t, second, "alive", "dead"), filepath.Join(second, "out"))
	o.Data.LabelColumns = []string{"outcome"}
	o.From, o.Head, o.Freeze = first.Out, "alive,dead", []string{"hidden*"}
	r := run(t, o)
	if r.AUC.Value < 0.85 {
		t.Errorf("AUC %v", r.AUC)
	}
	before, after := load(t, first.Out), load(t, filepath.Join(second, "out", "model.onnx"))
	for _, w := range before.Graph.Initializers {
		now := after.Graph.Initializer(w.Name)
		if strings.HasPrefix(w.Name, "hidden") && (now == nil || string(now.Raw) != string(w.Raw)) {
			t.Errorf("%s is frozen and moved", w.Name)
		}
	}
	classes, _, err := train.Described(after)
	if err != nil || !slices.Equal(classes, []string{"alive", "dead"}) {
		t.Errorf("classes are %q, %v", classes, err)
	}
	// From the weights alone: the same architecture, and no step to speak of.
	again := quick("tabular-mlp", first.Data.Data, filepath.Join(dir, "again.onnx"))
	again.Data.LabelColumns = []string{"outcome"}
	again.Weights = filepath.Join(dir, "first.weights.safetensors")
	again.Recipe.Epochs, again.Recipe.Rate, again.Recipe.Average, again.Recipe.Warmup = 1, 1e-12, 0, 0
	run(t, again)
	want, _ := onnx.Values[float32](load(t, first.Out).Graph.Initializer("hidden1.weight"))
	got, _ := onnx.Values[float32](load(t, again.Out).Graph.Initializer("hidden1.weight"))
	for i := range want {
		if math.Abs(float64(want[i]-got[i])) > 1e-6 {
			t.Fatalf("weight %d is %g, the file has %g", i, got[i], want[i])
		}
	}
}

func TestWhatCannotBeTrainedIsSaidBeforeItStarts(t *testing.T) {
	dir := t.TempDir()
	data := table(t, dir, "a", "b", "c")
	first := quick("tabular-mlp", data, filepath.Join(dir, "first.onnx"))
	first.Data.LabelColumns = []string{"outcome"}
	first.Recipe.Epochs = 1
	run(t, first)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	text, err := os.ReadFile(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	other := table(t, filepath.Join(dir, "b"), "a", "b", "d")
	if err := os.Mkdir(filepath.Join(dir, "c"), 0o755); err != nil {
		t.Fatal(err)
	}
	clean, err := os.ReadFile(table(t, filepath.Join(dir, "c"), "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	slip := write("slip.csv", string(clean)+"P999,50,Lyon,0.1,c\n")
	nobody := write("nobody.csv", string(text)+" ,50,Lyon,0.1,a\n")
	two := write("two.csv", "x,label\n"+strings.Repeat("1,a\n2,b\n3,a\n4,b\n", 60))
	for says, change := range map[string]func(*job.Options){
		"data and an output":     func(o *job.Options) { o.Out = "" },
		"no network \"resnet\"":  func(o *job.Options) { o.Network = "resnet" },
		"want channels x rows":   func(o *job.Options) { o.Network = "resnet18" },
		"the demo network reads": func(o *job.Options) { o.Network = "" },
		"either":                 func(o *job.Options) { o.From = first.Out },
		"is for a network from":  func(o *job.Options) { o.Head = "2" },
		"no such file":           func(o *job.Options) { o.Network, o.From = "", "nowhere.onnx" },
		"no column \"age\"":      func(o *job.Options) { o.Network, o.From, o.Data.Data, o.Data.LabelColumns = "", first.Out, two, nil },
		"a head of 5 classes":    func(o *job.Options) { o.Network, o.From, o.Head = "", first.Out, "5" },
		"want one of a, b (these are the classes by --head)": func(o *job.Options) { o.Network, o.From, o.Head = "", first.Out, "a,b" },
		"(these are the classes by first.onnx; with --head it gets new": func(o *job.Options) {
			o.Network, o.From, o.Data.LabelColumns, o.Data.Data = "", first.Out, []string{"outcome"}, other
		},
		"the head is for b,a, the classes are a,b": func(o *job.Options) {
			o.Network, o.From, o.Head, o.Data.Classes = "", first.Out, "b,a", []string{"a", "b"}
		},
		"class \"c\" is that of 1 of the patients in training": func(o *job.Options) { o.Data.Data = slip },
		"row 601 has no patient in column \"patient_id\"":      func(o *job.Options) { o.Data.Data = nobody },
		"no weight has such a name":                            func(o *job.Options) { o.Freeze = []string{"features.*"} },
		"none of its":                                          func(o *job.Options) { o.Weights = otherWeights(t, dir) },
		"class weight \"1:2\"":                                 func(o *job.Options) { o.ClassWeights = "1:2" },
		"augmentation \"heavy\"":                               func(o *job.Options) { o.Augment = "heavy" },
		"no output \"scores\"":                                 func(o *job.Options) { o.Network, o.From, o.Output = "", first.Out, "scores" },
		"would stay alike":                                     func(o *job.Options) { o.Network, o.From, o.Members = "", first.Out, 2 },
		"-1 members":                                           func(o *job.Options) { o.Members = -1 },
		"do not fill one batch":                                func(o *job.Options) { o.Recipe.Batch = 4096 },
	} {
		o := quick("tabular-mlp", data, filepath.Join(dir, "never.onnx"))
		o.Data.LabelColumns = []string{"outcome"}
		change(&o)
		_, err := o.Run(t.Context(), job.Progress{Epoch: func(train.Epoch, int) { t.Errorf("%s: training started", says) }})
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "never.onnx")); err == nil {
		t.Error("a model was written")
	}
}

func otherWeights(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "other.safetensors")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(safetensors.Write(f, map[string]engine.Tensor{"x": engine.Float32([]int64{1}, []float32{1})}, nil), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestACancelledJobWritesNoModel(t *testing.T) {
	dir := t.TempDir()
	o := quick("tabular-mlp", table(t, dir, "a", "b"), filepath.Join(dir, "m.onnx"))
	o.Data.LabelColumns = []string{"outcome"}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	_, err := o.Run(ctx, job.Progress{Epoch: func(train.Epoch, int) { stop() }})
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(o.Out); err == nil {
		t.Error("a model was written")
	}
}

func TestTheCommandThatGoesOnIsOneThatAShellTakes(t *testing.T) {
	saved, lost := &train.Interrupted{Checkpoint: "out/checkpoint.vigie"}, &train.Interrupted{}
	for _, c := range []struct {
		stopped *train.Interrupted
		words   []string
		want    string
	}{
		{saved, []string{"vigie", "train", "--out", "out", "--checkpoint"}, "go on from there with:\n  vigie train --out out --checkpoint"},
		{saved, []string{"vigie", "train", "--freeze", "features.*", "--data", "my data/it's.csv", "--head", ""}, // --checkpoint came from a file
			"go on from there with:\n  vigie train --freeze 'features.*' --data 'my data/it'\\''s.csv' --head ''"},
		{lost, []string{"vigie", "train"}, "start again, and with --checkpoint what is done will be kept:\n  vigie train --checkpoint"},
		{lost, []string{"vigie", "train", "--checkpoint"}, "start again with:\n  vigie train --checkpoint"},
	} {
		if got := job.Resume(c.stopped, c.words, []string{"HOME=/root"}); got != c.want {
			t.Errorf("%q: got\n%s\nwant\n%s", c.words, got, c.want)
		}
	}
	if got := job.Resume(saved, []string{"vigie", "train"}, []string{"VIGIE_TRAIN_SEED=3", "VIGIE_TRAIN_HEAD=a b", "X=1"}); !strings.HasSuffix(got, "\n  VIGIE_TRAIN_SEED=3 VIGIE_TRAIN_HEAD='a b' vigie train") {
		t.Errorf("with variables: %s", got)
	}
}

func TestWhatWillBeTrainedIsSaidWithTheClassesAndTheirLabels(t *testing.T) {
	for want, r := range map[string]job.Ready{
		"; training examples by class benign: 7, malignant: 3; 5 numbers": {Classes: []string{"benign", "malignant"}, Counts: []int{7, 3}, Trained: 5},
		"by class benign (label 0): 7, malignant (label 1): 3;":           {Classes: []string{"benign", "malignant"}, Counts: []int{7, 3}, Numbered: true},
		"; classes benign, malignant; 0 numbers":                          {Classes: []string{"benign", "malignant"}}, // a private run
	} {
		var b strings.Builder
		job.Terminal(&b).Ready(r)
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in %s", want, b.String())
		}
	}
}

func TestSettingsComeFromFlagsThenTheEnvironmentThenTheFile(t *testing.T) {
	parse := func(file string, environ []string, arguments ...string) (*pflag.FlagSet, error) {
		flags := pflag.NewFlagSet("train", pflag.ContinueOnError)
		flags.Int("batch", 64, "")
		flags.Float64("rate", 0, "")
		flags.StringSlice("classes", nil, "")
		flags.Bool("checkpoint", false, "")
		if err := flags.Parse(arguments); err != nil {
			t.Fatal(err)
		}
		return flags, job.Settings(flags, file, environ)
	}
	path := filepath.Join(t.TempDir(), "train.yaml")
	if err := os.WriteFile(path, []byte("batch: 8\nrate: 1e-4\nclasses: [a, b]\ncheckpoint: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags, err := parse(path, []string{"VIGIE_TRAIN_BATCH=16", "VIGIE_TRAIN_RATE=0.5", "HOME=/"}, "--batch", "32")
	if err != nil {
		t.Fatal(err)
	}
	batch, _ := flags.GetInt("batch")
	rate, _ := flags.GetFloat64("rate")
	classes, _ := flags.GetStringSlice("classes")
	checkpoint, _ := flags.GetBool("checkpoint")
	if batch != 32 || rate != 0.5 || !slices.Equal(classes, []string{"a", "b"}) || !checkpoint {
		t.Errorf("batch %d, rate %g, classes %v, checkpoint %v", batch, rate, classes, checkpoint)
	}
	if err := os.WriteFile(path, []byte("batch: many\nbatches: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = parse(path, []string{"VIGIE_TRAIN_BACH=16"})
	for _, says := range []string{"environment VIGIE_TRAIN_BACH: there is no such setting", "train.yaml: batch: ", "train.yaml: batches: there is no such"} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
	for _, text := range []string{"batch: {a: 1}", "- 1\n", "a: [b"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := parse(path, nil); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestSizesAreReadOrRefused(t *testing.T) {
	var o job.Options
	if err := o.SetSize("256x192"); err != nil || o.Data.Rows != 256 || o.Data.Columns != 192 {
		t.Errorf("%d×%d, %v", o.Data.Rows, o.Data.Columns, err)
	}
	for _, text := range []string{"0", "x", "12x", "-3", "1e3", "99999"} {
		if err := o.SetSize(text); !errors.Is(err, job.ErrAsk) {
			t.Errorf("%q: error is %v", text, err)
		}
	}
}

func TestAnOutputThatCannotBeWrittenIsSaidBeforeTheFirstStep(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := job.Default()
	o.Network, o.Data.Data, o.Data.LabelColumns = "tabular-mlp", table(t, dir, "absent", "present"), []string{"outcome"}
	o.Out = filepath.Join(taken, "inside") // a file is no folder, not even for root
	_, err := o.Run(t.Context(), job.Progress{Epoch: func(train.Epoch, int) { t.Error("it trained") }})
	if err == nil || !strings.Contains(err.Error(), "choose another --out") {
		t.Errorf("%v", err)
	}
}

// Members of any network answer together in one file, whose weights bear their
// names.
func TestAnEnsembleOfAnyNetworkIsOneModel(t *testing.T) {
	dir := t.TempDir()
	o := quick("tabular-mlp", table(t, dir, "alive", "dead"), filepath.Join(dir, "three.onnx"))
	o.Data.LabelColumns, o.Members = []string{"outcome"}, 3
	r := run(t, o)
	if r.AUC.Value < 0.85 {
		t.Errorf("AUC %v", r.AUC)
	}
	o.Members, o.Out = 0, filepath.Join(dir, "one.onnx")
	if one := run(t, o); r.Parameters != 3*one.Parameters {
		t.Errorf("%d parameters, one member has %d", r.Parameters, one.Parameters)
	}
	m := load(t, filepath.Join(dir, "three.onnx"))
	first, third := m.Graph.Initializer("member1.hidden1.weight"), m.Graph.Initializer("member3.hidden1.weight")
	if first == nil || third == nil || string(first.Raw) == string(third.Raw) {
		t.Error("members 1 and 3 have no weights of their own")
	}
	if len(m.Graph.Inputs) != 1 || len(m.Graph.Outputs) != 1 {
		t.Errorf("the model has the inputs %v and the outputs %v", m.Graph.Inputs, m.Graph.Outputs)
	}
}
