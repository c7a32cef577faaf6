package gateway

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

// relabelledModel is a package whose second label is another disease.
func relabelledModel(t *testing.T, of string) string {
	t.Helper()
	dir := otherModel(t, of)
	path := filepath.Join(dir, "manifest.yaml")
	manifest, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"name: pneumonia": "name: fracture", "target: pneumonia": "target: fracture",
		"[normal, pneumonia]": "[normal, fracture]", `"233604007"`: `"125605004"`, "meaning: Pneumonia": "meaning: Fracture"} {
		if !bytes.Contains(manifest, []byte(from)) {
			t.Fatalf("the manifest does not hold %s", from)
		}
		manifest = bytes.ReplaceAll(manifest, []byte(from), []byte(to))
	}
	if err := os.WriteFile(path, manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Seal(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAnOverrideIsReportedInTheLabelsItWasMadeWithWhateverModelRunsLater(t *testing.T) {
	for name, o := range map[string]phantom.Options{"with a finding": {}, "without one": {BurnedIn: true}} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t)
			peer := startPACS(t)
			config.Destinations = []DestinationConfig{peer.destination("pacs")}
			g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
			id := mustGive(t, g.Gateway, chest(t, 1, o)).Case
			settled(t, g.Casebook, id, vigie.InReview)
			if err := g.stop(); err != nil {
				t.Fatal(err)
			}
			book, err := OpenCasebook(context.Background(), config, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := book.Decide(context.Background(), id, vigie.HumanDecision{Action: ActionOverride, Labels: []string{"pneumonia"}, Actor: "dr.test"}); err != nil {
				t.Fatal(err)
			}
			if err := book.Close(); err != nil {
				t.Fatal(err)
			}

			config.Model = relabelledModel(t, config.Model)
			g = start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
			c := settled(t, g.Casebook, id, vigie.Delivered)
			times := peer.received()[ResultUID(c.ID, c.Model, RoleReport)]
			if len(times) != 1 {
				t.Fatalf("the report came %d times", len(times))
			}
			file, err := dicom.Parse(bytes.NewReader(times[0]), dicom.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			codes := map[string]bool{}
			for set := range dataSets(file.DataSet) {
				codes[set.String(dicom.CodeValue)] = true
			}
			const pneumonia, fracture, present = "233604007", "125605004", "52101004"
			if !codes[pneumonia] || !codes[present] || codes[fracture] {
				t.Errorf("pneumonia %v, present %v, fracture %v: want the label that the physician found, and no other model's", codes[pneumonia], codes[present], codes[fracture])
			}
		})
	}
}

func TestAReportIsHeldBackRatherThanLeaveOutWhatAPersonFound(t *testing.T) {
	found := &vigie.HumanDecision{Action: ActionOverride, Labels: []string{"pneumonia"}, Choices: []vigie.Label{{Name: "normal"}}}
	if err := checkChoices(&vigie.Case{Decision: found}); err == nil || !strings.Contains(err.Error(), "pneumonia") {
		t.Errorf("a label without a code: %v", err)
	}
	found.Choices = append(found.Choices, vigie.Label{Name: "pneumonia"})
	if err := checkChoices(&vigie.Case{Decision: found}); err != nil {
		t.Error(err)
	}
}

// dataSets yields a data set and every item below it.
func dataSets(d *dicom.DataSet) func(yield func(*dicom.DataSet) bool) {
	return func(yield func(*dicom.DataSet) bool) {
		if !yield(d) {
			return
		}
		for e := range d.All() {
			for _, item := range e.Items {
				for inner := range dataSets(item) {
					if !yield(inner) {
						return
					}
				}
			}
		}
	}
}
