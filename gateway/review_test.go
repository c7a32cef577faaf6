package gateway

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

func TestAPersonsDecisionIsDeliveredAndProvenAndItsNoteStaysSealed(t *testing.T) {
	config := testConfig(t)
	peer := startPACS(t)
	config.Destinations = []DestinationConfig{peer.destination("pacs")}
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
	decide := func(id vigie.CaseID, d vigie.HumanDecision) error {
		d.Actor = "dr.test"
		_, err := g.Decide(context.Background(), id, d)
		return err
	}
	inReview := func(seed uint64) vigie.CaseID {
		id := mustGive(t, g.Gateway, chest(t, seed, phantom.Options{})).Case
		settled(t, g.Casebook, id, vigie.InReview)
		return id
	}

	released := inReview(1)
	if err := decide(released, vigie.HumanDecision{Action: ActionRelease}); err != nil {
		t.Fatal(err)
	}
	settled(t, g.Casebook, released, vigie.Delivered)
	if n := len(peer.received()); n != 2 {
		t.Errorf("a release delivered %d objects, want 2", n)
	}
	if err := decide(released, vigie.HumanDecision{Action: ActionReject}); !errors.Is(err, vigie.ErrTransition) {
		t.Errorf("deciding twice: %v", err)
	}

	overridden := inReview(2)
	const note = "seen-by-nobody-else"
	if err := decide(overridden, vigie.HumanDecision{Action: ActionOverride, Labels: []string{"normal"}, Note: note}); err != nil {
		t.Fatal(err)
	}
	c := settled(t, g.Casebook, overridden, vigie.Delivered)
	if c.Decision == nil || c.Decision.Note != note || c.Decision.Actor != "dr.test" {
		t.Errorf("decision %+v", c.Decision)
	}
	received := peer.received()
	if len(received) != 3 {
		t.Errorf("after an override %d objects, want one report more", len(received))
	}
	file, err := dicom.Parse(bytes.NewReader(received[ResultUID(c.ID, c.Model, RoleReport)][0]), dicom.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	// Nobody authenticated dr.test: the report names the person, and verifies nothing.
	if got := file.DataSet.String(dicom.VerificationFlag); got != "UNVERIFIED" || file.DataSet.Has(dicom.VerifyingObserverSequence) {
		t.Errorf("a report that somebody at a command line decided is %q", got)
	}
	named := false
	for set := range dataSets(file.DataSet) {
		named = named || set.String(0x0040A123) == "dr.test"
	}
	if !named {
		t.Error("the report does not name who decided")
	}

	rejected := inReview(3)
	if err := decide(rejected, vigie.HumanDecision{Action: ActionReject}); err != nil {
		t.Fatal(err)
	}
	settled(t, g.Casebook, rejected, vigie.Delivered)
	if n := len(peer.received()); n != 3 {
		t.Errorf("a rejection delivered something: %d objects", n)
	}

	mustVerify(t, g.Casebook)
	proof, err := g.Prove(context.Background(), overridden)
	if err != nil {
		t.Fatal(err)
	}
	proven, err := audit.Check(bytes.NewReader(proof), g.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, r := range proven.Records {
		found = found || r.Kind == audit.KindReviewed && r.Actor == "dr.test" && r.Decision == ActionOverride
	}
	if !found || strings.Contains(string(proof), note) {
		t.Errorf("the proof names the decision: %v; holds the note: %v", found, strings.Contains(string(proof), note))
	}
}

func TestADecisionThatDoesNotFitIsRefused(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
	review := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case
	settled(t, g.Casebook, review, vigie.InReview)
	unread := mustGive(t, g.Gateway, chest(t, 2, phantom.Options{BurnedIn: true})).Case
	settled(t, g.Casebook, unread, vigie.InReview)
	broken := mustGive(t, g.Gateway, []byte(strings.Repeat("x", 500))).Case
	settled(t, g.Casebook, broken, vigie.Quarantined)
	for name, test := range map[string]struct {
		id       vigie.CaseID
		decision vigie.HumanDecision
		want     string
	}{
		"nobody":               {review, vigie.HumanDecision{Action: ActionRelease}, "no actor"},
		"unknown action":       {review, vigie.HumanDecision{Action: "forget", Actor: "a"}, "none of release"},
		"unknown label":        {review, vigie.HumanDecision{Action: ActionOverride, Labels: []string{"fracture"}, Actor: "a"}, "normal, pneumonia"},
		"exclusive labels":     {review, vigie.HumanDecision{Action: ActionOverride, Labels: []string{"pneumonia", "normal"}, Actor: "a"}, "exclude each other"},
		"labels on a release":  {review, vigie.HumanDecision{Action: ActionRelease, Labels: []string{"normal"}, Actor: "a"}, "belong to an override"},
		"nothing to release":   {unread, vigie.HumanDecision{Action: ActionRelease, Actor: "a"}, "no answer"},
		"quarantine released":  {broken, vigie.HumanDecision{Action: ActionRelease, Actor: "a"}, "no answer"},
		"nowhere to report to": {broken, vigie.HumanDecision{Action: ActionOverride, Actor: "a"}, "reject it"},
	} {
		_, err := g.Decide(context.Background(), test.id, test.decision)
		if !errors.Is(err, ErrDecision) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want it to say %q", name, err, test.want)
		}
	}
	if _, err := g.Decide(context.Background(), broken, vigie.HumanDecision{Action: ActionReject, Actor: "a"}); err != nil {
		t.Error(err)
	}
	settled(t, g.Casebook, broken, vigie.Delivered)
}

func TestAListShowsWhatTheModelSaysFirstAndTheLogSaysToWhom(t *testing.T) {
	config := testConfig(t)
	var p atomic.Value // a float64
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, func(enclaveRequest) (float64, error) { return p.Load().(float64), nil })})
	want := map[vigie.CaseID]string{}
	for seed, c := range map[uint64]struct {
		p    float64
		o    phantom.Options
		text string
	}{1: {0.97, phantom.Options{}, "pneumonia 0.970"}, 2: {0.03, phantom.Options{}, "normal 0.970"}, 3: {0.5, phantom.Options{BurnedIn: true}, "–"}} {
		p.Store(c.p)
		id := mustGive(t, g.Gateway, chest(t, seed, c.o)).Case
		settled(t, g.Casebook, id, vigie.Delivered, vigie.InReview)
		want[id] = c.text
	}
	cases, err := g.Find(t.Context(), Query{}, "dr.test")
	if err != nil || len(cases) != 3 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, c := range cases {
		if got := FindingText(&c); got != want[c.ID] || c.Verdict == nil || c.Finding != nil && c.Finding.Explanation != nil {
			t.Errorf("case %s is listed as %q with verdict %v, want %q", c.ID, got, c.Verdict, want[c.ID])
		}
	}
	if _, err := g.Find(t.Context(), Query{States: []string{"quarantined"}}, "dr.test"); err != nil {
		t.Error(err)
	}
	seen := recordsOf(t, g.Casebook, audit.KindViewed)
	if len(seen) != 1 || seen[0].Actor != "dr.test" || seen[0].Decision != "list: 2" {
		t.Errorf("records %+v, want one of the two findings shown", seen)
	}
	mustVerify(t, g.Casebook)
}

func TestAnOverlayOfWhatWasNotAnalysedSaysWhatToDo(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
	id := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{BurnedIn: true})).Case
	settled(t, g.Casebook, id, vigie.InReview)
	_, err := g.Overlay(t.Context(), id, "dr.test")
	if !errors.Is(err, ErrNotAnalysed) {
		t.Fatalf("got %v, want ErrNotAnalysed", err)
	}
	for _, want := range []string{string(vigie.ReasonBurnedIn), "vigie case identify " + string(id), "override or reject"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: lacks %q", err, want)
		}
	}
}

func TestWhoAsksForAnIdentityIsInTheLogBeforeItIsShown(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
	identity := phantom.Identity{Name: "DURAND^ELISE", ID: "PID-4711", Accession: "ACC-9"}
	id := mustGive(t, g.Gateway, chest(t, 7, phantom.Options{Identity: identity})).Case
	settled(t, g.Casebook, id, vigie.InReview)
	if _, err := g.Identify(t.Context(), id, " "); err == nil {
		t.Fatal("an identity was shown to nobody in particular")
	}
	who, err := g.Identify(t.Context(), id, "dr.test")
	if err != nil {
		t.Fatal(err)
	}
	if who.PatientName != identity.Name || who.PatientID != identity.ID || who.AccessionNumber != identity.Accession || who.StudyInstanceUID == "" {
		t.Errorf("identity %+v", who)
	}
	if _, err := g.Gateway.log.Publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	proof, err := g.Prove(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	proven, err := audit.Check(bytes.NewReader(proof), g.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	last := proven.Records[len(proven.Records)-1]
	if last.Kind != audit.KindViewed || last.Actor != "dr.test" || last.Decision != "identify" {
		t.Errorf("the last record is %+v", last)
	}
	if strings.Contains(g.log.String(), "DURAND") || bytes.Contains(proof, []byte("DURAND")) {
		t.Error("the name is in the log")
	}
}
