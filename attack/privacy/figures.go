package privacy

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/mathext"

	"github.com/vigie/vigie/train"
)

// ErrAsk says that what was asked cannot be answered with what was given; the
// message says what would do.
var ErrAsk = errors.New("cannot be asked like this")

// ClopperPearson is a share, hits of n, with its exact 95 % interval (Clopper and
// Pearson 1934): it never covers less than it says, also where there are no hits.
func ClopperPearson(hits, n int) train.Interval {
	if n <= 0 {
		return train.Interval{High: 1}
	}
	k, total := float64(hits), float64(n)
	out := train.Interval{Value: k / total, High: 1}
	if hits > 0 {
		out.Low = mathext.InvRegIncBeta(k, total-k+1, 0.025)
	}
	if hits < n {
		out.High = mathext.InvRegIncBeta(k+1, total-k, 0.975)
	}
	return out
}

// FalsePositiveRates are those at which true-positive rates are given: an attack
// that names few people and is right harms them, whatever its average (Carlini et
// al. 2022, section III).
var FalsePositiveRates = []float64{0.001, 0.01, 0.1}

// Rate is the true-positive rate at a false-positive rate.
type Rate struct {
	FPR float64 `json:"fpr"` // that was allowed
	// TPR is the share of members that are named, with a 95 % interval: the wider
	// ends of Clopper-Pearson's at the threshold and the bootstrap's, which moves
	// the threshold too.
	TPR            train.Interval `json:"tpr"`
	TruePositives  int            `json:"true_positives"`
	FalsePositives int            `json:"false_positives"`
	Achieved       train.Interval `json:"achieved_fpr"` // Clopper-Pearson
	// Resolved says that there are enough non-members for one of them to be within
	// the rate. Without it the row says what is named before the first error.
	Resolved bool `json:"resolved"`
}

// ROC says how well scores tell members from non-members.
type ROC struct {
	Members    int            `json:"members"` // scored; one person may be scored against several models
	NonMembers int            `json:"nonmembers"`
	AUC        train.Interval `json:"auc"` // DeLong's interval; the wider of it and the bootstrap's over persons, where they are scored more than once
	Rates      []Rate         `json:"rates"`
	// Points are false- and true-positive rates, rising, at most 200, the end
	// points left out: for a chart on logarithmic axes.
	Points [][2]float64 `json:"points"`
}

const bootstraps = 500

// Compare says how well scores tell members from others; the higher, the more a
// member. of, if not nil, is the person that each score is of, where one is scored
// more than once: the bootstrap then draws persons.
func Compare(scores []float64, member []bool, of []int, seed uint64) (*ROC, error) {
	auc, err := train.AUC(scores, member)
	if err != nil {
		return nil, fmt.Errorf("privacy: comparing members with others: %w", err)
	}
	if of != nil && len(of) != len(scores) {
		return nil, fmt.Errorf("privacy: comparing members with others: %d persons for %d scores: %w", len(of), len(scores), ErrAsk)
	}
	w := newWalk(scores, member)
	times := make([]float64, len(scores))
	for i := range times {
		times[i] = 1
	}
	whole := w.along(times)
	r := &ROC{AUC: auc, Members: int(whole.members), NonMembers: int(whole.others), Points: w.points()}
	for i, fpr := range FalsePositiveRates {
		rate := Rate{FPR: fpr, TruePositives: int(whole.hits[i]), FalsePositives: int(whole.errors[i]),
			Resolved: float64(r.NonMembers)*fpr >= 1-1e-9}
		rate.TPR = ClopperPearson(rate.TruePositives, r.Members)
		rate.Achieved = ClopperPearson(rate.FalsePositives, r.NonMembers)
		r.Rates = append(r.Rates, rate)
	}
	// Persons are drawn within members and others where each is one or the other.
	groups := map[int][]int{}
	for i := range scores {
		who := i
		if of != nil {
			who = of[i]
		}
		groups[who] = append(groups[who], i)
	}
	var strata [3][]int // members, others, both
	for who, at := range groups {
		kinds := [2]bool{}
		for _, i := range at {
			if member[i] {
				kinds[0] = true
			} else {
				kinds[1] = true
			}
		}
		switch {
		case kinds[0] && kinds[1]:
			strata[2] = append(strata[2], who)
		case kinds[0]:
			strata[0] = append(strata[0], who)
		default:
			strata[1] = append(strata[1], who)
		}
	}
	for k := range strata {
		slices.Sort(strata[k])
	}
	rng := rand.New(rand.NewPCG(seed, 0x10c))
	var aucs []float64
	shares := make([][]float64, len(FalsePositiveRates))
	for range bootstraps {
		clear(times)
		for _, people := range strata {
			for range people {
				for _, i := range groups[people[rng.IntN(len(people))]] {
					times[i]++
				}
			}
		}
		drawn := w.along(times)
		if drawn.members == 0 || drawn.others == 0 {
			continue
		}
		aucs = append(aucs, drawn.auc)
		for i := range shares {
			shares[i] = append(shares[i], drawn.hits[i]/drawn.members)
		}
	}
	if len(aucs) == 0 {
		return r, nil
	}
	ends := func(v []float64) (low, high float64) {
		slices.Sort(v)
		at := func(q float64) float64 { return v[int(math.Round(q*float64(len(v)-1)))] }
		return at(0.025), at(0.975)
	}
	low, high := ends(aucs)
	if of != nil {
		r.AUC.Low, r.AUC.High = min(r.AUC.Low, low), max(r.AUC.High, high)
	}
	for i := range r.Rates {
		low, high := ends(shares[i])
		t := &r.Rates[i].TPR
		t.Low, t.High = min(t.Low, low), max(t.High, high)
	}
	return r, nil
}

// walk is a ROC curve walked from the highest score down, as often as it is
// resampled.
type walk struct {
	order  []int
	scores []float64
	member []bool
}

func newWalk(scores []float64, member []bool) *walk {
	w := &walk{make([]int, len(scores)), scores, member}
	for i := range w.order {
		w.order[i] = i
	}
	slices.SortStableFunc(w.order, func(a, b int) int {
		switch {
		case scores[a] > scores[b]:
			return -1
		case scores[a] < scores[b]:
			return 1
		}
		return 0
	})
	return w
}

// walked is what one walk found; hits and errors at each of FalsePositiveRates.
type walked struct {
	members, others, auc float64
	hits, errors         [8]float64
}

// along walks the curve with each score counted times over. Equal scores fall
// together.
func (w *walk) along(times []float64) (out walked) {
	for i, t := range times {
		if w.member[i] {
			out.members += t
		} else {
			out.others += t
		}
	}
	hits, errors, pairs := 0.0, 0.0, 0.0
	for i := 0; i < len(w.order); {
		j, m, o := i, 0.0, 0.0
		for j < len(w.order) && w.scores[w.order[j]] == w.scores[w.order[i]] {
			if k := w.order[j]; w.member[k] {
				m += times[k]
			} else {
				o += times[k]
			}
			j++
		}
		pairs += o * (hits + m/2)
		hits, errors = hits+m, errors+o
		for k, fpr := range FalsePositiveRates {
			if errors <= fpr*out.others+1e-9 {
				out.hits[k], out.errors[k] = hits, errors
			}
		}
		i = j
	}
	if out.members > 0 && out.others > 0 {
		out.auc = pairs / (out.members * out.others)
	}
	return out
}

// points are the corners of the curve, at most 200 of them, more of them where the
// rates are low.
func (w *walk) points() [][2]float64 {
	members, others := 0, 0
	for _, m := range w.member {
		if m {
			members++
		} else {
			others++
		}
	}
	var all [][2]float64
	hits, errors := 0, 0
	for i := 0; i < len(w.order); {
		j := i
		for j < len(w.order) && w.scores[w.order[j]] == w.scores[w.order[i]] {
			if w.member[w.order[j]] {
				hits++
			} else {
				errors++
			}
			j++
		}
		all = append(all, [2]float64{float64(errors) / float64(others), float64(hits) / float64(members)})
		i = j
	}
	var out [][2]float64
	last := math.Inf(-1)
	for i, p := range all {
		if i+1 < len(all) && all[i+1][0] == p[0] || p[0] >= 1 { // the highest of a rise only
			continue
		}
		position := 0.0
		if p[0] > 0 {
			position = 1 + (math.Log10(p[0])+5)*38 // five decades
		}
		if position-last >= 1 || i == 0 {
			out = append(out, p)
			last = position
		}
	}
	return out
}

// Promise is one (ε, δ) that a mechanism keeps.
type Promise struct {
	Epsilon float64 `json:"epsilon"`
	Delta   float64 `json:"delta"`
}

// Limit is the highest true-positive rate that any membership test can have at a
// false-positive rate against a mechanism that keeps all of the promises: the
// least of e^ε·FPR + δ and 1 - e^-ε·(1 - δ - FPR) (Kairouz et al. 2015, theorem
// 2.1). Of one mechanism, promises at many δ come closer to its own curve.
func Limit(promises []Promise, fpr float64) float64 {
	limit := 1.0
	for _, p := range promises {
		limit = min(limit, math.Exp(p.Epsilon)*fpr+p.Delta, 1-math.Exp(-p.Epsilon)*(1-p.Delta-fpr))
	}
	return max(fpr, limit)
}

// AtMost is the one-sided upper end: with 95 % confidence, the share of which n
// trials had hits is no larger. Of no hits it is close to 3/n, so that 30,000
// trials show 0.01 %.
func AtMost(hits, n int) float64 {
	if n <= 0 || hits >= n {
		return 1
	}
	return mathext.InvRegIncBeta(float64(hits)+1, float64(n-hits), 0.95)
}
