package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	// maxBatch bounds how many closures share one commit, so that the first
	// does not wait long for the last.
	maxBatch = 128
	// maxAttempts bounds how often a closure is repeated after a deadlock.
	maxAttempts = 8
)

// pending is one call of Update, waiting for its turn.
//
// The committer owns the transaction and hands it to one closure after the
// other. Each closure runs in its caller's goroutine, so a panic ends the
// right one.
type pending struct {
	ctx      context.Context
	state    atomic.Int32
	turn     chan *Tx   // the committer gives the transaction
	ran      chan error // the closure's result
	done     chan error // the outcome of the commit
	attempts int
}

const (
	waiting int32 = iota
	running
	withdrawn
)

// Update runs fn in a transaction that is durable when Update returns nil.
// If fn returns an error nothing of it remains, and Update returns that error
// (wrapped only if the database caused it).
//
// Update waits for its turn until ctx ends. From then on it finishes whatever
// happens to ctx: the statements of fn run under a context that keeps ctx's
// values but not its end, because an interrupted statement would take the
// transaction of others with it.
//
// fn may run more than once, must be short, and must not call Update. See the
// package comment. Errors that say the machine is at fault satisfy
// OutOfResources; ErrUncertain means that the outcome is not known (the
// connection broke during the commit), so what fn refers to must be kept.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err // select would take a free committer as gladly as an ended context
	}
	p := &pending{ctx: ctx, turn: make(chan *Tx), ran: make(chan error), done: make(chan error, 1)}
	select {
	case s.queue <- p:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return ErrClosed
	}
	cancelled := ctx.Done()
	for {
		select {
		case tx := <-p.turn:
			p.run(tx, fn)
		case err := <-p.done:
			return err
		case <-cancelled:
			if p.state.CompareAndSwap(waiting, withdrawn) {
				return ctx.Err()
			}
			cancelled = nil // the closure has its turn: see it through
		}
	}
}

// run gives fn the transaction, and the committer its result even if fn
// panics or ends the goroutine.
func (p *pending) run(tx *Tx, fn func(*Tx) error) {
	returned := false
	defer func() {
		tx.over.Store(true)
		if returned {
			return
		}
		err := errors.New("store: the function given to Update did not return")
		p.ran <- err
		for { // the committer may want to repeat it
			select {
			case <-p.turn:
				p.ran <- err
			case <-p.done:
				return
			}
		}
	}()
	err := fn(tx)
	returned = true
	tx.over.Store(true)
	p.ran <- err
}

// commitLoop serves Update until Close.
func (s *Store) commitLoop() {
	for {
		select {
		case p := <-s.queue:
			again := s.batch(p, nil)
			for len(again) > 0 {
				again = s.batch(again[0], again[1:])
			}
		case <-s.closing:
			return
		}
	}
}

// batch runs first, rest and whoever else waits in one transaction, and
// returns those that must be repeated.
func (s *Store) batch(first *pending, rest []*pending) (again []*pending) {
	ctx := context.Background()
	conn, tx, err := s.beginBatch(ctx)
	if err != nil {
		_, err = classify(fmt.Errorf("store: beginning a transaction: %w", err))
		for _, p := range append([]*pending{first}, rest...) {
			p.finish(err)
		}
		return nil
	}
	defer conn.Close()

	var ran []*pending // their work is in the transaction
	// lost ends the batch when the transaction is gone: what ran before is
	// repeated, for it is innocent.
	lost := func() []*pending {
		tx.Rollback()
		discard(conn)
		return append(ran, rest...)
	}
	for p := first; p != nil; {
		outcome, result := s.step(ctx, tx, p, len(ran) > 0)
		switch outcome {
		case worked:
			ran = append(ran, p)
		case failed:
			p.finish(result)
		case undone: // it was the first, and its transaction has been rolled back
			p.finish(result)
			if len(rest) == 0 {
				return nil
			}
			return rest
		case gone:
			p.finish(result)
			return lost()
		case repeat:
			if p.attempts++; p.attempts >= maxAttempts {
				p.finish(fmt.Errorf("store: giving up after %d attempts: %w", p.attempts, result))
				return lost()
			}
			pause(p.attempts)
			return append(lost(), p)
		}
		p, rest = s.nextInBatch(len(ran), rest)
	}
	if len(ran) == 0 {
		tx.Rollback()
		return nil
	}
	if err := tx.Commit(); err != nil {
		severity, err := classify(fmt.Errorf("store: committing: %w", err))
		tx.Rollback()
		discard(conn)
		for _, p := range ran {
			if p.attempts++; severity == retry && p.attempts < maxAttempts {
				again = append(again, p)
				continue
			}
			p.finish(uncertain(err, severity))
		}
		if len(again) > 0 {
			pause(again[0].attempts)
		}
		return append(again, rest...)
	}
	for _, p := range ran {
		p.finish(nil)
	}
	return rest
}

func (s *Store) beginBatch(ctx context.Context) (*sql.Conn, *sql.Tx, error) {
	conn, err := s.db.writer().Conn(ctx)
	if err != nil {
		return nil, nil, err
	}
	tx, err := s.db.begin(ctx, conn)
	if err != nil {
		if severity, _ := classify(err); severity != harmless {
			discard(conn)
		}
		conn.Close()
		return nil, nil, err
	}
	return conn, tx, nil
}

// nextInBatch returns whose turn it is, nil if the batch is full or nobody
// waits.
func (s *Store) nextInBatch(ran int, rest []*pending) (*pending, []*pending) {
	if ran >= maxBatch {
		return nil, rest
	}
	if len(rest) > 0 {
		return rest[0], rest[1:]
	}
	select {
	case p := <-s.queue:
		return p, nil
	default:
		return nil, nil
	}
}

// outcome is what a closure did to the transaction.
type outcome int

const (
	worked outcome = iota // its statements are in the transaction
	failed                // they were rolled back, or there are none
	undone                // the whole transaction was rolled back; nobody else was in it
	gone                  // the database dropped the transaction
	repeat                // the same, and the closure may succeed if repeated
)

// step gives p its turn. Every closure but the first runs inside a savepoint;
// if the first fails, rolling everything back costs nobody anything.
func (s *Store) step(ctx context.Context, sqlTx *sql.Tx, p *pending, savepoint bool) (outcome, error) {
	if !p.state.CompareAndSwap(waiting, running) && p.state.Load() == withdrawn {
		return failed, nil
	}
	if savepoint {
		if _, err := sqlTx.ExecContext(ctx, "SAVEPOINT step"); err != nil {
			return gravely(fmt.Errorf("store: setting a savepoint: %w", err))
		}
	}
	tx := &Tx{store: s, sql: sqlTx, ctx: context.WithoutCancel(p.ctx)}
	p.turn <- tx
	result := <-p.ran
	if tx.fault != nil {
		// Even if the closure swallowed it: its transaction is gone.
		if result == nil {
			result = tx.fault
		}
		if tx.severity == retry {
			return repeat, result
		}
		return gone, result
	}
	if !savepoint {
		if result == nil {
			return worked, nil
		}
		if err := sqlTx.Rollback(); err != nil {
			return gone, result
		}
		return undone, result
	}
	if result == nil {
		if _, err := sqlTx.ExecContext(ctx, "RELEASE SAVEPOINT step"); err == nil {
			return worked, nil
		} else {
			// PostgreSQL refuses here if the closure hid a failed statement.
			_, result = classify(fmt.Errorf("store: a statement failed and its error was not returned: %w", err))
		}
	}
	if _, err := sqlTx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT step"); err != nil {
		return gone, result
	}
	if _, err := sqlTx.ExecContext(ctx, "RELEASE SAVEPOINT step"); err != nil {
		return gone, result
	}
	return failed, result
}

// gravely sorts an error that cost the transaction.
func gravely(err error) (outcome, error) {
	severity, err := classify(err)
	if severity == retry {
		return repeat, err
	}
	return gone, err
}

// finish tells the caller how it ended. Callers that withdrew do not listen;
// the channel has room for it.
func (p *pending) finish(err error) { p.done <- err }

// discard closes a connection that may be in an unknown state, so that the
// pool opens another.
func discard(conn *sql.Conn) {
	conn.Raw(func(any) error { return driver.ErrBadConn })
}

// pause waits a little longer after each failed attempt.
func pause(attempts int) { time.Sleep(time.Duration(1<<attempts) * time.Millisecond) }

// View runs fn in a transaction that reads one consistent state and cannot
// write. It does not wait for writers. Unlike Update's, its statements end
// with ctx.
func (s *Store) View(ctx context.Context, fn func(*Tx) error) error {
	select {
	case <-s.closing:
		return ErrClosed
	default:
	}
	sqlTx, err := s.db.reader().BeginTx(ctx, s.db.readOptions())
	if err != nil {
		return fmt.Errorf("store: beginning to read: %w", mapped(err))
	}
	defer sqlTx.Rollback() // a transaction that only read has nothing to commit
	tx := &Tx{store: s, sql: sqlTx, ctx: ctx}
	defer tx.over.Store(true)
	return fn(tx)
}
