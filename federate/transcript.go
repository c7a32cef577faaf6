package federate

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/keys/dsse"
)

// ErrTranscript is returned for a transcript that is not that of a run, or that
// does not fit what was said of it.
var ErrTranscript = errors.New("not the transcript of a run that ended as it says")

// The DSSE payload types of what a coordinator signs in a transcript.
const (
	HeaderType = "application/vnd.vigie.federate.header.v1+json"
	RecordType = "application/vnd.vigie.federate.record.v1+json"
)

// Header says what run a transcript is of.
type Header struct {
	Terms Terms `json:"terms"`
	// Variables and Trained are the model's size, Initial the digest (Weights.Digest)
	// of what the first round began with.
	Variables int    `json:"variables"`
	Trained   int    `json:"trained"`
	Initial   []byte `json:"initial"`
	// Layout says which tensors of the model the variables are; it may be missing.
	Layout []Span `json:"layout,omitempty"`
}

// Span is a tensor of a model among its variables, which lie one after the other.
type Span struct {
	Name   string `json:"name"`
	Length int    `json:"length"`
}

// Record is all that was said in one attempt at a round.
type Record struct {
	Previous []byte `json:"previous"` // SHA-256 digest of the record before, or of the header
	Number   uint64 `json:"number"`   // of the attempt
	Index    int    `json:"index"`    // of the round, from 0
	Model    []byte `json:"model"`    // digest of the weights that it began with
	// Members are the federation's sites at the time, in the order of their names.
	Members  []secagg.Member `json:"members"`
	Question *Question       `json:"question,omitempty"` // that was asked, instead of training
	Groups   []GroupRecord   `json:"groups"`
	Result   []byte          `json:"result,omitempty"` // digest of the weights that it ended with
	Failure  string          `json:"failure,omitempty"`
	// Interrupted says that the coordinator gave up, and not all groups may be there.
	Interrupted bool `json:"interrupted,omitempty"`
	// Skipped says that the round is over without a result.
	Skipped bool `json:"skipped,omitempty"`
	// Scores and Named are the coordinator's word: it may have held the sums against
	// examples of its own.
	Scores []Score  `json:"scores,omitempty"`
	Named  []string `json:"named,omitempty"`
}

// GroupRecord is what was said in one group: all messages that were good, or are
// proof of what a site did, in the order in which they were taken.
type GroupRecord struct {
	Members       []string           `json:"members"`
	Keys          []secagg.Message   `json:"keys"`
	Parcels       [][]secagg.Message `json:"parcels"` // by who dealt them
	Acceptances   []secagg.Message   `json:"acceptances"`
	Vectors       []secagg.Message   `json:"vectors"` // the sites' words on their masked vectors
	Confirmations []secagg.Message   `json:"confirmations"`
	Reveals       []secagg.Message   `json:"reveals"`
	// Sum is the digest of the masked sum, which lies beside the record, as do the
	// vectors of those sites that have not vouched for theirs.
	Sum       []byte   `json:"sum,omitempty"`
	Unvouched []string `json:"unvouched,omitempty"`
	// Lapses are the coordinator's word, and prove nothing.
	Lapses  []Lapse `json:"lapses,omitempty"`
	Failure string  `json:"failure,omitempty"`
}

// Transcript is a folder in which a coordinator records a run, so that others can
// replay it: a header, the weights that it began with, and for each attempt a
// record and, by the group, the masked sum. Each record names the one before by
// its digest, and all are signed by the coordinator. It holds nothing that a
// coordinator does not learn anyway: the masked sums, and the shares that open
// them.
type Transcript struct {
	dir    string
	signer crypto.Signer
	last   []byte // digest of the last record's payload, or of the header's
}

const (
	headerName   = "header.json"
	initialName  = "initial.f32"
	maxRecord    = 1 << 30 // bytes, unpacked
	maxPacked    = 1 << 28
	maxHeader    = 1 << 22
	chunkNumbers = 1 << 16
)

func recordName(number uint64) string { return fmt.Sprintf("%012d.json.gz", number) }
func sumName(number uint64, group int) string {
	return fmt.Sprintf("%012d-%03d.sum", number, group)
}
func keptVectorName(number uint64, group int, site string) string {
	return fmt.Sprintf("%012d-%03d-%s.vector", number, group, site)
}

// Record opens the transcript of a coordinator's run in a folder, which it makes,
// or goes on with the one that is there if it is of the same run; the members may
// have changed since. signer is the coordinator's Ed25519 key.
func (o CoordinatorOptions) Record(dir string, signer crypto.Signer) (*Transcript, error) {
	fail := func(err error) (*Transcript, error) {
		return nil, fmt.Errorf("federate: opening the transcript in %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	initial := Weights{Variables: o.Variables, Control: newServer(o.Terms.Algorithm, len(o.Variables), o.Trained).Control}
	digest := initial.Digest()
	payload, err := json.Marshal(Header{Terms: o.Terms, Variables: len(o.Variables), Trained: o.Trained, Initial: digest[:], Layout: o.Layout})
	if err != nil {
		return fail(err)
	}
	t := &Transcript{dir: dir, signer: signer}
	envelope, err := readEnvelope(filepath.Join(dir, headerName), false, maxHeader)
	if errors.Is(err, fs.ErrNotExist) {
		if err := t.put(initialName, encodeFloats(o.Variables)); err != nil {
			return fail(err)
		}
		if envelope, err = dsse.Sign(signer, HeaderType, payload); err != nil {
			return fail(err)
		}
		data, err := json.Marshal(envelope)
		if err != nil {
			return fail(err)
		}
		if err := t.put(headerName, data); err != nil {
			return fail(err)
		}
	} else if err != nil {
		return fail(err)
	}
	key, is := signer.Public().(ed25519.PublicKey)
	if !is {
		return fail(fmt.Errorf("the key is a %T, want an Ed25519 key", signer.Public()))
	}
	if err := envelope.Verify(HeaderType, key); err != nil || !bytes.Equal(envelope.Payload, payload) {
		return fail(fmt.Errorf("%w: the folder holds another run", ErrTranscript))
	}
	t.last = digestOf(envelope.Payload)
	numbers, err := t.numbers()
	if err != nil {
		return fail(err)
	}
	if len(numbers) > 0 {
		last, err := readEnvelope(filepath.Join(dir, recordName(numbers[len(numbers)-1])), true, maxRecord)
		if err != nil {
			return fail(err)
		}
		t.last = digestOf(last.Payload)
	}
	return t, nil
}

func digestOf(data []byte) []byte {
	d := sha256.Sum256(data)
	return d[:]
}

// put writes a file whole and durably.
func (t *Transcript) put(name string, data []byte) error { return folder(t.dir).Put(name, data) }

// numbers are those of the attempts that have a record, in their order.
func (t *Transcript) numbers() ([]uint64, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, e := range entries {
		var n uint64
		if _, err := fmt.Sscanf(e.Name(), "%012d.json.gz", &n); err == nil && e.Name() == recordName(n) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// keep records a group's masked sum, and the vectors for which nobody vouches.
func (g *groupRound) keep(sum *secagg.Sum, commitment [sha256.Size]byte, unvouched []string, vectors arrivals, round secagg.Round) error {
	g.record.Unvouched = unvouched
	t := g.coordinator.Transcript
	if t == nil {
		return nil
	}
	for _, name := range unvouched {
		vector, err := vectors.vector(name, round)
		if err != nil {
			return err
		}
		if err := t.put(keptVectorName(g.order.Round, g.at, name), encodeVector(vector)); err != nil {
			return err
		}
	}
	return folder(t.dir).write(sumName(g.order.Round, g.at), func(w io.Writer) error {
		buffer := make([]byte, 0, 6*chunkNumbers)
		for from := 0; from < len(sum.Low); from += chunkNumbers {
			buffer = buffer[:0]
			for j := from; j < min(from+chunkNumbers, len(sum.Low)); j++ {
				buffer = binary.LittleEndian.AppendUint32(buffer, sum.Low[j])
				buffer = binary.LittleEndian.AppendUint16(buffer, sum.High[j])
			}
			if _, err := w.Write(buffer); err != nil {
				return err
			}
		}
		return nil
	})
}

// write records an attempt. A nil transcript records nothing.
func (t *Transcript) write(r Record) error {
	if t == nil {
		return nil
	}
	r.Previous = t.last
	fail := func(err error) error {
		return fmt.Errorf("federate: recording attempt %d: %w", r.Number, err)
	}
	payload, err := json.Marshal(r)
	if err != nil {
		return fail(err)
	}
	envelope, err := dsse.Sign(t.signer, RecordType, payload)
	if err != nil {
		return fail(err)
	}
	data, err := json.Marshal(envelope)
	if err != nil {
		return fail(err)
	}
	err = folder(t.dir).write(recordName(r.Number), func(w io.Writer) error {
		z := gzip.NewWriter(w)
		if _, err := z.Write(data); err != nil {
			return err
		}
		return z.Close()
	})
	if err != nil {
		return fail(err)
	}
	t.last = digestOf(payload)
	return nil
}

// readEnvelope reads an envelope from a file of at most so many bytes, unpacked.
func readEnvelope(path string, packed bool, limit int64) (dsse.Envelope, error) {
	var e dsse.Envelope
	f, err := os.Open(path)
	if err != nil {
		return e, err
	}
	defer f.Close()
	var r io.Reader = f
	if packed {
		z, err := gzip.NewReader(io.LimitReader(f, maxPacked))
		if err != nil {
			return e, fmt.Errorf("federate: reading %s: %w: %w", path, ErrTranscript, err)
		}
		defer z.Close()
		r = z
	}
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	if err == nil {
		err = json.Unmarshal(data, &e)
	}
	if err != nil {
		return e, fmt.Errorf("federate: reading %s: %w: %w", path, ErrTranscript, err)
	}
	return e, nil
}

// openPayload verifies a coordinator's word and decodes it strictly.
func openPayload[P any](e dsse.Envelope, kind string, key ed25519.PublicKey) (P, error) {
	var p P
	if err := e.Verify(kind, key); err != nil {
		return p, fmt.Errorf("%w: %w", ErrTranscript, err)
	}
	decoder := json.NewDecoder(bytes.NewReader(e.Payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&p); err != nil {
		return p, fmt.Errorf("%w: %w", ErrTranscript, err)
	}
	return p, nil
}

// readSum reads a group's masked sum.
func (t *Transcript) readSum(number uint64, group, length int) (*secagg.Sum, error) {
	name := sumName(number, group)
	f, err := os.Open(filepath.Join(t.dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != 6*int64(length) {
		return nil, fmt.Errorf("federate: reading %s: %w: %d bytes, want %d", name, ErrTranscript, info.Size(), 6*int64(length))
	}
	sum := secagg.NewSum(length)
	buffer := make([]byte, 6*chunkNumbers)
	for from := 0; from < length; from += chunkNumbers {
		n := min(chunkNumbers, length-from)
		if _, err := io.ReadFull(f, buffer[:6*n]); err != nil {
			return nil, fmt.Errorf("federate: reading %s: %w", name, err)
		}
		for j := range n {
			sum.Low[from+j] = binary.LittleEndian.Uint32(buffer[6*j:])
			sum.High[from+j] = binary.LittleEndian.Uint16(buffer[6*j+4:])
		}
	}
	return sum, nil
}

func (t *Transcript) readVector(number uint64, group int, site string, length int) ([]uint32, error) {
	data, err := os.ReadFile(filepath.Join(t.dir, keptVectorName(number, group, site)))
	if err != nil {
		return nil, err
	}
	return decodeVector(data, length)
}

func hexOf(digest []byte) string { return hex.EncodeToString(digest) }
