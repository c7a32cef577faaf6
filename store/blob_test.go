package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

// faultyDisk is a file system whose next call of one kind fails.
type faultyDisk struct {
	store.OS
	call string // "create", "write", "sync", "rename", "syncdir"
	err  error
}

func (f *faultyDisk) fault(call string) error {
	if f.call == call {
		return &fs.PathError{Op: call, Path: "a blob", Err: f.err}
	}
	return nil
}

func (f *faultyDisk) Create(path string) (store.File, error) {
	if err := f.fault("create"); err != nil {
		return nil, err
	}
	file, err := f.OS.Create(path)
	return faultyFile{file, f}, err
}

func (f *faultyDisk) Rename(from, to string) error {
	if err := f.fault("rename"); err != nil {
		return err
	}
	return f.OS.Rename(from, to)
}

func (f *faultyDisk) SyncDir(path string) error {
	if err := f.fault("syncdir"); err != nil {
		return err
	}
	return f.OS.SyncDir(path)
}

type faultyFile struct {
	store.File
	disk *faultyDisk
}

func (f faultyFile) Write(p []byte) (int, error) {
	if err := f.disk.fault("write"); err != nil {
		n, _ := f.File.Write(p[:len(p)/2])
		return n, err
	}
	return f.File.Write(p)
}

func (f faultyFile) Sync() error {
	if err := f.disk.fault("sync"); err != nil {
		return err
	}
	return f.File.Sync()
}

func writeBlob(blobs *store.Blobs, data []byte) (store.BlobName, error) {
	w, err := blobs.Create()
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return "", err
	}
	return w.Name(), w.Commit()
}

func files(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestABlobThatCannotBeMadeDurableLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	disk := &faultyDisk{}
	blobs, err := store.OpenBlobs(dir, disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"create", "write", "sync", "rename", "syncdir"} {
		for cause, want := range map[error]error{
			syscall.ENOSPC: store.ErrFull, syscall.EDQUOT: store.ErrFull,
			syscall.EROFS: store.ErrReadOnly, syscall.EIO: store.ErrUnavailable,
		} {
			disk.call, disk.err = call, cause
			_, err := writeBlob(blobs, []byte("ciphertext"))
			if !errors.Is(err, want) || !errors.Is(err, cause) || !store.OutOfResources(err) {
				t.Errorf("%s fails with %v: %v, want %v", call, cause, err, want)
			}
			if left := files(t, dir); len(left) > 0 {
				t.Errorf("%s fails with %v: %v is left", call, cause, left)
			}
		}
	}
	disk.call = ""
	name, err := writeBlob(blobs, []byte("ciphertext"))
	if err != nil {
		t.Fatalf("after the faults: %v", err)
	}
	r, err := blobs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); err != nil || string(data) != "ciphertext" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestABlobCannotBeSeenBeforeItsCommitNorAfterItsAbort(t *testing.T) {
	dir := t.TempDir()
	blobs, err := store.OpenBlobs(dir, store.OS{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := blobs.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := blobs.Open(w.Name()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("before its commit: %v", err)
	}
	w.Abort()
	if _, err := blobs.Open(w.Name()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after its abort: %v", err)
	}
	if err := w.Commit(); err == nil {
		t.Error("an aborted blob was committed")
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("an aborted blob was written")
	}
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	name, err := writeBlob(blobs, []byte("y"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files(t, dir) {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	for range 2 {
		if err := blobs.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

func TestNoBlobNameLeadsOutOfTheFolder(t *testing.T) {
	blobs, err := store.OpenBlobs(t.TempDir(), store.OS{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []store.BlobName{"", "..", "../../../../etc/passwd", "/etc/passwd", store.BlobName(strings.Repeat("A", 32)), store.BlobName(strings.Repeat("0", 30)), "..0123456789abcdef0123456789abcd"} {
		if _, err := blobs.Open(name); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Open(%q): %v", name, err)
		}
		if err := blobs.Remove(name); err == nil {
			t.Errorf("Remove(%q) succeeded", name)
		}
	}
}

func TestSweepRemovesWhatACrashLeftAndNothingElse(t *testing.T) {
	storetest.EachConfig(t, func(t *testing.T, config store.Config) {
		ctx := context.Background()
		s := storetest.Reopen(t, config)
		c := newCase()
		recorded, err := writeBlob(s.Blobs(), []byte("recorded"))
		if err != nil {
			t.Fatal(err)
		}
		err = s.Update(ctx, func(tx *store.Tx) error {
			if err := tx.CreateCase(c); err != nil {
				return err
			}
			return tx.AddObject(&store.Object{Case: c.ID, Kind: "received", Instance: c.Instance, Digest: c.Input, Blob: recorded})
		})
		if err != nil {
			t.Fatal(err)
		}
		old, err := writeBlob(s.Blobs(), []byte("old orphan"))
		if err != nil {
			t.Fatal(err)
		}
		unfinished, err := s.Blobs().Create() // never ended: the process died
		if err != nil {
			t.Fatal(err)
		}
		stranger := filepath.Join(config.BlobDir, "00", "README")
		if err := os.WriteFile(stranger, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		long := time.Now().Add(-2 * time.Hour)
		for _, path := range files(t, config.BlobDir) {
			if err := os.Chtimes(path, long, long); err != nil {
				t.Fatal(err)
			}
		}
		young, err := writeBlob(s.Blobs(), []byte("young orphan"))
		if err != nil {
			t.Fatal(err)
		}
		removed, err := s.Sweep(ctx, time.Hour)
		if err != nil || removed != 2 {
			t.Errorf("%d were removed, want 2: %v", removed, err)
		}
		for name, want := range map[store.BlobName]bool{recorded: true, old: false, young: true, unfinished.Name(): false} {
			r, err := s.Blobs().Open(name)
			if err == nil {
				r.Close()
			}
			if (err == nil) != want {
				t.Errorf("%s: %v, want it there: %v", name, err, want)
			}
		}
		if _, err := os.Stat(stranger); err != nil {
			t.Errorf("a file that is no blob: %v", err)
		}
		left := files(t, config.BlobDir)
		if len(left) != 3 {
			t.Errorf("%v is left", left)
		}
	})
}

func TestObjectsAreFoundByTheirKeysAndAResentOneIsKnown(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		c := newCase()
		first := store.Object{Case: c.ID, Kind: "received", Study: c.Study, Series: c.Series, Instance: c.Instance, Digest: c.Input,
			Blob: "00000000000000000000000000000000", Size: 5, SOPClass: "1.2", TransferSyntax: "1.2.840", Sealed: []byte{1, 2}}
		err := s.Update(ctx, func(tx *store.Tx) error {
			if err := tx.CreateCase(c); err != nil {
				return err
			}
			return tx.AddObject(&first)
		})
		if err != nil {
			t.Fatal(err)
		}
		same := first
		if err := s.Update(ctx, func(tx *store.Tx) error { return tx.AddObject(&same) }); !errors.Is(err, store.ErrExists) {
			t.Errorf("the same bytes again: %v, want ErrExists", err)
		}
		other := first
		other.Digest = vigie.DigestOf([]byte("other bytes"))
		if err := s.Update(ctx, func(tx *store.Tx) error { return tx.AddObject(&other) }); err != nil {
			t.Errorf("other bytes under the same UID: %v", err)
		}
		err = s.View(ctx, func(tx *store.Tx) error {
			found, err := tx.ObjectByInstance(c.Instance)
			if err != nil {
				return err
			}
			if found.ID != first.ID || !bytes.Equal(found.Sealed, first.Sealed) || found.Digest != first.Digest || found.Size != 5 || !found.Added.Equal(first.Added) {
				t.Errorf("the first one reads %+v", found)
			}
			for _, filter := range []store.ObjectFilter{{Case: c.ID}, {Study: c.Study}, {Series: c.Series}, {Instance: c.Instance}, {Kind: "received", Case: c.ID}} {
				if found, err := tx.Objects(filter); err != nil || len(found) != 2 {
					t.Errorf("%+v finds %d objects: %v", filter, len(found), err)
				}
			}
			if _, err := tx.ObjectByInstance("2.25.404"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("an unknown instance: %v", err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestADeliveryIsPlannedOnceAndDoneOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		c := newCase()
		if err := s.Update(ctx, func(tx *store.Tx) error { return tx.CreateCase(c) }); err != nil {
			t.Fatal(err)
		}
		for i, want := range []bool{true, false} {
			err := s.Update(ctx, func(tx *store.Tx) error {
				planned, err := tx.AddDelivery(c.ID, "PACS", "2.25.9")
				if planned != want {
					t.Errorf("planning %d: %v", i, planned)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		attempt := func(state store.DeliveryState, detail string) error {
			return s.Update(ctx, func(tx *store.Tx) error { return tx.RecordAttempt(c.ID, "PACS", "2.25.9", state, detail) })
		}
		if err := attempt(store.DeliveryPending, "refused"); err != nil {
			t.Fatal(err)
		}
		if err := attempt(store.DeliveryDone, ""); err != nil {
			t.Fatal(err)
		}
		if err := attempt(store.DeliveryDone, ""); !errors.Is(err, store.ErrExists) {
			t.Errorf("done twice: %v", err)
		}
		err := s.Update(ctx, func(tx *store.Tx) error {
			return tx.RecordAttempt(c.ID, "nowhere", "2.25.9", store.DeliveryDone, "")
		})
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a delivery that was never planned: %v", err)
		}
		err = s.View(ctx, func(tx *store.Tx) error {
			found, err := tx.Deliveries(c.ID, "")
			if len(found) != 1 || found[0].State != store.DeliveryDone || found[0].Attempts != 2 {
				t.Errorf("%+v", found)
			}
			if pending, _ := tx.Deliveries("", store.DeliveryPending); len(pending) != 0 {
				t.Errorf("pending: %+v", pending)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
