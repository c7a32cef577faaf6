// Package storetest opens throw-away stores for tests, on SQLite and on
// PostgreSQL, so that every claim is tested on both:
//
//	func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }
//
//	func TestACaseNeverWalksBack(t *testing.T) {
//		storetest.Each(t, func(t *testing.T, s *store.Store) { … })
//	}
//
// PostgreSQL is the server that VIGIE_TEST_POSTGRES names
// (postgres://user@host/database, whose user may create databases), or else a
// cluster of its own started from Debian's postgresql package. Where there is
// neither, the PostgreSQL half of a test is skipped, loudly.
package storetest

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/vigie/vigie/store"
)

// Main runs the tests and stops the PostgreSQL cluster, if one was started.
func Main(m *testing.M) int {
	defer stopCluster()
	return m.Run()
}

// Databases are the names of the databases that Each runs on.
var Databases = []string{"sqlite", "postgres"}

// Each runs test as a subtest on a fresh store of each database.
func Each(t *testing.T, test func(t *testing.T, s *store.Store)) {
	t.Helper()
	for _, database := range Databases {
		t.Run(database, func(t *testing.T) { test(t, Open(t, database)) })
	}
}

// EachConfig is Each for tests that open their store themselves, or several
// times.
func EachConfig(t *testing.T, test func(t *testing.T, config store.Config)) {
	t.Helper()
	for _, database := range Databases {
		t.Run(database, func(t *testing.T) { test(t, Config(t, database)) })
	}
}

// Open opens a fresh store on the named database, closed with the test.
func Open(t testing.TB, database string) *store.Store {
	t.Helper()
	return Reopen(t, Config(t, database))
}

// Reopen opens a store that is closed with the test.
func Reopen(t testing.TB, config store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Config returns the configuration of a fresh, empty store.
func Config(t testing.TB, database string) store.Config {
	t.Helper()
	dir := t.TempDir()
	config := store.Config{
		URL:     "sqlite:" + filepath.Join(dir, "state", "vigie.db"),
		BlobDir: filepath.Join(dir, "objects"),
		Logger:  slog.New(slog.DiscardHandler),
	}
	if database == "postgres" {
		config.URL = freshDatabase(t)
	}
	return config
}
