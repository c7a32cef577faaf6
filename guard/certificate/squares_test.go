package certificate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// argmax decides for the class with the highest output.
func argmax(output []float32) (Answer, error) {
	best := 0
	for i, v := range output {
		if v > output[best] {
			best = i
		}
	}
	return Answer(strconv.Itoa(best)), nil
}

func fixed(n int) onnx.Dim { return onnx.Dim{Value: int64(n)} }

// network is two convolutions and a layer.
func network(t testing.TB, rows, columns, classes int, first, bias, second, out []float32) Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	h := b.Input("image", onnx.Float, batch, fixed(1), fixed(rows), fixed(columns))
	pads := onnx.IntsAttribute("pads", 1, 1, 1, 1)
	h = b.Op("Relu", []string{b.Op("Conv", []string{h, b.Weight("first", []int64{4, 1, 3, 3}, first), b.Weight("bias", []int64{4}, bias)}, pads)})
	h = b.Op("Relu", []string{b.Op("Conv", []string{h, b.Weight("second", []int64{4, 4, 3, 3}, second)}, pads)})
	b.Node(&onnx.Node{OpType: "MatMul", Inputs: []string{b.Op("Flatten", []string{h}), b.Weight("out", []int64{int64(4 * rows * columns), int64(classes)}, out)}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, batch, fixed(classes))
	graph, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return Model{Graph: graph, Input: "image", Output: "logits", Shape: []int64{1, int64(rows), int64(columns)}, Black: []float64{0}, White: []float64{1}, Decide: argmax}
}

// drawn is a network of random weights.
func drawn(t testing.TB, random *rand.Rand, rows, columns, classes int) Model {
	weights := func(n int, size float64) []float32 {
		w := make([]float32, n)
		for i := range w {
			w[i] = float32(size * random.NormFloat64())
		}
		return w
	}
	return network(t, rows, columns, classes, weights(36, 1), weights(4, 1), weights(144, 0.4), weights(4*rows*columns*classes, 0.5))
}

func open(t testing.TB, m Model, o Options) *Certifier {
	t.Helper()
	c, err := Open(m, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func example(m Model, values []float32) engine.Tensor {
	return engine.Float32(append([]int64{1}, m.Shape...), values)
}

// plain is a model's answer on an image as it is.
func plain(t testing.TB, c *Certifier, values []float32) Answer {
	t.Helper()
	var got Answer
	err := c.answers(context.Background(), 1, func(_ int, row []float32) { copy(row, values) }, func(_ int, a Answer) bool {
		got = a
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDoubleMaskingIsThatOfAnIndependentImplementation(t *testing.T) {
	data, err := os.ReadFile("testdata/squares.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Rows, Columns, Classes, Masks int
		Patch                         []int
		Network                       map[string][]float32
		Cases                         []struct {
			Fill           string
			Image          []float32
			Own, Recovered int
			One            []int
			Certified      bool
			Through        int
		}
	}
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	m := network(t, golden.Rows, golden.Columns, golden.Classes, golden.Network["first"], golden.Network["bias"], golden.Network["second"], golden.Network["out"])
	by := map[string]*Certifier{}
	for _, fill := range Fills() {
		by[fill] = open(t, m, Options{Patch: &Patch{Masks: golden.Masks, Fill: fill, Rounds: 2}, Threads: 2, Batch: 5})
	}
	certified, disagreed := 0, 0
	for i, k := range golden.Cases {
		c := by[k.Fill]
		s, err := c.Squares(context.Background(), example(m, k.Image), Answer(strconv.Itoa(k.Own)), Size{golden.Patch[0], golden.Patch[1]}, Whole(golden.Rows, golden.Columns))
		if err != nil {
			t.Fatal(err)
		}
		var one []int
		for _, a := range s.Covered {
			n, _ := strconv.Atoi(string(a))
			one = append(one, n)
		}
		if !slices.Equal(one, k.One) || string(s.Recovered) != strconv.Itoa(k.Recovered) || s.Certified != k.Certified {
			t.Errorf("case %d (%s): masks %v, recovered %s, certified %v; want %v, %d, %v", i, k.Fill, one, s.Recovered, s.Certified, k.One, k.Recovered, k.Certified)
		}
		if s.Certified && (s.Pairs != s.Cover.Pairs() || s.PairsAgree != s.Pairs || !s.Agreed()) {
			t.Errorf("case %d: certified with %d of %d pairs", i, s.PairsAgree, s.Pairs)
		}
		if s.Certified {
			certified++
		}
		if !s.Agreed() {
			disagreed++
		}
	}
	if certified < 5 || disagreed < 5 {
		t.Errorf("%d certified and %d disagreed of %d: the test looks at one side", certified, disagreed, len(golden.Cases))
	}
}

// No content of a patch turns what is certified, and none turns an answer and
// passes: every position with every content of an alphabet, on drawn networks.
// What is not certified is turned often enough that the test could fail.
func TestNoCertifiedAnswerIsTurnedByAnyPatch(t *testing.T) {
	const rows, columns, patch = 5, 6, 2
	levels := []float32{0, 0.4, 1}
	networks := 6
	if testing.Short() {
		networks = 2
	}
	random := rand.New(rand.NewPCG(3, 4))
	certified, agreed, turned, recovered := 0, 0, 0, 0
	for n := range networks {
		m := drawn(t, random, rows, columns, 2)
		c := open(t, m, Options{Patch: &Patch{Masks: 2 + n%2, Fill: Fills()[n%3], Rounds: 2}, Batch: 32, Threads: 1})
		// The attacker's side asks only for what it needs: one round.
		one := open(t, m, Options{Patch: &Patch{Masks: 2 + n%2, Fill: Fills()[n%3], Rounds: 1}, Batch: 10, Threads: 1})
		for range 4 {
			image := make([]float32, rows*columns)
			level := random.Float32()
			for i := range image {
				image[i] = min(max(level+0.3*float32(random.NormFloat64()), 0), 1)
			}
			own := plain(t, c, image)
			before, err := c.Squares(context.Background(), example(m, image), own, Size{patch, patch}, Whole(rows, columns))
			if err != nil {
				t.Fatal(err)
			}
			if before.Certified {
				certified++
			}
			if before.Agreed() {
				agreed++
			}
			// Every patch, and what the model says of each.
			var changed [][]float32
			for at := range (rows - patch + 1) * (columns - patch + 1) {
				for content := range 81 {
					x := slices.Clone(image)
					for k, rest := 0, content; k < 4; k, rest = k+1, rest/3 {
						x[(at/(columns-patch+1)+k/2)*columns+at%(columns-patch+1)+k%2] = levels[rest%3]
					}
					changed = append(changed, x)
				}
			}
			now := make([]Answer, len(changed))
			if err := one.answers(context.Background(), len(changed), func(i int, row []float32) { copy(row, changed[i]) }, func(i int, a Answer) bool {
				now[i] = a
				return true
			}); err != nil {
				t.Fatal(err)
			}
			for i, x := range changed {
				if now[i] == own && (!before.Certified || i%5 > 0) {
					continue // nothing is wrong; of what is certified a part is asked about all the same
				}
				after, err := one.Squares(context.Background(), example(m, x), now[i], Size{patch, patch}, Whole(rows, columns))
				if err != nil {
					t.Fatal(err)
				}
				if before.Certified && after.Recovered != own {
					t.Fatalf("network %d: a certified answer %s was turned to %s by patch %d", n, own, after.Recovered, i)
				}
				if before.Agreed() && now[i] != own && after.Agreed() {
					t.Fatalf("network %d: the answer %s became %s by patch %d and was released", n, own, now[i], i)
				}
				if now[i] != own {
					turned++
				}
				if now[i] != own && after.Recovered == own {
					recovered++
				}
			}
		}
	}
	if certified == 0 || agreed == 0 || turned < 50 || recovered == 0 {
		t.Errorf("%d images certified, %d agreed, %d patches turned the model, %d were recovered from: the test looks at one side", certified, agreed, turned, recovered)
	}
}

// What a mask hides leaves no trace in what is asked, with any filling.
func TestWhatIsHiddenDoesNotReachTheModel(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	m := drawn(t, random, 7, 9, 2)
	m.Black, m.White = []float64{-1.7}, []float64{2.3}
	for _, fill := range append(Fills(), "0.3") {
		c := open(t, m, Options{Patch: &Patch{Masks: 3, Fill: fill, Rounds: 1}})
		cover, err := Covering(Whole(7, 9), Size{2, 2}, 3)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			image := make([]float32, 63)
			for i := range image {
				image[i] = float32(random.NormFloat64())
			}
			mask, other := cover.Masks[random.IntN(len(cover.Masks))], cover.Masks[random.IntN(len(cover.Masks))]
			changed := slices.Clone(image)
			for p := range changed {
				if mask.Holds(p/9, p%9) {
					changed[p] = float32(1e3 * random.NormFloat64())
				}
			}
			for _, masks := range [][]Mask{{mask}, {mask, other}, {other, mask}} {
				one, two := slices.Clone(image), slices.Clone(changed)
				c.hide(one, image, masks...)
				c.hide(two, changed, masks...)
				if !slices.Equal(one, two) {
					t.Fatalf("filled with %s, masks %v: what is hidden shows", fill, masks)
				}
			}
		}
	}
}

// Bit for bit: the proofs compare answers to the same numbers in different runs.
func TestAnAnswerDoesNotDependOnItsPlaceInARunNorOnItsNeighbours(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	m := drawn(t, random, 28, 28, 2)
	c := open(t, m, Options{Patch: &Patch{Masks: 3, Fill: Mean, Rounds: 1}})
	rows := make([]float32, c.batch*784)
	image := make([]float32, 784)
	for i := range image {
		image[i] = random.Float32()
	}
	var first []float32
	for place := range c.batch {
		for i := range rows {
			rows[i] = random.Float32()
		}
		copy(rows[place*784:], image)
		output, err := c.run(context.Background(), rows)
		if err != nil {
			t.Fatal(err)
		}
		if place == 0 {
			first = slices.Clone(output[:2])
		} else if !slices.Equal(first, output[place*2:place*2+2]) {
			t.Errorf("at place %d of %d: %v, at the first %v", place, c.batch, output[place*2:place*2+2], first)
		}
	}
}

func TestAnotherAnswerThanWasReportedIsNotCertified(t *testing.T) {
	m := drawn(t, rand.New(rand.NewPCG(9, 9)), 8, 8, 2)
	c := open(t, m, Options{Patch: &Patch{Masks: 2, Fill: Mean, Rounds: 2}})
	image := make([]float32, 64)
	own := plain(t, c, image)
	other := Answer("0")
	if own == other {
		other = "1"
	}
	if _, err := c.Squares(context.Background(), example(m, image), other, Size{2, 2}, Whole(8, 8)); !errors.Is(err, ErrOther) {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsNoImageIsRefused(t *testing.T) {
	m := drawn(t, rand.New(rand.NewPCG(10, 11)), 8, 8, 2)
	c := open(t, m, Options{Patch: &Patch{Masks: 2, Fill: Mean, Rounds: 2}, Smoothing: &Smoothing{Sigma: 0.25, Samples: 100, Alpha: 0.01}})
	ctx := context.Background()
	for name, values := range map[string][]float32{"too short": make([]float32, 63), "no number": append(make([]float32, 63), float32(math.NaN())), "infinite": append(make([]float32, 63), float32(math.Inf(1)))} {
		if _, err := c.Squares(ctx, engine.Float32([]int64{1, int64(len(values))}, values), "0", Size{2, 2}, Whole(8, 8)); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.Smooth(ctx, engine.Float32([]int64{1, int64(len(values))}, values), Seed{}); !errors.Is(err, ErrInput) {
			t.Errorf("%s, smoothed: %v", name, err)
		}
	}
	image := example(m, make([]float32, 64))
	for _, ask := range []struct {
		patch  Size
		region Region
	}{{Size{9, 2}, Whole(8, 8)}, {Size{8, 8}, Whole(8, 8)}, {Size{2, 2}, Region{4, 0, 8, 8}}, {Size{0, 2}, Whole(8, 8)}} {
		if _, err := c.Squares(ctx, image, plain(t, c, make([]float32, 64)), ask.patch, ask.region); !errors.Is(err, ErrAsk) {
			t.Errorf("%+v: %v", ask, err)
		}
	}
}

func TestAModelThatGivesNoNumberGivesNoCertificate(t *testing.T) {
	for name, decide := range map[string]func([]float32) (Answer, error){
		"an error": func([]float32) (Answer, error) { return "", errors.New("no") },
		"a panic":  func([]float32) (Answer, error) { panic("secret") },
	} {
		m := drawn(t, rand.New(rand.NewPCG(12, 13)), 8, 8, 2)
		m.Decide = decide
		c := open(t, m, Options{Patch: &Patch{Masks: 2, Fill: Mean, Rounds: 2}})
		s, err := c.Squares(context.Background(), example(m, make([]float32, 64)), "0", Size{2, 2}, Whole(8, 8))
		if err == nil || s != nil || name == "a panic" && fmt.Sprint(err) != "certificate: covering an image: contained panic (string)" {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	// Weights that overflow: infinities, and no numbers, inside the graph.
	huge := slices.Repeat([]float32{3e38}, 4*64*2)
	m := network(t, 8, 8, 2, slices.Repeat([]float32{1}, 36), make([]float32, 4), slices.Repeat([]float32{1}, 144), huge)
	c := open(t, m, Options{Patch: &Patch{Masks: 2, Fill: Mean, Rounds: 2}})
	if _, err := c.Squares(context.Background(), example(m, slices.Repeat([]float32{1}, 64)), "0", Size{2, 2}, Whole(8, 8)); !errors.Is(err, ErrOutput) {
		t.Errorf("got %v", err)
	}
}

func TestACertificateStopsWithItsContext(t *testing.T) {
	m := drawn(t, rand.New(rand.NewPCG(14, 15)), 8, 8, 2)
	c := open(t, m, Options{Patch: &Patch{Masks: 4, Fill: Mean, Rounds: 2}, Smoothing: &Smoothing{Sigma: 0.25, Samples: 100, Alpha: 0.01}})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Squares(ctx, example(m, make([]float32, 64)), "0", Size{2, 2}, Whole(8, 8)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Smooth(ctx, example(m, make([]float32, 64)), Seed{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A graph whose answer to an image depends on the others in its run is asked
// one by one.
func TestAGraphThatMixesExamplesIsAskedOneByOne(t *testing.T) {
	for _, batch := range []onnx.Dim{{Value: -1, Param: "batch"}, fixed(4)} {
		b := onnx.NewBuilder(17)
		x := b.Input("image", onnx.Float, batch, fixed(1), fixed(4), fixed(4))
		mean := b.Op("ReduceMean", []string{x}, onnx.IntsAttribute("axes", 0), onnx.IntAttribute("keepdims", 1))
		flat := b.Op("Flatten", []string{b.Op("Sub", []string{x, mean})})
		weights := make([]float32, 32)
		for i := range weights {
			weights[i] = float32(i%5) - 2
		}
		b.Node(&onnx.Node{OpType: "MatMul", Inputs: []string{flat, b.Weight("w", []int64{16, 2}, weights)}, Outputs: []string{"logits"}}, 1)
		b.Output("logits", onnx.Float, batch, fixed(2))
		graph, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		m := Model{Graph: graph, Input: "image", Output: "logits", Shape: []int64{1, 4, 4}, Black: []float64{0}, White: []float64{1}, Decide: argmax}
		c, err := Open(m, Options{Patch: &Patch{Masks: 2, Fill: Mean, Rounds: 2}})
		if batch.Known() {
			if !errors.Is(err, ErrAsk) {
				t.Errorf("of a fixed batch: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if c.batch != 1 {
			t.Errorf("%d at a time", c.batch)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAGraphThatAnswersByChanceIsRefused(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("image", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, fixed(1), fixed(4), fixed(4))
	noisy := b.Op("Add", []string{x, b.Op("RandomUniformLike", []string{x})})
	weights := make([]float32, 32)
	for i := range weights {
		weights[i] = float32(i%5) - 2
	}
	b.Node(&onnx.Node{OpType: "MatMul", Inputs: []string{b.Op("Flatten", []string{noisy}), b.Weight("w", []int64{16, 2}, weights)}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, onnx.Dim{Value: -1, Param: "batch"}, fixed(2))
	graph, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(Model{Graph: graph, Input: "image", Output: "logits", Shape: []int64{1, 4, 4}, Black: []float64{0}, White: []float64{1}, Decide: argmax},
		Options{Patch: &Patch{Masks: 2, Fill: Mean, Rounds: 2}})
	if !errors.Is(err, ErrAsk) || !strings.Contains(err.Error(), "depend on chance") {
		t.Errorf("got %v", err)
	}
}
