package enclave

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/vigie/vigie"
)

// PayloadType is the DSSE payload type of a finding. It separates a finding's
// signature from any other that the same key might make.
const PayloadType = "application/vnd.vigie.finding.v1+json"

// ErrSignature is returned for a finding that was not signed by the key.
var ErrSignature = errors.New("the finding's signature is not valid")

// SignedFinding is a finding as it was signed, byte for byte. Its JSON form is
// a DSSE envelope (https://github.com/secure-systems-lab/dsse), so that others'
// tools can verify it too.
type SignedFinding struct {
	Payload   []byte            // a vigie.Finding as JSON
	Signature []byte            // Ed25519 over the pre-authentication encoding
	Key       ed25519.PublicKey // says who claims to have signed; trust comes from evidence
}

// sign signs the finding's JSON.
func sign(key ed25519.PrivateKey, payload []byte) SignedFinding {
	return SignedFinding{
		Payload:   payload,
		Signature: ed25519.Sign(key, preAuthentication(PayloadType, payload)),
		Key:       key.Public().(ed25519.PublicKey),
	}
}

// preAuthentication is DSSE's PAE: "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body.
func preAuthentication(payloadType string, body []byte) []byte {
	b := make([]byte, 0, 32+len(payloadType)+len(body))
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(payloadType)), 10)
	b = append(b, ' ')
	b = append(b, payloadType...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(body)), 10)
	b = append(b, ' ')
	return append(b, body...)
}

// Verify returns the finding if the trusted key signed it, else ErrSignature.
// The key must come from verified evidence, not from s itself.
func (s SignedFinding) Verify(trusted ed25519.PublicKey) (vigie.Finding, error) {
	var finding vigie.Finding
	if len(trusted) != ed25519.PublicKeySize || !trusted.Equal(s.Key) ||
		!ed25519.Verify(trusted, preAuthentication(PayloadType, s.Payload), s.Signature) {
		return finding, fmt.Errorf("enclave: verifying a finding: %w", ErrSignature)
	}
	if err := json.Unmarshal(s.Payload, &finding); err != nil {
		return vigie.Finding{}, fmt.Errorf("enclave: decoding a signed finding: %w", err)
	}
	return finding, nil
}

// envelope is DSSE's JSON form.
type envelope struct {
	PayloadType string              `json:"payloadType"`
	Payload     []byte              `json:"payload"`
	Signatures  []envelopeSignature `json:"signatures"`
}

type envelopeSignature struct {
	KeyID     string `json:"keyid"` // the public key in hexadecimal
	Signature []byte `json:"sig"`
}

// MarshalJSON writes a DSSE envelope with one signature.
func (s SignedFinding) MarshalJSON() ([]byte, error) {
	return json.Marshal(envelope{PayloadType: PayloadType, Payload: s.Payload,
		Signatures: []envelopeSignature{{KeyID: hex.EncodeToString(s.Key), Signature: s.Signature}}})
}

// UnmarshalJSON reads a DSSE envelope that MarshalJSON could have written.
func (s *SignedFinding) UnmarshalJSON(data []byte) error {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("enclave: reading a finding's envelope: %w", err)
	}
	if e.PayloadType != PayloadType || len(e.Signatures) != 1 {
		return fmt.Errorf("enclave: reading a finding's envelope: want payload type %s with one signature, found %q with %d", PayloadType, e.PayloadType, len(e.Signatures))
	}
	key, err := hex.DecodeString(e.Signatures[0].KeyID)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return errors.New("enclave: reading a finding's envelope: keyid is not an Ed25519 public key in hexadecimal")
	}
	*s = SignedFinding{Payload: e.Payload, Signature: e.Signatures[0].Signature, Key: key}
	return nil
}
