package federate

import (
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/federate/robust"
)

func TestASiteOpensOneSumForARound(t *testing.T) {
	// A lying server asks for round 0 of seven sites, and again without the last: the
	// difference of the sums would be that site's update.
	s := newSchool(t, 7, 3, func(terms *Terms) { terms.Quorum = 5 })
	first := s.coordinator(t, nil)
	if _, err := first.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	first.Settle()
	for what, try := range map[string]func(*Coordinator) []Link{
		"among other sites": func(*Coordinator) []Link { return s.links()[:6] },
		"about weights that differ by next to nothing": func(c *Coordinator) []Link {
			c.Variables[0] = 1e-7
			return s.links()
		},
	} {
		again := s.coordinator(t, nil)
		again.state.Number = first.state.Number
		links := try(again)
		out, err := again.Round(t.Context(), links)
		again.Settle()
		first.state.Number = again.state.Number
		if !errors.Is(err, ErrRound) {
			t.Errorf("%s: %v", what, err)
		}
		for _, l := range out.Groups[0].Lapses {
			if !strings.Contains(l.Reason, "was opened") {
				t.Errorf("%s: %v", what, l)
			}
		}
	}
	// the same again is the same again: what a coordinator that was killed asks
	same := s.coordinator(t, nil)
	same.state.Number = first.state.Number
	if _, err := same.Round(t.Context(), s.links()); err != nil || !slices.Equal(same.Weights().Variables, first.Weights().Variables) {
		t.Errorf("the same again: %v", err)
	}
	same.Settle()
	// and no earlier round follows a later one
	if _, err := same.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	same.Settle()
	before := s.coordinator(t, nil)
	before.state.Number = same.state.Number
	if _, err := before.Round(t.Context(), s.links()); !errors.Is(err, ErrRound) {
		t.Errorf("an earlier round: %v", err)
	}
	before.Settle()
	for i := range s.sites { // nor after a restart
		s.sites[i] = s.open(t, i)
	}
	if _, err := s.sites[0].Obey(t.Context(), Order{Step: StepKeys, Round: 99, Group: []string{"site-00", "site-01", "site-02", "site-03", "site-04"}, Model: make([]byte, 32)}); !errors.Is(err, ErrOrder) || !strings.Contains(err.Error(), "was opened") {
		t.Errorf("after a restart: %v", err)
	}
}

func TestARoundThatMayHaveBeenOpenedIsNotTriedAgain(t *testing.T) {
	// Two groups have sums, and the rule needs three.
	s := newSchool(t, 9, 3, func(terms *Terms) { terms.GroupSize, terms.Rule, terms.Bad, terms.Rounds = 3, robust.Median, 1, 3 })
	dir := t.TempDir()
	c := s.recorded(t, nil, dir)
	links := s.links()
	for i := range 3 {
		g := c.gather(links, nil)[2][i]
		at := slices.IndexFunc(links, func(l Link) bool { return l.Name() == g.Name() })
		links[at] = failing{links[at], StepTrain}
	}
	out, err := c.Round(t.Context(), links)
	if !errors.Is(err, ErrRound) || !out.Skipped {
		t.Fatalf("%v, skipped %v", err, out.Skipped)
	}
	if c.Rounds() != 0 || c.state.Index != 1 {
		t.Errorf("%d rounds have a result, round %d is next", c.Rounds(), c.state.Index)
	}
	for !c.Done() {
		if _, err := c.Round(t.Context(), s.links()); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.replay(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if digest := c.Weights().Digest(); r.Model != hexOf(digest[:]) || !r.Attempts[0].Skipped || c.Rounds() != 2 {
		t.Errorf("the replay leads elsewhere, or does not know of the round without a result: %+v", r.Attempts[0])
	}
}

func TestWhoLeadsCannotChooseAFewSitesThatItKnows(t *testing.T) {
	s := newSchool(t, 7, 3, nil)
	c := s.coordinator(t, nil)
	if _, err := c.Round(t.Context(), s.links()[:4]); !errors.Is(err, ErrRound) || !strings.Contains(err.Error(), "5 of 7") {
		t.Errorf("at the coordinator: %v", err)
	}
	digest := c.Weights().Digest()
	order := Order{Step: StepKeys, Round: 1, Model: digest[:]}
	for _, m := range s.members[:4] {
		order.Group = append(order.Group, m.Name)
	}
	if _, err := s.sites[0].Obey(t.Context(), order); !errors.Is(err, ErrOrder) || !strings.Contains(err.Error(), "5 of 7") {
		t.Errorf("at the site: %v", err)
	}
}

func TestSitesWithOtherListsOfMembersDoNotMeetInARound(t *testing.T) {
	s := newSchool(t, 6, 3, func(terms *Terms) { terms.Quorum = 3 })
	c := s.coordinator(t, nil)
	links := s.links()
	fewer, err := NewSite(SiteOptions{Name: "site-01", Terms: s.terms, Members: s.members[:5], Signer: s.signers[1], Trainer: s.pupils[1]})
	if err != nil {
		t.Fatal(err)
	}
	links[1] = Direct(fewer)
	out, err := c.Round(t.Context(), links[:5])
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(out.Groups[0].Survivors, "site-01") {
		t.Error("a site that writes numbers for another number of sites is in the sum")
	}
}

func TestASiteGoesOnWhenAnotherHasNewKeys(t *testing.T) {
	s := newSchool(t, 5, 3, nil)
	c := s.coordinator(t, nil)
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	c.Settle()
	pinned := s.sites[0].keep.Pinned
	s.members = slices.Clone(s.members)
	s.signers[4] = leader
	s.members[4].Key = leader.Public().(ed25519.PublicKey)
	for i := range s.sites {
		s.sites[i] = s.open(t, i)
	}
	if s.sites[0].keep.Round != 1 || s.sites[0].keep.Pinned == nil || s.sites[0].keep.Pinned.Index != pinned.Index {
		t.Errorf("what counts is forgotten: %+v", s.sites[0].keep)
	}
	next := s.coordinator(t, nil)
	next.state, next.Variables = c.state, c.Variables
	if _, err := next.Round(t.Context(), s.links()); err != nil {
		t.Error(err)
	}
}

func TestAServerThatAsksAllAndLetsFewEnterOpensNothing(t *testing.T) {
	s := newSchool(t, 7, 3, nil)
	c := s.coordinator(t, nil)
	links := s.links()
	for i := 3; i < 7; i++ {
		links[i] = failing{links[i], StepKeys}
	}
	out, err := c.Round(t.Context(), links)
	if !errors.Is(err, ErrRound) || out.Skipped {
		t.Fatal(err)
	}
	refused := 0
	for _, l := range out.Groups[0].Lapses {
		if l.Step == StepTrain && strings.Contains(l.Reason, "5 of 7 in it") {
			refused++
		}
	}
	if refused != 3 {
		t.Errorf("%d of 3 sites refuse: %v", refused, out.Groups[0].Lapses)
	}
	c.Settle()
	// and those that are lost after training count, too: nothing is opened, and the
	// round may be tried again
	links = s.links()
	for i := range 3 {
		links[i] = failing{links[i], StepTrain}
	}
	if out, err = c.Round(t.Context(), links); !errors.Is(err, ErrRound) || out.Skipped {
		t.Fatalf("%v, skipped %v", err, out.Skipped)
	}
	c.Settle()
	if _, err := c.Round(t.Context(), s.links()); err != nil || c.Rounds() != 1 {
		t.Error(err)
	}
}

func TestWithoutATranscriptARoundThatMayHaveBeenOpenedIsNotTriedAgainEither(t *testing.T) {
	s := newSchool(t, 4, 3, nil)
	c := s.coordinator(t, nil)
	links := s.links()
	for i := range 2 {
		links[i] = failing{links[i], StepReveal}
	}
	if out, err := c.Round(t.Context(), links); !errors.Is(err, ErrRound) || !out.Skipped || c.Index() != 1 {
		t.Fatalf("%v, skipped %v", err, out.Skipped)
	}
	c.Settle()
	// a site that had agreed is away now
	if _, err := c.Round(t.Context(), s.links()[:3]); err != nil {
		t.Error(err)
	}
}
