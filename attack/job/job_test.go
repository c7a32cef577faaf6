package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// meanModel answers 1 where the mean of a 4×4 image is above one half, by one
// output that a Sigmoid ends.
func meanModel(t *testing.T, dir string) string {
	t.Helper()
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "n"}
	x := b.Input("x", onnx.Float, batch, onnx.Dim{Value: 1}, onnx.Dim{Value: 4}, onnx.Dim{Value: 4})
	z := b.Op("MatMul", []string{b.Op("Flatten", []string{x}, onnx.IntAttribute("axis", 1)), b.Weight("w", []int64{16, 1}, slices.Repeat([]float32{10.0 / 16}, 16))})
	z = b.Op("Sigmoid", []string{b.Op("Sub", []string{z, b.Weight("half", []int64{1}, []float32{5})})})
	b.Output(z, onnx.Float, batch, onnx.Dim{Value: 1})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "mean.onnx")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// flat writes images of one grey level each as a data set.
func flat(t *testing.T, dir string, levels []uint8, labels []int64) string {
	t.Helper()
	var pixels []uint8
	for _, v := range levels {
		pixels = append(pixels, slices.Repeat([]uint8{v}, 16)...)
	}
	path := filepath.Join(dir, "flat.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := int64(len(levels))
	if err := train.WriteNPZ(f, map[string]train.Array{
		"val_images": {Shape: []int64{n, 4, 4}, Data: pixels}, "val_labels": {Shape: []int64{n, 1}, Data: labels},
	}); err != nil {
		t.Fatal(err)
	}
	return path
}

func options(model, data string) Options {
	return Options{Model: model, Data: probe.Test{Options: studies.Options{Data: data, Seed: 1}, Split: "val"}, Attack: attack.PGD,
		Attacking: attack.Options{Seed: 1, Steps: 10}, Command: "vigie attack <model>"}
}

// Grey levels 97 to 157 around the boundary at 127.5, one answered wrongly: how
// many fall at each bound is known exactly.
func TestTheReportCountsWhatIsKnown(t *testing.T) {
	dir := t.TempDir()
	levels := []uint8{97, 107, 117, 137, 147, 157, 150}
	labels := []int64{0, 0, 0, 1, 1, 1, 0}
	o := options(meanModel(t, dir), flat(t, dir, levels, labels))
	o.Save, o.Report = filepath.Join(dir, "out.npz"), filepath.Join(dir, "report.html")
	var err error
	if o.Eps, err = ParseEps("5/255, 15/255,0.1"); err != nil {
		t.Fatal(err)
	}
	r, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{0, 2, 4} { // 0.1 is 25.5 levels
		p := r.Curve[i]
		if p.Fooled != want || p.Attacked != 6 || p.Images != 7 || p.CleanAccuracy != 6.0/7 || p.RobustAccuracy != float64(6-want)/7 || p.FooledRate != float64(want)/6 {
			t.Errorf("bound %s: %+v, want %d fooled of 6", p.EpsText, p, want)
		}
		if in := p.Intervals.FooledRate; !(in.Low <= in.Value && in.Value <= in.High && in.High-in.Low > 0.2) {
			t.Errorf("bound %s: interval %+v", p.EpsText, in)
		}
	}
	if r.Unconfirmed != 0 || r.ATLAS.ID != "AML.T0043.000" || r.Fooled != 4 || r.Queries == 0 {
		t.Errorf("report %+v", r)
	}
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(r); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"clean_accuracy":0.857`, `"fooled_rate":0.666`, `"attacked":6`, `"intervals":`, `"digest":"sha256:`, `"seed":1`, `"seconds":`} {
		if !strings.Contains(b.String(), key) {
			t.Errorf("JSON lacks %s: %s", key, b.String())
		}
	}
	page, err := os.ReadFile(o.Report)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"AML.T0043.000", "vigie attack &lt;model&gt;", "data:image/png;base64,", "<svg", "66.7 %"} {
		if !bytes.Contains(page, []byte(want)) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, foreign := range []string{"http://", "https://", "<script"} {
		if bytes.Contains(page, []byte(foreign)) {
			t.Errorf("the page needs something else: it has %q", foreign)
		}
	}
	// The saved images are a data set on which the model is as good as the report says.
	m, err := probe.Open(o.Model)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := train.LoadMedMNIST(o.Save, "val", train.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	right := 0
	for i := range saved.Len() {
		x := make([]float32, 16)
		saved.Fill(x, i)
		for p, v := range x {
			if d := math.Abs(float64(v) - float64(float32(levels[i])/255)); d > 0.1+1e-12 || v < 0 || v > 1 {
				t.Fatalf("image %d: pixel %d is %v, %v from what it was", i, p, v, d)
			}
		}
		out, err := m.Run(context.Background(), map[string]engine.Tensor{"x": engine.Float32([]int64{1, 1, 4, 4}, x)})
		if err != nil {
			t.Fatal(err)
		}
		probability := out.Tensors[m.Graph.Graph.Outputs[0].Name].Data.([]float32)[0]
		if (probability > 0.5) == (labels[i] == 1) {
			right++
		}
	}
	if right != 2 {
		t.Errorf("%d of the saved images are answered rightly, the report says 2", right)
	}
}

func TestOneSearchForTheNearestServesEveryBound(t *testing.T) {
	dir := t.TempDir()
	o := options(meanModel(t, dir), flat(t, dir, []uint8{97, 107, 117, 137, 147, 157}, []int64{0, 0, 0, 1, 1, 1}))
	o.Attack, o.Attacking.Norm = attack.FAB, attack.Linf
	o.Eps, _ = ParseEps("5/255,15/255,25/255,0.2")
	r, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{0, 2, 4, 6} {
		if r.Curve[i].Fooled != want {
			t.Errorf("bound %s: %d fooled, want %d", r.Curve[i].EpsText, r.Curve[i].Fooled, want)
		}
	}
	if q := r.Distances[attack.Linf]; math.Abs(q.Least-9.5/255) > 0.001 || math.Abs(q.Most-30.5/255) > 0.001 {
		t.Errorf("distances %+v, want 9.5/255 to 30.5/255", q)
	}
}

func TestWhatCannotBeAskedIsSaidFirst(t *testing.T) {
	dir := t.TempDir()
	model, data := meanModel(t, dir), flat(t, dir, []uint8{97, 157}, []int64{0, 1})
	wrong := filepath.Join(dir, "wrong")
	if err := os.Mkdir(wrong, 0o755); err != nil {
		t.Fatal(err)
	}
	wrong = flat(t, wrong, []uint8{97, 157}, []int64{1, 0})
	eight, _ := ParseEps("8/255")
	for what, c := range map[string]struct {
		change func(*Options)
		want   error
	}{
		"no bound":                 {func(o *Options) { o.Eps = nil }, ErrAsk},
		"a bound for a patch":      {func(o *Options) { o.Attack = attack.Patch }, ErrAsk},
		"a patch beyond the image": {func(o *Options) { o.Attack, o.Eps, o.Attacking.Side = attack.Patch, nil, 5 }, attack.ErrAsk},
		"a limit below 0":          {func(o *Options) { o.Limit = -1 }, ErrAsk},
		"a class unknown":          {func(o *Options) { o.Class = "malign" }, ErrAsk},
		"an operating point":       {func(o *Options) { o.OperatingPoint = true }, ErrAsk},
		"nothing right":            {func(o *Options) { o.Data.Data = wrong }, attack.ErrNothing},
		"no split":                 {func(o *Options) { o.Data.Split = "test" }, train.ErrNoSplit},
		"a range that is none":     {func(o *Options) { o.Low, o.High = 1, 0 }, attack.ErrAsk},
		"pixels beyond the range":  {func(o *Options) { o.Low, o.High = 0, 0.5 }, attack.ErrAsk},
		"a report of no page":      {func(o *Options) { o.Report = filepath.Join(dir, "r.pdf") }, ErrAsk},
		"images of no format":      {func(o *Options) { o.Save = filepath.Join(dir, "r.gif") }, ErrAsk},
		"no such folder":           {func(o *Options) { o.Save = filepath.Join(dir, "none", "r.npz") }, os.ErrNotExist},
	} {
		o := options(model, data)
		o.Eps = eight
		c.change(&o)
		if _, err := o.Run(context.Background()); !errors.Is(err, c.want) {
			t.Errorf("%s: got error %v, want %v", what, err, c.want)
		}
	}
	for _, text := range []string{"8/0", "-1", "x", "0", "1/255,", "4/255,2/255", "nan", "inf"} {
		if _, err := ParseEps(text); !errors.Is(err, ErrAsk) {
			t.Errorf("eps %q: got error %v", text, err)
		}
	}
}

func TestAFolderOfPicturesIsSavedWithItsLabels(t *testing.T) {
	dir := t.TempDir()
	o := options(meanModel(t, dir), flat(t, dir, []uint8{97, 117, 98, 99, 137, 157, 156, 155}, []int64{0, 0, 0, 0, 1, 1, 1, 1}))
	o.Save = filepath.Join(dir, "pictures")
	o.Eps, _ = ParseEps("15/255")
	if _, err := o.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile(filepath.Join(o.Save, "labels.csv"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"file,label,fooled,answer_before,answer_after", "00000.png,0,false,0,0", "00001.png,0,true,0,1"} {
		if got := strings.Split(string(table), "\n")[i]; got != want {
			t.Errorf("line %d of labels.csv is %q, want %q", i, got, want)
		}
	}
	set, err := studies.Open(context.Background(), studies.Options{Data: o.Save, Labels: filepath.Join(o.Save, "labels.csv"), Shares: []float64{0.5, 0.5}, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	all, err := set.Set(studies.All)
	if err != nil || all.Len() != 8 {
		t.Errorf("the folder holds %v, %v", all, err)
	}
}
