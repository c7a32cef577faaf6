package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/attack"
	attackjob "github.com/vigie/vigie/attack/job"
	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// meanNetwork writes a model that answers 1 where the mean brightness of an 8×8
// image is above a half, with the layout and output that are asked for.
func meanNetwork(t *testing.T, last bool, channels int, sigmoid bool) string {
	t.Helper()
	b := onnx.NewBuilder(17)
	size := func(n int) onnx.Dim { return onnx.Dim{Value: int64(n)} }
	shape := []onnx.Dim{{Value: -1, Param: "n"}, size(channels), size(8), size(8)}
	if last {
		shape = []onnx.Dim{{Value: -1, Param: "n"}, size(8), size(8), size(channels)}
	}
	x := b.Input("x", onnx.Float, shape...)
	flat := b.Op("Flatten", []string{x}, onnx.IntAttribute("axis", 1))
	n := 64 * channels
	weights, classes := make([]float32, 0, 2*n), int64(2)
	for range n {
		weights = append(weights, 0, 100/float32(n))
	}
	bias := []float32{50, 0}
	if sigmoid {
		weights, classes, bias = slices.Repeat([]float32{100 / float32(n)}, n), 1, []float32{-50}
	}
	z := b.Op("MatMul", []string{flat, b.Weight("w", []int64{int64(n), classes}, weights)})
	if z = b.Op("Add", []string{z, b.Weight("b", []int64{classes}, bias)}); sigmoid {
		z = b.Op("Sigmoid", []string{z})
	}
	b.Output(z, onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: classes})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "mean.onnx")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// levels writes images of one grey level each as a data set.
func levels(t *testing.T, side int, grey []uint8, labels []int64) probe.Test {
	t.Helper()
	var pixels []uint8
	for _, v := range grey {
		pixels = append(pixels, slices.Repeat([]uint8{v}, side*side)...)
	}
	path := filepath.Join(t.TempDir(), "levels.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := int64(len(grey))
	if err := train.WriteNPZ(f, map[string]train.Array{
		"val_images": {Shape: []int64{n, int64(side), int64(side)}, Data: pixels}, "val_labels": {Shape: []int64{n, 1}, Data: labels},
	}); err != nil {
		t.Fatal(err)
	}
	return probe.Test{Options: studies.Options{Data: path, Seed: 1}, Split: "val"}
}

// The mean of an image of level v under a black mask of a of its 64 pixels is
// v·(64-a)/64: which images keep their answer under one mask and under two is
// known beforehand. Masks of 2×2 patches, two along an axis of 8: 5×5.
func TestTheShareThatIsCertifiedIsTheOneThatIsKnown(t *testing.T) {
	// One mask leaves 39 pixels; two leave 24 side by side (they have 10 in common)
	// and 18 diagonally (4 in common).
	grey := []uint8{20, 120, 140, 200, 220, 230, 255, 130}
	labels := []int64{0, 0, 1, 1, 1, 1, 1, 0} // the last is answered wrongly
	data := levels(t, 8, grey, labels)
	for _, c := range []struct {
		last     bool
		channels int
		sigmoid  bool
	}{{false, 1, false}, {true, 1, true}, {false, 3, true}, {true, 3, false}} {
		path := meanNetwork(t, c.last, c.channels, c.sigmoid)
		ask := Certify{Model: path, Data: data, Patch: &model.Patch{Size: 2, Masks: 2, Fill: certificate.Black}, Each: true, Threads: 1}
		got, err := ask.Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		// Right: 7 of 8. Levels 220, 230 and 255 stay above a half under one mask
		// (210 is the limit); none of the bright stays under two. The dark stay dark.
		p := got.Patch
		if got.Images != 8 || got.Clean != train.Wilson(7, 8) || p.Masks != 4 || p.MaskRows != 5 ||
			p.Agreement != train.Wilson(5, 8) || p.FalseReview != train.Wilson(3, 8) || p.Detection != train.Wilson(5, 7) || p.Fooled != train.Wilson(2, 7) ||
			*p.Recovery != train.Wilson(2, 7) || *p.Accuracy != train.Wilson(2, 8) || len(got.Each) != 8 {
			t.Errorf("%+v: %+v, %+v", c, got, p)
		}
		if k := got.ByClass; len(k) != 2 || k[0] != (CertifiedClass{Class: "0", Images: 3, Right: 2, Detection: 2, Recovery: 2}) || k[1] != (CertifiedClass{Class: "1", Images: 5, Right: 5, Detection: 3}) {
			t.Errorf("%+v", k)
		}
		// A white mask brightens: dark images of more than 105 turn under one.
		ask.Patch.Fill, ask.Patch.Rounds = "1", 1
		if got, err = ask.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		// 20 stays dark with 25 white pixels, 120 does not; the bright stay bright.
		if p = got.Patch; p.Detection != train.Wilson(6, 7) || p.Recovery != nil || p.Accuracy != nil {
			t.Errorf("%+v, white: %+v", c, p)
		}
	}
	// Values that a graph wants normalised come out the same.
	ask := Certify{Model: meanNetwork(t, false, 1, false), Data: data, Mean: []float64{0.25}, Std: []float64{1}, Patch: &model.Patch{Size: 2, Masks: 2}}
	got, err := ask.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// Less a quarter, a half is reached from level 191 on: the flat images do not
	// change under the mean of the rest.
	if got.Clean.Value != 7./8 || got.Patch.Agreement.Value != 1 || got.Patch.Recovery.Value != 1 {
		t.Errorf("%+v, %+v", got, got.Patch)
	}
	var text bytes.Buffer
	if err := got.Write(&text); err != nil || !strings.Contains(text.String(), "certified recovery") {
		t.Errorf("%s (%v)", text.String(), err)
	}
	if data, err := json.Marshal(got); err != nil || !strings.Contains(string(data), `"certified_detection":{`) {
		t.Errorf("%s (%v)", data, err)
	}
}

// The linear model's radius is the distance to its boundary, whose curve is
// known.
func TestTheCurveOfRadiiIsTheOneThatIsKnown(t *testing.T) {
	data := levels(t, 8, []uint8{100, 155, 127, 255}, []int64{0, 1, 0, 0})
	got, err := Certify{Model: meanNetwork(t, false, 3, false), Data: data, Smoothing: &model.Smoothing{Sigma: 0.5, Samples: 1000, Alpha: 0.001}, Each: true}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i, distance := range []float64{8 * 27.5 / 255, 8 * 27.5 / 255, 8 * 0.5 / 255} {
		if one := got.Each[i]; one.Radius > distance || one.Radius < 0.8*distance-0.05 {
			t.Errorf("image %d: radius %.4f, the boundary is %.4f away", i, one.Radius, distance)
		}
	}
	q := got.Smoothing
	if got.Clean != train.Wilson(3, 4) || q.Curve[1].Radius != 0.25 || q.Curve[1].Accuracy != train.Wilson(2, 4) || q.Curve[8].Accuracy.Value != 0 {
		t.Errorf("%+v", q)
	}
	if math.Abs(q.Median-got.Each[0].Radius) > 0.1 {
		t.Errorf("median %v of %v", q.Median, got.Each)
	}
}

func TestAPackageIsCertifiedAsItsManifestSays(t *testing.T) {
	dir := demoCopy(t)
	path := filepath.Join(dir, model.ManifestFile)
	manifest, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data := levels(t, 56, []uint8{60, 128, 200}, []int64{0, 1, 1})
	if _, err := (Certify{Model: dir, Data: data}).Run(context.Background()); !errors.Is(err, ErrAsk) || !strings.Contains(err.Error(), "asks for no certificate") {
		t.Errorf("without a section: %v", err)
	}
	section := "\ncertificate:\n  when: on\n  patch: {size: 7, of: image, masks: 3, rounds: 1}\n\nplausibility:"
	if err := os.WriteFile(path, []byte(strings.Replace(string(manifest), "\nplausibility:", section, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Seal(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Certify{Model: dir, Data: data}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// 7 of 56 pixels touch 4 of 28 at most, as 7 do: masks of 4 + ⌈25/3⌉ - 1.
	if p := got.Patch; p.Size != 7 || p.Of != model.OfImage || p.ImageSide != 7 || p.Masks != 9 || p.MaskRows != 12 || p.Rounds != 1 || p.Agreement.Value != 1 {
		t.Errorf("%+v", p)
	}
}

// An attack on the images does not get past what was certified of them: those
// that it turns disagree under a mask, and those that two masks certify are
// answered as before.
func TestNoAttackGetsPastACertificate(t *testing.T) {
	// Grey levels around the boundary at 127.5: a patch of 2 by 2 moves a mean by 8.
	data := levels(t, 8, []uint8{100, 118, 121, 124, 126, 129, 131, 134, 137, 180}, []int64{0, 0, 0, 0, 0, 1, 1, 1, 1, 1})
	network := meanNetwork(t, false, 1, false)
	saved := filepath.Join(t.TempDir(), "attacked.npz")
	a := attackjob.Options{Model: network, Data: data, Attack: attack.Patch, Attacking: attack.Options{Seed: 1, Side: 2}, Save: saved}
	report, err := a.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if report.Fooled < 6 {
		t.Fatalf("only %d are fooled: the test looks at nothing", report.Fooled)
	}
	limited := a
	limited.Save, limited.Limit = "", 6
	if report, err = limited.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	some, err := Certify{Model: network, Data: data, Limit: 6, Patch: &model.Patch{Size: 2, Masks: 3}, Each: true}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var drawn []int
	for _, one := range some.Each {
		drawn = append(drawn, one.Image)
	}
	if some.Images != 6 || !slices.Equal(drawn, report.Indices) || slices.Equal(drawn, []int{0, 1, 2, 3, 4, 5}) {
		t.Errorf("certified are the images %v, attacked %v", drawn, report.Indices)
	}
	attacked := data
	attacked.Data = saved
	for _, fill := range append(certificate.Fills(), "0.4") {
		ask := Certify{Model: network, Data: data, Patch: &model.Patch{Size: 2, Masks: 3, Fill: fill}, Each: true}
		before, err := ask.Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		ask.Data = attacked
		after, err := ask.Run(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		certified := 0
		for i, was := range before.Each {
			is := after.Each[i]
			if was.Right && was.Agree == was.Masks && !is.Right && is.Agree == is.Masks {
				t.Errorf("%s: image %d was certified, turned and released", fill, i)
			}
			if was.Certified && is.Recovered != was.Answer {
				t.Errorf("%s: image %d was certified as %s and became %s", fill, i, was.Answer, is.Recovered)
			}
			if was.Certified {
				certified++
			}
		}
		if fill == certificate.Mean && certified != len(before.Each) {
			t.Errorf("of flat images that show the mean of the rest, %d are certified", certified)
		}
	}
}

func TestWhatCannotBeCertifiedIsSaidBeforeAnyWork(t *testing.T) {
	data := levels(t, 8, []uint8{10, 200}, []int64{0, 1})
	network := meanNetwork(t, false, 1, false)
	patch := &model.Patch{Size: 2, Masks: 2}
	for name, ask := range map[string]Certify{
		"nothing":            {Model: network, Data: data},
		"a patch too large":  {Model: network, Data: data, Patch: &model.Patch{Size: 8, Masks: 2}},
		"no patch":           {Model: network, Data: data, Patch: &model.Patch{Size: 0, Masks: 2}},
		"one mask":           {Model: network, Data: data, Patch: &model.Patch{Size: 2, Masks: 1}},
		"no such filling":    {Model: network, Data: data, Patch: &model.Patch{Size: 2, Masks: 2, Fill: "blur"}},
		"of nothing":         {Model: network, Data: data, Patch: &model.Patch{Size: 2, Masks: 2, Of: "screen"}},
		"no noise":           {Model: network, Data: data, Smoothing: &model.Smoothing{Sigma: 0, Samples: 1000, Alpha: 0.001}},
		"few samples":        {Model: network, Data: data, Smoothing: &model.Smoothing{Sigma: 1, Samples: 9, Alpha: 0.001}},
		"a negative limit":   {Model: network, Data: data, Patch: patch, Limit: -1},
		"another image size": {Model: network, Data: levels(t, 9, []uint8{10, 200}, []int64{0, 1}), Patch: patch},
		"two means":          {Model: network, Data: data, Patch: patch, Mean: []float64{0, 1}},
		"a package's mean":   {Model: demoCopy(t), Data: levels(t, 28, []uint8{10, 200}, []int64{0, 1}), Patch: patch, Mean: []float64{0}},
	} {
		if got, err := ask.Run(context.Background()); err == nil || got != nil || !errors.Is(err, ErrAsk) && !errors.Is(err, certificate.ErrAsk) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
