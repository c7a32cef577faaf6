package enclave

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/deidentify"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// brightness makes a package with testdata/manifest.yaml whose logits are
// ∓(gain·mean brightness + bias) for normal and pneumonia.
func brightness(t testing.TB, gain, bias float32) *model.Package {
	t.Helper()
	if err := engine.Ready(); errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("the engine cannot run: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	image := b.Input("image", onnx.Float, batch, onnx.Dim{Value: 1}, onnx.Dim{Value: 28}, onnx.Dim{Value: 28})
	// One channel is the image and counts; the others are edges, which do not.
	// With random weights they do, so that the maps change with the weights.
	kernel := b.Weight("kernel", []int64{4, 1, 3, 3}, []float32{
		0, 0, 0, 0, 1, 0, 0, 0, 0,
		-1, 0, 1, -2, 0, 2, -1, 0, 1,
		-1, -2, -1, 0, 0, 0, 1, 2, 1,
		0, 1, 0, 1, -4, 1, 0, 1, 0})
	features := b.Node(&onnx.Node{OpType: "Conv", Inputs: []string{image, kernel}, Outputs: []string{"features"},
		Attributes: []onnx.Attribute{onnx.IntsAttribute("pads", 1, 1, 1, 1)}}, 1)[0]
	mean := b.Op("Flatten", []string{b.Op("GlobalAveragePool", []string{b.Op("Relu", []string{features})})}, onnx.IntAttribute("axis", 1))
	weights := b.Weight("weights", []int64{4, 2}, []float32{-gain, gain, 0, 0, 0, 0, 0, 0})
	biases := b.Weight("biases", []int64{2}, []float32{-bias, bias})
	b.Node(&onnx.Node{OpType: "Add", Inputs: []string{b.Op("MatMul", []string{mean, weights}), biases}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, batch, onnx.Dim{Value: 2})
	graph, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := graph.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := os.ReadFile("testdata/manifest.yaml")
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, content := range map[string][]byte{model.ManifestFile: manifest, model.GraphFile: encoded, model.CardFile: []byte("# Card\n"),
		model.CalibrationFile: []byte(`{"method": "temperature", "temperature": 1}`)} {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := model.Seal(folder); err != nil {
		t.Fatal(err)
	}
	pkg, err := model.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	return pkg
}

func modelWorker(t testing.TB, pkg *model.Package) *Worker {
	t.Helper()
	w, err := New(pkg, attest.NewDevelopment(quiet()), Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// request de-identifies a phantom as a gateway does; change may spoil the copy.
func request(t testing.TB, file *dicom.File, err error, change func(*dicom.File)) Request {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	profile, err := deidentify.New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	copied, err := profile.Apply(file)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(copied.File)
	}
	var encoded bytes.Buffer
	if err := copied.File.Write(&encoded); err != nil {
		t.Fatal(err)
	}
	return Request{Case: "abcdefghijklmnopqrstuvwxyz", Patient: copied.Patient, DICOM: encoded.Bytes()}
}

func chest(t testing.TB, o phantom.Options, change func(*dicom.File)) Request {
	t.Helper()
	file, err := phantom.Chest(1, o)
	return request(t, file, err, change)
}

func stageNames(f vigie.Finding) (names []string) {
	for _, s := range f.Stages {
		names = append(names, s.Name)
	}
	return names
}

func codes(f vigie.Finding) (codes []vigie.ReasonCode) {
	for _, r := range f.Referrals {
		codes = append(codes, r.Code)
	}
	return codes
}

func TestARadiographIsReadExplainedAndSigned(t *testing.T) {
	pkg := brightness(t, 40, -2)
	w := modelWorker(t, pkg)
	client := NewClient(w, developmentVerifier(t, pkg.Digest), ClientOptions{})
	for _, syntax := range []string{dicom.ExplicitLittleEndian, dicom.ImplicitLittleEndian, dicom.ExplicitBigEndian,
		dicom.DeflatedLittleEndian, dicom.RLELossless, dicom.JPEGBaseline} {
		asked := chest(t, phantom.Options{TransferSyntax: syntax}, nil)
		result, err := client.Diagnose(context.Background(), asked)
		if err != nil {
			t.Fatalf("%s: %v", syntax, err)
		}
		f := result.Finding
		if len(f.Referrals) != 0 || len(f.Predictions) != 2 || f.Predictions[1].Label != "pneumonia" || !f.Predictions[1].Positive || f.Predictions[0].Positive {
			t.Errorf("%s: %+v", syntax, f)
		}
		if !slices.Equal(stageNames(f), []string{"decode", "guard-in", "infer", "explain", "guard-out"}) {
			t.Errorf("%s: stages %v", syntax, f.Stages)
		}
		for _, stage := range f.Stages {
			if stage.Duration <= 0 {
				t.Errorf("%s: stage %s took %s", syntax, stage.Name, stage.Duration)
			}
		}
		if f.Model != pkg.Digest || f.ModelName != "brightness" || !strings.HasPrefix(string(f.Instance), "2.25.") {
			t.Errorf("%s: %+v", syntax, f)
		}
		// 1024 × 1152 pixels, of which the centre 1024 × 1024 became 28 × 28.
		if e := f.Explanation; e == nil || e.Target != "pneumonia" || e.Rows != 28 || e.Columns != 32 || e.Map[0] != 0 || slices.Max(e.Map) < 128 {
			t.Errorf("%s: explanation %+v", syntax, e)
		}
		for _, guard := range f.Guards {
			if guard.Alarm {
				t.Errorf("%s: guard %s raised an alarm: %+v", syntax, guard.Guard, guard.Reason)
			}
		}
	}
}

func TestEachUnfitCaseIsReferredForItsOwnReasonWithoutAnAnswer(t *testing.T) {
	pkg := brightness(t, 40, -2)
	w := modelWorker(t, pkg)
	client := NewClient(w, developmentVerifier(t, pkg.Digest), ClientOptions{})
	abdomen, abdomenErr := phantom.AbdomenCT(1, phantom.Options{})
	flat := func(value uint16) func(*dicom.File) {
		return func(f *dicom.File) {
			pixels := f.DataSet.Get(dicom.PixelData)
			constant := bytes.Repeat([]byte{byte(value), byte(value >> 8)}, len(pixels.Value)/2)
			f.DataSet.Put(&dicom.Element{Tag: dicom.PixelData, VR: pixels.VR, Value: constant})
		}
	}
	for _, test := range []struct {
		name   string
		asked  Request
		codes  []vigie.ReasonCode
		stages []string
	}{
		{"an abdominal CT", request(t, abdomen, abdomenErr, nil),
			[]vigie.ReasonCode{vigie.ReasonModality, vigie.ReasonBodyPart, vigie.ReasonView}, []string{"decode", "guard-in"}},
		{"a knee", chest(t, phantom.Options{BodyPart: "KNEE"}, nil), []vigie.ReasonCode{vigie.ReasonBodyPart}, []string{"decode", "guard-in"}},
		{"a blank image", chest(t, phantom.Options{}, flat(0)), []vigie.ReasonCode{vigie.ReasonGuard}, []string{"decode", "guard-in"}},
		{"a constant image", chest(t, phantom.Options{}, flat(1200)), []vigie.ReasonCode{vigie.ReasonGuard}, []string{"decode", "guard-in"}},
		{"no pixels", chest(t, phantom.Options{}, func(f *dicom.File) { f.DataSet.Delete(dicom.PixelData) }),
			[]vigie.ReasonCode{vigie.ReasonPixels}, []string{"decode", "guard-in"}},
		{"JPEG 2000", chest(t, phantom.Options{TransferSyntax: dicom.RLELossless}, func(f *dicom.File) {
			f.TransferSyntax = "1.2.840.10008.1.2.4.90"
			f.Meta.PutString(dicom.TransferSyntaxUID, f.TransferSyntax)
		}), []vigie.ReasonCode{vigie.ReasonTransferSyntax}, []string{"decode", "guard-in"}},
		{"a copy that does not say it is de-identified", chest(t, phantom.Options{}, func(f *dicom.File) { f.DataSet.Delete(dicom.PatientIdentityRemoved) }),
			[]vigie.ReasonCode{vigie.ReasonDeidentify}, []string{"decode"}},
		{"a copy with another Patient ID", chest(t, phantom.Options{}, func(f *dicom.File) { f.DataSet.PutString(dicom.PatientID, "4711") }),
			[]vigie.ReasonCode{vigie.ReasonDeidentify}, []string{"decode"}},
		{"a copy with a name", chest(t, phantom.Options{}, func(f *dicom.File) { f.DataSet.PutString(dicom.PatientName, "DUPONT^MARIE") }),
			[]vigie.ReasonCode{vigie.ReasonDeidentify}, []string{"decode"}},
		{"not DICOM", Request{Case: "a", Patient: "p", DICOM: []byte("GIF89a, which is not a radiograph")}, []vigie.ReasonCode{vigie.ReasonUnreadable}, []string{"decode"}},
		{"nothing", Request{Case: "a", Patient: "p"}, []vigie.ReasonCode{vigie.ReasonUnreadable}, []string{"decode"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			result, err := client.Diagnose(context.Background(), test.asked)
			if err != nil {
				t.Fatal(err)
			}
			f := result.Finding
			if len(f.Predictions) != 0 || f.Explanation != nil {
				t.Errorf("it was analysed: %+v", f.Predictions)
			}
			got := slices.Compact(codes(f))
			if !slices.Equal(got, test.codes) {
				t.Errorf("reasons %v, want %v", f.Referrals, test.codes)
			}
			if !slices.Equal(stageNames(f), test.stages) {
				t.Errorf("stages %v, want %v", stageNames(f), test.stages)
			}
			for _, r := range f.Referrals {
				if r.Text.English == "" || r.Text.French == "" {
					t.Errorf("a reason says nothing: %+v", r)
				}
			}
			if strings.Contains(string(result.Signed.Payload), "DUPONT") || strings.Contains(string(result.Signed.Payload), "4711") {
				t.Error("the finding repeats an identity")
			}
		})
	}
}

func TestEveryTruncationOfAFileIsAFindingNotAnError(t *testing.T) {
	pkg := brightness(t, 40, -2)
	client := NewClient(modelWorker(t, pkg), developmentVerifier(t, pkg.Digest), ClientOptions{})
	whole := chest(t, phantom.Options{Rows: 64, Columns: 64}, nil)
	for n := 0; n < len(whole.DICOM); n += 97 {
		cut := whole
		cut.DICOM = whole.DICOM[:n]
		result, err := client.Diagnose(context.Background(), cut)
		if err != nil {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
		if f := result.Finding; len(f.Predictions) != 0 || len(f.Referrals) == 0 {
			t.Fatalf("cut to %d bytes: %+v", n, f)
		}
	}
}

func TestABorderlineAnswerIsGivenAndReferred(t *testing.T) {
	pkg := brightness(t, 0, 0)
	client := NewClient(modelWorker(t, pkg), developmentVerifier(t, pkg.Digest), ClientOptions{})
	result, err := client.Diagnose(context.Background(), chest(t, phantom.Options{}, nil))
	if err != nil {
		t.Fatal(err)
	}
	f := result.Finding
	if len(f.Predictions) != 2 || f.Predictions[1].Probability != 0.5 || !slices.Contains(codes(f), vigie.ReasonBorderline) {
		t.Errorf("got %+v with %v", f.Predictions, f.Referrals)
	}
}

func TestAnUnknownViewIsReadAndReferred(t *testing.T) {
	pkg := brightness(t, 40, -2)
	client := NewClient(modelWorker(t, pkg), developmentVerifier(t, pkg.Digest), ClientOptions{})
	result, err := client.Diagnose(context.Background(), chest(t, phantom.Options{View: "-"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	if f := result.Finding; len(f.Predictions) != 2 || !slices.Equal(codes(f), []vigie.ReasonCode{vigie.ReasonView}) {
		t.Errorf("got %+v with %v", f.Predictions, f.Referrals)
	}
}

func TestAModelThatOverflowsIsRefusedOrReferred(t *testing.T) {
	if _, err := New(brightness(t, 1, float32(math.Inf(1))), attest.NewDevelopment(quiet()), Options{Logger: quiet()}); err == nil || !errors.Is(err, model.ErrOutput) {
		t.Errorf("a model that is infinite on a blank image: got %v, want model.ErrOutput", err)
	}
	// This one overflows on real images only: 0 on a blank one.
	pkg := brightness(t, math.MaxFloat32, math.MaxFloat32)
	p, err := newPipeline(pkg, mustOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	asked := chest(t, phantom.Options{}, nil)
	f := p.analyse(context.Background(), asked.Patient, asked.DICOM)
	if len(f.Predictions) != 0 || f.Explanation != nil || !slices.Contains(codes(f), vigie.ReasonImplausible) {
		t.Errorf("got %+v with %v", f.Predictions, f.Referrals)
	}
}

func mustOptions(t testing.TB) Options {
	t.Helper()
	o, err := Options{Logger: quiet()}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestTwoComputationsThatDisagreeAreNotBelieved(t *testing.T) {
	pkg := brightness(t, 40, -2)
	p, err := newPipeline(pkg, mustOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	other, err := newPipeline(brightness(t, 39, -2), mustOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	p.maps, other.maps = other.maps, p.maps // stands for a machine that computes wrongly
	asked := chest(t, phantom.Options{}, nil)
	f := p.analyse(context.Background(), asked.Patient, asked.DICOM)
	if len(f.Predictions) != 0 || f.Explanation != nil || !slices.Equal(codes(f), []vigie.ReasonCode{vigie.ReasonImplausible}) {
		t.Errorf("got %+v with %v", f.Predictions, f.Referrals)
	}
}

func TestAnEngineThatFailsIsAReferral(t *testing.T) {
	pkg := brightness(t, 40, -2)
	p, err := newPipeline(pkg, mustOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	asked := chest(t, phantom.Options{}, nil)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if f := p.analyse(ended, asked.Patient, asked.DICOM); len(f.Predictions) != 0 || !slices.Equal(codes(f), []vigie.ReasonCode{vigie.ReasonEnclave}) {
		t.Errorf("a context that ended: got %v", f.Referrals)
	}
	if err := p.maps.close(); err != nil {
		t.Fatal(err)
	}
	if f := p.analyse(context.Background(), asked.Patient, asked.DICOM); len(f.Predictions) != 2 || f.Explanation != nil || !slices.Equal(codes(f), []vigie.ReasonCode{vigie.ReasonEnclave}) {
		t.Errorf("without an explanation the answer stands and is referred: got %+v with %v", f.Predictions, f.Referrals)
	}
	if err := p.session.Close(); err != nil {
		t.Fatal(err)
	}
	if f := p.analyse(context.Background(), asked.Patient, asked.DICOM); len(f.Predictions) != 0 || !slices.Equal(codes(f), []vigie.ReasonCode{vigie.ReasonEnclave}) {
		t.Errorf("a closed session: got %+v with %v", f.Predictions, f.Referrals)
	}
}

// FuzzAnalyse looks at what a hostile image can do to the pipeline: whatever
// the bytes, there is a finding that can be signed and that a client accepts.
func FuzzAnalyse(f *testing.F) {
	options := mustOptions(f)
	options.Threads = 1
	p, err := newPipeline(brightness(f, 40, -2), options)
	if err != nil {
		f.Fatal(err)
	}
	var patient vigie.PatientPseudonym
	for _, syntax := range []string{dicom.ExplicitLittleEndian, dicom.ImplicitLittleEndian, dicom.RLELossless, dicom.JPEGBaseline} {
		asked := chest(f, phantom.Options{Rows: 64, Columns: 64, TransferSyntax: syntax}, nil)
		patient = asked.Patient
		f.Add(asked.DICOM)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		finding := p.analyse(context.Background(), patient, file)
		if _, err := encodeFinding(finding); err != nil {
			t.Fatalf("%v: %+v", err, finding)
		}
	})
}
