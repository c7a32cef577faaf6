package federate

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vigie/vigie/federate/robust"
	"github.com/vigie/vigie/federate/secagg"
)

// pupil is a trainer whose local optimum is known: K steps of gradient descent
// on ½‖x − target‖², so that what a round must come to can be computed.
type pupil struct {
	target   []float32
	examples int
	steps    int
	ran      int
}

func (p *pupil) Size() (int, int) { return len(p.target), len(p.target) }
func (p *pupil) Examples() int    { return p.examples }

func (p *pupil) Train(_ context.Context, w Work) (int, float64, error) {
	p.ran++
	loss := 0.0
	start := slices.Clone(w.Variables)
	for range p.steps {
		for j := range w.Variables {
			d := w.Variables[j] - p.target[j]
			loss += float64(d*d) / 2
			g := d + float32(w.Terms.Proximal)*(w.Variables[j]-start[j])
			if w.Correction != nil {
				g += w.Correction[j]
			}
			w.Variables[j] -= float32(w.Rate) * g
		}
	}
	return p.steps, loss / float64(p.steps), nil
}

// school is a federation of pupils.
type school struct {
	terms   Terms
	members []secagg.Member
	signers []ed25519.PrivateKey
	pupils  []*pupil
	sites   []*Site
	keepers []Keeper
	answers []Answerer // of the sites; may be none
}

func newSchool(t testing.TB, n, size int, change func(*Terms)) *school {
	t.Helper()
	s := &school{terms: DefaultTerms("north")}
	s.terms.Rounds, s.terms.Rate, s.terms.FinalRate, s.terms.Momentum = 8, 0.1, 0.1, 0
	s.terms.Deadline = time.Minute
	if change != nil {
		change(&s.terms)
	}
	rng := rand.New(rand.NewPCG(4, 0))
	for i := range n {
		key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{byte(i + 1)}, 32))
		s.signers = append(s.signers, key)
		s.members = append(s.members, secagg.Member{Name: fmt.Sprintf("site-%02d", i), Key: key.Public().(ed25519.PublicKey)})
		p := &pupil{examples: 10 + 40*i, steps: 1 + i%3}
		for range size {
			p.target = append(p.target, float32(rng.NormFloat64()))
		}
		s.pupils = append(s.pupils, p)
	}
	for i := range n {
		s.keepers = append(s.keepers, memoryKeeper{})
		s.sites = append(s.sites, s.open(t, i))
	}
	return s
}

type memoryKeeper map[string][]byte

func (k memoryKeeper) Put(name string, data []byte) error { k[name] = slices.Clone(data); return nil }
func (k memoryKeeper) Get(name string) ([]byte, error)    { return k[name], nil }

func (s *school) open(t testing.TB, i int) *Site {
	t.Helper()
	o := SiteOptions{Name: s.members[i].Name, Terms: s.terms, Members: s.members, Signer: s.signers[i], Trainer: s.pupils[i], Keeper: s.keepers[i]}
	if s.terms.Personal != nil {
		o.Trainer = &householder{s.pupils[i], s.home(i)}
	}
	if s.answers != nil {
		o.Answers = s.answers[i]
	}
	site, err := NewSite(o)
	if err != nil {
		t.Fatal(err)
	}
	return site
}

// home is where site i's own variables go, if the terms leave it any.
func (s *school) home(i int) []float32 { return []float32{float32(i) + 1, -float32(i) - 2} }

func (s *school) coordinator(t testing.TB, keeper Keeper) *Coordinator {
	t.Helper()
	n, _ := s.pupils[0].Size()
	c, err := NewCoordinator(CoordinatorOptions{Terms: s.terms, Members: s.members, Variables: make([]float32, n), Trained: n, Keeper: keeper})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *school) links() []Link {
	var links []Link
	for i := range s.sites {
		links = append(links, Direct(s.sites[i]))
	}
	return links
}

// plainRound is a round of FedAvg, FedProx, FedAdam, FedYogi or SCAFFOLD in
// float64, from the papers, without secrecy.
type plainRound struct {
	x, m, v, c []float64
	ci         [][]float64
}

func (p *plainRound) step(s *school, t Terms) {
	n := len(p.x)
	update, change, total := make([]float64, n), make([]float64, n), 0.0
	for i, pupil := range s.pupils {
		y := slices.Clone(p.x)
		for range pupil.steps {
			for j := range y {
				g := y[j] - float64(pupil.target[j]) + t.Proximal*(y[j]-p.x[j])
				if t.Algorithm == SCAFFOLD {
					g += p.c[j] - p.ci[i][j]
				}
				y[j] -= t.Rate * g
			}
		}
		w := float64(min(pupil.examples, t.MaxExamples))
		total += w
		for j := range y {
			update[j] += w * (y[j] - p.x[j])
			if t.Algorithm == SCAFFOLD {
				d := -p.c[j] + (p.x[j]-y[j])/(float64(pupil.steps)*t.Rate)
				change[j] += w * d
				p.ci[i][j] += d
			}
		}
	}
	for j := range p.x {
		d := update[j] / total
		switch t.Algorithm {
		case FedAdam, FedYogi:
			p.m[j] = t.Beta1*p.m[j] + (1-t.Beta1)*d
			if t.Algorithm == FedAdam {
				p.v[j] = t.Beta2*p.v[j] + (1-t.Beta2)*d*d
			} else {
				sign := 0.0
				if p.v[j] > d*d {
					sign = 1
				} else if p.v[j] < d*d {
					sign = -1
				}
				p.v[j] -= (1 - t.Beta2) * d * d * sign
			}
			p.x[j] += t.ServerRate * p.m[j] / (math.Sqrt(p.v[j]) + t.Tau)
		default:
			p.x[j] += t.ServerRate * d
		}
		p.c[j] += change[j] / total
	}
}

func TestEveryAlgorithmIsItsPaperThroughTheSecureSum(t *testing.T) {
	for _, row := range Algorithms() {
		if row.Name == FedSGD { // never without noise: see private_test.go
			continue
		}
		t.Run(string(row.Name), func(t *testing.T) {
			s := newSchool(t, 4, 6, func(terms *Terms) {
				terms.Algorithm, terms.MaxExamples, terms.ServerRate = row.Name, 100, 0.5
				if row.Name == FedProx {
					terms.Proximal = 0.3
				}
			})
			c := s.coordinator(t, nil)
			want := &plainRound{x: make([]float64, 6), m: make([]float64, 6), v: make([]float64, 6), c: make([]float64, 6)}
			for range s.sites {
				want.ci = append(want.ci, make([]float64, 6))
			}
			for round := range 5 {
				out, err := c.Round(t.Context(), s.links())
				if err != nil {
					t.Fatal(err)
				}
				want.step(s, s.terms)
				if out.Sites != 4 || len(out.Lost) != 0 || !(out.Loss > 0) {
					t.Errorf("round %d: %+v", round, out)
				}
				for j, x := range c.Weights().Variables {
					if math.Abs(float64(x)-want.x[j]) > 2e-5 {
						t.Fatalf("after round %d variable %d is %v, want %v", round, j, x, want.x[j])
					}
				}
			}
		})
	}
}

func TestARoundGoesOnWithoutSitesThatFail(t *testing.T) {
	for _, at := range []Step{StepKeys, StepShares, StepAccept, StepTrain, StepConfirm, StepReveal} {
		s := newSchool(t, 7, 3, nil)
		c := s.coordinator(t, memoryKeeper{})
		links := s.links()
		links[2] = failing{links[2], at}
		out, err := c.Round(t.Context(), links)
		if err != nil {
			t.Fatalf("lost at %s: %v", at, err)
		}
		inSum := at == StepConfirm || at == StepReveal
		if lost := len(out.Lost) == 1 && out.Lost[0] == "site-02"; lost == inSum {
			t.Errorf("lost at %s: the sum is without %v", at, out.Lost)
		}
		var sum, total float64
		for i, p := range s.pupils {
			if i == 2 && !inSum {
				continue
			}
			w := float64(p.examples)
			sum += w * float64(p.target[0]) * (1 - math.Pow(1-s.terms.Rate, float64(p.steps)))
			total += w
		}
		if got := float64(c.Weights().Variables[0]); math.Abs(got-sum/total) > 1e-5 {
			t.Errorf("lost at %s: the variable is %v, want %v", at, got, sum/total)
		}
	}
}

type failing struct {
	Link
	at Step
}

func (f failing) Ask(ctx context.Context, o Order) (Answer, error) {
	if o.Step == f.at {
		return Answer{}, errors.New("gone")
	}
	return f.Link.Ask(ctx, o)
}

func TestBelowTheThresholdARoundHasNoResultAndTheNextOneMayBeTried(t *testing.T) {
	s := newSchool(t, 4, 3, nil) // the threshold is 3
	c := s.coordinator(t, nil)
	links := s.links()
	links[0], links[1] = failing{links[0], StepTrain}, failing{links[1], StepTrain}
	if _, err := c.Round(t.Context(), links); !errors.Is(err, ErrRound) {
		t.Fatal(err)
	}
	if c.Rounds() != 0 || c.Weights().Variables[0] != 0 {
		t.Error("a round without a result has moved the model")
	}
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	if c.Rounds() != 1 {
		t.Error("the next attempt did not count")
	}
}

func TestALateSiteIsLeftOutAndNotHeardAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSchool(t, 5, 3, func(terms *Terms) { terms.Deadline = time.Hour })
		c := s.coordinator(t, nil)
		links := s.links()
		late := &waiting{Link: links[4], until: make(chan struct{})}
		links[4] = late
		out, err := c.Round(t.Context(), links)
		weights := slices.Clone(c.Weights().Variables)
		close(late.until) // it answers now, to nobody
		if err != nil {
			t.Fatal(err)
		}
		if out.Sites != 4 {
			t.Errorf("%d sites are in the sum", out.Sites)
		}
		if !slices.Equal(out.Lost, []string{"site-04"}) {
			t.Errorf("lost are %v", out.Lost)
		}
		c.Settle()
		if _, err := c.Round(t.Context(), s.links()); err != nil {
			t.Errorf("the next round, with the site that was late: %v", err)
		}
		if slices.Equal(weights, c.Weights().Variables) {
			t.Error("the next round has not moved the model")
		}
	})
}

type waiting struct {
	Link
	until chan struct{}
}

func (w *waiting) Ask(ctx context.Context, o Order) (Answer, error) {
	if o.Step == StepTrain {
		<-w.until
	}
	return w.Link.Ask(ctx, o)
}

// killed restarts a site from what it has kept, before or after any order, as
// kill -9 would; a site that was killed before it could answer is asked again.
type killed struct {
	t      testing.TB
	school *school
	i      int
	rng    *rand.Rand
	mu     *sync.Mutex
}

func (k killed) Name() string { return k.school.members[k.i].Name }

func (k killed) Ask(ctx context.Context, o Order) (Answer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		answer, err := k.school.sites[k.i].Obey(ctx, o)
		if k.rng.IntN(3) > 0 {
			return answer, err
		}
		k.school.sites[k.i] = k.school.open(k.t, k.i) // the answer is lost with the process
	}
}

func TestKilledAtAnyMomentAFederationEndsWithTheSameWeights(t *testing.T) {
	for _, algorithm := range []Algorithm{FedAvg, FedYogi, SCAFFOLD} {
		if testing.Short() && algorithm != SCAFFOLD {
			continue
		}
		run := func(kill bool) []float32 {
			s := newSchool(t, 4, 5, func(terms *Terms) { terms.Algorithm = algorithm })
			keeper := memoryKeeper{}
			c := s.coordinator(t, keeper)
			rng := rand.New(rand.NewPCG(8, 8))
			for !c.Done() {
				links := s.links()
				var mu sync.Mutex
				if kill {
					for i := range links {
						links[i] = killed{t, s, i, rng, &mu}
					}
				}
				if _, err := c.Round(t.Context(), links); err != nil {
					t.Fatal(err)
				}
				if kill && rng.IntN(2) == 0 {
					c = s.coordinator(t, keeper)
				}
			}
			return c.Weights().Variables
		}
		if plain, resumed := run(false), run(true); !slices.Equal(plain, resumed) {
			t.Errorf("%s: %v undisturbed, %v killed again and again", algorithm, plain, resumed)
		}
	}
}

func TestASiteRefusesOrdersThatItsTermsDoNotAllow(t *testing.T) {
	s := newSchool(t, 6, 3, func(terms *Terms) { terms.GroupSize, terms.Rule = 3, robust.Median })
	site := s.sites[0]
	model := (&Weights{Variables: make([]float32, 3)}).Digest()
	good := Order{Step: StepKeys, Round: 5, Group: []string{"site-00", "site-01", "site-02"}, Model: model[:]}
	for what, change := range map[string]func(*Order){
		"a group below the size":      func(o *Order) { o.Group = o.Group[:2] },
		"a group that is too large":   func(o *Order) { o.Group = []string{"site-00", "site-01", "site-02", "site-03", "site-04", "site-05"} },
		"somebody who is no member":   func(o *Order) { o.Group = []string{"site-00", "site-01", "stranger"} },
		"a member twice":              func(o *Order) { o.Group = []string{"site-00", "site-01", "site-01"} },
		"without the site itself":     func(o *Order) { o.Group = []string{"site-01", "site-02", "site-03"} },
		"a round beyond the terms":    func(o *Order) { o.Index = 8 },
		"a round before the first":    func(o *Order) { o.Index = -1 },
		"no model":                    func(o *Order) { o.Model = nil },
		"the number of no round":      func(o *Order) { o.Round = 0 },
		"a step that does not exist":  func(o *Order) { o.Step = "tell" },
		"a step of a round not begun": func(o *Order) { o.Step = StepTrain },
	} {
		o := good
		change(&o)
		if _, err := site.Obey(t.Context(), o); err == nil {
			t.Errorf("%s: the site obeyed", what)
		}
	}
	first, err := site.Obey(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	again, err := site.Obey(t.Context(), good)
	if err != nil || string(first.Messages[0].Envelope.Signature) != string(again.Messages[0].Envelope.Signature) {
		t.Errorf("the same order again: %v", err)
	}
	other := good
	other.Group = []string{"site-00", "site-03", "site-04"}
	if _, err := site.Obey(t.Context(), other); !errors.Is(err, ErrOrder) {
		t.Errorf("the same round with another group: %v", err)
	}
	site = s.open(t, 0) // from what it kept
	earlier := good
	earlier.Round = 4
	for _, o := range []Order{earlier, other} {
		if _, err := site.Obey(t.Context(), o); !errors.Is(err, ErrOrder) {
			t.Errorf("after a restart, round %d with %v: %v", o.Round, o.Group, err)
		}
	}
}

func TestOtherWeightsThanTheRoundBeganWithAreNotTrainedOn(t *testing.T) {
	s := newSchool(t, 4, 3, nil)
	c := s.coordinator(t, nil)
	links := s.links()
	links[1] = swapped{links[1]}
	out, err := c.Round(t.Context(), links)
	if err != nil {
		t.Fatal(err)
	}
	if s.pupils[1].ran != 0 || !slices.Equal(out.Lost, []string{"site-01"}) {
		t.Errorf("the site trained %d times on what was slipped in; lost are %v", s.pupils[1].ran, out.Lost)
	}
}

// swapped shows one site other weights than the others: the first step of a
// gradient inversion.
type swapped struct{ Link }

func (l swapped) Ask(ctx context.Context, o Order) (Answer, error) {
	if o.Weights != nil {
		o.Weights = &Weights{Variables: []float32{1, 2, 3}}
	}
	return l.Link.Ask(ctx, o)
}

func TestTermsThatCannotBeRunUnderAreRefused(t *testing.T) {
	for what, change := range map[string]func(*Terms){
		"no name":                  func(t *Terms) { t.Federation = " " },
		"an unknown algorithm":     func(t *Terms) { t.Algorithm = "fedmagic" },
		"an unknown rule":          func(t *Terms) { t.Rule = "best" },
		"no rounds":                func(t *Terms) { t.Rounds = 0 },
		"a rising rate":            func(t *Terms) { t.FinalRate = 1 },
		"no rate":                  func(t *Terms) { t.Rate, t.FinalRate = 0, 0 },
		"a rate that is no number": func(t *Terms) { t.Rate = math.NaN() },
		"momentum with scaffold":   func(t *Terms) { t.Algorithm = SCAFFOLD },
		"proximal without fedprox": func(t *Terms) { t.Proximal = 1 },
		"fedprox without proximal": func(t *Terms) { t.Algorithm = FedProx },
		"a minimum of two":         func(t *Terms) { t.Minimum = 2 },
		"more than there are":      func(t *Terms) { t.Minimum = 99 },
		"groups below the minimum": func(t *Terms) { t.GroupSize = 2 },
		"a rule over one group":    func(t *Terms) { t.Rule = robust.Median },
		"too few groups":           func(t *Terms) { t.GroupSize, t.Rule, t.Bad = 5, robust.MultiKrum, 1 },
		"a bound of infinity":      func(t *Terms) { t.Bound = math.Inf(1) },
		"a bound beyond the ring":  func(t *Terms) { t.Bound = 1e300 },
		"nobody counts":            func(t *Terms) { t.MaxExamples = 0 },
		"no deadline":              func(t *Terms) { t.Deadline = 0 },
		"a limit without bits":     func(t *Terms) { t.Limit = 1 },
		"bits without a limit":     func(t *Terms) { t.Bits = 16 },
		"a limit beyond the bound": func(t *Terms) { t.Bits, t.Limit = 16, 11 },
		"too few bits":             func(t *Terms) { t.Bits, t.Limit = 11, 1 },
		"weights of 8 bits":        func(t *Terms) { t.Down = 8 },
		"adam without adaptivity":  func(t *Terms) { t.Algorithm, t.Tau = FedAdam, 0 },
	} {
		terms := DefaultTerms("north")
		if err := terms.Check(15); err != nil {
			t.Fatal(err)
		}
		change(&terms)
		if err := terms.Check(15); !errors.Is(err, ErrTerms) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestWhatIsKeptByAFolderIsWholeOrAsBefore(t *testing.T) {
	dir := t.TempDir() + "/kept"
	k, err := Folder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Get("a"); got != nil || err != nil {
		t.Errorf("before anything was kept: %v, %v", got, err)
	}
	for _, want := range []string{"one", "a longer two"} {
		if err := k.Put("a", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := k.Get("a"); string(got) != want || err != nil {
			t.Errorf("%q: %q, %v", want, got, err)
		}
	}
}

func TestGroupsFitTheirSumsHoweverManySitesAreThere(t *testing.T) {
	for size := 3; size < 8; size++ {
		terms := DefaultTerms("north")
		terms.GroupSize = size
		for sites := size; sites < 60; sites++ {
			for there := size; there <= sites; there++ {
				if groups := terms.groups(there); (there+groups-1)/groups > terms.largest(sites) {
					t.Fatalf("%d of %d sites make %d groups of at least %d, and a sum has room for %d", there, sites, groups, size, terms.largest(sites))
				}
			}
		}
	}
}
