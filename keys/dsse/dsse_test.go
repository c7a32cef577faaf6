package dsse

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"slices"
	"testing"
)

const kind = "application/vnd.vigie.test.v1+json"

func testKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize))
}

func TestThePreAuthenticationEncodingIsTheSpecificationsExample(t *testing.T) {
	if got, want := string(PreAuthentication("http://example.com/HelloWorld", []byte("hello world"))),
		"DSSEv1 29 http://example.com/HelloWorld 11 hello world"; got != want {
		t.Errorf("it is %q, want %q", got, want)
	}
}

func TestAnEnvelopeVerifiesAsWhatItIsUnderWhoSignedItAlone(t *testing.T) {
	key := testKey(1)
	trusted := key.Public().(ed25519.PublicKey)
	e, err := Sign(key, kind, []byte(`{"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back Envelope
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if err := back.Verify(kind, trusted); err != nil || string(back.Payload) != `{"a":1}` {
		t.Errorf("there and back: %q, %v", back.Payload, err)
	}
	for what, change := range map[string]func(*Envelope, *string, *ed25519.PublicKey){
		"another payload":     func(e *Envelope, _ *string, _ *ed25519.PublicKey) { e.Payload = []byte(`{"a":2}`) },
		"another type":        func(_ *Envelope, k *string, _ *ed25519.PublicKey) { *k = "text/plain" },
		"taken for another":   func(e *Envelope, k *string, _ *ed25519.PublicKey) { e.PayloadType, *k = "text/plain", "text/plain" },
		"another signature":   func(e *Envelope, _ *string, _ *ed25519.PublicKey) { e.Signature = make([]byte, 64) },
		"a short signature":   func(e *Envelope, _ *string, _ *ed25519.PublicKey) { e.Signature = e.Signature[:10] },
		"another trusted key": func(_ *Envelope, _ *string, k *ed25519.PublicKey) { *k = testKey(2).Public().(ed25519.PublicKey) },
		"no trusted key":      func(_ *Envelope, _ *string, k *ed25519.PublicKey) { *k = nil },
		"nothing at all":      func(e *Envelope, _ *string, _ *ed25519.PublicKey) { *e = Envelope{} },
	} {
		changed, as, under := e, kind, trusted
		change(&changed, &as, &under)
		if err := changed.Verify(as, under); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

type otherSigner struct{}

func (otherSigner) Public() crypto.PublicKey {
	return &rsa.PublicKey{N: big.NewInt(3), E: 3}
}
func (otherSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, nil }

func TestOtherKeysThanEd25519DoNotSign(t *testing.T) {
	if _, err := Sign(otherSigner{}, kind, nil); err == nil {
		t.Error("an RSA key signed")
	}
}

func FuzzUnmarshal(f *testing.F) {
	e, err := Sign(testKey(1), kind, []byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	data, err := json.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"signatures":[{"keyid":"00"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var e Envelope
		if json.Unmarshal(data, &e) == nil && len(e.Key) != ed25519.PublicKeySize {
			t.Errorf("read with a key of %d bytes", len(e.Key))
		}
	})
}
