package privacy

import (
	"errors"
	"math/rand/v2"
	"testing"
)

// world draws signals of shadow models: each person has a difficulty, and a model
// that was trained on somebody is surer of them by an amount of their own.
func world(models, examples, queries int, effect float64, seed uint64) Shadows {
	rng := rand.New(rand.NewPCG(seed, 3))
	s := Shadows{Queries: queries}
	base, own := make([]float64, examples), make([]float64, examples)
	for i := range base {
		base[i], own[i] = 2*rng.NormFloat64(), effect*rng.Float64()
	}
	for range models {
		in := make([]bool, examples)
		var signal []float64
		for i := range in {
			in[i] = rng.IntN(2) == 0
			for range queries {
				v := base[i] + (0.5+own[i]/4)*rng.NormFloat64()
				if in[i] {
					v += own[i]
				}
				signal = append(signal, v)
			}
		}
		s.Signals, s.In = append(s.Signals, signal), append(s.In, in)
	}
	return s
}

// lira is the attack as its authors' code has it (tensorflow/privacy, research/mi_lira_2021/plot.py),
// with the mean variance within examples in the place of theirs over all, and the
// offline score before Φ.
const lira = `
import numpy as np
q = d['queries']
t, S, I = np.array(d['target']).reshape(-1, q), np.array(d['signals']), np.array(d['in'])
S = S.reshape(len(S), -1, q)
N = t.shape[0]
def fit(side):
    x = [S[I[:, i] == side, i, :] for i in range(N)]
    mean, var, n = np.array([v.mean(0) for v in x]), np.array([v.var(0) for v in x]), np.array([len(v) for v in x])
    pooled = (var * n[:, None]).sum() / ((n - 1).sum() * q)
    return mean, np.sqrt(var), np.sqrt(pooled)
mi, si, pi = fit(True)
mo, so, po = fit(False)
L = lambda x, m, s: -((x - m) / s) ** 2 / 2 - np.log(s) - np.log(2 * np.pi) / 2 # scipy.stats.norm.logpdf
p = 1 / (1 + np.exp(-t[:, 0]))
ref = np.array([(1 / (1 + np.exp(-S[~I[:, i], i, 0]))).mean() for i in range(N)])
ratio = p / ((1 + .3) / 2 * ref + (1 - .3) / 2)
rmia = [np.mean([ratio[i] / ratio[j] >= 2 for j in range(N) if j != i]) for i in range(N)]
print(json.dumps(dict(own=(L(t, mi, si) - L(t, mo, so)).mean(1).tolist(), pooled=(L(t, mi, pi) - L(t, mo, po)).mean(1).tolist(),
    offown=((t - mo) / so).mean(1).tolist(), offpooled=((t - mo) / po).mean(1).tolist(),
    calibrated=(t - mo).mean(1).tolist(), loss=np.log(1 / (1 + np.exp(-t))).mean(1).tolist(), rmia=rmia)))`

func TestLikelihoodRatiosAreWhatNumPyHas(t *testing.T) {
	s := world(24, 60, 2, 1.5, 1)
	target := world(1, 60, 2, 1.5, 1).Signals[0]
	var want struct{ Own, Pooled, Offown, Offpooled, Calibrated, Loss, Rmia []float64 }
	python(t, lira, map[string]any{"target": target, "signals": s.Signals, "in": s.In, "queries": 2}, &want)
	for _, c := range []struct {
		name  string
		score func() ([]float64, error)
		want  []float64
	}{
		{"online, own variance", func() ([]float64, error) { return LiRAOnline(target, s, OwnVariance) }, want.Own},
		{"online, pooled", func() ([]float64, error) { return LiRAOnline(target, s, PooledVariance) }, want.Pooled},
		{"online, few models", func() ([]float64, error) { return LiRAOnline(target, s, AutoVariance) }, want.Pooled},
		{"offline, own variance", func() ([]float64, error) { return LiRAOffline(target, s, OwnVariance) }, want.Offown},
		{"offline, pooled", func() ([]float64, error) { return LiRAOffline(target, s, PooledVariance) }, want.Offpooled},
		{"calibrated", func() ([]float64, error) { return Calibrated(target, s) }, want.Calibrated},
		{"loss", func() ([]float64, error) { return Loss(target, 2), nil }, want.Loss},
		{"RMIA", func() ([]float64, error) { return RMIA(target, s, RMIAOptions{}) }, want.Rmia},
	} {
		got, err := c.score()
		if err != nil {
			t.Fatal(c.name, err)
		}
		near(t, c.name, got, c.want, 1e-9)
	}
}

func TestTheSignalIsTheLogitOfTheOwnClass(t *testing.T) {
	got, err := Signal([][]float64{{0, 3}, {0, 3}, {1, 2, 3}, {1000, 0}}, []int{1, 0, 2, 1})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "signal", got, []float64{3, -3, 3 - 2.313261687518223, -1000}, 1e-12)
	for name, labels := range map[string][]int{"outside": {2}, "too many": {0, 1}} {
		if _, err := Signal([][]float64{{0, 1}}, labels); !errors.Is(err, ErrAsk) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestShadowModelsFindMembersWhereAThresholdFindsFew(t *testing.T) {
	s := world(33, 400, 1, 3, 2)
	target, member, rest := s.LeaveOut(0)
	online, err := LiRAOnline(target, rest, AutoVariance)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Compare(online, member, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Compare(Loss(target, 1), member, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	if a.AUC.Value < b.AUC.High || a.Rates[1].TPR.Value < 2*b.Rates[1].TPR.Value {
		t.Errorf("likelihood ratio %v, %v at 1 %%; loss %v, %v", a.AUC, a.Rates[1].TPR, b.AUC, b.Rates[1].TPR)
	}
}

func TestAModelThatKnowsNothingIsNotAttacked(t *testing.T) {
	s := world(17, 300, 1, 0, 5)
	var scores []float64
	var member []bool
	var of []int
	for k := range s.Signals {
		target, in, rest := s.LeaveOut(k)
		each, err := LiRAOnline(target, rest, AutoVariance)
		if err != nil {
			t.Fatal(err)
		}
		scores, member = append(scores, each...), append(member, in...)
		for i := range in {
			of = append(of, i)
		}
	}
	r, err := Compare(scores, member, of, 1)
	if err != nil {
		t.Fatal(err)
	}
	if r.AUC.Low > 0.5 || r.AUC.High < 0.5 {
		t.Errorf("AUC %v", r.AUC)
	}
}

func TestLeavingOneModelOutLeavesAsManyOfEachKindForEveryone(t *testing.T) {
	const models, examples = 8, 50
	rng := rand.New(rand.NewPCG(1, 1))
	s := Shadows{}
	for range models {
		s.Signals, s.In = append(s.Signals, make([]float64, examples)), append(s.In, make([]bool, examples))
	}
	for i := range examples {
		for _, m := range rng.Perm(models)[:models/2] {
			s.In[m][i] = true
		}
	}
	for k := range models {
		_, member, rest := s.LeaveOut(k)
		for i := range examples {
			_, _, with := rest.moments(i, i, true)
			_, _, without := rest.moments(i, i, false)
			if with != models/2-1 || without != models/2-1 {
				t.Fatalf("model %d, example %d (member %v): %d with, %d without", k, i, member[i], with, without)
			}
		}
	}
}

func TestShadowModelsThatTellNothingOfAnExampleAreRefused(t *testing.T) {
	s := Shadows{Signals: [][]float64{{1, 2}, {3, 4}}, In: [][]bool{{true, false}, {true, false}}}
	if _, err := LiRAOnline([]float64{1, 2}, s, AutoVariance); !errors.Is(err, ErrAsk) {
		t.Errorf("online: %v", err)
	}
	if _, err := Calibrated([]float64{1, 2}, s); !errors.Is(err, ErrAsk) {
		t.Errorf("calibrated: %v", err)
	}
	if _, err := RMIA([]float64{1, 2}, s, RMIAOptions{}); !errors.Is(err, ErrAsk) {
		t.Errorf("RMIA: %v", err)
	}
	if _, err := LiRAOffline([]float64{1}, s, AutoVariance); !errors.Is(err, ErrAsk) {
		t.Errorf("sizes: %v", err)
	}
}

func TestABlindClassifierFindsGroupsThatDifferAndNothingElse(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	draw := func(shift float64) *ROC {
		var x [][]float64
		var member []bool
		for i := range 400 {
			m := i%2 == 0
			row := []float64{rng.NormFloat64(), rng.NormFloat64(), 7, rng.NormFloat64()}
			if m {
				row[1] += shift
			}
			x, member = append(x, row), append(member, m)
		}
		r, err := Blind(x, member, 5, 1)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := draw(1); r.AUC.Low < 0.6 {
		t.Errorf("groups that differ: %v", r.AUC)
	}
	if r := draw(0); r.AUC.Low > 0.5 || r.AUC.High < 0.5 {
		t.Errorf("groups that do not: %v", r.AUC)
	}
}

func TestTheLogisticRegressionIsScikitLearns(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	var x [][]float64
	var y []bool
	for range 120 {
		a, b := rng.NormFloat64(), 3+2*rng.NormFloat64()
		x, y = append(x, []float64{a, b, a * b}), append(y, a+0.3*b+rng.NormFloat64() > 1.5)
	}
	var want []float64
	python(t, `
import numpy as np; from sklearn.linear_model import LogisticRegression
x, y = np.array(d['x']), np.array(d['y'])
x = (x - x.mean(0)) / x.std(0)
w = np.where(y, len(y) / 2 / y.sum(), len(y) / 2 / (~y).sum())
print(json.dumps(LogisticRegression(C=1, tol=1e-12, max_iter=10000).fit(x, y, sample_weight=w).decision_function(x).tolist()))`,
		map[string]any{"x": x, "y": y}, &want)
	l, err := FitLogistic(x, y, 1)
	if err != nil {
		t.Fatal(err)
	}
	var got []float64
	for _, row := range x {
		got = append(got, l.Score(row))
	}
	near(t, "score", got, want, 1e-4)
}
