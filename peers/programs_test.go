package peers

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vigie/vigie/demo/ports"
)

// program finds a peer's executable or skips, saying so.
func program(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/sbin", "/bin", "/usr/local/bin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	t.Skipf("SKIPPED: the peer %s is not installed (Debian packages dcmtk, dicom3tools, orthanc, orthanc-dicomweb, python3-pydicom): living with it is NOT tested here", name)
	return ""
}

// runPeer runs a peer's program to its end, killed after three minutes.
func runPeer(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program(t, name), args...).CombinedOutput()
	return string(out), err
}

// startPeer starts a peer's server, waits until it listens at address, and ends
// it with the test.
func startPeer(t testing.TB, address, name string, args ...string) {
	t.Helper()
	var output bytes.Buffer
	cmd := exec.Command(program(t, name), args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, output.String())
		}
	})
	waitFor(t, name+" to listen", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func hostPort(t testing.TB, address string) (host, port string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

func freeAddress(t testing.TB) string {
	t.Helper()
	addresses, err := ports.Reserve(1)
	if err != nil {
		t.Fatal(err)
	}
	return addresses[0]
}

// valid reports what dciodvfy finds wrong with a file.
func valid(t testing.TB, path string) {
	t.Helper()
	out, _ := runPeer(t, "dciodvfy", path) // its status says nothing
	if !strings.Contains(out, "\n") {
		t.Errorf("dciodvfy says nothing of %s", path)
	}
	for _, line := range strings.Split(out, "\n") {
		if strings.HasPrefix(line, "Error") {
			t.Errorf("dciodvfy of %s: %s", filepath.Base(path), line)
		}
	}
}
