package consortium

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"syscall"
	"testing"

	"github.com/vigie/vigie/federate/wire"
)

// fullDisk is a file on a disk that has room for so many bytes more, and may fail
// otherwise.
type fullDisk struct {
	*os.File
	room           int
	syncs, cutting error
}

func (f *fullDisk) Write(p []byte) (int, error) {
	if f.room >= len(p) {
		f.room -= len(p)
		return f.File.Write(p)
	}
	n, _ := f.File.Write(p[:f.room])
	f.room = 0
	return n, syscall.ENOSPC
}

func (f *fullDisk) Sync() error {
	if f.syncs != nil {
		return f.syncs
	}
	return f.File.Sync()
}

func (f *fullDisk) Truncate(size int64) error {
	if f.cutting != nil {
		return f.cutting
	}
	return f.File.Truncate(size)
}

// onDisk is a log of a site whose disk the test has in hand.
func onDisk(t *testing.T, s *Site) (*chain[Left], *fullDisk) {
	t.Helper()
	c, err := openChain[Left](s.path(leftFile), leftName, s.Name, s.signer, nil)
	if err != nil {
		t.Fatal(err)
	}
	disk := &fullDisk{File: c.file.(*os.File), room: 1 << 30}
	c.file = disk
	t.Cleanup(func() { c.close() })
	return c, disk
}

func TestAnEntryThatCouldNotBeWrittenLeavesTheChainWhole(t *testing.T) {
	n := newNorth(t, nil)
	s := n.join("lyon")
	c, disk := onDisk(t, s)
	add := func(run string, want error) {
		t.Helper()
		if err := c.add(Left{Kind: "order", Run: run}); !errors.Is(err, want) || want == nil && err != nil {
			t.Fatalf("%s: %v, want %v", run, err, want)
		}
	}
	verify := func(entries uint64) {
		t.Helper()
		if log, err := s.Left(); err != nil || log.Head.Entries != entries {
			t.Fatalf("%d entries, want %d: %v", log.Head.Entries, entries, err)
		}
	}
	add("first", nil)
	for _, room := range []int{0, 1, 100} { // the disk is full in the middle of a line
		disk.room = room
		add("lost", syscall.ENOSPC)
		verify(1)
	}
	disk.room = 1 << 30
	add("second", nil)
	verify(2)

	disk.syncs = syscall.EIO // the line is there, and may not outlive a crash
	add("lost", syscall.EIO)
	disk.syncs = nil
	add("third", nil)
	verify(3)

	disk.room, disk.cutting = 50, syscall.EIO // it cannot even be cut off
	add("lost", syscall.ENOSPC)
	disk.room = 1 << 30
	add("lost", syscall.EIO)
	disk.cutting = nil
	add("fourth", nil)
	verify(4)

	disk.room, disk.cutting = 50, syscall.EIO // and the process ends
	add("lost", syscall.ENOSPC)
	again, _ := onDisk(t, s)
	if err := again.add(Left{Kind: "order", Run: "fifth"}); err != nil {
		t.Fatal(err)
	}
	verify(5)
}

func TestNothingLeavesWhileTheLogCannotBeWritten(t *testing.T) {
	n := newNorth(t, nil)
	s := n.join("lyon")
	w := &worker{Site: s, RunOptions: RunOptions{Logger: slog.New(slog.DiscardHandler)}, runs: map[string]*siteRun{}}
	var disk *fullDisk
	w.left, disk = onDisk(t, s)
	disk.room = 10
	roster, err := s.roster()
	if err != nil {
		t.Fatal(err)
	}
	call := wire.Call{Run: "r", Kind: kindRoster, Body: json.RawMessage(roster.document)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := w.handle(ctx, call); done <- err }()
	n.until("the entry was tried", func() bool {
		w.left.mu.Lock()
		defer w.left.mu.Unlock()
		return disk.room == 0
	})
	select {
	case err := <-done:
		t.Fatalf("it was answered: %v", err)
	default:
	}
	cancel()
	if err := <-done; !errors.Is(err, wire.ErrSilent) {
		t.Errorf("nothing may be said of it: %v", err)
	}
	go func() { _, err := w.handle(t.Context(), call); done <- err }()
	w.left.mu.Lock()
	disk.room = 1 << 30
	w.left.mu.Unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if log, err := s.Left(); err != nil || log.Head.Entries != 1 {
		t.Errorf("%d entries, %v", log.Head.Entries, err)
	}
}
