package enclave

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys/dsse"
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
func sign(key ed25519.PrivateKey, payload []byte) (SignedFinding, error) {
	e, err := dsse.Sign(key, PayloadType, payload)
	if err != nil {
		return SignedFinding{}, fmt.Errorf("enclave: signing a finding: %w", err)
	}
	return SignedFinding{Payload: e.Payload, Signature: e.Signature, Key: e.Key}, nil
}

func (s SignedFinding) envelope() dsse.Envelope {
	return dsse.Envelope{PayloadType: PayloadType, Payload: s.Payload, Key: s.Key, Signature: s.Signature}
}

// Verify returns the finding if the trusted key signed it, else ErrSignature.
// The key must come from verified evidence, not from s itself.
func (s SignedFinding) Verify(trusted ed25519.PublicKey) (vigie.Finding, error) {
	var finding vigie.Finding
	if err := s.envelope().Verify(PayloadType, trusted); err != nil {
		return finding, fmt.Errorf("enclave: verifying a finding: %w", ErrSignature)
	}
	if err := json.Unmarshal(s.Payload, &finding); err != nil {
		return vigie.Finding{}, fmt.Errorf("enclave: decoding a signed finding: %w", err)
	}
	return finding, nil
}

// MarshalJSON writes a DSSE envelope with one signature.
func (s SignedFinding) MarshalJSON() ([]byte, error) { return json.Marshal(s.envelope()) }

// UnmarshalJSON reads a DSSE envelope that MarshalJSON could have written.
func (s *SignedFinding) UnmarshalJSON(data []byte) error {
	var e dsse.Envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("enclave: reading a finding's envelope: %w", err)
	}
	if e.PayloadType != PayloadType {
		return fmt.Errorf("enclave: reading a finding's envelope: want payload type %s, found %q", PayloadType, e.PayloadType)
	}
	*s = SignedFinding{Payload: e.Payload, Signature: e.Signature, Key: e.Key}
	return nil
}
