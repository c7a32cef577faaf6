package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/riverqueue/river/riverdriver/riversqlite"
)

// liteDB is SQLite: one connection writes, several read beside it (WAL).
type liteDB struct {
	path string
	w, r *sql.DB
}

func openSQLite(ctx context.Context, path string) (dialect, error) {
	path = strings.TrimPrefix(path, "//")
	if path == "" || strings.ContainsAny(path, "?#") || strings.HasPrefix(path, ":") {
		return nil, fmt.Errorf("store: opening SQLite at %q: give a file, as in sqlite:/var/lib/vigie/vigie.db", path)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("store: opening SQLite at %q: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("store: creating the folder of %s: %w", path, mapped(err))
	}
	// SQLite gives its log and index files the mode of the database file.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: opening %s: %w", path, mapped(err))
	}
	f.Close()
	db := &liteDB{path: path}
	if db.w, err = openCached(dataSource(path, "_txlock=immediate")); err != nil {
		return nil, fmt.Errorf("store: opening %s: %w", path, err)
	}
	// One connection: writers queue in Go, fairly, instead of polling
	// SQLite's lock, and none of them ever sees SQLITE_BUSY from another.
	db.w.SetMaxOpenConns(1)
	if db.r, err = openCached(dataSource(path, "_pragma=query_only(1)")); err != nil {
		db.w.Close()
		return nil, fmt.Errorf("store: opening %s: %w", path, err)
	}
	db.r.SetMaxOpenConns(8)
	db.r.SetMaxIdleConns(8)
	if err := db.w.PingContext(ctx); err != nil {
		db.close()
		return nil, fmt.Errorf("store: opening %s: %w", path, mapped(err))
	}
	return db, nil
}

func dataSource(path, extra string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	return "file:" + strings.Join(parts, "/") + "?" + strings.Join([]string{
		"_pragma=busy_timeout(10000)", // another process, such as the command line, may write
		"_pragma=journal_mode(WAL)",
		"_pragma=synchronous(FULL)", // a commit is on the disk when it returns
		"_pragma=foreign_keys(1)",
		"_pragma=secure_delete(1)", // an erased key is overwritten
		"_pragma=temp_store(2)",    // sort in memory, not in files
		"_pragma=cache_size(-16384)",
		"_pragma=journal_size_limit(67108864)",
		"_pragma=trusted_schema(0)",
		extra,
	}, "&")
}

func (db *liteDB) name() string                { return "sqlite" }
func (db *liteDB) writer() *sql.DB             { return db.w }
func (db *liteDB) reader() *sql.DB             { return db.r }
func (db *liteDB) riverDriver() riverDriver    { return riversqlite.New(db.w) }
func (db *liteDB) readOptions() *sql.TxOptions { return nil }
func (db *liteDB) lockRow() string             { return "" }

func (db *liteDB) close() error { return errors.Join(db.r.Close(), db.w.Close()) }

func (db *liteDB) begin(ctx context.Context, conn *sql.Conn) (*sql.Tx, error) {
	return conn.BeginTx(ctx, nil) // BEGIN IMMEDIATE, by _txlock
}

// forget moves the log into the database and empties it, so that overwritten
// values are in neither.
func (db *liteDB) forget(ctx context.Context) error {
	var busy, frames, moved int
	if err := db.w.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &frames, &moved); err != nil {
		return err
	}
	if busy != 0 {
		return errors.New("a reader kept the write-ahead log from being emptied")
	}
	return nil
}

func (db *liteDB) migrateLock(ctx context.Context) (func(), error) {
	return lockFile(ctx, db.path+".migrate.lock")
}

// claimJobs holds a lock file for as long as this process works jobs: SQLite
// serves one machine, so whoever holds the file knows that every job left
// running belongs to a process that died.
func (db *liteDB) claimJobs(ctx context.Context, _ string) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	release, err := lockFile(ctx, db.path+".jobs.lock")
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, ErrInUse
	}
	return release, err
}

func (db *liteDB) deadWorkers(_ context.Context, workers []string) ([]string, error) {
	return workers, nil // see claimJobs
}

// lockFile takes an exclusive advisory lock that ends with the process.
func lockFile(ctx context.Context, path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, mapped(err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, mapped(err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
