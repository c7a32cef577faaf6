package train

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx/zoo"
)

// marked is a set of labels that do not exclude each other, with logits that
// know something of them.
func marked(n int, seed uint64) (*Set, [][]float64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := &Set{Name: "marked", Shape: []int64{1}, Classes: 3, Values: make([]float32, n)}
	var logits [][]float64
	for range n {
		row := make([]float64, 3)
		for c, p := range []float64{0.5, 0.3, 0.1} {
			mark := uint8(0)
			if rng.Float64() < p {
				mark = 1
			}
			s.Marks = append(s.Marks, mark)
			row[c] = 3 * (float64(mark)*1.5 - 1 + rng.NormFloat64())
		}
		logits = append(logits, row)
	}
	return s, logits
}

// pairwise is the AUC by its definition.
func pairwise(scores []float64, positive []bool) float64 {
	sum, n := 0.0, 0.0
	for i, p := range scores {
		for j, q := range scores {
			if positive[i] && !positive[j] {
				n++
				if p > q {
					sum++
				} else if p == q {
					sum += 0.5
				}
			}
		}
	}
	return sum / n
}

func TestFiguresOfManyLabelsAreThoseOfTheirDefinition(t *testing.T) {
	s, logits := marked(120, 1)
	mean, loss, right := 0.0, 0.0, 0.0
	for c := range 3 {
		scores, positive := s.Scores(logits, c)
		mean += pairwise(scores, positive) / 3
		for i, z := range scores {
			p := 1 / (1 + math.Exp(-z/2))
			if positive[i] {
				loss -= math.Log(p) / 360
			} else {
				loss -= math.Log(1-p) / 360
			}
			if (z >= 0) == positive[i] {
				right += 1.0 / 360
			}
		}
	}
	got, err := s.MeanAUC(logits)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "mean AUC", got, mean, 1e-12)
	near(t, "log loss", s.LogLoss(logits, 2), loss, 1e-12)
	near(t, "accuracy", s.Accuracy(logits), right, 1e-12)
	temperature, err := s.Temperature(logits)
	if err != nil {
		t.Fatal(err)
	}
	best := s.LogLoss(logits, temperature)
	for _, other := range []float64{temperature * 0.95, temperature * 1.05, 1} {
		if s.LogLoss(logits, other) < best {
			t.Errorf("temperature %g is better than %g", other, temperature)
		}
	}
	if before, after := s.CalibrationError(logits, 1), s.CalibrationError(logits, temperature); after > before {
		t.Errorf("calibration error rises from %g to %g", before, after)
	}
}

func TestTheBootstrapOfAMeanCoversIt(t *testing.T) {
	s, logits := marked(400, 2)
	auc, err := s.BootstrapMeanAUC(logits, 500, 1)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := s.BootstrapMeanAUC(logits, 500, 1)
	other, _ := s.BootstrapMeanAUC(logits, 500, 2)
	if auc != again || auc == other || !(auc.Low < auc.Value && auc.Value < auc.High) {
		t.Errorf("intervals %v, %v with the same seed, %v with another", auc, again, other)
	}
	// Of two classes the mean is one AUC, whose interval DeLong gives, too.
	two := &Set{Classes: 2, Shape: []int64{1}}
	var scores [][]float64
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range 400 {
		two.Labels = append(two.Labels, i%2)
		z := float64(i%2) + rng.NormFloat64()
		scores = append(scores, []float64{-z, z})
	}
	bootstrap, err := two.BootstrapMean(scores, 4000, 1)
	if err != nil {
		t.Fatal(err)
	}
	delong, err := AUC(column(scores, 1), classOf(two, 1))
	if err != nil {
		t.Fatal(err)
	}
	near(t, "value", bootstrap.Value, delong.Value, 1e-12)
	near(t, "lower end", bootstrap.Low, delong.Low, 0.01)
	near(t, "upper end", bootstrap.High, delong.High, 0.01)
	rare := &Set{Classes: 1, Shape: []int64{1}, Marks: make([]uint8, 50)}
	if _, err := rare.BootstrapMean(make([][]float64, 50), 100, 1); err == nil {
		t.Error("labels without scores have an interval")
	}
	if _, err := s.BootstrapMean(logits, 5, 1); err == nil {
		t.Error("five resamples give an interval")
	}
}

func column(scores [][]float64, c int) []float64 {
	var out []float64
	for _, z := range scores {
		out = append(out, z[c])
	}
	return out
}

func classOf(s *Set, c int) []bool {
	var out []bool
	for i := range s.Len() {
		out = append(out, s.Has(i, c))
	}
	return out
}

func TestAPerfectAUCHasALowerBound(t *testing.T) {
	scores, positive := make([]float64, 86), make([]bool, 86)
	for i := range scores {
		scores[i], positive[i] = float64(i), i >= 33
	}
	auc, err := AUC(scores, positive)
	if err != nil {
		t.Fatal(err)
	}
	if auc.High < 1-1e-9 || auc.Low > 0.95 || auc.Low < 0.85 {
		t.Errorf("interval is %+v", auc)
	}
}

func TestAPerfectAUCIsOneForEveryNumberOfExamples(t *testing.T) {
	for n := 2; n < 200; n++ { // a sum of n shares of 1/n is often not 1
		scores, positive := make([]float64, n+1), make([]bool, n+1)
		for i := range scores {
			scores[i], positive[i] = float64(i), i > 0
		}
		auc, err := AUC(scores, positive)
		if err != nil {
			t.Fatal(err)
		}
		if auc.Value != 1 || auc.High != 1 {
			t.Fatalf("%d examples in perfect order: %+v", n+1, auc)
		}
	}
}

func TestAnEmptyClassIsFoundInFiguresToo(t *testing.T) {
	s := &Set{Classes: 3, Shape: []int64{1}, Labels: []int{0, 1, 0}}
	if _, err := s.MeanAUC([][]float64{{1, 2, 3}, {1, 2, 3}, {3, 2, 1}}); !errors.Is(err, ErrOneClass) || !strings.Contains(err.Error(), "class 2") {
		t.Errorf("error is %v", err)
	}
}

func TestLabelsThatDoNotExcludeEachOtherAreLearnt(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	set := func(n int) *Set {
		s := columns(n, rng.Uint64())
		s.Labels = nil
		for i := range n {
			for c := range 2 {
				mark := uint8(0)
				if s.values(i)[c] > 0 {
					mark = 1
				}
				s.Marks = append(s.Marks, mark)
			}
		}
		return s
	}
	result := train(t, Config{Network: importedMLP(t, 2), Train: set(256), Validation: set(128), Recipe: Recipe{Epochs: 8, Batch: 32, Rate: 1e-2, Mixup: 0.1, Smoothing: 0.05, Seed: 1}})
	if best := result.History.Epochs[result.History.Best-1]; best.ValidationAUC < 0.98 {
		t.Errorf("mean AUC over the labels is %g", best.ValidationAUC)
	}
}

func TestOneLogitTellsTwoClasses(t *testing.T) {
	r := Recipe{Epochs: 6, Batch: 32, Rate: 1e-2, Seed: 1, ClassWeights: []float64{1, 2}}
	result := train(t, Config{Network: importedMLP(t, 1), Train: columns(256, 1), Validation: columns(128, 2), Recipe: r})
	if best := result.History.Epochs[result.History.Best-1]; best.ValidationAUC < 0.98 || len(result.Logits[0]) != 2 || result.Logits[0][0] != 0 {
		t.Errorf("AUC is %g, logits %v", best.ValidationAUC, result.Logits[0])
	}
}

func TestCurvesAreDrawnWhateverHappened(t *testing.T) {
	long := History{Best: 40}
	for i := range 120 {
		long.Epochs = append(long.Epochs, Epoch{Epoch: i + 1, Loss: 5 / float64(i+1), ValidationLoss: 0.2, ValidationAUC: 0.99})
	}
	for name, h := range map[string]History{
		"long":     long,
		"one":      {Best: 1, Epochs: long.Epochs[:1]},
		"none":     {},
		"constant": {Best: 1, Epochs: []Epoch{{Loss: 1, ValidationLoss: 1, ValidationAUC: 1}, {Loss: 1, ValidationLoss: 1, ValidationAUC: 1}}},
		"NaN":      {Best: 1, Epochs: []Epoch{{Loss: 1, ValidationLoss: math.NaN(), ValidationAUC: 0.5}, {Loss: math.Inf(1), ValidationLoss: 2, ValidationAUC: 0.5}}},
		"tiny":     {Best: 2, Epochs: []Epoch{{Loss: 1e-12, ValidationAUC: 0.5}, {Loss: 3e-12, ValidationAUC: 0.50000001}}},
		"huge":     {Best: 1, Epochs: []Epoch{{Loss: 1e300, ValidationLoss: -1e300}, {Loss: 2}}},
	} {
		data, err := h.PNG()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		img, err := png.Decode(bytes.NewReader(data))
		if err != nil || img.Bounds().Dx() != 1800 || img.Bounds().Dy() != 760 {
			t.Errorf("%s: %v, %v", name, img.Bounds(), err)
		}
		svg := h.SVG()
		decoder := xml.NewDecoder(bytes.NewReader(svg))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if bytes.Contains(svg, []byte("NaN")) || bytes.Contains(svg, []byte("Inf")) || len(svg) > 100<<10 {
			t.Errorf("%s: the SVG has %d bytes or holds what is not a number", name, len(svg))
		}
	}
	if n := strings.Count(string(long.SVG()), "<polyline"); n < 8 {
		t.Errorf("%d lines are drawn", n)
	}
}

func TestAxesAreRoundAndEncloseTheValues(t *testing.T) {
	for _, c := range [][2]float64{{0.1, 0.76}, {0.98, 0.9991}, {-3, 7}, {5, 5}, {0, 0}, {1e-9, 2e-9}} {
		ticks := axis(c[0], c[1])
		if ticks[0] > c[0]+1e-12 || ticks[len(ticks)-1] < c[1]-1e-12 || len(ticks) < 2 || len(ticks) > 9 || !slices.IsSorted(ticks) {
			t.Errorf("%v: ticks are %v", c, ticks)
		}
	}
}

func TestGradientsAreClippedToTheirJointNorm(t *testing.T) {
	g := [][]float32{{3}, {0, 4}}
	if norm := Clip(g, 0); norm != 5 || g[0][0] != 3 {
		t.Errorf("measuring: norm %g, gradient %v", norm, g)
	}
	if norm := Clip(g, 10); norm != 5 || g[0][0] != 3 {
		t.Errorf("a small gradient: norm %g, gradient %v", norm, g)
	}
	Clip(g, 1)
	near(t, "clipped", math.Hypot(float64(g[0][0]), float64(g[1][1])), 1, 1e-6)
	near(t, "direction", float64(g[1][1]/g[0][0]), 4.0/3, 1e-6)
}

func TestFloatImagesAreAugmentedAsBytesAre(t *testing.T) {
	src := ramp(12, 12)
	floats := make([]float32, len(src))
	plain(floats, src)
	a := Augmentation{Shift: 2, Rotation: 20, Zoom: 0.2, Contrast: 0.2, Brightness: 0.1, Noise: 0.05, Mirror: 0.5, Erase: 0.5}
	for seed := range uint64(20) {
		want, got := augmented(a, src, 12, 12, seed), make([]float32, len(src))
		a.ApplyFloats(got, floats, 1, 12, 12, rand.New(rand.NewPCG(seed, 0)))
		for i := range want {
			near(t, "pixel", float64(got[i]), float64(want[i]), 1e-5)
		}
	}
}

// importedMLP is a small network for four columns.
func importedMLP(t *testing.T, outputs int) *Network {
	t.Helper()
	n, err := Import(member(t, "tabular-mlp", zoo.Options{Input: []int64{4}, Classes: outputs}).Model, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A private run has no training loss: neither a line of zeros nor a number says
// that it had.
func TestThePrivateTrainingLossIsLeftOutAndTheReasonSaid(t *testing.T) {
	h := History{Recipe: Recipe{Private: &Privacy{}}, Best: 1, Withheld: withheld, Epochs: []Epoch{{Epoch: 1, ValidationLoss: 0.5, ValidationAUC: 0.8}, {Epoch: 2, ValidationLoss: 0.4, ValidationAUC: 0.9}}}
	private := string(h.SVG())
	raw, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(private, ">training<") || strings.Contains(private, blue) || !strings.Contains(private, "private: not released") || strings.Contains(string(raw), `"loss":`) || !strings.Contains(string(raw), `"loss_withheld":"the training loss is`) {
		t.Errorf("the curves or the record hold a training loss, or no reason:\n%s\n%s", raw, private)
	}
	h.Recipe.Private, h.Withheld = nil, ""
	h.Epochs[0].Loss, h.Epochs[1].Loss = 0.6, 0.3
	plain := string(h.SVG())
	if raw, err = json.Marshal(h); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(plain, ">training<") || !strings.Contains(plain, blue) || !strings.Contains(string(raw), `"loss":0.6`) || strings.Contains(string(raw), "withheld") {
		t.Errorf("without privacy:\n%s\n%s", raw, plain)
	}
}
