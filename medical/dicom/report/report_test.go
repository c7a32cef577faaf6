package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

func source(t testing.TB) *dicom.File {
	t.Helper()
	f, err := phantom.Chest(4, phantom.Options{Rows: 160, Columns: 180, Opacity: 0.8})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var model = Model{Name: "chest-pneumonia-28", Version: "1.0.0", Digest: "sha256:" + strings.Repeat("ab", 32), Manufacturer: "Vigie", DeviceUID: "2.25.77"}

func result() Result {
	return Result{
		SeriesUID: "2.25.101", InstanceUID: "2.25.102", SeriesNumber: 9001, InstanceNumber: 1, Time: noon, Model: model,
		Findings: []Finding{
			{Code: Code{"233604007", "SCT", "Pneumonia"}, French: "Pneumonie", TrackingUID: "2.25.103", Probability: 0.93127, Threshold: 0.5, Positive: true},
			{Code: Code{"17621005", "SCT", "Normal"}, French: "Normal", TrackingUID: "2.25.104", Probability: 0.06873, Threshold: 0.5},
		},
		Remarks: []Text{{"For review by a physician.", "À vérifier par un médecin."}},
	}
}

func write(t testing.TB, f *dicom.File) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := f.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// tool runs a checker on the file and returns what it prints.
func tool(t testing.TB, f *dicom.File, name string, arguments ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed: apt-get install dcmtk dicom3tools", name)
	}
	file := filepath.Join(t.TempDir(), "object.dcm")
	if err := os.WriteFile(file, write(t, f), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command(path, append(arguments, file)...).CombinedOutput()
	return string(out)
}

func conforms(t *testing.T, f *dicom.File, iod string) {
	t.Helper()
	out := tool(t, f, "dciodvfy")
	if !strings.Contains(out, iod) {
		t.Errorf("dciodvfy does not see a %s: %s", iod, out)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "Error") {
			t.Errorf("dciodvfy: %s", line)
		}
	}
}

func picture(t testing.TB, f *dicom.File) *image.RGBA {
	t.Helper()
	l, err := f.Luminance(0)
	if err != nil {
		t.Fatal(err)
	}
	heat := &Heat{Rows: 4, Columns: 4, Values: make([]uint8, 16)}
	heat.Values[5] = 255
	p, err := Overlay(l, heat, Caption{Model: "chest-pneumonia-28 1.0.0", Label: Text{"Pneumonia", "Pneumonie"}, Probability: 0.93, Threshold: 0.5, Positive: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func capture() Capture {
	return Capture{SeriesUID: "2.25.201", InstanceUID: "2.25.202", SeriesNumber: 9002, InstanceNumber: 1, Time: noon, Model: model,
		SeriesDescription: "Grad-CAM", Derivation: "Grad-CAM of the label Pneumonia", Comment: Text{"For review", "À vérifier"}}
}

func TestTheStructuredReportConforms(t *testing.T) {
	for name, change := range map[string]func(*Result){
		"by a model":       func(*Result) {},
		"without findings": func(r *Result) { r.Findings = nil },
		"without remarks":  func(r *Result) { r.Remarks = nil },
		"released by a physician": func(r *Result) {
			r.Reviewer = &Reviewer{Name: "Lemaître^Inès^^Dr", Organization: "Hôpital"}
		},
		"corrected by a physician": func(r *Result) {
			r.Reviewer = &Reviewer{Name: "Lemaître^Inès^^Dr"}
			for i := range r.Findings {
				r.Findings[i].ByPerson = true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := result()
			change(&r)
			f, err := StructuredReport(source(t).DataSet, r)
			if err != nil {
				t.Fatal(err)
			}
			conforms(t, f, "ComprehensiveSR")
		})
	}
}

func TestAReviewerIsAnObserverAndVerifiesNothing(t *testing.T) {
	r := result()
	r.Reviewer = &Reviewer{Name: "Lemaître^Inès^^Dr", Organization: "Hôpital"}
	f, err := StructuredReport(source(t).DataSet, r)
	if err != nil {
		t.Fatal(err)
	}
	d := f.DataSet
	if v, p := d.String(dicom.VerificationFlag), d.String(dicom.PreliminaryFlag); v != "UNVERIFIED" || p != "PRELIMINARY" || d.Has(dicom.VerifyingObserverSequence) {
		t.Errorf("%s, %s, verifying observer %v", v, p, d.Has(dicom.VerifyingObserverSequence))
	}
	if data, err := json.Marshal(d); err != nil || !strings.Contains(string(data), "Lemaître^Inès") || !strings.Contains(string(data), "121008") {
		t.Errorf("the content does not name the reviewer as observer: %v", err)
	}
}

func TestDcmtkReadsEveryStatementOfTheReport(t *testing.T) {
	f, err := StructuredReport(source(t).DataSet, result())
	if err != nil {
		t.Fatal(err)
	}
	out := tool(t, f, "dsrdump", "+Pl", "+Pc", "+U8")
	for _, want := range []string{
		`(126000,DCM,"Imaging Measurement Report")`,
		`(121012,DCM,"Device Observer UID")="2.25.77"`,
		`(112040,DCM,"Tracking Unique Identifier")="2.25.103"`,
		`(121071,DCM,"Finding")=(233604007,SCT,"Pneumonia")`,
		`(121051,DCM,"Equivalent Meaning of Value")="Pneumonie"`,
		`(122157,DCM,"Probability")="93.13" (%,UCUM,"Percent")`,
		`(122411,DCM,"Threshold Value")="50" (%,UCUM,"Percent")`,
		`(111001,DCM,"Algorithm Name")="chest-pneumonia-28"`,
		`(111003,DCM,"Algorithm Version")="1.0.0"`,
		`sha256:abab`,
		`(415684004,SCT,"Suspected")`,
		`(NOT-SUSPECTED,99VIGIE,"Not suspected")`,
		`For review by a physician.`,
		`À vérifier par un médecin.`,
		`(fr,RFC5646,"French")`,
		`UNVERIFIED`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("dsrdump does not print %s", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestResultsBelongToThePatientAndStudyOfTheSource(t *testing.T) {
	f := source(t)
	sr, err := StructuredReport(f.DataSet, result())
	if err != nil {
		t.Fatal(err)
	}
	sc, err := SecondaryCapture(f.DataSet, picture(t, f), capture())
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]*dicom.DataSet{"report": sr.DataSet, "capture": sc.DataSet} {
		for _, tag := range []dicom.Tag{dicom.PatientName, dicom.PatientID, dicom.IssuerOfPatientID, dicom.PatientBirthDate, dicom.StudyInstanceUID, dicom.AccessionNumber} {
			if d.String(tag) == "" || d.String(tag) != f.DataSet.String(tag) {
				t.Errorf("%s: %s is not the source's", name, tag)
			}
		}
		if d.UID(dicom.SeriesInstanceUID) == f.DataSet.UID(dicom.SeriesInstanceUID) {
			t.Errorf("%s: it is in the source's series", name)
		}
		if got := d.String(dicom.SpecificCharacterSet); got != "ISO_IR 192" {
			t.Errorf("%s: character set %s", name, got)
		}
		d.Walk(func(path []dicom.Tag, _ *dicom.DataSet, e *dicom.Element) bool {
			if e.Tag == dicom.SpecificCharacterSet && len(path) > 0 {
				t.Errorf("%s: an item of %v names a character set again", name, path)
			}
			return true
		})
	}
	referenced := sc.DataSet.Item(dicom.SourceImageSequence).UID(dicom.ReferencedSOPInstanceUID)
	evidence := sr.DataSet.Item(dicom.CurrentRequestedProcedureEvidenceSequence).Item(dicom.ReferencedSeriesSequence).Item(dicom.ReferencedSOPSequence).UID(dicom.ReferencedSOPInstanceUID)
	if want := f.DataSet.UID(dicom.SOPInstanceUID); referenced != want || evidence != want {
		t.Errorf("capture refers to %s, report to %s, the source is %s", referenced, evidence, want)
	}
}

func TestTheSameResultGivesTheSameBytes(t *testing.T) {
	f := source(t)
	make := func() []byte {
		sr, err := StructuredReport(f.DataSet, result())
		if err != nil {
			t.Fatal(err)
		}
		sc, err := SecondaryCapture(f.DataSet, picture(t, f), capture())
		if err != nil {
			t.Fatal(err)
		}
		return append(write(t, sr), write(t, sc)...)
	}
	if !bytes.Equal(make(), make()) {
		t.Error("two deliveries differ")
	}
}

func TestTheSecondaryCaptureConforms(t *testing.T) {
	f := source(t)
	gray := image.NewGray(image.Rect(3, 4, 40, 31))
	for name, p := range map[string]image.Image{"colour": picture(t, f), "gray": gray, "part of a picture": picture(t, f).SubImage(image.Rect(10, 10, 41, 52))} {
		sc, err := SecondaryCapture(f.DataSet, p, capture())
		if err != nil {
			t.Fatal(err)
		}
		conforms(t, sc, "SCImage")
		frame, err := sc.Frame(0, dicom.Limits{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if frame.Rows != p.Bounds().Dy() || frame.Columns != p.Bounds().Dx() {
			t.Errorf("%s: %d × %d pixels of %v", name, frame.Columns, frame.Rows, p.Bounds())
		}
		r, g, b, _ := p.At(p.Bounds().Min.X+5, p.Bounds().Min.Y+7).RGBA()
		at := (7*frame.Columns + 5) * frame.Samples
		if frame.Data[at] != byte(r>>8) || frame.Samples == 3 && (frame.Data[at+1] != byte(g>>8) || frame.Data[at+2] != byte(b>>8)) {
			t.Errorf("%s: a pixel changed", name)
		}
	}
}

func TestBurnedInIdentityOfTheSourceIsDeclaredOnTheCapture(t *testing.T) {
	f, err := phantom.Chest(1, phantom.Options{Rows: 128, Columns: 256, BurnedIn: true})
	if err != nil {
		t.Fatal(err)
	}
	for want, s := range map[string]*dicom.File{"YES": f, "NO": source(t)} {
		sc, err := SecondaryCapture(s.DataSet, picture(t, s), capture())
		if err != nil {
			t.Fatal(err)
		}
		if got := sc.DataSet.String(dicom.BurnedInAnnotation); got != want {
			t.Errorf("BurnedInAnnotation is %s, the source says %s", got, want)
		}
	}
}

func TestTheHeatLiesWhereTheMapSaysAndTheRestStaysGray(t *testing.T) {
	l := &dicom.Luminance{Rows: 800, Columns: 1000, Values: make([]float32, 800000)}
	for i := range l.Values {
		l.Values[i] = 0.5
	}
	heat := &Heat{Rows: 2, Columns: 2, Values: []uint8{0, 0, 0, 255}, Window: image.Rect(100, 0, 900, 800)}
	p, err := Overlay(l, heat, Caption{Label: Text{"X", "X"}})
	if err != nil {
		t.Fatal(err)
	}
	gray := color.RGBA{128, 128, 128, 255}
	for _, point := range []struct {
		x, y int
		hot  bool
	}{{50, 400, false}, {950, 790, false}, {200, 100, false}, {880, 780, true}, {700, 600, true}} {
		if hot := p.RGBAAt(point.x, point.y) != gray; hot != point.hot {
			t.Errorf("at %d,%d the picture is %v", point.x, point.y, p.RGBAAt(point.x, point.y))
		}
	}
}

func TestPicturesAreOfAReadableSize(t *testing.T) {
	for _, size := range [][2]int{{2140, 1760}, {1024, 1024}, {512, 512}, {64, 64}, {3000, 100}, {64, 4000}, {1, 1}} {
		l := &dicom.Luminance{Rows: size[0], Columns: size[1], Values: make([]float32, size[0]*size[1])}
		p, err := Overlay(l, nil, Caption{Label: Text{"Pneumonia", "Pneumonie"}, Remarks: []Text{{strings.Repeat("a long remark ", 20), "une longue remarque"}}})
		if err != nil {
			t.Fatalf("%v: %v", size, err)
		}
		b := p.Bounds()
		if b.Dx() > 1024 || b.Dx() < 320 || b.Dy() > 1024+700 {
			t.Errorf("%d × %d pixels are drawn as %d × %d", size[1], size[0], b.Dx(), b.Dy())
		}
	}
}

func TestLightnessOfTheColourScaleOnlyRises(t *testing.T) {
	last := -1.0
	for i := range 101 {
		c := heatColour(float64(i) / 100)
		lightness := 0.2126*math.Pow(float64(c.R)/255, 2.2) + 0.7152*math.Pow(float64(c.G)/255, 2.2) + 0.0722*math.Pow(float64(c.B)/255, 2.2)
		if lightness < last {
			t.Fatalf("at %d %% the scale gets darker", i)
		}
		last = lightness
	}
	if heatOpacity(0) != 0 || heatOpacity(1) > 0.6 {
		t.Error("the map hides the image, or colours where nothing is relevant")
	}
}

func TestWhatCannotBeReportedIsRefused(t *testing.T) {
	whole := source(t).DataSet
	for _, tag := range []dicom.Tag{dicom.SOPInstanceUID, dicom.SOPClassUID, dicom.SeriesInstanceUID, dicom.StudyInstanceUID} {
		d := whole.Clone()
		d.Delete(tag)
		if _, err := StructuredReport(d, result()); !errors.Is(err, ErrSource) {
			t.Errorf("without %s: %v", tag, err)
		}
	}
	for name, change := range map[string]func(*Result){
		"no series UID":       func(r *Result) { r.SeriesUID = "" },
		"no instance UID":     func(r *Result) { r.InstanceUID = "" },
		"no time":             func(r *Result) { r.Time = time.Time{} },
		"probability of 1.5":  func(r *Result) { r.Findings[0].Probability = 1.5 },
		"probability unknown": func(r *Result) { r.Findings[0].Probability = math.NaN() },
		"no tracking UID":     func(r *Result) { r.Findings[0].TrackingUID = "" },
	} {
		r := result()
		change(&r)
		if _, err := StructuredReport(whole, r); err == nil {
			t.Errorf("%s: reported", name)
		}
	}
	if _, err := SecondaryCapture(whole, nil, capture()); err == nil {
		t.Error("no picture was captured")
	}
	if _, err := Overlay(&dicom.Luminance{Rows: 2, Columns: 2}, nil, Caption{}); err == nil {
		t.Error("an image without pixels was drawn")
	}
	if _, err := Overlay(&dicom.Luminance{Rows: 1, Columns: 1, Values: []float32{0}}, &Heat{Rows: 2, Columns: 2, Values: []uint8{1}}, Caption{}); err == nil {
		t.Error("a map with missing values was drawn")
	}
}

func TestASourceOfAnotherCharacterSetKeepsItsNames(t *testing.T) {
	f := source(t)
	if got := f.DataSet.String(dicom.SpecificCharacterSet); got != "ISO_IR 100" {
		t.Fatalf("the phantom's character set is %s", got)
	}
	f.DataSet.PutString(dicom.PatientName, "Müller^Zoë")
	if !slices.Contains(f.DataSet.Get(dicom.PatientName).Value, 0xFC) {
		t.Fatal("the source is not Latin-1")
	}
	sr, err := StructuredReport(f.DataSet, result())
	if err != nil {
		t.Fatal(err)
	}
	again, err := dicom.Parse(bytes.NewReader(write(t, sr)), dicom.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got := again.DataSet.String(dicom.PatientName); got != "Müller^Zoë" {
		t.Errorf("the name became %q", got)
	}
}

func ExampleStructuredReport() {
	image, err := phantom.Chest(1, phantom.Options{Rows: 64, Columns: 64})
	if err != nil {
		panic(err)
	}
	sr, err := StructuredReport(image.DataSet, Result{
		SeriesUID: "2.25.1", InstanceUID: "2.25.2", Time: time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC),
		Model: Model{Name: "chest-pneumonia-28", Version: "1.0.0"},
		Findings: []Finding{{Code: Code{"233604007", "SCT", "Pneumonia"}, French: "Pneumonie",
			TrackingUID: "2.25.3", Probability: 0.93, Threshold: 0.5, Positive: true}},
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(sr.DataSet.String(dicom.Modality), sr.DataSet.String(dicom.VerificationFlag))
	// Output: SR UNVERIFIED
}

func BenchmarkOverlay(b *testing.B) {
	l := &dicom.Luminance{Rows: 2140, Columns: 1760, Values: make([]float32, 2140*1760)}
	heat := &Heat{Rows: 7, Columns: 7, Values: make([]uint8, 49)}
	for b.Loop() {
		if _, err := Overlay(l, heat, Caption{Label: Text{"Pneumonia", "Pneumonie"}}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestASourceThatBreaksTheStandardDoesNotMakeAResultThatDoes(t *testing.T) {
	bad := source(t).DataSet.Clone()
	bad.PutString(dicom.PatientAge, "abc")
	bad.PutString(dicom.PatientSex, "?")
	bad.PutString(dicom.PatientBirthDate, "unknown")
	bad.PutString(dicom.StudyDate, "2026-03-14")
	bad.PutString(dicom.StudyTime, "noon")
	bad.PutString(dicom.PatientWeight, "heavy")
	for _, e := range []dicom.Tag{dicom.PatientAge, dicom.PatientSex, dicom.StudyDate} {
		if bad.Empty(e) {
			t.Fatalf("%v is not planted", e)
		}
	}
	report, err := StructuredReport(bad, result())
	if err != nil {
		t.Fatal(err)
	}
	if report.DataSet.Has(dicom.PatientAge) || !report.DataSet.Empty(dicom.StudyDate) || !report.DataSet.Has(dicom.StudyDate) {
		t.Errorf("age %q, study date %q", report.DataSet.String(dicom.PatientAge), report.DataSet.String(dicom.StudyDate))
	}
	if report.DataSet.String(dicom.PatientID) != bad.String(dicom.PatientID) {
		t.Error("the patient id was lost")
	}
	conforms(t, report, "ComprehensiveSR")
	capture, err := SecondaryCapture(bad, picture(t, source(t)), capture())
	if err != nil {
		t.Fatal(err)
	}
	conforms(t, capture, "SCImage")
}

func TestAWarningStandsAboveThePictureAndCoversNothingOfIt(t *testing.T) {
	l, err := source(t).Luminance(0)
	if err != nil {
		t.Fatal(err)
	}
	heat := &Heat{Rows: 4, Columns: 4, Values: make([]uint8, 16)}
	heat.Values[5] = 255
	caption := Caption{Model: "chest-pneumonia-28 1.0.0", Label: Text{"Pneumonia", "Pneumonie"}, Probability: 0.93, Threshold: 0.5, Positive: true}
	plain, err := Overlay(l, heat, caption)
	if err != nil {
		t.Fatal(err)
	}
	caption.Warning = Text{"This map did not pass its tests: do not rely on it.", "Cette carte n’a pas passé ses tests : ne vous y fiez pas."}
	warned, err := Overlay(l, heat, caption)
	if err != nil {
		t.Fatal(err)
	}
	bar := warned.Bounds().Dy() - plain.Bounds().Dy()
	if bar < 20 || warned.Bounds().Dx() != plain.Bounds().Dx() {
		t.Fatalf("%v with a warning, %v without", warned.Bounds(), plain.Bounds())
	}
	below := warned.SubImage(image.Rect(0, bar, warned.Bounds().Dx(), warned.Bounds().Dy())).(*image.RGBA)
	for y := range plain.Bounds().Dy() {
		for x := range plain.Bounds().Dx() {
			if below.RGBAAt(x, bar+y) != plain.RGBAAt(x, y) {
				t.Fatalf("the picture differs at %d,%d", x, y)
			}
		}
	}
	written := 0
	for y := range bar {
		for x := range warned.Bounds().Dx() {
			switch c := warned.RGBAAt(x, y); {
			case c.R < 100 && c.G < 100:
				written++
			case c.R < c.B || c.A != 255:
				t.Fatalf("the bar is %v at %d,%d", c, x, y)
			}
		}
	}
	if written < 500 {
		t.Errorf("%d dark pixels: nothing can be read", written)
	}
}
