package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
)

// Keys of PostgreSQL advisory locks: the two-key form, with a first key of our
// own so that they meet no other program's.
const (
	lockSpace   = 0x76696769 // "vigi"
	lockMigrate = 1
	lockWrite   = 2
	lockWorkers = 0x76696770 // second key: hash of a worker's name
)

// pgDB is PostgreSQL through pgx.
type pgDB struct {
	db       *sql.DB
	listener *pgxpool.Pool // gives the job queue its LISTEN connection
}

func openPostgres(ctx context.Context, url string) (dialect, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("store: reading the PostgreSQL URL: %w", err) // pgx hides the password
	}
	// What is acknowledged must survive a power failure, whatever the
	// server's default; and a frozen process must not hold the writers' lock.
	config.RuntimeParams["synchronous_commit"] = "on"
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "60000"
	config.RuntimeParams["application_name"] = "vigie"
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(16)
	db.SetConnMaxIdleTime(5 * time.Minute)
	pool, err := pgxpool.ParseConfig(url)
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("store: reading the PostgreSQL URL: %w", err)
	}
	pool.MinConns, pool.MaxConns = 0, 2
	listener, err := pgxpool.NewWithConfig(ctx, pool)
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("store: preparing the listener of the job queue: %w", mapped(err))
	}
	if err := db.PingContext(ctx); err != nil {
		db.Close()
		listener.Close()
		return nil, fmt.Errorf("store: reaching PostgreSQL at %s: %w", config.Host, mapped(err))
	}
	return &pgDB{db: db, listener: listener}, nil
}

func (p *pgDB) name() string    { return "postgres" }
func (p *pgDB) writer() *sql.DB { return p.db }
func (p *pgDB) reader() *sql.DB { return p.db }
func (p *pgDB) lockRow() string { return " FOR UPDATE" }
func (p *pgDB) riverDriver() riverDriver {
	return riverdatabasesql.NewWithPgxListener(p.db, p.listener)
}

func (p *pgDB) readOptions() *sql.TxOptions {
	return &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
}

func (p *pgDB) close() error {
	p.listener.Close()
	return p.db.Close()
}

// begin takes turns with every other Update, in this process and in others,
// which is what BEGIN IMMEDIATE does in SQLite: what a closure reads stays
// true until it commits, the audit log has one next index, and writers cannot
// deadlock among themselves. Sharing one commit among the closures that wait
// makes up for the lost concurrency.
func (p *pgDB) begin(ctx context.Context, conn *sql.Conn) (*sql.Tx, error) {
	tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1, $2)", lockSpace, lockWrite); err != nil {
		tx.Rollback()
		return nil, err
	}
	return tx, nil
}

// forget lets PostgreSQL reuse the space of overwritten keys. Its write-ahead
// log and backups keep them longer: only the master key protects those.
func (p *pgDB) forget(ctx context.Context) error {
	_, err := p.db.ExecContext(ctx, "VACUUM patient_keys")
	return err
}

func (p *pgDB) migrateLock(ctx context.Context) (func(), error) {
	return p.sessionLock(ctx, "SELECT pg_advisory_lock($1, $2)", lockSpace, lockMigrate)
}

// claimJobs holds an advisory lock under the worker's name on a connection of
// its own. The server drops it when the process dies or is cut off, and then
// others know that its running jobs are orphans.
func (p *pgDB) claimJobs(ctx context.Context, worker string) (func(), error) {
	return p.sessionLock(ctx, "SELECT pg_advisory_lock($1, hashtext($2))", lockWorkers, worker)
}

func (p *pgDB) sessionLock(ctx context.Context, query string, args ...any) (func(), error) {
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.ExecContext(ctx, query, args...); err != nil {
		conn.Close()
		return nil, err
	}
	return func() {
		// Closing a pooled connection would return it with its lock.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_unlock_all()"); err != nil {
			discard(conn)
		}
		conn.Close()
	}, nil
}

func (p *pgDB) deadWorkers(ctx context.Context, workers []string) ([]string, error) {
	var dead []string
	for _, worker := range workers {
		var alive bool
		err := p.db.QueryRowContext(ctx, `SELECT EXISTS (
			SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			AND objsubid = 2 AND classid = $1::bigint::oid AND objid = ((hashtext($2)::bigint) & 4294967295)::oid)`,
			lockWorkers, worker).Scan(&alive)
		if err != nil {
			return nil, err
		}
		if !alive {
			dead = append(dead, worker)
		}
	}
	return dead, nil
}
