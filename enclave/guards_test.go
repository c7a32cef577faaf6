package enclave

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
)

// drawn makes an image from a function of its position, 0..1.
func drawn(rows, columns int, at func(y, x float64) float64) *dicom.Luminance {
	image := &dicom.Luminance{Rows: rows, Columns: columns, Values: make([]float32, rows*columns)}
	for y := range rows {
		for x := range columns {
			image.Values[y*columns+x] = float32(at(float64(y)/float64(rows), float64(x)/float64(columns)))
		}
	}
	return image
}

// torso is smooth like a radiograph, with a black border of the given share.
func torso(border float64) func(y, x float64) float64 {
	return func(y, x float64) float64 {
		if x < border {
			return 0
		}
		return 0.5 + 0.4*math.Sin(5*x)*math.Cos(7*y)
	}
}

func TestEachBrokenImageIsNamedForWhatIsWrongWithIt(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, test := range []struct {
		name  string
		image *dicom.Luminance
		want  []string
	}{
		{"a smooth image", drawn(100, 120, torso(0)), nil},
		{"a collimated image", drawn(100, 120, torso(0.5)), nil},
		{"a small image", drawn(20, 120, torso(0)), []string{"image-geometry"}},
		{"a strip", drawn(30, 200, torso(0)), []string{"image-geometry"}},
		{"constant grey", drawn(64, 64, func(y, x float64) float64 { return 0.5 }), []string{"image-contrast", "image-content"}},
		{"black", drawn(64, 64, func(y, x float64) float64 { return 0 }), []string{"image-contrast", "image-content", "image-saturation"}},
		{"almost empty", drawn(64, 64, torso(0.95)), []string{"image-content", "image-saturation"}},
		{"a binary mask", drawn(64, 64, func(y, x float64) float64 { return math.Round(y) }), []string{"image-contrast", "image-saturation"}},
		{"noise", drawn(64, 64, func(y, x float64) float64 { return random.Float64() }), []string{"image-noise"}},
		{"not a number", drawn(64, 64, func(y, x float64) float64 { return math.NaN() }), []string{"image-values"}},
		{"one infinity", drawn(64, 64, func(y, x float64) float64 {
			if y == 0 && x == 0 {
				return math.Inf(1)
			}
			return torso(0)(y, x)
		}), []string{"image-values"}},
		{"a wrong number of values", &dicom.Luminance{Rows: 64, Columns: 64, Values: make([]float32, 100)}, []string{"image-values"}},
		{"no pixel", &dicom.Luminance{}, []string{"image-values"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			results, reasons := guardImage(factsOf(test.image), 28, 28)
			var alarms []string
			for _, r := range results {
				if !(r.PValue > 0 && r.PValue <= 1) || r.Alarm != (r.Reason != nil) || r.Alarm != (r.PValue < 0.5) {
					t.Errorf("%+v contradicts itself", r)
				}
				if r.Alarm {
					alarms = append(alarms, r.Guard)
				}
			}
			if len(alarms) != len(test.want) || len(reasons) != len(test.want) {
				t.Fatalf("alarms %v, want %v", alarms, test.want)
			}
			for i, want := range test.want {
				if alarms[i] != want || reasons[i].Code != vigie.ReasonGuard || reasons[i].Text.English == "" || reasons[i].Text.French == "" {
					t.Errorf("alarm %d is %s (%+v), want %s", i, alarms[i], reasons[i], want)
				}
			}
		})
	}
}

func TestTheImageFactsAreWhatTheySay(t *testing.T) {
	ramp := factsOf(drawn(10, 1000, func(_, x float64) float64 { return x }))
	if ramp.outside != 0 || math.Abs(ramp.spread-0.98) > 0.01 || ramp.used < 990 || ramp.correlation < 0.999 || ramp.modal > 0.003 {
		t.Errorf("a ramp: %+v", ramp)
	}
	half := factsOf(drawn(10, 10, func(_, x float64) float64 { return math.Round(x) }))
	if half.extreme != 1 || half.modal != 0.5 || half.used != 2 || half.spread != 1 {
		t.Errorf("half black, half white: %+v", half)
	}
	stripes := factsOf(drawn(10, 100, func(_, x float64) float64 { return float64(int(math.Round(x*100)) % 2) }))
	if stripes.correlation > -0.99 {
		t.Errorf("stripes: correlation %v, want -1", stripes.correlation)
	}
}

func TestAnImageThatIsMostlyCroppedAwayIsReferred(t *testing.T) {
	in := model.Input{Rows: 28, Columns: 28, Aspect: model.CentreCrop}
	for _, c := range []struct {
		rows, columns int
		referred      bool
	}{{1024, 1152, false}, {2140, 1760, false}, {600, 1500, true}, {1500, 600, true}, {28, 28, false}} {
		unseen := unseenShare(in.Window(c.rows, c.columns), c.rows, c.columns)
		if got := unseen > maxUnseen; got != c.referred {
			t.Errorf("%d×%d: %.0f %% unseen, referred %v, want %v", c.rows, c.columns, 100*unseen, got, c.referred)
		}
	}
	padded := model.Input{Rows: 28, Columns: 28, Aspect: model.Pad}
	if unseen := unseenShare(padded.Window(600, 1500), 600, 1500); unseen != 0 {
		t.Errorf("a padded image leaves %v unseen", unseen)
	}
}
