package enclave

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// repackaged is a package with another explanation section, sealed again, and
// with a survey if one is given.
func repackaged(t testing.TB, pkg *model.Package, section string, survey func(*model.Survey)) *model.Package {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "package")
	if err := os.CopyFS(folder, os.DirFS(pkg.Dir)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, model.ManifestFile)
	manifest, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(manifest), "explanation:\n")
	_, after, more := strings.Cut(rest, "\nplausibility:")
	if !found || !more {
		t.Fatalf("the manifest has no explanation before its plausibility:\n%s", manifest)
	}
	for _, name := range []string{model.ExplanationFile, model.VerifiersFile} { // of the package as it was
		if err := os.Remove(filepath.Join(folder, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, []byte(before+"explanation:\n"+section+"\nplausibility:"+after), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Seal(folder); err != nil {
		t.Fatal(err)
	}
	opened, err := model.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	if survey == nil {
		return opened
	}
	image, err := drawTextures(opened.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	s, err := opened.SurveyMethods(context.Background(), opened.Manifest.Explanation.Methods(), image[:1], "one texture", 1)
	if err != nil {
		t.Fatal(err)
	}
	survey(s)
	if _, err := model.WriteSurvey(folder, s); err != nil {
		t.Fatal(err)
	}
	if opened, err = model.Open(folder); err != nil {
		t.Fatal(err)
	}
	return opened
}

// averages is a chest package whose graph computes local means by constant
// kernels: whatever its weights are drawn to be, Grad-CAM shows the same.
func averages(t testing.TB) *model.Package {
	t.Helper()
	pkg := brightness(t, 1, 0)
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	image := b.Input("image", onnx.Float, batch, onnx.Dim{Value: 1}, onnx.Dim{Value: 28}, onnx.Dim{Value: 28})
	kernel := b.Weight("kernel", []int64{1, 1, 3, 3}, slices.Repeat([]float32{1. / 9}, 9))
	mean := b.Op("Flatten", []string{b.Op("GlobalAveragePool", []string{b.Op("Conv", []string{image, kernel}, onnx.IntsAttribute("pads", 1, 1, 1, 1))})})
	b.Node(&onnx.Node{OpType: "MatMul", Inputs: []string{mean, b.Weight("weights", []int64{1, 2}, []float32{3, 3})}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, batch, onnx.Dim{Value: 2})
	graph, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := graph.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(pkg.Dir, model.GraphFile), encoded, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Seal(pkg.Dir); err != nil {
		t.Fatal(err)
	}
	opened, err := model.Open(pkg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

// patient makes options with time enough for any machine, and a log to read.
func patient() (Options, *bytes.Buffer) {
	var log bytes.Buffer
	return Options{Threads: 1, Timeout: 20 * time.Minute, ExplainBudget: 9 * time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil))}, &log
}

func opened(t testing.TB, pkg *model.Package, o Options) *pipeline {
	t.Helper()
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPipeline(pkg, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// analysed reads a drawn chest and checks that what comes of it can be signed.
func analysed(t testing.TB, p *pipeline, o phantom.Options) vigie.Finding {
	t.Helper()
	asked := chest(t, o, nil)
	f := p.analyse(context.Background(), asked.Patient, asked.DICOM)
	if _, err := encodeFinding(f); err != nil {
		t.Fatalf("%v: %+v", err, f)
	}
	return f
}

// told is a label without the map.
func told(e *vigie.Explanation) string {
	if e == nil {
		return "no explanation"
	}
	short := *e
	short.Map = nil
	return fmt.Sprintf("%+v", short)
}

func spoken(t testing.TB, e *vigie.Explanation) {
	t.Helper()
	for _, text := range []vigie.Text{e.Text, e.Label()} {
		if text.English == "" || text.French == "" || text.English == text.French {
			t.Errorf("it is not said in both languages: %+v", text)
		}
	}
}

// What the demo delivers: a map that is put to the test, in the case and of the
// method, and says how it did.
func TestTheDemoPackageDeliversMapsThatPassTheirTests(t *testing.T) {
	pkg := demoPackage(t)
	options, log := patient()
	p := opened(t, pkg, options)
	for _, opacity := range []float64{0, 0.9} {
		f := analysed(t, p, phantom.Options{Opacity: opacity})
		e := f.Explanation
		if !e.Passed() || e.Target != "pneumonia" || e.Method != pkg.Manifest.Explanation.Method || len(e.Failures) != 0 || len(e.Rejected) != 0 {
			t.Fatalf("opacity %v: %s", opacity, told(e))
		}
		spoken(t, e)
		m := e.Tests
		if m == nil || m.P == nil || *m.P > explain.Significance || m.RandomMaps != 39 || m.Steps != 10 || *m.Insertion-*m.Deletion <= *m.RandomMean || m.Background != "blur" {
			t.Errorf("opacity %v: %+v", opacity, m)
		}
		if m.Similarity == nil || *m.Similarity > explain.MostSimilar || m.ModelImages < 20 || m.ModelExplained == nil || *m.ModelExplained < m.ModelImages/2 {
			t.Errorf("opacity %v: of the model: %+v", opacity, m)
		}
	}
	if strings.Contains(log.String(), "level=WARN msg=\"a method") || strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("the log:\n%s", log)
	}
}

func TestAMethodThatExplainsNothingOfTheModelGivesWayToTheNext(t *testing.T) {
	options, log := patient()
	// As surveys of the demo model found: grad-cam on no image, occlusion on all.
	pkg := repackaged(t, demoPackage(t), "  method: grad-cam\n  otherwise: [occlusion]\n  score: log-odds\n", func(s *model.Survey) {
		s.Methods[0].Images, s.Methods[0].Explained, s.Methods[1].Images, s.Methods[1].Explained = 24, 0, 24, 24
	})
	p := opened(t, pkg, options)
	f := analysed(t, p, phantom.Options{Opacity: 0.9})
	e := f.Explanation
	if !e.Passed() || e.Method != "occlusion" || !slices.Equal(e.Rejected, []string{"grad-cam"}) {
		t.Error(told(e))
	}
	if !strings.Contains(log.String(), "method=grad-cam") || !strings.Contains(log.String(), "on 24 of 24 images its maps do no better than random ones") {
		t.Errorf("the log:\n%s", log)
	}
	if about := fmt.Sprint(p.describe().settings); !strings.Contains(about, "explanation:occlusion") {
		t.Errorf("the configuration: %s", about)
	}
}

// Without a survey the enclave finds out by itself that the weights do not
// matter; where nothing else is asked for there is no map, the reason is, and
// the answer stands and is computed twice all the same.
func TestAModelThatNoMethodExplainsIsAnsweredWithoutAMap(t *testing.T) {
	options, log := patient()
	p := opened(t, averages(t), options)
	f := analysed(t, p, phantom.Options{})
	e := f.Explanation
	if len(f.Predictions) != 2 || e == nil || e.Shown() || e.Verdict != vigie.MapNone || e.Method != "" || !slices.Equal(e.Rejected, []string{"grad-cam"}) {
		t.Fatalf("%+v, %+v", f, e)
	}
	spoken(t, e)
	if !strings.HasPrefix(e.Text.English, "grad-cam does not explain this model: its maps stay much the same") || !strings.HasPrefix(e.Text.French, "grad-cam n’explique pas ce modèle") {
		t.Errorf("the reason: %+v", e.Text)
	}
	if !slices.ContainsFunc(f.Guards, func(g vigie.GuardResult) bool { return g.Guard == "output-agreement" && !g.Alarm }) {
		t.Errorf("the answer was not computed twice: %+v", f.Guards)
	}
	if !strings.Contains(log.String(), "no method explains this model") {
		t.Errorf("the log:\n%s", log)
	}
}

// A package of before there were tests still gives its map, with a label that
// says what it is worth: by removing what it marks the answer changes no more.
func TestAPackageOfBeforeThereWereTestsGetsItsMapLabelled(t *testing.T) {
	options, _ := patient()
	p := opened(t, brightness(t, 40, -2), options)
	e := analysed(t, p, phantom.Options{}).Explanation
	if !e.Shown() || e.Passed() || e.Method != "grad-cam" || e.Verdict != vigie.MapFailed || !slices.Contains(e.Failures, string(explain.NoBetter)) {
		t.Fatal(told(e))
	}
	spoken(t, e)
	if !strings.Contains(e.Label().English, "did not pass its tests: do not rely on it") || !strings.Contains(e.Label().French, "ne vous y fiez pas") {
		t.Errorf("the label: %+v", e.Label())
	}
	if e.Tests == nil || e.Tests.Similarity == nil || e.Tests.ModelExplained != nil || e.Tests.ModelImages != surveyTextures {
		t.Errorf("%+v", e.Tests)
	}
}

// instant is a method that needs no time.
type instant struct{ made explain.Map }

func (i instant) Explain(context.Context, engine.Tensor, int) (*explain.Map, error) {
	made := i.made
	return &made, nil
}
func (instant) Close() error { return nil }

func TestWhatDoesNotFitIntoTheBudgetIsSaid(t *testing.T) {
	options, _ := patient()
	p := opened(t, brightness(t, 40, -2), options)
	p.maps.budget = time.Nanosecond
	f := analysed(t, p, phantom.Options{})
	if e := f.Explanation; len(f.Predictions) != 2 || e.Shown() || e.Verdict != vigie.MapNone || !strings.Contains(e.Text.English, "took longer than the 1ns") || !strings.Contains(e.Text.French, "plus que les 1ns") {
		t.Errorf("no time for a map: %+v", e)
	}
	// The map is there at once, and its test is not.
	values := make([]float32, 28*28)
	values[100] = 1
	input, err := drawTextures(p.pkg.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	logits, err := p.infer(context.Background(), input[0])
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	if err := p.maps.warmUp(context.Background(), input[0], slog.New(slog.NewTextHandler(&log, nil))); err != nil || !strings.Contains(log.String(), "do not fit into the time allowed for them") {
		t.Errorf("the start says nothing of it: %v\n%s", err, log.String())
	}
	real := p.maps.explains
	p.maps.explains = instant{explain.Map{Kind: explain.Relevance, Rows: 28, Columns: 28, Values: values, Class: 1, Logits: logits}}
	made, err := p.maps.explain(context.Background(), input[0])
	if err != nil || made.shown == nil || made.label.Verdict != vigie.MapUntested || made.label.Tests.P != nil || !strings.Contains(made.label.Text.English, "was not measured: it took longer than the 1ns") {
		t.Errorf("no time for the test: %+v, %v", made.label, err)
	}
	// Nothing known of the method: tested or not, the map is not vouched for.
	p.maps.budget, p.maps.standing = 9*time.Minute, nil
	for i := range values {
		values[i] = float32(i)
	}
	if made, err = p.maps.explain(context.Background(), input[0]); err != nil || made.label.Verdict == vigie.MapPassed {
		t.Errorf("a method of which nothing is known: %+v, %v", made.label, err)
	}
	p.maps.explains = real
	// The case's own end is no matter of the budget.
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.maps.explain(ended, input[0]); err == nil {
		t.Error("a case that has ended is explained")
	}
}

func TestAnEmptyMapIsNoMap(t *testing.T) {
	options, _ := patient()
	p := opened(t, brightness(t, 40, -2), options)
	p.maps.explains = instant{explain.Map{Kind: explain.Contribution, Rows: 28, Columns: 28, Values: slices.Repeat([]float32{-1}, 28*28), Class: 1, Logits: []float32{0, 0}}}
	input, err := drawTextures(p.pkg.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	made, err := p.maps.explain(context.Background(), input[0])
	if err != nil || made.shown != nil || made.label.Verdict != vigie.MapNone || !strings.Contains(made.label.Text.English, "no place of the image speaks for Pneumonia") || !strings.Contains(made.label.Text.French, "ne parle pour « Pneumonie »") {
		t.Errorf("%+v, %v", made.label, err)
	}
	if err := checkExplanation(made.label); err != nil {
		t.Error(err)
	}
}

func TestAMapThatContradictsItsLabelIsNotSigned(t *testing.T) {
	p, similar := 0.025, 0.1
	why := vigie.Text{English: "why", French: "pourquoi"}
	good := func() *vigie.Explanation {
		return &vigie.Explanation{Method: "lime", Target: "x", Rows: 1, Columns: 2, Map: []uint8{0, 255}, Verdict: vigie.MapPassed, Text: why, Tests: &vigie.MapTests{P: &p, Similarity: &similar}}
	}
	if err := checkExplanation(good()); err != nil {
		t.Error(err)
	}
	for _, fine := range []*vigie.Explanation{nil, {Target: "x", Verdict: vigie.MapNone, Text: why}, {Method: "grad-cam", Rows: 1, Columns: 1, Map: []uint8{1}}} {
		if err := checkExplanation(fine); err != nil {
			t.Errorf("%+v: %v", fine, err)
		}
	}
	for name, change := range map[string]func(e *vigie.Explanation){
		"none, and a map":       func(e *vigie.Explanation) { e.Verdict = vigie.MapNone },
		"none, and no reason":   func(e *vigie.Explanation) { *e = vigie.Explanation{Verdict: vigie.MapNone} },
		"a map of other size":   func(e *vigie.Explanation) { e.Columns = 3 },
		"no map":                func(e *vigie.Explanation) { e.Map, e.Rows, e.Columns = nil, 0, 0 },
		"passed what it failed": func(e *vigie.Explanation) { e.Failures = []string{"no-better"} },
		"passed no test":        func(e *vigie.Explanation) { e.Tests = nil },
		"passed half a test":    func(e *vigie.Explanation) { e.Tests.P = nil },
		"another verdict":       func(e *vigie.Explanation) { e.Verdict = "fine" },
	} {
		e := good()
		change(e)
		if err := checkExplanation(e); err == nil {
			t.Errorf("%s: signed: %+v", name, e)
		}
	}
}

// The first computation of a method that cannot be measured leaves it in use,
// and its maps untested.
func TestAMethodThatCannotBeMeasuredAtTheStartIsUsedUntested(t *testing.T) {
	pkg := brightness(t, 40, -2)
	var log bytes.Buffer
	o, _, err := pkg.ExplainOptions("grad-cam", 1)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	standing, err := standingOf(ended, pkg, "grad-cam", explain.GradCAM, o, slog.New(slog.NewTextHandler(&log, nil)))
	if standing != nil || err != nil || !strings.Contains(log.String(), "vigie model survey --write") {
		t.Errorf("%+v, %v:\n%s", standing, err, log.String())
	}
}
