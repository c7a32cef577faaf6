package federate

import (
	"cmp"
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

// tolerance is how large, beside that of the site at two thirds of the way from the
// smallest to the largest, a site's steering and its difference from the others may
// be: hospitals differ in how many examples they have, and of what. Beyond, the
// evidence grows.
var tolerance = map[Charge]float64{Against: 0, Steering: 3, Outsized: 3}

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

// bounded says whether a group's mean can be one of updates within the terms'
// bound, by weights of at most 1. What rounding adds in fixed point is allowed for.
func (c *Coordinator) bounded(s groupSum, sites int) error {
	step := 0.5 * float64(sites) / c.Terms.fixed(c.Terms.largest(len(c.Members))).Scale()
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
		rows[i].Members = survivors[i]
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

// scores is the evidence of all rounds against all sites. It is a function of the
// rounds alone, so that it is made again from what was kept.
//
// What a site adds is never seen, only sums of groups that are drawn anew each
// round. But a statistic that adds up over the sites of a group can be taken
// apart: with e the group's, T the sum over all groups and q the chance that two
// sites share a group,
//
//	z = (e − q·T) / (1 − q)
//
// has the mean of what the site itself adds, whatever the others add, because the
// groups were drawn without looking. What earlier rounds tell of the others'
// shares is taken off first, and changes only the spread of z, not its mean. The
// evidence is the product over rounds of exp(λ·x − λ²/2), where x is by how much z
// exceeds what is tolerated, over its spread, averaged over several λ: a test
// supermartingale if x spreads no more than a normal deviate of variance 1 (Howard
// et al. 2020). By Ville's inequality it exceeds 1/α with a chance of α at most,
// however long one looks.
type scores struct {
	terms Terms
	sites []string // in order
	at    map[string]int

	rounds   int
	taken    int       // of them, with sums to compare
	normal   []float64 // n×n, of the regression of the groups' statistics on their members
	sketchy  []float64 // n×k, its right-hand side for sketches
	scalar   [2][]float64
	spread   [3]float64   // mean squares of what z differs by, one for each statistic
	seen     []int        // rounds that each site was in a sum of
	counted  []int        // of them, those with sums to compare
	breached []float64    // logarithm of the evidence for Unbounded
	mean     [3][]float64 // sums of z of each statistic
	history  []share      // squared differences of all groups
	sizes    []float64    // what each site adds to them, as far as is known
	shape    float64      // of their spread
	log      [4][len(bets)][]float64
	named    []Charge
	since    []int
}

// share is a group's squared difference, in units of a typical site's.
type share struct {
	members []int
	value   float64
}

// The statistics that are taken apart.
const (
	ofFull = iota
	ofCommon
	ofSteering
	ofEnergy
)

// bets are the λ of the evidence.
var bets = [...]float64{0.25, 0.5, 1}

const (
	comparable = 3    // groups of a round, at least: two differ from their mean by the same
	settling   = 3    // rounds until what is usual is known
	steady     = 0.85 // steering that is tolerated at least, in lengths of a typical site's difference
	forgetting = 0.98 // of a round's weight in the regression, each round
	ridge      = 2    // of the regression, in groups
	largest    = 3    // |x| of one round, at most
	widening   = 1.15 // of the spread that was seen, for what was not
)

func newScores(t Terms, sites []string) *scores {
	n := len(sites)
	s := &scores{terms: t, sites: sites, at: map[string]int{}, normal: make([]float64, n*n), sketchy: make([]float64, n*t.Sketch), seen: make([]int, n), counted: make([]int, n), breached: make([]float64, n), sizes: make([]float64, n), shape: 2, named: make([]Charge, n), since: make([]int, n)}
	for i, name := range sites {
		s.at[name] = i
		s.sizes[i] = 1
		s.normal[i*n+i] = ridge
	}
	for k := range s.scalar {
		s.scalar[k] = make([]float64, n)
	}
	for k := range s.mean {
		s.mean[k] = make([]float64, n)
	}
	for k := range s.log {
		for b := range bets {
			s.log[k][b] = make([]float64, n)
		}
	}
	return s
}

// threshold is the evidence from which on a site is named.
func (s *scores) threshold() float64 {
	return math.Log(float64(len(s.sites)*len(Charges())) / s.terms.FalseNaming)
}

// add takes a round's rows in.
func (s *scores) add(rows []scoreRow) {
	s.rounds++
	group := make([]int, len(s.sites)) // of each site, or -1
	for i := range group {
		group[i] = -1
	}
	for g, r := range rows {
		for _, name := range r.Members {
			group[s.at[name]] = g
		}
	}
	s.breach(group, rows)
	s.take(slices.DeleteFunc(slices.Clone(rows), func(r scoreRow) bool { return r.Beyond }))
	s.name(group)
}

// breach weighs which sums were beyond the bound. Of a site that keeps to it, and
// of whose fellows fewer than a third do not, the sum is with a chance of p at most;
// of one that breaks it nine times of ten, say.
func (s *scores) breach(group []int, rows []scoreRow) {
	for i, g := range group {
		if g < 0 {
			continue
		}
		n, clean := len(s.sites), 1.0
		for j := range len(rows[g].Members) - 1 {
			clean *= float64(max(0, n-1-(n-1)/3-j)) / float64(max(1, n-1-j))
		}
		p := min(0.95, 1-clean)
		if rows[g].Beyond {
			s.breached[i] += math.Log(0.9 / p)
		} else {
			s.breached[i] += math.Log(0.1 / (1 - p))
		}
		// never so sure of a site that it could not be named later
		s.breached[i] = max(s.breached[i], -2)
		s.seen[i]++
	}
}

// take takes the statistics of a round's rows in.
func (s *scores) take(rows []scoreRow) {
	n, k := len(s.sites), s.terms.Sketch
	group := make([]int, n) // of each site, or -1
	for i := range group {
		group[i] = -1
	}
	sites, pairs, total, rest := 0, 0, 0.0, 0.0
	members := make([][]int, len(rows))
	for g, r := range rows {
		for _, name := range r.Members {
			i := s.at[name]
			group[i] = g
			members[g] = append(members[g], i)
		}
		m := len(r.Members)
		sites, pairs = sites+m, pairs+m*(m-1)
		total += r.Energy
		rest += r.Rest
	}
	if len(rows) < comparable || !(rest > 0) {
		return // nothing to compare
	}
	q := float64(pairs) / float64(sites*(sites-1))
	unit := math.Sqrt(total / (1 - q) / float64(sites)) // a site's difference from the others
	restUnit := math.Sqrt(rest / (1 - q) / float64(sites))
	solve := cholesky(s.normal, n)
	known := make([][]float64, n) // sketches of what each site adds, from earlier rounds
	{
		flat := slices.Clone(s.sketchy)
		solve(flat, k)
		middle, present := make([]float64, k), 0.0
		for i, g := range group {
			known[i] = flat[i*k : (i+1)*k]
			if g >= 0 {
				present++
				for j, v := range known[i] {
					middle[j] += v
				}
			}
		}
		for i := range known {
			for j := range known[i] {
				known[i][j] -= middle[j] / present
			}
		}
	}
	statistic := [2]func(g int) float64{
		func(g int) float64 { return rows[g].Full / unit },
		func(g int) float64 { return rows[g].Common / unit },
	}
	var z [3][]float64
	for x, of := range statistic {
		estimate := slices.Clone(s.scalar[x])
		solve(estimate, 1)
		sum, all := 0.0, 0.0
		for i, g := range group {
			if g >= 0 {
				sum += estimate[i]
			}
		}
		for g := range rows {
			all += of(g)
		}
		values := make([]float64, n)
		for i, g := range group {
			if g < 0 {
				continue
			}
			others := -estimate[i]
			for _, j := range members[g] {
				others += estimate[j]
			}
			control := others - q*(sum-estimate[i])
			values[i] = (of(g) - q*all - control) / (1 - q)
		}
		z[[2]int{ofFull, ofCommon}[x]] = values
	}
	z[ofSteering] = make([]float64, n)
	for i, g := range group {
		if g < 0 {
			continue
		}
		// how far the site goes now to where it has gone before
		far := 0.0
		for _, u := range known[i] {
			far += u * u
		}
		if far == 0 {
			continue
		}
		for l, u := range known[i] {
			d := float64(rows[g].Sketch[l])/restUnit + (1-q)*u
			for _, j := range members[g] {
				d -= known[j][l]
			}
			z[ofSteering][i] += d * u / (1 - q) / math.Sqrt(far)
		}
	}
	s.judge(group, members, z)
	s.outsized(members, rows, unit)
	s.taken++
	for i := range s.normal {
		s.normal[i] *= forgetting
	}
	for i := range n {
		s.normal[i*n+i] += (1 - forgetting) * ridge
	}
	for _, v := range [][]float64{s.sketchy, s.scalar[0], s.scalar[1]} {
		for i := range v {
			v[i] *= forgetting
		}
	}
	for g, r := range rows {
		for _, i := range members[g] {
			for _, j := range members[g] {
				s.normal[i*n+j]++
			}
			for l, v := range r.Sketch {
				s.sketchy[i*k+l] += float64(v) / restUnit
			}
			for x, of := range statistic {
				s.scalar[x][i] += of(g)
			}
		}
	}
}

// judge adds a round's z to the evidence. The spread of z is that of what the
// others of the group add: where they are known to add much, it says little.
func (s *scores) judge(group []int, members [][]int, z [3][]float64) {
	for x := ofFull; x <= ofSteering; x++ {
		bar, sign := 0.0, -1.0
		if x == ofSteering {
			bar, sign = s.bar(x), 1
		}
		factor, present := 0.0, 0.0
		for i, g := range group {
			if g < 0 {
				continue
			}
			variance := 0.0
			for _, j := range members[g] {
				variance += s.sizes[j]
			}
			d := z[x][i] - s.typicalOf(x, i)
			factor += min(d*d/variance, 16*max(s.spread[x], 1e-12))
			if s.taken == 0 {
				factor += d * d / variance
			}
			present++
			if s.spread[x] > 0 && s.taken >= settling {
				e := max(-largest, min(largest, (sign*z[x][i]-bar)/(widening*math.Sqrt(s.spread[x]*variance))))
				for b, bet := range bets {
					s.log[x][b][i] += bet*e - bet*bet/2
				}
			}
		}
		if s.taken == 0 {
			s.spread[x] = factor / present
		} else {
			s.spread[x] = 0.8*s.spread[x] + 0.2*factor/present
		}
	}
	for i, g := range group {
		if g < 0 {
			continue
		}
		s.counted[i]++
		for x := range z {
			s.mean[x][i] += z[x][i]
		}
	}
}

// outsized weighs squared differences. A group's is taken for a draw from a gamma
// distribution whose mean is the sum of its members', as for noise in many
// directions; the evidence is how many times likelier the round's are if a site's is
// twice or four times what is tolerated than if it is just that, with what earlier
// rounds tell of its fellows.
func (s *scores) outsized(members [][]int, rows []scoreRow, unit float64) {
	bar := tolerance[Outsized] * s.usual()
	misfit, groups := 0.0, 0.0
	for g, in := range members {
		value := rows[g].Energy / (unit * unit)
		all := 0.0
		for _, j := range in {
			all += s.sizes[j]
		}
		d := value/all - 1
		misfit += min(d*d, 4)
		groups++
		s.history = append(s.history, share{in, value})
		if s.taken < settling {
			continue
		}
		for _, i := range in {
			rest := all - s.sizes[i]
			for b, times := range [...]float64{1.5, 2, 4} {
				low, high := rest+bar, rest+times*bar
				e := s.shape * (math.Log(low/high) + value*(1/low-1/high))
				s.log[ofEnergy][b][i] += max(-largest, min(largest, e))
			}
		}
	}
	s.shape = 0.8*s.shape + 0.2*max(0.5, min(4, groups/max(misfit, 1e-9)))
	s.sizes = shares(s.history, s.sizes)
}

// usual is the size of the site at two thirds of the way from the smallest to the
// largest, which is an honest one's or below one, as fewer than a third are
// malicious.
func (s *scores) usual() float64 {
	var values []float64
	for i, v := range s.sizes {
		if s.named[i] == "" {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return 1
	}
	slices.Sort(values)
	return values[(2*len(values)-1)/3]
}

func medianOf(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// shares are the sites' parts of the groups' values: the most likely ones if these
// are gamma distributed around their sums, with a tenth of an observation more of
// each site alone, that it is the median one, by the multiplicative steps of Févotte and Idier (2011) from where
// they were.
func shares(history []share, from []float64) []float64 {
	v := slices.Clone(from)
	over, under := make([]float64, len(v)), make([]float64, len(v))
	const weight = 0.1
	prior := medianOf(from)
	for range 20 {
		for i, x := range v {
			over[i], under[i] = weight*prior/(x*x), weight/x
		}
		for _, h := range history {
			sum := 0.0
			for _, i := range h.members {
				sum += v[i]
			}
			for _, i := range h.members {
				over[i] += h.value / (sum * sum)
				under[i] += 1 / sum
			}
		}
		for i := range v {
			v[i] = max(1e-4, v[i]*math.Sqrt(over[i]/under[i]))
		}
	}
	return v
}

// name names one site a round at most, the one that most speaks against: when it is
// gone, the others may look different.
func (s *scores) name(group []int) {
	worst, most, charged := -1, s.threshold(), Charge("")
	for i, g := range group {
		if g < 0 || s.named[i] != "" {
			continue
		}
		for _, charge := range Charges() {
			if e := s.evidence(charge, i); e >= most {
				worst, most, charged = i, e, charge
			}
		}
	}
	if worst >= 0 {
		s.named[worst], s.since[worst] = charged, s.rounds
	}
}

// typicalOf is the mean of z of a site in earlier rounds.
func (s *scores) typicalOf(x, i int) float64 {
	if s.counted[i] == 0 {
		return 0
	}
	return s.mean[x][i] / float64(s.counted[i])
}

// bar is what is tolerated of a site's steering.
func (s *scores) bar(x int) float64 {
	var values []float64
	for i := range s.sites {
		if s.counted[i] > 0 && s.named[i] == "" {
			values = append(values, max(0, s.typicalOf(x, i)))
		}
	}
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return max(steady, tolerance[Steering]*values[(2*len(values)-1)/3])
}

// evidence is the logarithm of the evidence for a charge.
func (s *scores) evidence(charge Charge, i int) float64 {
	of := func(x int) float64 {
		sum := 0.0
		for b := range bets {
			sum += math.Exp(min(600, s.log[x][b][i])) / float64(len(bets))
		}
		return math.Log(sum)
	}
	switch charge {
	case Against: // of both directions, so that a site that sees one class often is not taken for one that works against all
		return min(of(ofFull), of(ofCommon))
	case Steering:
		return of(ofSteering)
	case Unbounded:
		return s.breached[i]
	}
	return of(ofEnergy)
}

// report lists all sites' scores, in the order of their names.
func (s *scores) report() []Score {
	var out []Score
	for i, name := range s.sites {
		score := Score{Site: name, Rounds: s.seen[i], Named: s.named[i], Since: s.since[i]}
		for _, charge := range Charges() {
			e := Evidence{Charge: charge, Log: s.evidence(charge, i), Threshold: s.threshold(), Bar: tolerance[charge]}
			switch charge {
			case Against:
				e.Value = -max(s.typicalOf(ofFull, i), s.typicalOf(ofCommon, i))
			case Steering:
				e.Value, e.Bar = s.typicalOf(ofSteering, i), s.bar(ofSteering)
			case Outsized:
				e.Value = over(s.sizes[i], s.usual())
			}
			score.Charges = append(score.Charges, e)
		}
		out = append(out, score)
	}
	slices.SortFunc(out, func(a, b Score) int { return cmp.Compare(a.Site, b.Site) })
	return out
}

func over(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// cholesky factors a symmetric positive matrix and returns a function that
// replaces right-hand sides, [n][columns], by solutions.
func cholesky(a []float64, n int) func(b []float64, columns int) {
	l := slices.Clone(a)
	for j := range n {
		for k := range j {
			for i := j; i < n; i++ {
				l[i*n+j] -= l[i*n+k] * l[j*n+k]
			}
		}
		d := math.Sqrt(max(l[j*n+j], 1e-12))
		for i := j; i < n; i++ {
			l[i*n+j] /= d
		}
		l[j*n+j] = d
	}
	return func(b []float64, columns int) {
		for i := range n {
			row := b[i*columns : (i+1)*columns]
			for k := range i {
				f := l[i*n+k]
				for c, v := range b[k*columns : (k+1)*columns] {
					row[c] -= f * v
				}
			}
			for c := range row {
				row[c] /= l[i*n+i]
			}
		}
		for i := n - 1; i >= 0; i-- {
			row := b[i*columns : (i+1)*columns]
			for k := i + 1; k < n; k++ {
				f := l[k*n+i]
				for c, v := range b[k*columns : (k+1)*columns] {
					row[c] -= f * v
				}
			}
			for c := range row {
				row[c] /= l[i*n+i]
			}
		}
	}
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
