package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
)

const (
	// KeySize is the size in bytes of every symmetric key in Vigie (AES-256).
	KeySize = 32

	nonceSize = 12 // NIST SP 800-38D section 5.2.1.1: 96 bits
	tagSize   = 16

	sealVersion = 1

	// SealOverhead is how many bytes Seal adds: version, nonce and tag.
	SealOverhead = 1 + nonceSize + tagSize
)

// NewKey returns KeySize fresh random bytes.
func NewKey() []byte {
	key := make([]byte, KeySize)
	rand.Read(key) // never fails: it ends the program instead
	return key
}

// Zero overwrites key, for callers that are done with it.
func Zero(key []byte) { clear(key) }

// Seal encrypts a small value that fits in memory under key (KeySize bytes)
// and binds it to aad, which must be given again to Open and is not stored.
//
// The nonce is random, so one key may seal up to 2^32 values (NIST SP 800-38D
// section 8.3). The result is version (1 byte), nonce (12), ciphertext, tag (16).
func Seal(key, plaintext, aad []byte) ([]byte, error) {
	aead, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	sealed := make([]byte, 1+nonceSize, SealOverhead+len(plaintext))
	sealed[0] = sealVersion
	rand.Read(sealed[1:])
	return aead.Seal(sealed, sealed[1:1+nonceSize], plaintext, aad), nil
}

// Open decrypts what Seal returned. It returns ErrCorrupt when the bytes were
// not sealed under key with this aad.
func Open(key, sealed, aad []byte) ([]byte, error) {
	aead, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < SealOverhead {
		return nil, fmt.Errorf("keys: opening a sealed value of %d bytes, at least %d expected: %w", len(sealed), SealOverhead, ErrCorrupt)
	}
	if sealed[0] != sealVersion {
		return nil, fmt.Errorf("keys: opening a sealed value of version %d, only %d is known: %w", sealed[0], sealVersion, ErrCorrupt)
	}
	plaintext, err := aead.Open(nil, sealed[1:1+nonceSize], sealed[1+nonceSize:], aad)
	if err != nil {
		return nil, fmt.Errorf("keys: opening a sealed value: %w", ErrCorrupt)
	}
	return plaintext, nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("keys: a key of %d bytes was given, %d expected", len(key), KeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("keys: preparing AES-256: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("keys: preparing AES-256-GCM: %w", err)
	}
	return aead, nil
}
