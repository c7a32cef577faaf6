package gateway

import (
	"context"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
)

// VerifyLog verifies the site's whole audit log, and that it extends the given
// checkpoints, which were kept elsewhere, and the one in the state folder.
func (b *Casebook) VerifyLog(ctx context.Context, witnesses [][]byte) (*audit.Report, error) {
	published, err := b.log.Remember(b.config.StateFile("log"))
	if err != nil {
		return nil, err
	}
	if published != nil {
		witnesses = append(witnesses[:len(witnesses):len(witnesses)], published)
	}
	return audit.Verify(ctx, b.store, b.log.VerifierKey(), witnesses)
}

// Prove returns a file that proves every record of a case to anybody who has
// the log's public key. Without a running gateway the log may have records
// that nobody signed yet; they are signed first.
func (b *Casebook) Prove(ctx context.Context, id vigie.CaseID) ([]byte, error) {
	if _, err := b.log.Publish(ctx); err != nil {
		return nil, err
	}
	return audit.Prove(ctx, b.store, b.log.VerifierKey(), id)
}
