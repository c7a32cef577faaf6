package gateway

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/store"
)

// siteSecret is the name of the setting that holds the site's secret, wrapped
// by the key provider. All gateways of a site share it through the store. From
// it come the pseudonyms and the signing key of the audit log; it never
// changes, because pseudonyms must not.
const siteSecret = "site secret"

// secrets are the keys derived from the site's secret, one for each purpose.
type secrets struct {
	pseudonyms []byte             // of package deidentify
	audit      ed25519.PrivateKey // signs checkpoints
}

// errNoSiteSecret: a new secret would give every patient a second pseudonym and
// sign the log with another key.
var errNoSiteSecret = fmt.Errorf("the store holds cases or a log, but row %q of its table settings is gone: restore that row from a backup of the database", siteSecret)

// loadSecrets reads the site's secret, and makes it on first use.
func loadSecrets(ctx context.Context, s *store.Store, provider keys.Provider) (*secrets, error) {
	aad := []byte("vigie site secret v1")
	var wrapped []byte
	read := func(tx *store.Tx) (err error) {
		wrapped, err = tx.Setting(siteSecret)
		return err
	}
	err := s.View(ctx, read)
	if errors.Is(err, store.ErrNotFound) {
		var fresh []byte
		if fresh, err = provider.Wrap(ctx, keys.NewKey(), aad); err != nil {
			return nil, fmt.Errorf("gateway: wrapping a new site secret: %w", err)
		}
		err = s.Update(ctx, func(tx *store.Tx) error {
			// Another gateway may have been first.
			if err := read(tx); !errors.Is(err, store.ErrNotFound) {
				return err
			}
			switch pristine, err := tx.Pristine(); {
			case err != nil:
				return err
			case !pristine:
				return errNoSiteSecret
			}
			wrapped = fresh
			return tx.PutSetting(siteSecret, fresh)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("gateway: loading the site secret: %w", err)
	}
	secret, err := provider.Unwrap(ctx, wrapped, aad)
	if err != nil {
		return nil, fmt.Errorf("gateway: opening the site secret with %s: it was wrapped by another master key: name the right key file: %w", provider.ID(), err)
	}
	defer keys.Zero(secret)
	pseudonyms, err := hkdf.Key(sha256.New, secret, nil, "vigie pseudonyms v1", 32)
	if err != nil {
		return nil, fmt.Errorf("gateway: deriving the pseudonym key: %w", err)
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "vigie audit signing key v1", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("gateway: deriving the audit key: %w", err)
	}
	return &secrets{pseudonyms: pseudonyms, audit: ed25519.NewKeyFromSeed(seed)}, nil
}
