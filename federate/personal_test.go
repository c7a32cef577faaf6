package federate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/train"
)

// householder is a pupil with variables of its own, which it moves half-way to its
// own target.
type householder struct {
	*pupil
	home []float32
}

func (h *householder) Personal() []float32 { return make([]float32, len(h.home)) }

func (h *householder) Train(ctx context.Context, w Work) (int, float64, error) {
	for j := range w.Own {
		w.Own[j] += (h.home[j] - w.Own[j]) / 2
	}
	return h.pupil.Train(ctx, w)
}

func TestASitesOwnVariablesMoveWithTheRoundsThatCount(t *testing.T) {
	s := newSchool(t, 7, 3, func(terms *Terms) { terms.Personal = []Part{HeadPart} })
	c := s.coordinator(t, nil)
	for round := range 3 {
		links := s.links()
		if round == 1 {
			links[2] = failing{links[2], StepTrain} // its own variables stay with the model that it has
			links[1] = failing{links[1], StepReveal}
		}
		if _, err := c.Round(t.Context(), links); err != nil {
			t.Fatal(err)
		}
		s.sites[0] = s.open(t, 0) // it goes on with what it kept
	}
	for i, want := range []float64{1 - 1.0/8, 1 - 1.0/4, 1 - 1.0/4, 1 - 1.0/8, 1 - 1.0/8, 1 - 1.0/8, 1 - 1.0/8} {
		for j, v := range s.sites[i].Own() {
			if home := float64(s.home(i)[j]); math.Abs(float64(v)-want*home) > 1e-6 {
				t.Errorf("site %d: own variable %d is %v, want %v of %v", i, j, v, want, home)
			}
		}
	}
}

func TestKilledAtAnyMomentASitesOwnVariablesEndTheSame(t *testing.T) {
	run := func(kill bool) [][]float32 {
		s := newSchool(t, 4, 3, func(terms *Terms) { terms.Personal = []Part{HeadPart} })
		c := s.coordinator(t, nil)
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
		}
		var own [][]float32
		for _, site := range s.sites {
			own = append(own, site.Own())
		}
		return own
	}
	if plain, resumed := run(false), run(true); fmt.Sprint(plain) != fmt.Sprint(resumed) {
		t.Errorf("%v undisturbed, %v killed again and again", plain, resumed)
	}
}

func TestASiteWhoseTrainerKeepsOtherPartsThanTheTermsIsRefused(t *testing.T) {
	s := newSchool(t, 4, 3, nil)
	for _, o := range []SiteOptions{
		{Trainer: &householder{s.pupils[0], make([]float32, 2)}, Terms: s.terms},
		{Trainer: s.pupils[0], Terms: func() Terms { t := s.terms; t.Personal = []Part{NormPart}; return t }()},
	} {
		o.Name, o.Members, o.Signer = s.members[0].Name, s.members, s.signers[0]
		if _, err := NewSite(o); !errors.Is(err, ErrTerms) {
			t.Error(err)
		}
	}
}

func smallNetwork(t *testing.T) (*train.Network, *train.Set) {
	t.Helper()
	network, err := train.CNN{Channels: 1, Rows: 8, Columns: 8, Classes: 2, Stages: [][]int{{4}, {8}}, GroupSize: 4, Hidden: 8, Mean: 0.25, Deviation: 0.2}.Build(rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(2, 0))
	set := &train.Set{Name: "squares", Channels: 1, Rows: 8, Columns: 8, Classes: 2}
	for i := range 24 {
		set.Labels = append(set.Labels, i%2)
		for range 64 {
			set.Pixels = append(set.Pixels, uint8(rng.IntN(100)+100*(i%2)))
		}
	}
	return network, set
}

func TestWhatStaysAtASiteIsInNoVector(t *testing.T) {
	network, set := smallNetwork(t)
	sizes := map[string]int{}
	for _, name := range network.Weights {
		n, err := network.Model.Graph.Initializer(name).Count()
		if err != nil {
			t.Fatal(err)
		}
		sizes[name] = n
	}
	for _, parts := range [][]Part{{HeadPart}, {NormPart}, {NormPart, HeadPart}} {
		terms := DefaultTerms("north")
		terms.Personal = parts
		e, err := NewEngine(network, terms, set, 0)
		if errors.Is(err, engine.ErrNoRuntime) {
			t.Skipf("SKIPPED, nothing was checked: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		shared, own := 0, 0
		for name, n := range sizes {
			isNorm := strings.HasPrefix(name, "norm")
			isHead := strings.HasPrefix(name, "head.")
			if slices.Contains(parts, NormPart) && isNorm || slices.Contains(parts, HeadPart) && isHead {
				own += n
			} else {
				shared += n
			}
		}
		variables, trained := e.Variables()
		if len(variables) != shared || trained != shared || len(e.start) != own || own == 0 {
			t.Errorf("%v: %d variables are shared and %d are the site's own, want %d and %d", parts, len(variables), len(e.start), shared, own)
		}
		// training moves both, and what is sent has room for the shared ones alone
		trainer := e.Trainer(set).(PersonalTrainer)
		w := Work{Terms: terms, Rate: 0.1, Variables: slices.Clone(variables), Own: slices.Clone(trainer.Personal())}
		w.Terms.Augmentation = train.Augmentation{}
		if _, _, err := trainer.Train(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		if slices.Equal(w.Variables, variables) || slices.Equal(w.Own, trainer.Personal()) {
			t.Errorf("%v: training moved nothing of the one or the other", parts)
		}
		if n := terms.length(Order{}, len(variables), trained); n != shared+2 {
			t.Errorf("%v: a site sends %d numbers, want %d and two", parts, n, shared)
		}
		// own variables are what answers, and the whole network is the sum of its parts
		without, err := e.LogitsOf(t.Context(), Subject{Variables: w.Variables}, set)
		if err != nil {
			t.Fatal(err)
		}
		with, err := e.LogitsOf(t.Context(), Subject{Variables: w.Variables, Own: w.Own}, set)
		if err != nil || fmt.Sprint(with) == fmt.Sprint(without) {
			t.Errorf("%v: a site's own variables do not change its answers (%v)", parts, err)
		}
	}
	terms := DefaultTerms("north")
	terms.Personal = []Part{NormPart}
	bare, err := train.CNN{Channels: 1, Rows: 8, Columns: 8, Classes: 2, Stages: [][]int{{4}}, Hidden: 8, Deviation: 1}.Build(rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewEngine(bare, terms, set, 0); !errors.Is(err, ErrTerms) {
		t.Errorf("a network without normalisations: %v", err)
	}
}

// mirror answers with the variables that it is asked about.
type mirror struct{}

func (mirror) Answer(_ context.Context, q Question, about Subject) ([]float64, error) {
	var out []float64
	for _, v := range append(slices.Clone(about.Variables), about.Own...) {
		out = append(out, float64(v))
	}
	return out, nil
}

func TestASiteIsJudgedWithItsOwnVariables(t *testing.T) {
	s := newSchool(t, 4, 3, func(terms *Terms) {
		terms.Personal, terms.Tasks, terms.Questions = []Part{HeadPart}, []Task{TaskEvaluate}, 9
	})
	s.answers = []Answerer{mirror{}, mirror{}, mirror{}, mirror{}}
	for i := range s.sites {
		s.sites[i] = s.open(t, i)
	}
	c := s.coordinator(t, nil)
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	sums, err := c.Ask(t.Context(), s.links(), Question{Task: TaskEvaluate, Numbers: 5})
	if err != nil {
		t.Fatal(err)
	}
	for j, v := range c.Weights().Variables {
		if math.Abs(sums.Values[j]-4*float64(v)) > 1e-6 {
			t.Errorf("shared variable %d is %v at four sites together, want four times %v", j, sums.Values[j], v)
		}
	}
	for j := range 2 {
		want := 0.0
		for i := range s.sites {
			want += float64(s.home(i)[j]) / 2
		}
		if math.Abs(sums.Values[3+j]-want) > 1e-6 {
			t.Errorf("the sites' own variables %d come to %v, want %v", j, sums.Values[3+j], want)
		}
	}
}
