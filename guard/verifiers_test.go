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
	"testing"

	"gonum.org/v1/gonum/mathext"
	"pgregory.net/rapid"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// drawn are held-out images of a model that is right more often than not: logits
// of noise, with more on the true label. Labels are as likely as shares says.
func drawn(rng *rand.Rand, n int, shares []float64, strength float64) []Held {
	out := make([]Held, n)
	for i := range out {
		u, y := rng.Float64(), 0
		for y < len(shares)-1 && u > shares[y] {
			u, y = u-shares[y], y+1
		}
		out[i] = drawnOf(rng, len(shares), y, strength)
	}
	return out
}

func drawnOf(rng *rand.Rand, labels, y int, strength float64) Held {
	logits := make([]float64, labels)
	for k := range logits {
		logits[k] = 1.7 * rng.NormFloat64() // too sure of itself: coverage must not depend on calibration
	}
	logits[y] += strength
	n := Network{Activation: Softmax}
	c := Held{Truth: make([]bool, labels), Apart: math.Abs(0.1 * rng.NormFloat64())}
	c.Truth[y] = true
	p := n.probabilities(logits)
	for k, v := range p {
		c.Predictions = append(c.Predictions, vigie.Prediction{Label: labelled(k), Probability: v, Threshold: 0.5, Positive: v == slices.Max(p),
			Code: vigie.Code{Meaning: labelled(k), French: labelled(k)}})
	}
	return c
}

func labelled(k int) string { return fmt.Sprint("label-", k) }

func labelNames(n int) (out []string) {
	for k := range n {
		out = append(out, labelled(k))
	}
	return out
}

func TestTheIncompleteBetaFunctionIsThatOfTheTables(t *testing.T) {
	for _, c := range []struct{ x, a, b, want float64 }{
		{0.5, 2, 3, 0.6875}, {0.1, 1, 10, 1 - math.Pow(0.9, 10)}, {0.3, 5, 1, math.Pow(0.3, 5)},
		{0.5, 40, 40, 0.5}, {0.95, 100, 5, 0.400941014}, {0, 1, 1, 0}, {1, 1, 1, 1},
	} {
		if got := mathext.RegIncBeta(c.a, c.b, c.x); math.Abs(got-c.want) > 1e-7 {
			t.Errorf("I_%v(%v, %v) = %.9f, want %.9f", c.x, c.a, c.b, got, c.want)
		}
		if c.x > 0 && c.x < 1 {
			if back := betaQuantile(mathext.RegIncBeta(c.a, c.b, c.x), c.a, c.b); math.Abs(back-c.x) > 1e-9 {
				t.Errorf("the quantile of I_%v(%v, %v) is %v", c.x, c.a, c.b, back)
			}
		}
	}
	if got := mostErrors(0, 10, 0.05); math.Abs(got-(1-math.Pow(0.05, 0.1))) > 1e-9 {
		t.Errorf("no errors among 10: %v", got)
	}
	if mostErrors(3, 3, 0.05) != 1 || mostErrors(0, 0, 0.05) != 1 {
		t.Error("where all or nothing is known, every risk is possible")
	}
}

// The coverage of each label, over draws of calibration and new images, is the
// promised one: the p-value of the true label alone gives exactly that, and the
// set, which also holds the answer, at least that.
func TestSetsHoldTheTrueLabelAsOftenAsStated(t *testing.T) {
	shares := []float64{0.55, 0.3, 0.15}
	const alpha, rounds, fresh = 0.1, 700, 10
	for _, kind := range []string{LAC, APS} {
		rng := rand.New(rand.NewPCG(5, 77))
		held, set, promised := make([]float64, 3), make([]float64, 3), make([]float64, 3)
		variance := make([]float64, 3)
		for range rounds {
			s := fitSets(kind, labelNames(3), true, drawn(rng, 220, shares, 1.2), 1)
			s.Alpha = alpha
			for y, p := range s.Promises() {
				promised[y] += p.Coverage / rounds
				n := float64(len(s.Questions[0].Scores[y]))
				variance[y] += p.Coverage * (1 - p.Coverage) / (n + 2) / rounds // of Beta, over calibrations
				for range fresh {
					c := drawnOf(rng, 3, y, 1.2)
					if s.Questions[0].read(kind, c.Predictions).pvalues[y] > alpha {
						held[y]++
					}
					if slices.Contains(s.of(c.Predictions)[0].Holds, labelled(y)) {
						set[y]++
					}
				}
			}
		}
		for y := range shares {
			n := float64(rounds * fresh)
			margin := 4 * math.Sqrt(variance[y]/rounds+promised[y]*(1-promised[y])/n)
			if got := held[y] / n; math.Abs(got-promised[y]) > margin {
				t.Errorf("%s: label %d is held by its p-value in %.4f, want %.4f ± %.4f", kind, y, got, promised[y], margin)
			}
			if got := set[y] / n; got < promised[y]-margin {
				t.Errorf("%s: label %d is in the set in %.4f, promised is %.4f", kind, y, got, promised[y])
			}
			if promised[y] < 1-alpha || promised[y] > 1-alpha+0.05 {
				t.Errorf("label %d is promised %.4f for a stated %.2f", y, promised[y], 1-alpha)
			}
		}
	}
}

func TestSetsOfLabelsThatDoNotExcludeEachOtherCoverEachByItself(t *testing.T) {
	const alpha, rounds, fresh = 0.1, 200, 40
	rng := rand.New(rand.NewPCG(6, 1))
	draw := func() Held {
		c := Held{}
		for k := range 2 {
			present := rng.Float64() < 0.3+0.3*float64(k)
			logit := 1.5*rng.NormFloat64() - 1
			if present {
				logit += 2
			}
			p := 1 / (1 + math.Exp(-logit))
			c.Truth = append(c.Truth, present)
			c.Predictions = append(c.Predictions, vigie.Prediction{Label: labelled(k), Probability: p, Threshold: 0.4, Positive: p >= 0.4})
		}
		return c
	}
	held, of := map[string]float64{}, map[string]float64{}
	for range rounds {
		var cases []Held
		for range 150 {
			cases = append(cases, draw())
		}
		s := fitSets(LAC, labelNames(2), false, cases, 1)
		s.Alpha = alpha
		for range fresh {
			c := draw()
			for i, set := range s.of(c.Predictions) {
				want := vigie.SetAbsent
				if c.Truth[i] {
					want = vigie.SetPresent
				}
				key := set.Label + " " + want
				of[key]++
				if slices.Contains(set.Holds, want) {
					held[key]++
				}
			}
		}
	}
	for key, n := range of {
		if got := held[key] / n; got < 1-alpha-4*math.Sqrt(alpha*(1-alpha)/n+alpha*(1-alpha)/40/rounds) {
			t.Errorf("%s is in its set in %.4f of %v", key, got, n)
		}
	}
	if len(of) != 4 {
		t.Errorf("%v", of)
	}
}

func TestSetsShrinkAsLessCoverageIsStatedAndNeverLoseTheAnswer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		labels := rapid.IntRange(2, 5).Draw(t, "labels")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		shares := make([]float64, labels)
		for k := range shares {
			shares[k] = 1 / float64(labels)
		}
		kind := rapid.SampledFrom([]string{LAC, APS}).Draw(t, "score")
		s := fitSets(kind, labelNames(labels), true, drawn(rng, rapid.IntRange(labels, 120).Draw(t, "images"), shares, 1), 1)
		c := drawn(rng, 1, shares, 1)[0]
		low, high := rapid.Float64Range(0, 0.5).Draw(t, "alpha"), rapid.Float64Range(0, 0.5).Draw(t, "alpha too")
		if low > high {
			low, high = high, low
		}
		s.Alpha = low
		wide := s.of(c.Predictions)[0]
		decided := s.rival(c.Predictions) <= s.Alpha
		s.Alpha = high
		narrow := s.of(c.Predictions)[0]
		for _, l := range narrow.Holds {
			if !slices.Contains(wide.Holds, l) {
				t.Fatalf("%v at %v, %v at %v", wide.Holds, low, narrow.Holds, high)
			}
		}
		_, answer := exclusive(c.Predictions)
		if !slices.Contains(narrow.Holds, labelled(answer)) || decided != wide.Decided() {
			t.Fatalf("%v without %d, decided %v", narrow.Holds, answer, decided)
		}
	})
}

// budgeted are cases of which some are sent by the manifest's band already.
func budgeted(rng *rand.Rand, n int) []Held {
	cases := drawn(rng, n, []float64{0.6, 0.4}, 2.5)
	for i := range cases {
		if p := cases[i].Predictions[1].Probability; p > 0.45 && p < 0.55 {
			cases[i].Borderline = true
		}
		// Disagreement that goes with doubt, as that of real models does.
		p := cases[i].Predictions[0].Probability
		cases[i].Apart = min(1, cases[i].Apart*4*p*(1-p)+0.01*rng.Float64())
	}
	return cases
}

func budgetOptions(budget float64) VerifierOptions {
	return VerifierOptions{Subject: testSubject, Data: "drawn", Seed: 1, Labels: labelNames(2), Excluding: true, Target: labelled(1), Review: budget,
		Apart: &Apart{By: Views, Views: ViewsOf(side, side, 0, 0, false), Wiring: &Wiring{Input: "image", Output: "logits", Activation: Softmax,
			Shape: []int64{1, side, side}, Black: []float64{-1}, White: []float64{3}}}}
}

func TestCleanCasesSentToPeopleKeepTheBudgetInTheMean(t *testing.T) {
	const rounds, fresh, budget = 300, 150, 0.2
	rng := rand.New(rand.NewPCG(8, 3))
	sum, squares, expected := 0.0, 0.0, 0.0
	inside := 0
	for range rounds {
		v, err := FitVerifiers(budgeted(rng, 110), budgeted(rng, 90), budgetOptions(budget))
		if err != nil {
			t.Fatal(err)
		}
		sent := 0
		for _, c := range budgeted(rng, fresh) {
			j, err := v.Judge(c.Predictions, c.Apart)
			if err != nil {
				t.Fatal(err)
			}
			if c.Borderline || len(j.Reasons) > 0 {
				sent++
			}
		}
		share := float64(sent) / fresh
		sum, squares, expected = sum+share, squares+share*share, expected+v.Budget.Expected/rounds
		if share >= v.Budget.Share.Low-2*math.Sqrt(budget*(1-budget)/fresh) && share <= v.Budget.Share.High+2*math.Sqrt(budget*(1-budget)/fresh) {
			inside++
		}
	}
	mean := sum / rounds
	deviation := math.Sqrt((squares/rounds - mean*mean) / rounds)
	if mean > budget+3*deviation {
		t.Errorf("%.4f ± %.4f of the cases go to people, the budget is %v", mean, deviation, budget)
	}
	if mean < budget*0.8 || math.Abs(mean-expected) > 0.02 {
		t.Errorf("%.4f of the cases go to people, %.4f were expected: a budget of %v is not used", mean, expected, budget)
	}
	if inside < rounds*9/10 {
		t.Errorf("the share lay within its interval in %d of %d rounds", inside, rounds)
	}
}

func TestTheRecordedShareNeverExceedsTheBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
		o := budgetOptions(rapid.Float64Range(0.02, 0.6).Draw(t, "budget"))
		if rapid.Bool().Draw(t, "no views") {
			o.Apart = nil
		}
		if rapid.Bool().Draw(t, "guards") {
			o.Inputs, o.InputsExpected = 0.01, 0.01
		}
		if rapid.Bool().Draw(t, "stated coverage") {
			o.Coverage = 0.9
		}
		choosing := budgeted(rng, rapid.IntRange(30, 120).Draw(t, "choosing"))
		v, err := FitVerifiers(budgeted(rng, rapid.IntRange(60, 120).Draw(t, "calibrating")), choosing, o)
		if errors.Is(err, ErrBudget) || errors.Is(err, ErrTooFew) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		sent := 0
		for _, c := range choosing {
			j, err := v.Judge(c.Predictions, c.Apart)
			if err != nil {
				t.Fatal(err)
			}
			if c.Borderline || len(j.Reasons) > 0 {
				sent++
			}
		}
		if v.Budget.Expected > o.Review+1e-12 || float64(sent+1)/float64(len(choosing)+1) > o.Review-o.InputsExpected+1e-9 {
			t.Fatalf("%d of %d are sent, %v expected, for a budget of %v", sent, len(choosing), v.Budget.Expected, o.Review)
		}
		if v.Budget.Stated != o.Review || v.Budget.On != len(choosing) {
			t.Fatalf("%+v", v.Budget)
		}
		data, err := v.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseVerifiers(data); err != nil {
			t.Fatal(err)
		} else if second, err := again.Marshal(); err != nil || !bytes.Equal(second, data) {
			t.Fatalf("written again it is another file (%v)", err)
		}
	})
}

func TestABudgetThatCannotBeKeptIsRefusedWithWhatCosts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	a, b := budgeted(rng, 200), budgeted(rng, 200)
	o := budgetOptions(0.001)
	if _, err := FitVerifiers(a, b, o); !errors.Is(err, ErrBudget) {
		t.Errorf("a thousandth: %v", err)
	}
	o = budgetOptions(0.05)
	o.Coverage = 0.97
	if _, err := FitVerifiers(a, b, o); !errors.Is(err, ErrBudget) || !strings.Contains(err.Error(), "sets ") {
		t.Errorf("a coverage that costs more: %v", err)
	}
	o = budgetOptions(0.2)
	o.InputsExpected = 0.2
	if _, err := FitVerifiers(a, b, o); !errors.Is(err, ErrBudget) {
		t.Errorf("guards that take all: %v", err)
	}
	for name, change := range map[string]func(*VerifierOptions){
		"more than all":       func(o *VerifierOptions) { o.Review = 1.5 },
		"no number":           func(o *VerifierOptions) { o.Review = math.NaN() },
		"coverage of nothing": func(o *VerifierOptions) { o.Coverage = 0.2 },
		"coverage of all":     func(o *VerifierOptions) { o.Coverage = 1 },
		"no such score":       func(o *VerifierOptions) { o.Score = "best" },
		"a risk of everyone":  func(o *VerifierOptions) { o.Risk = 0.9 },
		"a negative risk":     func(o *VerifierOptions) { o.Risk = -0.1 },
		"unstable half":       func(o *VerifierOptions) { o.Unstable = 0.5 },
	} {
		o := budgetOptions(0.2)
		change(&o)
		if _, err := FitVerifiers(a, b, o); err == nil || CheckVerifierOptions(o) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestALabelOfTooFewImagesLeavesNoSetsAndSaysSo(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	cases := append(drawn(rng, 100, []float64{1, 0}, 3), drawnOf(rng, 2, 1, 3), drawnOf(rng, 2, 1, 3))
	o := VerifierOptions{Subject: testSubject, Labels: labelNames(2), Excluding: true, Target: labelled(1)}
	v, err := FitVerifiers(cases, nil, o)
	if err != nil || v.Sets != nil || !strings.Contains(v.WithoutSets, `"label-1" has 2 labelled images`) {
		t.Fatalf("%+v (%v)", v, err)
	}
	if j, err := v.Judge(cases[0].Predictions, 0); err != nil || len(j.Sets)+len(j.Reasons) > 0 {
		t.Errorf("%+v (%v)", j, err)
	}
	o.Coverage = 0.95
	if _, err := FitVerifiers(cases, nil, o); !errors.Is(err, ErrTooFew) {
		t.Errorf("a coverage that was asked for: %v", err)
	}
	for i := range cases {
		cases[i].Truth = nil
	}
	o.Coverage = 0
	if v, err = FitVerifiers(cases, nil, o); err != nil || v.Sets != nil || v.WithoutSets != "the images have no labels" {
		t.Errorf("without labels: %+v (%v)", v, err)
	}
}

func TestAStatedRiskOfReleasedAnswersIsKeptAsOftenAsStated(t *testing.T) {
	const rounds, risk, certain = 300, 0.1, 0.9
	rng := rand.New(rand.NewPCG(4, 4))
	// The true risk at each floor, once.
	o := VerifierOptions{Subject: testSubject, Labels: labelNames(2), Excluding: true, Target: labelled(1), Risk: risk, Certain: certain, Coverage: -1}
	probe := &Verifiers{Labels: o.Labels, Excluding: true, Target: o.Target}
	truly := map[float64]float64{}
	many := drawn(rng, 60000, []float64{0.5, 0.5}, 2.5)
	for _, level := range floorLevels {
		released, wrong := 0.0, 0.0
		for _, c := range many {
			if probe.confidence(c.Predictions) >= level {
				released++
				if probe.Wrong(c.Predictions, c.Truth) {
					wrong++
				}
			}
		}
		truly[level] = wrong / released
	}
	broken, found := 0, 0
	for range rounds {
		v, err := FitVerifiers(drawn(rng, 500, []float64{0.5, 0.5}, 2.5), nil, o)
		if errors.Is(err, ErrTooFew) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if found++; truly[v.Confidence.Below] > risk {
			broken++
		}
	}
	if found < rounds/2 {
		t.Errorf("a floor was found in %d of %d rounds", found, rounds)
	}
	if most := float64(rounds)*(1-certain) + 3*math.Sqrt(rounds*certain*(1-certain)); float64(broken) > most {
		t.Errorf("the risk was broken in %d of %d rounds, at most %.0f are stated", broken, rounds, most)
	}
}

func TestViewsAreTheImageMovedMirroredOrLighter(t *testing.T) {
	for _, last := range []bool{false, true} {
		g := geometry{channels: 2, rows: 2, columns: 3, last: last, black: []float32{0, 1}, scale: []float32{1, -1}}
		values := make([]float32, 12)
		for c := range 2 {
			for p := range 6 {
				values[g.index(c, p)] = g.black[c] + g.scale[c]*float32(p)/10
			}
		}
		for _, c := range []struct {
			v    View
			want []float32 // brightness, tenths
		}{
			{View{}, []float32{0, 1, 2, 3, 4, 5}},
			{View{Right: 1}, []float32{0, 0, 1, 3, 3, 4}},
			{View{Right: -1}, []float32{1, 2, 2, 4, 5, 5}},
			{View{Down: 1}, []float32{0, 1, 2, 0, 1, 2}},
			{View{Down: -1}, []float32{3, 4, 5, 3, 4, 5}},
			{View{Flip: true}, []float32{2, 1, 0, 5, 4, 3}},
			{View{Light: 0.1}, []float32{1, 2, 3, 4, 5, 6}},
			{View{Light: -0.1}, []float32{0, 0, 1, 2, 3, 4}},
		} {
			out := g.view(values, c.v)
			for ch := range 2 {
				for p, want := range c.want {
					if got := (out[g.index(ch, p)] - g.black[ch]) / g.scale[ch] * 10; math.Abs(float64(got-want)) > 1e-5 {
						t.Errorf("%+v, channel %d, pixel %d: %v, want %v", c.v, ch, p, got, want)
					}
				}
			}
		}
	}
	if views := ViewsOf(224, 112, 0, 0, true); len(views) != 7 || views[0].Down != 4 || !views[6].Flip || views[4].Light != 0.05 {
		t.Errorf("%+v", views)
	}
}

func TestASteadyAnswerIsToldFromOneThatAViewTurns(t *testing.T) {
	n := testNetwork(t, false)
	apart := &Apart{By: Views, Views: ViewsOf(side, side, 0, 0, false), Wiring: WiringOf(n)}
	second, err := OpenSecond(n.Model, apart, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	bare, err := engine.Open(n.Model, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	answer := func(values []float32) []float32 {
		out, err := bare.Run(context.Background(), map[string]engine.Tensor{"image": engine.Float32([]int64{1, 1, side, side}, values)})
		if err != nil {
			t.Fatal(err)
		}
		v, _ := engine.Values[float32](out["logits"])
		return v
	}
	values := testImages(1, 5).Images[0]
	input := engine.Float32([]int64{1, 1, side, side}, values)
	got, err := second.Ask(context.Background(), input, answer(values))
	if err != nil {
		t.Fatal(err)
	}
	// The same by hand, one view at a time.
	geometry, _ := n.geometry()
	want := 0.0
	p := func(out []float32) float64 { return 1 / (1 + math.Exp(float64(out[1]-out[0]))) }
	for _, v := range apart.Views {
		want += math.Abs(p(answer(geometry.view(values, v)))-p(answer(values))) / float64(len(apart.Views))
	}
	if math.Abs(got-want) > 1e-5 || got <= 0 {
		t.Errorf("%v, by hand %v", got, want)
	}
	flat := slices.Repeat([]float32{0.7}, side*side)
	apart.Views = []View{{Down: 1}, {Right: -1}}
	if got, err := second.Ask(context.Background(), engine.Float32([]int64{1, 1, side, side}, flat), answer(flat)); err != nil || got > 1e-6 {
		t.Errorf("moving a flat image changes its answer by %v (%v)", got, err)
	}
	for name, bad := range map[string]engine.Tensor{
		"not numbers": engine.Float32([]int64{1, 1, side, side}, slices.Repeat([]float32{float32(math.NaN())}, side*side)),
		"too small":   engine.Float32([]int64{1, 1, 2, 2}, make([]float32, 4)),
	} {
		if _, err := second.Ask(context.Background(), bad, answer(flat)); !errors.Is(err, ErrInput) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMembersAreWhatTheOutputIsTheMeanOf(t *testing.T) {
	build := func(op string) *onnx.Model {
		b := onnx.NewBuilder(17)
		batch := onnx.Dim{Value: -1, Param: "batch"}
		x := b.Input("image", onnx.Float, batch, onnx.Dim{Value: 3})
		var members []string
		for k := range 2 {
			w := make([]float32, 6)
			for i := range w {
				w[i] = float32(k*i) - 1
			}
			members = append(members, b.Op("MatMul", []string{x, b.Weight(fmt.Sprint("w", k), []int64{3, 2}, w)}))
		}
		b.Node(&onnx.Node{OpType: op, Inputs: members, Outputs: []string{"logits"}}, 1)
		b.Output("logits", onnx.Float, batch, onnx.Dim{Value: 2})
		m, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if got := MembersOf(build("Max"), "logits"); got != nil {
		t.Errorf("the largest is no ensemble: %v", got)
	}
	m := build("Mean")
	members := MembersOf(m, "logits")
	if len(members) != 2 {
		t.Fatalf("%v", members)
	}
	with, err := WithOutputs(m, "logits", members)
	if err != nil {
		t.Fatal(err)
	}
	session, err := engine.Open(with, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	out, err := session.Run(context.Background(), map[string]engine.Tensor{"image": engine.Float32([]int64{1, 3}, []float32{1, 2, 3})})
	if err != nil {
		t.Fatal(err)
	}
	own, _ := engine.Values[float32](out["logits"])
	var others [][]float64
	for _, name := range members {
		v, err := engine.Values[float32](out[name])
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, []float64{float64(v[0]), float64(v[1])})
	}
	for i := range own {
		if mean := (others[0][i] + others[1][i]) / 2; math.Abs(mean-float64(own[i])) > 1e-5 {
			t.Errorf("output %d is %v, its members' mean %v", i, own[i], mean)
		}
	}
	if got, err := Spread(Softmax, []float32{0, 0}, [][]float64{{0, 0}, {50, -50}}); err != nil || math.Abs(got-0.25) > 1e-9 {
		t.Errorf("one of two members is certain: %v (%v)", got, err)
	}
	if got, err := Spread(Sigmoid, []float32{0, 9}, [][]float64{{50, 9}}); err != nil || math.Abs(got-0.5) > 1e-9 {
		t.Errorf("one label of two is certain: %v (%v)", got, err)
	}
	if _, err := Spread(Softmax, []float32{0, float32(math.NaN())}, [][]float64{{0, 0}}); err == nil {
		t.Error("what is not a number agrees")
	}
	if _, err := WithOutputs(m, "logits", []string{"nobody"}); !errors.Is(err, ErrOtherModel) {
		t.Errorf("a member that is not there: %v", err)
	}
}

func TestVerifiersOfAnotherModelOrThatContradictThemselvesAreRefused(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	o := budgetOptions(0.2)
	o.Risk = 0.2
	v, err := FitVerifiers(budgeted(rng, 200), budgeted(rng, 200), o)
	if err != nil {
		t.Fatal(err)
	}
	good, err := v.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Fits(testSubject, labelNames(2)); err != nil {
		t.Error(err)
	}
	other := vigie.ModelDigest(strings.Replace(string(testSubject), "aa", "ab", 1))
	if err := v.Fits(other, labelNames(2)); !errors.Is(err, ErrOtherModel) {
		t.Errorf("another digest: %v", err)
	}
	if err := v.Fits(testSubject, labelNames(3)); !errors.Is(err, ErrOtherModel) {
		t.Errorf("other labels: %v", err)
	}
	if _, err := v.Judge(drawnOf(rng, 3, 1, 1).Predictions, 0); !errors.Is(err, ErrOtherModel) {
		t.Errorf("an answer with other labels: %v", err)
	}
	nan := drawnOf(rng, 2, 1, 1)
	nan.Predictions[0].Probability = math.NaN()
	if _, err := v.Judge(nan.Predictions, 0); err == nil {
		t.Error("an answer that is not a number is judged")
	}
	if j, err := v.Judge(drawnOf(rng, 2, 1, 9).Predictions, math.NaN()); err != nil || !slices.ContainsFunc(j.Results, func(r vigie.GuardResult) bool { return r.Guard == string(Disagreement) && r.Alarm }) {
		t.Errorf("disagreement that is not a number raises no alarm: %+v (%v)", j, err)
	}
	for name, change := range map[string]func(string) string{
		"empty":            func(string) string { return "" },
		"cut":              func(s string) string { return s[:len(s)/2] },
		"another schema":   func(s string) string { return strings.Replace(s, `"schema": 1`, `"schema": 2`, 1) },
		"an unknown field": func(s string) string { return strings.Replace(s, `"schema": 1`, `"schema": 1,`+"\n"+` "more": 1`, 1) },
		"spelt otherwise":  func(s string) string { return strings.Replace(s, `"schema": 1`, `"schema":1`, 1) },
		"followed":         func(s string) string { return s + "{}" },
		"no subject":       func(s string) string { return strings.Replace(s, string(testSubject), "sha256:1", 1) },
		"a score below 0":  func(s string) string { return strings.Replace(s, `"scores": [`, `"scores": [`+"\n-1,", 1) },
		"another target":   func(s string) string { return strings.Replace(s, `"target": "label-1"`, `"target": "label-9"`, 1) },
		"a label twice":    func(s string) string { return strings.Replace(s, `"label-0"`, `"label-1"`, 1) },
		"no such score":    func(s string) string { return strings.Replace(s, `"score": "lac"`, `"score": "cal"`, 1) },
		"no such way":      func(s string) string { return strings.Replace(s, `"by": "views"`, `"by": "ears"`, 1) },
	} {
		text := change(string(good))
		if text == string(good) {
			t.Errorf("%s: nothing was changed", name)
		}
		if _, err := ParseVerifiers([]byte(text)); !errors.Is(err, ErrVerifiers) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseVerifiers(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 3))
	o := budgetOptions(0.2)
	o.Risk = 0.2
	v, err := FitVerifiers(budgeted(rng, 60), budgeted(rng, 120), o)
	if err != nil {
		v, err = FitVerifiers(budgeted(rng, 200), budgeted(rng, 200), o)
	}
	if err != nil {
		f.Fatal(err)
	}
	good, err := v.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := ParseVerifiers(data)
		if err != nil {
			if !errors.Is(err, ErrVerifiers) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		var predictions []vigie.Prediction
		for _, l := range v.Labels {
			predictions = append(predictions, vigie.Prediction{Label: l, Probability: 0.5, Positive: true, Threshold: 0.5})
		}
		j, err := v.Judge(predictions, 0.3)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range j.Sets {
			if len(s.Holds) == 0 || !(s.Coverage >= 0 && s.Coverage <= 1) {
				t.Fatalf("%+v", s)
			}
		}
		for _, r := range j.Results {
			if !(r.PValue > 0 && r.PValue <= 1) || r.Alarm != (r.Reason != nil) {
				t.Fatalf("%+v", r)
			}
		}
	})
}
