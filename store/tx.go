package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Tx is one transaction, or one closure's part of it. It is valid until the
// function it was given to returns, in that function's goroutine only.
type Tx struct {
	store *Store
	sql   *sql.Tx
	ctx   context.Context
	over  atomic.Bool

	// fault is the first error that cost the whole transaction. After it no
	// statement may reach the database: SQLite would run it outside of any
	// transaction, and keep it.
	fault    error
	severity severity
}

// Context returns the context that the transaction's statements run under.
func (tx *Tx) Context() context.Context { return tx.ctx }

// Now returns the time that rows of this transaction are marked with, to the
// microsecond, in UTC.
func (tx *Tx) Now() time.Time { return tx.store.now().UTC().Truncate(time.Microsecond) }

// Exec runs a statement and returns how many rows it changed. Parameters are
// written $1, $2, … on both databases. For packages that keep tables of their
// own in the store, as the audit log does.
func (tx *Tx) Exec(query string, args ...any) (int64, error) {
	if err := tx.usable(); err != nil {
		return 0, err
	}
	result, err := tx.sql.ExecContext(tx.ctx, query, args...)
	if err != nil {
		return 0, tx.failed(err)
	}
	changed, err := result.RowsAffected()
	return changed, tx.failed(err)
}

// Query calls row for each row of the answer; row calls scan with one pointer
// per column and must not use the transaction. An error of row ends it.
func (tx *Tx) Query(row func(scan func(dest ...any) error) error, query string, args ...any) error {
	if err := tx.usable(); err != nil {
		return err
	}
	rows, err := tx.sql.QueryContext(tx.ctx, query, args...)
	if err != nil {
		return tx.failed(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return err
		}
	}
	return tx.failed(rows.Err())
}

// QueryRow reads the columns of one row into dest, one pointer per column. It
// returns ErrNotFound if there is none.
func (tx *Tx) QueryRow(dest []any, query string, args ...any) error {
	if err := tx.usable(); err != nil {
		return err
	}
	err := tx.sql.QueryRowContext(tx.ctx, query, args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	return tx.failed(err)
}

func (tx *Tx) usable() error {
	if tx.over.Load() {
		return errors.New("store: a transaction was used after its function returned")
	}
	if tx.fault != nil {
		return fmt.Errorf("store: the transaction is gone: %w", tx.fault)
	}
	return nil
}

// failed maps an error of the database and remembers one that cost the
// transaction.
func (tx *Tx) failed(err error) error {
	if err == nil {
		return nil
	}
	severity, err := classify(err)
	if severity != harmless && tx.fault == nil {
		tx.fault, tx.severity = err, severity
	}
	return err
}

// micros and fromMicros are how times are stored.
func micros(t time.Time) int64     { return t.UnixMicro() }
func fromMicros(n int64) time.Time { return time.UnixMicro(n).UTC() }
