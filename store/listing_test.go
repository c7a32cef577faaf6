package store_test

import (
	"context"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

func TestAStoreIsPristineUntilItHoldsMoreThanSettings(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		for _, step := range []struct {
			name string
			do   func(*store.Tx) error
			want bool
		}{
			{"new", func(*store.Tx) error { return nil }, true},
			{"with a setting", put("a"), true},
			{"with a record", func(tx *store.Tx) error {
				_, err := tx.Exec("INSERT INTO audit_entries (idx, case_id, record) VALUES (0, '', $1)", []byte("r"))
				return err
			}, false},
			{"with a case alone", func(tx *store.Tx) error {
				if _, err := tx.Exec("DELETE FROM audit_entries"); err != nil {
					return err
				}
				return tx.CreateCase(newCase())
			}, false},
		} {
			var got bool
			err := s.Update(context.Background(), step.do)
			if err == nil {
				err = s.View(context.Background(), func(tx *store.Tx) (err error) {
					got, err = tx.Pristine()
					return err
				})
			}
			if err != nil || got != step.want {
				t.Errorf("%s: pristine %v, %v, want %v", step.name, got, err, step.want)
			}
		}
	})
}

func TestObjectsAreListedFromEitherEnd(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		c := newCase()
		err := s.Update(context.Background(), func(tx *store.Tx) error {
			if err := tx.CreateCase(c); err != nil {
				return err
			}
			for _, uid := range []string{"1.1", "1.2", "1.3"} {
				if err := tx.AddObject(&store.Object{Case: c.ID, Kind: "report", Instance: vigie.InstanceUID(uid), Digest: vigie.DigestOf([]byte(uid))}); err != nil {
					return err
				}
			}
			for newest, want := range map[bool]vigie.InstanceUID{false: "1.1", true: "1.3"} {
				found, err := tx.Objects(store.ObjectFilter{Kind: "report", NewestFirst: newest, Limit: 2})
				if err != nil {
					return err
				}
				if len(found) != 2 || found[0].Instance != want || found[1].Instance != "1.2" {
					t.Errorf("newest first %v: %+v", newest, found)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
