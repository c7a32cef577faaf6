package simulate

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/tabular"
)

// tables writes the tables of hospitals whose patients differ in age and in how
// many are sick, and which do not all measure the same.
func tables(t *testing.T, rows ...int) string {
	t.Helper()
	dir := t.TempDir()
	for i, n := range rows {
		rng := rand.New(rand.NewPCG(uint64(i), 21))
		var b strings.Builder
		fmt.Fprintln(&b, "age,marker,kind,sick")
		for range n {
			age, marker, kind := 50+10*rng.NormFloat64()+3*float64(i), rng.NormFloat64(), rng.IntN(3)
			z := 0.05*(age-55) + 1.5*marker + 0.8*float64(kind-1) + 0.5*float64(i-1) + rng.NormFloat64()
			sick := 0
			if z > 0 {
				sick = 1 + rng.IntN(2)
			}
			if i == len(rows)-1 && n < 30 {
				sick = 1 // a hospital that has one class only
			}
			cell := fmt.Sprintf("%.3f", marker)
			if rng.IntN(2+i) == 0 {
				cell = "?"
			}
			fmt.Fprintf(&b, "%.1f,%s,%c,%d\n", age, cell, 'a'+rune(kind), sick)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("Clinic_%d.csv", i)), []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func clinics(t *testing.T, dir string) Hospitals {
	t.Helper()
	schema, err := DraftSchema(dir, tabular.DraftOptions{Label: "sick", Negative: []string{"0"}})
	if err != nil {
		t.Fatal(err)
	}
	o := Hospitals{Schema: schema, Out: Each, Terms: HospitalTerms(), Seed: 3}
	o.Terms.Rounds, o.Terms.Batch = 15, 512
	if o.Tables, err = ReadHospitals(dir, schema); err != nil {
		t.Fatal(err)
	}
	return o
}

func runClinics(t *testing.T, o Hospitals) *HospitalsReport {
	t.Helper()
	r, err := o.Run(t.Context())
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestHospitalsLearnTogetherWhatTheirRowsInOnePlaceTeach(t *testing.T) {
	o := clinics(t, tables(t, 60, 110, 140, 150))
	r := runClinics(t, o)
	if len(r.Folds) != 4 || r.Furthest > 1e-3 || r.Federated < 0.75 || r.Epsilon != nil {
		t.Errorf("federated %v, pooled %v, at most %v apart", r.Federated, r.Pooled, r.Furthest)
	}
	for _, f := range r.Folds {
		if f.Statistics.Rows != 460-f.Rows || f.Statistics.Sites != 3 || len(f.Alone) != 3 || f.Federated.Low >= f.Federated.Value || f.Lost != 0 {
			t.Errorf("%+v", f)
		}
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
	// with many steps a round the two differ, and not by much
	o.Out, o.Hidden, o.Terms.Batch, o.Terms.Rate = "2", []int{6}, 16, 0.1
	many := runClinics(t, o)
	if many.Furthest > 0.03 || many.Furthest == 0 || many.Folds[0].Out != "clinic-2" || many.Folds[0].Variables == r.Folds[2].Variables {
		t.Errorf("%v apart, %+v", many.Furthest, many.Folds[0])
	}
	again := runClinics(t, o)
	if again.Federated != many.Federated {
		t.Errorf("the same options give %v and %v", many.Federated, again.Federated)
	}
}

func TestAHospitalOfOneClassLearnsWithTheOthersAndNotAlone(t *testing.T) {
	o := clinics(t, tables(t, 60, 60, 60, 20))
	o.Out, o.Terms.Rounds = "clinic-3", 2
	if _, err := o.Run(t.Context()); !errors.Is(err, ErrOptions) {
		t.Errorf("a judge of one class: %v", err)
	}
	o.Out = Each
	r := runClinics(t, o)
	if r.Folds[3].None == "" || math.Abs(r.Federated-(r.Folds[0].Federated.Value+r.Folds[1].Federated.Value+r.Folds[2].Federated.Value)/3) > 1e-12 {
		t.Errorf("%+v", r.Folds[3])
	}
	var text strings.Builder
	if err := r.Write(&text); err != nil || !strings.Contains(text.String(), "judges nothing") {
		t.Errorf("%v: %s", err, &text)
	}
	none := 0
	for _, a := range r.Folds[0].Alone {
		if a.None != "" {
			none++
		}
	}
	if none != 1 || math.IsNaN(r.Alone) {
		t.Errorf("%+v", r.Folds[0].Alone)
	}
}

func TestSimulationsOfHospitalsThatCannotBeRunAreRefused(t *testing.T) {
	dir := tables(t, 20, 20, 20, 31)
	for what, change := range map[string]func(*Hospitals){
		"three hospitals":      func(o *Hospitals) { o.Tables = o.Tables[:3] },
		"no schema":            func(o *Hospitals) { o.Schema = nil },
		"nobody left out":      func(o *Hospitals) { o.Out = "" },
		"several left out":     func(o *Hospitals) { o.Out = "clinic" },
		"a stranger left out":  func(o *Hospitals) { o.Out = "hotel" },
		"no statistics":        func(o *Hospitals) { o.Terms.Tasks, o.Terms.Questions = nil, 0 },
		"personal layers":      func(o *Hospitals) { o.Terms.Personal = []federate.Part{federate.HeadPart} },
		"terms out of range":   func(o *Hospitals) { o.Terms.Rate = 0 },
		"nobody to be counted": func(o *Hospitals) { o.Least = 1000 },
	} {
		o := clinics(t, dir)
		change(&o)
		if _, err := o.Run(t.Context()); err == nil || errors.Is(err, engine.ErrNoRuntime) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ReadHospitals(t.TempDir(), nil); !errors.Is(err, ErrOptions) {
		t.Errorf("a folder without tables: %v", err)
	}
}

func TestTheFourHospitalsLearnWithinOnePointOfTheirRowsInOnePlace(t *testing.T) {
	data, err := os.ReadFile("../tabular/testdata/heart4.json")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := tabular.ParseSchema(data)
	if err != nil {
		t.Fatal(err)
	}
	folder := os.Getenv("VIGIE_DATA")
	if folder == "" {
		folder = "../../../shared/data"
	}
	o := Hospitals{Schema: schema, Out: Each, Terms: HospitalTerms(), Seed: 1}
	o.Terms.Rounds = 30 // of 100, to be quick
	if o.Tables, err = ReadHospitals(filepath.Join(folder, "heart4"), schema); err != nil {
		t.Skipf("SKIPPED, nothing was checked: %v (set VIGIE_DATA)", err)
	}
	if testing.Short() {
		o.Out = "cleveland"
	}
	r := runClinics(t, o)
	for _, f := range r.Folds {
		if math.Abs(f.Cost.Value) > 0.01 {
			t.Errorf("without %s: federated %v, pooled %v", f.Out, f.Federated, f.Pooled)
		}
	}
	if r.Federated < 0.79 {
		t.Errorf("mean AUC %v", r.Federated)
	}
}

func TestHospitalsTrainInNumPyAsTheEngineDoes(t *testing.T) {
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import numpy").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, nothing was checked: Debian's python3-numpy is not installed (make setup-peers): %v %s", err, out)
	}
	o := clinics(t, tables(t, 30, 40, 50, 60))
	o.Out, o.Terms.Rounds, o.Terms.Momentum, o.Terms.Decay = "clinic-3", 2, 0, 0
	ours := runClinics(t, o)
	o.Program = python + " testdata/logistic.py"
	theirs := runClinics(t, o)
	if theirs.Program == nil || ours.Program != nil || theirs.Folds[0].Federated != ours.Folds[0].Federated || theirs.Folds[0].Pooled != ours.Folds[0].Pooled {
		t.Errorf("%+v by the engine, %+v in NumPy", ours.Folds[0], theirs.Folds[0])
	}
	for _, name := range []string{"head.weight", "head.bias"} {
		a, errA := ours.Model.Graph.Initializer(name).Floats()
		b, errB := theirs.Model.Graph.Initializer(name).Floats()
		if errA != nil || errB != nil || len(a) == 0 {
			t.Fatal(errA, errB)
		}
		moved := 0.0
		for j := range a {
			moved = max(moved, math.Abs(a[j]))
			if math.Abs(a[j]-b[j]) > 1e-5 {
				t.Fatalf("%s[%d] is %v by the engine and %v in NumPy", name, j, a[j], b[j])
			}
		}
		if moved == 0 {
			t.Errorf("%s has not moved", name)
		}
	}
}
