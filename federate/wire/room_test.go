package wire

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"

	"github.com/vigie/vigie/federate"
)

func TestABulkPartThatNobodyAskedForIsNotTaken(t *testing.T) {
	st := newStage(t, nil)
	want := noise(100)
	digest := Bytes(want).Digest
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go st.Ask(ctx, "lyon", Call{ID: "call-1", Run: "1", Kind: "test", Body: json.RawMessage(`{}`)})
	until(t, "call that waits", func() bool { return st.waiting("lyon", "call-1") != nil })
	lyon := st.raw(st.authority.issue(t, SiteID("north", "lyon")), true)
	for _, length := range []string{"0", "100"} {
		if status := lyon.status("HEAD", upPath+"call-1/"+hex.EncodeToString(digest[:]), map[string]string{lengthHeader: length}, nil); status != 413 {
			t.Errorf("%s bytes: status %d", length, status)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(st.Dir, "*", "*")); len(left) > 0 {
		t.Errorf("in the spool: %v", left)
	}
	// and a site that brings one all the same has failed
	st.play(st.client("oslo"), func(_ context.Context, c Call) (Reply, error) {
		return Reply{Body: c.Body, Bulk: Bytes(want)}, nil
	})
	if _, err := st.Ask(t.Context(), "oslo", Call{Run: "1", Kind: "test", Body: json.RawMessage(`{}`)}); !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
}

func TestThereIsRoomForAVectorInTheStepThatHasOne(t *testing.T) {
	l := &link{}
	weights := &federate.Weights{Variables: make([]float32, 1000), Control: make([]float32, 400)}
	for _, step := range []federate.Step{federate.StepKeys, federate.StepShares, federate.StepAccept, federate.StepConfirm, federate.StepReveal, federate.StepEnd} {
		if room := l.room(federate.Order{Step: step}); room != 0 {
			t.Errorf("%s: %d bytes", step, room)
		}
	}
	if room := l.room(federate.Order{Step: federate.StepTrain, Weights: weights}); room != 4*1402 {
		t.Errorf("training: %d bytes", room)
	}
	l.room(federate.Order{Step: federate.StepKeys, Question: &federate.Question{Numbers: 5000}})
	if room := l.room(federate.Order{Step: federate.StepTrain, Weights: weights}); room != 4*3*5000 {
		t.Errorf("a question: %d bytes", room)
	}
	l.room(federate.Order{Step: federate.StepKeys})
	if room := l.room(federate.Order{Step: federate.StepTrain, Weights: weights}); room != 4*1402 {
		t.Errorf("training again: %d bytes", room)
	}
}

func TestWhatASiteDoesNotAcceptIsNotFetched(t *testing.T) {
	st := newStage(t, nil)
	c := st.client("lyon")
	c.Accepts = func(c Call) bool { return c.Bulk.Length == 10 }
	st.play(c, func(_ context.Context, c Call) (Reply, error) {
		if c.Bulk.None() {
			return Reply{}, ErrRefused
		}
		return Reply{Body: c.Body}, nil
	})
	for length, want := range map[int]error{10: nil, 11: ErrRefused} {
		if _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`), Bulk: Bytes(noise(length))}); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(c.Dir, "*")); len(left) != 1 {
		t.Errorf("at the site: %v", left)
	}
}
