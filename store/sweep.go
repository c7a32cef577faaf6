package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Sweep removes blobs that no object refers to and unfinished files, if they
// were last changed longer than age ago, and returns how many it removed. They
// are what a crash leaves between a blob's Commit and the transaction that
// records it, so age must exceed the longest such gap: an hour is plenty.
func (s *Store) Sweep(ctx context.Context, age time.Duration) (int, error) {
	if s.blobs == nil {
		return 0, errors.New("store: sweeping blobs: the store has no folder of objects")
	}
	removed, before := 0, s.now().Add(-age)
	for _, shard := range shards() {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		n, err := s.sweepShard(ctx, filepath.Join(s.blobs.dir, shard), before)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("store: sweeping blobs in %s: %w", shard, mapped(err))
		}
	}
	return removed, nil
}

func (s *Store) sweepShard(ctx context.Context, dir string, before time.Time) (int, error) {
	entries, err := s.blobs.files.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var orphans []string
	err = s.View(ctx, func(tx *Tx) error {
		for _, entry := range entries {
			info, err := entry.Info()
			if err != nil || !info.ModTime().Before(before) {
				continue // gone since, or too young to judge
			}
			if strings.HasSuffix(entry.Name(), partSuffix) {
				orphans = append(orphans, entry.Name())
				continue
			}
			if _, err := s.blobs.path(BlobName(entry.Name())); err != nil {
				continue // not ours
			}
			var one int
			err = tx.QueryRow([]any{&one}, "SELECT 1 FROM objects WHERE blob = $1 LIMIT 1", entry.Name())
			if errors.Is(err, ErrNotFound) {
				orphans = append(orphans, entry.Name())
			} else if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for i, name := range orphans {
		if err := s.blobs.files.Remove(filepath.Join(dir, name)); err != nil {
			return i, err
		}
	}
	return len(orphans), nil
}
