package consortium

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/federate"
)

const waitingRules = `approve: {scientists: [Dr Example], purposes: [bright sides], algorithms: [fedavg], max_rounds: 50, without_privacy: true, tasks: [evaluate]}
`

// grown is the consortium's list with so many sites more, as one who has stolen its
// keys would sign it.
func (n *north) grown(more int) signedRoster {
	n.t.Helper()
	r, err := n.consortium.roster()
	if err != nil {
		n.t.Fatal(err)
	}
	next := Roster{Consortium: r.Consortium, Version: r.Version + 1, Previous: r.digest, Policy: r.Policy, Time: r.Time, Sites: r.Sites}
	for i := range more {
		key := ed25519.NewKeyFromSeed([]byte(fmt.Sprintf("%032d", i)))
		next.Sites = append(next.Sites, Member{Name: fmt.Sprintf("z-%02d", i), Key: key.Public().(ed25519.PublicKey), TLS: Digest{byte(i + 1)}, Time: r.Time})
	}
	signed, err := signRoster(n.consortium.signer, next)
	if err != nil {
		n.t.Fatal(err)
	}
	return signed
}

func TestAnApprovedJobIsNotFollowedWithSitesThatWereInventedSince(t *testing.T) {
	n := newNorth(t, nil)
	lyon := n.join("lyon")
	for _, name := range []string{"metz", "nantes", "rouen"} {
		n.join(name)
	}
	listed, err := n.consortium.roster()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := lyon.take(listed.document); err != nil {
		t.Fatal(err)
	}
	receive := func(run string) signedJob {
		t.Helper()
		j := Job{Version: 1, Run: run, Consortium: "north", Policy: listed.Policy, Scientist: "Dr Example", Purpose: "bright sides", Time: time.Now().UTC(),
			Terms: federate.DefaultTerms(federation("north", run)), Model: Model{Bytes: 10, Example: []int64{4}, Outputs: 2}}
		j.Terms.Rounds = 5
		document, err := sign(n.consortium.signer, JobType, j)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := lyon.receive(document, func(string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	job := receive("first")
	n.rules(lyon, waitingRules)
	if d, _, err := lyon.standing(job); err != nil || d != nil {
		t.Fatalf("a standing approval covers a list of sites that nobody has seen: %+v, %v", d, err)
	}
	if _, err := lyon.Decide("first", Approved, "Dr Owner", ""); err != nil {
		t.Fatal(err)
	}
	if d, _, err := lyon.standing(receive("second")); err != nil || d == nil || d.Verdict != Approved {
		t.Fatalf("of the sites that were seen the standing approval is not: %+v, %v", d, err)
	}
	seized := n.grown(12)
	w := &worker{Site: lyon, RunOptions: RunOptions{Logger: slog.New(slog.DiscardHandler)}, runs: map[string]*siteRun{}}
	w.RunOptions.Trainer = func(context.Context, Job, string) (federate.Trainer, func() error, error) {
		return nil, nil, errors.New("here it would train")
	}
	enter := func(group ...string) error {
		r, err := w.approved("first")
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.ready(t.Context(), r, federate.Order{Step: federate.StepKeys, Round: 1, Group: group})
		if err == nil || strings.Contains(err.Error(), "here it would train") {
			return nil
		}
		return err
	}
	if err := enter("lyon", "metz", "nantes"); err != nil {
		t.Fatalf("before: %v", err)
	}
	if _, _, err := lyon.take(seized.document); err != nil {
		t.Fatal(err)
	}
	alone := []string{"lyon"}
	for _, m := range seized.Sites[4:] {
		alone = append(alone, m.Name)
	}
	err = enter(alone...)
	if !errors.Is(err, ErrPolicy) || !strings.Contains(err.Error(), "z-00") || !strings.Contains(err.Error(), "approve again") {
		t.Errorf("a round alone with invented sites: %v", err)
	}
	if err := outward(err); !strings.Contains(err.Error(), "z-00") {
		t.Errorf("the consortium is not told why: %v", err)
	}
	if err := enter("lyon", "metz", "nantes"); err != nil {
		t.Errorf("with sites of before: %v", err)
	}
	if d, _, err := lyon.standing(receive("third")); err != nil || d != nil {
		t.Errorf("a standing approval covers invented sites: %+v, %v", d, err)
	}
	jobs, err := lyon.Jobs()
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range jobs {
		if at.Why == "" || at.Run == "first" && len(at.Strangers) != 12 || len(at.Members) != 16 {
			t.Errorf("the data owner is not told: %+v", at)
		}
	}

	// one that comes back with other keys is another one
	other := n.grown(0).Roster
	other.Version, other.Previous = seized.Version+1, seized.digest
	other.Sites[1].Key, other.Sites[1].TLS = ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey), Digest{99}
	changed, err := signRoster(n.consortium.signer, other)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := lyon.take(changed.document); err != nil {
		t.Fatal(err)
	}
	if err := enter("lyon", other.Sites[1].Name, "rouen"); !errors.Is(err, ErrPolicy) {
		t.Errorf("with new keys: %v", err)
	}
	if _, err := lyon.Decide("first", Approved, "Dr Owner", ""); err != nil {
		t.Fatal(err)
	}
	if err := enter("lyon", other.Sites[1].Name, "rouen"); err != nil {
		t.Errorf("approved again: %v", err)
	}
	if _, _, err := lyon.take(func() []byte {
		r := other
		r.Version, r.Previous = changed.Version+1, changed.digest
		r.Sites = append(r.Sites[:len(r.Sites):len(r.Sites)], seized.Sites[4:]...)
		s, err := signRoster(n.consortium.signer, r)
		if err != nil {
			t.Fatal(err)
		}
		return s.document
	}()); err != nil {
		t.Fatal(err)
	}
	if err := enter(alone...); !errors.Is(err, ErrPolicy) {
		t.Errorf("invented once more: %v", err)
	}
	n.rules(lyon, waitingRules+"joins: accept\n")
	if err := enter(alone...); err != nil {
		t.Errorf("where the data owner takes the consortium's word: %v", err)
	}
	if _, err := ParseRules([]byte("joins: perhaps\n")); !errors.Is(err, ErrPolicy) {
		t.Errorf("a rule that is none: %v", err)
	}
}

func TestARunGoesOnWithoutASiteThatHasJoinedUntilTheOthersApproveAgain(t *testing.T) {
	n := newNorth(t, nil)
	n.network()
	first, second := make(chan struct{}), make(chan struct{})
	var all []*Site
	for _, name := range []string{"lyon", "metz", "nantes"} {
		all = append(all, n.join(name))
	}
	for _, s := range all {
		o := RunOptions{}
		if s.Name == "lyon" { // holds rounds up until all has changed
			o = n.held(s, func(ctx context.Context, round int) {
				for round == 3 && ctx.Err() == nil { // until the consortium has heard from brest
					if _, err := os.Stat(n.consortium.runsDir("long", consents, "brest.json")); err == nil {
						break
					}
					pause(ctx, glance/10)
				}
				for at, gate := range map[int]chan struct{}{2: first, 5: second} {
					if round >= at {
						select {
						case <-gate:
						case <-ctx.Done():
						}
					}
				}
			})
		}
		n.work(s, o)
	}
	n.ask("long", 8, nil)
	approve := func() {
		t.Helper()
		for _, s := range all {
			n.until("the job is at "+s.Name, func() bool {
				_, err := s.Decide("long", Approved, "Dr Owner", "")
				return err == nil
			})
		}
	}
	approve()
	n.until("two rounds have ended", func() bool { s, _, err := n.consortium.Status("long"); return err == nil && s.Round == 2 })
	brest := n.sites("brest")[0]
	n.work(brest, RunOptions{})
	n.until("brest is connected", func() bool { return n.connected() == 4 })
	close(first)
	var s Status
	n.until("five rounds have ended", func() bool {
		var err error
		s, _, err = n.consortium.Status("long")
		return err == nil && s.Round == 5
	})
	if s.Sites[0].Name != "brest" || s.Sites[0].Sums != 0 || s.Sites[0].Lost != 0 {
		t.Errorf("brest takes part, and nobody has approved it: %+v", s.Sites[0])
	}
	n.until("brest is left out", func() bool {
		s, _, err := n.consortium.Status("long")
		return err == nil && s.Sites[0].Verdict == Approved && s.Sites[0].LeftOut != ""
	})
	for _, s := range s.Sites[1:] {
		if s.Sums != 5 || s.Lost != 0 {
			t.Errorf("%s was in %d sums, and lost in %d", s.Name, s.Sums, s.Lost)
		}
	}
	n.until("the others have the list", func() bool {
		for _, s := range all {
			if r, err := s.Roster(); err != nil || len(r.Sites) != 4 {
				return false
			}
		}
		return true
	})
	approve()
	n.until("the consortium has heard", func() bool {
		for _, s := range all {
			document, err := readLimited(n.consortium.runsDir("long", consents, s.Name+".json"), maxDocument)
			if err != nil {
				return false
			}
			d, _, _, err := verify[Decision](document, DecisionType, nil)
			if err != nil || len(d.Members) != 4 {
				return false
			}
		}
		return true
	})
	close(second)
	s = n.stands("long", Done)
	for _, s := range s.Sites {
		if s.Name == "brest" && s.Sums < 1 || s.Name != "brest" && s.Sums != 8 {
			t.Errorf("%s was in %d sums", s.Name, s.Sums)
		}
	}
}
