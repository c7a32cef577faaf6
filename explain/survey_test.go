package explain_test

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
)

// bright are images of the detector's class 1.
func bright(n int) []engine.Tensor {
	set, _ := squares(2*n, 9)
	var inputs []engine.Tensor
	for i := range n {
		inputs = append(inputs, picture(set, 2*i+1))
	}
	return inputs
}

func TestASurveyTellsMethodsThatExplainAModelFromThoseThatDoNot(t *testing.T) {
	m := model(t)
	o := explain.Options{Background: explain.Constant(0.27), Score: explain.LogOdds, Samples: 300, Segments: 40, Seed: 1, Threads: 1}
	c := explain.CheckOptions{Steps: 10, RandomMaps: 39, Randomisations: 3}
	inputs := bright(6)
	s, err := explain.Survey(t.Context(), explain.KernelSHAP, m, inputs, 1, (*explain.Map).Supporting, o, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s)
	if len(s.Failures()) != 0 || s.Explained < 5 || !s.Tested || !s.Randomised || s.Images != 6 || s.MapTime <= 0 || s.TestTime <= 0 {
		t.Errorf("kernelshap: %+v", s)
	}
	if text := s.Text("kernelshap"); !strings.Contains(text.English, "passed") || !strings.Contains(text.French, "a passé") {
		t.Errorf("its text: %+v", text)
	}
	// The same maps with their places mixed up mark nothing.
	rng := rand.New(rand.NewPCG(1, 1))
	mixed := func(made *explain.Map) *explain.Map {
		out := made.Supporting()
		out.Segments = nil
		rng.Shuffle(len(out.Values), func(i, j int) { out.Values[i], out.Values[j] = out.Values[j], out.Values[i] })
		return out
	}
	s, err = explain.Survey(t.Context(), explain.KernelSHAP, m, inputs, 1, mixed, o, c)
	if err != nil {
		t.Fatal(err)
	}
	if text := s.Text("kernelshap"); !slices.Equal(s.Failures(), []explain.Failure{explain.NoBetter}) ||
		!strings.Contains(text.English, "of 6 images its maps do no better than random ones") || !strings.Contains(text.French, "des 6 images, ses cartes ne valent pas mieux") {
		t.Errorf("maps mixed up: %+v, %+v", s, text)
	}
}

func TestASurveyFindsAMethodThatTheWeightsDoNotMatterTo(t *testing.T) {
	m := averages(t)
	o := explain.Options{Background: explain.Constant(0), Seed: 1, Threads: 1}
	for name, survey := range map[string]func() (*explain.Standing, error){
		"on images": func() (*explain.Standing, error) {
			return explain.Survey(t.Context(), explain.GradCAM, m, bright(2), 1, nil, o, explain.CheckOptions{Score: explain.Logit, Steps: 4, RandomMaps: 19})
		},
		"on textures": func() (*explain.Standing, error) {
			return explain.SurveyWeights(t.Context(), explain.GradCAM, m, bright(2), 1, nil, o, explain.CheckOptions{})
		},
	} {
		s, err := survey()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(s.Failures(), explain.WeightsNoMatter) || s.Similarity < 0.99 || s.Tested != (name == "on images") {
			t.Errorf("%s: %+v", name, s)
		}
		if text := s.Text("grad-cam"); !strings.HasPrefix(text.English, "grad-cam does not explain this model: ") || !strings.Contains(text.English, "randomised") || !strings.Contains(text.French, "hasard") {
			t.Errorf("%s: %+v", name, text)
		}
	}
}

// The survey of one image is the last stage of what Randomise measures on it.
func TestASurveyRandomisesAsRandomiseDoes(t *testing.T) {
	m := model(t)
	o := explain.Options{Background: explain.Constant(0.27), Seed: 4, Threads: 1}
	input := bright(1)
	s, err := explain.SurveyWeights(t.Context(), explain.GradCAM, m, input, 1, nil, o, explain.CheckOptions{Randomisations: 3})
	if err != nil {
		t.Fatal(err)
	}
	made, err := camOf(t, m).Explain(t.Context(), input[0], 1)
	if err != nil {
		t.Fatal(err)
	}
	single, err := explain.Randomise(t.Context(), explain.GradCAM, m, input[0], made, o, explain.CheckOptions{Randomisations: 3, Layers: 1})
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(s.Similarity-single.Similarity) > 1e-9 || math.Abs(s.Error-single.Error) > 1e-9 {
		t.Errorf("the survey says %v ± %v, one map %v ± %v", s.Similarity, s.Error, single.Similarity, single.Error)
	}
	if sanity := s.Sanity(); sanity == nil || sanity.Similarity != s.Similarity {
		t.Errorf("its part of a verdict: %+v", sanity)
	}
}

func TestWhatIsShownIsWhatSpeaksForTheClass(t *testing.T) {
	for _, test := range []struct {
		kind         explain.Kind
		values, want []float32
	}{
		{explain.Contribution, []float32{1, -4, 0, 2}, []float32{0.25, 0, 0, 0.5}},
		{explain.Sensitivity, []float32{1, -4, 0, 2}, []float32{0.25, 1, 0, 0.5}},
		{explain.Relevance, []float32{0.5, 0, 1, 0.25}, []float32{0.5, 0, 1, 0.25}},
		{explain.Contribution, []float32{-1, -2, 0, -3}, []float32{0, 0, 0, 0}},
		{explain.Contribution, []float32{0, 0, 0, 0}, []float32{0, 0, 0, 0}},
	} {
		m := &explain.Map{Kind: test.kind, Rows: 2, Columns: 2, Values: slices.Clone(test.values), Class: 1, Segments: []int{0, 1, 2, 3}}
		shown := m.Supporting()
		if !slices.Equal(shown.Values, test.want) || shown.Kind != explain.Relevance || shown.Class != 1 || !slices.Equal(shown.Segments, m.Segments) || !slices.Equal(m.Values, test.values) {
			t.Errorf("%s %v is shown as %+v", test.kind, test.values, shown)
		}
	}
}

// countdown is a context whose deadline passes after it was looked at so many
// times: no clock decides a test.
type countdown struct {
	context.Context
	left atomic.Int64
	done chan struct{}
}

func (c *countdown) Err() error {
	if c.left.Add(-1) < 0 {
		return context.DeadlineExceeded
	}
	return nil
}
func (c *countdown) Done() <-chan struct{}       { return c.done }
func (c *countdown) Deadline() (time.Time, bool) { return time.Time{}, false }

// A test that is cut short counts with the random maps up to then if they are
// enough, and not at all otherwise.
func TestATestThatTimeCutsShortCountsIfItMayAndIfEnoughIsMeasured(t *testing.T) {
	m := model(t)
	o := explain.Options{Background: explain.Constant(0.27), Seed: 1, Threads: 1}
	input := bright(1)[0]
	made, err := camOf(t, m).Explain(t.Context(), input, 1)
	if err != nil {
		t.Fatal(err)
	}
	measured := func(looks, fewest int) (*explain.Fidelity, error) {
		tester, err := explain.NewTester(m, o, explain.CheckOptions{Steps: 5, RandomMaps: 39, FewestMaps: fewest})
		if err != nil {
			t.Fatal(err)
		}
		defer tester.Close()
		ctx := &countdown{Context: t.Context(), done: make(chan struct{})}
		ctx.left.Store(int64(looks))
		return tester.Measure(ctx, input, made)
	}
	whole, err := measured(1<<30, 5)
	if err != nil || len(whole.Random) != 39 {
		t.Fatalf("in time: %v, %+v", err, whole)
	}
	short, enough := 0, 0
	for looks := 1; looks < 200; looks += 7 {
		f, err := measured(looks, 5)
		if err != nil { // too early
			short++
			continue
		}
		if n := len(f.Random); n < 5 || n > 39 || f.P < 1/float64(n+1) || !slices.Equal(f.Random, whole.Random[:n]) {
			t.Fatalf("after %d looks: %d random maps, p %v", looks, n, f.P)
		} else if n < 39 {
			enough++
		}
		if _, err := measured(looks, 0); err == nil && len(f.Random) < 39 {
			t.Errorf("after %d looks: a test that must be whole counts when cut short", looks)
		}
	}
	if short == 0 || enough == 0 {
		t.Errorf("%d times too early, %d times enough: the claim was not tested", short, enough)
	}
}

func TestATesterAnswersAsTheModelDoes(t *testing.T) {
	m := model(t)
	tester, err := explain.NewTester(m, explain.Options{Background: explain.Constant(0), Threads: 1}, explain.CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer tester.Close()
	input := bright(1)[0]
	made, err := camOf(t, m).Explain(t.Context(), input, 1)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := tester.Answer(t.Context(), input)
	if err != nil || len(answer) != len(made.Logits) {
		t.Fatalf("%v, %v", answer, err)
	}
	for i, v := range answer {
		if math.Abs(float64(v-made.Logits[i])) > 1e-4*(1+math.Abs(float64(v))) {
			t.Errorf("logit %d is %v, beside the map %v", i, v, made.Logits[i])
		}
	}
	if _, err := tester.Answer(t.Context(), engine.Float32([]int64{1, 1}, []float32{1})); err == nil {
		t.Error("an input of another shape was answered")
	}
	if _, err := explain.NewTester(m, explain.Options{}, explain.CheckOptions{}); err == nil {
		t.Error("maps are tested without a background")
	}
}

// A deadline that is near takes points from the curves before it takes the
// random maps without which a test means nothing.
func TestATestHasFewerPointsWhereTheTimeIsShort(t *testing.T) {
	m := model(t)
	o := explain.Options{Background: explain.Constant(0.27), Seed: 1, Threads: 1}
	input := bright(1)[0]
	made, err := camOf(t, m).Explain(t.Context(), input, 1)
	if err != nil {
		t.Fatal(err)
	}
	steps := func(left time.Duration, fewest int) int {
		tester, err := explain.NewTester(m, o, explain.CheckOptions{Steps: 10, RandomMaps: 19, FewestMaps: 19, FewestSteps: fewest})
		if err != nil {
			t.Fatal(err)
		}
		defer tester.Close()
		f, err := tester.Measure(deadline{t.Context(), time.Now().Add(left)}, input, made)
		if err != nil {
			t.Fatal(err)
		}
		return len(f.Deletion.Score) - 1
	}
	if got := steps(time.Hour, 4); got != 10 {
		t.Errorf("%d points in an hour", got)
	}
	if got := steps(time.Nanosecond, 4); got != 4 {
		t.Errorf("%d points in no time", got)
	}
	if got := steps(time.Nanosecond, 0); got != 10 {
		t.Errorf("%d points in no time, where all were asked for", got)
	}
}

// A test that ends once the map cannot pass any more says the same of every map
// as the whole test does.
func TestATestThatIsDecidedEarlySaysWhatTheWholeTestSays(t *testing.T) {
	m := model(t)
	o := explain.Options{Background: explain.Constant(0.27), Score: explain.LogOdds, Seed: 1, Threads: 1, Batch: 8}
	rng := rand.New(rand.NewPCG(3, 3))
	shorter, passed := 0, 0
	for i, input := range bright(12) {
		made := &explain.Map{Kind: explain.Relevance, Rows: side, Columns: side, Values: make([]float32, side*side), Class: 1}
		for p := range made.Values {
			made.Values[p] = rng.Float32()
		}
		if i%3 == 0 { // a map that explains
			var err error
			if made, err = camOf(t, m).Explain(t.Context(), input, 1); err != nil {
				t.Fatal(err)
			}
		}
		measure := func(decided bool) *explain.Fidelity {
			f, err := explain.Measure(t.Context(), m, input, made, o, explain.CheckOptions{Steps: 8, RandomMaps: 39, Decided: decided})
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		whole, early := measure(false), measure(true)
		if (whole.P <= explain.Significance) != (early.P <= explain.Significance) || !slices.Equal(early.Random, whole.Random[:len(early.Random)]) {
			t.Errorf("map %d: p %v of %d random maps, %v of %d", i, whole.P, len(whole.Random), early.P, len(early.Random))
		}
		if early.P <= explain.Significance {
			passed++
			if len(early.Random) != 39 {
				t.Errorf("map %d passed against %d random maps", i, len(early.Random))
			}
		} else if len(early.Random) < 39 {
			shorter++
		}
	}
	t.Logf("%d passed, %d ended early", passed, shorter)
	if shorter == 0 || passed == 0 {
		t.Error("the claim was not tested")
	}
}

// deadline names an end and does not come to it.
type deadline struct {
	context.Context
	at time.Time
}

func (d deadline) Deadline() (time.Time, bool) { return d.at, true }
