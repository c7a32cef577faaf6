package gateway

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

// withRules is a package with further plausibility rules.
func withRules(t testing.TB, of, rules string) string {
	t.Helper()
	dir := otherModel(t, of)
	path := filepath.Join(dir, "manifest.yaml")
	manifest, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, after, found := bytes.Cut(manifest, []byte("plausibility:\n"))
	if !found {
		t.Fatal("the manifest has no rules")
	}
	manifest = slices.Concat(before, []byte("plausibility:\n"+rules), after)
	if err := os.WriteFile(path, manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Seal(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// study draws a study of one and the same patient on a day.
func study(t testing.TB, seed uint64, day string, change func(*dicom.DataSet)) []byte {
	t.Helper()
	at, err := time.Parse(time.DateOnly, day)
	if err != nil {
		t.Fatal(err)
	}
	file, err := phantom.Chest(seed, phantom.Options{Rows: 128, Columns: 128, Time: at, Identity: phantom.Identity{ID: "P-77", Issuer: "H", Name: "Prior^Anna"}})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(file.DataSet)
	}
	return written(t, file)
}

func side(value string) func(*dicom.DataSet) {
	return func(d *dicom.DataSet) { d.PutString(dicom.Laterality, value) }
}

func TestAnAnswerThatContradictsAnEarlierStudyOfThePatientGoesToAPerson(t *testing.T) {
	config := testConfig(t)
	config.Model = withRules(t, config.Model, "  - {rule: agrees-with-prior, label: pneumonia, days: 30, flips: gone, jump: 0.5}\n")
	config.Review.Margin = 0
	now := 0.0
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, func(enclave.Request) (float64, error) { return now, nil })})
	contradicted := func(c *vigie.Case) bool {
		return c.Verdict != nil && slices.ContainsFunc(c.Verdict.Reasons, func(r vigie.Reason) bool { return r.Code == vigie.ReasonPrior })
	}
	done := []vigie.State{vigie.Released, vigie.InReview, vigie.Delivered}
	ask := func(probability float64, data []byte) *vigie.Case {
		t.Helper()
		now = probability
		return settled(t, g.Casebook, mustGive(t, g.Gateway, data).Case, done...)
	}

	first := ask(0.97, study(t, 1, "2026-03-01", side("L")))
	if first.State == vigie.InReview || contradicted(first) {
		t.Fatalf("the first study is %s: %+v", first.State, first.Verdict)
	}
	for _, c := range []struct {
		name        string
		probability float64
		data        []byte
		want        bool
	}{
		{"gone after two weeks", 0.02, study(t, 2, "2026-03-15", side("L")), true},
		{"gone on the other side", 0.02, study(t, 3, "2026-03-15", side("R")), false},
		{"the study before it, sent later", 0.02, study(t, 4, "2026-02-20", side("L")), false},
		{"still there", 0.97, study(t, 5, "2026-03-16", side("L")), true}, // 0.02 the day before: a jump
		{"still there again", 0.98, study(t, 6, "2026-03-17", side("L")), false},
		{"gone after half a year", 0.02, study(t, 7, "2026-09-20", side("L")), false},
	} {
		got := ask(c.probability, c.data)
		if contradicted(got) != c.want || (got.State == vigie.InReview) != c.want {
			t.Errorf("%s: %s, %+v", c.name, got.State, got.Verdict)
		}
		for _, r := range got.Verdict.Reasons {
			if r.Code == vigie.ReasonPrior && (r.Text.English == "" || r.Text.French == "" || strings.Contains(r.Detail, "0.")) {
				t.Errorf("%s: %+v", c.name, r)
			}
		}
	}

	// Another patient with the same image side has no prior.
	other := chest(t, 9, phantom.Options{Time: time.Date(2026, 3, 16, 0, 0, 0, 0, time.UTC)})
	if got := ask(0.02, other); contradicted(got) {
		t.Errorf("another patient: %+v", got.Verdict)
	}
	// What a person found counts for what the model said.
	corrected := ask(0.02, study(t, 10, "2026-10-01", side("L")))
	if contradicted(corrected) {
		t.Fatalf("%+v", corrected.Verdict)
	}
	last := ask(0.9, study(t, 11, "2026-10-05", side("L"))) // jump of 0.88
	if !contradicted(last) {
		t.Fatalf("%+v", last.Verdict)
	}
	if _, err := g.Decide(context.Background(), last.ID, vigie.HumanDecision{Action: ActionOverride, Actor: "dr.test", Labels: []string{"normal"}}); err != nil {
		t.Fatal(err)
	}
	if got := ask(0.02, study(t, 12, "2026-10-06", side("L"))); contradicted(got) {
		t.Errorf("the person had found nothing: %+v", got.Verdict)
	}
	// The list in clear tells the code and no number.
	cases, err := g.Find(context.Background(), Query{Limit: 50}, "dr.test")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		for _, r := range c.Verdict.Reasons {
			if strings.ContainsAny(r.Text.English, "0123456789") {
				t.Errorf("in clear: %q", r.Text.English)
			}
		}
	}
}

func TestAnErasedPatientHasNoPriors(t *testing.T) {
	config := testConfig(t)
	config.Model = withRules(t, config.Model, "  - {rule: agrees-with-prior, label: pneumonia, days: 30, flips: gone}\n")
	config.Review.Margin = 0
	now := 0.97
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, func(enclave.Request) (float64, error) { return now, nil })})
	first := settled(t, g.Casebook, mustGive(t, g.Gateway, study(t, 1, "2026-03-01", nil)).Case, vigie.Released, vigie.Delivered)
	if _, err := g.Erase(context.Background(), first.ID, "dpo.test"); err != nil {
		t.Fatal(err)
	}
	now = 0.02
	second := settled(t, g.Casebook, mustGive(t, g.Gateway, study(t, 2, "2026-03-15", nil)).Case, vigie.Released, vigie.Delivered, vigie.InReview)
	if second.State == vigie.InReview {
		t.Errorf("%+v", second.Verdict)
	}
}
