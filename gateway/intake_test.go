package gateway

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

func mustGive(t testing.TB, g *Gateway, data []byte) intakeOutcome {
	t.Helper()
	outcome, err := give(t, g, data)
	if err != nil {
		t.Fatal(err)
	}
	return outcome
}

func mustVerify(t testing.TB, b *Casebook) {
	t.Helper()
	report, err := b.VerifyLog(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("the log: %v", p)
	}
}

func objectsOf(t testing.TB, b *Casebook, filter store.ObjectFilter) (objects []store.Object) {
	t.Helper()
	if err := b.store.View(context.Background(), func(tx *store.Tx) (err error) {
		objects, err = tx.Objects(filter)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return objects
}

func codesOf(c *vigie.Case) string {
	if c.Verdict == nil {
		return ""
	}
	var s []string
	for _, r := range c.Verdict.Reasons {
		s = append(s, string(r.Code))
	}
	return strings.Join(s, " ")
}

func TestWhatIsReceivedBecomesOfItWhatTriageSays(t *testing.T) {
	config := testConfig(t)
	var answer atomic.Value // a float64; a job that is tried again reads it while the test goes on
	enclave := newStandIn(t, config.Model, func(enclaveRequest) (float64, error) { return answer.Load().(float64), nil })
	g := start(t, config, Options{Diagnoser: enclave})
	ct, err := phantom.AbdomenCT(1, phantom.Options{})
	if err != nil {
		t.Fatal(err)
	}
	whole := chest(t, 20, phantom.Options{})
	without := func(seed uint64, tag dicom.Tag) []byte {
		file, err := phantom.Chest(seed, phantom.Options{Rows: 128, Columns: 128})
		if err != nil {
			t.Fatal(err)
		}
		file.DataSet.PutString(tag, "")
		return written(t, file)
	}
	for i, test := range []struct {
		name   string
		answer float64
		data   []byte
		state  vigie.State
		reason vigie.ReasonCode
		asked  bool
	}{
		{"clear", 0.03, chest(t, 1, phantom.Options{}), vigie.Delivered, "", true},
		{"positive", 0.97, chest(t, 2, phantom.Options{}), vigie.Delivered, "", true},
		{"borderline", 0.5, chest(t, 3, phantom.Options{}), vigie.InReview, vigie.ReasonBorderline, true},
		{"adult", 0.03, chest(t, 4, phantom.Options{Age: "061Y"}), vigie.InReview, vigie.ReasonAge, true},
		{"no view", 0.03, chest(t, 5, phantom.Options{View: "-"}), vigie.InReview, vigie.ReasonView, true},
		{"burned in", 0.03, chest(t, 6, phantom.Options{BurnedIn: true}), vigie.InReview, vigie.ReasonBurnedIn, false},
		{"another body part", 0.03, chest(t, 7, phantom.Options{BodyPart: "HAND"}), vigie.InReview, vigie.ReasonBodyPart, false},
		{"computed tomography", 0.03, written(t, ct), vigie.InReview, vigie.ReasonModality, false},
		{"no patient ID", 0.03, without(30, dicom.PatientID), vigie.InReview, ReasonNoPatient, true},
		{"no study", 0.03, without(31, dicom.StudyInstanceUID), vigie.Quarantined, ReasonUnnamed, false},
		{"no series", 0.03, without(32, dicom.SeriesInstanceUID), vigie.Quarantined, ReasonUnnamed, false},
		{"truncated in the pixels", 0.03, whole[:len(whole)-1000], vigie.Quarantined, vigie.ReasonUnreadable, false},
		{"truncated in the attributes", 0.03, chest(t, 21, phantom.Options{})[:900], vigie.Quarantined, vigie.ReasonUnreadable, false},
		{"not DICOM", 0.03, []byte(strings.Repeat("hello ", 100)), vigie.Quarantined, vigie.ReasonUnreadable, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer.Store(test.answer)
			before := len(enclave.requests())
			outcome := mustGive(t, g.Gateway, test.data)
			c := settled(t, g.Casebook, outcome.Case, vigie.Delivered, vigie.InReview, vigie.Quarantined)
			if c.State != test.state || !strings.Contains(codesOf(c), string(test.reason)) {
				t.Errorf("case %d is %s for %q, want %s for %s", i, c.State, codesOf(c), test.state, test.reason)
			}
			if asked := len(enclave.requests()) > before; asked != test.asked {
				t.Errorf("the enclave was asked: %v, want %v", asked, test.asked)
			}
		})
	}
	mustVerify(t, g.Casebook)
}

func TestTheEnclaveSeesThePseudonymAndNoIdentity(t *testing.T) {
	config := testConfig(t)
	enclave := newStandIn(t, config.Model, always(0.03))
	g := start(t, config, Options{Diagnoser: enclave})
	data := chest(t, 1, phantom.Options{Identity: phantom.Identity{Name: "Quimperlé^Aurélie", ID: "PHX-4711"}})
	c := settled(t, g.Casebook, mustGive(t, g.Gateway, data).Case, vigie.Delivered)
	asked := enclave.requests()
	if len(asked) != 1 || asked[0].Patient != c.Patient {
		t.Fatalf("asked %d times about %v", len(asked), asked)
	}
	for _, planted := range []string{"Quimperl", "Aur", "PHX-4711", "Delacroix", "Saint-"} {
		if strings.Contains(string(asked[0].DICOM), planted) {
			t.Errorf("the copy holds %q", planted)
		}
	}
}

func TestTheSameObjectAgainIsAcknowledgedAndMakesNothing(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	data := chest(t, 1, phantom.Options{})
	first := mustGive(t, g.Gateway, data)
	again := mustGive(t, g.Gateway, data)
	if !again.Duplicate || again.Case != first.Case {
		t.Errorf("again: %+v after %+v", again, first)
	}
	if n := len(objectsOf(t, g.Casebook, store.ObjectFilter{Kind: kindReceived})); n != 1 {
		t.Errorf("%d objects are kept, want 1", n)
	}
	mustVerify(t, g.Casebook)
}

func TestAnotherObjectUnderTheSameUIDIsKeptAndReferred(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	data := chest(t, 1, phantom.Options{})
	first := mustGive(t, g.Gateway, data)
	settled(t, g.Casebook, first.Case, vigie.Delivered)
	other := append([]byte(nil), data...)
	other[len(other)-1] ^= 1
	second := mustGive(t, g.Gateway, other)
	if second.Case == first.Case || second.Duplicate {
		t.Fatalf("the second object: %+v", second)
	}
	c := settled(t, g.Casebook, second.Case, vigie.InReview)
	if !strings.Contains(codesOf(c), string(ReasonConflict)) {
		t.Errorf("reasons: %s", codesOf(c))
	}
	if third := mustGive(t, g.Gateway, other); !third.Duplicate || third.Case != second.Case {
		t.Errorf("the second object again: %+v", third)
	}
	if n := len(objectsOf(t, g.Casebook, store.ObjectFilter{Kind: kindReceived})); n != 2 {
		t.Errorf("%d objects are kept, want both", n)
	}
	if kept := settled(t, g.Casebook, first.Case, vigie.Delivered); kept.Input == c.Input {
		t.Error("the first object was overwritten")
	}
}

func TestASeriesOutsideTheManifestIsOneReview(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	cases := map[vigie.CaseID]int{}
	var first vigie.CaseID
	for slice := range 5 {
		ct, err := phantom.AbdomenCT(1, phantom.Options{Instance: slice})
		if err != nil {
			t.Fatal(err)
		}
		outcome := mustGive(t, g.Gateway, written(t, ct))
		cases[outcome.Case]++
		if slice == 0 {
			first = outcome.Case
		}
	}
	if len(cases) != 1 || cases[first] != 5 {
		t.Errorf("five slices made the cases %v", cases)
	}
	if n := len(objectsOf(t, g.Casebook, store.ObjectFilter{Case: first, Kind: kindReceived})); n != 5 {
		t.Errorf("%d objects are kept, want 5", n)
	}
	settled(t, g.Casebook, first, vigie.InReview)
	if _, err := g.Decide(context.Background(), first, vigie.HumanDecision{Action: ActionReject, Actor: "dr.test"}); err != nil {
		t.Fatal(err)
	}
	// Once somebody decided, a late slice is a new question.
	late, err := phantom.AbdomenCT(1, phantom.Options{Instance: 9})
	if err != nil {
		t.Fatal(err)
	}
	if outcome := mustGive(t, g.Gateway, written(t, late)); outcome.Case == first {
		t.Error("a late slice joined a case that was decided")
	}
	mustVerify(t, g.Casebook)
}

func TestAnObjectThatContradictsItsTransportIsQuarantined(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	s, err := g.newSpool("dimse")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Discard()
	if _, err := s.Write(chest(t, 1, phantom.Options{})); err != nil {
		t.Fatal(err)
	}
	outcome, err := g.receive(context.Background(), vigie.Source{Protocol: "dimse"}, s,
		announced{sopClass: "1.2.840.10008.5.1.4.1.1.1", sopInstance: "1.2.3.4", transferSyntax: dicom.ExplicitLittleEndian})
	if err != nil {
		t.Fatal(err)
	}
	settled(t, g.Casebook, outcome.Case, vigie.Quarantined)
}

func TestAnObjectOverTheLimitIsRefusedAndLeavesNothing(t *testing.T) {
	config := testConfig(t)
	config.Limits.ObjectSize = 1 << 20
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	if _, err := give(t, g.Gateway, make([]byte, 2<<20)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if n := blobFiles(t, config); n != 0 {
		t.Errorf("%d files are left", n)
	}
}
