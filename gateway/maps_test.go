package gateway

import (
	"bytes"
	"context"
	"image/png"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// tested is a map with the verdict on it, and what it was measured by.
func tested(verdict vigie.MapVerdict) *vigie.Explanation {
	insertion, deletion, mean, p, similarity, explained := 0.75, 0.25, 0.125, 0.025, -0.0625, 23
	e := &vigie.Explanation{
		Method: "occlusion", Target: "pneumonia", Rows: 2, Columns: 2, Map: []uint8{0, 80, 160, 255}, Verdict: verdict,
		Text:  vigie.Text{English: "What the tests found.", French: "Ce que les tests ont trouvé."},
		Tests: &vigie.MapTests{Background: "blur", Insertion: &insertion, Deletion: &deletion, RandomMean: &mean, RandomMaps: 39, P: &p, Similarity: &similarity, SimilarityError: 0.03125, ModelImages: 24, ModelExplained: &explained},
	}
	switch verdict {
	case vigie.MapFailed:
		p = 0.5
		e.Failures = []string{"no-better"}
	case vigie.MapNone:
		*e = vigie.Explanation{Target: "pneumonia", Verdict: verdict, Rejected: []string{"grad-cam"},
			Text: vigie.Text{English: "grad-cam does not explain this model.", French: "grad-cam n’explique pas ce modèle."}}
	}
	return e
}

// spokenIn are the texts of an SR, in their order.
func spokenIn(d *dicom.DataSet) (out []string) {
	if text := d.String(dicom.TextValue); text != "" {
		out = append(out, text)
	}
	for _, item := range d.Items(dicom.ContentSequence) {
		out = append(out, spokenIn(item)...)
	}
	return out
}

// Whatever a reader looks at, the map is nowhere without its label in both
// languages: picture, attributes of the picture, report, case, log.
func TestAMapIsDeliveredWithItsLabelAndNeverWithout(t *testing.T) {
	const failed, failedFR = "This map did not pass its tests: do not rely on it.", "Cette carte n’a pas passé ses tests : ne vous y fiez pas."
	const untested, untestedFR = "This map was not tested: do not rely on it.", "Cette carte n’a pas été testée : ne vous y fiez pas."
	for name, c := range map[string]struct {
		maps                        *vigie.Explanation
		label, french, series, told string
		decision                    string
		bar                         bool
	}{
		"passed": {tested(vigie.MapPassed), "This map passed its tests. What the tests found.", "Cette carte a passé ses tests. Ce que les tests ont trouvé.", "AI overlay stand-in",
			"occlusion passed, p = 0.025 against 39 random maps", "map passed occlusion", false},
		"failed": {tested(vigie.MapFailed), failed + " What the tests found.", failedFR + " Ce que les tests ont trouvé.", "AI overlay, map NOT RELIABLE, stand-in",
			"occlusion failed, p = 0.500 against 39 random maps", "map failed occlusion", true},
		"untested":                      {tested(vigie.MapUntested), untested, untestedFR, "AI overlay, map NOT RELIABLE, stand-in", "occlusion untested", "map untested occlusion", true},
		"of an enclave that tests none": {nil, untested, untestedFR, "AI overlay, map NOT RELIABLE, stand-in", "grad-cam untested", "map untested grad-cam", true},
		"none":                          {tested(vigie.MapNone), "grad-cam does not explain this model.", "grad-cam n’explique pas ce modèle.", "AI result, no map, stand-in", "none", "map none", false},
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t)
			peer := startPACS(t)
			config.Destinations = []DestinationConfig{peer.destination("pacs")}
			stand := newStandIn(t, config.Model, always(0.97))
			stand.maps = c.maps
			g := start(t, config, Options{Diagnoser: stand})
			known := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case, vigie.Delivered)
			received := peer.received()
			object := func(role string) *dicom.DataSet {
				times := received[ResultUID(known.ID, known.Model, role)]
				if len(times) != 1 {
					t.Fatalf("the %s arrived %d times", role, len(times))
				}
				file, err := dicom.Parse(bytes.NewReader(times[0]), dicom.Limits{})
				if err != nil {
					t.Fatal(err)
				}
				return file.DataSet
			}
			said := spokenIn(object(RoleReport))
			for _, want := range []string{c.label, c.french} {
				if !slices.ContainsFunc(said, func(text string) bool { return strings.Contains(text, want) }) {
					t.Errorf("the report does not say %q: %q", want, said)
				}
			}
			capture := object(RoleOverlay)
			if got := capture.String(dicom.SeriesDescription); got != c.series {
				t.Errorf("the series is described as %q, want %q", got, c.series)
			}
			if shown := name != "none"; shown {
				if got := capture.String(dicom.DerivationDescription); !strings.Contains(got, c.label) {
					t.Errorf("the derivation is described as %q", got)
				}
				label := known.Finding.Explanation.Label()
				if got := capture.String(dicom.ImageComments); !strings.Contains(got, label.English) || !strings.Contains(got, label.French) {
					t.Errorf("the picture's comment is %q", got)
				}
			}
			data, err := g.Overlay(context.Background(), known.ID, "a test")
			if err != nil {
				t.Fatal(err)
			}
			picture, err := png.Decode(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if r, green, b, _ := picture.At(2, 2).RGBA(); (r>>8 > 240 && green>>8 > 150 && b>>8 < 120) != c.bar {
				t.Errorf("the corner of the picture is %d %d %d, a bar over it: %v", r>>8, green>>8, b>>8, c.bar)
			}
			told := Describe(known)
			for _, want := range []string{c.told, known.Finding.Explanation.Label().English, known.Finding.Explanation.Label().French} {
				if !strings.Contains(told, want) {
					t.Errorf("the case does not say %q:\n%s", want, told)
				}
			}
			diagnosed := recordsOf(t, g.Casebook, audit.KindDiagnosed)
			if len(diagnosed) != 1 || diagnosed[0].Decision != c.decision {
				t.Errorf("the log says %+v, want %q", diagnosed, c.decision)
			}
		})
	}
}

func TestAScoreOfAMapIsShownToPeopleAndNotInTheLog(t *testing.T) {
	f := &vigie.Finding{ModelName: "m", Explanation: tested(vigie.MapPassed)}
	told := Describe(&vigie.Case{Finding: f})
	for _, want := range []string{"insertion 0.750, deletion 0.250, difference +0.500; of random maps +0.125 (compared with: blur)",
		"rank correlation with maps of randomised weights -0.06 ± 0.03 over 24 images", "better than random maps on 23 of 24 images"} {
		if !strings.Contains(told, want) {
			t.Errorf("the case does not say %q:\n%s", want, told)
		}
	}
	if decision := mapDecision(f); strings.ContainsAny(decision, "0123456789") {
		t.Errorf("the log says %q", decision)
	}
	if decision := mapDecision(&vigie.Finding{}); decision != "" {
		t.Errorf("a package without maps: %q", decision)
	}
	f.Explanation = tested(vigie.MapNone)
	if told := Describe(&vigie.Case{Finding: f}); !strings.Contains(told, "passed over, as they explain nothing of this model: grad-cam") {
		t.Errorf("methods that were passed over are not named:\n%s", told)
	}
}
