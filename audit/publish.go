package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/transparency-dev/formats/log"
	"github.com/vigie/vigie/store"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrForked means that the log no longer agrees with a checkpoint it signed
// before. Nothing is signed any more; run Verify and find out who changed it.
var ErrForked = errors.New("the log contradicts its own earlier checkpoint")

// Latest returns the newest stored checkpoint, store.ErrNotFound if there is
// none.
func (l *Log) Latest(tx *store.Tx) (Checkpoint, error) {
	var signed []byte
	if err := tx.QueryRow([]any{&signed}, "SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1"); err != nil {
		return Checkpoint{}, fmt.Errorf("audit: reading the latest checkpoint: %w", err)
	}
	return openCheckpoint(signed, l.verifier)
}

// Publish signs the log as it stands and stores the checkpoint, unless nothing
// was appended since the last one, which it then returns. Before it signs, it
// makes sure that the log still contains that last one unchanged, and the one
// it remembers (see Remember), and returns ErrForked otherwise: the stored one
// alone could be removed by whoever rewrites the records.
func (l *Log) Publish(ctx context.Context) (Checkpoint, error) {
	var published Checkpoint
	known := l.remembered()
	err := l.store.Update(ctx, func(tx *store.Tx) error {
		n, err := size(tx)
		if err != nil {
			return err
		}
		if err := l.extends(tx, known, n); err != nil {
			return err
		}
		last, err := l.Latest(tx)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return err
		default:
			if err := l.extends(tx, last, n); err != nil {
				return err
			}
			if last.Size == n {
				published = last
				return nil
			}
		}
		if published, err = l.sign(tx, n); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO audit_checkpoints (size, note, time) VALUES ($1, $2, $3)",
			n, published.Note, tx.Now().UnixMicro())
		return err
	})
	if err != nil {
		return Checkpoint{}, fmt.Errorf("audit: publishing a checkpoint: %w", err)
	}
	l.remember(published)
	return published, nil
}

// Remember makes Publish hold the log to the checkpoint under dir, where a
// Publisher of a former run wrote its tiles, and returns the signed note, nil
// if there is none. A folder of another log is an error: its key has changed.
func (l *Log) Remember(dir string) ([]byte, error) {
	c, err := l.tiled(dir)
	if err == nil {
		l.remember(c)
	}
	return c.Note, err
}

func (l *Log) remember(c Checkpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.Size >= l.known.Size {
		l.known = c
	}
}

func (l *Log) remembered() Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known
}

// extends checks that the tree of size n has the checkpoint as a prefix.
func (l *Log) extends(tx *store.Tx, c Checkpoint, n int64) error {
	if c.Note == nil {
		return nil
	}
	if n < c.Size {
		return fmt.Errorf("it holds %d records, and signed %d: %w", n, c.Size, ErrForked)
	}
	root, err := tlog.TreeHash(c.Size, storedHashes{tx})
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("its first %d records have another root than was signed: %w", c.Size, ErrForked)
	}
	return nil
}

func (l *Log) sign(tx *store.Tx, n int64) (Checkpoint, error) {
	root, err := tlog.TreeHash(n, storedHashes{tx})
	if err != nil {
		return Checkpoint{}, err
	}
	text := log.Checkpoint{Origin: l.origin, Size: uint64(n), Hash: root[:]}.Marshal()
	signed, err := note.Sign(&note.Note{Text: string(text)}, l.signer)
	if err != nil {
		return Checkpoint{}, err
	}
	return Checkpoint{Size: n, Root: root, Note: signed}, nil
}

// Publisher signs a checkpoint whenever the log has grown.
type Publisher struct {
	Log      *Log
	Interval time.Duration // zero: one second
	TileDir  string        // where to write tlog-tiles; empty: nowhere
	Logger   *slog.Logger  // nil: slog.Default()
}

// Run publishes until ctx ends, and once more then, so that a clean shutdown
// leaves no unsigned record. It goes on after errors, which it logs, because a
// full disk passes; it returns what the last publication returned.
func (p *Publisher) Run(ctx context.Context) error {
	interval, logger := p.Interval, p.Logger
	if interval <= 0 {
		interval = time.Second
	}
	if logger == nil {
		logger = slog.Default()
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := p.publish(ctx); err != nil && ctx.Err() == nil {
				logger.Error("the audit log could not be published", "error", err)
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			return p.publish(last)
		}
	}
}

func (p *Publisher) publish(ctx context.Context) error {
	checkpoint, err := p.Log.Publish(ctx)
	if err != nil || p.TileDir == "" {
		return err
	}
	return p.Log.WriteTiles(ctx, p.TileDir, checkpoint)
}
