package audit_test

import (
	"context"
	"errors"
	"testing"

	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

// rewrite does what an administrator of the database can do without any key:
// a consistent log with another record, and no checkpoint to contradict it.
func rewrite(t *testing.T, s *store.Store) {
	t.Helper()
	recompute(t, s)
	if err := s.Update(context.Background(), func(tx *store.Tx) error {
		_, err := tx.Exec("DELETE FROM audit_checkpoints")
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestARewrittenLogIsNotSignedThoughItsCheckpointsAreGone(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		l := newLog(t, s)
		populate(t, s, l)
		rewrite(t, s)
		if _, err := l.Publish(context.Background()); !errors.Is(err, audit.ErrForked) {
			t.Errorf("the process that signed before: %v, want ErrForked", err)
		}
	})
}

func TestTheTilesOfAFormerRunHoldTheLogToWhatItSigned(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		dir := t.TempDir()
		l := newLog(t, s)
		if signed, err := l.Remember(dir); err != nil || signed != nil {
			t.Fatalf("an empty folder gives %q, %v", signed, err)
		}
		_, checkpoints := populate(t, s, l)
		newest := checkpoints[len(checkpoints)-1]
		if err := l.WriteTiles(context.Background(), dir, newest); err != nil {
			t.Fatal(err)
		}
		honest := newLog(t, s)
		if signed, err := honest.Remember(dir); err != nil || string(signed) != string(newest.Note) {
			t.Fatalf("Remember gives %q, %v", signed, err)
		}
		take(t, s, honest)
		publish(t, honest)

		rewrite(t, s)
		next := newLog(t, s)
		if _, err := next.Remember(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := next.Publish(context.Background()); !errors.Is(err, audit.ErrForked) {
			t.Errorf("the next process: %v, want ErrForked", err)
		}
		strangerKey, _ := testKeys(t, origin, 9)
		stranger, err := audit.New(s, strangerKey)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stranger.Remember(dir); err == nil {
			t.Error("a log with another key takes the folder for its own")
		}
	})
}
