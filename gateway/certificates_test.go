package gateway

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

// provenBy is a certificate with a verdict, and the counts that go with it.
func provenBy(verdict vigie.CertificateVerdict) *vigie.Certificate {
	c := &vigie.Certificate{Verdict: verdict, Text: vigie.Text{English: "What is proven.", French: "Ce qui est prouvé."},
		Patch:     &vigie.PatchCertificate{Verdict: verdict, Side: 3, Of: "input", ImageSide: 73, Rows: 3, Columns: 3, MaskRows: 7, MaskColumns: 7, Fill: "mean", Masks: 36, Agree: 36, Pairs: 630, PairsAgree: 630},
		Smoothing: &vigie.SmoothingCertificate{Verdict: vigie.CertificateProven, Sigma: 0.25, Samples: 1000, Agree: 990, Alpha: 0.001, Radius: 0.512}}
	switch verdict {
	case vigie.CertificateDisagreed:
		c.Patch.Agree, c.Patch.Pairs, c.Patch.PairsAgree = 30, 0, 0
	case vigie.CertificateFailed, vigie.CertificateNone:
		c.Patch, c.Smoothing = nil, nil
	}
	return c
}

// What is proven reaches every reader, and what is not proven a person, also
// where the enclave gives no reason.
func TestACertificateIsReportedAndADisagreementIsReviewed(t *testing.T) {
	for verdict, want := range map[vigie.CertificateVerdict]struct {
		state    vigie.State
		decision string
		said     bool
	}{
		vigie.CertificateProven:    {vigie.Delivered, "map untested grad-cam, certificate proven patch proven 3 input smoothing proven radius 0.512 alpha 0.001", true},
		vigie.CertificateNone:      {vigie.Delivered, "map untested grad-cam, certificate none", false},
		vigie.CertificateDisagreed: {vigie.InReview, "map untested grad-cam, certificate disagreed patch disagreed 3 input smoothing proven radius 0.512 alpha 0.001", true},
		vigie.CertificateFailed:    {vigie.InReview, "map untested grad-cam, certificate failed", true},
		"unheard of":               {vigie.InReview, "map untested grad-cam, certificate unheard of patch unheard of 3 input smoothing proven radius 0.512 alpha 0.001", true},
	} {
		t.Run(string(verdict), func(t *testing.T) {
			config := testConfig(t)
			peer := startPACS(t)
			config.Destinations = []DestinationConfig{peer.destination("pacs")}
			stand := newStandIn(t, config.Model, always(0.97))
			stand.proof = provenBy(verdict)
			g := start(t, config, Options{Diagnoser: stand})
			known := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case, want.state)
			if got := recordsOf(t, g.Casebook, audit.KindDiagnosed); len(got) != 1 || got[0].Decision != want.decision {
				t.Errorf("the log says %+v, want %q", got, want.decision)
			}
			told := Describe(known)
			for _, text := range []string{"certificate " + string(verdict), stand.proof.Text.English, stand.proof.Text.French} {
				if !strings.Contains(told, text) {
					t.Errorf("the case does not say %q:\n%s", text, told)
				}
			}
			if want.state == vigie.InReview {
				if !slices.ContainsFunc(known.Verdict.Reasons, func(r vigie.Reason) bool { return r.Code == vigie.ReasonCertificate }) {
					t.Errorf("reviewed for %v", known.Verdict.Reasons)
				}
				return
			}
			report := peer.received()[ResultUID(known.ID, known.Model, RoleReport)]
			if len(report) != 1 {
				t.Fatalf("the report arrived %d times", len(report))
			}
			file, err := dicom.Parse(bytes.NewReader(report[0]), dicom.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			said := strings.Join(spokenIn(file.DataSet), "\n")
			for _, text := range []string{"Certificate: What is proven.", "Certificat : Ce qui est prouvé."} {
				if strings.Contains(said, text) != want.said {
					t.Errorf("the report says %q: %v, want %v", text, !want.said, want.said)
				}
			}
		})
	}
}

// A package that asks for certificates, and an enclave that knows none.
func TestACaseWithoutTheCertificateThatItsModelAsksForGoesToAPerson(t *testing.T) {
	config := testConfig(t)
	folder := filepath.Join(t.TempDir(), "package")
	if err := os.CopyFS(folder, os.DirFS(config.Model)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, model.ManifestFile)
	manifest, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	manifest = append(manifest, "\ncertificate:\n  when: on\n  patch: {size: 3, masks: 3}\n"...)
	if err := os.WriteFile(path, manifest, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Seal(folder); err != nil {
		t.Fatal(err)
	}
	config.Model = folder
	stand := newStandIn(t, config.Model, always(0.97))
	g := start(t, config, Options{Diagnoser: stand})
	known := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case, vigie.InReview)
	if got := known.Verdict.Reasons; len(got) != 1 || got[0].Code != vigie.ReasonCertificate {
		t.Errorf("reviewed for %v", got)
	}
}

func TestTheCountsOfACertificateAreShownToPeople(t *testing.T) {
	told := Describe(&vigie.Case{Finding: &vigie.Finding{Certificate: provenBy(vigie.CertificateProven)}})
	for _, want := range []string{"squares of 3 pixels of the input (up to 73 of this image): proven, 36 of 36 masks of 7 by 7 (mean) agree, 630 of 630 pairs",
		"noise of 0.25: proven, 990 of 1000 copies agree, L2 radius 0.512, alpha 0.001"} {
		if !strings.Contains(told, want) {
			t.Errorf("the case does not say %q:\n%s", want, told)
		}
	}
	if told := Describe(&vigie.Case{Finding: &vigie.Finding{}}); strings.Contains(told, "certificate") {
		t.Errorf("a case without one:\n%s", told)
	}
}
