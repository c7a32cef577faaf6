package gateway

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

// brokenDisk is a disk that can be told to fail.
type brokenDisk struct {
	store.OS
	create, write, sync, rename atomic.Pointer[syscall.Errno]
}

func failing(e *atomic.Pointer[syscall.Errno]) error {
	if errno := e.Load(); errno != nil {
		return *errno
	}
	return nil
}

func (d *brokenDisk) Create(path string) (store.File, error) {
	if err := failing(&d.create); err != nil {
		return nil, err
	}
	f, err := d.OS.Create(path)
	if err != nil {
		return nil, err
	}
	return &brokenFile{f, d}, nil
}

func (d *brokenDisk) Rename(from, to string) error {
	if err := failing(&d.rename); err != nil {
		return err
	}
	return d.OS.Rename(from, to)
}

type brokenFile struct {
	store.File
	disk *brokenDisk
}

func (f *brokenFile) Write(p []byte) (int, error) {
	if err := failing(&f.disk.write); err != nil {
		n, _ := f.File.Write(p[:len(p)/2]) // a full disk takes a part
		return n, err
	}
	return f.File.Write(p)
}

func (f *brokenFile) Sync() error {
	if err := failing(&f.disk.sync); err != nil {
		return err
	}
	return f.File.Sync()
}

func TestAFullOrReadOnlyDiskRefusesLeavesNothingAndRecoversByItself(t *testing.T) {
	config := testConfig(t)
	disk := &brokenDisk{}
	// Borderline, so that every case rests in review: deliveries write files too.
	g := start(t, config, Options{Files: disk, Diagnoser: newStandIn(t, config.Model, always(0.5))})
	association := dial(t, g)
	seed := uint64(0)
	send := func() dimse.Status {
		t.Helper()
		seed++
		o, err := NewOutgoing(chest(t, seed, phantom.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		status, err := association(o)
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
	if status := send(); status != dimse.Success {
		t.Fatalf("before: %v", status)
	}
	kept := func() int { return len(objectsOf(t, g.Casebook, store.ObjectFilter{Kind: kindReceived})) }
	for name, fault := range map[string]struct {
		point *atomic.Pointer[syscall.Errno]
		errno syscall.Errno
	}{
		"full at the first byte":  {&disk.create, syscall.ENOSPC},
		"full while writing":      {&disk.write, syscall.ENOSPC},
		"full at fsync":           {&disk.sync, syscall.ENOSPC},
		"quota at rename":         {&disk.rename, syscall.EDQUOT},
		"read-only":               {&disk.create, syscall.EROFS},
		"broken disk while fsync": {&disk.sync, syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			before, files := kept(), blobFiles(t, config)
			fault.point.Store(&fault.errno)
			status := send()
			fault.point.Store(nil)
			if !status.Transient() {
				t.Errorf("the sender was told %v, want out of resources", status)
			}
			if kept() != before || blobFiles(t, config) != files {
				t.Errorf("%d rows and %d files are left, want %d and %d", kept(), blobFiles(t, config), before, files)
			}
			if status := send(); status != dimse.Success {
				t.Errorf("after the fault: %v", status)
			}
		})
	}
	mustVerify(t, g.Casebook)
}

func TestIntakeStopsBeforeTheDiskIsFullAndReadinessSaysSo(t *testing.T) {
	config := testConfig(t)
	var free atomic.Int64
	free.Store(1 << 40)
	g := start(t, config, Options{Free: func(string) (int64, error) { return free.Load(), nil }, Diagnoser: newStandIn(t, config.Model, always(0.03))})
	if r := g.Ready(context.Background()); !r.Ready {
		t.Fatalf("not ready: %v", r.Checks)
	}
	free.Store(1 << 10)
	if _, err := give(t, g.Gateway, chest(t, 1, phantom.Options{})); !errors.Is(err, store.ErrFull) {
		t.Errorf("got %v", err)
	}
	if r := g.Ready(context.Background()); r.Ready || r.Checks["disk"] == "ok" {
		t.Errorf("ready with a full disk: %v", r.Checks)
	}
	response, err := http.Post("http://"+g.Addresses().HTTP.String()+"/dicom-web/studies", "multipart/related; type=\"application/dicom\"; boundary=b", strings.NewReader("--b--"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusInsufficientStorage {
		t.Errorf("STOW with a full disk: %d", response.StatusCode)
	}
	free.Store(1 << 40)
	if _, err := give(t, g.Gateway, chest(t, 1, phantom.Options{})); err != nil {
		t.Error(err)
	}
	if r := g.Ready(context.Background()); !r.Ready {
		t.Errorf("not ready again: %v", r.Checks)
	}
}

func TestUnfinishedObjectsAreSweptAtTheNextStart(t *testing.T) {
	config := testConfig(t)
	diagnoser := newStandIn(t, config.Model, always(0.03))
	g := start(t, config, Options{Diagnoser: diagnoser})
	id := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case
	settled(t, g.Casebook, id, vigie.Delivered)
	good := blobFiles(t, config)
	part, err := g.newSpool("dimse")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	whole, err := g.newSpool("dimse")
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.finish(); err != nil { // and then the process dies
		t.Fatal(err)
	}
	if n := blobFiles(t, config); n != good+2 {
		t.Fatalf("%d files, want %d", n, good+2)
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	g = start(t, config, Options{Diagnoser: diagnoser})
	if n := blobFiles(t, config); n != good {
		t.Errorf("%d files after the sweep, want %d", n, good)
	}
	if _, err := g.readObject(context.Background(), settled(t, g.Casebook, id, vigie.Delivered).Patient, &objectsOf(t, g.Casebook, store.ObjectFilter{Case: id, Kind: kindReceived})[0]); err != nil {
		t.Errorf("a kept object cannot be read: %v", err)
	}
}

// dial returns a function that sends objects to the gateway by C-STORE.
func dial(t testing.TB, g *running) func(Outgoing) (dimse.Status, error) {
	t.Helper()
	address := g.Addresses().DIMSE.(*net.TCPAddr).String()
	return func(o Outgoing) (dimse.Status, error) {
		a, err := dimse.Dial(context.Background(), address, dimse.ClientConfig{CallingAE: "MODALITY", CalledAE: "VIGIE", Plain: true},
			dimse.Contexts(o.SOPClass, o.TransferSyntax))
		if err != nil {
			return 0, err
		}
		status, err := a.Store(context.Background(), o.SOPClass, o.SOPInstance, o.TransferSyntax, bytes.NewReader(o.File[o.dataSet:]))
		if err != nil {
			return 0, err
		}
		return status, a.Release(context.Background())
	}
}
