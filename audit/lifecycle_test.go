package audit_test

import (
	"context"
	"errors"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
	"pgregory.net/rapid"
)

// TestCasesAndLogAgreeWhateverIsTried drives random steps, allowed and not,
// committed and given up, against a model of what must come of them, on both
// databases; the log must verify at every moment, every earlier checkpoint
// must remain a prefix of it, and every case must be provable.
func TestCasesAndLogAgreeWhateverIsTried(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		l := newLog(t, s)
		states := make(map[vigie.CaseID]vigie.State) // the model; it lives on over all runs
		var ids []vigie.CaseID
		var witnesses [][]byte
		records := int64(0)
		abandon := errors.New("given up")
		rapid.Check(t, func(r *rapid.T) {
			r.Repeat(map[string]func(*rapid.T){
				"receive": func(r *rapid.T) {
					id := take(t, s, l)
					states[id], ids = vigie.Received, append(ids, id)
					records++
				},
				"step": func(r *rapid.T) {
					if len(ids) == 0 {
						r.Skip("no case yet")
					}
					id := rapid.SampledFrom(ids).Draw(r, "case")
					from := rapid.SampledFrom(vigie.States).Draw(r, "from")
					to := rapid.SampledFrom(vigie.States).Draw(r, "to")
					givenUp := rapid.IntRange(0, 4).Draw(r, "give up") == 0
					err := s.Update(ctx, func(tx *store.Tx) error {
						if _, err := tx.Advance(id, from, to, nil); err != nil {
							return err
						}
						if _, err := l.Append(tx, audit.Record{Kind: audit.KindTriaged, Case: id, From: from, To: to}); err != nil {
							return err
						}
						if givenUp {
							return abandon
						}
						return nil
					})
					allowed := states[id] == from && from.CanBecome(to)
					switch {
					case !allowed && !errors.Is(err, vigie.ErrTransition):
						r.Fatalf("from %q to %q in state %q: %v", from, to, states[id], err)
					case allowed && givenUp && err != abandon, allowed && !givenUp && err != nil:
						r.Fatalf("from %q to %q: %v", from, to, err)
					case allowed && !givenUp:
						states[id] = to
						records++
					}
				},
				"publish": func(r *rapid.T) {
					if c := publish(t, l); c.Size != records {
						r.Fatalf("%d records are signed, %d were committed", c.Size, records)
					} else if len(witnesses) < 50 {
						witnesses = append(witnesses, c.Note)
					}
				},
			})
			report := verify(t, s, l, witnesses...)
			if !report.OK() || report.Size != records || report.Witnesses != len(witnesses) || report.Cases != len(ids) {
				r.Fatalf("after %d records: %+v", records, report)
			}
		})
		publish(t, l)
		for _, id := range ids[:min(len(ids), 20)] {
			prove(t, s, l, id)
		}
		err := s.View(ctx, func(tx *store.Tx) error {
			for id, want := range states {
				if c, err := tx.Case(id); err != nil || c.State != want {
					t.Errorf("case %s: %v, want %q", id, err, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
