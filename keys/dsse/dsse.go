// Package dsse signs payloads in the Dead Simple Signing Envelope
// (https://github.com/secure-systems-lab/dsse, version 1), so that others' tools
// can verify what Vigie signs. A payload is signed byte for byte, together with
// its type: nothing is brought into a canonical form, and a signature made for
// one type is none for another.
//
//	envelope, err := dsse.Sign(key, "application/vnd.vigie.example.v1+json", payload)
//	…
//	if err := envelope.Verify("application/vnd.vigie.example.v1+json", trusted); err != nil {
//		return err
//	}
//	use(envelope.Payload) // not before
//
// Keys are Ed25519 (RFC 8032). The package knows nothing of what is signed, nor
// of whom to trust.
package dsse

import (
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// ErrSignature is returned for an envelope that the trusted key did not sign as
// what it is said to be.
var ErrSignature = errors.New("the signature is not valid")

// ErrEnvelope is returned for bytes that are not an envelope with one
// signature by an Ed25519 key.
var ErrEnvelope = errors.New("not an envelope with one Ed25519 signature")

// Envelope is a payload with one signature. The zero value verifies under no
// key.
type Envelope struct {
	PayloadType string
	Payload     []byte
	Key         ed25519.PublicKey // who claims to have signed; trust comes from elsewhere
	Signature   []byte            // over the pre-authentication encoding
}

// Sign signs a payload. The signer's key is Ed25519; it may live in a token.
func Sign(signer crypto.Signer, payloadType string, payload []byte) (Envelope, error) {
	key, ok := signer.Public().(ed25519.PublicKey)
	if !ok {
		return Envelope{}, fmt.Errorf("dsse: signing a payload of type %s: the key is a %T, want an Ed25519 key", payloadType, signer.Public())
	}
	signature, err := signer.Sign(nil, PreAuthentication(payloadType, payload), crypto.Hash(0))
	if err != nil {
		return Envelope{}, fmt.Errorf("dsse: signing a payload of type %s: %w", payloadType, err)
	}
	return Envelope{PayloadType: payloadType, Payload: payload, Key: key, Signature: signature}, nil
}

// Verify returns nil if the trusted key signed the payload as payloadType, else
// an error that wraps ErrSignature.
func (e Envelope) Verify(payloadType string, trusted ed25519.PublicKey) error {
	if e.PayloadType != payloadType {
		return fmt.Errorf("dsse: verifying an envelope: %w: it holds a %q, want a %q", ErrSignature, e.PayloadType, payloadType)
	}
	if len(trusted) != ed25519.PublicKeySize || !trusted.Equal(e.Key) ||
		!ed25519.Verify(trusted, PreAuthentication(payloadType, e.Payload), e.Signature) {
		return fmt.Errorf("dsse: verifying an envelope of type %s: %w", payloadType, ErrSignature)
	}
	return nil
}

// PreAuthentication is the protocol's PAE, the bytes that are signed:
// "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body.
func PreAuthentication(payloadType string, body []byte) []byte {
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

// wire is the JSON form.
type wire struct {
	PayloadType string          `json:"payloadType"`
	Payload     []byte          `json:"payload"`
	Signatures  []wireSignature `json:"signatures"`
}

type wireSignature struct {
	KeyID     string `json:"keyid"` // the public key in hexadecimal
	Signature []byte `json:"sig"`
}

// MarshalJSON writes the protocol's JSON form with one signature, whose keyid is
// the public key in hexadecimal.
func (e Envelope) MarshalJSON() ([]byte, error) {
	return json.Marshal(wire{PayloadType: e.PayloadType, Payload: e.Payload,
		Signatures: []wireSignature{{KeyID: hex.EncodeToString(e.Key), Signature: e.Signature}}})
}

// UnmarshalJSON reads what MarshalJSON writes. It verifies nothing.
func (e *Envelope) UnmarshalJSON(data []byte) error {
	var w wire
	if err := json.Unmarshal(data, &w); err != nil {
		return fmt.Errorf("dsse: reading an envelope: %w", err)
	}
	if len(w.Signatures) != 1 {
		return fmt.Errorf("dsse: reading an envelope: %w: it has %d signatures", ErrEnvelope, len(w.Signatures))
	}
	key, err := hex.DecodeString(w.Signatures[0].KeyID)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("dsse: reading an envelope: %w: keyid is not a public key in hexadecimal", ErrEnvelope)
	}
	*e = Envelope{PayloadType: w.PayloadType, Payload: w.Payload, Key: key, Signature: w.Signatures[0].Signature}
	return nil
}
