package audit_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/transparency-dev/formats/log"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// tileFiles reads published tiles as a stranger would: from the files alone,
// trusting nothing but the signature on the checkpoint.
type tileFiles struct{ dir string }

func (tileFiles) Height() int { return 8 }

func (f tileFiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		var err error
		if data[i], err = os.ReadFile(filepath.Join(f.dir, path)); err != nil {
			return nil, err
		}
	}
	return data, nil
}

func (tileFiles) SaveTiles([]tlog.Tile, [][]byte) {}

// audience checks the whole of a published log and returns its size.
func audience(t *testing.T, dir, verifierKey string) int64 {
	t.Helper()
	verifier, err := note.NewVerifier(verifierKey)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	checkpoint, rest, _, err := log.ParseCheckpoint(signed, origin, verifier)
	if err != nil || len(rest) > 0 {
		t.Fatalf("the checkpoint: %v, %q", err, rest)
	}
	tree := tlog.Tree{N: int64(checkpoint.Size), Hash: tlog.Hash(checkpoint.Hash)}
	reader := tlog.TileHashReader(tree, tileFiles{dir}) // verifies tiles against the root
	for n := range tree.N {
		leaf, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, n)})
		if err != nil {
			t.Fatalf("record %d of %d: %v", n, tree.N, err)
		}
		record := readEntry(t, dir, n, tree.N)
		if tlog.RecordHash(record) != leaf[0] {
			t.Fatalf("record %d is not what its leaf says", n)
		}
		if _, err := audit.ParseRecord(record); err != nil {
			t.Fatal(err)
		}
	}
	return tree.N
}

func readEntry(t *testing.T, dir string, n, size int64) []byte {
	t.Helper()
	path := filepath.Join(dir, "tile", "entries", fmt.Sprintf("%03d", n/256))
	if n/256 == size/256 {
		path += ".p/" + strconv.FormatInt(size%256, 10)
	}
	bundle, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range n % 256 {
		bundle = bundle[2+binary.BigEndian.Uint16(bundle):]
	}
	return bundle[2 : 2+binary.BigEndian.Uint16(bundle)]
}

func TestPublishedTilesVerifyWithoutTheDatabase(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		l := newLog(t, s)
		dir := filepath.Join(t.TempDir(), "tiles")
		for _, grow := range []int{1, 3, 251, 1, 1, 300, 0} { // to 1, 4, 255, 256, 257, 557, 557
			err := s.Update(ctx, func(tx *store.Tx) error {
				for range grow {
					if _, err := l.Append(tx, audit.Record{Kind: audit.KindViewed, Actor: "someone"}); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			c := publish(t, l)
			if err := l.WriteTiles(ctx, dir, c); err != nil {
				t.Fatal(err)
			}
			if n := audience(t, dir, l.VerifierKey()); n != c.Size {
				t.Errorf("%d records are published, %d signed", n, c.Size)
			}
		}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if strings.HasSuffix(path, ".new") {
				t.Errorf("%s was left", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		signer, _ := testKeys(t, "other", 9)
		other, err := audit.New(s, signer)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.WriteTiles(ctx, dir, audit.Checkpoint{}); err == nil {
			t.Error("another log wrote over the tiles")
		}
	})
}

func TestTilesOfACrashAreCompletedByTheNextPublication(t *testing.T) {
	ctx := context.Background()
	s := storetest.Open(t, "sqlite")
	l := newLog(t, s)
	dir := filepath.Join(t.TempDir(), "tiles")
	populate(t, s, l)
	c := publish(t, l)
	if err := l.WriteTiles(ctx, dir, c); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	populate(t, s, l)
	if err := l.WriteTiles(ctx, dir, publish(t, l)); err != nil {
		t.Fatal(err)
	}
	// As if the process had died just before the last write, the checkpoint's.
	if err := os.WriteFile(filepath.Join(dir, "checkpoint"), before, 0o644); err != nil {
		t.Fatal(err)
	}
	if n := audience(t, dir, l.VerifierKey()); n != c.Size {
		t.Errorf("what was published before shows %d records, want %d", n, c.Size)
	}
	if err := l.WriteTiles(ctx, dir, publish(t, l)); err != nil {
		t.Fatal(err)
	}
	if n := audience(t, dir, l.VerifierKey()); n != 56 {
		t.Errorf("%d records", n)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "checkpoint")); err != nil || bytes.Equal(after, before) {
		t.Error("the checkpoint is still the old one")
	}
}
