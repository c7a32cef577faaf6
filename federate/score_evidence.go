package federate

import (
	"math"
	"slices"
)

// What is tolerated of a site: hospitals differ in how many examples they have, and
// of what.
const (
	// steady is how far a site may go on and on in one direction, in lengths of a
	// typical site's difference from the others, or twice as far as a usual site if
	// that is more.
	steady = 0.75
	// often is how many times as large as that of a usual site of its weight its
	// difference from the others may be, squared.
	often = 3
	// agreed is the evidence that a site goes where trusted examples lead from which
	// on it may go far: 1 in 150.
	agreed = 5
	// settling is how many rounds pass before anything is held against anybody.
	settling = 4
	// comparable is how many groups a round needs: two differ from their mean by the
	// same.
	comparable = 3
	forgetting = 0.98 // of a round, each round, in what a site is known to add
	ridge      = 2    // of that regression, in groups
)

// scores is the evidence of all rounds against all sites. It is a function of the
// rounds alone, so that it is made again from what was kept.
//
// What a site adds is never seen, only sums of groups that are drawn anew each
// round. But whatever adds up over the sites of a group makes an equation a group,
// five a round for fifteen sites in threes, with the same unknowns in every round:
// the means of what the sites add. So they are estimated by least squares, each
// group weighted by how much its members are known to vary, and a site is judged by
// its estimate's standard error (Student's t). What many groups' squared
// differences share out in the same way is fitted as gamma distributed, and judged
// by the ratio of likelihoods. The threshold counts all sites, all charges and every
// doubling of the rounds as chances to err (Bonferroni; looks in between share most
// of their rounds with these), so that FalseNaming holds for a whole run, if what
// sites add varies from round to round as independent draws would, and if honest
// sites stay within what is tolerated.
type scores struct {
	terms Terms
	sites []string // in order
	at    map[string]int

	rounds   int
	history  []equation
	normal   []float64 // n×n, of the regression of sketches
	sketchy  []float64 // n×k, its right-hand side
	seen     []int     // rounds that each site was in a sum of
	counted  []int     // of them, those with sums to compare
	beyond   []int     // rounds that a site's sum was beyond the bound
	breached []float64
	sizes    []float64    // squared differences of each site from the others, in typical ones
	onward   [][3]float64 // of each site going on: Σ 1/v, Σ z/v, Σ z²/v
	evidence [][]Evidence // of each site, a charge each
	named    []Charge
	since    []int
}

// equation is what the sum of some sites showed.
type equation struct {
	members              []int
	full, common, energy float64 // in units of a typical site's difference in that round
	weight               float64 // Σ of the members'
}

func newScores(t Terms, sites []string) *scores {
	n := len(sites)
	s := &scores{terms: t, sites: sites, at: map[string]int{}, normal: make([]float64, n*n), sketchy: make([]float64, n*t.Sketch),
		seen: make([]int, n), counted: make([]int, n), beyond: make([]int, n), breached: make([]float64, n), sizes: make([]float64, n),
		onward: make([][3]float64, n), evidence: make([][]Evidence, n), named: make([]Charge, n), since: make([]int, n)}
	for i, name := range sites {
		s.at[name] = i
		s.sizes[i] = 1
		s.normal[i*n+i] = ridge
	}
	s.judge()
	return s
}

// threshold is the evidence from which on a site is named.
func (s *scores) threshold() float64 {
	looks := 1 + math.Log2(float64(s.terms.Rounds))
	return math.Log(float64(len(s.sites)*len(Charges())) * looks / s.terms.FalseNaming)
}

// add takes a round's rows in.
func (s *scores) add(rows []scoreRow) {
	s.rounds++
	// what a site has added that has left since is no other site's
	rows = slices.DeleteFunc(slices.Clone(rows), func(r scoreRow) bool {
		return slices.ContainsFunc(r.Members, func(name string) bool { _, in := s.at[name]; return !in })
	})
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
	s.judge()
	s.name(group)
}

// breach weighs which sums were beyond the bound. Of a site that keeps to it, and
// of whose fellows fewer than a third do not, the sum is with a chance of p at most;
// of one that breaks it nine times of ten, say: a ratio of likelihoods.
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
			s.beyond[i]++
			s.breached[i] += math.Log(0.9 / p)
		} else {
			s.breached[i] += math.Log(0.1 / (1 - p))
		}
		// never so sure of a site that it could not be named later
		s.breached[i] = max(s.breached[i], 0)
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
	q := float64(pairs) / float64(sites*(sites-1)) // the chance that two sites share a group
	unit := math.Sqrt(total / (1 - q) / float64(sites))
	restUnit := math.Sqrt(rest / (1 - q) / float64(sites))
	s.onwards(group, members, rows, restUnit, q)
	for i := range s.normal {
		s.normal[i] *= forgetting
	}
	for i := range n {
		s.normal[i*n+i] += (1 - forgetting) * ridge
	}
	for i := range s.sketchy {
		s.sketchy[i] *= forgetting
	}
	for g, r := range rows {
		s.history = append(s.history, equation{members[g], r.Full / unit, r.Common / unit, r.Energy / (unit * unit), r.Weight})
		for _, i := range members[g] {
			s.counted[i]++
			for _, j := range members[g] {
				s.normal[i*n+j]++
			}
			for l, v := range r.Sketch {
				s.sketchy[i*k+l] += float64(v) / restUnit
			}
		}
	}
	s.sizes = shares(s.history, s.sizes, -1)
}

// onwards asks of each site how far it goes now to where the rounds before say that
// it goes. With e the group's sum and T that of all,
//
//	(e − q·T) / (1 − q)
//
// has the mean of what the site itself adds, whatever the others add, because the
// groups were drawn without looking; what is known of the others is taken off first,
// and changes only how much that varies, not its mean. T is 0 here.
func (s *scores) onwards(group []int, members [][]int, rows []scoreRow, unit, q float64) {
	n, k := len(s.sites), s.terms.Sketch
	known := slices.Clone(s.sketchy)
	cholesky(s.normal, n)(known, k)
	middle, present := make([]float64, k), 0.0
	for i, g := range group {
		if g >= 0 {
			present++
			for l, v := range known[i*k : (i+1)*k] {
				middle[l] += v
			}
		}
	}
	for i := range known {
		known[i] -= middle[i%k] / present
	}
	for i, g := range group {
		if g < 0 || s.counted[i] < settling-1 {
			continue
		}
		u := known[i*k : (i+1)*k]
		far, z := 0.0, 0.0
		for l, v := range u {
			far += v * v
			d := float64(rows[g].Sketch[l])/unit + (1-q)*v
			for _, j := range members[g] {
				d -= known[j*k+l]
			}
			z += d * v / (1 - q)
		}
		if far == 0 {
			continue
		}
		z /= math.Sqrt(far)
		variance := s.sum(members[g])
		for x, v := range [3]float64{1, z, z * z} {
			s.onward[i][x] += v / variance
		}
	}
}

// sum is the squared difference that is expected of some sites together.
func (s *scores) sum(members []int) float64 {
	sum := 0.0
	for _, i := range members {
		sum += s.sizes[i]
	}
	return sum
}

// judge makes the evidence of all that was taken in.
func (s *scores) judge() {
	against, along := s.against()
	weights := s.weights()
	heavy := slices.Clone(weights)
	slices.Sort(heavy)
	var apiece []float64 // squared differences for the weight that a site has, of the heavier half
	for i, v := range s.sizes {
		if weights[i] >= heavy[len(heavy)/2] && s.named[i] == "" {
			apiece = append(apiece, v/(weights[i]*weights[i]))
		}
	}
	usual := upper(apiece)
	ahead := make([]float64, len(s.sites))
	for i, o := range s.onward {
		if o[0] > 0 {
			ahead[i] = max(0, o[1]/o[0])
		}
	}
	most := upper(slices.Clone(weights))
	bar := max(steady, 2*s.usual(ahead))
	shape := s.shape()
	for i := range s.sites {
		list := make([]Evidence, 0, len(Charges()))
		for _, charge := range Charges() {
			e := Evidence{Charge: charge, Threshold: s.threshold()}
			// large and lopsided hospitals go far, but where trusted examples lead, too
			lopsided := along[i] >= agreed
			switch charge {
			case Against:
				e.Value, e.Log = against[i].Value, against[i].Log
			case Steering:
				// who counts for more than most goes farther than most
				e.Value, e.Bar = ahead[i], bar*max(1, weights[i]/most)
				if o, n := s.onward[i], float64(s.counted[i]-settling+1); n >= 3 && !lopsided {
					mean := o[1] / o[0]
					e.Log = surprise((mean-e.Bar)/math.Sqrt(max(1e-12, o[2]/o[0]-mean*mean)/(n-1)), n-1)
				}
			case Outsized:
				of := usual * max(weights[i], heavy[len(heavy)/2]) * max(weights[i], heavy[len(heavy)/2])
				e.Value, e.Bar = s.sizes[i]/of, often
				if s.counted[i] >= 2*settling && e.Value > often && !lopsided {
					e.Log = shape * s.needed(i, often*of)
				}
			case Unbounded:
				e.Value, e.Log = float64(s.beyond[i])/float64(max(1, s.seen[i])), s.breached[i]
			}
			list = append(list, e)
		}
		s.evidence[i] = list
	}
}

// usual is the upper value of those that were not named.
func (s *scores) usual(of []float64) float64 {
	var values []float64
	for i, v := range of {
		if s.named[i] == "" {
			values = append(values, v)
		}
	}
	return upper(values)
}

// upper is the value two thirds of the way from the smallest to the largest: an
// honest site's or below one, as fewer than a third are malicious.
func upper(values []float64) float64 {
	if len(values) == 0 {
		return 1
	}
	slices.Sort(values)
	return values[(2*len(values)-1)/3]
}

// weights are the sites', which a few rounds' groups tell exactly; 1 before.
func (s *scores) weights() []float64 {
	n := len(s.sites)
	out, normal := make([]float64, n), make([]float64, n*n)
	for i := range n {
		normal[i*n+i] = 1e-6
		out[i] = 1e-6
	}
	for _, e := range s.history {
		for _, i := range e.members {
			out[i] += e.weight
			for _, j := range e.members {
				normal[i*n+j]++
			}
		}
	}
	cholesky(normal, n)(out, 1)
	for i, w := range out {
		out[i] = max(1e-3, min(1, w))
	}
	return out
}

// against estimates how far each site points away from what the trusted examples
// teach, on the whole and of all classes alike, and counts the lesser of both: a
// site that sees one class often points away from one of them. along is the evidence
// that a site goes along one of the two.
func (s *scores) against() (out []Evidence, along []float64) {
	n := len(s.sites)
	out, along = make([]Evidence, n), make([]float64, n)
	free := len(s.history) - n
	if free < n/2 {
		return out, along
	}
	normal := make([]float64, n*n)
	right := [2][]float64{make([]float64, n), make([]float64, n)}
	for i := range n {
		normal[i*n+i] = 0.1 // what a site adds is of the size of a typical difference: a weak prior
	}
	for _, e := range s.history {
		w := 1 / s.sum(e.members)
		for _, i := range e.members {
			right[0][i] += w * e.full
			right[1][i] += w * e.common
			for _, j := range e.members {
				normal[i*n+j] += w
			}
		}
	}
	solve := cholesky(normal, n)
	inverse := make([]float64, n*n)
	for i := range n {
		inverse[i*n+i] = 1
	}
	solve(inverse, n)
	for x, estimate := range right {
		solve(estimate, 1)
		misfit := 0.0
		for _, e := range s.history {
			d := [2]float64{e.full, e.common}[x]
			for _, i := range e.members {
				d -= estimate[i]
			}
			misfit += d * d / s.sum(e.members)
		}
		misfit /= float64(free)
		for i, v := range estimate {
			log := 0.0
			if misfit > 0 && s.counted[i] >= settling {
				log = surprise(-v/math.Sqrt(misfit*inverse[i*n+i]), float64(free))
			}
			if misfit > 0 {
				along[i] = max(along[i], surprise(v/math.Sqrt(misfit*inverse[i*n+i]), float64(free)))
			}
			if x == 0 || log < out[i].Log {
				out[i].Log = log
			}
			if x == 0 || -v < out[i].Value {
				out[i].Value = -v
			}
		}
	}
	return out, along
}

// needed is by how much the groups' squared differences fit worse, in logarithms of
// likelihood for a gamma distribution of shape 1, if a site's is not above a bar.
func (s *scores) needed(i int, bar float64) float64 {
	free, held := slices.Clone(s.sizes), slices.Clone(s.sizes)
	held[i] = bar
	held = shares(s.history, held, i)
	return max(0, misfit(s.history, held)-misfit(s.history, free))
}

// misfit is −ln of the likelihood, but for a constant.
func misfit(history []equation, sizes []float64) float64 {
	out := 0.0
	for _, e := range history {
		sum := 0.0
		for _, i := range e.members {
			sum += sizes[i]
		}
		out += e.energy/sum + math.Log(sum)
	}
	return out
}

// shape is of the gamma distribution of the groups' squared differences.
func (s *scores) shape() float64 {
	sum := 0.0
	for _, e := range s.history {
		d := e.energy/s.sum(e.members) - 1
		sum += d * d
	}
	free := float64(len(s.history) - len(s.sites))
	if !(free > 0) || sum == 0 {
		return 1
	}
	return max(0.5, min(10, free/sum))
}

// shares are the sites' parts of the groups' squared differences: the most likely
// ones if these are gamma distributed around their sums, with a tenth of an
// observation more of each site alone, that it is the median one, by the
// multiplicative steps of Févotte and Idier (2011) from where they were. The part
// of one site may be held, -1 for none.
func shares(history []equation, from []float64, held int) []float64 {
	v := slices.Clone(from)
	slices.Sort(v)
	prior := v[len(v)/2]
	v = slices.Clone(from)
	over, under := make([]float64, len(v)), make([]float64, len(v))
	const weight = 0.1
	for range 25 {
		for i, x := range v {
			over[i], under[i] = weight*prior/(x*x), weight/x
		}
		for _, e := range history {
			sum := 0.0
			for _, i := range e.members {
				sum += v[i]
			}
			for _, i := range e.members {
				over[i] += e.energy / (sum * sum)
				under[i] += 1 / sum
			}
		}
		for i := range v {
			if i != held {
				v[i] = max(1e-4, v[i]*math.Sqrt(over[i]/under[i]))
			}
		}
	}
	return v
}

// surprise is −ln of the chance of Student's t with so many degrees of freedom to
// be as large: Wallace's (1959) approximation by a normal deviate.
func surprise(t, free float64) float64 {
	if !(t > 0) {
		return 0
	}
	z := (8*free + 1) / (8*free + 3) * math.Sqrt(free*math.Log1p(t*t/free))
	if z > 30 {
		return z*z/2 + math.Log(z*math.Sqrt(2*math.Pi))
	}
	return -math.Log(math.Erfc(z/math.Sqrt2) / 2)
}

// name names one site a round at most, the one that most speaks against: when it is
// gone, the others may look different.
func (s *scores) name(group []int) {
	worst, most, charged := -1, s.threshold(), Charge("")
	for i, g := range group {
		if g < 0 || s.named[i] != "" {
			continue
		}
		for _, e := range s.evidence[i] {
			if e.Log >= most {
				worst, most, charged = i, e.Log, e.Charge
			}
		}
	}
	if worst >= 0 {
		s.named[worst], s.since[worst] = charged, s.rounds
	}
}

// report lists all sites' scores, in the order of the members.
func (s *scores) report() []Score {
	var out []Score
	for i, name := range s.sites {
		out = append(out, Score{Site: name, Rounds: s.seen[i], Charges: slices.Clone(s.evidence[i]), Named: s.named[i], Since: s.since[i]})
	}
	return out
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
