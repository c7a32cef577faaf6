package consortium

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/keys/dsse"
)

// The DSSE payload types of what the parties sign. All payloads are JSON.
const (
	InvitationType = "application/vnd.vigie.consortium.invitation.v1+json"
	RequestType    = "application/vnd.vigie.consortium.request.v1+json"
	RosterType     = "application/vnd.vigie.consortium.roster.v1+json"
	JobType        = "application/vnd.vigie.consortium.job.v1+json"
	DecisionType   = "application/vnd.vigie.consortium.decision.v1+json"
	ResultType     = "application/vnd.vigie.consortium.result.v1+json"
	EntryType      = "application/vnd.vigie.consortium.entry.v1+json"
)

// Errors that callers branch on. Each is wrapped with what happened.
var (
	// ErrDocument is returned for bytes that are not the signed document that they
	// should be, or that nobody trusted has signed.
	ErrDocument = errors.New("not a valid signed document")
	// ErrInvitation is returned for an invitation that cannot be used: expired,
	// used by another, withdrawn, or never written.
	ErrInvitation = errors.New("the invitation cannot be used")
	// ErrRoster is returned for a list of sites that is older than the one that is
	// known, or other than it.
	ErrRoster = errors.New("not a list of sites to go by")
	// ErrPolicy is returned for what the consortium's policy or the data owner's
	// rules do not allow.
	ErrPolicy = errors.New("not allowed by the policy")
	// ErrBudget is returned for what would cost more privacy than is left.
	ErrBudget = errors.New("the privacy budget does not allow it")
	// ErrStopped is returned while the data owner has stopped the site.
	ErrStopped = errors.New("the data owner has stopped this site")
	// ErrFolder is returned for a folder that is not what it should be.
	ErrFolder = errors.New("not such a folder")
	// ErrChain is returned for a ledger or log that was changed.
	ErrChain = errors.New("the chain of entries is broken")
)

// maxDocument is how many bytes a signed document may have, as JSON.
const maxDocument = 1 << 20

// Digest is a SHA-256 digest; in JSON and for people it is hexadecimal.
type Digest [sha256.Size]byte

// DigestOf is the digest of bytes.
func DigestOf(data []byte) Digest { return sha256.Sum256(data) }

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText writes hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes, and nothing else.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 2*sha256.Size || strings.ToLower(string(text)) != string(text) {
		return fmt.Errorf("a digest of %d characters: want %d, hexadecimal in small letters", len(text), 2*sha256.Size)
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// sign writes a payload as a signed document.
func sign(signer crypto.Signer, kind string, payload any) ([]byte, error) {
	body, err := json.Marshal(payload)
	if err != nil {
		return nil, fmt.Errorf("consortium: encoding a document of type %s: %w", kind, err)
	}
	envelope, err := dsse.Sign(signer, kind, body)
	if err != nil {
		return nil, fmt.Errorf("consortium: signing: %w", err)
	}
	return json.Marshal(envelope)
}

// verify reads a signed document. With a nil key it takes the one that the
// document names, for a payload that then says whether that is right.
func verify[T any](data []byte, kind string, key ed25519.PublicKey) (payload T, body []byte, signer ed25519.PublicKey, err error) {
	fail := func(err error) (T, []byte, ed25519.PublicKey, error) {
		var none T
		return none, nil, nil, fmt.Errorf("consortium: reading a document of type %s: %w: %w", kind, ErrDocument, err)
	}
	if len(data) > maxDocument {
		return fail(fmt.Errorf("%d bytes, at most %d are allowed", len(data), maxDocument))
	}
	var envelope dsse.Envelope
	if err := json.Unmarshal(data, &envelope); err != nil {
		return fail(err)
	}
	if key == nil {
		key = envelope.Key
	}
	if err := envelope.Verify(kind, key); err != nil {
		return fail(err)
	}
	if err := strict(envelope.Payload, &payload); err != nil {
		return fail(err)
	}
	return payload, envelope.Payload, key, nil
}

// strict decodes JSON without fields that nobody knows and without a rest.
func strict(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("bytes after its end")
	}
	return nil
}

// checkName says whether a site, consortium or run may be called so.
func checkName(what, name string) error {
	if name == "" || len(name) > maxName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || strings.Trim(name, ".-") != name {
		return fmt.Errorf("consortium: %s %q: want 1 to %d characters of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit", what, name, maxName)
	}
	return nil
}

// maxName leaves room for consortium and run in one name of federate/secagg.
const maxName = (secagg.MaxName - 1) / 2

// readLimited reads a whole file of at most so many bytes.
func readLimited(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("%s has more than the %d bytes that are allowed", path, most)
	}
	return data, nil
}

// fingerprint writes a digest in groups, for two people on a telephone.
func fingerprint(d Digest) string {
	text := d.String()
	var groups []string
	for i := 0; i < 32; i += 4 {
		groups = append(groups, text[i:i+4])
	}
	return strings.Join(groups, " ")
}
