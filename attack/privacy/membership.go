package privacy

import (
	"fmt"
	"math"
	"slices"
)

// Signal is what membership is read from: for each example the logit of its own
// class, log p/(1-p), which is close to normally distributed over models (Carlini
// et al. 2022, section VI.A). logits [examples][classes], of classes that exclude
// each other.
func Signal(logits [][]float64, labels []int) ([]float64, error) {
	if len(logits) != len(labels) {
		return nil, fmt.Errorf("privacy: signals of %d answers with %d labels: %w", len(logits), len(labels), ErrAsk)
	}
	out := make([]float64, len(logits))
	for i, z := range logits {
		if labels[i] < 0 || labels[i] >= len(z) || len(z) < 2 {
			return nil, fmt.Errorf("privacy: example %d has label %d, the model tells %d classes apart: %w", i, labels[i], len(z), ErrAsk)
		}
		others := make([]float64, 0, len(z)-1)
		for c, v := range z {
			if c != labels[i] {
				others = append(others, v)
			}
		}
		out[i] = z[labels[i]] - logSum(others)
		if math.IsNaN(out[i]) || math.IsInf(out[i], 0) {
			return nil, fmt.Errorf("privacy: the model's answer to example %d is no number: %w", i, ErrAsk)
		}
	}
	return out, nil
}

func logSum(v []float64) float64 {
	most := slices.Max(v)
	sum := 0.0
	for _, x := range v {
		sum += math.Exp(x - most)
	}
	return most + math.Log(sum)
}

// Shadows are models of the same recipe whose training sets are known.
type Shadows struct {
	// Signals of each model for each query of each example,
	// [models][examples·Queries]; the queries of one example lie together.
	Signals [][]float64
	In      [][]bool // [models][examples]: trained on it
	Queries int      // looks at one example, such as mirrored; 0 is 1

	skip [][]bool // [models][examples]: as if the model were not there; nil: none
}

// counts says that a model tells of an example under one of the hypotheses.
func (s Shadows) counts(model, example int, in bool) bool {
	return s.In[model][example] == in && (s.skip == nil || !s.skip[model][example])
}

// check returns the number of examples.
func (s Shadows) check(target []float64) (examples, queries int, err error) {
	queries = max(1, s.Queries)
	if len(s.Signals) == 0 || len(s.Signals) != len(s.In) || len(target) == 0 || len(target)%queries != 0 {
		return 0, 0, fmt.Errorf("privacy: %d shadow models with %d memberships and %d answers of the target in %d looks: %w", len(s.Signals), len(s.In), len(target), queries, ErrAsk)
	}
	examples = len(target) / queries
	for m := range s.Signals {
		if len(s.Signals[m]) != len(target) || len(s.In[m]) != examples {
			return 0, 0, fmt.Errorf("privacy: shadow model %d has %d answers and %d memberships for %d examples in %d looks: %w", m, len(s.Signals[m]), len(s.In[m]), examples, queries, ErrAsk)
		}
	}
	return examples, queries, nil
}

// moments of the signals of one example's look over the models that have (in) or
// have not trained on it.
func (s Shadows) moments(at, example int, in bool) (mean, variance float64, n int) {
	for m := range s.Signals {
		if s.counts(m, example, in) {
			mean += s.Signals[m][at]
			n++
		}
	}
	if n == 0 {
		return 0, 0, 0
	}
	mean /= float64(n)
	for m := range s.Signals {
		if s.counts(m, example, in) {
			d := s.Signals[m][at] - mean
			variance += d * d
		}
	}
	return mean, variance / float64(n), n
}

// Variance says whose variance a likelihood ratio uses.
type Variance int

// The variances of a likelihood ratio.
const (
	// AutoVariance is each example's own where 32 models of a kind or more tell
	// of it, otherwise pooled.
	AutoVariance Variance = iota
	// OwnVariance is that of each example.
	OwnVariance
	// PooledVariance is the mean over all examples of each one's own: the better
	// one with few shadow models (Carlini et al. 2022, section VI.C).
	PooledVariance
)

const leastVariance = 1e-12

// normals are the means and deviations of signals under one of the hypotheses.
func (s Shadows) normals(examples, queries int, in bool, v Variance) (mean, deviation []float64, err error) {
	size := examples * queries
	mean, deviation = make([]float64, size), make([]float64, size)
	counts := math.MaxInt
	sum, freedom := 0.0, 0.0
	for i := range size {
		m, variance, n := s.moments(i, i/queries, in)
		if n == 0 {
			kind := "without"
			if in {
				kind = "with"
			}
			return nil, nil, fmt.Errorf("privacy: no shadow model was trained %s example %d: %w: train more of them", kind, i/queries, ErrAsk)
		}
		mean[i], deviation[i] = m, variance
		counts = min(counts, n)
		sum += variance * float64(n)
		freedom += float64(n - 1)
	}
	if v == AutoVariance {
		if v = PooledVariance; counts >= 32 {
			v = OwnVariance
		}
	}
	pooled := leastVariance
	if freedom > 0 {
		pooled = max(pooled, sum/freedom)
	} else if v == PooledVariance {
		return nil, nil, fmt.Errorf("privacy: one shadow model of a kind for each example has no variance: %w: train more of them", ErrAsk)
	}
	for i := range deviation {
		if v == PooledVariance {
			deviation[i] = pooled
		}
		deviation[i] = math.Sqrt(max(leastVariance, deviation[i]))
	}
	return mean, deviation, nil
}

// LiRAOnline is the likelihood-ratio attack of Carlini et al. 2022 (algorithm 1):
// for each example the log-likelihood of the target's signal under a normal fitted
// to the shadow models that trained on it, less that under one fitted to those
// that did not; the mean over its looks.
func LiRAOnline(target []float64, s Shadows, v Variance) ([]float64, error) {
	examples, queries, err := s.check(target)
	if err != nil {
		return nil, err
	}
	meanIn, devIn, err := s.normals(examples, queries, true, v)
	if err != nil {
		return nil, err
	}
	meanOut, devOut, err := s.normals(examples, queries, false, v)
	if err != nil {
		return nil, err
	}
	out := make([]float64, examples)
	for i, x := range target {
		out[i/queries] += (logNormal(x, meanIn[i], devIn[i]) - logNormal(x, meanOut[i], devOut[i])) / float64(queries)
	}
	return out, nil
}

func logNormal(x, mean, deviation float64) float64 {
	z := (x - mean) / deviation
	return -z*z/2 - math.Log(deviation) - math.Log(2*math.Pi)/2
}

// LiRAOffline is the same without models that trained on the example: how many
// deviations the target's signal lies above those that did not. It rises with the
// paper's probability, section V.D, and does not saturate.
func LiRAOffline(target []float64, s Shadows, v Variance) ([]float64, error) {
	examples, queries, err := s.check(target)
	if err != nil {
		return nil, err
	}
	mean, deviation, err := s.normals(examples, queries, false, v)
	if err != nil {
		return nil, err
	}
	out := make([]float64, examples)
	for i, x := range target {
		out[i/queries] += (x - mean[i]) / deviation[i] / float64(queries)
	}
	return out, nil
}

// Calibrated is the target's signal less the mean of the models that did not train
// on the example: difficulty calibration (Watson et al. 2022).
func Calibrated(target []float64, s Shadows) ([]float64, error) {
	examples, queries, err := s.check(target)
	if err != nil {
		return nil, err
	}
	out := make([]float64, examples)
	for i, x := range target {
		mean, _, n := s.moments(i, i/queries, false)
		if n == 0 {
			return nil, fmt.Errorf("privacy: no shadow model was trained without example %d: %w: train more of them", i/queries, ErrAsk)
		}
		out[i/queries] += (x - mean) / float64(queries)
	}
	return out, nil
}

// Loss is the oldest attack: the smaller the loss, the more a member (Yeom et al.
// 2018). It needs no shadow models. Of several looks it takes the mean.
func Loss(target []float64, queries int) []float64 {
	queries = max(1, queries)
	out := make([]float64, len(target)/queries)
	for i, x := range target {
		out[i/queries] -= softplus(-x) / float64(queries)
	}
	return out
}

// softplus is log(1 + e^x).
func softplus(x float64) float64 {
	if x > 0 {
		return x + math.Log1p(math.Exp(-x))
	}
	return math.Log1p(math.Exp(x))
}

// RMIAOptions are the settings of RMIA; zero values are its authors'.
type RMIAOptions struct {
	Gamma float64 // ratio that an example must exceed another's by [2]
	A     float64 // slope of the offline estimate of an example's probability [0.3]
}

// RMIA is the robust membership inference attack (Zarifzadeh, Liu and Shokri 2024,
// offline form): the share of the other examples z that x exceeds by the factor
// Gamma in the ratio of the target's probability to that of models that did not
// train on it, (1+A)/2·mean + (1-A)/2. It works with one or two reference models.
// Only the first look at each example counts.
func RMIA(target []float64, s Shadows, o RMIAOptions) ([]float64, error) {
	examples, queries, err := s.check(target)
	if err != nil {
		return nil, err
	}
	if o.Gamma == 0 {
		o.Gamma = 2
	}
	if o.A == 0 {
		o.A = 0.3
	}
	if !(o.Gamma >= 1) || !(o.A > 0 && o.A <= 1) {
		return nil, fmt.Errorf("privacy: RMIA with gamma %v and a of %v: %w: want 1 or more, and a share", o.Gamma, o.A, ErrAsk)
	}
	ratio := make([]float64, examples) // logarithms
	for i := range examples {
		mean, n := 0.0, 0
		for m := range s.Signals {
			if s.counts(m, i, false) {
				mean += math.Exp(-softplus(-s.Signals[m][i*queries]))
				n++
			}
		}
		if n == 0 {
			return nil, fmt.Errorf("privacy: no reference model was trained without example %d: %w: train more of them", i, ErrAsk)
		}
		mean /= float64(n)
		ratio[i] = -softplus(-target[i*queries]) - math.Log((1+o.A)/2*mean+(1-o.A)/2)
	}
	sorted := slices.Clone(ratio)
	slices.Sort(sorted)
	out := make([]float64, examples)
	for i, r := range ratio {
		limit := r - math.Log(o.Gamma)
		below, _ := slices.BinarySearch(sorted, math.Nextafter(limit, math.Inf(1)))
		if r <= limit { // of Gamma 1 it exceeds itself, which does not count
			below--
		}
		out[i] = float64(below) / float64(max(1, examples-1))
	}
	return out, nil
}

// LeaveOut is the experiment in which shadow model k is the target: its signals,
// its memberships, and the others as shadows. Of each example one model of the
// other kind than k is left out too, so that how many there are of a kind says
// nothing of the answer.
func (s Shadows) LeaveOut(k int) (target []float64, member []bool, rest Shadows) {
	target, member = s.Signals[k], s.In[k]
	rest.Queries = s.Queries
	for step := 1; step < len(s.Signals); step++ {
		m := (k + step) % len(s.Signals)
		rest.Signals = append(rest.Signals, s.Signals[m])
		rest.In = append(rest.In, s.In[m])
		rest.skip = append(rest.skip, make([]bool, len(member)))
	}
	for i := range member {
		for m := range rest.In {
			if rest.In[m][i] != member[i] {
				rest.skip[m][i] = true
				break
			}
		}
	}
	return target, member, rest
}
