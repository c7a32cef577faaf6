package simulate

import (
	"errors"
	"strings"
	"testing"

	"github.com/vigie/vigie/federate"
)

func private(t *testing.T, text string) Options {
	t.Helper()
	o := options(t)
	d, err := ParsePrivacy(text)
	if err != nil {
		t.Fatal(err)
	}
	o.Terms = PrivateTerms(o.Terms, d.Unit)
	o.Terms.DP, o.Terms.Rounds, o.Terms.Average = d, 12, 0.5
	return o
}

func TestPatientsOfVirtualSitesAreProtectedAndLearntFrom(t *testing.T) {
	o := private(t, "epsilon=8,delta=1e-4,rate=0.5,clip=1")
	o.Terms.Rate, o.Terms.FinalRate = 2e-2, 1e-2
	o.Terms.Augmentation.Shift, o.Terms.Augmentation.Rotation, o.Terms.Augmentation.Zoom = 0, 0, 0
	r := run(t, o)
	p := r.Privacy
	if p == nil || p.Unit != federate.Patient || r.Epsilon == nil || *r.Epsilon != p.Epsilon || r.EpsilonUnit != p.Unit {
		t.Fatalf("%+v", r)
	}
	if !(p.Epsilon > 7 && p.Epsilon <= 8) || p.EpsilonRDP < p.Epsilon || p.Delta != 1e-4 || p.Honest != 3 || p.Colluding != 1 || p.Lot != 120 {
		t.Errorf("%+v", p)
	}
	if len(p.Sites) != 5 || p.Sites[0].Attempts != 12 || *r.Sites[4].Epsilon != p.Sites[4].Epsilon {
		t.Errorf("%+v", p.Sites)
	}
	for _, w := range p.Words {
		if w.English == "" || w.French == "" || strings.Contains(w.English, "Per hospital") {
			t.Errorf("%+v", w)
		}
	}
	// 240 patients hide little, but the task is easy
	if r.AUC.Value < 0.6 {
		t.Errorf("AUC %v", r.AUC)
	}
	for _, round := range r.Rounds {
		if round.Loss != 0 {
			t.Error("a loss was released that nothing was paid for")
		}
	}
	var b strings.Builder
	if err := r.Write(&b); err != nil || !strings.Contains(b.String(), "per patient: epsilon") || strings.Contains(b.String(), "no differential privacy") {
		t.Errorf("%v: %s", err, b.String())
	}
}

func TestAVirtualSiteThatIsInFewerRoundsSpendsLess(t *testing.T) {
	o := private(t, "epsilon=8,delta=1e-4,rate=0.2,attempts=14")
	o.Dropout, o.Terms.Rounds = 0.12, 8
	r := run(t, o)
	for _, s := range r.Privacy.Sites {
		if s.Attempts < 1 || s.Attempts > len(r.Rounds) {
			t.Errorf("%+v", s)
		}
		for _, other := range r.Privacy.Sites {
			if (s.Attempts < other.Attempts) != (s.Epsilon < other.Epsilon) {
				t.Errorf("%+v and %+v", s, other)
			}
		}
		if s.Epsilon > r.Privacy.Epsilon {
			t.Errorf("%s has spent %v, at most %v are stated", s.Site, s.Epsilon, r.Privacy.Epsilon)
		}
	}
}

func TestASimulationEndsWhenTheBudgetIsSpent(t *testing.T) {
	o := private(t, "epsilon=4,delta=1e-4,rate=0.2,attempts=2")
	o.Terms.Rounds = 2
	engine, err := federate.NewEngine(o.Network, o.Terms, o.Train, 0)
	if err != nil {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	defer engine.Close()
	initial, trained := engine.Variables()
	if err := o.Private(len(initial)); err != nil {
		t.Fatal(err)
	}
	division, err := Divide(o.Train, o.Sites, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	shop, err := newWorkshop(engine, "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := o.cast(&Report{}, shop, division)
	if err != nil {
		t.Fatal(err)
	}
	leader, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: o.Terms, Members: c.members, Variables: initial, Trained: trained})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if why := c.over(o.Terms); why != "" {
			t.Fatalf("after %d attempts of 2: %s", i, why)
		}
		if _, err := leader.Round(t.Context(), c.links(o, i)); err != nil {
			t.Fatal(err)
		}
	}
	if c.over(o.Terms) == "" {
		t.Error("after 2 attempts of 2 there is said to be budget left")
	}
	r := &Report{Sites: make([]SiteReport, o.Sites)}
	if err := c.state(r, o.Terms, len(initial)); err != nil || !(*r.Epsilon > 3.9 && *r.Epsilon <= 4) {
		t.Errorf("%v of epsilon 4 was spent, %v", r.Epsilon, err)
	}
}

func TestVirtualHospitalsAreHiddenWhole(t *testing.T) {
	o := private(t, "epsilon=8,unit=hospital,clip=0.5")
	o.Terms.Rounds, o.Terms.Average = 2, 0
	r := run(t, o)
	p := r.Privacy
	if p.Unit != federate.Hospital || r.EpsilonUnit != federate.Hospital || r.Terms.Algorithm != federate.FedAvg || p.Lot != 5 || p.Rate != 1 {
		t.Errorf("%+v", p)
	}
	for _, w := range p.Words {
		if strings.Contains(w.English, "Per patient") || strings.Contains(w.French, "Par patient") {
			t.Errorf("%+v", w)
		}
	}
}

func TestPrivacyThatCannotBeReadIsRefused(t *testing.T) {
	for _, text := range []string{"8", "epsilon", "epsilon=", "epsilon=0", "epsilon=-1", "epsilon=NaN", "epsilon=Inf", "epsilon=8,epsilon=9", "delta=1e-5",
		"epsilon=8,unit=both", "epsilon=8,unit=", "epsilon=8,honest=0", "epsilon=8,colluding=-1", "epsilon=8,attempts=x", "epsilon=8,noise=1", "epsilon=8,,"} {
		if d, err := ParsePrivacy(text); !errors.Is(err, ErrOptions) {
			t.Errorf("%q: %+v, %v", text, d, err)
		}
	}
	d, err := ParsePrivacy("epsilon=8, delta=1e-5,unit=hospital,clip=2,rate=0.5,honest=4,colluding=0,attempts=9,views=2")
	want := federate.DP{Unit: federate.Hospital, Epsilon: 8, Delta: 1e-5, Clip: 2, Rate: 0.5, Honest: 4, Attempts: 9, Views: 2}
	if err != nil || *d != want {
		t.Errorf("%+v, %v", d, err)
	}
	o := private(t, "epsilon=8")
	o.Compare = true
	if _, err := Run(t.Context(), o); !errors.Is(err, ErrOptions) {
		t.Errorf("a comparison with local training: %v", err)
	}
}
