package simulate

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

func TestWhatSitesFindTogetherIsWhatOnePlaceFinds(t *testing.T) {
	o := options(t)
	o.AtSites, o.Terms.Rounds = true, 3
	r := run(t, o)
	s := r.AtSites
	if s == nil || s.Examples != 120 || s.Sites != 5 || len(s.Lost) != 0 {
		t.Fatalf("%+v", s)
	}
	if off := math.Abs(s.AUC.Value - s.Exact.Value); off > s.AUCBins+1e-12 || s.Exact != r.AUC || s.AUCBins > 0.01 {
		t.Errorf("AUC %v within %v, exactly %v", s.AUC.Value, s.AUCBins, s.Exact)
	}
	if math.Abs(s.Accuracy-r.Accuracy.Value) > 1e-8 || math.Abs(s.Temperature.Temperature-s.Pooled) > 1e-4*s.Pooled {
		t.Errorf("accuracy %v, exactly %v; temperature %v, in one place %v", s.Accuracy, r.Accuracy.Value, s.Temperature.Temperature, s.Pooled)
	}
	if g := s.Guards; g == nil || g.Fitted+g.Calibrated != 120 || len(g.Parts) < 2 || g.Apart > 1e-5 || g.Otherwise > 0 {
		t.Errorf("guards: %+v", g)
	}
	o.AtSites = false
	if plain := run(t, o); plain.AUC != r.AUC || plain.AtSites != nil {
		t.Errorf("the questions have changed the model: %v, %v", r.AUC, plain.AUC)
	}
}

func TestPersonalPartsHelpSitesWhoseScannersDiffer(t *testing.T) {
	o := Personal{Options: options(t), Held: 0.4, Scanners: true}
	o.Train, o.Sites, o.Terms.Rounds, o.Terms.Personal = shapes(400, 1), 4, 5, []federate.Part{federate.NormPart}
	r, err := o.Run(t.Context())
	if err != nil {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if r.Judged != 4 || r.Own == 0 || r.Personal < 0.7 || r.Gain.Low > r.Gain.Value || math.Abs(r.Gain.Value-(r.Personal-r.Global)) > 1e-12 {
		t.Errorf("%+v", r)
	}
	examples := 0
	for _, s := range r.Sites {
		examples += s.Examples + s.Held
	}
	if examples != 400 {
		t.Errorf("%d examples are learnt from or held", examples)
	}
	o.Terms.Personal = []federate.Part{federate.HeadPart}
	other, err := o.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if other.Global != r.Global || other.Own == r.Own || other.Personal == r.Personal {
		t.Errorf("with another part: global %v and %v, personal %v and %v", r.Global, other.Global, r.Personal, other.Personal)
	}
	for what, change := range map[string]func(*Personal){
		"nothing personal": func(o *Personal) { o.Terms.Personal = nil },
		"nothing held":     func(o *Personal) { o.Held = 0 },
		"all held":         func(o *Personal) { o.Held = 1 },
		"malicious sites":  func(o *Personal) { o.Malicious, o.Attack = 1, SignFlip },
		"an unknown part":  func(o *Personal) { o.Terms.Personal = []federate.Part{"tail"} },
	} {
		o := o
		change(&o)
		if _, err := o.Run(t.Context()); err == nil {
			t.Errorf("%s: it ran", what)
		}
	}
	plain := o.Options
	if _, err := Run(t.Context(), plain); !errors.Is(err, ErrOptions) {
		t.Errorf("personal parts where a global model is judged: %v", err)
	}
}

// documented is the program in the documentation.
func documented(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/federation.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(page), "```python\n")
	text, _, end := strings.Cut(text, "```\n")
	if !found || !end {
		t.Fatal("docs/federation.md shows no program")
	}
	return text
}

func TestTheDocumentedProgramTrainsInPyTorchAsTheEngineDoes(t *testing.T) {
	const python = "/usr/bin/python3"
	dir := t.TempDir()
	script, network := filepath.Join(dir, "train.py"), filepath.Join(dir, "net.onnx")
	if err := os.WriteFile(script, []byte(documented(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(python, script, network).CombinedOutput(); err != nil {
		if _, missing := os.Stat(python); missing != nil || strings.Contains(string(out), "No module named") {
			t.Skipf("SKIPPED, nothing was checked: Debian's python3-torch is not installed (make setup-peers): %v %s", err, out)
		}
		t.Fatalf("%v: %s", err, out)
	}
	m, err := onnx.Load(network)
	if err != nil {
		t.Fatal(err)
	}
	o := options(t)
	small := shapes(60, 1)
	o.Train, o.Evaluation = enlarged(small), enlarged(shapes(40, 2))
	if o.Network, err = train.Import(m, train.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	// one step of all examples a round, without what the frameworks do differently:
	// the order of examples, and momentum in its two forms
	o.Sites, o.Terms.Rounds, o.Terms.Batch, o.Terms.Momentum, o.Terms.Decay, o.Terms.Augmentation = 3, 2, 64, 0, 0, train.Augmentation{}
	if testing.Short() {
		o.Terms.Rounds = 1 // each start of PyTorch takes seconds
	}
	ours := run(t, o)
	o.Program = python + " " + script
	theirs := run(t, o)
	if theirs.Program == nil || len(theirs.Program.Files) != 2 || theirs.Program.Files[1].Path != script {
		t.Errorf("the report names %+v", theirs.Program)
	}
	for i, w := range ours.Model.Graph.Initializers {
		a, errA := w.Floats()
		b, errB := theirs.Model.Graph.Initializers[i].Floats()
		if errA != nil || errB != nil || w.Type != onnx.Float {
			continue
		}
		for j := range a {
			if math.Abs(a[j]-b[j]) > 1e-5 {
				t.Fatalf("%s[%d] is %v by the engine and %v by PyTorch", w.Name, j, a[j], b[j])
			}
		}
	}
	if !slices.EqualFunc(rounds(ours), rounds(theirs), func(a, b float64) bool { return a > 0 && math.Abs(a-b) < 1e-4 }) {
		t.Errorf("losses %v by the engine, %v by PyTorch", rounds(ours), rounds(theirs))
	}
	if _, err := json.Marshal(theirs); err != nil {
		t.Error(err)
	}
}

func rounds(r *Report) []float64 {
	var out []float64
	for _, line := range r.Rounds {
		out = append(out, line.Loss)
	}
	return out
}

// enlarged is a set of images of 8×8 in the middle of 28×28.
func enlarged(s *train.Set) *train.Set {
	out := *s
	out.Rows, out.Columns = 28, 28
	out.Pixels = make([]uint8, s.Len()*28*28)
	for i := range s.Len() {
		for y := range 8 {
			copy(out.Pixels[i*784+(y+10)*28+10:][:8], s.Pixels[i*64+y*8:][:8])
		}
	}
	return &out
}
