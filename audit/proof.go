package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/store"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	proofFormat = "vigie-audit-proof/1"

	maxProof     = 32 << 20 // bytes of a proof file
	maxInclusion = 64       // hashes of one inclusion proof: a tree has at most 63 levels
)

// ErrProof means that a proof file does not prove what it says.
var ErrProof = errors.New("the file proves nothing")

// proofFile is the JSON of a proof. It has everything but the log's public
// key, which the one who checks must have from elsewhere.
type proofFile struct {
	Format     string        `json:"format"`
	Origin     string        `json:"origin"`
	Case       vigie.CaseID  `json:"case"`
	Checkpoint string        `json:"checkpoint"` // the signed note
	Records    []proofRecord `json:"records"`
}

type proofRecord struct {
	Index     int64            `json:"index"`
	Record    string           `json:"record"`    // the leaf's bytes, which are JSON text
	Inclusion tlog.RecordProof `json:"inclusion"` // RFC 6962 audit path, base64 hashes
}

// Proven is what a proof file proves: these records, in this order, are in the
// log of that name, as its key signed it. It proves that they were not
// altered; that the case has no other record, only Verify can show, though a
// missing step between two states would be noticed.
type Proven struct {
	Origin  string
	Case    vigie.CaseID
	Size    int64     // of the log at the checkpoint
	Root    tlog.Hash // of the log at the checkpoint
	Indexes []int64   // of the records in the log
	Records []Record
}

// Prove returns a proof file with every record of a case, each with its
// inclusion proof to the newest stored checkpoint. It returns
// store.ErrNotFound if the log has no record of the case.
func Prove(ctx context.Context, s *store.Store, verifierKey string, id vigie.CaseID) ([]byte, error) {
	verifier, err := newVerifier(verifierKey)
	if err != nil {
		return nil, err
	}
	var file proofFile
	err = s.View(ctx, func(tx *store.Tx) error {
		file, err = prove(tx, verifier, id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("audit: proving case %s: %w", id, err)
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(file); err != nil {
		return nil, fmt.Errorf("audit: proving case %s: %w", id, err)
	}
	if _, err := Check(bytes.NewReader(b.Bytes()), verifierKey); err != nil {
		return nil, fmt.Errorf("audit: proving case %s: the log is damaged, run vigie audit verify: %w", id, err)
	}
	return b.Bytes(), nil
}

func prove(tx *store.Tx, verifier note.Verifier, id vigie.CaseID) (proofFile, error) {
	file := proofFile{Format: proofFormat, Origin: verifier.Name(), Case: id}
	err := tx.Query(func(scan func(...any) error) error {
		var r proofRecord
		var data []byte
		err := scan(&r.Index, &data)
		r.Record = string(data)
		file.Records = append(file.Records, r)
		return err
	}, "SELECT idx, record FROM audit_entries WHERE case_id = $1 ORDER BY idx", string(id))
	if err != nil {
		return file, err
	}
	if len(file.Records) == 0 {
		return file, store.ErrNotFound
	}
	last := file.Records[len(file.Records)-1].Index
	var signed []byte
	err = tx.QueryRow([]any{&signed}, "SELECT note FROM audit_checkpoints WHERE size > $1 ORDER BY size DESC LIMIT 1", last)
	if errors.Is(err, store.ErrNotFound) {
		return file, errNoCheckpoint
	}
	if err != nil {
		return file, err
	}
	checkpoint, err := openCheckpoint(signed, verifier)
	if err != nil {
		return file, err
	}
	file.Checkpoint = string(signed)
	for i := range file.Records {
		r := &file.Records[i]
		r.Inclusion, err = tlog.ProveRecord(checkpoint.Size, r.Index, storedHashes{tx})
		if err != nil {
			return file, err
		}
	}
	return file, nil
}

// Check verifies a proof file against the log's public key and nothing else:
// it needs no database, no network and no trust in who gave the file. The
// error satisfies ErrProof unless reading failed.
func Check(from io.Reader, verifierKey string) (*Proven, error) {
	verifier, err := newVerifier(verifierKey)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(from, maxProof+1))
	if err != nil {
		return nil, fmt.Errorf("audit: reading a proof file: %w", err)
	}
	proven, err := check(data, verifier)
	if err != nil {
		return nil, fmt.Errorf("audit: checking a proof file: %w: %w", ErrProof, err)
	}
	return proven, nil
}

func check(data []byte, verifier note.Verifier) (*Proven, error) {
	if len(data) > maxProof {
		return nil, fmt.Errorf("it exceeds %d bytes", maxProof)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var file proofFile
	if err := decoder.Decode(&file); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("something follows the proof")
	}
	if file.Format != proofFormat {
		return nil, fmt.Errorf("its format is %q, %q expected", file.Format, proofFormat)
	}
	if file.Origin != verifier.Name() {
		return nil, fmt.Errorf("it is about the log %q, and the key belongs to %q", file.Origin, verifier.Name())
	}
	checkpoint, err := openCheckpoint([]byte(file.Checkpoint), verifier)
	if err != nil {
		return nil, err
	}
	if len(file.Records) == 0 || file.Case == "" {
		return nil, errors.New("it names no case or holds no record")
	}
	proven := &Proven{Origin: file.Origin, Case: file.Case, Size: checkpoint.Size, Root: checkpoint.Root}
	steps := make(map[vigie.CaseID]vigie.State)
	for i, r := range file.Records {
		record, err := r.check(checkpoint)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", r.Index, err)
		}
		if record.Case != file.Case {
			return nil, fmt.Errorf("record %d is about case %q, not %q", r.Index, record.Case, file.Case)
		}
		if i > 0 && r.Index <= file.Records[i-1].Index {
			return nil, fmt.Errorf("record %d does not follow record %d", r.Index, file.Records[i-1].Index)
		}
		if problem := follow(steps, record); problem != "" {
			return nil, fmt.Errorf("record %d: %s", r.Index, problem)
		}
		proven.Indexes = append(proven.Indexes, r.Index)
		proven.Records = append(proven.Records, record)
	}
	return proven, nil
}

func (r *proofRecord) check(checkpoint Checkpoint) (Record, error) {
	if len(r.Inclusion) > maxInclusion {
		return Record{}, fmt.Errorf("its inclusion proof has %d hashes, more than any tree", len(r.Inclusion))
	}
	if r.Index < 0 || r.Index >= checkpoint.Size {
		return Record{}, fmt.Errorf("it lies outside of the %d records that are signed", checkpoint.Size)
	}
	leaf := tlog.RecordHash([]byte(r.Record))
	if err := tlog.CheckRecord(r.Inclusion, checkpoint.Size, checkpoint.Root, r.Index, leaf); err != nil {
		return Record{}, fmt.Errorf("it is not in the signed log: %w", err)
	}
	return ParseRecord([]byte(r.Record))
}
