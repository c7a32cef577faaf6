package store_test

import (
	"context"
	"errors"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

func TestWhatAnErasedKeySealedIsRefusedThoughThePatientHasANewOne(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		ring := newRing(t, s)
		old, err := ring.Seal(ctx, "patient-1", []byte("old"), nil)
		if err != nil {
			t.Fatal(err)
		}
		check := func(sealed ...[]byte) error {
			return s.Update(ctx, func(tx *store.Tx) error { return tx.CheckSealed("patient-1", sealed...) })
		}
		if err := check(old); err != nil {
			t.Errorf("before the erasure: %v", err)
		}
		// Another process erases the patient, who then comes back.
		elsewhere := newRing(t, s)
		if err := elsewhere.Erase(ctx, "patient-1"); err != nil {
			t.Fatal(err)
		}
		renewed, err := elsewhere.Seal(ctx, "patient-1", []byte("new"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(renewed, old); !errors.Is(err, keys.ErrErased) {
			t.Errorf("sealed with the erased key: %v, want ErrErased", err)
		}
		if err := check(renewed); err != nil {
			t.Errorf("sealed with the new key: %v", err)
		}
		if err := check([]byte("no ring sealed this")); !errors.Is(err, keys.ErrCorrupt) {
			t.Errorf("sealed by nobody: %v, want ErrCorrupt", err)
		}
	})
}

func TestAForgottenCaseKeepsItsRowAndNothingElse(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		forgotten, kept := newCase(), newCase()
		err := s.Update(ctx, func(tx *store.Tx) error {
			if err := tx.CreateCase(forgotten); err != nil {
				return err
			}
			if err := tx.CreateCase(kept); err != nil {
				return err
			}
			for c, instance := range map[vigie.CaseID]vigie.InstanceUID{forgotten.ID: "1.1", kept.ID: "1.2"} {
				o := store.Object{Case: c, Kind: "received", Instance: instance, Digest: vigie.DigestOf([]byte(instance)), Blob: store.BlobName("blob of " + instance)}
				_, planned := tx.AddDelivery(c, "pacs", instance)
				if err := errors.Join(tx.AddObject(&o), tx.PutValue(c, "finding", []byte("sealed")), planned); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var blobs []store.BlobName
		if err := s.Update(ctx, func(tx *store.Tx) (err error) { blobs, err = tx.ForgetCase(forgotten.ID); return err }); err != nil {
			t.Fatal(err)
		}
		if len(blobs) != 1 || blobs[0] != "blob of 1.1" {
			t.Errorf("freed %q", blobs)
		}
		err = s.View(ctx, func(tx *store.Tx) error {
			for c, want := range map[vigie.CaseID]int{forgotten.ID: 0, kept.ID: 1} {
				if _, err := tx.Case(c); err != nil {
					t.Errorf("a row is gone: %v", err)
				}
				objects, err := tx.Objects(store.ObjectFilter{Case: c})
				if err != nil {
					return err
				}
				deliveries, err := tx.Deliveries(c, store.DeliveryPending)
				if err != nil {
					return err
				}
				_, err = tx.Value(c, "finding")
				if len(objects) != want || len(deliveries) != want || (err == nil) != (want == 1) {
					t.Errorf("%d objects, %d deliveries, value: %v; want %d of each", len(objects), len(deliveries), err, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
