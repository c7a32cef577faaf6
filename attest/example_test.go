package attest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
)

// An enclave collects evidence for the nonce of whoever asks; the asker
// verifies it. In production, development evidence is refused.
func Example() {
	logger := slog.New(slog.DiscardHandler) // a real one shows a warning
	ctx := context.Background()

	// The enclave's side.
	claims := attest.Claims{
		SealingKey:    make([]byte, 1216),
		SigningKey:    make([]byte, 32),
		Model:         vigie.ModelDigest(vigie.DigestOf([]byte("model"))),
		Configuration: vigie.DigestOf([]byte("configuration")),
		Build:         "v1.0.0",
	}
	nonce := attest.NewNonce()
	evidence, err := attest.Collect(ctx, attest.NewDevelopment(logger), claims, nonce)
	if err != nil {
		fmt.Println(err)
		return
	}

	// The asker's side.
	for _, production := range []bool{false, true} {
		verifier, err := attest.NewVerifier(attest.Policy{
			Production: production,
			Providers:  []string{attest.DevelopmentName},
			Model:      claims.Model,
		}, logger)
		if err != nil {
			fmt.Println(err)
			return
		}
		verified, err := verifier.Verify(evidence, nonce)
		fmt.Println(production, verified != nil, errors.Is(err, attest.ErrDevelopmentEvidence))
	}
	// Output:
	// false true false
	// true false true
}
