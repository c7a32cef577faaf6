package model

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
)

// inOrder is the demo manifest with several methods.
func inOrder(t testing.TB) string {
	t.Helper()
	return strings.Replace(demoManifest(t), "explanation:\n  method: grad-cam\n",
		"explanation:\n  method: kernelshap\n  otherwise: [occlusion, grad-cam]\n  background: blur\n  score: log-odds\n  samples: 128\n  segments: 20\n  window: 4\n", 1)
}

func TestAManifestListsMethodsInTheirOrder(t *testing.T) {
	m, err := ParseManifest([]byte(inOrder(t)))
	if err != nil {
		t.Fatal(err)
	}
	e := m.Explanation
	if !slices.Equal(e.Methods(), []string{"kernelshap", "occlusion", "grad-cam"}) || e.BackgroundName() != Blur || e.TestBackground() != Mean || e.score() != "log-odds" {
		t.Errorf("%+v", e)
	}
	if old, err := ParseManifest([]byte(demoManifest(t))); err != nil || !slices.Equal(old.Explanation.Methods(), []string{"grad-cam"}) ||
		old.Explanation.BackgroundName() != Mean || old.Explanation.TestBackground() != Blur || old.Explanation.score() != "logit" {
		t.Errorf("a manifest of before there was a choice: %+v, %v", old, err)
	}
	none, err := ParseManifest([]byte(strings.Replace(demoManifest(t), "method: grad-cam", "method: none", 1)))
	if err != nil || none.Explanation.Methods() != nil {
		t.Errorf("no explanation: %+v, %v", none, err)
	}
	for _, d := range explain.Methods() {
		if back, ok := MethodOf(MethodName(d.Method)); !ok || back != d.Method {
			t.Errorf("%s is spelled %s, which reads as %s", d.Method, MethodName(d.Method), back)
		}
	}
}

func TestAnExplanationThatCannotBeIsRefusedByItsLine(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"no such method":        {"method: kernelshap", "method: shap", `explanation.method: is "shap", want one of grad-cam, grad-cam++`},
		"a library's spelling":  {"method: kernelshap", "method: gradcam", `explanation.method: is "gradcam"`},
		"no such otherwise":     {"[occlusion, grad-cam]", "[occlusion, magic]", `explanation.otherwise[1]: is "magic"`},
		"none as a last resort": {"[occlusion, grad-cam]", "[none]", `explanation.otherwise[0]: is "none"`},
		"twice":                 {"[occlusion, grad-cam]", "[occlusion, kernelshap]", `explanation.otherwise[1]: "kernelshap" is there twice`},
		"none and others":       {"method: kernelshap", "method: none", "explanation.otherwise: names methods beside the method none"},
		"a background":          {"background: blur", "background: white", `explanation.background: is "white", want one of mean, blur, black`},
		"a score":               {"score: log-odds", "score: odds", `explanation.score: is "odds"`},
		"odds of nothing":       {"activation: softmax", "activation: sigmoid", `explanation.score: is "log-odds" of labels that do not exclude each other`},
		"too many samples":      {"samples: 128", "samples: 1000000", "explanation.samples: is 1e+06, want 0 to 65536"},
		"fewer than none":       {"segments: 20", "segments: -1", "explanation.segments: is -1"},
		"a wide window":         {"window: 4", "window: 9000", "explanation.window: is 9000"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseManifest([]byte(strings.Replace(inOrder(t), c.old, c.new, 1)))
			if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), c.want) || !naming.MatchString(err.Error()) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
	if _, err := Seal(folder(t, strings.Replace(inOrder(t), "[occlusion, grad-cam]\n", "[occlusion]\n  layer: features\n", 1), graph(t, 2))); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), "no method that is drawn from one") {
		t.Errorf("a layer for nobody: %v", err)
	}
}

// surveyed is what a survey of the package's methods might have found.
func surveyed(t testing.TB, p *Package) *Survey {
	t.Helper()
	s := p.survey()
	s.Images = "two drawings"
	for i, name := range p.Manifest.Explanation.Methods() {
		method, _ := MethodOf(name)
		s.Methods = append(s.Methods, Surveyed{name, explain.Standing{Method: method, Images: 2, Tested: true, Explained: i, MeanP: 0.3,
			Randomised: true, Similarity: 0.25, Error: 0.125, MapTime: 7, TestTime: 9}})
	}
	return &s
}

func withSurvey(t testing.TB) (dir string, sealed vigie.ModelDigest) {
	t.Helper()
	dir = folder(t, inOrder(t), graph(t, 2))
	before, err := Seal(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if p.Explained.Of("kernelshap") != nil {
		t.Error("a package without a survey says what a method is worth")
	}
	if sealed, err = WriteSurvey(dir, surveyed(t, p)); err != nil || sealed == before {
		t.Fatalf("digest %s after %s, %v", sealed, before, err)
	}
	return dir, sealed
}

func TestASurveyIsSealedWithItsPackage(t *testing.T) {
	dir, digest := withSurvey(t)
	p, err := Open(dir)
	if err != nil || p.Digest != digest || !slices.Contains(p.Files, ExplanationFile) {
		t.Fatalf("%v, %v", p, err)
	}
	first, second := p.Explained.Of("kernelshap"), p.Explained.Of("occlusion")
	if first == nil || second == nil || p.Explained.Of("lime") != nil {
		t.Fatalf("%+v", p.Explained)
	}
	if !slices.Equal(first.Failures(), []explain.Failure{explain.NoBetter}) || len(second.Failures()) != 0 || first.MapTime != 0 || first.TestTime != 0 {
		t.Errorf("%+v and %+v", first, second)
	}
	summary := p.Summary()
	if want := "kernelshap, otherwise occlusion, otherwise grad-cam of features"; summary.Explanation != want {
		t.Errorf("it is summed up as %q, want %q", summary.Explanation, want)
	}
	var text strings.Builder
	if err := summary.Write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"kernelshap does NOT explain this model (no-better): 0 of 2 maps better than random ones", "occlusion explains this model: 1 of 2", "rank correlation with randomised weights +0.25"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the summary does not say %q:\n%s", want, text.String())
		}
	}
	// Written again it is the same, byte for byte.
	if again, err := WriteSurvey(dir, p.Explained); err != nil || again != digest {
		t.Errorf("digest %s, then %s, %v", digest, again, err)
	}
}

func TestASurveyOfAnotherModelOrManifestIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		old, new string
		weights  float32
		want     string
	}{
		"another graph":       {"", "", 1, "the graph is sha256:"},
		"another background":  {"background: blur", "background: black", 0, "the background is black, surveyed was blur"},
		"another score":       {"score: log-odds", "score: logit", 0, "the score is logit, surveyed was log-odds"},
		"another target":      {"target: pneumonia", "target: normal", 0, "the target is normal, surveyed was pneumonia"},
		"another sample size": {"samples: 128", "samples: 64", 0, "samples is 64, surveyed was 128"},
		"other segments":      {"segments: 20", "segments: 21", 0, "segments is 21, surveyed was 20"},
		"another window":      {"window: 4", "window: 5", 0, "window is 5, surveyed was 4"},
		"another method":      {"otherwise: [occlusion", "otherwise: [lime", 0, "the manifest asks for lime, which was not surveyed"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := withSurvey(t)
			if err := os.WriteFile(filepath.Join(dir, ManifestFile), []byte(strings.Replace(inOrder(t), c.old, c.new, 1)), 0o644); err != nil {
				t.Fatal(err)
			}
			if c.weights != 0 {
				g := graph(t, 2)
				for i, w := range g.Graph.Initializers {
					if w.Name == "weights" {
						g.Graph.Initializers[i] = onnx.NewTensor(w.Name, w.Dims, []float32{c.weights, 0, 0, 0})
					}
				}
				data, err := g.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, GraphFile), data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Seal(dir); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "vigie model survey") {
				t.Errorf("Seal: %v, want %q", err, c.want)
			}
		})
	}
}

func TestASurveyThatMakesNoSenseIsRefused(t *testing.T) {
	method := `{"name":"lime","method":"lime","images":2,"tested":true,"explained":1,"mean_p":0.5,"mean_score":0,"randomised":true,"similarity":0.1,"error":0}`
	if s, err := ParseSurvey([]byte(`{"methods":[` + method + `]}`)); err != nil || s.Of("lime") == nil {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, text := range []string{
		``, `[]`, `{"methods":[]}{}`, `{"extra":1}`, `{"methods":[` + method + `,` + method + `]}`,
		`{"methods":[` + strings.Replace(method, `"name":"lime"`, `"name":"shap"`, 1) + `]}`,
		`{"methods":[` + strings.Replace(method, `"method":"lime"`, `"method":"kernelshap"`, 1) + `]}`,
		`{"methods":[` + strings.Replace(method, `"images":2`, `"images":0`, 1) + `]}`,
		`{"methods":[` + strings.Replace(method, `"explained":1`, `"explained":3`, 1) + `]}`,
		`{"methods":[` + strings.Replace(method, `"tested":true`, `"tested":false`, 1) + `]}`,
		`{"methods":[` + strings.Replace(method, `"mean_p":0.5`, `"mean_p":2`, 1) + `]}`,
		`{"methods":[` + strings.Replace(method, `"similarity":0.1`, `"similarity":-2`, 1) + `]}`,
	} {
		if _, err := ParseSurvey([]byte(text)); !errors.Is(err, ErrSurvey) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestASurveyThatDoesNotFitLeavesThePackageAsItWas(t *testing.T) {
	dir, digest := withSurvey(t)
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	other := *p.Explained
	other.Samples = 7
	if _, err := WriteSurvey(dir, &other); !errors.Is(err, ErrMismatch) {
		t.Fatalf("WriteSurvey: %v", err)
	}
	if p, err := Open(dir); err != nil || p.Digest != digest {
		t.Errorf("afterwards: %v", err)
	}
	fresh := sealed(t)
	if _, err := WriteSurvey(fresh, &other); !errors.Is(err, ErrMismatch) {
		t.Fatalf("WriteSurvey: %v", err)
	}
	if _, err := Open(fresh); err != nil {
		t.Errorf("a package that had none: %v", err)
	}
}

// The same picture has the same background in either layout.
func TestABackgroundDoesNotDependOnTheLayout(t *testing.T) {
	const rows, columns, channels = 6, 5, 3
	first, last := make([]float32, rows*columns*channels), make([]float32, rows*columns*channels)
	rng := rand.New(rand.NewPCG(1, 1))
	for p := range rows * columns {
		for c := range channels {
			v := rng.Float32()
			first[c*rows*columns+p], last[p*channels+c] = v, v
		}
	}
	for _, name := range []string{Mean, Blur, Black} {
		var values [2][]float32
		for i, layout := range []string{"NCHW", "NHWC"} {
			m := Manifest{Input: Input{Layout: layout, Rows: rows, Columns: columns, Channels: channels, Aspect: Stretch, Interpolation: Area, Photometric: Bright,
				Range: Range{0, 1}, Mean: []float64{0.1, 0.2, 0.3}, Std: []float64{1, 2, 4}}}
			background, err := m.background(name)
			if err != nil {
				t.Fatal(err)
			}
			out, err := background(engine.Float32(m.Input.Shape(1), slices.Clone([][]float32{first, last}[i])))
			if err != nil || len(out) != 1 || fmt.Sprint(out[0].Shape) != fmt.Sprint(m.Input.Shape(1)) {
				t.Fatalf("%s, %s: %v, %v", name, layout, out, err)
			}
			if values[i], err = engine.Values[float32](out[0]); err != nil {
				t.Fatal(err)
			}
		}
		for p := range rows * columns {
			for c := range channels {
				if a, b := values[0][c*rows*columns+p], values[1][p*channels+c]; a != b {
					t.Fatalf("%s at %d, channel %d: %v and %v", name, p, c, a, b)
				}
			}
		}
	}
}
