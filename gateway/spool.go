package gateway

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/store"
)

// ErrTooLarge is returned by a spool that was given more than limits.object_size.
var ErrTooLarge = errors.New("the object is larger than limits.object_size allows")

// objectAAD binds a sealed object to its blob.
func objectAAD(blob store.BlobName) []byte { return []byte("vigie object v1 " + string(blob)) }

// spool seals an object while it arrives: the plaintext exists only in the
// buffer of the network. The content key is fresh and lives in memory until
// intake seals it under the patient's data key; a crash before that leaves
// bytes that nobody can open, which are swept at the next start.
type spool struct {
	blobs   *store.Blobs
	file    *store.BlobWriter
	sealed  io.WriteCloser
	key     []byte
	digest  *contentDigest
	size    int64
	limit   int64
	started time.Time
	failed  error
	kept    bool // a committed row refers to the blob
}

func newSpool(blobs *store.Blobs, limit int64) (*spool, error) {
	file, err := blobs.Create()
	if err != nil {
		return nil, fmt.Errorf("gateway: opening a spool: %w", err)
	}
	key := keys.NewKey()
	sealed, err := keys.NewWriter(file, key, objectAAD(file.Name()))
	if err != nil {
		file.Abort()
		return nil, fmt.Errorf("gateway: opening a spool: %w", err)
	}
	return &spool{blobs: blobs, file: file, sealed: sealed, key: key, digest: newContentDigest(), limit: limit, started: time.Now()}, nil
}

// Write seals p.
func (s *spool) Write(p []byte) (int, error) {
	if s.failed != nil {
		return 0, s.failed
	}
	if s.size+int64(len(p)) > s.limit {
		s.failed = ErrTooLarge
		return 0, s.failed
	}
	n, err := s.sealed.Write(p)
	s.digest.Write(p[:n])
	s.size += int64(n)
	if err != nil {
		s.failed = fmt.Errorf("gateway: sealing an object: %w", err)
		return n, s.failed
	}
	return n, nil
}

// finish seals the last bytes and makes the blob durable under its name.
func (s *spool) finish() error {
	if s.failed == nil {
		if err := s.sealed.Close(); err != nil {
			s.failed = fmt.Errorf("gateway: sealing an object: %w", err)
		}
	}
	if s.failed == nil {
		if err := s.file.Commit(); err != nil {
			s.failed = fmt.Errorf("gateway: making an object durable: %w", err)
		}
	}
	return s.failed
}

// Discard destroys what intake did not keep: the unfinished file, or a
// finished one that no transaction recorded. It may be called more than once.
func (s *spool) Discard() {
	s.file.Abort()
	if !s.kept {
		s.kept = true
		// What cannot be removed now is swept at the next start.
		_ = s.blobs.Remove(s.file.Name())
	}
	keys.Zero(s.key)
}

// objectSecret is what an object's row keeps sealed under the patient's data
// key: the content key of its blob, and the attributes that a result needs.
type objectSecret struct {
	key    []byte
	header []byte
}

func (o objectSecret) encode() []byte { return append(append([]byte{}, o.key...), o.header...) }

func decodeObjectSecret(data []byte) (objectSecret, error) {
	if len(data) < keys.KeySize {
		return objectSecret{}, errors.New("gateway: a sealed object row is too short")
	}
	return objectSecret{key: data[:keys.KeySize], header: data[keys.KeySize:]}, nil
}

// rowAAD binds the sealed column of an object to its blob.
func rowAAD(blob store.BlobName) []byte { return []byte("vigie object row v1 " + string(blob)) }

// valueAAD binds a sealed value of a case to its place.
func valueAAD(id vigie.CaseID, name string) []byte {
	return []byte("vigie case value v1 " + string(id) + " " + name)
}
