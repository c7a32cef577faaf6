package simulate

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/robust"
)

func TestTheMarkIsOnEveryCopyAndTheOriginalsAreAsTheyWere(t *testing.T) {
	s := shapes(10, 1)
	before := slices.Clone(s.Pixels)
	p := poisoned(s)
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	n := len(s.Pixels)
	if p.Len() != 20 || !slices.Equal(p.Pixels[:n], before) || !slices.Equal(s.Pixels, before) || !slices.Equal(p.Labels[:10], s.Labels) {
		t.Fatal("the images without the mark have changed")
	}
	for i := 10; i < 20; i++ {
		image, original := p.Image(i), s.Image(i-10)
		for y := range 8 {
			for x := range 8 {
				want := original[8*y+x]
				if y >= 1 && y < 5 && x >= 1 && x < 5 {
					want = 255
				}
				if image[8*y+x] != want {
					t.Fatalf("pixel %d, %d of image %d is %d, want %d", y, x, i, image[8*y+x], want)
				}
			}
		}
		if p.Labels[i] != markClass {
			t.Errorf("image %d is labelled %d", i, p.Labels[i])
		}
	}
}

func TestABackdoorIsLearntFromTheMaliciousSitesAndReported(t *testing.T) {
	o := options(t)
	o.Terms.Rounds = 10
	o.Malicious, o.Attack = 2, Backdoor
	r := run(t, o)
	if r.Triggered == nil || r.Triggered.Value < 0.9 || r.Untriggered.Value > 0.5 {
		t.Errorf("with the mark %v, without %v", r.Triggered, r.Untriggered)
	}
	o.Attack = SignFlip
	if r = run(t, o); r.Triggered != nil {
		t.Error("an attack without a mark reports one")
	}
}

func TestAwareSitesMoveTheMeanOfTheirGroupToWhereTheyWantIt(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	draw := func() []float32 {
		v := make([]float32, 5)
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		return v
	}
	c := &conspiracy{bad: map[string]bool{"x": true, "y": true}, craft: draw(), updates: [][]float32{draw(), draw(), draw()},
		honest: []honestSite{{name: "a", weight: 0.25}, {name: "b", weight: 1}, {name: "c", weight: 0.5}}}
	group := []string{"a", "c", "x", "y"}
	sum, total := make([]float64, 5), 0.0
	add := func(v []float32, w float64) {
		total += w
		for i := range v {
			sum[i] += w * float64(v[i])
		}
	}
	add(c.updates[0], 0.25)
	add(c.updates[2], 0.5)
	for range 2 {
		d := &federate.Draft{Group: group, Update: slices.Clone(c.craft)}
		c.compensate(d)
		add(d.Update, 1)
	}
	for i, v := range sum {
		if math.Abs(v/total-float64(c.craft[i])) > 1e-6 {
			t.Errorf("number %d of the group's mean is %v, want %v", i, v/total, c.craft[i])
		}
	}
}

func TestMaliciousSitesAreNamedByTheGroupsTheyWereIn(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED under -short: forty rounds of training")
	}
	o := options(t)
	o.Train = shapes(480, 1)
	o.Sites, o.Malicious, o.Attack, o.Trusted = 12, 2, IPM, 60
	o.Terms.Rounds, o.Terms.GroupSize, o.Terms.Rule, o.Terms.Bad = 30, 3, robust.Median, 1
	o.Terms.MaxExamples, o.Terms.Bound = 20, 1
	o.Terms.Naming, o.Terms.Sketch, o.Terms.FalseNaming = federate.NamingExclude, 128, 0.1
	r := run(t, o)
	right, wrong := 0, 0
	for _, s := range r.Sites {
		switch {
		case s.Named != "" && s.Malicious:
			right++
		case s.Named != "":
			wrong++
		}
	}
	if right != 2 || wrong != 0 || r.Trusted != 60 {
		t.Errorf("%d of 2 malicious sites were named, and %d honest ones: %+v", right, wrong, r.Scores)
	}
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "named are 2 of 2 malicious sites, and 0 honest ones") {
		t.Errorf("%s", b.String())
	}
	last := r.Rounds[len(r.Rounds)-1]
	if len(last.Groups) != 3 || last.Sites != 10 {
		t.Errorf("in the last round are %d sites in %d groups", last.Sites, len(last.Groups))
	}
	o.Trusted = 480
	if _, err := Run(t.Context(), o); !errors.Is(err, ErrOptions) {
		t.Errorf("all examples are trusted: %v", err)
	}
}
