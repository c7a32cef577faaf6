package federate

import (
	"context"
	"crypto/ed25519"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/federate/robust"
	"github.com/vigie/vigie/federate/secagg"
)

// ward is a trainer whose patients' gradients are known: x − what is the patient's.
type ward struct {
	patients [][]float32
	asked    int
}

func (w *ward) Size() (int, int) { return len(w.patients[0]), len(w.patients[0]) }
func (w *ward) Examples() int    { return len(w.patients) }
func (w *ward) Patients() int    { return len(w.patients) }

func (w *ward) Train(context.Context, Work) (int, float64, error) {
	return 0, 0, errors.New("a ward is not trained locally")
}

func (w *ward) Gradients(_ context.Context, work Work, patients []int, yield func([]float32) error) error {
	w.asked++
	for _, p := range patients {
		gradient := make([]float32, len(work.Variables))
		for j, x := range work.Variables {
			gradient[j] = x - w.patients[p][j]
		}
		if err := yield(gradient); err != nil {
			return err
		}
	}
	return nil
}

// patientTerms protect patients of so many sites; change comes before the noise is
// planned.
func patientTerms(t testing.TB, sites, variables int, change func(*Terms)) Terms {
	t.Helper()
	terms := DefaultTerms("north")
	terms.Algorithm, terms.Rounds, terms.Rate, terms.FinalRate, terms.Tau, terms.Beta2 = FedSGD, 6, 0.3, 0.1, 1e-8, 0.999
	terms.DP = &DP{Unit: Patient, Epsilon: 8, Delta: 1e-5, Clip: 2, Rate: 0.5, Lot: 20, Honest: 3, Colluding: 1, Attempts: 8}
	if change != nil {
		change(&terms)
	}
	terms, err := terms.Plan(sites, variables)
	if err != nil {
		t.Fatal(err)
	}
	return terms
}

// clinic is a federation of wards.
type clinic struct {
	school
	wards   []*ward
	ledgers []Ledger
}

func newClinic(t testing.TB, sites, patients, size int, terms Terms) *clinic {
	t.Helper()
	c := &clinic{}
	c.school = *newSchool(t, sites, size, nil)
	c.terms = terms
	rng := rand.New(rand.NewPCG(6, 1))
	for range sites {
		w := &ward{}
		for range patients {
			p := make([]float32, size)
			for j := range p {
				p[j] = float32(rng.NormFloat64())
			}
			w.patients = append(w.patients, p)
		}
		c.wards = append(c.wards, w)
		c.ledgers = append(c.ledgers, nil)
	}
	for i := range sites {
		c.keepers[i] = memoryKeeper{}
		c.sites[i] = c.open(t, i)
	}
	return c
}

func (c *clinic) options(i int) SiteOptions {
	return SiteOptions{Name: c.members[i].Name, Terms: c.terms, Members: c.members, Signer: c.signers[i], Trainer: c.wards[i], Keeper: c.keepers[i], Ledger: c.ledgers[i],
		Noise: rand.NewChaCha8([32]byte{byte(i), 7})}
}

func (c *clinic) open(t testing.TB, i int) *Site {
	t.Helper()
	site, err := NewSite(c.options(i))
	if err != nil {
		t.Fatal(err)
	}
	return site
}

func TestPatientsOfAllHospitalsAreLearntFromUnderNoise(t *testing.T) {
	terms := patientTerms(t, 5, 4, func(terms *Terms) {
		terms.Rounds, terms.Average = 40, 0.8
		*terms.DP = DP{Unit: Patient, Epsilon: 8, Delta: 1e-5, Clip: 2, Rate: 0.2, Lot: 200, Honest: 3, Colluding: 1, Attempts: 45}
	})
	c := newClinic(t, 5, 200, 4, terms)
	coordinator := c.coordinator(t, nil)
	for i := range terms.Rounds {
		out, err := coordinator.Round(t.Context(), c.links())
		if err != nil {
			t.Fatal(err)
		}
		if out.Index != i || out.Sites != 5 || out.Loss != 0 {
			t.Fatalf("%+v", out)
		}
	}
	want := make([]float64, 4)
	for _, w := range c.wards {
		for _, p := range w.patients {
			for j, v := range p {
				want[j] += float64(v) / 1000
			}
		}
	}
	for j, x := range coordinator.Published() {
		if math.Abs(float64(x)-want[j]) > 0.2 {
			t.Errorf("variable %d is %v, the patients' mean %v", j, x, want[j])
		}
	}
	spent, err := c.sites[0].Spent()
	if err != nil {
		t.Fatal(err)
	}
	if spent.Unit != Patient || spent.Attempts != 40 || !(spent.Epsilon > 6 && spent.Epsilon <= 8) || spent.EpsilonRDP < spent.Epsilon {
		t.Errorf("%+v", spent)
	}
}

// What a site adds without one patient and with it, every other draw alike, differs
// by that patient's whole numbers, of a length within the sensitivity.
func TestOnePatientMovesASumByAtMostTheSensitivity(t *testing.T) {
	const size = 50
	rapid.Check(t, func(t *rapid.T) {
		d := &DP{Unit: Patient, Clip: rapid.Float64Range(1e-3, 100).Draw(t, "clip"), Rate: 1, Lot: 10, Noise: 1, Honest: 3}
		terms := Terms{DP: d}
		bound := terms.sensitivity(5)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		w := &ward{}
		for range 6 {
			p := make([]float32, size)
			scale := math.Exp(rapid.Float64Range(-12, 12).Draw(t, "length")) * d.Clip
			for j := range p {
				p[j] = float32(rng.NormFloat64() * scale)
			}
			if rapid.IntRange(0, 9).Draw(t, "broken") == 0 {
				p[3] = float32(math.Inf(1))
			}
			w.patients = append(w.patients, p)
		}
		sum := func(w *ward) []uint32 {
			s := &Site{SiteOptions: SiteOptions{Terms: terms, Trainer: w}}
			out := make([]uint32, size)
			e := encoder{bound: bound, clip: d.Clip, whole: make([]int32, size)}
			if err := s.addPatients(context.Background(), Work{Terms: terms}, make([]float32, size), &e, out); err != nil {
				t.Fatal(err)
			}
			return out
		}
		with := sum(w)
		gone := rapid.IntRange(0, 5).Draw(t, "gone")
		p := w.patients[gone]
		w.patients = slices.Delete(slices.Clone(w.patients), gone, gone+1)
		without := sum(w)
		square := uint64(0)
		for j := range with {
			difference := int64(int32(with[j] - without[j]))
			square += uint64(difference * difference)
		}
		if square > bound*bound {
			t.Fatalf("one patient moves the sum by √%d units, more than %d", square, bound)
		}
		norm := 0.0
		for _, v := range p {
			norm += float64(v) * float64(v)
		}
		norm = math.Sqrt(norm)
		if math.IsInf(norm, 0) != (square == 0) && norm > d.Clip/float64(bound)*10 {
			t.Fatalf("a gradient of length %v moves the sum by √%d", norm, square)
		}
		// a clipped one is there with nearly all of its bound, a short one as it is
		if want := min(norm/d.Clip, 1) * float64(bound); !math.IsInf(norm, 0) && math.Abs(math.Sqrt(float64(square))-want) > 2*math.Sqrt(size) {
			t.Fatalf("a gradient of length %v of %v moves the sum by √%d of %d units", norm, d.Clip, square, bound)
		}
	})
}

// The noise in an opened sum is that of those who are in it: with as many lost as
// may be, and as many leaving theirs out as may, no less than what was promised.
func TestTheOpenedSumHoldsTheNoiseThatWasPromised(t *testing.T) {
	const sites, size = 7, 4000
	terms := patientTerms(t, sites, size, func(terms *Terms) {
		terms.DP.Honest, terms.DP.Colluding = 4, 2
	})
	promised := terms.DP.Noise * terms.DP.Clip / terms.DP.Lot
	for _, test := range []struct{ lost, silent int }{{0, 0}, {1, 0}, {1, 2}} {
		c := newClinic(t, sites, 1, size, terms)
		for i, w := range c.wards {
			w.patients[0] = make([]float32, size) // gradients are 0 where the variables are
			if i > 0 && i <= test.silent {
				o := c.options(i)
				o.Tamper = func(_ context.Context, d *Draft) error { d.Weight = 0; return nil }
				site, err := NewSite(o)
				if err != nil {
					t.Fatal(err)
				}
				c.sites[i] = site
			}
		}
		links := c.links()
		for i := range test.lost {
			links[sites-1-i] = failing{links[sites-1-i], StepTrain}
		}
		var mean []float32
		coordinator := c.coordinator(t, nil)
		coordinator.Opened = func(_ []string, m []float32, _ float64) { mean = slices.Clone(m) }
		if _, err := coordinator.Round(t.Context(), links); err != nil {
			t.Fatal(err)
		}
		square := 0.0
		for _, v := range mean {
			square += float64(v) * float64(v)
		}
		deviation := math.Sqrt(square / size)
		with := float64(sites - test.lost - test.silent)
		want := promised * math.Sqrt(with/4)
		if math.Abs(deviation/want-1) > 5/math.Sqrt(2*size) {
			t.Errorf("%+v: noise of deviation %v, want %v", test, deviation, want)
		}
		if deviation < promised*(1-5/math.Sqrt(2*size)) {
			t.Errorf("%+v: noise of deviation %v, promised were %v", test, deviation, promised)
		}
	}
}

func TestASiteOpensNoSumWithLessNoiseThanWasPromised(t *testing.T) {
	const sites = 6 // the threshold of secret sharing is 5
	terms := patientTerms(t, sites, 3, func(terms *Terms) { terms.DP.Honest, terms.DP.Colluding = 5, 1 })
	c := newClinic(t, sites, 4, 3, terms)
	coordinator := c.coordinator(t, nil)
	links := c.links()
	links[5] = failing{links[5], StepTrain}
	if _, err := coordinator.Round(t.Context(), links); !errors.Is(err, ErrRound) {
		t.Errorf("a round with five of six sites: %v", err)
	}
	// a coordinator that goes on all the same is refused by the sites themselves
	var refused []error
	var mu sync.Mutex
	for i := range links {
		links[i] = &narrowing{Link: Direct(c.sites[i]), mu: &mu, said: &refused}
	}
	if _, err := coordinator.Round(t.Context(), links); !errors.Is(err, ErrRound) {
		t.Errorf("a round whose survivors the coordinator cuts: %v", err)
	}
	if len(refused) != 10 {
		t.Fatalf("%d refusals of five sites, at two steps", len(refused))
	}
	for _, err := range refused {
		if !errors.Is(err, ErrOrder) && !errors.Is(err, secagg.ErrStep) {
			t.Errorf("%v", err)
		}
	}
	// nor does a site enter a group that is too small
	model := coordinator.Weights().Digest()
	o := Order{Step: StepKeys, Round: 99, Group: []string{"site-00", "site-01", "site-02", "site-03", "site-04"}, Model: model[:]}
	if _, err := c.sites[0].Obey(t.Context(), o); !errors.Is(err, ErrOrder) {
		t.Errorf("a group of five: %v", err)
	}
}

// narrowing is a coordinator that tells sites of fewer survivors than there are, and
// asks for the shares whatever they say.
type narrowing struct {
	Link
	mu   *sync.Mutex
	said *[]error
}

func (n *narrowing) say(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*n.said = append(*n.said, err)
}

func (n *narrowing) Ask(ctx context.Context, o Order) (Answer, error) {
	if o.Step == StepConfirm && n.Name() != "site-05" {
		o.Names = o.Names[:5]
		if _, err := n.Link.Ask(ctx, o); err != nil {
			n.say(err)
		}
		_, err := n.Link.Ask(ctx, Order{Step: StepReveal, Round: o.Round})
		if err != nil {
			n.say(err)
		}
		return Answer{}, errors.New("spoilt")
	}
	return n.Link.Ask(ctx, o)
}

func TestTheBudgetRefusesTheRoundThatWouldExceedIt(t *testing.T) {
	terms := patientTerms(t, 4, 3, func(terms *Terms) {
		terms.DP.Honest, terms.DP.Colluding, terms.DP.Attempts, terms.Rounds = 4, 0, 3, 3
	})
	c := newClinic(t, 4, 5, 3, terms)
	coordinator := c.coordinator(t, nil)
	links := c.links()
	links[3] = failing{links[3], StepConfirm} // the attempt fails, and is spent
	if _, err := coordinator.Round(t.Context(), links); err != nil {
		t.Fatal(err) // 3 of 4 are the threshold: it went on without
	}
	for range 2 {
		if _, err := coordinator.Round(t.Context(), c.links()); err != nil {
			t.Fatal(err)
		}
	}
	model := coordinator.Weights().Digest()
	names := []string{}
	for _, m := range c.members {
		names = append(names, m.Name)
	}
	over := Order{Step: StepKeys, Round: 50, Group: names, Model: model[:]}
	for _, restart := range []bool{false, true} {
		if restart {
			c.sites[0] = c.open(t, 0)
		}
		asked := c.wards[0].asked
		over.Round++
		session := newCoordinatorOf(t, c, coordinator)
		session.state.Index, session.state.Number = 0, over.Round
		if _, err := session.Round(t.Context(), c.links()); !errors.Is(err, ErrRound) {
			t.Errorf("a fourth attempt: %v", err)
		}
		if c.wards[0].asked != asked {
			t.Error("the site computed gradients for a round that it may not pay for")
		}
	}
	spent, err := c.sites[0].Spent()
	if err != nil || spent.Attempts != 3 || spent.Epsilon > 8 {
		t.Errorf("%+v, %v", spent, err)
	}
}

func newCoordinatorOf(t *testing.T, c *clinic, old *Coordinator) *Coordinator {
	t.Helper()
	next, err := NewCoordinator(CoordinatorOptions{Terms: c.terms, Members: c.members, Variables: old.Variables, Trained: old.Trained})
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// book is a hospital's ledger.
type book struct {
	entries []Spending
	most    int
}

func (b *book) Charge(_ context.Context, s Spending) error {
	if len(b.entries) >= b.most {
		return errors.Join(ErrBudget, errors.New("the hospital has had enough"))
	}
	b.entries = append(b.entries, s)
	return nil
}

func TestTheHospitalsLedgerHasTheLastWord(t *testing.T) {
	terms := patientTerms(t, 5, 3, nil)
	c := newClinic(t, 5, 5, 3, terms)
	ledger := &book{most: 2}
	c.ledgers[0] = ledger
	c.sites[0] = c.open(t, 0)
	coordinator := c.coordinator(t, nil)
	for i := range 4 {
		out, err := coordinator.Round(t.Context(), c.links())
		if err != nil {
			t.Fatal(err)
		}
		if refused := slices.Contains(out.Lost, "site-00"); refused != (i >= 2) {
			t.Errorf("round %d: lost %v", i+1, out.Lost)
		}
	}
	if len(ledger.entries) != 2 || ledger.entries[0].Unit != Patient || ledger.entries[0].Run.Steps != 1 || ledger.entries[0].Round >= ledger.entries[1].Round {
		t.Errorf("%+v", ledger.entries)
	}
	few, err := c.sites[0].Spent()
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.sites[1].Spent()
	if err != nil {
		t.Fatal(err)
	}
	if few.Attempts != 2 || all.Attempts != 4 || few.Epsilon >= all.Epsilon {
		t.Errorf("two rounds cost %+v, four %+v", few, all)
	}
	// the run in the ledger is what dp composes
	composed, err := planner.Compose([]dp.Run{ledger.entries[0].Run, ledger.entries[1].Run}, terms.DP.Delta)
	if err != nil || math.Abs(composed-few.Epsilon) > 1e-6 {
		t.Errorf("the ledger's runs compose to %v, %v; the site says %v", composed, err, few.Epsilon)
	}
}

func TestAKilledSiteChargesARoundOnceAndNeverForgetsIt(t *testing.T) {
	terms := patientTerms(t, 5, 3, nil)
	c := newClinic(t, 5, 5, 3, terms)
	ledger := &book{most: 100}
	c.ledgers[0] = ledger
	c.sites[0] = c.open(t, 0)
	coordinator := c.coordinator(t, nil)
	links := c.links()
	links[0] = &dying{clinic: c, t: t}
	if _, err := coordinator.Round(t.Context(), links); err != nil {
		t.Fatal(err)
	}
	spent, err := c.open(t, 0).Spent()
	if err != nil || spent.Attempts != 1 || len(ledger.entries) != 2 || ledger.entries[0].Round != ledger.entries[1].Round {
		t.Errorf("%+v, %v; ledger %+v", spent, err, ledger.entries)
	}
}

// dying is a site that is killed in the middle of training, after the charge and
// before its account and its vector are kept.
type dying struct {
	clinic *clinic
	t      *testing.T
	died   bool
}

func (d *dying) Name() string { return "site-00" }

func (d *dying) Ask(ctx context.Context, o Order) (Answer, error) {
	if o.Step == StepTrain && !d.died {
		d.died = true
		kept := d.clinic.keepers[0].(memoryKeeper)
		before := memoryKeeper{}
		for name, data := range kept {
			before[name] = data
		}
		if _, err := d.clinic.sites[0].Obey(ctx, o); err != nil {
			d.t.Error(err)
		}
		d.clinic.keepers[0] = before
		d.clinic.sites[0] = d.clinic.open(d.t, 0)
	}
	return d.clinic.sites[0].Obey(ctx, o)
}

func TestTheTwoPromisesAreNeverMixed(t *testing.T) {
	patient := patientTerms(t, 5, 3, nil)
	c := newClinic(t, 5, 5, 3, patient)
	if _, err := c.coordinator(t, nil).Round(t.Context(), c.links()); err != nil {
		t.Fatal(err)
	}
	hospital := patient
	hospital.Algorithm = FedAvg
	hospital.DP = &DP{Unit: Hospital, Epsilon: 8, Delta: 1e-3, Clip: 1, Rate: 1, Lot: 5, Honest: 3, Colluding: 1, Attempts: 8}
	hospital, err := hospital.Plan(5, 3)
	if err != nil {
		t.Fatal(err)
	}
	c.terms = hospital
	if _, err := NewSite(c.options(0)); !errors.Is(err, ErrKept) {
		t.Errorf("an account of patients goes on as one of hospitals: %v", err)
	}
	c.keepers[0] = memoryKeeper{}
	if _, err := NewSite(c.options(0)); err != nil {
		t.Errorf("kept apart: %v", err)
	}
	for what, change := range map[string]func(*Terms){
		"a patient's promise with local training": func(t *Terms) { t.Algorithm = FedAvg },
		"a hospital's promise with one gradient":  func(t *Terms) { t.DP.Unit = Hospital },
		"no unit":                                 func(t *Terms) { t.DP.Unit = "" },
		"gradients without privacy":               func(t *Terms) { t.DP = nil },
		"questions without noise":                 func(t *Terms) { t.Tasks, t.Questions = []Task{TaskEvaluate}, 1 },
		"no epsilon":                              func(t *Terms) { t.DP.Epsilon = 0 },
		"an epsilon that hides nobody":            func(t *Terms) { t.DP.Epsilon = 100 },
		"a delta that gives one away":             func(t *Terms) { t.DP.Delta = 0.5 },
		"no clip":                                 func(t *Terms) { t.DP.Clip = math.NaN() },
		"no sampling":                             func(t *Terms) { t.DP.Rate = 0 },
		"no lot":                                  func(t *Terms) { t.DP.Lot = 0 },
		"no noise":                                func(t *Terms) { t.DP.Noise = 0 },
		"nobody honest":                           func(t *Terms) { t.DP.Honest = 0 },
		"a third of the sites colluding":          func(t *Terms) { t.DP.Colluding = 2 },
		"more sites than there are":               func(t *Terms) { t.DP.Honest = 5 },
		"fewer attempts than rounds":              func(t *Terms) { t.DP.Attempts = 5 },
		"a lot that no ring holds":                func(t *Terms) { t.DP.Lot = 1e7; t.DP.Delta = 1e-9 },
		"names of sites":                          func(t *Terms) { t.Naming, t.Sketch, t.FalseNaming = NamingReport, 512, 0.1 },
		"parts at the site":                       func(t *Terms) { t.Personal = []Part{HeadPart} },
	} {
		terms := patient
		d := *patient.DP
		terms.DP = &d
		change(&terms)
		if err := terms.Check(5); !errors.Is(err, ErrTerms) {
			t.Errorf("%s: %v", what, err)
		}
	}
	groups := patient
	groups.GroupSize, groups.Rule = 3, robust.Mean // six sites are two groups of three, and four must be in a sum
	if err := groups.Check(6); !errors.Is(err, ErrTerms) {
		t.Errorf("groups smaller than the noise is meant for: %v", err)
	}
	scaffold := hospital
	scaffold.Algorithm, scaffold.Momentum = SCAFFOLD, 0
	if err := scaffold.Check(5); !errors.Is(err, ErrTerms) {
		t.Errorf("scaffold: %v", err)
	}
}

func TestAHospitalsWholeUpdateIsHiddenInNoise(t *testing.T) {
	const size = 2000
	s := newSchool(t, 6, size, func(terms *Terms) {
		terms.DP = &DP{Unit: Hospital, Epsilon: 8, Delta: 1e-2, Clip: 0.5, Rate: 1, Lot: 6, Honest: 4, Colluding: 1, Attempts: 8}
		planned, err := terms.Plan(6, size)
		if err != nil {
			t.Fatal(err)
		}
		*terms = planned
	})
	c := s.coordinator(t, nil)
	var mean []float32
	c.Opened = func(_ []string, m []float32, _ float64) { mean = m }
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	// every update was longer than the clip: their mean is within it, the rest is noise
	square := 0.0
	for _, v := range mean {
		square += float64(v) * float64(v)
	}
	d := s.terms.DP
	noise := d.Noise * d.Clip / d.Lot * math.Sqrt(6.0/4)
	if got := math.Sqrt(square / size); got < noise*0.9 || got > math.Hypot(noise, d.Clip/math.Sqrt(size))*1.1 {
		t.Errorf("the mean's numbers are of size %v, noise alone of %v", got, noise)
	}
	spent, err := s.sites[0].Spent()
	if err != nil || spent.Unit != Hospital || spent.Attempts != 1 {
		t.Errorf("%+v, %v", spent, err)
	}
	// a pupil knows no patient
	patient := patientTerms(t, 6, size, nil)
	if _, err := NewSite(SiteOptions{Name: s.members[0].Name, Terms: patient, Members: s.members, Signer: s.signers[0], Trainer: s.pupils[0]}); !errors.Is(err, ErrTerms) {
		t.Errorf("a trainer that knows no patient: %v", err)
	}
}

func TestAnAuditorSeesWhoHasSpentWhat(t *testing.T) {
	terms := patientTerms(t, 5, 3, func(terms *Terms) { terms.Rounds, terms.Average = 3, 0.9 })
	c := newClinic(t, 5, 5, 3, terms)
	o := CoordinatorOptions{Terms: terms, Members: c.members, Variables: make([]float32, 3), Trained: 3, Layout: []Span{{Name: "w", Length: 3}}}
	dir := t.TempDir()
	var err error
	if o.Transcript, err = o.Record(dir, c.signers[0]); err != nil {
		t.Fatal(err)
	}
	coordinator, err := NewCoordinator(o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		links := c.links()
		if i == 1 {
			links[2] = failing{links[2], StepTrain}
		}
		if _, err := coordinator.Round(t.Context(), links); err != nil {
			t.Fatal(err)
		}
	}
	coordinator.Settle()
	r, err := ReplayRun(t.Context(), ReplayOptions{Dir: dir, Coordinator: c.signers[0].Public().(ed25519.PublicKey), Members: c.members})
	if err != nil {
		t.Fatal(err)
	}
	if r.Privacy == nil || r.Privacy.Unit != Patient || len(r.Privacy.Sites) != 5 {
		t.Fatalf("%+v", r.Privacy)
	}
	for i, site := range r.Privacy.Sites {
		own, err := c.sites[i].Spent()
		if err != nil {
			t.Fatal(err)
		}
		if site.Spent != own || site.Attempts != 3-map[bool]int{true: 1}[i == 2] {
			t.Errorf("%s: %+v by the transcript, %+v by its own account", site.Site, site.Spent, own)
		}
	}
	if !slices.Equal(r.Published, coordinator.Published()) || slices.Equal(r.Published, r.Weights.Variables) {
		t.Error("the replay publishes other variables than the run")
	}
}

// ones are patients of one site whose gradients all point one way, as far as the
// clip allows and farther: the worst that can be hidden.
func ones(n, size int) *ward {
	w := &ward{}
	for range n {
		p := make([]float32, size)
		for j := range p {
			p[j] = -100 // gradients of 100 each
		}
		w.patients = append(w.patients, p)
	}
	return w
}

// An attacker who knows everything but whether one patient is there, and chose that
// patient, sees the sums of three rounds. What it finds out is a lower bound of
// epsilon: below what is promised, and above it when sites leave out the noise that
// is counted on, so that the test can fail.
func TestWhoeverWatchesEveryRoundLearnsLessThanEpsilon(t *testing.T) {
	const rounds, size, trials = 3, 4, 3000
	terms := patientTerms(t, 4, size, func(terms *Terms) {
		terms.Rounds = rounds
		*terms.DP = DP{Unit: Patient, Epsilon: 3, Delta: 1e-3, Clip: 1, Rate: 0.5, Lot: 10, Honest: 3, Colluding: 1, Attempts: rounds}
	})
	noise, bound := terms.noise(4, size), terms.sensitivity(4)
	watch := func(there bool, shares int, seed byte) []float64 {
		bits := rand.NewChaCha8([32]byte{seed, 1})
		source, err := dp.DiscreteFrom(noise.Variance, bits)
		if err != nil {
			t.Fatal(err)
		}
		s := &Site{SiteOptions: SiteOptions{Terms: terms, Trainer: ones(1, size), Noise: bits}}
		e := encoder{bound: bound, clip: 1, whole: make([]int32, size)}
		var out []float64
		sums := make([]uint32, trials*rounds*size)
		for range shares {
			if err := source.Add(sums); err != nil {
				t.Fatal(err)
			}
		}
		for range trials {
			score := 0.0 // log likelihood ratio, of Gaussians
			for range rounds {
				sum := sums[:size]
				sums = sums[size:]
				if there {
					if err := s.addPatients(t.Context(), Work{Terms: terms}, make([]float32, size), &e, sum); err != nil {
						t.Fatal(err)
					}
				}
				along := 0.0
				for _, v := range sum {
					along -= float64(int32(v)) / math.Sqrt(size) / float64(bound)
				}
				sigma := terms.DP.Noise * math.Sqrt(float64(shares)/3)
				score += math.Log(0.5 + 0.5*math.Exp((2*along-1)/(2*sigma*sigma)))
			}
			out = append(out, score)
		}
		slices.Sort(out)
		return out
	}
	// bound is the best of many thresholds', at a confidence of 99.9 % each
	learns := func(with, without []float64) float64 {
		best := 0.0
		for k := 20; k < trials/2; k += 20 {
			threshold := with[trials-k]
			false_, _ := slices.BinarySearch(without, threshold)
			wrong, right := float64(trials-false_)/trials, float64(k)/trials
			wrong += 3.1*math.Sqrt(wrong*(1-wrong)/trials) + 5.0/trials
			right -= 3.1 * math.Sqrt(right*(1-right)/trials)
			if right > terms.DP.Delta {
				best = max(best, math.Log((right-terms.DP.Delta)/wrong))
			}
		}
		return best
	}
	spent, err := terms.Spent(rounds, 4, size)
	if err != nil {
		t.Fatal(err)
	}
	honest := learns(watch(true, 3, 1), watch(false, 3, 2))
	t.Logf("promised epsilon %.2f, found at least %.2f", spent.Epsilon, honest)
	if honest > spent.Epsilon {
		t.Errorf("an attacker shows an epsilon of %v, promised were %v", honest, spent.Epsilon)
	}
	if honest < 0.5 {
		t.Errorf("an attacker shows an epsilon of %v only: it does not attack", honest)
	}
	// one of the three that are counted on adds its share alone, a fifth of what is due
	noise.Variance /= 25
	if betrayed := learns(watch(true, 1, 3), watch(false, 1, 4)); betrayed < spent.Epsilon {
		t.Errorf("with a fraction of the noise an attacker shows %v, which is no more than the %v that were promised", betrayed, spent.Epsilon)
	}
}
