package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/store"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Report is what Verify found.
type Report struct {
	Origin      string    `json:"origin"`
	Size        int64     `json:"size"`        // records
	Root        tlog.Hash `json:"root"`        // of all of them, recomputed
	Checkpoints int       `json:"checkpoints"` // signed by the log and matched by the recomputed tree
	Unsigned    int64     `json:"unsigned"`    // records after the last good checkpoint
	Witnesses   int       `json:"witnesses"`   // given checkpoints that the log extends
	Cases       int       `json:"cases"`       // cases whose every step was followed
	Problems    []Problem `json:"problems,omitempty"`
}

// Problem is one thing that is not as it must be.
type Problem struct {
	Index int64  `json:"index"` // the record concerned, or -1
	What  string `json:"what"`
}

func (p Problem) String() string {
	if p.Index < 0 {
		return p.What
	}
	return fmt.Sprintf("record %d: %s", p.Index, p.What)
}

// OK reports whether nothing is wrong.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// First returns the first problem, or "".
func (r *Report) First() string {
	if r.OK() {
		return ""
	}
	return r.Problems[0].String()
}

// sort puts what concerns the earliest record first, and what concerns no
// record last: that is where to begin looking.
func (r *Report) sort() {
	slices.SortStableFunc(r.Problems, func(a, b Problem) int {
		return cmp.Compare(uint64(a.Index), uint64(b.Index)) // -1 becomes the largest
	})
}

// maxProblems bounds a report on a log that is damaged everywhere.
const maxProblems = 32

func (r *Report) problem(index int64, format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, Problem{index, fmt.Sprintf(format, args...)})
	}
}

// chunk is how many records Verify holds in memory at a time.
const chunk = 1024

// Verify reads the whole log in one consistent snapshot and recomputes it:
//
//   - every record is canonical, and its index follows the one before;
//   - every stored tree node is the hash of what lies under it, and none is
//     missing or superfluous;
//   - every stored checkpoint is signed by the log and is a prefix of the tree;
//   - every checkpoint of witnesses, signed notes that were kept elsewhere, is
//     signed by the log and a prefix of the tree, so that a database put back
//     to an older copy is noticed;
//   - every case went only where it may go, without a gap, and stands in the
//     database where its last record says.
//
// The error is about reading (the database cannot be reached, the key is not
// one); what is wrong with the log is in the report. A verification of a
// million records takes about ten seconds and a few megabytes, plus one state
// per case.
func Verify(ctx context.Context, s *store.Store, verifierKey string, witnesses [][]byte) (*Report, error) {
	verifier, err := newVerifier(verifierKey)
	if err != nil {
		return nil, err
	}
	v := &verification{verifier: verifier, report: &Report{Origin: verifier.Name()}, cases: make(map[vigie.CaseID]vigie.State)}
	err = s.View(ctx, func(tx *store.Tx) error {
		v.tx = tx
		if err := v.readCheckpoints(witnesses); err != nil {
			return err
		}
		if err := v.readRecords(); err != nil {
			return err
		}
		v.judgeCheckpoints()
		return v.compareCases()
	})
	v.report.sort()
	if err != nil {
		return nil, fmt.Errorf("audit: verifying the log: %w", err)
	}
	return v.report, nil
}

type verification struct {
	tx       *store.Tx
	verifier note.Verifier
	report   *Report
	tree     frontier
	cases    map[vigie.CaseID]vigie.State // where the records leave each case
	claims   []claim
	roots    map[int64]tlog.Hash // recomputed at the sizes that are claimed
}

// claim is a checkpoint to be compared with the tree.
type claim struct {
	name       string
	checkpoint Checkpoint
	witness    bool
}

func (v *verification) readCheckpoints(witnesses [][]byte) error {
	v.roots = make(map[int64]tlog.Hash)
	add := func(name string, signed []byte, witness bool) {
		c, err := openCheckpoint(signed, v.verifier)
		if err != nil {
			v.report.problem(-1, "%s is not a checkpoint signed by this log: %v", name, err)
			return
		}
		v.claims = append(v.claims, claim{name, c, witness})
		v.roots[c.Size] = tlog.Hash{}
	}
	for i, signed := range witnesses {
		add(fmt.Sprintf("witnessed checkpoint %d", i+1), signed, true)
	}
	type row struct {
		size   int64
		signed []byte
	}
	var rows []row
	err := v.tx.Query(func(scan func(...any) error) error {
		var r row
		err := scan(&r.size, &r.signed)
		rows = append(rows, r)
		return err
	}, "SELECT size, note FROM audit_checkpoints ORDER BY size")
	if err != nil {
		return err
	}
	for _, r := range rows {
		name := fmt.Sprintf("the stored checkpoint of size %d", r.size)
		before := len(v.claims)
		add(name, r.signed, false)
		if len(v.claims) > before && v.claims[before].checkpoint.Size != r.size {
			v.report.problem(-1, "%s is signed for size %d", name, v.claims[before].checkpoint.Size)
		}
	}
	return nil
}

func (v *verification) readRecords() error {
	v.keepRoot()
	for {
		entries, err := v.nextEntries()
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			break
		}
		var nodes []tlog.Hash
		first := tlog.StoredHashCount(v.tree.size)
		for _, e := range entries {
			if e.index != v.tree.size {
				v.report.problem(e.index, "it stands where record %d is expected: records are missing", v.tree.size)
			}
			v.followRecord(v.tree.size, e)
			nodes = append(nodes, v.tree.add(e.record)...)
			v.keepRoot()
		}
		if err := v.compareNodes(first, nodes); err != nil {
			return err
		}
		if entries[len(entries)-1].index != v.tree.size-1 {
			break // what follows a gap would only repeat it
		}
	}
	v.report.Size, v.report.Root = v.tree.size, v.tree.root()
	return v.compareNodeCount()
}

func (v *verification) keepRoot() {
	if _, claimed := v.roots[v.tree.size]; claimed {
		v.roots[v.tree.size] = v.tree.root()
	}
}

type entry struct {
	index  int64
	id     vigie.CaseID // the column that Prove searches by
	record []byte
}

func (v *verification) nextEntries() (entries []entry, err error) {
	err = v.tx.Query(func(scan func(...any) error) error {
		var e entry
		err := scan(&e.index, &e.id, &e.record)
		entries = append(entries, e)
		return err
	}, fmt.Sprintf("SELECT idx, case_id, record FROM audit_entries WHERE idx >= $1 ORDER BY idx LIMIT %d", chunk), v.tree.size)
	return entries, err
}

// followRecord reads a record and takes its case's step.
func (v *verification) followRecord(index int64, e entry) {
	r, err := ParseRecord(e.record)
	if err != nil {
		v.report.problem(index, "it is not readable: %v", err)
		return
	}
	if r.Case != e.id {
		v.report.problem(index, "it is about case %q and filed under case %q", r.Case, e.id)
	}
	if problem := follow(v.cases, r); problem != "" {
		v.report.problem(index, "%s", problem)
	}
}

// follow moves a record's case in cases, or says why the case cannot have made
// that step.
func follow(cases map[vigie.CaseID]vigie.State, r Record) string {
	if r.To == "" {
		return ""
	}
	at := cases[r.Case]
	cases[r.Case] = r.To
	if r.From != at {
		return fmt.Sprintf("case %s is said to go from %q to %q, and was left in %q", r.Case, r.From, r.To, at)
	}
	return "" // the step itself is allowed: ParseRecord saw to that
}

// compareNodes holds the stored tree nodes from index first on against the
// recomputed ones.
func (v *verification) compareNodes(first int64, nodes []tlog.Hash) error {
	next := first
	err := v.tx.Query(func(scan func(...any) error) error {
		var index int64
		var data []byte
		if err := scan(&index, &data); err != nil {
			return err
		}
		for ; next < index; next++ {
			v.report.problem(recordOf(next), "tree node %d is missing", next)
		}
		stored, err := hashFrom(data)
		if err != nil || stored != nodes[index-first] {
			v.report.problem(recordOf(index), "tree node %d is not the hash of what lies under it: a record or the node was altered", index)
		}
		next = index + 1
		return nil
	}, "SELECT idx, hash FROM audit_hashes WHERE idx >= $1 AND idx < $2 ORDER BY idx", first, first+int64(len(nodes)))
	if err != nil {
		return err
	}
	if next < first+int64(len(nodes)) {
		v.report.problem(recordOf(next), "tree node %d is missing", next)
	}
	return nil
}

// recordOf is the record whose appending completed the node at a dense index.
func recordOf(index int64) int64 {
	level, n := tlog.SplitStoredHashIndex(index)
	return (n+1)<<level - 1
}

func (v *verification) compareNodeCount() error {
	var nodes int64
	if err := v.tx.QueryRow([]any{&nodes}, "SELECT COUNT(*) FROM audit_hashes"); err != nil {
		return err
	}
	if want := tlog.StoredHashCount(v.tree.size); nodes > want {
		v.report.problem(-1, "%d tree nodes are stored, %d records have %d: records were removed from the end", nodes, v.tree.size, want)
	}
	return nil
}

// judgeCheckpoints compares what was signed with what is there.
func (v *verification) judgeCheckpoints() {
	signed := int64(0)
	for _, c := range v.claims {
		switch {
		case c.checkpoint.Size > v.tree.size:
			v.report.problem(-1, "%s covers %d records, and only %d are there: records were removed, or the database was put back to an older copy", c.name, c.checkpoint.Size, v.tree.size)
		case c.checkpoint.Root != v.roots[c.checkpoint.Size]:
			v.report.problem(-1, "%s has another root than the first %d records: a record that it covers was altered, or the log was forked", c.name, c.checkpoint.Size)
		case c.witness:
			v.report.Witnesses++
			signed = max(signed, c.checkpoint.Size)
		default:
			v.report.Checkpoints++
			signed = max(signed, c.checkpoint.Size)
		}
	}
	v.report.Unsigned = v.tree.size - signed
}

// compareCases holds the state of each case in the database against the log.
func (v *verification) compareCases() error {
	seen := make(map[vigie.CaseID]bool, len(v.cases))
	err := v.tx.Query(func(scan func(...any) error) error {
		var id vigie.CaseID
		var state vigie.State
		if err := scan(&id, &state); err != nil {
			return err
		}
		seen[id] = true
		if logged := v.cases[id]; logged != state {
			v.report.problem(-1, "case %s is %q in the database and %q in the log", id, state, logged)
		}
		return nil
	}, "SELECT id, state FROM cases")
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(v.cases)) {
		if !seen[id] {
			v.report.problem(-1, "case %s is %q in the log and not in the database", id, v.cases[id])
		}
	}
	v.report.Cases = len(v.cases)
	return nil
}

var errNoCheckpoint = errors.New("no signed checkpoint covers it yet: wait a second or start the gateway, and ask again")
