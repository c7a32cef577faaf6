package privacy

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/dp"
)

// python runs a script on JSON and returns what it prints as JSON; the test is
// skipped where NumPy or what a script imports is absent.
func python(t *testing.T, script string, in, out any) {
	t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	// Imports are the script's first line, so that each pays for its own alone.
	first, rest, _ := strings.Cut(strings.TrimSpace(script), "\n")
	command := exec.Command("/usr/bin/python3", "-c", "import sys, json\ntry:\n    "+first+"\nexcept ImportError as e:\n    print('absent', e); sys.exit()\nd = json.load(sys.stdin)\n"+rest)
	command.Env = append(command.Environ(), "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1")
	command.Stdin = strings.NewReader(string(raw))
	var stderr strings.Builder
	command.Stderr = &stderr
	answer, err := command.Output()
	if err != nil && stderr.Len() == 0 {
		t.Skipf("SKIPPED, nothing was compared: %v", err)
	}
	if err != nil {
		t.Fatalf("python: %v\n%s", err, stderr.String())
	}
	if strings.HasPrefix(string(answer), "absent") {
		t.Skipf("SKIPPED, nothing was compared: %s", answer)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		t.Fatalf("%v: %s", err, answer)
	}
}

func near(t *testing.T, what string, got, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d figures, want %d", what, len(got), len(want))
	}
	for i := range got {
		if !(math.Abs(got[i]-want[i]) <= tolerance*max(1, math.Abs(want[i]))) {
			t.Fatalf("%s: figure %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

func TestClopperPearsonIsWhatSciPyHas(t *testing.T) {
	cases := [][2]int{{0, 10}, {10, 10}, {1, 7}, {3, 30000}, {0, 30000}, {512, 1000}, {29999, 30000}, {4321, 9876}}
	var want [][2]float64
	python(t, `
import scipy.special
out = []
for k, n in d:
    out.append([scipy.special.betaincinv(k, n-k+1, .025) if k else 0., scipy.special.betaincinv(k+1, n-k, .975) if k < n else 1.])
print(json.dumps(out))`, cases, &want)
	for i, c := range cases {
		got := ClopperPearson(c[0], c[1])
		near(t, "interval", []float64{got.Low, got.High}, want[i][:], 1e-9)
	}
}

// drawnScores has ties, as attacks with coarse scores do.
func drawnScores(n int, seed uint64) (scores []float64, member []bool) {
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range n {
		m := i%3 == 0
		v := rng.NormFloat64()
		if m {
			v += 0.8
		}
		scores, member = append(scores, math.Round(v*20)/20), append(member, m)
	}
	return scores, member
}

func TestTheCurveIsWhatScikitLearnHas(t *testing.T) {
	scores, member := drawnScores(3000, 4)
	var want struct {
		AUC  float64
		TPR  []float64
		Hits []int
	}
	python(t, `
import numpy as np, sklearn.metrics
y, s = np.array(d['member']), np.array(d['scores'])
fpr, tpr, _ = sklearn.metrics.roc_curve(y, s, drop_intermediate=False)
rates = [float(tpr[fpr <= f + 1e-12].max()) for f in d['at']]
print(json.dumps(dict(AUC=sklearn.metrics.roc_auc_score(y, s), TPR=rates, Hits=[int(round(r * y.sum())) for r in rates])))`,
		map[string]any{"scores": scores, "member": member, "at": FalsePositiveRates}, &want)
	r, err := Compare(scores, member, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "AUC", []float64{r.AUC.Value}, []float64{want.AUC}, 1e-12)
	for i, rate := range r.Rates {
		near(t, "TPR", []float64{rate.TPR.Value}, []float64{want.TPR[i]}, 1e-12)
		if rate.TruePositives != want.Hits[i] || !rate.Resolved {
			t.Errorf("at %v: %d named, resolved %v; want %d", rate.FPR, rate.TruePositives, rate.Resolved, want.Hits[i])
		}
		if rate.TPR.Low > rate.TPR.Value || rate.TPR.High < rate.TPR.Value || rate.Achieved.Value > rate.FPR {
			t.Errorf("at %v: %+v", rate.FPR, rate)
		}
	}
}

func TestScoresOfChanceHaveAnAUCOfOneHalfWithinTheirInterval(t *testing.T) {
	covered, trials := 0, 60
	for seed := range trials {
		rng := rand.New(rand.NewPCG(uint64(seed), 7))
		var scores []float64
		var member []bool
		var of []int
		for person := range 60 { // each scored against six models
			base := rng.NormFloat64()
			for range 6 {
				scores, member, of = append(scores, base+0.3*rng.NormFloat64()), append(member, rng.IntN(2) == 0), append(of, person)
			}
		}
		r, err := Compare(scores, member, of, uint64(seed))
		if err != nil {
			t.Fatal(err)
		}
		if r.AUC.Low <= 0.5 && r.AUC.High >= 0.5 {
			covered++
		}
	}
	if covered < 52 { // 95 % of 60 is 57, with a deviation of 1.7
		t.Errorf("%d of %d intervals hold one half", covered, trials)
	}
}

func TestTooFewOthersAreSaidNotToResolveARate(t *testing.T) {
	scores, member := drawnScores(300, 2)
	r, err := Compare(scores, member, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	if r.Rates[0].Resolved || !r.Rates[1].Resolved || r.Rates[0].FalsePositives != 0 {
		t.Errorf("200 others: %+v", r.Rates)
	}
}

func TestTheLimitIsThatOfTheGaussianMechanism(t *testing.T) {
	// One release of a sum with noise σ: the best test has TPR Φ(Φ⁻¹(FPR) + 1/σ)
	// (Dong, Roth and Su 2022). Promises at many δ must come close, and never below.
	run := dp.Run{Rate: 1, Sigma: 1.2, Steps: 1}
	var promises []Promise
	for _, delta := range []float64{1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3} {
		e, err := dp.PLD{}.Epsilon(run, delta)
		if err != nil {
			t.Fatal(err)
		}
		promises = append(promises, Promise{e, delta})
	}
	normal := func(x float64) float64 { return math.Erfc(-x/math.Sqrt2) / 2 }
	for _, fpr := range []float64{0.001, 0.01, 0.1, 0.4} {
		quantile := math.Sqrt2 * math.Erfinv(2*fpr-1)
		best := normal(quantile + 1/run.Sigma)
		got := Limit(promises, fpr)
		if got < best-1e-6 || got > best*1.35+1e-3 {
			t.Errorf("at %v: limit %v, the best test has %v", fpr, got, best)
		}
	}
	if got := Limit([]Promise{{8, 1e-5}}, 0.01); !(got > 0.999 && got < 1) {
		t.Errorf("ε = 8 alone allows %v at 1 %%", got)
	}
	if got := Limit([]Promise{{0, 0}}, 0.3); got != 0.3 {
		t.Errorf("ε = 0 allows %v at 30 %%", got)
	}
}

func TestOnlyFiniteScoresOfBothKindsAreCompared(t *testing.T) {
	for name, scores := range map[string][]float64{"NaN": {1, math.NaN()}, "none": nil} {
		if _, err := Compare(scores, make([]bool, len(scores)), nil, 1); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Compare([]float64{1, 2}, []bool{true, false}, []int{1}, 1); err == nil {
		t.Error("fewer persons than scores: no error")
	}
}

func TestPointsOfTheCurveRise(t *testing.T) {
	scores, member := drawnScores(5000, 9)
	r, err := Compare(scores, member, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(r.Points, func(a, b [2]float64) int {
		if a[0] < b[0] {
			return -1
		}
		return 1
	}) || len(r.Points) > 200 || len(r.Points) < 20 {
		t.Errorf("%d points", len(r.Points))
	}
}
