package probe_test

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
)

// What the demo package says of its methods comes out again, on fewer images.
func TestASurveyOfTheDemoPackageTellsItsMethodsApart(t *testing.T) {
	m, err := probe.Open("../models/chest-pneumonia-28")
	if err != nil {
		t.Fatal(err)
	}
	picture := image.NewGray(image.Rect(0, 0, 64, 64))
	for y := range 64 {
		for x := range 64 {
			picture.SetGray(x, y, color.Gray{uint8(2*x + y)})
		}
	}
	var encoded bytes.Buffer
	if err := png.Encode(&encoded, picture); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ramp.png")
	if err := os.WriteFile(path, encoded.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	q := probe.Survey{Files: []string{path}, Phantoms: 3, Methods: []string{"grad-cam", "occlusion"}, Threads: 1}
	q.Seed = 300
	s, err := m.Survey(t.Context(), q)
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if s.Images != "1 file; 3 drawn chests of seeds 300 to 302" {
		t.Errorf("the images are called %q", s.Images)
	}
	cam, occlusion := s.Of("grad-cam"), s.Of("occlusion")
	if len(cam.Failures()) == 0 || len(occlusion.Failures()) != 0 || cam.Images != 4 || occlusion.Explained < 3 {
		t.Errorf("grad-cam %+v, occlusion %+v", cam, occlusion)
	}
	var table strings.Builder
	if err := probe.WriteSurvey(&table, s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"background mean, in the test blur; score log-odds", "NO: no-better", "of 4 "} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table does not say %q:\n%s", want, table.String())
		}
	}
	if err := probe.Explained(s); err != nil {
		t.Error(err)
	}
	if err := probe.Explained(&model.Survey{Methods: []model.Surveyed{*cam}}); !errors.Is(err, probe.ErrNoMethod) {
		t.Errorf("only methods that explain nothing: %v", err)
	}
}

func TestASurveyOfNothingSaysWhatIsMissing(t *testing.T) {
	m, err := probe.Open("../models/chest-pneumonia-28")
	if err != nil {
		t.Fatal(err)
	}
	for want, q := range map[string]probe.Survey{
		"name images: files, a data set": {},
		"no such method":                 {Phantoms: 1, Methods: []string{"gradcam"}},
		"ghost.png":                      {Files: []string{"ghost.png"}},
	} {
		if _, err := m.Survey(t.Context(), q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", q, err, want)
		}
	}
	bare, err := probe.Open("../models/chest-pneumonia-28/model.onnx")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bare.Survey(t.Context(), probe.Survey{Phantoms: 1}); !errors.Is(err, probe.ErrAsk) || !strings.Contains(err.Error(), "want a package") {
		t.Errorf("a bare graph: %v", err)
	}
}
