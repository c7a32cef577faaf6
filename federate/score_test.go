package federate

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/federate/robust"
)

// crowd is sites whose updates are drawn, without the protocol: what each adds in a
// round is a mean of its own and noise.
type crowd struct {
	coordinator *Coordinator
	scores      *scores
	means       [][]float64
	noise       []float64
	rng         *rand.Rand
	taught      *teachings
	names       []string
}

const crowdSize = 40 // numbers of an update

func newCrowd(sites int, seed uint64) *crowd {
	terms := DefaultTerms("crowd")
	terms.GroupSize, terms.Naming, terms.Sketch, terms.FalseNaming = 3, NamingExclude, 256, 0.1
	c := &crowd{rng: rand.New(rand.NewPCG(seed, 1))}
	for i := range sites {
		c.names = append(c.names, fmt.Sprintf("site-%02d", i))
		c.means = append(c.means, make([]float64, crowdSize))
		c.noise = append(c.noise, 1)
	}
	c.coordinator = &Coordinator{CoordinatorOptions: CoordinatorOptions{Terms: terms, Variables: make([]float32, crowdSize)}}
	c.scores = newScores(terms, c.names)
	return c
}

// teach makes the first direction the trusted one.
func (c *crowd) teach() {
	along := make([]float32, crowdSize)
	along[0] = 1
	c.taught = &teachings{full: along, common: along, basis: [][]float32{slices.Clone(along)}}
}

// heterogeneous makes honest sites that differ in size, in noise and in what they
// pull to, as hospitals do.
func (c *crowd) heterogeneous() {
	for i := range c.means {
		size := math.Exp(0.3 * c.rng.NormFloat64())
		c.noise[i] = size
		c.means[i][0] = 0.3 * size
		for j := 1; j < 5; j++ { // a few directions that classes differ by
			c.means[i][j] = size * c.rng.NormFloat64() * 0.6
		}
	}
}

func (c *crowd) round() {
	var present []int
	for i := range c.names {
		if c.scores.named[i] == "" {
			present = append(present, i)
		}
	}
	c.rng.Shuffle(len(present), func(i, j int) { present[i], present[j] = present[j], present[i] })
	m := len(present) / 3
	sums, members := make([]groupSum, m), make([][]string, m)
	for at, i := range present {
		g := at % m
		if sums[g].mean == nil {
			sums[g] = groupSum{mean: make([]float32, crowdSize)}
		}
		sums[g].weight++
		for j := range crowdSize {
			sums[g].mean[j] += float32(c.means[i][j] + c.noise[i]*c.rng.NormFloat64()*0.5)
		}
		members[g] = append(members[g], c.names[i])
	}
	for _, s := range sums {
		scaleBy(s.mean, 1/s.weight)
	}
	c.scores.add(c.coordinator.observe(c.taught, sums, members))
}

func TestWeightsAreKnownAfterAFewRounds(t *testing.T) {
	c := newCrowd(15, 1)
	rng := rand.New(rand.NewPCG(2, 2))
	want := make([]float64, 15)
	for i := range want {
		want[i] = float64(1+rng.IntN(100)) / 100
	}
	for range 6 {
		order := rng.Perm(15)
		rows := make([]scoreRow, 5)
		for at, i := range order {
			r := &rows[at%5]
			r.Members, r.Weight = append(r.Members, c.names[i]), r.Weight+want[i]
			r.Energy, r.Rest, r.Sketch = 1, 1, make([]float32, 256)
		}
		c.scores.add(rows)
	}
	for i, w := range c.scores.weights() {
		if math.Abs(w-want[i]) > 1e-4 {
			t.Errorf("site %d weighs %v, want %v: this is what groups reveal", i, w, want[i])
		}
	}
}

func TestWhatASiteAddsIsTakenFromGroupSums(t *testing.T) {
	c := newCrowd(14, 3)                // groups of 3 and 4
	c.scores.terms.FalseNaming = 1e-300 // nobody is named
	c.teach()
	c.heterogeneous()
	c.means[4][0], c.means[5][7] = -2, 3
	for i := range c.noise {
		c.noise[i] = 0
	}
	const rounds = 250
	for range rounds {
		c.round()
	}
	// what each site differs by, in units of a typical site
	middle := make([]float64, crowdSize)
	for _, m := range c.means {
		for j, v := range m {
			middle[j] += v / float64(len(c.means))
		}
	}
	total, energies := 0.0, make([]float64, len(c.means))
	for i, m := range c.means {
		for j, v := range m {
			energies[i] += (v - middle[j]) * (v - middle[j])
		}
		total += energies[i] / float64(len(c.means))
	}
	estimates, _ := c.scores.against()
	for i, e := range estimates {
		// the unit is of the round's groups, so that it varies around the typical one
		if got, want := e.Value, -c.means[i][0]/math.Sqrt(total); math.Abs(got-want) > 0.15*math.Abs(want)+0.1 {
			t.Errorf("site %d goes %.3f against the trusted direction, want %.3f", i, got, want)
		}
		if got, want := c.scores.sizes[i], energies[i]/total; math.Abs(got-want) > 0.4*want+0.4 {
			t.Errorf("site %d differs by %.3f, want %.3f", i, got, want)
		}
	}
}

func TestChancesOfStudentsTAreThoseOfTables(t *testing.T) {
	for _, c := range []struct{ t, free, want float64 }{ // scipy.stats.t.sf
		{1, 5, 0.18160873382456127}, {2.5, 10, 0.015723422817832}, {4, 60, 8.816e-05}, {6, 20, 3.622e-06},
	} {
		if got := math.Exp(-surprise(c.t, c.free)); math.Abs(got-c.want) > 0.05*c.want {
			t.Errorf("t %g with %g degrees of freedom: %g, want %g", c.t, c.free, got, c.want)
		}
	}
	if surprise(-1, 5) != 0 || !(surprise(100, 1e6) > 4000) {
		t.Error("beyond the table")
	}
}

func TestHonestSitesThatDifferAreSeldomNamed(t *testing.T) {
	runs := 30
	if testing.Short() {
		runs = 10
	}
	named := 0
	for seed := range uint64(runs) {
		c := newCrowd(15, 100+seed)
		c.teach()
		c.heterogeneous()
		for range 40 {
			c.round()
		}
		for _, charge := range c.scores.named {
			if charge != "" {
				named++
			}
		}
	}
	if named > runs/10 {
		t.Errorf("%d honest sites were named in %d runs of 40 rounds", named, runs)
	}
}

func TestSitesThatWorkAgainstTheOthersAreNamedForWhatTheyDo(t *testing.T) {
	for _, c := range []struct {
		what   string
		charge Charge
		change func(mean []float64, noise *float64)
	}{
		{"against what the trusted examples teach", Against, func(mean []float64, noise *float64) { clear(mean); mean[0], *noise = -2, 0.5 }},
		{"always in one direction", Steering, func(mean []float64, noise *float64) { clear(mean); mean[20], *noise = 12, 0.5 }},
		{"noise far beyond the others'", Outsized, func(mean []float64, noise *float64) { clear(mean); *noise = 8 }},
	} {
		right, wrong, late := 0, 0, 0
		const runs = 10
		for seed := range uint64(runs) {
			crowd := newCrowd(15, 500+seed)
			crowd.teach()
			crowd.heterogeneous()
			for _, i := range []int{2, 7, 11} {
				c.change(crowd.means[i], &crowd.noise[i])
			}
			for range 20 {
				crowd.round()
			}
			for i, charge := range crowd.scores.named {
				bad := i == 2 || i == 7 || i == 11
				switch {
				case bad && charge != "":
					right++
				case bad:
					late++
				case charge != "":
					wrong++
				}
			}
		}
		t.Logf("%s: %d of %d named within 20 rounds, %d honest ones", c.what, right, 3*runs, wrong)
		if late > 3 || wrong > 1 {
			t.Errorf("%s: %d of %d were not named within 20 rounds, and %d honest sites were", c.what, late, 3*runs, wrong)
		}
	}
}

func TestSketchesKeepProducts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	a, b := make([]float32, 5000), make([]float32, 5000)
	for i := range a {
		a[i] = float32(rng.NormFloat64())
		b[i] = a[i]/2 + float32(rng.NormFloat64())
	}
	sum, squares := 0.0, 0.0
	const k, draws = 256, 200
	want := dot(a, b)
	for seed := range uint64(draws) {
		got := dot(sketch(a, k, seed), sketch(b, k, seed)) - want
		sum += got / draws
		squares += got * got / draws
	}
	scale := length(a) * length(b)
	if spread := math.Sqrt(squares) / scale; math.Abs(sum) > 4*scale/math.Sqrt(k*draws/2) || spread > 1.3*math.Sqrt(2.0/k) {
		t.Errorf("products of sketches are off by %.3f on average and spread by %.4f of the lengths", sum/scale, spread)
	}
}

// naming are terms of a school that names sites.
func naming(terms *Terms) {
	terms.GroupSize, terms.Rule, terms.Bad, terms.MaxExamples = 3, robust.Median, 1, 1
	terms.Naming, terms.Sketch, terms.FalseNaming, terms.Rounds = NamingExclude, 32, 0.1, 40
}

// play makes a site change what it sends.
func (s *school) play(t *testing.T, i int, tamper func(d *Draft)) {
	t.Helper()
	site, err := NewSite(SiteOptions{Name: s.members[i].Name, Terms: s.terms, Members: s.members, Signer: s.signers[i], Trainer: s.pupils[i], Keeper: s.keepers[i],
		Tamper: func(_ context.Context, d *Draft) error { tamper(d); return nil }})
	if err != nil {
		t.Fatal(err)
	}
	s.sites[i] = site
}

func TestASiteThatBreaksItsBoundMovesNothingAndIsNamedAndExcluded(t *testing.T) {
	for what, tamper := range map[string]func(d *Draft){
		"an update beyond the bound": func(d *Draft) {
			for j := range d.Update {
				d.Update[j] = 0.9 * 4
			}
		},
		"a weight beyond what it may be": func(d *Draft) { d.Weight = 2.5; clear(d.Update) },
	} {
		s := newSchool(t, 12, 24, func(terms *Terms) { naming(terms); terms.Bound = 4 })
		for _, p := range s.pupils {
			scaleBy(p.target, 0.3)
		}
		s.play(t, 5, tamper)
		c := s.coordinator(t, nil)
		after := 0
		for after < 25 {
			out, err := c.Round(t.Context(), s.links())
			if err != nil {
				t.Fatal(err)
			}
			after++
			for _, g := range out.Groups {
				if in := slices.Contains(g.Members, "site-05"); in != (g.Beyond != nil) || in && g.Survivors != nil {
					t.Fatalf("%s: the group %v is taken for %+v", what, g.Members, g)
				}
			}
			if len(out.Named) > 0 {
				if !slices.Equal(out.Named, []string{"site-05"}) {
					t.Fatalf("%s: named are %v", what, out.Named)
				}
				break
			}
		}
		if after > 20 {
			t.Errorf("%s: named after %d rounds", what, after)
		}
		for _, score := range c.Scores() {
			if (score.Named == Unbounded) != (score.Site == "site-05") {
				t.Errorf("%s: %s is named for %q", what, score.Site, score.Named)
			}
		}
		out, err := c.Round(t.Context(), s.links())
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range out.Groups {
			if slices.Contains(g.Members, "site-05") || g.Beyond != nil {
				t.Errorf("%s: the site was asked again", what)
			}
		}
	}
}

func TestScoresGoOnWhereTheyWereAfterARestart(t *testing.T) {
	run := func(restart bool) ([]Score, []float32) {
		s := newSchool(t, 9, 12, func(terms *Terms) { naming(terms); terms.Rounds = 8 })
		keeper := memoryKeeper{}
		c := s.coordinator(t, keeper)
		for !c.Done() {
			if _, err := c.Round(t.Context(), s.links()); err != nil {
				t.Fatal(err)
			}
			if restart {
				c = s.coordinator(t, keeper)
			}
		}
		return c.Scores(), c.Weights().Variables
	}
	whole, weights := run(false)
	again, same := run(true)
	if !reflect.DeepEqual(whole, again) || !slices.Equal(weights, same) {
		t.Errorf("undisturbed %+v, restarted %+v", whole, again)
	}
	if len(whole) != 9 || whole[0].Rounds != 8 || len(whole[0].Charges) != len(Charges()) {
		t.Errorf("%+v", whole)
	}
}

func TestExclusionEndsWhileThereAreGroupsToCompare(t *testing.T) {
	s := newSchool(t, 9, 6, naming)
	c := s.coordinator(t, nil)
	c.tally()
	c.scores.named[3] = Outsized
	if got := c.admit(s.links()); len(got) != 9 {
		t.Errorf("%d sites are left, which make two groups", len(got))
	}
	s = newSchool(t, 10, 6, naming)
	c = s.coordinator(t, nil)
	c.tally()
	c.scores.named[3] = Outsized
	links := c.admit(s.links())
	if len(links) != 9 || slices.ContainsFunc(links, func(l Link) bool { return l.Name() == "site-03" }) {
		t.Errorf("%d sites are asked", len(links))
	}
	c.Terms.Naming = NamingReport
	if len(c.admit(s.links())) != 10 {
		t.Error("who is only to be reported was excluded")
	}
}

func TestTermsThatCannotNameAreRefused(t *testing.T) {
	for what, change := range map[string]func(*Terms){
		"one group":              func(t *Terms) { t.GroupSize, t.Rule, t.Bad = 0, robust.Mean, 0 },
		"two groups":             func(t *Terms) { t.GroupSize, t.Bad = 7, 0 },
		"an unknown consequence": func(t *Terms) { t.Naming = "punish" },
		"a sketch of one number": func(t *Terms) { t.Sketch = 1 },
		"no chance of error":     func(t *Terms) { t.FalseNaming = 0 },
		"certain error":          func(t *Terms) { t.FalseNaming = 1 },
		"a chance of NaN":        func(t *Terms) { t.FalseNaming = math.NaN() },
		"a sketch for nothing":   func(t *Terms) { t.Naming = NamingOff },
	} {
		terms := DefaultTerms("north")
		naming(&terms)
		if err := terms.Check(15); err != nil {
			t.Fatal(err)
		}
		change(&terms)
		if err := terms.Check(15); !errors.Is(err, ErrTerms) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestScoresAreWrittenForPeopleAndPrograms(t *testing.T) {
	c := newCrowd(9, 1)
	c.teach()
	for range 5 {
		c.round()
	}
	scores := c.scores.report()
	scores[2].Named, scores[2].Since = Steering, 4
	var b bytes.Buffer
	if err := WriteScores(&b, []Outcome{{Index: 4, Number: 6, Scores: scores}}); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(lines) != 1+9*len(Charges()) {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	line := lines[1+2*len(Charges())]
	if line[0] != "5" || line[1] != "6" || line[2] != "site-02" || line[3] != string(Charges()[0]) || line[8] != "steering" || line[9] != "4" {
		t.Errorf("%v", line)
	}
	b.Reset()
	if err := WriteScoreTable(&b, scores); err != nil {
		t.Fatal(err)
	}
	if text := b.String(); !strings.Contains(text, "steering, after round 4") || strings.Count(text, "\n") != 11 {
		t.Errorf("%s", text)
	}
}

func FuzzObserved(f *testing.F) {
	s := newSchool(f, 9, 4, func(t *Terms) { naming(t); t.Rounds = 3 })
	keeper := memoryKeeper{}
	c := s.coordinator(f, keeper)
	for range 2 {
		if _, err := c.Round(f.Context(), s.links()); err != nil {
			f.Fatal(err)
		}
	}
	whole, _ := keeper.Get(coordinatorMemory)
	f.Add(whole)
	end := bytes.IndexByte(whole, '\n')
	f.Add(append(bytes.Replace(whole[:end], []byte("site-01"), []byte("site-02"), 1), whole[end:]...))
	f.Add(append(bytes.Replace(whole[:end], []byte(`"weight":`), []byte(`"weight":-`), 1), whole[end:]...))
	f.Fuzz(func(t *testing.T, data []byte) {
		k := memoryKeeper{coordinatorMemory: data}
		c, err := NewCoordinator(CoordinatorOptions{Terms: s.terms, Members: s.members, Variables: make([]float32, 4), Trained: 4, Keeper: k})
		if err != nil {
			return
		}
		for _, score := range c.Scores() {
			for _, e := range score.Charges {
				if math.IsNaN(e.Log) || e.Log < 0 {
					t.Errorf("%s: %+v", score.Site, e)
				}
			}
		}
	})
}

func TestTrustedTrainersThatDoNotFitAreRefused(t *testing.T) {
	s := newSchool(t, 9, 4, naming)
	trusted := []Trainer{&pupil{target: make([]float32, 5), examples: 1, steps: 1}}
	if _, err := NewCoordinator(CoordinatorOptions{Terms: s.terms, Members: s.members, Variables: make([]float32, 4), Trained: 4, Trusted: trusted}); err == nil {
		t.Error("a trainer of another model was taken")
	}
	terms := s.terms
	terms.Personal = Parts()[:1]
	trusted[0] = &pupil{target: make([]float32, 4), examples: 1, steps: 1}
	if _, err := NewCoordinator(CoordinatorOptions{Terms: terms, Members: s.members, Variables: make([]float32, 4), Trained: 4, Trusted: trusted}); err == nil {
		t.Error("a coordinator that lacks the sites' own variables trains")
	}
}
