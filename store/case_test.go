package store_test

import (
	"context"
	"errors"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

func newCase() vigie.Case {
	id := store.NewCaseID()
	return vigie.Case{
		ID: id, Patient: "patient-1", Study: "2.25.1", Series: "2.25.2", Instance: vigie.InstanceUID("2.25.3." + string(id)),
		State: vigie.Received, Source: vigie.Source{Protocol: "dimse", AETitle: "PACS"}, Input: vigie.DigestOf([]byte(id)),
	}
}

func TestACaseWalksOneWayAndAStaleStepIsRefused(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		c := newCase()
		if err := s.Update(ctx, func(tx *store.Tx) error { return tx.CreateCase(c) }); err != nil {
			t.Fatal(err)
		}
		advance := func(from, to vigie.State) error {
			return s.Update(ctx, func(tx *store.Tx) error {
				_, err := tx.Advance(c.ID, from, to, func(c *vigie.Case) error { c.Model = "m"; return nil })
				return err
			})
		}
		if err := advance(vigie.Received, vigie.Diagnosed); err != nil {
			t.Fatal(err)
		}
		for _, step := range [][2]vigie.State{{vigie.Received, vigie.Diagnosed}, {vigie.Diagnosed, vigie.Delivered}, {vigie.Diagnosed, vigie.Received}, {vigie.Released, vigie.Delivered}} {
			if err := advance(step[0], step[1]); !errors.Is(err, vigie.ErrTransition) {
				t.Errorf("%v: %v, want ErrTransition", step, err)
			}
		}
		err := s.View(ctx, func(tx *store.Tx) error {
			got, err := tx.Case(c.ID)
			if err == nil && (got.State != vigie.Diagnosed || got.Model != "m" || got.Source != c.Source || got.Received.IsZero()) {
				t.Errorf("the case reads %+v", got)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
