package audit

import (
	"fmt"
	"strings"

	"github.com/vigie/vigie/store"
	"golang.org/x/mod/sumdb/tlog"
)

// size returns how many records the log holds.
func size(tx *store.Tx) (int64, error) {
	var n int64
	if err := tx.QueryRow([]any{&n}, "SELECT COALESCE(MAX(idx) + 1, 0) FROM audit_entries"); err != nil {
		return 0, fmt.Errorf("audit: reading the size of the log: %w", err)
	}
	return n, nil
}

// storedHashes reads tree nodes from the database, by tlog's dense index.
type storedHashes struct{ tx *store.Tx }

var _ tlog.HashReader = storedHashes{}

func (s storedHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make(map[int64]tlog.Hash, len(indexes))
	for rest := indexes; len(rest) > 0; {
		part := rest[:min(len(rest), 256)]
		rest = rest[len(part):]
		if err := s.read(part, found); err != nil {
			return nil, err
		}
	}
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		hash, ok := found[index]
		if !ok {
			return nil, fmt.Errorf("audit: tree node %d is missing: the log is damaged, run vigie audit verify", index)
		}
		hashes[i] = hash
	}
	return hashes, nil
}

func (s storedHashes) read(indexes []int64, into map[int64]tlog.Hash) error {
	if len(indexes) == 0 {
		return nil
	}
	var marks strings.Builder
	args := make([]any, len(indexes))
	for i, index := range indexes {
		if i > 0 {
			marks.WriteString(", ")
		}
		fmt.Fprintf(&marks, "$%d", i+1)
		args[i] = index
	}
	err := s.tx.Query(func(scan func(...any) error) error {
		var index int64
		var data []byte
		if err := scan(&index, &data); err != nil {
			return err
		}
		hash, err := hashFrom(data)
		into[index] = hash
		return err
	}, "SELECT idx, hash FROM audit_hashes WHERE idx IN ("+marks.String()+")", args...)
	if err != nil {
		return fmt.Errorf("audit: reading tree nodes: %w", err)
	}
	return nil
}

func hashFrom(data []byte) (hash tlog.Hash, err error) {
	if len(data) != tlog.HashSize {
		return hash, fmt.Errorf("audit: a hash of %d bytes, %d expected", len(data), tlog.HashSize)
	}
	copy(hash[:], data)
	return hash, nil
}

// frontier is a tree that only grows: it keeps the hash of each complete
// subtree on the right edge, which is all that appending needs. It recomputes
// a log independently of the stored nodes.
type frontier struct {
	size  int64
	edges [64]tlog.Hash // edges[level] is set where bit level of size is
}

// add appends a leaf and returns the nodes that it completes, in the order
// that tlog stores them.
func (f *frontier) add(record []byte) []tlog.Hash {
	hash := tlog.RecordHash(record)
	nodes := []tlog.Hash{hash}
	level := 0
	for ; f.size>>level&1 == 1; level++ {
		hash = tlog.NodeHash(f.edges[level], hash)
		nodes = append(nodes, hash)
	}
	f.edges[level] = hash
	f.size++
	return nodes
}

// root is the RFC 6962 tree hash of everything added.
func (f *frontier) root() tlog.Hash {
	if f.size == 0 {
		root, _ := tlog.TreeHash(0, nil)
		return root
	}
	var root tlog.Hash
	started := false
	for level := range f.edges {
		if f.size>>level&1 == 0 {
			continue
		}
		if started {
			root = tlog.NodeHash(f.edges[level], root)
		} else {
			root, started = f.edges[level], true
		}
	}
	return root
}
