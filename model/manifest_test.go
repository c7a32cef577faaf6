package model

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

var naming = regexp.MustCompile(`line \d+: `)

func TestAManifestErrorNamesTheLineAndTheField(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"an unknown field":          {"  rows: 28\n", "  rows: 28\n  rowz: 3\n", "line L+1: unknown field"},
		"a repeated field":          {"  rows: 28\n", "  rows: 28\n  rows: 28\n", "line L+1: "},
		"a number for a word":       {"  layout: NCHW\n", "  layout: [1]\n", "line L: "},
		"a word for a number":       {"  rows: 28\n", "  rows: many\n", "line L: "},
		"rows out of range":         {"  rows: 28\n", "  rows: 0\n", "line L: input.rows: is 0, want 1 to 8192"},
		"a huge input":              {"  rows: 28\n", "  rows: 100000\n", "line L: input.rows"},
		"an unknown aspect":         {"centre-crop", "squeeze", `input.aspect: is "squeeze", want one of`},
		"an unknown policy":         {"unknown_view: review", "unknown_view: ignore", `accepts.unknown_view: is "ignore"`},
		"a missing field":           {"  target: pneumonia\n", "", "output.target: is \"\", which is no label"},
		"a target that is none":     {"  target: pneumonia\n", "  target: covid\n", `output.target: is "covid"`},
		"no French":                 {", meaning_fr: Pneumonie", "", "line L: output.labels[1].code.meaning_fr: is empty"},
		"an upside-down band":       {"{from: 0.3, to: 0.7}", "{from: 0.7, to: 0.3}", "output.borderline"},
		"a threshold of one":        {"threshold: 0.5", "threshold: 1.0", "output.labels[0].threshold: is 1"},
		"not a number":              {"threshold: 0.5", "threshold: .nan", "output.labels[0].threshold: is NaN"},
		"an unknown rule":           {"rule: exclusive", "rule: exclude", `"exclude" is no rule`},
		"a rule about no label":     {"labels: [normal, pneumonia]", "labels: [normal, tumour]", `plausibility[0].labels[1]: "tumour" is no label`},
		"an age range":              {"{from: 1, to: 5,", "{from: 5, to: 1,", "accepts.age: goes from 5 to 1"},
		"another schema":            {"schema: 1\n", "schema: 2\n", "schema: is 2, this version reads 1"},
		"a name with a slash":       {"name: chest-pneumonia-28", "name: ../chest", `line L: name: is "../chest"`},
		"an alias":                  {"  rows: 28\n  columns: 28\n", "  rows: &side 28\n  columns: *side\n", "anchors, aliases"},
		"a tag":                     {"  rows: 28\n", "  rows: !!int 28\n", "anchors, aliases, merge keys and tags"},
		"a second document":         {"schema: 1\n", "schema: 1\n---\nschema: 1\n", "one document"},
		"lower case in a term":      {"term: CHEST", "term: chest", `accepts.body_parts[0].term: is "chest"`},
		"a term that is twice":      {"synonyms: [THORAX,", "synonyms: [CHEST,", `"CHEST" is there twice`},
		"a mean for no channel":     {"  range: {low: 0", "  mean: [0.5, 0.5]\n  range: {low: 0", "input.mean: has 2 values for 1 channels"},
		"a standard deviation of 0": {"  range: {low: 0", "  std: [0]\n  range: {low: 0", "input.std[0]: is 0"},
	} {
		t.Run(name, func(t *testing.T) {
			text := demoManifest(t)
			if !strings.Contains(text, c.old) {
				t.Fatalf("the demo manifest has no %q", c.old)
			}
			before, _, _ := strings.Cut(text, c.old)
			line := strings.Count(before, "\n") + 1
			want := strings.NewReplacer("line L+1:", fmt.Sprintf("line %d:", line+1), "line L:", fmt.Sprintf("line %d:", line)).Replace(c.want)
			_, err := ParseManifest([]byte(strings.Replace(text, c.old, c.new, 1)))
			if !errors.Is(err, ErrManifest) {
				t.Fatalf("ParseManifest: %v", err)
			}
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if name != "a second document" && !naming.MatchString(err.Error()) {
				t.Errorf("no line is named: %v", err)
			}
		})
	}
}

func TestEveryProblemOfAManifestIsReportedAtOnce(t *testing.T) {
	text := strings.NewReplacer("  rows: 28", "  rows: 0", "  columns: 28", "  columns: 0", "centre-crop", "squeeze").Replace(demoManifest(t))
	_, err := ParseManifest([]byte(text))
	for _, want := range []string{"input.rows", "input.columns", "input.aspect"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestDeepOrLargeManifestsAreRefusedBeforeTheyAreParsed(t *testing.T) {
	for _, text := range []string{
		strings.Repeat("[", 60000), strings.Repeat("{a: ", 16000), strings.Repeat("- ", 30000), strings.Repeat("? ", 30000),
		"a: " + strings.Repeat("x", maxManifest), "",
	} {
		if _, err := ParseManifest([]byte(text)); !errors.Is(err, ErrManifest) {
			t.Errorf("%.10s…: %v", text, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	text := demoManifest(f)
	f.Add([]byte(text))
	f.Add([]byte("schema: 1\nname: a\n"))
	f.Add([]byte(withCertificate(f, "  when: borderline\n  borderline: {from: 0.2, to: 0.8}\n  patch: {size: 3, of: image, masks: 24, fill: 0.5}\n  smoothing: {sigma: 0.25, samples: 1000, alpha: 0.001}\n")))
	f.Add([]byte("- - - {a: [1, 2, *x]}\n&x y: !!int 3\n<<: *x\n"))
	f.Add([]byte("input: {mean: [.nan, .inf, -.inf, 1e400], rows: 0x7fffffffffffffff}\n"))
	f.Add([]byte("intended_use: |\n  a\n fr: >-\n\tb"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil {
			if !errors.Is(err, ErrManifest) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		if problems := m.problems(); len(problems) > 0 {
			t.Errorf("accepted with problems: %v", problems)
		}
	})
}
