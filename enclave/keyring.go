package enclave

import (
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
)

// enclaveKey is one sealing key with the claims that name it.
type enclaveKey struct {
	private  hpke.PrivateKey
	claims   attest.Claims
	identity attest.Identity
	made     time.Time
}

// keyRing holds the enclave's keys, in memory only: one signing key for the
// life of the process, and a sealing key that is replaced every `every`. The
// one before it still opens cases for `grace`, which lets cases under way
// arrive; after that nobody can open them any more, not even the enclave.
//
// Keys turn when somebody asks for one. Health probes ask too, so an idle
// enclave forgets its old key as well.
type keyRing struct {
	provider string // the name that is part of an identity
	signing  ed25519.PrivateKey
	about    attest.Claims // the claims that do not change
	every    time.Duration
	grace    time.Duration
	now      func() time.Time
	turned   func() // called after each replacement

	mu       sync.Mutex
	current  *enclaveKey
	previous *enclaveKey
}

func newKeyRing(provider string, model vigie.ModelDigest, configuration vigie.Digest, build string, options Options) (*keyRing, error) {
	public, signing, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("enclave: making a signing key: %w", err)
	}
	ring := &keyRing{
		provider: provider, signing: signing,
		about: attest.Claims{SigningKey: public, Model: model, Configuration: configuration, Build: build},
		every: options.RotateEvery, grace: options.RotateGrace, now: options.Clock, turned: func() {},
	}
	ring.current, err = ring.make(ring.now())
	return ring, err
}

func (r *keyRing) make(now time.Time) (*enclaveKey, error) {
	private, err := suiteKEM.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("enclave: making a sealing key: %w", err)
	}
	claims := r.about
	claims.SealingKey = private.PublicKey().Bytes()
	identity := attest.Evidence{Provider: r.provider, Claims: claims}.Identity()
	return &enclaveKey{private: private, claims: claims, identity: identity, made: now}, nil
}

// turn replaces and forgets keys as the clock demands. The caller holds mu.
func (r *keyRing) turn() error {
	now := r.now()
	if now.Sub(r.current.made) >= r.every {
		key, err := r.make(now)
		if err != nil {
			return err
		}
		r.previous, r.current = r.current, key
		r.turned()
	}
	if r.previous != nil && now.Sub(r.previous.made) >= r.every+r.grace {
		r.previous = nil
	}
	return nil
}

// newest returns the key to seal to now.
func (r *keyRing) newest() (*enclaveKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.turn(); err != nil {
		return nil, err
	}
	return r.current, nil
}

// named returns the key with the identity, or ErrUnknownKey.
func (r *keyRing) named(identity attest.Identity) (*enclaveKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.turn(); err != nil {
		return nil, err
	}
	for _, key := range []*enclaveKey{r.current, r.previous} {
		if key != nil && key.identity == identity {
			return key, nil
		}
	}
	return nil, fmt.Errorf("enclave: looking for key %s: %w", identity, ErrUnknownKey)
}
