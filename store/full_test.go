package store_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

// tmpfs mounts a small file system of its own, so that a disk is truly full.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		t.Skipf("A FULL DISK IS NOT TESTED: mounting a small tmpfs needs root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func openOn(t *testing.T, dir string) *store.Store {
	t.Helper()
	config := storetest.Config(t, "sqlite")
	config.URL, config.BlobDir = "sqlite:"+filepath.Join(dir, "vigie.db"), filepath.Join(dir, "objects")
	return storetest.Reopen(t, config)
}

// fill leaves no byte on the file system, and returns the way to undo it.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 16; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

func putLarge(name string) func(*store.Tx) error {
	value := make([]byte, 64<<10)
	rand.Read(value)
	return func(tx *store.Tx) error { return tx.PutSetting(name, value) }
}

func TestAFullDiskRefusesWithErrFullLosesNothingAndRecovers(t *testing.T) {
	ctx := context.Background()
	dir := tmpfs(t, "24m")
	s := openOn(t, dir)
	if err := s.Update(ctx, putLarge("before")); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		free := fill(t, dir)
		// Several writers at once, so that closures share the doomed commit.
		var wait sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		acknowledged := map[string]bool{}
		for i := range 40 {
			name := fmt.Sprintf("%d/%d", round, i)
			wait.Go(func() {
				err := s.Update(ctx, putLarge(name))
				mu.Lock()
				defer mu.Unlock()
				acknowledged[name] = err == nil
				if err != nil {
					refused++
					if !errors.Is(err, store.ErrFull) || !store.OutOfResources(err) {
						t.Errorf("refused with %v, want ErrFull", err)
					}
				}
			})
		}
		wait.Wait()
		if refused == 0 {
			t.Fatal("the disk was not full")
		}
		blob, err := s.Blobs().Create()
		if err == nil {
			if _, err = blob.Write(make([]byte, 1<<20)); err == nil {
				err = blob.Commit()
			}
			blob.Abort()
		}
		if !errors.Is(err, store.ErrFull) {
			t.Errorf("a blob was refused with %v, want ErrFull", err)
		}
		free()
		for name, ok := range acknowledged {
			if present(t, s, name) != ok {
				t.Errorf("%s: acknowledged %v, present %v", name, ok, !ok)
			}
		}
		if err := s.Update(ctx, putLarge(fmt.Sprintf("%d/after", round))); err != nil {
			t.Fatalf("after space was made: %v", err)
		}
	}
	if !present(t, s, "before") {
		t.Error("what was there before is gone")
	}
}

func TestAReadOnlyDiskRefusesWithErrReadOnlyAndRecovers(t *testing.T) {
	ctx := context.Background()
	dir := tmpfs(t, "24m")
	s := openOn(t, dir)
	if err := s.Update(ctx, put("before")); err != nil {
		t.Fatal(err)
	}
	// A remount is refused while files are open for writing, so the blobs'
	// half goes first through a bind mount that is read-only from the start.
	bound := t.TempDir()
	if err := syscall.Mount(dir, bound, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("A READ-ONLY DISK IS NOT TESTED: %v", err)
	}
	defer syscall.Unmount(bound, syscall.MNT_DETACH)
	blobs, err := store.OpenBlobs(filepath.Join(bound, "objects"), store.OS{})
	if err != nil {
		t.Fatal(err)
	}
	remount := func(flags uintptr) {
		if err := syscall.Mount("", bound, "", syscall.MS_BIND|syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Skipf("A READ-ONLY DISK IS NOT TESTED: %v", err)
		}
	}
	remount(syscall.MS_RDONLY)
	if _, err := blobs.Create(); !errors.Is(err, store.ErrReadOnly) {
		t.Errorf("a blob was refused with %v, want ErrReadOnly", err)
	}
	_, err = store.Open(ctx, store.Config{URL: "sqlite:" + filepath.Join(bound, "vigie.db")})
	if !store.OutOfResources(err) {
		t.Errorf("opening there: %v", err)
	}
	remount(0)
	w, err := blobs.Create()
	if err != nil {
		t.Fatalf("after it became writable: %v", err)
	}
	w.Abort()
}

func TestADatabaseAtItsSizeLimitIsFull(t *testing.T) {
	ctx := context.Background()
	s := storetest.Open(t, "sqlite")
	limit := func(pages int) {
		err := s.Update(ctx, func(tx *store.Tx) error {
			return tx.Query(func(func(...any) error) error { return nil }, fmt.Sprintf("PRAGMA max_page_count = %d", pages))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	limit(1) // rounded up to the present size
	err := s.Update(ctx, putLarge("refused"))
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("%v, want ErrFull", err)
	}
	// The connection was replaced, and with it the limit.
	if err := s.Update(ctx, putLarge("accepted")); err != nil {
		t.Fatal(err)
	}
	if present(t, s, "refused") || !present(t, s, "accepted") {
		t.Error("the wrong row is there")
	}
}

func TestAReadOnlyPostgreSQLRefusesWithErrReadOnlyAndRecovers(t *testing.T) {
	ctx := context.Background()
	s := storetest.Open(t, "postgres")
	err := s.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.Exec("SET TRANSACTION READ ONLY"); err != nil {
			return err
		}
		return put("refused")(tx)
	})
	if !errors.Is(err, store.ErrReadOnly) || !store.OutOfResources(err) {
		t.Errorf("%v, want ErrReadOnly", err)
	}
	if err := s.Update(ctx, put("accepted")); err != nil {
		t.Fatal(err)
	}
}

func TestALostConnectionIsUnavailableAndTheNextUpdateWorks(t *testing.T) {
	ctx := context.Background()
	s := storetest.Open(t, "postgres")
	err := s.Update(ctx, func(tx *store.Tx) error {
		if err := put("lost")(tx); err != nil {
			return err
		}
		_, err := tx.Exec("SELECT pg_terminate_backend(pg_backend_pid())")
		return err
	})
	if !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	if err := s.Update(ctx, put("next")); err != nil {
		t.Fatal(err)
	}
	if present(t, s, "lost") || !present(t, s, "next") {
		t.Error("the wrong row is there")
	}
}

func TestADeadlockIsRepeatedUntilItSucceeds(t *testing.T) {
	ctx := context.Background()
	s := storetest.Open(t, "postgres")
	runs := 0
	err := s.Update(ctx, func(tx *store.Tx) error {
		if runs++; runs < 3 {
			_, err := tx.Exec("DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '40P01'; END $$")
			return err
		}
		return put("done")(tx)
	})
	if err != nil || runs != 3 || !present(t, s, "done") {
		t.Errorf("after %d runs: %v", runs, err)
	}
	runs = 0
	err = s.Update(ctx, func(tx *store.Tx) error {
		runs++
		_, err := tx.Exec("DO $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '40001'; END $$")
		return err
	})
	if err == nil || runs < 2 || runs > 20 {
		t.Errorf("an endless conflict ended after %d runs with %v", runs, err)
	}
}
