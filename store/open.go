package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/riverqueue/river"
)

// Config says where a store lies.
type Config struct {
	// URL is "sqlite:/path/to/file.db" or "postgres://user@host/database?…".
	URL string

	// BlobDir is the folder of encrypted objects, made if it is missing.
	// With several gateways it is a file system that all of them share.
	// Empty: Store.Blobs returns nil.
	BlobDir string

	// Files replaces the operating system's files under BlobDir, for tests
	// that need a disk to fail. Nil: the operating system.
	Files FileSystem

	// Logger receives what the job queue has to say. Nil: slog.Default().
	Logger *slog.Logger

	// JobTimeout is how long one job may run before its context is cancelled.
	// Zero: one minute.
	JobTimeout time.Duration
}

// Store is an open database with its folder of objects. It is safe for
// concurrent use. Close it.
type Store struct {
	config Config
	logger *slog.Logger
	db     dialect
	blobs  *Blobs
	now    func() time.Time

	queue     chan *pending // closures waiting for their turn in a transaction
	closing   chan struct{}
	committer sync.WaitGroup
	closeOnce sync.Once

	inserter *river.Client[*sql.Tx]
	jobs     jobs
}

// dialect is what differs between the two databases.
type dialect interface {
	name() string
	writer() *sql.DB // where Update and the job queue work
	reader() *sql.DB
	riverDriver() riverDriver
	// migrateLock keeps other processes from migrating at the same time.
	migrateLock(ctx context.Context) (unlock func(), err error)
	// begin starts what Update runs in: the only writing transaction at a
	// time, in this process and in every other.
	begin(ctx context.Context, conn *sql.Conn) (*sql.Tx, error)
	readOptions() *sql.TxOptions
	lockRow() string // suffix of SELECT that locks the row, if the database needs one
	forget(ctx context.Context) error
	// claimJobs makes this process, known to the queue as worker, the owner of the jobs it will run.
	claimJobs(ctx context.Context, worker string) (release func(), err error)
	// deadWorkers returns those of the workers that are not alive.
	deadWorkers(ctx context.Context, workers []string) ([]string, error)
	close() error
}

// Open opens the store that config names, creates what is missing and brings
// the schema up to date.
func Open(ctx context.Context, config Config) (*Store, error) {
	s := &Store{
		config: config, logger: config.Logger, now: time.Now,
		queue: make(chan *pending), closing: make(chan struct{}),
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	var err error
	if s.db, err = openDialect(ctx, config.URL); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		s.db.close()
		return nil, err
	}
	return s, nil
}

func openDialect(ctx context.Context, url string) (dialect, error) {
	scheme, _, _ := strings.Cut(url, ":")
	switch scheme {
	case "sqlite":
		return openSQLite(ctx, strings.TrimPrefix(url, "sqlite:"))
	case "postgres", "postgresql":
		return openPostgres(ctx, url)
	}
	return nil, fmt.Errorf("store: opening a database with scheme %q: use sqlite:/path/to/file.db or postgres://…", scheme)
}

func (s *Store) start(ctx context.Context) error {
	if s.config.BlobDir != "" {
		files := s.config.Files
		if files == nil {
			files = OS{}
		}
		var err error
		if s.blobs, err = OpenBlobs(s.config.BlobDir, files); err != nil {
			return err
		}
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	inserter, err := river.NewClient(s.db.riverDriver(), &river.Config{Logger: s.logger, FetchCooldown: notifyWindow})
	if err != nil {
		return fmt.Errorf("store: preparing the job queue: %w", err)
	}
	s.inserter = inserter
	s.committer.Go(s.commitLoop)
	return nil
}

// Close stops the jobs, lets running transactions end and closes the database.
func (s *Store) Close() error {
	var err error
	s.closeOnce.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err = s.StopJobs(ctx)
		close(s.closing)
		s.committer.Wait()
		err = errors.Join(err, s.db.close())
	})
	return err
}

// Database names the kind of database: "sqlite" or "postgres".
func (s *Store) Database() string { return s.db.name() }

// Blobs returns the folder of encrypted objects, nil if none is configured.
func (s *Store) Blobs() *Blobs { return s.blobs }

// Ping asks the database for an answer.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.db.reader().QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
		return fmt.Errorf("store: asking the database for a sign of life: %w", mapped(err))
	}
	return nil
}
