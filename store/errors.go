package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Errors that callers branch on. The first three say that the machine lacks
// something; see OutOfResources.
var (
	// ErrFull: no space is left for the database or for an object.
	ErrFull = errors.New("no space is left on the disk: free some, and the work goes on by itself")

	// ErrReadOnly: the database or the folder of objects cannot be written.
	ErrReadOnly = errors.New("the disk or database is read-only: make it writable, and the work goes on by itself")

	// ErrUnavailable: the database cannot be reached or the disk answers with
	// errors.
	ErrUnavailable = errors.New("the database or its disk does not answer")

	// ErrUncertain: the connection broke during the commit, so nobody knows
	// whether the transaction took effect. What it refers to must be kept. It
	// comes together with ErrUnavailable.
	ErrUncertain = errors.New("whether the transaction took effect is not known")

	// ErrNotFound: there is no such row or blob.
	ErrNotFound = errors.New("not found")

	// ErrExists: a row with this identity exists already.
	ErrExists = errors.New("it exists already")

	// ErrClosed: the store was closed.
	ErrClosed = errors.New("the store is closed")

	// ErrJobLost: the job is no longer this worker's. It was completed or
	// given to another worker, so this run must leave no effect.
	ErrJobLost = errors.New("the job was completed or taken over by another worker")

	// ErrInUse: another process works the jobs of this SQLite database.
	ErrInUse = errors.New("another process works the jobs of this database")
)

// OutOfResources reports whether err means that the machine, not the request,
// is at fault (a full or read-only disk, a database out of reach), so that a
// sender should be told to try again later.
func OutOfResources(err error) bool {
	return errors.Is(err, ErrFull) || errors.Is(err, ErrReadOnly) || errors.Is(err, ErrUnavailable)
}

// severity says what an error of the database did to the transaction it
// happened in.
type severity int

const (
	harmless severity = iota // the statement failed; a savepoint can be rolled back to
	fatal                    // the transaction is gone
	retry                    // the transaction is gone, and the same work may succeed if repeated
)

// classify maps err to the package's errors and says how bad it is. It keeps
// err in the chain.
func classify(err error) (severity, error) {
	if err == nil {
		return harmless, nil
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		// SQLite may roll the whole transaction back by itself on the codes
		// marked fatal ("Response To Errors Within A Transaction",
		// sqlite.org/lang_transaction.html).
		switch lite.Code() & 0xff {
		case sqlite3.SQLITE_FULL:
			return fatal, mark(ErrFull, err)
		case sqlite3.SQLITE_READONLY:
			return fatal, mark(ErrReadOnly, err)
		case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR:
			return fatal, mark(fromSystem(err, ErrUnavailable), err)
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
			return retry, err
		case sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT:
			return fatal, err
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return fatal, mark(ErrUnavailable, err)
		}
		return harmless, err
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch {
		case pg.Code == "53100": // disk_full
			return harmless, mark(ErrFull, err)
		case pg.Code == "25006": // read_only_sql_transaction
			return harmless, mark(ErrReadOnly, err)
		case pg.Code == "40001", pg.Code == "40P01", pg.Code == "55P03": // serialization_failure, deadlock_detected, lock_not_available
			return retry, err
		case strings.HasPrefix(pg.Code, "53"), strings.HasPrefix(pg.Code, "58"), strings.HasPrefix(pg.Code, "57P"), strings.HasPrefix(pg.Code, "08"):
			// insufficient resources, system error, shutdown, connection
			return fatal, mark(ErrUnavailable, err)
		}
		return harmless, err
	}
	if kind := fromSystem(err, nil); kind != nil {
		return harmless, mark(kind, err)
	}
	var connect *pgconn.ConnectError
	var network *net.OpError
	if errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return fatal, mark(ErrUnavailable, err)
	}
	return harmless, err
}

// uncertain marks the error of a commit that may have taken effect all the
// same. It surely did not when the server itself says that it failed, or when
// SQLite had no room to write it.
func uncertain(err error, severity severity) error {
	var answered *pgconn.PgError
	if errors.Is(err, ErrFull) || errors.Is(err, ErrReadOnly) || severity == harmless && errors.As(err, &answered) {
		return err
	}
	return mark(ErrUncertain, mark(ErrUnavailable, err))
}

// fromSystem maps an error of the operating system, or gives otherwise.
func fromSystem(err, otherwise error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ErrFull
	case errors.Is(err, syscall.EROFS):
		return ErrReadOnly
	case errors.Is(err, syscall.EIO):
		return ErrUnavailable
	}
	return otherwise
}

func mark(kind, err error) error {
	if errors.Is(err, kind) {
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// mapped is classify for callers that need no severity.
func mapped(err error) error {
	_, err = classify(err)
	return err
}
