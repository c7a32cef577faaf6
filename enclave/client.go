package enclave

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vigie/vigie/attest"
)

// ClientOptions tunes a client. The zero value is a good start.
type ClientOptions struct {
	EvidenceAge time.Duration // verified evidence is asked for again after this; 0 is DefaultEvidenceAge
}

// DefaultEvidenceAge keeps a key in use for much less than it lives, so that a
// client usually turns to a new key before the old one is refused.
const DefaultEvidenceAge = 15 * time.Minute

// Client diagnoses cases in an enclave it has verified. It is safe for
// concurrent use.
type Client struct {
	enclave  Enclave
	verifier *attest.Verifier
	age      time.Duration
	turn     chan struct{} // held while reading or replacing verified
	verified *attest.Verified
}

var _ Diagnoser = (*Client)(nil)

// NewClient returns a client of an enclave in this process (a *Worker) or
// elsewhere (a *Remote).
func NewClient(enclave Enclave, verifier *attest.Verifier, options ClientOptions) *Client {
	if options.EvidenceAge == 0 {
		options.EvidenceAge = DefaultEvidenceAge
	}
	return &Client{enclave: enclave, verifier: verifier, age: options.EvidenceAge, turn: make(chan struct{}, 1)}
}

// attempts is how often a case is sealed anew when the enclave's key turned in
// between. Twice is a coincidence; more often something is wrong with the
// enclave or with whoever stands in between.
const attempts = 3

// Diagnose seals the case to the enclave's verified key, and returns the
// finding if the same enclave signed it about this very case. The error wraps
// ErrUnavailable (try later), ErrUntrusted, ErrReply, ErrTooLarge, ErrSealed
// or ctx's error. It never proceeds with evidence that did not verify.
func (c *Client) Diagnose(ctx context.Context, request Request) (Result, error) {
	for attempt := 1; ; attempt++ {
		verified, err := c.Verified(ctx)
		if err != nil {
			return Result{}, fmt.Errorf("enclave: diagnosing case %s: %w", request.Case, err)
		}
		sealed, pending, err := Seal(verified, request)
		if err != nil {
			return Result{}, err
		}
		reply, err := c.enclave.Diagnose(ctx, sealed)
		switch {
		case err == nil:
			return pending.Open(reply)
		case errors.Is(err, ErrUnknownKey) && attempt < attempts:
			c.forget(ctx, verified)
		case errors.Is(err, ErrUnknownKey):
			return Result{}, fmt.Errorf("enclave: diagnosing case %s: %w: it refused its own key %d times: %w", request.Case, ErrUnavailable, attempts, err)
		default:
			return Result{}, fmt.Errorf("enclave: diagnosing case %s: %w", request.Case, err)
		}
	}
}

// Verified returns evidence that was verified less than EvidenceAge ago,
// fetching it if needed.
func (c *Client) Verified(ctx context.Context) (*attest.Verified, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("enclave: waiting for evidence: %w", ctx.Err())
	}
	if c.verified != nil && time.Since(c.verified.Time()) < c.age {
		return c.verified, nil
	}
	c.verified = nil
	nonce := attest.NewNonce()
	evidence, err := c.enclave.Evidence(ctx, nonce)
	if errors.Is(err, attest.ErrMalformed) {
		return nil, fmt.Errorf("enclave: fetching evidence: %w: %w", ErrUntrusted, err)
	}
	if err != nil {
		return nil, fmt.Errorf("enclave: fetching evidence: %w", err)
	}
	verified, err := c.verifier.Verify(evidence, nonce)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	c.verified = verified
	return verified, nil
}

// Ready tells whether a case could be diagnosed now: the evidence is verified,
// and the enclave answers. Verified alone would praise, for as long as
// evidence lasts, an enclave that has died.
func (c *Client) Ready(ctx context.Context) error {
	if _, err := c.Verified(ctx); err != nil {
		return err
	}
	if err := c.enclave.Ready(ctx); err != nil {
		return fmt.Errorf("enclave: asking whether it is ready: %w", err)
	}
	return nil
}

// forget drops the evidence unless another case already replaced it.
func (c *Client) forget(ctx context.Context, stale *attest.Verified) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return
	}
	if c.verified == stale {
		c.verified = nil
	}
}
