package enclave

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// certified is a package whose manifest also asks for certificates, without maps.
func certified(t testing.TB, pkg *model.Package, section string) *model.Package {
	t.Helper()
	return repackaged(t, pkg, "  method: none\n\ncertificate:\n"+section, nil)
}

// spotted is a chest package that answers "pneumonia" where any 3 by 3 pixels of
// its input are brighter than a level on average: one place decides.
func spotted(t testing.TB, level float32) *model.Package {
	t.Helper()
	pkg := brightness(t, 1, 0)
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	image := b.Input("image", onnx.Float, batch, onnx.Dim{Value: 1}, onnx.Dim{Value: 28}, onnx.Dim{Value: 28})
	kernel := b.Weight("kernel", []int64{1, 1, 3, 3}, slices.Repeat([]float32{1. / 9}, 9))
	most := b.Op("Flatten", []string{b.Op("GlobalMaxPool", []string{b.Op("Conv", []string{image, kernel})})})
	scaled := b.Op("MatMul", []string{most, b.Weight("weights", []int64{1, 2}, []float32{-200, 200})})
	b.Node(&onnx.Node{OpType: "Add", Inputs: []string{scaled, b.Weight("biases", []int64{2}, []float32{200 * level, -200 * level})}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, batch, onnx.Dim{Value: 2})
	graph, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := graph.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(pkg.Dir, model.GraphFile), encoded, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Seal(pkg.Dir); err != nil {
		t.Fatal(err)
	}
	opened, err := model.Open(pkg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

// marked puts a white square into the lower left of a phantom's stored pixels.
func marked(top, left, side int) func(*dicom.File) {
	return func(f *dicom.File) {
		pixels := f.DataSet.Get(dicom.PixelData)
		value := slices.Clone(pixels.Value)
		columns, _ := f.DataSet.Int(dicom.Columns)
		bits, _ := f.DataSet.Int(dicom.BitsStored)
		white := uint16(1<<bits - 1)
		for y := top; y < top+side; y++ {
			for x := left; x < left+side; x++ {
				binary.LittleEndian.PutUint16(value[2*(y*int(columns)+x):], white)
			}
		}
		f.DataSet.Put(&dicom.Element{Tag: dicom.PixelData, VR: pixels.VR, Value: value})
	}
}

// windowless takes the window out of a file.
func windowless(f *dicom.File) {
	f.DataSet.Delete(dicom.WindowCenter)
	f.DataSet.Delete(dicom.WindowWidth)
}

// generous options leave time enough on any machine.
func generous() Options {
	return Options{Threads: 1, Timeout: 20 * time.Minute, CertifyBudget: 9 * time.Minute, Logger: quiet()}
}

// proven reads a phantom and checks that what comes of it can be signed.
func proven(t testing.TB, p *pipeline, o phantom.Options, change func(*dicom.File)) vigie.Finding {
	t.Helper()
	asked := chest(t, o, change)
	f := p.analyse(context.Background(), asked.Patient, asked.DICOM)
	if _, err := encodeFinding(f); err != nil {
		t.Fatalf("%v: %+v", err, f)
	}
	for _, r := range f.Referrals {
		if r.Text.English == "" || r.Text.French == "" {
			t.Errorf("a reason says nothing: %+v", r)
		}
	}
	return f
}

// small phantoms are read fast. Of 256 by 288 pixels the centre 256 by 256 becomes
// 28 by 28.
var small = phantom.Options{Rows: 256, Columns: 288}

const squares3 = "  when: on\n  patch: {size: 3, masks: 4}\n"

func TestACertificateIsPartOfTheSignedFinding(t *testing.T) {
	pkg := certified(t, brightness(t, 40, -2), "  when: on\n  patch: {size: 3, masks: 4}\n  smoothing: {sigma: 0.25, samples: 200, alpha: 0.001}\n")
	w, err := New(pkg, attest.NewDevelopment(quiet()), generous())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close(context.Background())
	result, err := NewClient(w, developmentVerifier(t, pkg.Digest), ClientOptions{}).Diagnose(context.Background(), chest(t, small, nil))
	if err != nil {
		t.Fatal(err)
	}
	f := result.Finding
	c := f.Certificate
	if c == nil || c.Verdict != vigie.CertificateProven || c.Text.English == "" || c.Text.French == "" || len(f.Referrals) != 0 {
		t.Fatalf("%+v, %v", c, f.Referrals)
	}
	// 18 neighbouring pixels touch 3 of the 28 at most wherever they lie, and 19 may
	// touch 4.
	if p := c.Patch; p == nil || p.Side != 3 || p.Of != "input" || p.ImageSide != 18 || p.Rows != 3 || p.Masks != 16 || p.Agree != 16 || p.Pairs != 120 || p.PairsAgree != 120 || p.MaskRows != 9 || p.Fill != "mean" || p.Recovered != nil {
		t.Errorf("%+v", p)
	}
	if s := c.Smoothing; s == nil || s.Agree != 200 || s.Samples != 200 || !(s.Radius > 0.25*1.5 && s.Radius < 0.25*2) {
		t.Errorf("%+v", s)
	}
	if !slices.Equal(stageNames(f), []string{"decode", "guard-in", "infer", "certify", "guard-out"}) && !slices.Contains(stageNames(f), stageCertify) {
		t.Errorf("stages %v", stageNames(f))
	}
	other, err := New(certified(t, brightness(t, 40, -2), "  when: off\n"), attest.NewDevelopment(quiet()), generous())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	if w.Configuration() == other.Configuration() {
		t.Error("the configuration digest does not say what is certified")
	}
}

// An attacker's mark turns the answer of a model that one place can turn. The
// mask over it disagrees, wherever it is, and a person reads the case.
func TestAMarkThatTurnsTheAnswerIsNotReleased(t *testing.T) {
	p := opened(t, certified(t, spotted(t, 0.97), squares3), generous())
	clean := proven(t, p, small, nil)
	if len(clean.Predictions) != 2 || clean.Predictions[1].Positive || clean.Certificate.Patch.Agree != 16 || len(clean.Referrals) != 0 {
		t.Fatalf("the clean image: %+v, %+v, %v", clean.Predictions, clean.Certificate, clean.Referrals)
	}
	for _, at := range [][2]int{{25, 50}, {128, 135}, {3, 16}, {230, 250}, {111, 200}} {
		f := proven(t, p, small, marked(at[0], at[1], clean.Certificate.Patch.ImageSide))
		if len(f.Predictions) != 2 {
			t.Fatalf("at %v: %v", at, f.Referrals)
		}
		if f.Certificate.Patch.Verdict == vigie.CertificateProven && f.Predictions[1].Positive {
			t.Errorf("at %v: turned and certified", at)
		}
		if f.Predictions[1].Positive && !slices.Contains(codes(f), vigie.ReasonCertificate) {
			t.Errorf("at %v: turned and released: %+v", at, f.Certificate)
		}
	}
	// A larger mark, which reaches the level over 3 by 3 pixels of the input.
	turned := proven(t, p, small, marked(4*256/28, 16+7*256/28, 3*256/28+2))
	c := turned.Certificate
	if !turned.Predictions[1].Positive || c.Verdict != vigie.CertificateDisagreed || c.Patch.Agree == 16 || !slices.Equal(codes(turned), []vigie.ReasonCode{vigie.ReasonCertificate}) {
		t.Fatalf("a mark that turns the answer: %+v, %+v, %v", turned.Predictions, c, turned.Referrals)
	}
	if !slices.Equal(c.Patch.Recovered, []string{"normal"}) || !strings.Contains(c.Text.English, "Normal") || !strings.Contains(c.Text.French, "« Normal »") {
		t.Errorf("what is left without the mark: %v, %v", c.Patch.Recovered, c.Text)
	}
}

func TestAnswersThatAreNotCertifiedMayPassOrNot(t *testing.T) {
	// A mark the size of two places: any one mask leaves the other.
	two := func(f *dicom.File) {
		marked(25, 50, 38)(f)
		marked(175, 200, 38)(f)
	}
	for policy, want := range map[string][]vigie.ReasonCode{"accept": nil, "review": {vigie.ReasonCertificate}} {
		p := opened(t, certified(t, spotted(t, 0.97), "  when: on\n  patch: {size: 3, masks: 4, uncertified: "+policy+"}\n"), generous())
		f := proven(t, p, small, two)
		if c := f.Certificate; c == nil || c.Verdict != vigie.CertificateAgreed || c.Patch.Pairs == 0 || c.Patch.PairsAgree == c.Patch.Pairs || !slices.Equal(codes(f), want) {
			t.Errorf("%s: %+v, %+v, %v", policy, c, c.Patch, codes(f))
		}
	}
	p := opened(t, certified(t, spotted(t, 0.97), "  when: on\n  patch: {size: 3, masks: 4, rounds: 1}\n"), generous())
	if c := proven(t, p, small, nil).Certificate; c.Verdict != vigie.CertificateAgreed || c.Patch.Pairs != 0 {
		t.Errorf("one round: %+v", c)
	}
}

func TestOnlyBorderlineAnswersAreCertifiedWhereThatIsAskedFor(t *testing.T) {
	pkg := certified(t, brightness(t, 40, -2), "  when: borderline\n  borderline: {from: 0.3, to: 0.7}\n  patch: {size: 3, masks: 4}\n")
	f := proven(t, opened(t, pkg, generous()), small, nil)
	if c := f.Certificate; c == nil || c.Verdict != vigie.CertificateNone || c.Patch != nil || c.Text.French == "" || len(f.Referrals) != 0 {
		t.Errorf("%+v, %v", c, f.Referrals)
	}
	pkg = certified(t, brightness(t, 40, -2), "  when: borderline\n  borderline: {from: 0.3, to: 1}\n  patch: {size: 3, masks: 4}\n")
	if c := proven(t, opened(t, pkg, generous()), small, nil).Certificate; c == nil || c.Verdict != vigie.CertificateProven {
		t.Errorf("%+v", c)
	}
	pkg = certified(t, brightness(t, 40, -2), "  when: off\n  patch: {size: 3, masks: 4}\n")
	if c := proven(t, opened(t, pkg, generous()), small, nil).Certificate; c != nil {
		t.Errorf("off: %+v", c)
	}
}

// The frame's own range scales a file without a window: a mark changes every
// pixel, and no mask hides that.
func TestAnImageWithoutAWindowIsNotCertifiedAgainstSquares(t *testing.T) {
	p := opened(t, certified(t, brightness(t, 40, -2), squares3), generous())
	f := proven(t, p, small, windowless)
	if c := f.Certificate; c == nil || c.Verdict != vigie.CertificateFailed || c.Patch != nil || !slices.Equal(codes(f), []vigie.ReasonCode{vigie.ReasonCertificate}) || f.Referrals[0].Detail != "no window" {
		t.Errorf("%+v, %v", c, f.Referrals)
	}
	// Noise is over the model's input: it does not matter there.
	p = opened(t, certified(t, brightness(t, 40, -2), "  when: on\n  smoothing: {sigma: 0.25, samples: 100, alpha: 0.01}\n"), generous())
	if f := proven(t, p, small, windowless); f.Certificate.Verdict != vigie.CertificateProven || len(f.Referrals) != 0 {
		t.Errorf("%+v, %v", f.Certificate, f.Referrals)
	}
}

func TestAnAnswerThatNoiseTurnsGoesToAPerson(t *testing.T) {
	// The 3 by 3 places of noise that are brightest are brighter than the level.
	p := opened(t, certified(t, spotted(t, 0.97), "  when: on\n  smoothing: {sigma: 1, samples: 100, alpha: 0.01}\n"), generous())
	f := proven(t, p, small, nil)
	if c := f.Certificate; c.Verdict != vigie.CertificateDisagreed || c.Smoothing.Agree != 0 || c.Smoothing.Radius != 0 || !slices.Equal(codes(f), []vigie.ReasonCode{vigie.ReasonCertificate}) {
		t.Errorf("%+v, %+v, %v", c, c.Smoothing, f.Referrals)
	}
}

// faulty stands for proofs that go wrong.
type faulty struct {
	squares func(ctx context.Context) (*certificate.Squares, error)
	smooth  func(ctx context.Context) (*certificate.Smoothed, error)
}

func (f faulty) Squares(ctx context.Context, _ engine.Tensor, _ certificate.Answer, _ certificate.Size, _ certificate.Region) (*certificate.Squares, error) {
	return f.squares(ctx)
}
func (f faulty) Smooth(ctx context.Context, _ engine.Tensor, _ certificate.Seed) (*certificate.Smoothed, error) {
	return f.smooth(ctx)
}
func (f faulty) Close() error { return nil }

// replaced puts other proofs into a pipeline until the function that it returns
// is called. The prover is another: one whose proof does not return keeps it.
func replaced(p *pipeline, proofs certifying, budget time.Duration) func() {
	own, other := p.prover, *p.prover
	other.proofs, other.budget = proofs, budget
	p.prover = &other
	return func() { p.prover = own }
}

func TestACertificateThatFailsSendsTheCaseToAPersonWithItsAnswer(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	for name, c := range map[string]struct {
		budget  time.Duration
		squares func(ctx context.Context) (*certificate.Squares, error)
		detail  string
	}{
		"an error":           {time.Hour, func(context.Context) (*certificate.Squares, error) { return nil, errors.New("secret of the patient") }, "failed"},
		"a panic":            {time.Hour, func(context.Context) (*certificate.Squares, error) { panic("secret of the patient") }, "failed"},
		"another answer":     {time.Hour, func(context.Context) (*certificate.Squares, error) { return nil, certificate.ErrOther }, "failed"},
		"no time":            {time.Millisecond, func(ctx context.Context) (*certificate.Squares, error) { <-ctx.Done(); return nil, ctx.Err() }, "out of time"},
		"it does not return": {time.Millisecond, func(context.Context) (*certificate.Squares, error) { <-release; return nil, errors.New("late") }, "out of time"},
	} {
		t.Run(name, func(t *testing.T) {
			p := opened(t, certified(t, brightness(t, 40, -2), squares3), generous())
			defer replaced(p, faulty{squares: c.squares}, c.budget)()
			f := proven(t, p, small, nil)
			if len(f.Predictions) != 2 || f.Certificate == nil || f.Certificate.Verdict != vigie.CertificateFailed || !slices.Equal(codes(f), []vigie.ReasonCode{vigie.ReasonCertificate}) || f.Referrals[0].Detail != c.detail {
				t.Errorf("%+v, %+v, %v", f.Predictions, f.Certificate, f.Referrals)
			}
			payload, err := encodeFinding(f)
			if err != nil || bytes.Contains(payload, []byte("secret")) {
				t.Errorf("the finding repeats what failed (%v)", err)
			}
		})
	}
	// What was proven before the time was over is kept, and not enough.
	p := opened(t, certified(t, brightness(t, 40, -2), squares3+"  smoothing: {sigma: 0.25, samples: 100, alpha: 0.01}\n"), generous())
	defer replaced(p, faulty{squares: func(context.Context) (*certificate.Squares, error) {
		cover, err := certificate.Covering(certificate.Whole(28, 28), certificate.Size{Rows: 3, Columns: 3}, 4)
		return &certificate.Squares{Cover: cover, Answer: "01", Covered: make([]certificate.Answer, 16), Agree: 16, Pairs: 120, PairsAgree: 120, Certified: true}, err
	}, smooth: func(context.Context) (*certificate.Smoothed, error) { return nil, errors.New("no") }}, time.Hour)()
	if f := proven(t, p, small, nil); f.Certificate.Verdict != vigie.CertificateFailed || f.Certificate.Patch == nil || f.Certificate.Patch.Verdict != vigie.CertificateProven || !slices.Contains(codes(f), vigie.ReasonCertificate) {
		t.Errorf("%+v, %v", f.Certificate, f.Referrals)
	}
}

// What is no image, or no answer, is not certified and not released either.
func TestWhatIsNoImageHasNoCertificate(t *testing.T) {
	p := opened(t, certified(t, brightness(t, 40, -2), squares3), generous())
	for _, value := range []byte{0, 7, 255} {
		f := proven(t, p, small, func(f *dicom.File) {
			pixels := f.DataSet.Get(dicom.PixelData)
			f.DataSet.Put(&dicom.Element{Tag: dicom.PixelData, VR: pixels.VR, Value: bytes.Repeat([]byte{value}, len(pixels.Value))})
		})
		if f.Certificate != nil || len(f.Predictions) != 0 || len(f.Referrals) == 0 {
			t.Errorf("all bytes %d: %+v, %v", value, f.Certificate, f.Referrals)
		}
	}
	overflows := opened(t, certified(t, brightness(t, 3e38, 3e38), squares3), generous())
	if f := proven(t, overflows, small, nil); f.Certificate != nil || len(f.Predictions) != 0 || !slices.Contains(codes(f), vigie.ReasonImplausible) {
		t.Errorf("a model that overflows: %+v, %v", f.Certificate, codes(f))
	}
	nan := slices.Repeat([]float32{0.5}, 784)
	nan[5] = float32(nanValue())
	finding := &vigie.Finding{}
	p.prover.certify(context.Background(), engine.Float32([]int64{1, 1, 28, 28}, nan), &dicom.Luminance{Rows: 28, Columns: 28}, []vigie.Prediction{{Label: "normal"}, {Label: "pneumonia", Positive: true}}, finding)
	if finding.Certificate.Verdict != vigie.CertificateFailed || len(finding.Referrals) != 1 {
		t.Errorf("a value that is no number: %+v, %v", finding.Certificate, finding.Referrals)
	}
}

func nanValue() float64 { zero := 0.0; return zero / zero }

// The answer of a model server is certified by the package's own graph, here; an
// answer that is another is not certified.
func TestTheAnswerOfAModelServerIsCertifiedHere(t *testing.T) {
	pkg := certified(t, brightness(t, 40, -2), squares3)
	s, server := serveModel(t, pkg)
	o := generous()
	o.ModelServer = ModelServer{URL: server.URL}
	p := opened(t, pkg, o)
	before := s.runs.Load()
	f := proven(t, p, small, nil)
	if f.Certificate == nil || f.Certificate.Verdict != vigie.CertificateProven || s.runs.Load() != before+1 {
		t.Errorf("%+v after %d runs of the server", f.Certificate, s.runs.Load()-before)
	}
	s.add.Store(1 << 62) // the server now says of both labels that they are as likely
	f = proven(t, p, small, nil)
	if len(f.Predictions) != 2 || (f.Certificate == nil || f.Certificate.Verdict != vigie.CertificateFailed || !slices.Contains(codes(f), vigie.ReasonCertificate)) {
		t.Errorf("an answer that is not this package's: %+v, %+v, %v", f.Predictions, f.Certificate, codes(f))
	}
}

func TestABudgetThatDoesNotSufficeIsSaidAtTheStart(t *testing.T) {
	var log bytes.Buffer
	o := generous()
	o.CertifyBudget, o.Logger = 1, slog.New(slog.NewTextHandler(&log, nil))
	opened(t, certified(t, brightness(t, 40, -2), squares3), o)
	if !strings.Contains(log.String(), "does not fit into the time") {
		t.Errorf("the log says: %s", log.String())
	}
	if _, err := (Options{Timeout: time.Second, CertifyBudget: time.Second}).withDefaults(); err == nil {
		t.Error("a certificate may take all the time of a case")
	}
	if _, err := (Options{CertifyBudget: -1}).withDefaults(); err == nil {
		t.Error("a negative budget is taken")
	}
}

// Whoever signs a certificate that says more than it counted is refused.
func TestACertificateThatContradictsItselfIsNotSigned(t *testing.T) {
	good := func() vigie.Finding {
		f := positive()
		f.Certificate = &vigie.Certificate{Verdict: vigie.CertificateProven, Text: vigie.Text{English: "a", French: "b"},
			Patch:     &vigie.PatchCertificate{Verdict: vigie.CertificateProven, Side: 3, Of: "input", Masks: 4, Agree: 4, Pairs: 6, PairsAgree: 6},
			Smoothing: &vigie.SmoothingCertificate{Verdict: vigie.CertificateProven, Sigma: 0.25, Samples: 100, Agree: 99, Alpha: 0.001, Radius: 0.4}}
		return f
	}
	if _, err := encodeFinding(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*vigie.Finding){
		"a mask that disagrees":          func(f *vigie.Finding) { f.Certificate.Patch.Agree = 3 },
		"a pair that disagrees":          func(f *vigie.Finding) { f.Certificate.Patch.PairsAgree = 5 },
		"pairs that were not asked":      func(f *vigie.Finding) { f.Certificate.Patch.Pairs, f.Certificate.Patch.PairsAgree = 5, 5 },
		"one mask":                       func(f *vigie.Finding) { p := f.Certificate.Patch; p.Masks, p.Agree, p.Pairs, p.PairsAgree = 1, 1, 0, 0 },
		"more than there are":            func(f *vigie.Finding) { f.Certificate.Patch.Agree = 5 },
		"no side":                        func(f *vigie.Finding) { f.Certificate.Patch.Side = 0 },
		"a part that is worse":           func(f *vigie.Finding) { f.Certificate.Patch.Verdict = vigie.CertificateAgreed },
		"a part that failed":             func(f *vigie.Finding) { f.Certificate.Patch.Verdict = vigie.CertificateFailed },
		"a radius without a proof":       func(f *vigie.Finding) { f.Certificate.Smoothing.Verdict = vigie.CertificateDisagreed },
		"a radius of a minority":         func(f *vigie.Finding) { f.Certificate.Smoothing.Agree = 50 },
		"a radius longer than the noise": func(f *vigie.Finding) { f.Certificate.Smoothing.Radius = 4 },
		"no alpha":                       func(f *vigie.Finding) { f.Certificate.Smoothing.Alpha = 0 },
		"no part":                        func(f *vigie.Finding) { f.Certificate.Patch, f.Certificate.Smoothing = nil, nil },
		"no French":                      func(f *vigie.Finding) { f.Certificate.Text.French = "" },
		"an unknown verdict":             func(f *vigie.Finding) { f.Certificate.Verdict = "certain" },
		"nobody is asked":                func(f *vigie.Finding) { f.Certificate.Verdict = vigie.CertificateFailed },
	} {
		f := good()
		spoil(&f)
		if _, err := encodeFinding(f); err == nil {
			t.Errorf("%s is signed: %+v", name, f.Certificate)
		}
	}
}
