package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

const origin = "vigie.test/audit"

func testKeys(t testing.TB, name string, seed byte) (signer, verifier string) {
	t.Helper()
	signer, verifier, err := audit.KeyFromSeed(name, bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	if err != nil {
		t.Fatal(err)
	}
	return signer, verifier
}

func newLog(t testing.TB, s *store.Store) *audit.Log {
	t.Helper()
	signer, _ := testKeys(t, origin, 1)
	l, err := audit.New(s, signer)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// take creates a case with its record and returns its id.
func take(t testing.TB, s *store.Store, l *audit.Log) vigie.CaseID {
	t.Helper()
	id := store.NewCaseID()
	err := s.Update(context.Background(), func(tx *store.Tx) error {
		err := tx.CreateCase(vigie.Case{ID: id, Patient: "p", Study: "2.25.1", Series: "2.25.2", Instance: "2.25.3", State: vigie.Received, Input: vigie.DigestOf([]byte(id))})
		if err != nil {
			return err
		}
		_, err = l.Append(tx, audit.Record{Kind: audit.KindReceived, Case: id, Patient: "p", To: vigie.Received, Input: vigie.DigestOf([]byte(id)),
			Source: vigie.Source{Protocol: "dimse", AETitle: "MODALITY"}, Actor: "gateway"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// walk moves a case along, each step with its record.
func walk(t testing.TB, s *store.Store, l *audit.Log, id vigie.CaseID, states ...vigie.State) {
	t.Helper()
	for i := range len(states) - 1 {
		err := s.Update(context.Background(), func(tx *store.Tx) error {
			if _, err := tx.Advance(id, states[i], states[i+1], nil); err != nil {
				return err
			}
			_, err := l.Append(tx, audit.Record{Kind: audit.KindTriaged, Case: id, Patient: "p", From: states[i], To: states[i+1], Model: "sha256:m", Output: vigie.DigestOf([]byte("out"))})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func publish(t testing.TB, l *audit.Log) audit.Checkpoint {
	t.Helper()
	c, err := l.Publish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func verify(t testing.TB, s *store.Store, l *audit.Log, witnesses ...[]byte) *audit.Report {
	t.Helper()
	report, err := audit.Verify(context.Background(), s, l.VerifierKey(), witnesses)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// populate makes a log with several cases and checkpoints.
func populate(t testing.TB, s *store.Store, l *audit.Log) (ids []vigie.CaseID, checkpoints []audit.Checkpoint) {
	t.Helper()
	for range 7 {
		id := take(t, s, l)
		walk(t, s, l, id, vigie.Received, vigie.Diagnosed, vigie.Released, vigie.Delivered)
		ids = append(ids, id)
		checkpoints = append(checkpoints, publish(t, l))
	}
	return ids, checkpoints
}

func TestAnHonestLogVerifies(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		l := newLog(t, s)
		if report := verify(t, s, l); !report.OK() || report.Size != 0 {
			t.Errorf("an empty log: %+v", report)
		}
		_, checkpoints := populate(t, s, l)
		report := verify(t, s, l, checkpoints[2].Note)
		if !report.OK() || report.Size != 28 || report.Checkpoints != 7 || report.Witnesses != 1 || report.Unsigned != 0 || report.Cases != 7 || report.Root != checkpoints[6].Root {
			t.Errorf("%+v", report)
		}
		take(t, s, l)
		if report := verify(t, s, l); !report.OK() || report.Unsigned != 1 {
			t.Errorf("with a record that is not signed yet: %+v", report)
		}
	})
}

func TestARecordExistsExactlyIfItsStepWasCommitted(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		l := newLog(t, s)
		id := take(t, s, l)
		err := s.Update(context.Background(), func(tx *store.Tx) error {
			if _, err := l.Append(tx, audit.Record{Kind: audit.KindTriaged, Case: id, From: vigie.Received, To: vigie.Diagnosed}); err != nil {
				return err
			}
			_, err := tx.Advance(id, vigie.Diagnosed, vigie.Released, nil) // refused
			return err
		})
		if err == nil {
			t.Fatal("a stale step was taken")
		}
		walk(t, s, l, id, vigie.Received, vigie.Diagnosed)
		if report := verify(t, s, l); !report.OK() || report.Size != 2 {
			t.Errorf("%+v", report)
		}
	})
}

func TestManyWritersMakeOneLogWithoutGaps(t *testing.T) {
	storetest.EachConfig(t, func(t *testing.T, config store.Config) {
		var wait sync.WaitGroup
		for range 2 { // as many processes
			s := storetest.Reopen(t, config)
			l := newLog(t, s)
			for range 4 {
				wait.Go(func() {
					for range 10 {
						walk(t, s, l, take(t, s, l), vigie.Received, vigie.Diagnosed)
					}
				})
			}
			wait.Go(func() {
				for range 10 {
					publish(t, l)
				}
			})
		}
		wait.Wait()
		s := storetest.Reopen(t, config)
		if report := verify(t, s, newLog(t, s)); !report.OK() || report.Size != 160 {
			t.Errorf("%+v", report)
		}
	})
}

// TestTamperingIsDetected changes the database behind the log's back, as
// someone with the database's password would, and expects Verify to say what
// is wrong and where.
func TestTamperingIsDetected(t *testing.T) {
	otherSigner, _ := testKeys(t, origin, 2)     // another key under the same name
	strangerSigner, _ := testKeys(t, "other", 1) // another log
	for _, c := range []struct {
		name   string
		change []string // statements
		want   string   // in some problem
		index  int64    // of the first problem, -2 if it does not matter
	}{
		{"a record's text is altered", []string{`UPDATE audit_entries SET record = CAST(REPLACE(CAST(record AS TEXT), 'MODALITY', 'MODALITX') AS BLOB) WHERE idx = 8`}, "altered", 8},
		{"a record is replaced by another", []string{`UPDATE audit_entries SET record = (SELECT record FROM audit_entries WHERE idx = 12) WHERE idx = 8`}, "", 8},
		{"a record is made unreadable", []string{`UPDATE audit_entries SET record = CAST('{}' AS BLOB) WHERE idx = 5`}, "not readable", 5},
		{"the last record is deleted", []string{`DELETE FROM audit_entries WHERE idx = 27`}, "records were removed", -2},
		{"the last record and its nodes are deleted", []string{`DELETE FROM audit_entries WHERE idx = 27`, `DELETE FROM audit_hashes WHERE idx >= 50`}, "covers 28 records, and only 27 are there", -2},
		{"the last record, its nodes and its checkpoint are deleted, and its case put back", []string{`DELETE FROM audit_entries WHERE idx = 27`, `DELETE FROM audit_hashes WHERE idx >= 50`, `DELETE FROM audit_checkpoints WHERE size = 28`, `UPDATE cases SET state = 'released' WHERE id = (SELECT case_id FROM audit_entries WHERE idx = 26)`}, "WITNESS", -2},
		{"a middle record is deleted", []string{`DELETE FROM audit_entries WHERE idx = 10`}, "records are missing", 10},
		{"two records are swapped", []string{`UPDATE audit_entries SET idx = -1 WHERE idx = 4`, `UPDATE audit_entries SET idx = 4 WHERE idx = 8`, `UPDATE audit_entries SET idx = 8 WHERE idx = -1`}, "altered", 4},
		{"a tree node is altered", []string{`UPDATE audit_hashes SET hash = (SELECT hash FROM audit_hashes WHERE idx = 0) WHERE idx = 9`}, "tree node 9", -2},
		{"a tree node is deleted", []string{`DELETE FROM audit_hashes WHERE idx = 9`}, "tree node 9 is missing", -2},
		{"the last tree node is deleted", []string{`DELETE FROM audit_hashes WHERE idx = 52`}, "tree node 52 is missing", -2},
		{"a tree node is added", []string{`INSERT INTO audit_hashes (idx, hash) SELECT 1000, hash FROM audit_hashes WHERE idx = 0`}, "tree nodes are stored", -2},
		{"a checkpoint is signed with another key", []string{`UPDATE audit_checkpoints SET note = $OTHER WHERE size = 28`}, "not a checkpoint signed by this log", -2},
		{"a checkpoint is from another log", []string{`UPDATE audit_checkpoints SET note = $STRANGER WHERE size = 28`}, "not a checkpoint signed by this log", -2},
		{"a checkpoint is filed under another size", []string{`UPDATE audit_checkpoints SET size = 27 WHERE size = 28`}, "is signed for size 28", -2},
		{"a case is moved without a record", []string{`UPDATE cases SET state = 'in review' WHERE id = (SELECT case_id FROM audit_entries WHERE idx = 0)`}, "in the database and", -2},
		{"a case is deleted", []string{`DELETE FROM cases WHERE id = (SELECT case_id FROM audit_entries WHERE idx = 0)`}, "not in the database", -2},
		{"a case is added without a record", []string{`INSERT INTO cases SELECT 'made-up', patient, study, series, instance, state, source, model, input, received, updated, verdict, stages FROM cases WHERE id = (SELECT case_id FROM audit_entries WHERE idx = 0)`}, "made-up", -2},
		{"a record is hidden from its case", []string{`UPDATE audit_entries SET case_id = 'nobody' WHERE idx = 6`}, "filed under", 6},
		// The whole tree is recomputed by someone without the key.
		{"a record is altered and every hash recomputed", []string{"RECOMPUTE"}, "has another root", -2},
	} {
		t.Run(c.name, func(t *testing.T) {
			storetest.Each(t, func(t *testing.T, s *store.Store) {
				l := newLog(t, s)
				_, checkpoints := populate(t, s, l)
				witness := checkpoints[len(checkpoints)-1].Note
				for _, statement := range c.change {
					if statement == "RECOMPUTE" {
						recompute(t, s)
						continue
					}
					tamper(t, s, statement, otherSigner, strangerSigner)
				}
				report := verify(t, s, l)
				want := c.want
				if want == "WITNESS" {
					// Nothing inside the database can show this…
					if !report.OK() || report.Size != 27 {
						t.Fatalf("without a witness: %+v", report)
					}
					// …which is why checkpoints are kept elsewhere too.
					report = verify(t, s, l, witness)
					want = "put back to an older copy"
				}
				if report.OK() {
					t.Fatal("nothing was noticed")
				}
				all := fmt.Sprint(report.Problems)
				if !strings.Contains(all, want) {
					t.Errorf("want %q, found %v", want, all)
				}
				if c.index != -2 && report.Problems[0].Index != c.index {
					t.Errorf("the first problem is at %d, want %d: %v", report.Problems[0].Index, c.index, all)
				}
			})
		})
	}
}

// tamper runs a statement on the database; it is written for SQLite.
func tamper(t *testing.T, s *store.Store, statement, otherSigner, strangerSigner string) {
	t.Helper()
	var args []any
	for mark, signer := range map[string]string{"$OTHER": otherSigner, "$STRANGER": strangerSigner} {
		if strings.Contains(statement, mark) {
			statement = strings.Replace(statement, mark, "$1", 1)
			args = append(args, forge(t, s, signer))
		}
	}
	if s.Database() == "postgres" {
		statement = strings.ReplaceAll(statement, "CAST(REPLACE(CAST(record AS TEXT), 'MODALITY', 'MODALITX') AS BLOB)", "convert_to(REPLACE(convert_from(record, 'UTF8'), 'MODALITY', 'MODALITX'), 'UTF8')")
		statement = strings.ReplaceAll(statement, "CAST('{}' AS BLOB)", "'{}'::bytea")
	}
	err := s.Update(context.Background(), func(tx *store.Tx) error {
		n, err := tx.Exec(statement, args...)
		if err == nil && n == 0 {
			err = fmt.Errorf("the statement %q changed nothing", statement)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// forge signs the log's present head with another key.
func forge(t *testing.T, s *store.Store, signer string) []byte {
	t.Helper()
	l, err := audit.New(s, signer)
	if err != nil {
		t.Fatal(err)
	}
	note, err := audit.SignHead(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	return note
}

// recompute alters record 8 and rebuilds the log from scratch around it.
func recompute(t *testing.T, s *store.Store) {
	t.Helper()
	l := newLog(t, s)
	err := s.Update(context.Background(), func(tx *store.Tx) error {
		var records []audit.Record
		err := tx.Query(func(scan func(...any) error) error {
			var data []byte
			if err := scan(&data); err != nil {
				return err
			}
			r, err := audit.ParseRecord(data)
			records = append(records, r)
			return err
		}, "SELECT record FROM audit_entries ORDER BY idx")
		if err != nil {
			return err
		}
		for _, table := range []string{"audit_entries", "audit_hashes"} {
			if _, err := tx.Exec("DELETE FROM " + table); err != nil {
				return err
			}
		}
		records[8].Actor = "someone else"
		for _, r := range records {
			if _, err := l.Append(tx, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestALogThatContradictsItsCheckpointIsNotSignedAgain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		l := newLog(t, s)
		populate(t, s, l)
		recompute(t, s)
		take(t, s, l)
		if _, err := l.Publish(context.Background()); err == nil || !strings.Contains(err.Error(), audit.ErrForked.Error()) {
			t.Errorf("%v, want ErrForked", err)
		}
	})
}

func TestThePublisherSignsEachSecondAndOnShutdown(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		l := newLog(t, s)
		run := func(interval time.Duration) (stop func()) {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- (&audit.Publisher{Log: l, Interval: interval}).Run(ctx) }()
			return func() {
				t.Helper()
				cancel()
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
		}
		id := take(t, s, l)
		stop := run(20 * time.Millisecond)
		for deadline := time.Now().Add(5 * time.Minute); verify(t, s, l).Unsigned > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the record was not signed")
			}
		}
		stop()
		// One that would sign in an hour signs when it is told to end.
		stop = run(time.Hour)
		walk(t, s, l, id, vigie.Received, vigie.Diagnosed)
		if report := verify(t, s, l); report.Unsigned != 1 {
			t.Errorf("before the end: %+v", report)
		}
		stop()
		if report := verify(t, s, l); report.Unsigned != 0 || report.Size != 2 {
			t.Errorf("after shutdown: %+v", report)
		}
	})
}
