package federate

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie/train"
)

// Naming is what becomes of the evidence that many rounds give against a site.
type Naming string

// What becomes of it.
const (
	NamingOff     Naming = ""        // none is kept
	NamingReport  Naming = "report"  // a site is named, and stays
	NamingExclude Naming = "exclude" // a site is named, and is in no later sum
)

// Charge is what a site is named for.
type Charge string

// The charges.
const (
	// Against: over many rounds, what the site adds points away from what the
	// trusted examples teach. It needs trusted examples.
	Against Charge = "against"
	// Steering: what the site adds pushes the model on and on to where the trusted
	// examples and the others do not.
	Steering Charge = "steering"
	// Outsized: what the site adds differs from the others' by far more than theirs
	// from each other.
	Outsized Charge = "outsized"
	// Unbounded: sums with the site, again and again, cannot be of updates within
	// the terms' bound.
	Unbounded Charge = "unbounded"
)

// Charges lists all charges.
func Charges() []Charge { return []Charge{Against, Steering, Outsized, Unbounded} }

// Score is the evidence against one site.
type Score struct {
	Site    string     `json:"site"`
	Rounds  int        `json:"rounds"` // that it was in a sum of
	Charges []Evidence `json:"charges"`
	Named   Charge     `json:"named,omitempty"` // "" if it is not
	Since   int        `json:"since,omitempty"` // rounds that had a result when it was named
}

// Evidence is what speaks for a charge.
type Evidence struct {
	Charge Charge `json:"charge"`
	// Value is the mean over the rounds of what is estimated of the site alone:
	// for Against how far it points against the trusted direction, in units of a
	// typical site's difference from the others; for the other two, times
	// that of the site at two thirds of the way from the smallest to the largest.
	Value float64 `json:"value"`
	Bar   float64 `json:"bar"` // that Value may reach
	// Log is the natural logarithm of the evidence: how many times likelier the
	// rounds are if the charge holds. The site is named from Threshold on.
	Log       float64 `json:"log_evidence"`
	Threshold float64 `json:"threshold"`
}

// scoreRow is what the coordinator keeps of one group's sum. Lengths are of the
// sums of weight times update.
type scoreRow struct {
	Members []string  `json:"members"`          // that are in it
	Beyond  bool      `json:"beyond,omitempty"` // see GroupOutcome; there is nothing else then
	Weight  float64   `json:"weight"`           // Σ of the sites' weights
	Full    float64   `json:"full"`             // along all that the trusted examples teach
	Common  float64   `json:"common"`           // along what those of all classes teach alike
	Energy  float64   `json:"energy"`           // squared length of its difference from what all sums come to for so many sites
	Rest    float64   `json:"rest"`             // of that difference, without what the trusted examples of some class teach
	Sketch  []float32 `json:"sketch"`           // of the same
}

// References are trainers for the coordinator, one for each class that some of a
// set's examples have: what the trusted examples of a class teach.
func (e *Engine) References(s *train.Set) ([]Trainer, error) {
	var out []Trainer
	for class, n := range s.Counts() {
		if n == 0 {
			continue
		}
		var at []int
		for i := range s.Len() {
			if s.Has(i, class) {
				at = append(at, i)
			}
		}
		out = append(out, e.Trainer(s.Subset(at)))
	}
	if len(out) < 2 {
		return nil, fmt.Errorf("federate: making references of %q: its %d examples are of %d classes, and two are needed", s.Name, s.Len(), len(out))
	}
	return out, nil
}

// teachings are directions of length 1 that the trusted examples teach in a
// round: of all, of all classes alike, and an orthonormal basis of every class's.
type teachings struct {
	full, common []float32
	basis        [][]float32
}

func (c *Coordinator) teachings(ctx context.Context) (*teachings, error) {
	if len(c.Trusted) == 0 || c.Terms.Naming == NamingOff {
		return nil, nil
	}
	t := &teachings{full: make([]float32, len(c.Variables)), common: make([]float32, len(c.Variables))}
	for _, trainer := range c.Trusted {
		g, err := Learn(ctx, trainer, Work{Terms: c.Terms, Round: c.state.Index, Seed: c.Terms.Seed}, c.Variables)
		if err != nil {
			return nil, fmt.Errorf("federate: learning from the trusted examples in round %d: %w", c.state.Index+1, err)
		}
		axpy(t.full, 1, g)
		if l := length(g); l > 0 {
			axpy(t.common, 1/l, g)
		}
		for range 2 { // twice, against rounding
			for _, b := range t.basis {
				axpy(g, -dot(g, b), b)
			}
		}
		if l := length(g); l > 0 {
			scaleBy(g, 1/l)
			t.basis = append(t.basis, g)
		}
	}
	for _, v := range [][]float32{t.full, t.common} {
		if l := length(v); l > 0 {
			scaleBy(v, 1/l)
		}
	}
	return t, nil
}

// checkTrusted refuses trusted trainers that cannot show what honest sites learn.
func (o CoordinatorOptions) checkTrusted() error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("federate: making a coordinator with trusted examples: %s", fmt.Sprintf(format, arguments...))
	}
	if len(o.Trusted) > 0 && len(o.Terms.Personal) > 0 {
		return fail("sites have variables of their own, which the coordinator has not")
	}
	for i, t := range o.Trusted {
		if variables, trained := t.Size(); variables != len(o.Variables) || trained != o.Trained {
			return fail("trainer %d has %d variables, of which %d are trained; the model has %d and %d", i+1, variables, trained, len(o.Variables), o.Trained)
		}
	}
	return nil
}

// checkObserved refuses what was kept of rounds, if it cannot be of this federation.
func (c *Coordinator) checkObserved(rounds [][]scoreRow) error {
	known := map[string]bool{}
	for _, m := range c.Members {
		known[m.Name] = true
	}
	finite := func(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
	if len(rounds) > c.Terms.Rounds || len(rounds) > 0 && c.Terms.Naming == NamingOff {
		return fmt.Errorf("%d rounds were observed", len(rounds))
	}
	for at, rows := range rounds {
		met := map[string]bool{}
		for _, r := range rows {
			for _, name := range r.Members {
				if !known[name] || met[name] {
					return fmt.Errorf("round %d was observed with %q, who is no member or in it twice", at+1, name)
				}
				met[name] = true
			}
			if r.Beyond {
				continue
			}
			bad := len(r.Members) == 0 || len(r.Sketch) != c.Terms.Sketch || !(r.Energy >= 0) || !(r.Rest >= 0) || !(r.Weight > 0)
			for _, v := range []float64{r.Energy, r.Rest, r.Weight, r.Full, r.Common} {
				bad = bad || !finite(v)
			}
			for _, v := range r.Sketch {
				bad = bad || !finite(float64(v))
			}
			if bad {
				return fmt.Errorf("what was observed of %v in round %d is damaged", r.Members, at+1)
			}
		}
	}
	return nil
}

// bounded says whether a group's mean can be one of updates within the terms'
// bound, by weights of at most 1. What rounding adds in fixed point is allowed for.
func (c *Coordinator) bounded(s groupSum, sites int) error {
	step := float64(sites) * c.Terms.numbers(c.Terms.largest(len(c.Members))).Error()
	if most := float64(sites)*(1+1e-6) + step; s.weight > most {
		return fmt.Errorf("the weights of %d sites come to %g", sites, s.weight)
	}
	n := min(len(c.Variables), len(s.mean))
	for _, part := range [][]float32{s.mean[:n], s.mean[n:]} {
		most := c.Terms.Bound*(1+1e-5) + step*(math.Sqrt(float64(len(part)))+c.Terms.Bound)/s.weight
		if l := length(part); !(l <= most) {
			return fmt.Errorf("the mean update of %d sites is %g long, and the terms' bound is %g", sites, l, c.Terms.Bound)
		}
	}
	return nil
}

// admit leaves out who was named, if the terms say so, as long as there remain
// groups to compare.
func (c *Coordinator) admit(links []Link) []Link {
	if c.Terms.Naming != NamingExclude {
		return links
	}
	named := map[string]bool{}
	for _, s := range c.Scores() {
		named[s.Site] = s.Named != ""
	}
	in := slices.DeleteFunc(slices.Clone(links), func(l Link) bool { return named[l.Name()] })
	if c.Terms.groups(len(in)) < comparable {
		return links
	}
	return in
}

// Scores are the evidence against each site so far, in the order of their names;
// nil if the terms name no site.
func (c *Coordinator) Scores() []Score {
	if c.Terms.Naming == NamingOff {
		return nil
	}
	c.tally()
	return c.scores.report()
}

// tally makes the scores of all that was observed.
func (c *Coordinator) tally() {
	if c.scores != nil {
		return
	}
	var names []string
	for _, m := range c.Members {
		names = append(names, m.Name)
	}
	c.scores = newScores(c.Terms, names)
	for _, rows := range c.state.Observed {
		c.scores.add(rows)
	}
}

// score takes a round's sums in, and changes them.
func (c *Coordinator) score(out *Outcome, t *teachings, sums []groupSum) {
	if c.Terms.Naming == NamingOff {
		return
	}
	c.tally()
	var survivors [][]string
	for _, s := range sums {
		survivors = append(survivors, out.Groups[s.group(out)].Survivors)
	}
	rows := c.observe(t, sums, survivors)
	for _, g := range out.Groups {
		if g.Beyond != nil {
			rows = append(rows, scoreRow{Members: g.Beyond, Beyond: true})
		}
	}
	c.state.Observed = append(c.state.Observed, rows)
	before := slices.Clone(c.scores.named)
	c.scores.add(rows)
	for i, charge := range c.scores.named {
		if charge != before[i] {
			out.Named = append(out.Named, c.scores.sites[i])
		}
	}
	out.Scores = c.scores.report()
}

// observe makes a row of each group's sum. It changes the sums' means.
func (c *Coordinator) observe(t *teachings, sums []groupSum, survivors [][]string) []scoreRow {
	n := len(c.Variables)
	rows := make([]scoreRow, len(sums))
	mean, sites := make([]float32, n), 0
	for i, s := range sums {
		rows[i].Members, rows[i].Weight = survivors[i], s.weight
		sites += len(survivors[i])
		v := s.mean[:n]
		scaleBy(v, s.weight)
		if t != nil {
			rows[i].Full, rows[i].Common = dot(v, t.full), dot(v, t.common)
		}
		axpy(mean, 1, v)
	}
	scaleBy(mean, 1/float64(sites))
	for i, s := range sums {
		v := s.mean[:n]
		axpy(v, -float64(len(survivors[i])), mean)
		rows[i].Energy = dot(v, v)
		if t != nil {
			for _, b := range t.basis {
				axpy(v, -dot(v, b), b)
			}
		}
		rows[i].Rest = dot(v, v)
		rows[i].Sketch = sketch(v, c.Terms.Sketch, c.Terms.Seed)
	}
	return rows
}

// sketch adds every number of v, with a sign, to one of k, both drawn by the seed:
// products of sketches are those of the vectors, but for a share of about
// √(2/k) of their lengths (Charikar et al. 2002; Weinberger et al. 2009).
func sketch(v []float32, k int, seed uint64) []float32 {
	sums := make([]float64, k)
	for j, x := range v {
		h := mix(seed ^ 0x736b65746368 ^ uint64(j)*0x9e3779b97f4a7c15)
		if h>>63 == 1 {
			x = -x
		}
		sums[(h&0xffffffff)*uint64(k)>>32] += float64(x)
	}
	out := make([]float32, k)
	for i, s := range sums {
		out[i] = float32(s)
	}
	return out
}

// mix is the finaliser of SplitMix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func dot(a, b []float32) float64 {
	sum := 0.0
	for i, v := range a {
		sum += float64(v) * float64(b[i])
	}
	return sum
}

// axpy adds f·b to a.
func axpy(a []float32, f float64, b []float32) {
	for i, v := range b {
		a[i] = float32(float64(a[i]) + f*float64(v))
	}
}

func scaleBy(a []float32, f float64) {
	for i, v := range a {
		a[i] = float32(f * float64(v))
	}
}
