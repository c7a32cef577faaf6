package job

import (
	"bytes"
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

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
	trainjob "github.com/vigie/vigie/train/job"
)

// needsRuntime skips a test where ONNX Runtime is absent.
func needsRuntime(t *testing.T) {
	t.Helper()
	m, err := linearModel(2).Build()
	if err != nil {
		t.Fatal(err)
	}
	s, err := engine.Open(m, engine.Options{Threads: 1})
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was attacked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

const side = 8

// linearModel takes images [1, 8, 8] and has two logits, of which class 1's is the
// brightness of the upper half less that of the lower.
func linearModel(scale float32) *onnx.Builder {
	b := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "n"}
	x := b.Input("x", onnx.Float, n, onnx.Dim{Value: 1}, onnx.Dim{Value: side}, onnx.Dim{Value: side})
	w := make([]float32, 2*side*side)
	for i := range side * side {
		v := scale
		if i >= side*side/2 {
			v = -scale
		}
		w[side*side+i] = v
	}
	b.Node(&onnx.Node{OpType: "Gemm", Inputs: []string{b.Op("Flatten", []string{x}), b.Weight("w", []int64{2, side * side}, w), b.Weight("b", []int64{2}, []float32{0, 0})},
		Outputs: []string{"z"}, Attributes: []onnx.Attribute{onnx.IntAttribute("transB", 1)}}, 1)
	b.Output("z", onnx.Float, n, onnx.Dim{Value: 2})
	return b
}

func save(t *testing.T, b *onnx.Builder) string {
	t.Helper()
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// picturesFile is an .npz file of noisy images whose class is which half is brighter, with
// that share of labels at random.
func picturesFile(t *testing.T, sizes map[string]int, noise float64, seed uint64) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	arrays := map[string]train.Array{}
	for _, split := range []string{"train", "val", "test"} {
		n := sizes[split]
		if n == 0 {
			continue
		}
		var images, labels []uint8
		for range n {
			class := rng.IntN(2)
			for i := range side * side {
				level := 110.0
				if (i < side*side/2) == (class == 1) {
					level = 140
				}
				images = append(images, uint8(max(0, min(255, level+30*rng.NormFloat64()))))
			}
			if rng.Float64() < noise {
				class = rng.IntN(2)
			}
			labels = append(labels, uint8(class))
		}
		arrays[split+"_images"] = train.Array{Shape: []int64{int64(n), side, side}, Data: images}
		arrays[split+"_labels"] = train.Array{Shape: []int64{int64(n), 1}, Data: labels}
	}
	path := filepath.Join(t.TempDir(), "data.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(train.WriteNPZ(f, arrays), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// tableFile is a CSV file of people whose outcome hardly follows from the columns,
// so that a model can only learn it by heart.
func tableFile(t *testing.T, people int, seed uint64) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 2))
	var b strings.Builder
	b.WriteString("smoker,a,b,c,d,outcome\n")
	for range people {
		a := rng.NormFloat64()
		outcome := 0
		if a+3*rng.NormFloat64() > 0 {
			outcome = 1
		}
		fmt.Fprintf(&b, "%s,%.4f,%.4f,%.4f,%.4f,%d\n", []string{"no", "yes"}[rng.IntN(2)], a, rng.NormFloat64(), rng.NormFloat64(), rng.NormFloat64(), outcome)
	}
	path := filepath.Join(t.TempDir(), "people.csv")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func people(path string) Data {
	return Data{Data: path, LabelColumns: []string{"outcome"}, Shares: []float64{0.4, 0.4, 0.2}, Seed: 1}
}

// byHeart trains a network on the table until it knows its people by heart, and
// keeps the last epoch.
func byHeart(t *testing.T, data Data) string {
	t.Helper()
	o := trainjob.Default()
	o.Network, o.Norm, o.Data, o.Augment, o.Kernels = "tabular-mlp", "group", data, "none", "off"
	o.Recipe.Epochs, o.Recipe.Batch, o.Recipe.Rate, o.Recipe.Decay, o.Recipe.Average = 60, 32, 5e-3, 0, 0
	o.Out = filepath.Join(t.TempDir(), "risk.onnx")
	f, _, err := o.Prepare(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	result, err := train.Run(context.Background(), train.Config{Network: f.Network, Train: f.Train, Validation: f.Train, Recipe: f.Recipe}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := result.Model.Save(o.Out); err != nil {
		t.Fatal(err)
	}
	return o.Out
}

func TestAnOverfittedRecipeIsAttackedAndShadowModelsAreFoundAgain(t *testing.T) {
	needsRuntime(t)
	data := people(tableFile(t, 300, 1))
	folder := filepath.Join(t.TempDir(), "shadows")
	o := Membership{Common: Common{Data: data, Seed: 3}, Shadows: 8, Folder: folder, Training: Training{Network: "tabular-mlp", Epochs: 30, Batch: 20, Rate: 5e-3, Overfit: true}}
	r, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	online := r.Recipe[0]
	if online.AUC.Low < 0.55 || r.Blind.AUC.Low > 0.5 {
		t.Errorf("overfitted: %v, blind %v", online.AUC, r.Blind.AUC)
	}
	files, err := os.ReadDir(folder)
	if err != nil || len(files) != 8 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	// A run that was stopped goes on: what is missing is trained, as it was.
	if err := os.Remove(filepath.Join(folder, files[2].Name())); err != nil {
		t.Fatal(err)
	}
	again, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if again.Shadows.Reused != 7 {
		t.Errorf("%d of 7 were found again", again.Shadows.Reused)
	}
	for i := range r.Recipe {
		if r.Recipe[i].AUC != again.Recipe[i].AUC || r.Recipe[i].Rates[1] != again.Recipe[i].Rates[1] {
			t.Errorf("%s: %v, then %v", r.Recipe[i].Name, r.Recipe[i].AUC, again.Recipe[i].AUC)
		}
	}
	// Ctrl-C says what is kept.
	if err := os.Remove(filepath.Join(folder, files[4].Name())); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	cut := o
	cut.Progress = func(string, float64) { stop() }
	if _, err := cut.Run(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the same command goes on") {
		t.Errorf("stopped: %v", err)
	}
	o.Training.Epochs = 2 // another recipe shares none of them
	other, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if other.Shadows.Reused != 0 {
		t.Errorf("another recipe found %d", other.Shadows.Reused)
	}
}

func TestMembersAreToldFromOthersAndPeopleOfNeitherKindAreNot(t *testing.T) {
	needsRuntime(t)
	path := tableFile(t, 500, 4)
	data := people(path)
	model := byHeart(t, data)
	ctx := context.Background()
	members := Membership{Common: Common{Model: model, Data: data, Seed: 1}}
	r, err := members.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if a := r.Attacks[0]; a.Name != Loss || a.AUC.Low < 0.6 || !strings.Contains(r.Verdict, "gives away") {
		t.Errorf("members: %v; %s", a.AUC, r.Verdict)
	}
	// Two groups of which the model saw neither are said to be members and others.
	control := Membership{Common: Common{Model: model, Data: data, Seed: 1}, Members: "val", NonMembers: "test"}
	if r, err = control.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if a := r.Attacks[0]; a.AUC.Low > 0.5 || a.AUC.High < 0.5 || !strings.Contains(r.Verdict, "not shown") {
		t.Errorf("neither: %v; %s", a.AUC, r.Verdict)
	}
	// The same by a list.
	list := filepath.Join(t.TempDir(), "list.csv")
	var b strings.Builder
	b.WriteString("index,member\n")
	for i := range 400 { // train, then val
		fmt.Fprintf(&b, "%d,%d\n", i, map[bool]int{true: 1}[i < 200])
	}
	if err := os.WriteFile(list, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	listed := Membership{Common: Common{Model: model, Data: data, Seed: 1}, List: list, NonMembers: "val", Members: "train"}
	r1, err := listed.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r2, err := members.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(r1.Attacks[0].AUC.Value-r2.Attacks[0].AUC.Value) > 1e-9 || r1.Members != 200 || r1.NonMembers != 200 {
		t.Errorf("by a list of %d and %d: %v, by splits %v", r1.Members, r1.NonMembers, r1.Attacks[0].AUC, r2.Attacks[0].AUC)
	}
}

func TestGroupsThatDifferByThemselvesAreSaidToAndClaimNothing(t *testing.T) {
	needsRuntime(t)
	// Members are brighter; the model never saw anybody.
	path := picturesFile(t, map[string]int{"train": 120, "val": 120}, 0, 1)
	arrays := readArrays(t, path)
	bright := arrays["train_images"].Data.([]uint8)
	for i, v := range bright {
		bright[i] = uint8(min(255, int(v)+25))
		if i%(side*side) < side*side/2 { // and easier
			bright[i] = uint8(min(255, int(v)+40))
		}
	}
	writeArrays(t, path, arrays)
	r, err := Membership{Common: Common{Model: save(t, linearModel(0.3)), Data: Data{Data: path}, Seed: 1}}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Blind.AUC.Low < 0.8 || strings.Contains(r.Verdict, "gives away") || !strings.Contains(r.Verdict, "differ by themselves") {
		t.Errorf("blind %v; %s", r.Blind.AUC, r.Verdict)
	}
}

func readArrays(t *testing.T, path string) map[string]train.Array {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	arrays, err := train.ReadNPZ(f, info.Size(), train.Limits{}, "train_images", "train_labels", "val_images", "val_labels")
	if err != nil {
		t.Fatal(err)
	}
	return arrays
}

func writeArrays(t *testing.T, path string, arrays map[string]train.Array) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(train.WriteNPZ(f, arrays), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestPrivateShadowModelsStayWithinWhatTheirStatementAllows(t *testing.T) {
	needsRuntime(t)
	if testing.Short() {
		t.Skip("several trainings")
	}
	data := Data{Data: picturesFile(t, map[string]int{"train": 120, "val": 40}, 0.3, 2)}
	o := Membership{Common: Common{Data: data, Seed: 1}, Shadows: 6, Folder: filepath.Join(t.TempDir(), "s"),
		Training: Training{Recipe: "private-28", Epochs: 1, Batch: 20, Epsilon: 8, Delta: 1e-3}}
	r, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Limits) != 15 {
		t.Fatalf("%d limits", len(r.Limits))
	}
	for _, l := range r.Limits {
		if !l.Holds || l.Tight > l.Allowed || l.Tight <= l.FPR {
			t.Errorf("%+v", l)
		}
	}
	again, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if again.Shadows.Reused != 6 || again.Limits[0] != r.Limits[0] {
		t.Errorf("found again %d: %+v, was %+v", again.Shadows.Reused, again.Limits[0], r.Limits[0])
	}
	// A claim that cannot be true is found out.
	broken := MembershipReport{}
	statement := train.Statement{Epsilon: 0.1, Delta: 1e-5, Unit: "one image"}
	if err := broken.limits("model", &statement, r.Recipe[:1]); err != nil {
		t.Fatal(err)
	}
	fake := r.Recipe[0]
	roc := *fake.ROC
	roc.Rates = append(roc.Rates[:0:0], roc.Rates...)
	roc.Rates[2].TPR = train.Interval{Value: 0.6, Low: 0.5, High: 0.7}
	fake.ROC = &roc
	broken = MembershipReport{Blind: r.Blind, Attacks: []MembershipAttack{fake}}
	if err := broken.limits("model", &statement, broken.Attacks); err != nil {
		t.Fatal(err)
	}
	broken.verdict()
	if broken.Limits[2].Holds || !strings.Contains(broken.Verdict, "EXCEED") {
		t.Errorf("half of the members at ε = 0.1: %+v; %s", broken.Limits[2], broken.Verdict)
	}
}

func TestAModelThatKnowsPeopleByHeartGivesTheirAttributesAway(t *testing.T) {
	needsRuntime(t)
	data := people(tableFile(t, 500, 6))
	model := byHeart(t, data)
	o := Attribute{Common: Common{Model: model, Data: data, Seed: 1}, Attributes: []string{"smoker", "b"}}
	r, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	smoker := r.Attributes[0]
	if smoker.Members.Imputed.Low > 0.55 || smoker.Advantage.Low <= 0 || smoker.Members.Model.Low < 0.55 || smoker.Others.Model.Low > 0.55 {
		t.Errorf("members %v, others %v, advantage %v, imputed %v", smoker.Members.Model, smoker.Others.Model, smoker.Advantage, smoker.Members.Imputed)
	}
	if !strings.Contains(r.Verdict, "smoker") {
		t.Error(r.Verdict)
	}
	control := Attribute{Common: Common{Model: model, Data: data, Seed: 1}, Members: "val", NonMembers: "test", Attributes: []string{"smoker"}}
	if r, err = control.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if a := r.Attributes[0].Advantage; a.Low > 0 || a.High < 0 {
		t.Errorf("of people that it never saw: %v", a)
	}
	o.Attributes = []string{"height"}
	if _, err := o.Run(context.Background()); !errors.Is(err, ErrAsk) {
		t.Errorf("an attribute that is not there: %v", err)
	}
}

func TestInversionShowsTheImageThatAModelHolds(t *testing.T) {
	needsRuntime(t)
	path := picturesFile(t, map[string]int{"train": 60, "val": 60}, 0, 3)
	images := readArrays(t, path)["train_images"].Data.([]uint8)
	labels := readArrays(t, path)["train_labels"].Data.([]uint8)
	// The logit of each class falls with the distance from one of its members.
	held := [2][]float32{}
	for i, l := range labels {
		if held[l] == nil {
			for _, v := range images[i*side*side : (i+1)*side*side] {
				held[l] = append(held[l], float32(v)/255)
			}
		}
	}
	b := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "n"}
	x := b.Input("x", onnx.Float, n, onnx.Dim{Value: 1}, onnx.Dim{Value: side}, onnx.Dim{Value: side})
	var columns []string
	for c := range held {
		d := b.Op("Sub", []string{x, b.Weight(fmt.Sprint("held", c), []int64{1, 1, side, side}, held[c])})
		sum := b.Op("ReduceSum", []string{b.Op("Mul", []string{d, d}), b.Ints("axes", 1, 2, 3)}, onnx.IntAttribute("keepdims", 0))
		z := b.Op("Mul", []string{sum, b.Weight(fmt.Sprint("scale", c), []int64{}, []float32{-20})})
		columns = append(columns, b.Op("Unsqueeze", []string{z, b.Ints("column", 1)}))
	}
	none := b.Op("Sub", []string{b.Op("Mul", []string{columns[0], b.Weight("zero", []int64{}, []float32{0})}), b.Weight("floor", []int64{}, []float32{3})})
	b.Node(&onnx.Node{OpType: "Concat", Inputs: append(columns, none), Outputs: []string{"z"}, Attributes: []onnx.Attribute{onnx.IntAttribute("axis", 1)}}, 1)
	b.Output("z", onnx.Float, n, onnx.Dim{Value: 3})
	o := Inversion{Common: Common{Model: save(t, b), Data: Data{Data: path}, Seed: 1, Report: filepath.Join(t.TempDir(), "r.html")}, Restarts: 2, Steps: 250}
	r, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Nearer.Low <= 0 || r.Images[0].Member < 0.8 || !strings.Contains(r.Verdict, "shows something of its training images") {
		t.Errorf("%+v; %s", r.Images, r.Verdict)
	}
	// A model that holds a rule and nobody shows nobody.
	o.Model = save(t, linearModel(1))
	if r, err = o.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(r.Verdict, "shows something") {
		t.Errorf("a rule: %s", r.Verdict)
	}
}

func TestAGradientOfALinearModelGivesItsOneImageAway(t *testing.T) {
	needsRuntime(t)
	data := Data{Data: picturesFile(t, map[string]int{"train": 60, "val": 20}, 0, 5)}
	o := Gradients{Common: Common{Model: save(t, linearModel(0.1)), Data: data, Seed: 1, Report: filepath.Join(t.TempDir(), "r.html")}, Method: MethodLinear, Batch: 1, Batches: 20}
	r, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if r.Hits.Hits != 20 || r.NeverHits != 0 || r.Rate.Low < 0.8 || !strings.Contains(r.Verdict, "gives images away") {
		t.Errorf("%d of %d, %d of %d that were never there; %s", r.Hits.Hits, r.Trials, r.NeverHits, r.NeverTrials, r.Verdict)
	}
	page, err := os.ReadFile(o.Report)
	if err != nil || !bytes.Contains(page, []byte("AML.T0024.001")) || !bytes.Contains(page, []byte("data:image/png")) {
		t.Errorf("the page of %d bytes: %v", len(page), err)
	}
	// Four sites' sum is a mixture.
	o.Sites, o.Batches, o.Report = 4, 10, ""
	if r, err = o.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if r.Hits.Hits > 4 || r.Trials != 40 {
		t.Errorf("of four sites' sum: %d of %d", r.Hits.Hits, r.Trials)
	}
	o.Method, o.Batch, o.Batches, o.Sites, o.Bins = MethodImprint, 8, 4, 1, 256
	if r, err = o.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if r.Rate.Low < 0.5 {
		t.Errorf("imprint: %v", r.Rate)
	}
	o.Clip, o.Noise = 1, 1
	if r, err = o.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if r.Hits.Hits != 0 {
		t.Errorf("imprint under noise: %v", r.Rate)
	}
}

func TestQueriesBuyACopyOfALinearModel(t *testing.T) {
	needsRuntime(t)
	data := Data{Data: picturesFile(t, map[string]int{"train": 150, "val": 150}, 0.5, 7)} // people label badly
	o := Extraction{Common: Common{Model: save(t, linearModel(0.3)), Data: data, Seed: 1}, Budgets: []int{8, 120}, Steps: 60, Transfer: true, Eps: 0.2, TransferSteps: 5}
	r, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var natural, none ExtractionCurve
	for _, c := range r.Curves {
		switch {
		case c.Queries == "natural" && c.Answers == "labels":
			natural = c
		case c.Queries == "none":
			none = c
		}
	}
	if f := natural.Points[1].Fidelity; f.Low < 0.85 || f.Low < none.Points[1].Fidelity.High-0.1 && none.Points[1].Fidelity.Value > f.Value || r.Majority.Low > 0.6 {
		t.Errorf("copy %v, people %v, most frequent %v", f, none.Points[1].Fidelity, r.Majority)
	}
	if r.Transfer.Noise.High > 0.3 || r.Transfer.Copy.Value <= r.Transfer.Noise.High || r.Transfer.WhiteBox.Value < r.Transfer.Copy.Value {
		t.Errorf("%+v", r.Transfer)
	}
	o.Budgets, o.Transfer = o.Budgets[:1], false
	again, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.Curves {
		r.Curves[i].Points = r.Curves[i].Points[:1]
	}
	a, _ := json.Marshal(r.Curves)
	b, _ := json.Marshal(again.Curves)
	if !bytes.Equal(a, b) {
		t.Errorf("the same seed: %s, then %s", a, b)
	}
}

func TestWhatCannotBeAskedIsSaidBeforeAnythingIsDone(t *testing.T) {
	needsRuntime(t)
	data := Data{Data: picturesFile(t, map[string]int{"train": 30, "val": 20}, 0, 5)}
	model := save(t, linearModel(0.1))
	bare := Common{Model: model, Data: data, Seed: 1}
	ctx := context.Background()
	for name, run := range map[string]func() error{
		"no training record": func() error { _, err := Membership{Common: bare, Shadows: 6}.Run(ctx); return err },
		"a network that is not there": func() error {
			_, err := Membership{Common: bare, Shadows: 6, Training: Training{Network: "resnet7"}}.Run(ctx)
			return err
		},
		"a recipe for other shapes": func() error {
			_, err := Membership{Common: Common{Data: people(tableFile(t, 60, 1))}, Shadows: 6, Training: Training{Recipe: "demo"}}.Run(ctx)
			return err
		},
		"delta without epsilon": func() error {
			_, err := Membership{Common: bare, Shadows: 6, Training: Training{Recipe: "demo", Delta: 1e-5}}.Run(ctx)
			return err
		},
		"attributes of images": func() error { _, err := Attribute{Common: bare}.Run(ctx); return err },
		"more queries than examples": func() error {
			_, err := Extraction{Common: bare, Budgets: []int{10, 31}}.Run(ctx)
			return err
		},
		"more batches than images": func() error {
			_, err := Gradients{Common: bare, Method: MethodLinear, Batch: 8, Batches: 4}.Run(ctx)
			return err
		},
		"means of a package": func() error {
			_, err := Membership{Common: Common{Model: "../../../models/chest-pneumonia-28", Data: data, Mean: []float64{0.5}}}.Run(ctx)
			return err
		},
	} {
		if err := run(); !errors.Is(err, ErrAsk) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestALookShowsTheSameImageOtherwise(t *testing.T) {
	s := &train.Set{Channels: 1, Rows: 2, Columns: 3}
	image := []float32{1, 2, 3, 4, 5, 6}
	for k, want := range [][]float32{{1, 2, 3, 4, 5, 6}, {3, 2, 1, 6, 5, 4}, {1, 1, 2, 4, 4, 5}, {2, 3, 3, 5, 6, 6}, {1, 2, 3, 1, 2, 3}, {4, 5, 6, 4, 5, 6}} {
		if got := look(s, image, k); !slices.Equal(got, want) {
			t.Errorf("look %d: %v, want %v", k, got, want)
		}
	}
}

func TestPeopleAreInAsManyShadowModelsAndTheirImagesStayTogether(t *testing.T) {
	s := &train.Set{Labels: make([]int, 40)}
	for i := range 40 {
		s.Patients = append(s.Patients, fmt.Sprint("p", i/2))
	}
	in := assign(s, 8, 0.5, 3)
	for i := range 40 {
		n := 0
		for m := range in {
			if in[m][i] {
				n++
			}
			if in[m][i] != in[m][i/2*2] {
				t.Fatalf("model %d has one image of patient %d alone", m, i/2)
			}
		}
		if n != 4 {
			t.Errorf("image %d is in %d of 8", i, n)
		}
	}
}

// The reference is what an untuned script reached on these images: 19 % of batches
// of 64 through a linear layer, 88 % with an imprint.
func TestGradientsOfRadiographsGiveAsManyAwayAsTheReferenceFound(t *testing.T) {
	needsRuntime(t)
	if testing.Short() {
		t.Skip("a second a batch")
	}
	folder := os.Getenv("VIGIE_DATA")
	path := filepath.Join(folder, "pneumoniamnist-trainval.npz")
	if _, err := os.Stat(path); folder == "" || err != nil {
		t.Skipf("SKIPPED, nothing was attacked: no %s; set VIGIE_DATA to the folder of data sets", path)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	uniform := func(n, inputs int) []float32 { // as PyTorch begins a linear layer
		v := make([]float32, n)
		for i := range v {
			v[i] = float32((2*rng.Float64() - 1) / math.Sqrt(float64(inputs)))
		}
		return v
	}
	b := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "n"}
	x := b.Input("x", onnx.Float, n, onnx.Dim{Value: 1}, onnx.Dim{Value: 28}, onnx.Dim{Value: 28})
	x = b.Op("Gemm", []string{b.Op("Flatten", []string{x}), b.Weight("w", []int64{512, 784}, uniform(512*784, 784)), b.Weight("b", []int64{512}, uniform(512, 784))}, onnx.IntAttribute("transB", 1))
	b.Node(&onnx.Node{OpType: "Gemm", Inputs: []string{b.Op("Relu", []string{x}), b.Weight("v", []int64{2, 512}, uniform(1024, 512)), b.Weight("c", []int64{2}, uniform(2, 512))},
		Outputs: []string{"z"}, Attributes: []onnx.Attribute{onnx.IntAttribute("transB", 1)}}, 1)
	b.Output("z", onnx.Float, n, onnx.Dim{Value: 2})
	model := save(t, b)
	for method, least := range map[string]float64{MethodLinear: 0.19, MethodImprint: 0.8} {
		r, err := Gradients{Common: Common{Model: model, Data: Data{Data: path}, Seed: 1}, Method: method, Batch: 64, Batches: 2}.Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if r.Rate.Value < least || r.NeverHits > 1 {
			t.Errorf("%s: %v of %d, %d that were never there", method, r.Rate, r.Trials, r.NeverHits)
		}
	}
}

func TestStudentsIntervalIsTheTables(t *testing.T) {
	// Quantiles 0.975 of Student's distribution.
	for n, want := range map[int]float64{2: 12.706, 3: 4.303, 5: 2.776, 6: 2.571, 11: 2.228, 31: 2.042, 1001: 1.962} {
		v := make([]float64, n)
		for i := range v {
			v[i] = float64(i)
		}
		got := student(v)
		sd := math.Sqrt(float64(n) * float64(n+1) / 12)
		if q := (got.High - got.Value) / (sd / math.Sqrt(float64(n))); math.Abs(q-want) > 0.005*want {
			t.Errorf("%d values: %v, want %v", n, q, want)
		}
	}
}

func FuzzReadMembership(f *testing.F) {
	f.Add("index,member\n0,1\n1,0\n2,1\n3,0\n")
	f.Add("index,member\n0,2\n")
	f.Add("member,index,x\n1,99999999999999999999,a\n")
	f.Add("index\n")
	f.Fuzz(func(t *testing.T, text string) {
		members, others, err := ReadMembership(strings.NewReader(text), 10)
		if err != nil {
			return
		}
		seen := map[int]bool{}
		for _, at := range append(members, others...) {
			if at < 0 || at >= 10 || seen[at] {
				t.Fatalf("%v and %v of %q", members, others, text)
			}
			seen[at] = true
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(`{"network": {"stages": [[4]], "classes": 2, "channels": 1, "rows": 8, "columns": 8, "deviation": 1}, "history": {"recipe": {"epochs": 1}}}`)
	f.Add(`{"network": {"architecture": "tabular-mlp", "norm": "group"}}`)
	f.Add(`{"network": {"from": "x.onnx"}}`)
	f.Add(`{"network": {"stages": [[16384, 16384, 16384]], "classes": 2, "hidden": 65536, "deviation": 1}}`)
	f.Add(`{"network": {"stages": [[4]], "members": 1000000, "deviation": 1}}`)
	f.Add(`{"network": 3}`)
	f.Add(`{}`)
	set := &train.Set{Channels: 1, Rows: side, Columns: side, Classes: 2, Labels: []int{0, 1}, Pixels: make([]uint8, 2*side*side)}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRecord(strings.NewReader(text))
		if err != nil {
			return
		}
		_, _ = Training{}.training(r, set)
	})
}
