package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

const testSubject = vigie.ModelDigest("sha256:00000000000000000000000000000000000000000000000000000000000000aa")

const side = 16

// testNetwork is a small network with fixed random weights: two convolutions, an
// average, a layer of two answers.
func testNetwork(t testing.TB, channelsLast bool) Network {
	t.Helper()
	rng := rand.New(rand.NewPCG(11, 12))
	weights := func(n int, scale float64) []float32 {
		w := make([]float32, n)
		for i := range w {
			w[i] = float32(scale * rng.NormFloat64())
		}
		return w
	}
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	size := onnx.Dim{Value: side}
	n := Network{Input: "image", Output: "logits", Activation: Softmax, Shape: []int64{1, side, side}, Black: []float64{-1}, White: []float64{3}}
	x := ""
	if channelsLast {
		n.ChannelsLast, n.Shape = true, []int64{side, side, 1}
		x = b.Op("Transpose", []string{b.Input("image", onnx.Float, batch, size, size, onnx.Dim{Value: 1})}, onnx.IntsAttribute("perm", 0, 3, 1, 2))
	} else {
		x = b.Input("image", onnx.Float, batch, onnx.Dim{Value: 1}, size, size)
	}
	conv := func(x, name string, out, in int64) string {
		y := b.Op("Conv", []string{x, b.Weight(name, []int64{out, in, 3, 3}, weights(int(9*out*in), math.Sqrt(2/float64(9*in))))},
			onnx.IntsAttribute("kernel_shape", 3, 3), onnx.IntsAttribute("pads", 1, 1, 1, 1))
		return b.Op("Relu", []string{y})
	}
	x = b.Op("MaxPool", []string{conv(x, "w1", 6, 1)}, onnx.IntsAttribute("kernel_shape", 2, 2), onnx.IntsAttribute("strides", 2, 2))
	x = b.Op("Flatten", []string{b.Op("GlobalAveragePool", []string{conv(x, "w2", 8, 6)})})
	b.Node(&onnx.Node{OpType: "Gemm", Inputs: []string{x, b.Weight("w3", []int64{8, 2}, weights(16, 1)), b.Weight("b3", []int64{2}, []float32{0, 0})}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, batch, onnx.Dim{Value: 2})
	var err error
	if n.Model, err = b.Build(); err != nil {
		t.Fatal(err)
	}
	return n
}

// testImages are smooth blobs with a little noise, of which each patient has two.
func testImages(n int, seed uint64) Examples {
	rng := rand.New(rand.NewPCG(seed, 1))
	var e Examples
	for i := range n {
		values := make([]float32, side*side)
		cx, cy, width, height := 4+8*rng.Float64(), 4+8*rng.Float64(), 3+4*rng.Float64(), 0.3+0.4*rng.Float64()
		for r := range side {
			for c := range side {
				d := ((float64(r)-cy)*(float64(r)-cy) + (float64(c)-cx)*(float64(c)-cx)) / (2 * width * width)
				brightness := 0.2 + height*math.Exp(-d) + 0.004*rng.NormFloat64()
				values[r*side+c] = float32(-1 + 4*min(max(brightness, 0), 1))
			}
		}
		e.Images, e.Patients = append(e.Images, values), append(e.Patients, fmt.Sprint("P", i/2))
	}
	return e
}

var testOptions = FitOptions{Subject: testSubject, FalseAlarms: 0.05, Seed: 3, Threads: 1, Data: "blobs"}

// fitOnce is what most tests look at.
var fitOnce = sync.OnceValues(func() (*Statistics, error) {
	t := &testing.T{}
	s, _, err := Fit(context.Background(), testNetwork(t, false), testImages(300, 7), testOptions)
	return s, err
})

func fittedStatistics(t testing.TB) *Statistics {
	t.Helper()
	s, err := fitOnce()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openGuard(t testing.TB, s *Statistics) *Guard {
	t.Helper()
	g, err := Open(testNetwork(t, false).Model, s, Options{Subject: testSubject, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func judged(t testing.TB, g *Guard, values []float32) []vigie.GuardResult {
	t.Helper()
	look, err := g.Run(context.Background(), engine.Float32([]int64{1, 1, side, side}, values))
	if err != nil {
		t.Fatal(err)
	}
	results, err := g.Judge(context.Background(), look)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func alarm(results []vigie.GuardResult) bool { return results[len(results)-1].Alarm }

func TestCleanImagesRaiseAsManyAlarmsAsPromisedAndOthersDo(t *testing.T) {
	g := openGuard(t, fittedStatistics(t))
	alarms := 0
	const clean = 400
	for _, values := range testImages(clean, 99).Images {
		results := judged(t, g, values)
		if last := results[len(results)-1]; last.Guard != string(Combined) || last.Alarm != (last.Reason != nil) {
			t.Fatalf("the last result is %+v", last)
		}
		for _, r := range results {
			if !(r.PValue > 0 && r.PValue <= 1) {
				t.Fatalf("p-value %v of %s", r.PValue, r.Guard)
			}
		}
		if alarm(results) {
			alarms++
		}
	}
	// 0.05 in the mean over calibrations; one of 179 images has a deviation of
	// 0.016, and so many new ones 0.011.
	if rate := float64(alarms) / clean; rate < 0.005 || rate > 0.13 {
		t.Errorf("%.3f alarms on clean images, 0.05 are promised", rate)
	}
	rng := rand.New(rand.NewPCG(1, 9))
	for name, alter := range map[string]func(values []float32){
		"noise": func(v []float32) {
			for i := range v {
				v[i] = -1 + 4*rng.Float32()
			}
		},
		"constant": func(v []float32) {
			for i := range v {
				v[i] = 0.7
			}
		},
		"grain": func(v []float32) {
			for i := range v {
				v[i] += 4 * 0.03 * float32(2*rng.IntN(2)-1)
			}
		},
		"a patch": func(v []float32) {
			for r := 6; r < 9; r++ {
				for c := 6; c < 9; c++ {
					v[r*side+c] = float32(-1 + 4*((r+c)%2))
				}
			}
		},
		"upside down in brightness": func(v []float32) {
			for i := range v {
				v[i] = 2 - v[i]
			}
		},
	} {
		found := 0
		const tries = 40
		for _, values := range testImages(tries, 98).Images {
			alter(values)
			if results := judged(t, g, values); alarm(results) {
				found++
				if why := results[len(results)-1].Reason; why.Text.English == "" || why.Text.French == "" || why.Code != vigie.ReasonGuard {
					t.Errorf("%s: the alarm's reason is %+v", name, why)
				}
			}
		}
		if found < tries*9/10 {
			t.Errorf("%s: %d alarms of %d", name, found, tries)
		}
	}
}

func TestTheGuardedAnswerIsTheModels(t *testing.T) {
	g := openGuard(t, fittedStatistics(t))
	n := testNetwork(t, false)
	bare, err := engine.Open(n.Model, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	for _, values := range testImages(5, 44).Images {
		input := engine.Float32([]int64{1, 1, side, side}, values)
		look, err := g.Run(context.Background(), input)
		if err != nil {
			t.Fatal(err)
		}
		out, err := bare.Run(context.Background(), map[string]engine.Tensor{"image": input})
		if err != nil {
			t.Fatal(err)
		}
		want, _ := engine.Values[float32](out["logits"])
		for k := range want {
			if math.Abs(float64(want[k]-look.Output[k])) > 1e-5 {
				t.Errorf("output %v, want %v", look.Output, want)
			}
		}
	}
}

func TestTheSameImagesAndSeedGiveTheSameBytes(t *testing.T) {
	first, err := fittedStatistics(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := Fit(context.Background(), testNetwork(t, false), testImages(300, 7), testOptions)
	if err != nil {
		t.Fatal(err)
	}
	second, err := again.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("two fits differ")
	}
	other := testOptions
	other.Seed++
	again, _, err = Fit(context.Background(), testNetwork(t, false), testImages(300, 7), other)
	if err != nil {
		t.Fatal(err)
	}
	if third, err := again.Marshal(); err != nil || bytes.Equal(first, third) {
		t.Errorf("another seed changes nothing (%v)", err)
	}
	read, err := Parse(first)
	if err != nil {
		t.Fatal(err)
	}
	written, err := read.Marshal()
	if err != nil || !bytes.Equal(first, written) {
		t.Errorf("what was read is written in another way (%v)", err)
	}
	a, b := openGuard(t, fittedStatistics(t)), openGuard(t, read)
	for _, values := range testImages(6, 5).Images {
		x, y := judged(t, a, values), judged(t, b, values)
		for i := range x {
			if x[i].PValue != y[i].PValue {
				t.Errorf("%s says %v, and %v once read from the file", x[i].Guard, x[i].PValue, y[i].PValue)
			}
		}
	}
}

func TestChannelsLastGivesTheSameVerdicts(t *testing.T) {
	last, _, err := Fit(context.Background(), testNetwork(t, true), testImages(300, 7), testOptions)
	if err != nil {
		t.Fatal(err)
	}
	first := fittedStatistics(t)
	for k := range kinds {
		if a, b := first.Tails[k].Threshold, last.Tails[k].Threshold; math.Abs(a-b) > 1e-3*(1+math.Abs(a)) {
			t.Errorf("%s: threshold %v, with channels last %v", kinds[k].Name, a, b)
		}
	}
}

func TestWhatCannotBeGuardedIsRefusedByName(t *testing.T) {
	ctx := context.Background()
	g := openGuard(t, fittedStatistics(t))
	nan := slices.Clone(testImages(1, 1).Images[0])
	nan[17] = float32(math.NaN())
	for name, input := range map[string]engine.Tensor{
		"wrong geometry": engine.Float32([]int64{1, 1, side, side + 1}, make([]float32, side*(side+1))),
		"not a number":   engine.Float32([]int64{1, 1, side, side}, nan),
		"two images":     engine.Float32([]int64{2, 1, side, side}, make([]float32, 2*side*side)),
		"integers":       engine.Int32([]int64{1, 1, side, side}, make([]int32, side*side)),
	} {
		if _, err := g.Run(ctx, input); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := "sha256:" + strings.Repeat("b", 64)
	if _, err := Open(testNetwork(t, false).Model, fittedStatistics(t), Options{Subject: vigie.ModelDigest(other)}); !errors.Is(err, ErrOtherModel) || !strings.Contains(err.Error(), other) {
		t.Errorf("statistics of another model: %v", err)
	}
	n := testNetwork(t, false)
	for name, test := range map[string]struct {
		images Examples
		want   error
	}{
		"too few":       {testImages(60, 1), ErrTooFew},
		"one patient":   {Examples{Images: testImages(300, 1).Images, Patients: slices.Repeat([]string{"P"}, 300)}, ErrTooFew},
		"equal images":  {Examples{Images: slices.Repeat(testImages(1, 1).Images, 300)}, ErrTooFew},
		"NaN":           {Examples{Images: append(testImages(300, 1).Images, nan)}, ErrInput},
		"wrong numbers": {Examples{Images: append(testImages(300, 1).Images, nan[1:])}, ErrInput},
	} {
		if _, _, err := Fit(ctx, n, test.images, testOptions); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	flat := Examples{}
	for i := range 300 {
		v := make([]float32, side*side)
		for k := range v {
			v[k] = float32(i) / 300
		}
		flat.Images = append(flat.Images, v)
	}
	if _, _, err := Fit(ctx, n, flat, testOptions); err == nil {
		t.Log("constant images of different brightness can be fitted: they vary")
	}
}

func TestAPatientIsOnOneSideOfTheSplitOnly(t *testing.T) {
	e := testImages(301, 2)
	e.Images[300] = slices.Clone(e.Images[10]) // a copy under another patient
	fitted, calibrated, err := divide(e, FitOptions{FalseAlarms: 0.05, Seed: 9})
	if err != nil {
		t.Fatal(err)
	}
	where := map[string]int{}
	for k, part := range [][]int{fitted, calibrated} {
		for _, i := range part {
			if seen, ok := where[e.Patients[i]]; ok && seen != k {
				t.Errorf("patient %s is on both sides", e.Patients[i])
			}
			where[e.Patients[i]] = k
		}
	}
	if where[e.Patients[300]] != where[e.Patients[10]] {
		t.Error("copies of an image are on both sides")
	}
	if len(fitted)+len(calibrated) != 301 || len(calibrated) > 179 || len(calibrated) < 177 {
		t.Errorf("%d fitted, %d calibrated", len(fitted), len(calibrated))
	}
}

func TestAPanicInsideIsAnError(t *testing.T) {
	g := openGuard(t, fittedStatistics(t))
	look, err := g.Run(context.Background(), engine.Float32([]int64{1, 1, side, side}, testImages(1, 4).Images[0]))
	if err != nil {
		t.Fatal(err)
	}
	look.layers = look.layers[:1] // what no run gives
	if results, err := g.Judge(context.Background(), look); err == nil || results != nil {
		t.Errorf("got %v, %v", results, err)
	}
}

func TestACopyUnderAnotherPatientIsNoticed(t *testing.T) {
	g := openGuard(t, fittedStatistics(t))
	memory := NewRecent(40)
	images := testImages(60, 31).Images
	seen := func(patient string, values []float32) bool {
		look, err := g.Run(context.Background(), engine.Float32([]int64{1, 1, side, side}, values))
		if err != nil {
			t.Fatal(err)
		}
		r, err := g.Seen(memory, vigie.PatientPseudonym(patient), look)
		if err != nil || r.Alarm != (r.Reason != nil) {
			t.Fatalf("%+v, %v", r, err)
		}
		return r.Alarm
	}
	for i := range 30 {
		if seen(fmt.Sprint("P", i), images[i]) {
			t.Errorf("image %d, of its own kind, was taken for a copy", i)
		}
	}
	if seen("P3", images[3]) {
		t.Error("the same patient's image, sent again, is no replay")
	}
	copied := slices.Clone(images[20])
	for i := range copied {
		copied[i] += 0.002 * float32(i%3-1)
	}
	if !seen("P99", copied) {
		t.Error("a slightly altered copy under another patient was not noticed")
	}
	for i := 30; i < 60; i++ {
		seen(fmt.Sprint("Q", i), images[i])
	}
	for i := 30; i < 42; i++ {
		seen(fmt.Sprint("R", i), testImages(60, 77).Images[i])
	}
	if seen("P98", images[0]) {
		t.Error("what was forgotten was remembered")
	}
}
