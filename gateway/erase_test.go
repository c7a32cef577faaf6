package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

// anna and bruno are two patients of one site.
var anna, bruno = phantom.Options{Identity: phantom.Identity{Name: "A", ID: "1"}}, phantom.Options{Identity: phantom.Identity{Name: "B", ID: "2"}}

func erase(t *testing.T, b *Casebook, id vigie.CaseID) Erasure {
	t.Helper()
	done, err := b.Erase(context.Background(), id, "dpo.test")
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func TestAnErasedPatientIsGoneAndIsNotTakenForADuplicate(t *testing.T) {
	config := testConfig(t)
	peer := startPACS(t)
	config.Destinations = []DestinationConfig{peer.destination("pacs")}
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.97))})
	data := chest(t, 1, anna)
	first := settled(t, g.Casebook, mustGive(t, g.Gateway, data).Case, vigie.Delivered)
	other := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 2, bruno)).Case, vigie.Delivered)
	files := blobFiles(t, config)

	// As `vigie case erase` does: another process beside the running gateway,
	// which has the key in memory.
	book, err := OpenCasebook(context.Background(), config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
	if _, err := book.Erase(context.Background(), first.ID, " "); err == nil {
		t.Error("nobody in particular erased a patient")
	}
	planned, err := book.Erasable(context.Background(), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	done := erase(t, book, first.ID)
	if len(done.Cases) != 1 || done.Objects != 3 || len(planned.Cases) != 1 || planned.Objects != 3 {
		t.Errorf("planned %+v, done %+v, want one case with an image, a report and an overlay", planned, done)
	}
	if n := blobFiles(t, config); n != files-3 {
		t.Errorf("%d files are left, want %d", n, files-3)
	}
	c, err := g.Case(context.Background(), first.ID)
	if err != nil || c.Erased.IsZero() || c.Finding != nil || c.Verdict != nil {
		t.Errorf("the erased case is shown as %+v, %v", c, err)
	}
	for what, err := range map[string]error{
		"identify": second(g.Identify(context.Background(), first.ID, "dr.test")), "overlay": second(g.Overlay(context.Background(), first.ID, "dr.test")),
		"decide": second(g.Decide(context.Background(), first.ID, vigie.HumanDecision{Action: ActionReject, Actor: "dr.test"})),
	} {
		if !errors.Is(err, keys.ErrErased) {
			t.Errorf("%s: %v, want ErrErased", what, err)
		}
	}
	if _, err := g.readObject(context.Background(), other.Patient, &objectsOf(t, g.Casebook, store.ObjectFilter{Case: other.ID, Kind: kindReceived})[0]); err != nil {
		t.Errorf("another patient's image: %v", err)
	}

	// The patient has a key again, and the gateway still has the one before.
	if key, err := book.ring.DataKey(context.Background(), first.Patient); err != nil || key.Generation != 2 {
		t.Fatalf("key %d, %v", key.Generation, err)
	}
	again := mustGive(t, g.Gateway, data)
	if again.Duplicate || again.Case == first.ID {
		t.Fatalf("the same object after the erasure: %+v, want a new case", again)
	}
	back := settled(t, g.Casebook, again.Case, vigie.Delivered)
	if back.Patient != first.Patient || back.Finding == nil {
		t.Errorf("the patient who came back: %+v", back)
	}
	object := objectsOf(t, g.Casebook, store.ObjectFilter{Case: back.ID, Kind: kindReceived})[0]
	if kept, err := book.readObject(context.Background(), back.Patient, &object); err != nil || !bytes.Equal(kept, data) {
		t.Errorf("what was taken after the erasure cannot be read by another process: %v", err)
	}
	if again := mustGive(t, g.Gateway, data); !again.Duplicate || again.Case != back.ID {
		t.Errorf("and once more: %+v, want a duplicate", again)
	}
	if done := erase(t, book, first.ID); len(done.Cases) != 1 || done.Cases[0] != back.ID {
		t.Errorf("erasing again: %+v, want the new case", done)
	}
	if done := erase(t, book, first.ID); len(done.Cases) != 0 {
		t.Errorf("and again: %+v, want nothing left", done)
	}
	seen := recordsOf(t, g.Casebook, audit.KindErased)
	if len(seen) != 2 || seen[0].Case != first.ID || seen[0].Patient != first.Patient || seen[0].Actor != "dpo.test" {
		t.Errorf("records %+v", seen)
	}
	mustVerify(t, g.Casebook)
}

// second is the error of a call.
func second[T any](_ T, err error) error { return err }

func TestACaseErasedWhileItIsAnalysedKeepsNothing(t *testing.T) {
	config := testConfig(t)
	asked, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, func(enclaveRequest) (float64, error) {
		if once.CompareAndSwap(false, true) {
			close(asked)
			<-release
		}
		return 0.97, nil
	})})
	id := mustGive(t, g.Gateway, chest(t, 1, anna)).Case
	<-asked
	erase(t, g.Casebook, id)
	close(release)
	eventually(t, "its job to end", func() bool {
		var counts map[string]int64
		if err := g.store.View(context.Background(), func(tx *store.Tx) (err error) { counts, err = tx.JobCounts(); return err }); err != nil {
			t.Fatal(err)
		}
		return counts["completed"] == 1
	})
	c, err := g.Case(context.Background(), id)
	if err != nil || c.State != vigie.Received || c.Finding != nil || len(objectsOf(t, g.Casebook, store.ObjectFilter{Case: id})) != 0 {
		t.Errorf("after its analysis the erased case is %+v, %v", c, err)
	}
	mustVerify(t, g.Casebook)
}

func TestACaseErasedBeforeItsDeliveryIsNotDelivered(t *testing.T) {
	config := testConfig(t)
	peer := startPACS(t)
	config.Destinations = []DestinationConfig{peer.destination("pacs")}
	config.Limits.DeliveryRetry = 50 * time.Millisecond
	peer.refuse.Store(0xA700)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.97))})
	id := mustGive(t, g.Gateway, chest(t, 1, anna)).Case
	eventually(t, "a report to be made", func() bool {
		return len(objectsOf(t, g.Casebook, store.ObjectFilter{Case: id, Kind: kindReport})) > 0
	})
	erase(t, g.Casebook, id)
	time.Sleep(500 * time.Millisecond) // what is on its way already is refused; this is about what waits
	peer.refuse.Store(0)
	eventually(t, "its jobs to end", func() bool {
		var counts map[string]int64
		if err := g.store.View(context.Background(), func(tx *store.Tx) (err error) { counts, err = tx.JobCounts(); return err }); err != nil {
			t.Fatal(err)
		}
		return counts["completed"] == 2 && len(counts) == 1
	})
	if c, err := g.Case(context.Background(), id); err != nil || c.State != vigie.Released {
		t.Errorf("the case is %+v, %v", c, err)
	}
	mustVerify(t, g.Casebook)
}

func TestNothingJoinsAnErasedCase(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	slice := func(instance int) []byte {
		ct, err := phantom.AbdomenCT(1, phantom.Options{Instance: instance})
		if err != nil {
			t.Fatal(err)
		}
		return written(t, ct)
	}
	first := mustGive(t, g.Gateway, slice(0))
	settled(t, g.Casebook, first.Case, vigie.InReview)
	erase(t, g.Casebook, first.Case)
	if outcome := mustGive(t, g.Gateway, slice(1)); outcome.Joined || outcome.Case == first.Case {
		t.Errorf("a slice after the erasure: %+v", outcome)
	}
}
