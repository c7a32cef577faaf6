package peers

import (
	"errors"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/vigie/vigie/demo"
)

// cluster is a PostgreSQL server of the test's own, to be taken away and given
// back.
type cluster struct {
	t       *testing.T
	bin     string
	dir     string
	user    *syscall.Credential
	process *exec.Cmd
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("SKIPPED: there is no /usr/lib/postgresql/*/bin (Debian package postgresql): a database that goes away is NOT tested here")
	}
	// A socket's path may have no more than 107 bytes.
	dir, err := os.MkdirTemp("", "vigie-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cluster{t: t, bin: filepath.Dir(found[len(found)-1]), dir: dir}
	if os.Geteuid() == 0 { // as whom PostgreSQL refuses to run
		owner, err := user.Lookup("postgres")
		if err != nil {
			t.Skipf("SKIPPED: running as root, and there is no user postgres: a database that goes away is NOT tested here: %v", err)
		}
		uid, _ := strconv.ParseUint(owner.Uid, 10, 32)
		gid, _ := strconv.ParseUint(owner.Gid, 10, 32)
		c.user = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := c.command("initdb", "-D", filepath.Join(dir, "data"), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	c.start()
	t.Cleanup(func() { c.stop(syscall.SIGINT) })
	return c
}

func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Dir = c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.user}
	return cmd
}

func (c *cluster) url() string { return "postgres://postgres@/postgres?host=" + url.QueryEscape(c.dir) }

func (c *cluster) start() {
	c.t.Helper()
	c.process = c.command("postgres", "-D", filepath.Join(c.dir, "data"), "-k", c.dir, "-c", "listen_addresses=", "-c", "max_connections=200")
	c.process.SysProcAttr.Pdeathsig = syscall.SIGINT
	if err := c.process.Start(); err != nil {
		c.t.Fatal(err)
	}
	waitFor(c.t, "PostgreSQL to answer", func() bool {
		return c.command("pg_isready", "-q", "-h", c.dir, "-U", "postgres").Run() == nil
	})
}

// stop ends the server: by SIGINT in order, by SIGQUIT as if it crashed.
func (c *cluster) stop(signal syscall.Signal) {
	c.t.Helper()
	if err := c.process.Process.Signal(signal); errors.Is(err, os.ErrProcessDone) {
		return
	} else if err != nil {
		c.t.Error(err)
	}
	_ = c.process.Wait() // a crash has its status
}

func TestADatabaseThatGoesAwayLosesNothingAndTheGatewayGoesOnByItself(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a PostgreSQL cluster, stops and crashes it")
	}
	database := startCluster(t)
	w := startWard(newSite(t, demo.SiteOptions{Store: database.url()}))
	w.sendBoth(true)
	for name, signal := range map[string]syscall.Signal{"shut down": syscall.SIGINT, "crashed": syscall.SIGQUIT} {
		// Cases are still being analysed and delivered when it goes.
		w.sendBoth(true)
		database.stop(signal)
		began := time.Now()
		w.sendBoth(false)
		t.Logf("%s: two senders knew after %v", name, time.Since(began).Round(time.Millisecond))
		w.notReady("store", "")
		database.start()
		w.recovered()
	}
}
