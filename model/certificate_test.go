package model

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/medical/dicom"
)

// withCertificate is the demo's manifest with a section of its own.
func withCertificate(t testing.TB, section string) string {
	t.Helper()
	text := demoManifest(t)
	if !strings.Contains(text, "\nplausibility:") {
		t.Fatal("the demo's manifest has no plausibility")
	}
	return strings.Replace(text, "\nplausibility:", "\ncertificate:\n"+section+"\nplausibility:", 1)
}

func TestWhatIsToBeProvenIsReadStrictly(t *testing.T) {
	for section, want := range map[string]string{
		"  when: sometimes\n":                                "certificate.when: is \"sometimes\"",
		"  patch: {size: 3, masks: 6}\n":                     "certificate.when: is \"\"",
		"  when: on\n":                                       "neither patch nor smoothing",
		"  when: borderline\n  patch: {size: 3, masks: 6}\n": "certificate.borderline: is missing",
		"  when: on\n  borderline: {from: 0.1, to: 0.2}\n  patch: {size: 3, masks: 6}\n":         "is for when: borderline",
		"  when: borderline\n  borderline: {from: 0.9, to: 0.2}\n  patch: {size: 3, masks: 6}\n": "certificate.borderline: goes from 0.9",
		"  when: on\n  patch: {size: 0, masks: 6}\n":                                             "certificate.patch.size: is 0, want 1 to 27",
		"  when: on\n  patch: {size: 28, masks: 6}\n":                                            "certificate.patch.size: is 28",
		"  when: on\n  patch: {size: 3, masks: 1}\n":                                             "certificate.patch.masks: is 1",
		"  when: on\n  patch: {size: 3, masks: 99}\n":                                            "certificate.patch.masks: is 99",
		"  when: on\n  patch: {size: 3, masks: 6, fill: blur}\n":                                 "certificate.patch.fill: masks filled with \"blur\"",
		"  when: on\n  patch: {size: 3, masks: 6, fill: 1.5}\n":                                  "certificate.patch.fill: masks filled with \"1.5\"",
		"  when: on\n  patch: {size: 3, masks: 6, of: screen}\n":                                 "certificate.patch.of: is \"screen\"",
		"  when: on\n  patch: {size: 3, masks: 6, rounds: 3}\n":                                  "certificate.patch.rounds: is 3",
		"  when: on\n  patch: {size: 3, masks: 6, uncertified: block}\n":                         "certificate.patch.uncertified: is \"block\"",
		"  when: on\n  patch: {size: 3, masks: 6, rounds: 1, uncertified: review}\n":             "one round certifies nothing",
		"  when: on\n  patch: {size: 3, masks: 6, side: 3}\n":                                    "unknown field",
		"  when: on\n  smoothing: {sigma: 0, samples: 1000, alpha: 0.001}\n":                     "certificate.smoothing.sigma: is 0",
		"  when: on\n  smoothing: {sigma: 0.25, samples: 10, alpha: 0.001}\n":                    "certificate.smoothing.samples: is 10",
		"  when: on\n  smoothing: {sigma: 0.25, samples: 1000, alpha: 0.5}\n":                    "certificate.smoothing.alpha: is 0.5",
		"  when: on\n  smoothing: {sigma: .nan, samples: 1000, alpha: 0.01}\n":                   "certificate.smoothing.sigma: is NaN",
		"  when: off\n  patch: {size: 3, masks: 40}\n":                                           "certificate.patch.masks: is 40",
	} {
		if _, err := ParseManifest([]byte(withCertificate(t, section))); !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", section, err, want)
		}
	}
	m, err := ParseManifest([]byte(withCertificate(t, "  when: borderline\n  borderline: {from: 0.2, to: 0.8}\n  patch: {size: 3, masks: 6, fill: 0.25}\n  smoothing: {sigma: 0.25, samples: 1000, alpha: 0.001}\n")))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.Certificate.String(), "squares of 3 pixels of the input, 6 masks along an axis (0.25), 2 rounds; noise of 0.25, 1000 samples, alpha 0.001; from 0.2 to 0.8 only"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	for probability, want := range map[float64]bool{0.1: false, 0.2: true, 0.5: true, 0.8: true, 0.81: false} {
		if got := m.Certificate.Asks("pneumonia", []vigie.Prediction{{Label: "normal", Probability: 1 - probability}, {Label: "pneumonia", Probability: probability}}); got != want {
			t.Errorf("at %v: %v", probability, got)
		}
	}
	off, err := ParseManifest([]byte(demoManifest(t)))
	if err != nil || off.Certificate.Wanted() || off.Certificate.String() != "off" || off.Certificate.Asks("pneumonia", nil) {
		t.Errorf("a manifest without a section: %v (%v)", off, err)
	}
}

// A square of the image changes no more of the model's input than is said, and
// leaves all else as it was, bit for bit, whatever the aspect and the sizes.
func TestASquareOfTheImageReachesNoMoreOfTheInputThanIsSaid(t *testing.T) {
	base, err := ParseManifest([]byte(demoManifest(t)))
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	reached := 0
	for range 400 {
		m := *base
		m.Input.Rows, m.Input.Columns = 4+random.IntN(30), 4+random.IntN(30)
		m.Input.Aspect = []string{Stretch, Pad, CentreCrop}[random.IntN(3)]
		m.Input.Channels, m.Input.Layout = 1+2*random.IntN(2), []string{"NCHW", "NHWC"}[random.IntN(2)]
		m.Input.Photometric = []string{Bright, Inverted}[random.IntN(2)]
		rows, columns := 3+random.IntN(90), 3+random.IntN(90)
		l := &dicom.Luminance{Rows: rows, Columns: columns, Values: make([]float32, rows*columns)}
		for i := range l.Values {
			l.Values[i] = random.Float32()
		}
		before, err := m.Prepare(l)
		if err != nil {
			t.Fatal(err)
		}
		patch := Patch{Size: 1 + random.IntN(9), Of: OfImage}
		region, touched, largest, err := m.Squares(patch, rows, columns)
		if err != nil {
			if !errors.Is(err, certificate.ErrAsk) {
				t.Fatal(err)
			}
			continue
		}
		if largest < patch.Size {
			t.Fatalf("squares of %d pixels, but the statement holds for %d at most", patch.Size, largest)
		}
		side := patch.Size + random.IntN(largest-patch.Size+1)
		if side > rows || side > columns {
			continue
		}
		top, left := random.IntN(rows-side+1), random.IntN(columns-side+1)
		for y := top; y < top+side; y++ {
			for x := left; x < left+side; x++ {
				l.Values[y*columns+x] = float32(random.IntN(2))
			}
		}
		after, err := m.Prepare(l)
		if err != nil {
			t.Fatal(err)
		}
		one, two := before.Data.([]float32), after.Data.([]float32)
		box := [4]int{m.Input.Rows, m.Input.Columns, -1, -1}
		for i := range one {
			if one[i] == two[i] {
				continue
			}
			place := i % (m.Input.Rows * m.Input.Columns)
			if m.Input.Layout == "NHWC" {
				place = i / m.Input.Channels
			}
			y, x := place/m.Input.Columns, place%m.Input.Columns
			box = [4]int{min(box[0], y), min(box[1], x), max(box[2], y), max(box[3], x)}
		}
		if box[2] < 0 {
			continue
		}
		reached++
		if box[2]-box[0]+1 > touched.Rows || box[3]-box[1]+1 > touched.Columns {
			t.Fatalf("%d by %d to %d by %d (%s): a square of %d reached %v, said were %v", rows, columns, m.Input.Rows, m.Input.Columns, m.Input.Aspect, side, box, touched)
		}
		if box[0] < region.Top || box[2] >= region.Top+region.Rows || box[1] < region.Left || box[3] >= region.Left+region.Columns {
			t.Fatalf("a square reached %v, the image lies in %+v", box, region)
		}
	}
	if reached < 100 {
		t.Errorf("only %d squares reached the input: the test looks at nothing", reached)
	}
}

func TestTheAnswerThatIsCertifiedIsTheOneThatIsReported(t *testing.T) {
	p, err := Open(sealed(t))
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Certified()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(m.Black, []float64{0}) || !slices.Equal(m.White, []float64{1}) || !m.Grey {
		t.Errorf("black %v, white %v", m.Black, m.White)
	}
	for output, want := range map[[2]float32]certificate.Answer{{3, -3}: "10", {-3, 3}: "01"} {
		if got, err := m.Decide(output[:]); err != nil || got != want {
			t.Errorf("%v: %q, %v", output, got, err)
		}
	}
	if _, err := m.Decide([]float32{1}); !errors.Is(err, ErrOutput) {
		t.Errorf("one number for two labels: %v", err)
	}
	c, err := certificate.Open(m, Certificate{Patch: &Patch{Size: 3, Masks: 2}}.CertificateOptions(1))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	input, err := p.Manifest.Prepare(&dicom.Luminance{Rows: 28, Columns: 28, Values: make([]float32, 784)})
	if err != nil {
		t.Fatal(err)
	}
	session, err := engine.Open(p.Graph, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	out, err := session.Run(t.Context(), map[string]engine.Tensor{m.Input: input})
	if err != nil {
		t.Fatal(err)
	}
	predictions, err := p.Predictions(out[m.Output].Data.([]float32))
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Squares(t.Context(), input, AnswerOf(predictions), certificate.Size{Rows: 3, Columns: 3}, certificate.Whole(28, 28))
	if err != nil || len(s.Covered) != 4 {
		t.Errorf("%+v, %v", s, err)
	}
}
