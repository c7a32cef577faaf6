// Package attest says what an enclave is before a gateway trusts it with a
// case: which keys it holds, which model and configuration it runs, and which
// hardware vouches for that.
//
// An enclave states its [Claims]: the HPKE public key that cases are sealed to,
// the Ed25519 key that findings are signed with, the digests of its model and
// configuration, its build. A [Provider] (a CPU's attestation device) signs
// 32 bytes of report data that commit to those claims and to a nonce chosen by
// whoever asks:
//
//	identity    = SHA-512/256("vigie/attest/identity/1"    ‖ provider ‖ claims)
//	report data = SHA-512/256("vigie/attest/report-data/1" ‖ identity ‖ nonce)
//
// every field preceded by its length as four big-endian bytes. The result is
// [Evidence]. A [Verifier] checks it against a [Policy] and only then hands out
// a [Verified], the one type that package enclave seals to, so that evidence
// nobody checked cannot be used by mistake:
//
//	verifier, err := attest.NewVerifier(attest.Policy{Providers: []string{attest.DevelopmentName}, Model: digest}, logger)
//	nonce := attest.NewNonce()
//	evidence := …                     // from the enclave, for this nonce
//	verified, err := verifier.Verify(evidence, nonce)
//
// The only provider so far is development, which proves nothing, says so
// loudly and is refused in production. A hardware provider is one row in the
// table of verify.go and one implementation of [Provider].
//
// The package knows nothing of images, models' insides or networks.
package attest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vigie/vigie"
)

// Version is the version of the evidence format.
const Version = 1

// The limits on evidence. A TDX quote with its collateral stays under 32 KiB,
// a Nitro document under 16 KiB, an SEV-SNP report with its certificate chain
// under 8 KiB.
const (
	MaxEvidence   = 256 << 10 // encoded evidence, bytes
	MaxDocument   = 128 << 10 // provider's document, bytes
	MaxSealingKey = 4 << 10   // serialised HPKE public key, bytes (X-Wing: 1216)
	MinNonce      = 16        // bytes
	MaxNonce      = 64        // bytes
	maxText       = 256       // provider, build, digests, bytes
)

// ErrMalformed is returned for evidence that is not in the one accepted form.
// Nothing about the sender can be concluded from it.
var ErrMalformed = errors.New("attest: evidence is malformed")

// Claims is what an enclave says of itself.
type Claims struct {
	SealingKey    []byte            `json:"sealing_key"`   // serialised HPKE public key (RFC 9180 SerializePublicKey)
	SigningKey    ed25519.PublicKey `json:"signing_key"`   // 32 bytes
	Model         vigie.ModelDigest `json:"model"`         // the exact package served
	Configuration vigie.Digest      `json:"configuration"` // the enclave's effective configuration
	Build         string            `json:"build"`         // version of the binary
}

// Identity is a digest that names one enclave key in one role: it changes with
// the provider and with any claim, but not with the nonce.
type Identity [sha512.Size256]byte

// String writes the first eight bytes in hexadecimal, for logs.
func (i Identity) String() string { return hex.EncodeToString(i[:8]) }

// ReportData is what a provider's document must carry.
type ReportData [sha512.Size256]byte

// Evidence is a set of claims and a provider's document that vouches for them,
// made for one nonce.
type Evidence struct {
	Version  int    `json:"version"`
	Provider string `json:"provider"`
	Claims   Claims `json:"claims"`
	Nonce    []byte `json:"nonce"`    // 16 to 64 bytes, chosen by whoever asked
	Document []byte `json:"document"` // in the provider's own format
}

// Provider is a source of attestation documents.
type Provider interface {
	// Name is the stable name that policies list, such as "development".
	Name() string
	// Attest returns a document that carries the report data.
	Attest(ctx context.Context, data ReportData) ([]byte, error)
}

// Collect asks the provider to vouch for the claims, freshly for the nonce
// (16 to 64 bytes).
func Collect(ctx context.Context, provider Provider, claims Claims, nonce []byte) (Evidence, error) {
	evidence := Evidence{Version: Version, Provider: provider.Name(), Claims: claims, Nonce: bytes.Clone(nonce)}
	if err := evidence.check(); err != nil {
		return Evidence{}, fmt.Errorf("attest: collecting evidence from %s: %w", provider.Name(), err)
	}
	document, err := provider.Attest(ctx, evidence.ReportData())
	if err != nil {
		return Evidence{}, fmt.Errorf("attest: collecting evidence from %s: %w", provider.Name(), err)
	}
	if len(document) > MaxDocument {
		return Evidence{}, fmt.Errorf("attest: collecting evidence from %s: the document has %d bytes, at most %d are allowed", provider.Name(), len(document), MaxDocument)
	}
	evidence.Document = document
	return evidence, nil
}

// NewNonce returns 32 random bytes.
func NewNonce() []byte {
	nonce := make([]byte, 32)
	rand.Read(nonce) // never fails since Go 1.24
	return nonce
}

// Identity returns the digest over the provider's name and the claims.
func (e Evidence) Identity() Identity {
	return Identity(digest("vigie/attest/identity/1", []byte(e.Provider), e.Claims.SealingKey, e.Claims.SigningKey,
		[]byte(e.Claims.Model), []byte(e.Claims.Configuration), []byte(e.Claims.Build)))
}

// ReportData returns the bytes that the document must carry.
func (e Evidence) ReportData() ReportData {
	identity := e.Identity()
	return ReportData(digest("vigie/attest/report-data/1", identity[:], e.Nonce))
}

// digest hashes the fields, each preceded by its length, so that no two lists
// of fields give the same input.
func digest(label string, fields ...[]byte) [sha512.Size256]byte {
	input := []byte(label)
	for _, field := range fields {
		input = binary.BigEndian.AppendUint32(input, uint32(len(field)))
		input = append(input, field...)
	}
	return sha512.Sum512_256(input)
}

// Encode writes the evidence as JSON, the form that [Parse] reads.
func (e Evidence) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("attest: encoding evidence: %w", err)
	}
	return encoded, nil
}

// Parse reads encoded evidence without judging it. There is one encoding for
// each value: other spellings of the same JSON are refused with ErrMalformed,
// so that a digest of the bytes names the evidence.
func Parse(encoded []byte) (Evidence, error) {
	var evidence Evidence
	if len(encoded) > MaxEvidence {
		return evidence, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMalformed, len(encoded), MaxEvidence)
	}
	if err := json.Unmarshal(encoded, &evidence); err != nil {
		return Evidence{}, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	canonical, err := evidence.Encode()
	if err != nil {
		return Evidence{}, err
	}
	if !bytes.Equal(canonical, encoded) {
		return Evidence{}, fmt.Errorf("%w: not the canonical encoding", ErrMalformed)
	}
	return evidence, nil
}

// check tells whether every field is within its limits.
func (e Evidence) check() error {
	switch {
	case e.Version != Version:
		return fmt.Errorf("%w: format version %d, this build reads version %d", ErrMalformed, e.Version, Version)
	case len(e.Claims.SealingKey) == 0 || len(e.Claims.SealingKey) > MaxSealingKey:
		return fmt.Errorf("%w: sealing key of %d bytes, want 1 to %d", ErrMalformed, len(e.Claims.SealingKey), MaxSealingKey)
	case len(e.Claims.SigningKey) != ed25519.PublicKeySize:
		return fmt.Errorf("%w: signing key of %d bytes, want %d", ErrMalformed, len(e.Claims.SigningKey), ed25519.PublicKeySize)
	case len(e.Nonce) < MinNonce || len(e.Nonce) > MaxNonce:
		return fmt.Errorf("%w: nonce of %d bytes, want %d to %d", ErrMalformed, len(e.Nonce), MinNonce, MaxNonce)
	case len(e.Document) > MaxDocument:
		return fmt.Errorf("%w: document of %d bytes, at most %d are allowed", ErrMalformed, len(e.Document), MaxDocument)
	}
	for _, field := range []struct{ name, text string }{
		{"provider", e.Provider}, {"model", string(e.Claims.Model)},
		{"configuration", string(e.Claims.Configuration)}, {"build", e.Claims.Build},
	} {
		name, text := field.name, field.text
		if text == "" || len(text) > maxText {
			return fmt.Errorf("%w: %s of %d bytes, want 1 to %d", ErrMalformed, name, len(text), maxText)
		}
		for _, char := range []byte(text) {
			if char < ' ' || char > '~' {
				return fmt.Errorf("%w: %s is not printable ASCII", ErrMalformed, name)
			}
		}
	}
	return nil
}
