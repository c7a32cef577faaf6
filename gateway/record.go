package gateway

import (
	"context"
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/store"
)

// Kinds of record beside those that package audit names.
const (
	kindJoined audit.Kind = "joined" // a further object became part of a case
	kindResult audit.Kind = "result" // a report or overlay was made and kept
	// kindStopped: a run ended in good order. A start that follows another
	// start without it tells of a crash.
	kindStopped audit.Kind = "stopped"
)

// roleGateway is the actor of what the gateway does by itself.
const roleGateway = "gateway"

// openLog opens the audit log with the key derived from the site's secret.
func openLog(b *Casebook, s *secrets) (*audit.Log, error) {
	signer, _, err := audit.KeyFromSeed(b.config.Site+"/audit", s.audit.Seed())
	if err != nil {
		return nil, err
	}
	log, err := audit.New(b.store, signer)
	if err != nil {
		return nil, err
	}
	_, err = log.Remember(b.config.StateFile("log"))
	return log, err
}

// record appends an audit record to the transaction that makes it true. What
// is the same for every record is filled in here.
func (b *Casebook) record(tx *store.Tx, c *vigie.Case, r audit.Record) error {
	if c != nil {
		r.Case, r.Patient = c.ID, c.Patient
	}
	if r.Configuration == "" {
		r.Configuration = b.configDigest
	}
	if r.Actor == "" {
		r.Actor = roleGateway
	}
	if _, err := b.log.Append(tx, r); err != nil {
		return fmt.Errorf("gateway: recording %q in the audit log: %w", r.Kind, err)
	}
	return nil
}

// recordStart notes which configuration and model a run begins with.
func (g *Gateway) recordStart(ctx context.Context) error {
	return g.store.Update(ctx, func(tx *store.Tx) error {
		return g.record(tx, nil, audit.Record{Kind: audit.KindStarted, Model: g.model.Digest})
	})
}

// recordStop notes that the run ended in good order.
func (g *Gateway) recordStop(ctx context.Context) error {
	return g.store.Update(ctx, func(tx *store.Tx) error {
		return g.record(tx, nil, audit.Record{Kind: kindStopped, Model: g.model.Digest})
	})
}

// VerifierKey returns the public key of the site's audit log.
func (b *Casebook) VerifierKey() string { return b.log.VerifierKey() }
