package model

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// withTechnique is the demo's manifest with statements about how images are made.
func withTechnique(t *testing.T, statements string) (*Manifest, error) {
	t.Helper()
	data, err := os.ReadFile("../models/chest-pneumonia-28/manifest.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(data), "  frames: 1\n", "  frames: 1\n  technique:\n"+statements, 1)
	if text == string(data) {
		t.Fatal("the manifest has no line frames: 1")
	}
	return ParseManifest([]byte(text))
}

const validated = `    - {attribute: tube-voltage, from: 50, to: 130, outside: review, unknown: accept}
    - {attribute: pixel-spacing, from: 0.1, to: 0.2, outside: block, unknown: review}
    - {attribute: rows, from: 500, to: 5000, outside: review, unknown: review}
    - {attribute: manufacturer, values: [Agfa, FUJIFILM Corporation], outside: review, unknown: accept}
`

func TestHowAnImageWasMadeIsHeldAgainstTheManifest(t *testing.T) {
	m, err := withTechnique(t, validated)
	if err != nil {
		t.Fatal(err)
	}
	made := func(change func(d *dicom.DataSet)) *dicom.DataSet {
		d := &dicom.DataSet{}
		d.PutString(dicom.KVP, "85")
		d.PutString(dicom.ImagerPixelSpacing, "0.143", "0.143")
		d.PutInt(dicom.Rows, 2140)
		d.PutString(dicom.Manufacturer, "fujifilm corporation")
		change(d)
		return d
	}
	for name, test := range map[string]struct {
		change  func(d *dicom.DataSet)
		reasons []string // details
		device  bool
	}{
		"as validated":       {func(*dicom.DataSet) {}, nil, false},
		"at the end":         {func(d *dicom.DataSet) { d.PutString(dicom.KVP, "130") }, nil, false},
		"too hard":           {func(d *dicom.DataSet) { d.PutString(dicom.KVP, "130.5") }, []string{detailOutside + "technique tube-voltage"}, false},
		"no number":          {func(d *dicom.DataSet) { d.PutString(dicom.KVP, "soft") }, nil, false},
		"voltage not stated": {func(d *dicom.DataSet) { d.Delete(dicom.KVP) }, nil, false},
		"one spacing off":    {func(d *dicom.DataSet) { d.PutString(dicom.ImagerPixelSpacing, "0.143", "0.3") }, []string{detailBlocked + detailOutside + "technique pixel-spacing"}, false},
		"spacing not stated": {func(d *dicom.DataSet) { d.Delete(dicom.ImagerPixelSpacing) }, []string{detailUnknown + "technique pixel-spacing"}, false},
		"a thumbnail":        {func(d *dicom.DataSet) { d.PutInt(dicom.Rows, 128) }, []string{detailOutside + "technique rows"}, false},
		"another maker":      {func(d *dicom.DataSet) { d.PutString(dicom.Manufacturer, "ACME") }, nil, true},
	} {
		d := made(test.change)
		results, reasons := m.Technique(d)
		var details []string
		for _, r := range reasons {
			details = append(details, r.Detail)
			if r.Code != vigie.ReasonGuard || r.Text.English == "" || r.Text.French == "" {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if !slices.Equal(details, test.reasons) || len(results) != 3 {
			t.Errorf("%s: %v, want %v; %d results", name, details, test.reasons, len(results))
		}
		for _, r := range results {
			if !(r.PValue > 0 && r.PValue <= 1) || r.Alarm != (r.Reason != nil) || r.Alarm != (r.PValue < 1) {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if found := m.CheckDevice(d); (len(found) > 0) != test.device {
			t.Errorf("%s: device %v", name, found)
		}
	}
	if blocked := func() []vigie.Reason {
		_, r := m.Technique(made(func(d *dicom.DataSet) { d.PutString(dicom.ImagerPixelSpacing, "1", "1") }))
		return r
	}(); !Blocking(blocked[0]) {
		t.Error("what the manifest blocks is not blocked")
	}
}

func TestStatementsThatMakeNoSenseAreRefusedByLine(t *testing.T) {
	for name, statement := range map[string]string{
		"unknown attribute": "    - {attribute: mood, from: 1, to: 2, outside: review, unknown: accept}\n",
		"reversed":          "    - {attribute: exposure, from: 3, to: 2, outside: review, unknown: accept}\n",
		"accept outside":    "    - {attribute: exposure, from: 1, to: 2, outside: accept, unknown: accept}\n",
		"no policy":         "    - {attribute: exposure, from: 1, to: 2, outside: review}\n",
		"values of number":  "    - {attribute: exposure, from: 1, to: 2, values: [a], outside: review, unknown: accept}\n",
		"no device":         "    - {attribute: device, outside: review, unknown: accept}\n",
		"twice":             "    - {attribute: rows, from: 1, to: 2, outside: review, unknown: accept}\n    - {attribute: rows, from: 1, to: 2, outside: review, unknown: accept}\n",
	} {
		if _, err := withTechnique(t, statement); err == nil || !strings.Contains(err.Error(), "line ") || !strings.Contains(err.Error(), "technique") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
