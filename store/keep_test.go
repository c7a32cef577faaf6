package store_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

func newRing(t *testing.T, s *store.Store) *keys.Ring {
	t.Helper()
	provider, err := keys.CreateFile(filepath.Join(t.TempDir(), "keys", "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	return keys.NewRing(provider, s)
}

func TestAPatientsKeysLiveInTheStoreUntilTheyAreErased(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		ring := newRing(t, s)
		sealed, err := ring.Seal(ctx, "patient-1", []byte("finding"), nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.AddKey(ctx, "patient-1", keys.WrappedKey{Generation: 1, Wrapped: []byte("another")})
		if err != nil || bytes.Equal(again.Wrapped, []byte("another")) {
			t.Errorf("a key was replaced: %v", err)
		}
		ring.Close() // forget the cache
		if opened, err := ring.Open(ctx, "patient-1", sealed, nil); err != nil || string(opened) != "finding" {
			t.Fatalf("%q, %v", opened, err)
		}
		if err := ring.Erase(ctx, "patient-1"); err != nil {
			t.Fatal(err)
		}
		if _, err := ring.Open(ctx, "patient-1", sealed, nil); !errors.Is(err, keys.ErrErased) {
			t.Errorf("after erasure: %v", err)
		}
		if err := s.EraseKeys(ctx, "nobody"); err != nil {
			t.Errorf("erasing a patient without keys: %v", err)
		}
		// A case whose data was sealed with the erased key is not taken in…
		c := newCase()
		err = s.Update(ctx, func(tx *store.Tx) error { return tx.CreateCase(c) })
		if !errors.Is(err, keys.ErrErased) {
			t.Errorf("a case under an erased key: %v, want ErrErased", err)
		}
		// …until the patient has a new key.
		if _, err := ring.DataKey(ctx, "patient-1"); err != nil {
			t.Fatal(err)
		}
		if err := s.Update(ctx, func(tx *store.Tx) error { return tx.CreateCase(c) }); err != nil {
			t.Error(err)
		}
	})
}

func TestAnErasedKeyIsNowhereInTheFilesOfSQLite(t *testing.T) {
	ctx := context.Background()
	config := storetest.Config(t, "sqlite")
	s := storetest.Reopen(t, config)
	planted := []byte("these bytes stand for a wrapped data key")
	if _, err := s.AddKey(ctx, "patient-1", keys.WrappedKey{Generation: 1, Wrapped: planted}); err != nil {
		t.Fatal(err)
	}
	holds := func() (found []string) {
		for _, path := range files(t, filepath.Dir(strings.TrimPrefix(config.URL, "sqlite:"))) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(data, planted) {
				found = append(found, path)
			}
		}
		return found
	}
	if len(holds()) == 0 {
		t.Fatal("the test cannot see a key that is there")
	}
	if err := s.EraseKeys(ctx, "patient-1"); err != nil {
		t.Fatal(err)
	}
	if found := holds(); len(found) > 0 {
		t.Errorf("the erased key is still in %v", found)
	}
}

func TestAFindingIsNeverStoredInClear(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		c := newCase()
		clear := c
		clear.Finding = &vigie.Finding{}
		if err := s.Update(ctx, func(tx *store.Tx) error { return tx.CreateCase(clear) }); err == nil {
			t.Error("a case with a finding in clear was stored")
		}
		if err := s.Update(ctx, func(tx *store.Tx) error { return tx.CreateCase(c) }); err != nil {
			t.Fatal(err)
		}
		err := s.Update(ctx, func(tx *store.Tx) error {
			_, err := tx.Advance(c.ID, vigie.Received, vigie.Diagnosed, func(c *vigie.Case) error { c.Decision = &vigie.HumanDecision{}; return nil })
			return err
		})
		if err == nil {
			t.Error("a decision was stored in clear")
		}
		err = s.Update(ctx, func(tx *store.Tx) error {
			if err := tx.PutValue(c.ID, "finding", []byte("old")); err != nil {
				return err
			}
			return tx.PutValue(c.ID, "finding", []byte("sealed"))
		})
		if err != nil {
			t.Fatal(err)
		}
		err = s.View(ctx, func(tx *store.Tx) error {
			if value, err := tx.Value(c.ID, "finding"); err != nil || string(value) != "sealed" {
				t.Errorf("%q, %v", value, err)
			}
			if _, err := tx.Value(c.ID, "other"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a value that was never stored: %v", err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Update(ctx, func(tx *store.Tx) error { return tx.PutValue("nobody", "finding", []byte("x")) }); err == nil {
			t.Error("a value of a case that does not exist was stored")
		}
	})
}
