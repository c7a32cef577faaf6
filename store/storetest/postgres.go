package storetest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the "pgx" driver of database/sql
)

var cluster struct {
	once    sync.Once
	url     string // of a database from which others are created
	dir     string
	process *exec.Cmd
	problem string // why there is none
}

// freshDatabase creates an empty database, dropped with the test.
func freshDatabase(t testing.TB) string {
	t.Helper()
	cluster.once.Do(startCluster)
	if cluster.problem != "" {
		t.Skipf("PostgreSQL NOT TESTED: %s. Install the package postgresql or set VIGIE_TEST_POSTGRES=postgres://user@host/database", cluster.problem)
	}
	admin, err := sql.Open("pgx", cluster.url)
	if err != nil {
		t.Fatal(err)
	}
	name := "vigie_test_" + strings.ToLower(rand.Text()[:16])
	if _, err := admin.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatalf("creating a test database: %v", err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Errorf("dropping a test database: %v", err)
		}
		admin.Close()
	})
	u, err := url.Parse(cluster.url)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

func startCluster() {
	if cluster.url = os.Getenv("VIGIE_TEST_POSTGRES"); cluster.url != "" {
		return
	}
	if err := launch(); err != nil {
		cluster.problem = err.Error()
		stopCluster()
	}
}

// launch makes a cluster that listens on a socket in a folder of its own, as
// an ordinary user: PostgreSQL refuses to run as root.
func launch() error {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return fmt.Errorf("there is no /usr/lib/postgresql/*/bin/postgres")
	}
	bin := filepath.Dir(found[len(found)-1])
	// Not t.TempDir: the server's user must be able to enter it, and a socket
	// path may have no more than 107 bytes.
	dir, err := os.MkdirTemp("", "vigie-pg-")
	if err != nil {
		return err
	}
	cluster.dir = dir
	var attributes syscall.SysProcAttr
	if os.Geteuid() == 0 {
		owner, err := user.Lookup("postgres")
		if err != nil {
			return fmt.Errorf("running as root, and there is no user postgres to run the server as: %w", err)
		}
		uid, _ := strconv.ParseUint(owner.Uid, 10, 32)
		gid, _ := strconv.ParseUint(owner.Gid, 10, 32)
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			return err
		}
		attributes.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = dir, &attributes
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb failed: %s", out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "max_connections=200")
	server.Dir, server.Stdout, server.Stderr = dir, log, log
	// If the test binary is killed, its server must not stay.
	server.SysProcAttr = &syscall.SysProcAttr{Credential: attributes.Credential, Pdeathsig: syscall.SIGINT}
	if err := server.Start(); err != nil {
		return err
	}
	cluster.process = server
	cluster.url = "postgres://postgres@/postgres?host=" + url.QueryEscape(dir)
	return waitForCluster()
}

func waitForCluster() error {
	db, err := sql.Open("pgx", cluster.url)
	if err != nil {
		return err
	}
	defer db.Close()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := db.PingContext(ctx)
		cancel()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server did not answer within 30 s: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func stopCluster() {
	if cluster.process != nil {
		// runuser passes the signal on. SIGINT is PostgreSQL's fast shutdown.
		cluster.process.Process.Signal(syscall.SIGINT)
		ended := make(chan struct{})
		go func() { cluster.process.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			cluster.process.Process.Kill()
			<-ended
		}
		cluster.process = nil
	}
	if cluster.dir != "" {
		os.RemoveAll(cluster.dir)
		cluster.dir = ""
	}
}
