package probe_test

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// risk writes a linear model of a table that vigie train might have made: it
// keeps with it how columns become numbers. Its two logits are 0 and
// age/10 standardised + 3 if a smoker + 5 if that is not known.
func risk(t *testing.T) *probe.Model {
	t.Helper()
	batch := onnx.Dim{Value: -1, Param: "batch"}
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, batch, onnx.Dim{Value: 4})
	z := b.Op("MatMul", []string{x, b.Weight("w", []int64{4, 2}, []float32{0, 1, 0, 0, 0, 3, 0, 5})})
	b.Output(z, onnx.Float, batch, onnx.Dim{Value: 2})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	columns := &train.Columns{Columns: []train.Column{{Name: "age", Mean: 50, Deviation: 10}, {Name: "smoker", Values: []string{"no", "yes"}, Missing: true}}}
	if err := train.Describe(m, []string{"alive", "very ill"}, columns); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "risk.onnx")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	p, err := probe.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// patients is a table whose columns are not in the model's order.
const patients = `split,smoker,age,label
test,no,40,alive
test,yes,70,very ill
test,,50,very ill
test,yes,40,alive
train,no,50,alive
train,yes,60,very ill
val,no,50,alive
val,yes,60,very ill
`

func written(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The model knows how a table becomes numbers: whoever reads one for it, explain,
// run or eval, reads it so.
func TestATableIsReadTheSameWayByEveryQuestion(t *testing.T) {
	m := risk(t)
	table := written(t, "patients.csv", patients)
	want := []float64{-1, 5, 5, 2, 0, 4, 0, 4}

	inputs, err := m.Inputs(table)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := m.Run(t.Context(), inputs)
	skipWithoutRuntime(t, err)
	for _, tensor := range answer.Tensors {
		for i, z := range floats(t, tensor) {
			if i%2 == 1 && math.Abs(z-want[i/2]) > 1e-5 {
				t.Errorf("run: row %d has the logit %v, want %v", i/2, z, want[i/2])
			}
		}
	}
	e, err := m.Evaluate(t.Context(), probe.Test{Options: studies.Options{Data: table}, Split: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if e.AUC.Value != 1 || !slices.Equal(e.Classes, []string{"alive", "very ill"}) {
		t.Errorf("eval: AUC %v, classes %v", e.AUC.Value, e.Classes)
	}
	for _, x := range []probe.Example{{Input: table, Index: 1}, {Data: table, Split: "test", Index: 1}} {
		for _, method := range []explain.Method{explain.KernelSHAP, explain.Occlusion, explain.IntegratedGradients} {
			got := answered(t, m, probe.Question{Example: x, Method: method, Class: "very ill", Background: written(t, "background.csv", "age,smoker\n50,no\n")})
			if math.Abs(float64(got.Logits[1])-5) > 1e-5 || got.Label != "very ill" || len(got.Features) != 2 {
				t.Fatalf("%s: logits %v of %q, features %+v", method, got.Logits, got.Label, got.Features)
			}
			// A linear model's contributions: its weights times the way from the background.
			for i, f := range []explain.Feature{{Name: "smoker", Text: "yes", Attribution: 3}, {Name: "age", Text: "70", Value: 70, Attribution: 2}} {
				g := got.Features[i]
				if g.Name != f.Name || g.Text != f.Text || g.Value != f.Value || math.Abs(float64(g.Attribution-f.Attribution)) > 1e-4 {
					t.Errorf("%s of %+v: feature %d is %+v, want %+v", method, x, i, g, f)
				}
			}
		}
	}
	got := answered(t, m, probe.Question{Example: probe.Example{Input: table, Index: 2}, Method: explain.Gradient, Class: "1"})
	if got.Features[0].Name != "smoker missing" || got.Features[0].Value != 1 || got.Features[0].Attribution != 5 || len(got.Features) != 4 {
		t.Errorf("gradient: %+v", got.Features)
	}
	out := filepath.Join(t.TempDir(), "features.csv")
	missing := answered(t, m, probe.Question{Example: probe.Example{Input: table, Index: 2}, Method: explain.KernelSHAP, Class: "1"})
	if err := missing.Save(out); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(out); err != nil || !strings.Contains(string(raw), "smoker,missing,") {
		t.Errorf("%v, features are\n%s", err, raw)
	}
}

func TestATableThatTheModelCannotReadIsRefusedByName(t *testing.T) {
	m := risk(t)
	plain := linear(t, "", ones...)
	for says, c := range map[string]struct {
		model *probe.Model
		x     probe.Example
	}{
		`no column "age", which the model reads; it has ["years" "smoker"]`: {m, probe.Example{Input: written(t, "a.csv", "years,smoker\n50,no\n")}},
		`row 2: not a usable table: column "age" holds "fifty"`:             {m, probe.Example{Input: written(t, "b.csv", "age,smoker\n50,no\nfifty,no\n")}},
		"counted from 0":                            {m, probe.Example{Input: written(t, "c.csv", "age,smoker\n50,no\n"), Index: 1}},
		"3 names for the 2 columns":                 {m, probe.Example{Input: written(t, "d.csv", "age,smoker\n50,no\n"), Names: []string{"a", "b", "c"}}},
		"does not say how texts become numbers":     {plain, probe.Example{Input: written(t, "e.csv", "a,b,c\n1,2,no\n")}},
		"shape [1 2]: does not fit the model: want": {plain, probe.Example{Input: written(t, "f.csv", "a,b\n1,2\n")}},
		"want train, val, test or all":              {m, probe.Example{Data: written(t, "g.csv", patients), Split: "training"}},
	} {
		if _, err := c.model.Explain(t.Context(), probe.Question{Example: c.x, Method: explain.LIME}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q in it", err, says)
		}
	}
}
