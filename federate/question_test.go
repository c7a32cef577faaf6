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

	"pgregory.net/rapid"
)

// clerk answers with numbers that are known, and remembers what it was asked.
type clerk struct {
	numbers []float64
	asked   []Question
}

func (c *clerk) Answer(_ context.Context, q Question, about Subject) ([]float64, error) {
	c.asked = append(c.asked, q)
	out := slices.Clone(c.numbers)
	if about.Variables != nil {
		out[0] += float64(about.Variables[0])
	}
	return out, nil
}

// asking is a school whose sites also answer: each its own numbers.
func asking(t *testing.T, n int, change func(*Terms)) (*school, []*clerk) {
	s := newSchool(t, n, 3, func(terms *Terms) {
		terms.Tasks, terms.Questions = []Task{TaskEvaluate, TaskCalibrate}, 5
		if change != nil {
			change(terms)
		}
	})
	rng := rand.New(rand.NewPCG(3, 1))
	var clerks []*clerk
	for i := range n {
		c := &clerk{}
		for range 40 {
			c.numbers = append(c.numbers, rng.NormFloat64()*math.Pow(10, float64(rng.IntN(8)-3)))
		}
		clerks = append(clerks, c)
		s.answers = append(s.answers, c)
		s.sites[i] = s.open(t, i)
	}
	return s, clerks
}

func TestAQuestionIsAnsweredByTheSumAndTheModelStays(t *testing.T) {
	s, clerks := asking(t, 5, nil)
	c := s.coordinator(t, nil)
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	before := slices.Clone(c.Weights().Variables)
	links := s.links()
	links[3] = failing{links[3], StepTrain}
	sums, err := c.Ask(t.Context(), links, Question{Task: TaskEvaluate, Numbers: 40})
	if err != nil {
		t.Fatal(err)
	}
	if sums.Sites != 4 || !slices.Equal(sums.Lost, []string{"site-03"}) || !slices.Equal(before, c.Weights().Variables) || c.Rounds() != 1 {
		t.Errorf("%d sites answered, lost are %v, %d rounds", sums.Sites, sums.Lost, c.Rounds())
	}
	for j, got := range sums.Values {
		want := 0.0
		for i, k := range clerks {
			if i != 3 {
				want += k.numbers[j]
			}
		}
		if j == 0 {
			want += 4 * float64(before[0])
		}
		if math.Abs(got-want) > 4*math.Ldexp(1, -30)+1e-15*math.Abs(want) {
			t.Errorf("number %d is %v, want %v", j, got, want)
		}
	}
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Errorf("training after a question: %v", err)
	}
}

func TestASiteAnswersOnlyWhatItsTermsAllow(t *testing.T) {
	s, clerks := asking(t, 4, nil)
	site := s.sites[0]
	model := (&Weights{Variables: make([]float32, 3)}).Digest()
	good := Order{Step: StepKeys, Round: 5, Group: []string{"site-00", "site-01", "site-02"}, Model: model[:], Question: &Question{Task: TaskEvaluate, Numbers: 40}}
	for what, change := range map[string]func(*Question){
		"a task that the terms do not name": func(q *Question) { q.Task = TaskGuards },
		"training under another name":       func(q *Question) { q.Task = "train" },
		"no numbers":                        func(q *Question) { q.Numbers = 0 },
		"more numbers than anybody needs":   func(q *Question) { q.Numbers = MaxNumbers + 1 },
		"a parameter that is none":          func(q *Question) { q.Parameters = []float64{math.NaN()} },
	} {
		o, q := good, *good.Question
		change(&q)
		o.Question = &q
		if _, err := site.Obey(t.Context(), o); !errors.Is(err, ErrOrder) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := site.Obey(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	// the same round cannot become one of training, or of another question
	other := good
	other.Question = nil
	if _, err := site.Obey(t.Context(), other); !errors.Is(err, ErrOrder) {
		t.Errorf("the round of a question, as one of training: %v", err)
	}
	other.Question = &Question{Task: TaskCalibrate, Numbers: 40}
	if _, err := site.Obey(t.Context(), other); !errors.Is(err, ErrOrder) {
		t.Errorf("the round of a question, with another: %v", err)
	}
	// five questions and no more, also over restarts
	c := s.coordinator(t, nil)
	c.state.Number = 100
	for i := range 6 {
		_, err := c.Ask(t.Context(), s.links(), Question{Task: TaskEvaluate, Numbers: 40, Threshold: float64(i)})
		if (err == nil) != (i < 5) {
			t.Errorf("question %d: %v", i+1, err)
		}
		for j := range s.sites {
			s.sites[j] = s.open(t, j)
		}
	}
	if len(clerks[0].asked) != 5 {
		t.Errorf("the site answered %d times", len(clerks[0].asked))
	}
	// a site that answers nothing is left out, like one that is lost
	s.answers = nil
	s.sites[0] = s.open(t, 0)
	if _, err := s.sites[0].Obey(t.Context(), Order{Step: StepKeys, Round: 500, Group: good.Group, Model: model[:], Question: good.Question}); !errors.Is(err, ErrOrder) {
		t.Errorf("a site without answers: %v", err)
	}
}

func TestTheDifferenceOfTwoSumsIsNoSitesAnswer(t *testing.T) {
	s, _ := asking(t, 5, nil)
	c := s.coordinator(t, nil)
	q := Question{Task: TaskEvaluate, Numbers: 40}
	first, err := c.Ask(t.Context(), s.links(), q)
	if err != nil {
		t.Fatal(err)
	}
	for i := range s.sites { // whoever forgets could be asked again
		s.sites[i] = s.open(t, i)
	}
	if sums, err := c.Ask(t.Context(), s.links()[1:], q); !errors.Is(err, ErrRound) {
		t.Errorf("the same question without one site was answered: %v", sums.Values[:2])
	}
	q.Threshold = 0.25 // the histograms would be the same
	if sums, err := c.Ask(t.Context(), s.links()[1:], q); !errors.Is(err, ErrRound) {
		t.Errorf("nearly the same question without one site was answered: %v", sums.Values[:2])
	}
	q.Threshold = 0
	again, err := c.Ask(t.Context(), s.links(), q)
	if err != nil || !slices.Equal(first.Values, again.Values) {
		t.Errorf("the same question among the same sites: %v", err)
	}
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ask(t.Context(), s.links()[1:], q); err != nil {
		t.Errorf("the question about the next model, without one site: %v", err)
	}
}

func TestSitesThatDoNotTrainAnswerAllTheSame(t *testing.T) {
	s, clerks := asking(t, 4, nil)
	for i := range s.sites {
		site, err := NewSite(SiteOptions{Name: s.members[i].Name, Terms: s.terms, Members: s.members, Signer: s.signers[i], Answers: clerks[i]})
		if err != nil {
			t.Fatal(err)
		}
		s.sites[i] = site
	}
	c, err := NewCoordinator(CoordinatorOptions{Terms: s.terms, Members: s.members})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ask(t.Context(), s.links(), Question{Task: TaskCalibrate, Numbers: 40}); err != nil {
		t.Error(err)
	}
	if _, err := c.Ask(t.Context(), s.links(), Question{Task: TaskGuards, Numbers: 40}); !errors.Is(err, ErrRound) {
		t.Errorf("what the terms do not allow: %v", err)
	}
	if _, err := c.Round(t.Context(), s.links()); !errors.Is(err, ErrRound) {
		t.Errorf("a round of training without a model: %v", err)
	}
}

func TestKilledAtAnyMomentAnAnswerIsTheSame(t *testing.T) {
	s, clerks := asking(t, 4, func(terms *Terms) { terms.Questions = 100 })
	c := s.coordinator(t, nil)
	links := s.links()
	rng := rand.New(rand.NewPCG(8, 8))
	var mu sync.Mutex
	for i := range links {
		links[i] = killed{t, s, i, rng, &mu}
	}
	for range 2 {
		sums, err := c.Ask(t.Context(), links, Question{Task: TaskEvaluate, Numbers: 40})
		if err != nil {
			t.Fatal(err)
		}
		want := 0.0
		for _, k := range clerks {
			want += k.numbers[7]
		}
		if math.Abs(sums.Values[7]-want) > 1e-8 {
			t.Errorf("the sum is %v, want %v", sums.Values[7], want)
		}
	}
}

func TestAnAnswerThatCannotBeAddedLeavesItsSiteOut(t *testing.T) {
	for what, spoil := range map[string]func(*clerk){
		"not a number":  func(c *clerk) { c.numbers[2] = math.NaN() },
		"infinity":      func(c *clerk) { c.numbers[2] = math.Inf(-1) },
		"too large":     func(c *clerk) { c.numbers[2] = wideBound },
		"a number less": func(c *clerk) { c.numbers = c.numbers[1:] },
		"a number more": func(c *clerk) { c.numbers = append(c.numbers, 1) },
	} {
		s, clerks := asking(t, 4, nil)
		spoil(clerks[1])
		sums, err := s.coordinator(t, nil).Ask(t.Context(), s.links(), Question{Task: TaskEvaluate, Numbers: 40})
		if err != nil || !slices.Equal(sums.Lost, []string{"site-01"}) {
			t.Errorf("%s: lost are %v, %v", what, sums.Lost, err)
		}
	}
}

func TestWideSumsAreThoseOfWholeNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sites, length := rapid.IntRange(1, 40).Draw(t, "sites"), rapid.IntRange(1, 5).Draw(t, "numbers")
		sum := make([]uint32, wideLimbs*length)
		want := make([]float64, length)
		size := 0.0
		for range sites {
			x := make([]float64, length)
			for i := range x {
				x[i] = rapid.Float64Range(-wideBound+1, wideBound-1).Draw(t, "x")
				if rapid.Bool().Draw(t, "count") {
					x[i] = math.Trunc(x[i])
				}
				want[i] += x[i]
				size += math.Abs(x[i])
			}
			limbs, err := encodeWide(x)
			if err != nil {
				t.Fatal(err)
			}
			for j, v := range limbs {
				sum[j] += v
			}
		}
		for i, got := range decodeWide(sum) {
			if math.Abs(got-want[i]) > float64(sites)*math.Ldexp(1, -30)+1e-14*size {
				t.Fatalf("number %d: %v, want %v", i, got, want[i])
			}
		}
	})
	// the worst that can be added: as many sites as there may be, at the bound
	sum := make([]uint32, wideLimbs)
	for _, x := range []float64{wideBound - 1, -wideBound + 1} {
		limbs, err := encodeWide([]float64{x})
		if err != nil {
			t.Fatal(err)
		}
		clear(sum)
		for range wideSites {
			for j, v := range limbs {
				sum[j] += v
			}
		}
		if got := decodeWide(sum)[0]; got != wideSites*x {
			t.Errorf("%d times %v is %v", wideSites, x, got)
		}
	}
}

func TestTermsOfTasksThatCannotBeRunAreRefused(t *testing.T) {
	for what, change := range map[string]func(*Terms){
		"an unknown task":            func(t *Terms) { t.Tasks, t.Questions = []Task{"spy"}, 1 },
		"a task twice":               func(t *Terms) { t.Tasks, t.Questions = []Task{TaskEvaluate, TaskEvaluate}, 1 },
		"tasks without questions":    func(t *Terms) { t.Tasks = []Task{TaskEvaluate} },
		"questions without tasks":    func(t *Terms) { t.Questions = 3 },
		"an unknown personal part":   func(t *Terms) { t.Personal = []Part{"tail"} },
		"a part that is there twice": func(t *Terms) { t.Personal = []Part{HeadPart, HeadPart} },
	} {
		terms := DefaultTerms("north")
		change(&terms)
		if err := terms.Check(15); !errors.Is(err, ErrTerms) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestManySitesAreAskedInTheSameGroupsAboutTheSameModel(t *testing.T) {
	var links []Link
	for i := range together + 5 {
		links = append(links, named(fmt.Sprintf("site-%03d", i)))
	}
	c := &Coordinator{CoordinatorOptions: CoordinatorOptions{Terms: Terms{GroupSize: 5}}}
	groups := func(q *Question) string {
		c.state.Number++
		return fmt.Sprint(c.gather(links, q))
	}
	q := &Question{Task: TaskEvaluate}
	asked, again, trained, anew := groups(q), groups(q), groups(nil), groups(nil)
	if asked != again || asked == trained || trained != anew {
		t.Error("groups are drawn anew for another attempt, or a question's are those of training")
	}
	before := groups(q)
	if c.state.Index++; groups(q) == before || groups(nil) == trained {
		t.Error("the next round has the same groups")
	}
	if links = links[:together]; len(c.gather(links, q)) != 1 || len(c.gather(links, nil)) != together/5 {
		t.Error("few sites are not asked all together")
	}
}

type named string

func (n named) Name() string                               { return string(n) }
func (n named) Ask(context.Context, Order) (Answer, error) { return Answer{}, errors.New("nobody") }
