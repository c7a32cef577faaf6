package gateway

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// realFiles is where Debian's python3-pydicom keeps its test files.
const realFiles = "/usr/lib/python3/dist-packages/pydicom/data/test_files"

func TestEveryRealFileIsAnalysedOrReferredWithAReason(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(realFiles, "*.dcm"))
	if err != nil || len(paths) == 0 {
		t.Skipf("REAL FILES NOT TESTED: %s is absent: install python3-pydicom", realFiles)
	}
	config := testConfig(t)
	enclave := newStandIn(t, config.Model, always(0.03))
	g := start(t, config, Options{Diagnoser: enclave})
	decisions := map[vigie.Decision]int{}
	names := map[string]bool{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		outcome, err := give(t, g.Gateway, data)
		if err != nil {
			t.Errorf("%s is not taken: %v", filepath.Base(path), err)
			continue
		}
		c := settled(t, g.Casebook, outcome.Case, vigie.Delivered, vigie.Released, vigie.InReview, vigie.Quarantined)
		decisions[c.Verdict.Decision]++
		if c.Verdict.Decision != vigie.Release && len(c.Verdict.Reasons) == 0 {
			t.Errorf("%s: %s without a reason", filepath.Base(path), c.Verdict.Decision)
		}
		for _, r := range c.Verdict.Reasons {
			if r.Code == vigie.ReasonInternal || r.Text.English == "" || r.Text.French == "" {
				t.Errorf("%s: reason %+v", filepath.Base(path), r)
			}
		}
		if file, _ := dicom.Parse(bytes.NewReader(data), dicom.Limits{}); file != nil && file.DataSet != nil {
			if name := file.DataSet.String(dicom.PatientName); len(name) > 6 {
				names[name] = true
			}
		}
	}
	for _, r := range enclave.requests() {
		for name := range names {
			if strings.Contains(string(r.DICOM), name) {
				t.Errorf("the enclave was shown the patient name of a real file")
			}
		}
	}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
	for name := range names {
		if strings.Contains(g.log.String(), name) {
			t.Errorf("the log holds a patient's name")
		}
	}
	mustVerifyClosed(t, config)
	t.Logf("%d files: %v, %d of them shown to the model", len(paths), decisions, len(enclave.requests()))
}

// mustVerifyClosed verifies the log of a site that is not running.
func mustVerifyClosed(t *testing.T, config *Config) {
	t.Helper()
	book, err := OpenCasebook(t.Context(), config, testLogger(t, new(lockedBuffer)))
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
	mustVerify(t, book)
}
