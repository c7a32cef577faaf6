package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vigie/vigie/store"
	"golang.org/x/mod/sumdb/tlog"
)

// tileHeight is fixed by C2SP tlog-tiles: 256 hashes or entries a tile.
const tileHeight = 8

// WriteTiles brings the static copy of the log under dir up to checkpoint, in
// the layout of C2SP tlog-tiles (c2sp.org/tlog-tiles): tile/<level>/<n> with
// hashes, tile/entries/<n> with records, each with a .p/<width> suffix while
// it is not full, and checkpoint, written last. Any web server can serve it.
//
// The files repeat what the database holds: records carry pseudonyms and
// digests, so serve them to whom you would show those.
func (l *Log) WriteTiles(ctx context.Context, dir string, checkpoint Checkpoint) error {
	tiled, err := l.tiled(dir)
	if err != nil {
		return err
	}
	done := tiled.Size
	if done >= checkpoint.Size && checkpoint.Size > 0 {
		return nil
	}
	tiles := tlog.NewTiles(tileHeight, done, checkpoint.Size)
	for _, tile := range tiles {
		// One short transaction per tile: a first copy of a long log must not
		// hold a snapshot for minutes.
		err := l.store.View(ctx, func(tx *store.Tx) error {
			data, err := tlog.ReadTileData(tile, storedHashes{tx})
			if err != nil {
				return err
			}
			if err := writeFile(filepath.Join(dir, tilePath(tile)), data); err != nil || tile.L != 0 {
				return err
			}
			bundle, err := entryBundle(tx, tile)
			if err != nil {
				return err
			}
			tile.L = -1
			return writeFile(filepath.Join(dir, tilePath(tile)), bundle)
		})
		if err != nil {
			return fmt.Errorf("audit: writing %s under %s: %w", tilePath(tile), dir, err)
		}
	}
	if err := writeFile(filepath.Join(dir, "checkpoint"), checkpoint.Note); err != nil {
		return fmt.Errorf("audit: writing the checkpoint under %s: %w", dir, err)
	}
	return nil
}

// tiled returns the checkpoint under dir, zero if there is none. It is written
// last, so the files are complete up to its size.
func (l *Log) tiled(dir string) (Checkpoint, error) {
	signed, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if errors.Is(err, fs.ErrNotExist) {
		return Checkpoint{}, nil
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("audit: reading the published checkpoint: %w", err)
	}
	c, err := openCheckpoint(signed, l.verifier)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("audit: the folder %s holds the tiles of another log: %w", dir, err)
	}
	return c, nil
}

// tilePath is tlog's path without the height, which tlog-tiles leaves out, and
// with "entries" for the records.
func tilePath(tile tlog.Tile) string {
	path := strings.TrimPrefix(tile.Path(), "tile/"+strconv.Itoa(tileHeight)+"/")
	return "tile/" + strings.Replace(path, "data/", "entries/", 1)
}

// entryBundle is the records under a tile of level 0, each behind its length
// in two bytes, big endian.
func entryBundle(tx *store.Tx, tile tlog.Tile) ([]byte, error) {
	var b bytes.Buffer
	next := tile.N << tileHeight
	end := next + int64(tile.W)
	err := tx.Query(func(scan func(...any) error) error {
		var index int64
		var record []byte
		if err := scan(&index, &record); err != nil {
			return err
		}
		if index != next || len(record) > maxRecord {
			return fmt.Errorf("audit: record %d is missing or too long: the log is damaged, run vigie audit verify", next)
		}
		next++
		b.Write(binary.BigEndian.AppendUint16(nil, uint16(len(record))))
		b.Write(record)
		return nil
	}, "SELECT idx, record FROM audit_entries WHERE idx >= $1 AND idx < $2 ORDER BY idx", next, end)
	if err == nil && next != end {
		err = fmt.Errorf("audit: record %d is missing: the log is damaged, run vigie audit verify", next)
	}
	return b.Bytes(), err
}

// writeFile replaces a file as a whole.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		os.Remove(temporary)
	}
	return err
}
