package peers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/medical/dicom/dimse"
)

// ext4 is a real journaling file system in a file.
type ext4 struct{ image, dir string }

func (e ext4) mount(t *testing.T) {
	t.Helper()
	if out, err := runPeer(t, "mount", "-o", "loop,errors=remount-ro", e.image, e.dir); err != nil {
		t.Skipf("SKIPPED: a loop device cannot be mounted here (it needs root): a broken disk is NOT tested: %v\n%s", err, out)
	}
	t.Cleanup(func() { _ = syscall.Unmount(e.dir, 0) }) // unless the test did
}

// breakDown makes the kernel find an error in the file system: from then on
// every write to it fails, those to files that were open before as well.
func (e ext4) breakDown(t *testing.T) {
	t.Helper()
	source, err := runPeer(t, "findmnt", "-no", "SOURCE", e.dir)
	if err != nil {
		t.Fatalf("findmnt: %v\n%s", err, source)
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(strings.TrimSpace(source)), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("1"), 0); err != nil {
		t.Skipf("SKIPPED: this kernel cannot be made to find an error: a broken disk is NOT tested: %v", err)
	}
}

func (e ext4) repair(t *testing.T) {
	t.Helper()
	if err := syscall.Unmount(e.dir, 0); err != nil {
		t.Fatalf("unmounting: %v", err)
	}
	out, err := runPeer(t, "e2fsck", "-fy", e.image)
	if exit, ok := err.(*exec.ExitError); err != nil && (!ok || exit.ExitCode() > 1) { // 1: errors corrected
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}

// TestADiskThatBreaksUnderTheGatewayLosesNothingAcknowledged is what happens on
// a hospital's server whose disk goes bad: ext4 turns itself read-only under the
// open database, and only a person can mount it again.
func TestADiskThatBreaksUnderTheGatewayLosesNothingAcknowledged(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a file system, breaks and repairs it")
	}
	s := newSite(t, demo.SiteOptions{Extra: "\nlimits:\n  disk_free: 1MiB\n"})
	disk := ext4{s.Path("disk.img"), s.Path("state")}
	image, err := os.Create(disk.image)
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Truncate(128 << 20); err != nil {
		t.Fatal(err)
	}
	image.Close()
	if out, err := runPeer(t, "mkfs.ext4", "-q", disk.image); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	disk.mount(t)
	w := startWard(s)
	w.sendBoth(true)
	disk.breakDown(t) // while the two are analysed and delivered
	w.sendBoth(false)
	for _, file := range w.refused { // nor is it taken when it is tried again
		if status, err := s.cstoreFile(file); err == nil && status != dimse.OutOfResources {
			t.Errorf("a broken disk: %v", status)
		}
	}
	s.notReady("store", "")

	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	s.eventually("the gateway to end", func() bool {
		select {
		case <-s.exited:
			return true
		default:
			return false
		}
	})
	t.Logf("the gateway ended %v after SIGTERM", time.Since(asked).Round(time.Millisecond))
	s.closeBook()
	disk.repair(t)
	disk.mount(t)
	s.start()
	w.recovered()
}
