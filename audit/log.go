package audit

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"

	"github.com/transparency-dev/formats/log"
	"github.com/vigie/vigie/store"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Log appends records and signs checkpoints. It is safe for concurrent use.
type Log struct {
	store       *store.Store
	origin      string
	signer      note.Signer
	verifier    note.Verifier
	verifierKey string

	mu    sync.Mutex
	known Checkpoint // the newest one this process knows of; zero if none
}

// KeyFromSeed derives a log's keys from 32 secret bytes: the signer key, which
// New takes, and the verifier key, which is public and which Verify and Check
// take. origin names the log, as a schema-less URL that the site controls
// (C2SP tlog-checkpoint), for instance "vigie.hospital.example/audit"; it
// holds no blank and no "+".
func KeyFromSeed(origin string, seed []byte) (signerKey, verifierKey string, err error) {
	if len(seed) != ed25519.SeedSize {
		return "", "", fmt.Errorf("audit: deriving the log's key from %d bytes, %d expected", len(seed), ed25519.SeedSize)
	}
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	verifierKey, err = note.NewEd25519VerifierKey(origin, public)
	if err != nil {
		return "", "", fmt.Errorf("audit: deriving the log's key: %w", err)
	}
	if _, err := note.NewVerifier(verifierKey); err != nil {
		return "", "", fmt.Errorf("audit: naming the log %q: a name has no blank and no +: %w", origin, err)
	}
	// Format of signer keys: package golang.org/x/mod/sumdb/note.
	name, hash, _ := strings.Cut(verifierKey, "+")
	hash, _, _ = strings.Cut(hash, "+")
	encoded := base64.StdEncoding.EncodeToString(append([]byte{1}, seed...)) // 1: Ed25519
	return "PRIVATE+KEY+" + name + "+" + hash + "+" + encoded, verifierKey, nil
}

// New returns the log in s, signed with signerKey (see KeyFromSeed). All
// processes that share a store share the key.
func New(s *store.Store, signerKey string) (*Log, error) {
	signer, err := note.NewSigner(signerKey)
	if err != nil {
		return nil, fmt.Errorf("audit: reading the log's signer key: %w", err)
	}
	verifierKey, err := verifierKeyOf(signerKey)
	if err != nil {
		return nil, err
	}
	verifier, err := newVerifier(verifierKey)
	if err != nil {
		return nil, err
	}
	return &Log{store: s, origin: signer.Name(), signer: signer, verifier: verifier, verifierKey: verifierKey}, nil
}

func verifierKeyOf(signerKey string) (string, error) {
	parts := strings.SplitN(signerKey, "+", 5) // PRIVATE, KEY, name, hash, key
	if len(parts) != 5 {
		return "", fmt.Errorf("audit: reading the log's signer key: it has %d parts, 5 expected", len(parts))
	}
	key, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(key) != 1+ed25519.SeedSize {
		return "", fmt.Errorf("audit: reading the log's signer key: it does not hold an Ed25519 seed")
	}
	_, verifierKey, err := KeyFromSeed(parts[2], key[1:])
	return verifierKey, err
}

// Origin returns the log's name.
func (l *Log) Origin() string { return l.origin }

// VerifierKey returns the log's public key, as Verify and Check take it.
func (l *Log) VerifierKey() string { return l.verifierKey }

// Append adds a record as a part of the caller's transaction and returns its
// index: if the transaction is rolled back, the record was never there. A zero
// Time becomes the transaction's.
func (l *Log) Append(tx *store.Tx, r Record) (int64, error) {
	if r.Time.IsZero() {
		r.Time = tx.Now()
	}
	data, err := r.Marshal()
	if err != nil {
		return 0, err
	}
	// Update runs one closure at a time, in all processes, so the next index
	// cannot be taken twice.
	n, err := size(tx)
	if err != nil {
		return 0, err
	}
	hashes, err := tlog.StoredHashes(n, data, storedHashes{tx})
	if err != nil {
		return 0, fmt.Errorf("audit: appending record %d: %w", n, err)
	}
	if _, err := tx.Exec("INSERT INTO audit_entries (idx, case_id, record) VALUES ($1, $2, $3)", n, string(r.Case), data); err != nil {
		return 0, fmt.Errorf("audit: appending record %d: %w", n, err)
	}
	first := tlog.StoredHashIndex(0, n)
	for i, hash := range hashes {
		if _, err := tx.Exec("INSERT INTO audit_hashes (idx, hash) VALUES ($1, $2)", first+int64(i), hash[:]); err != nil {
			return 0, fmt.Errorf("audit: appending record %d: %w", n, err)
		}
	}
	return n, nil
}

// Checkpoint is a signed head of the log.
type Checkpoint struct {
	Size int64
	Root tlog.Hash
	Note []byte // the signed note
}

// openCheckpoint verifies a signed note and reads the checkpoint in it.
func openCheckpoint(signed []byte, verifier note.Verifier) (Checkpoint, error) {
	if len(signed) > maxCheckpoint {
		return Checkpoint{}, fmt.Errorf("audit: reading a checkpoint: %d bytes exceed the limit of %d", len(signed), maxCheckpoint)
	}
	parsed, _, _, err := log.ParseCheckpoint(signed, verifier.Name(), verifier)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("audit: reading a checkpoint of %s: %w", verifier.Name(), err)
	}
	c := Checkpoint{Size: int64(parsed.Size), Note: signed}
	if c.Size < 0 {
		return Checkpoint{}, fmt.Errorf("audit: reading a checkpoint of %s: size %d is out of range", verifier.Name(), parsed.Size)
	}
	if c.Root, err = hashFrom(parsed.Hash); err != nil {
		return Checkpoint{}, err
	}
	return c, nil
}

// maxCheckpoint bounds a signed note; a hundred witnesses fit.
const maxCheckpoint = 64 << 10

func newVerifier(verifierKey string) (note.Verifier, error) {
	verifier, err := note.NewVerifier(strings.TrimSpace(verifierKey))
	if err != nil {
		return nil, fmt.Errorf("audit: reading the log's verifier key: %w", err)
	}
	return verifier, nil
}
