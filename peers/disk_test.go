package peers

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// mount puts a file system of its own, in memory, on a folder until the test
// ends.
func mount(t *testing.T, dir, size string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
			t.Skipf("SKIPPED: mounting a file system needs root (%v): a full and a read-only disk are NOT tested here", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", errors.Join(err, syscall.Unmount(dir, syscall.MNT_DETACH)))
		}
	})
}

func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	waitFor(t, "nobody to write", func() bool {
		err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, "")
		if err != nil && !errors.Is(err, syscall.EBUSY) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// fill writes a file until only so many bytes are left on its disk.
func fill(t *testing.T, path string, left int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for free(t, path) > left {
		n := min(int64(len(block)), free(t, path)-left)
		if _, err := f.Write(block[:n]); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

func free(t *testing.T, path string) int64 {
	t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Bavail) * s.Bsize
}

// ward is a site with senders that remember what was acknowledged to them.
type ward struct {
	*site
	seed         uint64
	acknowledged []*dicom.File
	refused      []*dicom.File
}

func startWard(s *site) *ward {
	s.start()
	s.startPACS()
	return &ward{site: s}
}

// send sends the next radiograph on either protocol and reports whether it was
// taken. Whatever else the sender is told must be that there is no room now.
func (w *ward) send(protocol string, side int) bool {
	w.t.Helper()
	w.seed++
	file := chest(w.t, w.seed, phantom.Options{Rows: side, Columns: side})
	return w.sendFile(protocol, file)
}

func (w *ward) sendFile(protocol string, file *dicom.File) bool {
	w.t.Helper()
	var status dimse.Status
	if protocol == "STOW" {
		code, answer, err := w.stow(encode(w.t, file))
		var full *dicomweb.StatusError
		switch {
		case errors.As(err, &full) && full.Code == http.StatusInsufficientStorage:
			status = dimse.OutOfResources // said before the object was read
		case err != nil:
			w.t.Fatalf("STOW: %v", err)
		default:
			status, _ = answer.Status(instanceOf(file))
		}
		if want := map[bool]int{true: 200, false: 507}[status.Stored()]; code != want {
			w.t.Errorf("STOW is answered %d with %v", code, status)
		}
	} else {
		var err error
		if status, err = w.cstoreFile(file); err != nil {
			w.t.Fatalf("C-STORE: %v", err)
		}
	}
	switch {
	case status.Stored():
		w.acknowledged = append(w.acknowledged, file)
		return true
	case status != dimse.OutOfResources:
		w.t.Errorf("%s is answered %v, want out of resources (0xA700)", protocol, status)
	}
	w.refused = append(w.refused, file)
	return false
}

// sendBoth sends on both protocols and expects the same fate.
func (w *ward) sendBoth(taken bool) {
	w.t.Helper()
	for _, protocol := range []string{"C-STORE", "STOW"} {
		if got := w.send(protocol, 256); got != taken {
			w.t.Errorf("%s: taken: %v, want %v", protocol, got, taken)
		}
	}
}

// recovered expects that the same process serves again by itself, that what was
// refused is taken now, and that every acknowledged object has its case.
func (w *ward) recovered() {
	w.t.Helper()
	select {
	case <-w.exited:
		w.t.Fatal("the gateway has ended")
	default:
	}
	w.eventually("the gateway to be ready again", func() bool { ready, _ := w.ready(); return ready })
	again := w.refused
	w.refused = nil
	for _, file := range again {
		if !w.sendFile("C-STORE", file) {
			w.t.Error("refused again")
		}
	}
	w.sendBoth(true)
	for _, file := range w.acknowledged {
		if c := w.rest(instanceOf(file)); c.Finding == nil || len(c.Finding.Predictions) == 0 {
			w.t.Errorf("a case is %s without an answer: %s", c.State, reasons(c, true))
		}
	}
	w.verifyLog()
	if log, err := os.ReadFile(w.Path("gateway.log")); err != nil || strings.Contains(string(log), "panic") {
		w.t.Errorf("the log speaks of a panic (%v)", err)
	}
	w.t.Logf("%d objects acknowledged, %d refused at first", len(w.acknowledged), len(again))
}

// notReady expects /readyz to say what is wrong with a probe. The answer may be
// a little old.
func (s *site) notReady(probe, want string) {
	s.t.Helper()
	var checks map[string]string
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		var ready bool
		if ready, checks = s.ready(); !ready && checks[probe] != "ok" && strings.Contains(checks[probe], want) {
			return
		}
		if time.Now().After(deadline) {
			s.t.Errorf("/readyz does not say %q of the %s: ready: %v, %v", want, probe, ready, checks)
			return
		}
	}
}

func TestIntakeStopsBeforeARealDiskIsFullAndGoesOnByItself(t *testing.T) {
	s := newSite(t, demo.SiteOptions{Extra: "\nlimits:\n  disk_free: 16MiB\n"})
	mount(t, s.Path("state"), "64m")
	w := startWard(s)
	w.sendBoth(true)
	filler := s.Path("state", "filler")
	fill(t, filler, 15<<20)
	s.notReady("disk", "disk_free")
	w.sendBoth(false)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	w.recovered()
}

func TestADiskThatIsFullToTheLastByteLosesNothingAcknowledged(t *testing.T) {
	if testing.Short() {
		t.Skip("sends until the disk is full, three times")
	}
	// No reserve: what fails is whatever write comes first, of an object, of
	// the database or of the log.
	s := newSite(t, demo.SiteOptions{Extra: "\nlimits:\n  disk_free: 1\n"})
	mount(t, s.Path("state"), "192m") // an overlay takes 1.5 MB
	w := startWard(s)
	w.sendBoth(true)
	for round, left := range []int64{3 << 20, 700 << 10, 0} {
		filler := s.Path("state", "filler")
		fill(t, filler, left)
		before := len(w.refused)
		for i := 0; len(w.refused) < before+6 && i < 300; i++ {
			w.send([]string{"C-STORE", "STOW"}[i%2], []int{256, 64, 128}[i%3])
		}
		if len(w.refused) == before {
			t.Errorf("round %d: nothing was refused with %d bytes left", round, free(t, filler))
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		w.recovered()
	}
}

func TestAReadOnlyDiskRefusesAndTheGatewayGoesOnByItself(t *testing.T) {
	s := newSite(t, demo.SiteOptions{Extra: "\nlimits:\n  disk_free: 1MiB\n"})
	objects := s.Path("state", "objects")
	mount(t, objects, "64m")
	w := startWard(s)
	w.sendBoth(true)
	for _, file := range w.acknowledged {
		w.rest(instanceOf(file))
	}
	remount(t, objects, syscall.MS_RDONLY)
	w.sendBoth(false)
	s.notReady("disk", "read-only")
	remount(t, objects, 0)
	w.recovered()
}

func TestAGatewayOnAReadOnlyStateSaysSoAndNothingIsLost(t *testing.T) {
	s := newSite(t, demo.SiteOptions{Extra: "\nlimits:\n  disk_free: 1MiB\n"})
	mount(t, s.Path("state"), "64m")
	w := startWard(s)
	w.sendBoth(true)
	var before []vigie.CaseID
	for _, file := range w.acknowledged {
		before = append(before, w.rest(instanceOf(file)).ID)
	}
	s.stop()
	s.closeBook()
	remount(t, s.Path("state"), syscall.MS_RDONLY)
	s.spawn()
	<-s.exited
	if code := s.process.ProcessState.ExitCode(); code == 0 || !strings.Contains(s.logTail(), "read-only") && !strings.Contains(s.logTail(), "readonly") {
		t.Errorf("the gateway ended with status %d, and said:\n%s", code, s.logTail())
	}
	remount(t, s.Path("state"), 0)
	s.start()
	for i, file := range w.acknowledged {
		if c := w.rest(instanceOf(file)); c.ID != before[i] {
			t.Error("an object has another case than before")
		}
	}
	w.recovered()
}
