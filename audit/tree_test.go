package audit

import (
	"fmt"
	"testing"

	"github.com/vigie/vigie"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// The frontier and golang.org/x/mod/sumdb/tlog are two implementations of one
// tree; Verify relies on the first to judge what the second stored.
func TestTheRecomputedTreeIsTheStoredOne(t *testing.T) {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			hashes[i] = stored[index]
		}
		return hashes, nil
	})
	var f frontier
	for n := range int64(600) {
		want, err := tlog.TreeHash(n, reader)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.root(); got != want {
			t.Fatalf("the root of %d records is %v, want %v", n, got, want)
		}
		record := fmt.Append(nil, "record ", n)
		nodes, err := tlog.StoredHashes(n, record, reader)
		if err != nil {
			t.Fatal(err)
		}
		got := f.add(record)
		if fmt.Sprint(got) != fmt.Sprint(nodes) {
			t.Fatalf("record %d completes other nodes", n)
		}
		for i := range got {
			if at := recordOf(int64(len(stored) + i)); at != n {
				t.Fatalf("node %d belongs to record %d, not %d", len(stored)+i, n, at)
			}
		}
		stored = append(stored, nodes...)
	}
}

func TestTilePathsAreThoseOfTlogTiles(t *testing.T) {
	// Examples from c2sp.org/tlog-tiles.
	for path, tile := range map[string]tlog.Tile{
		"tile/0/x001/x234/067":     {H: 8, L: 0, N: 1234067, W: 256},
		"tile/0/x001/x234/067.p/8": {H: 8, L: 0, N: 1234067, W: 8},
		"tile/entries/x001/234":    {H: 8, L: -1, N: 1234, W: 256},
		"tile/entries/000.p/1":     {H: 8, L: -1, N: 0, W: 1},
		"tile/2/000.p/255":         {H: 8, L: 2, N: 0, W: 255},
	} {
		if got := tilePath(tile); got != path {
			t.Errorf("%+v lies at %s, want %s", tile, got, path)
		}
	}
}

func TestFollowingACaseNoticesEveryGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := []Record{
			{Case: "c", To: "received"}, {Case: "c", From: "received", To: "diagnosed"}, {Case: "c", From: "diagnosed", To: "in review"},
			{Case: "c"}, {Case: "c", From: "in review", To: "reviewed"}, {Case: "c", From: "reviewed", To: "delivered"},
		}
		left := rapid.IntRange(0, len(all)).Draw(t, "left out")
		states := make(map[vigie.CaseID]vigie.State)
		problem := ""
		for i, r := range all {
			if i == left {
				continue
			}
			if p := follow(states, r); p != "" && problem == "" {
				problem = p
			}
		}
		// The record without a step, the last one and none leave no gap.
		want := left != 3 && left < len(all)-1
		if (problem != "") != want {
			t.Fatalf("leaving out record %d: %q", left, problem)
		}
	})
}
