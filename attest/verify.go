package attest

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/vigie/vigie"
)

// The reasons why evidence is refused. None of them goes away by asking again
// for the same evidence, except ErrNonce.
var (
	ErrPolicy   = errors.New("attest: the policy is incomplete")             // fix the policy
	ErrNonce    = errors.New("evidence is not fresh")                        // ask again with a new nonce
	ErrProvider = errors.New("evidence comes from a provider not allowed")   // allow the provider, or move the enclave
	ErrClaims   = errors.New("evidence claims something else than expected") // deploy the expected model, configuration or build
	ErrDocument = errors.New("the provider's document does not vouch for the claims")
)

// documentVerifiers holds, for each provider, how its document is checked
// against the report data. A provider that is not here cannot be allowed.
var documentVerifiers = map[string]func(document []byte, data ReportData) error{
	DevelopmentName: verifyDevelopment,
}

// Policy says which evidence is good enough.
type Policy struct {
	// Production refuses development evidence, whatever Providers says, and
	// demands that Model is set.
	Production bool
	// Providers lists the allowed providers by name. None is allowed by default.
	Providers []string
	// Model is the package the enclave must serve; empty accepts any, outside
	// production.
	Model vigie.ModelDigest
	// Configurations and Builds list what is accepted; empty accepts any.
	Configurations []vigie.Digest
	Builds         []string
}

// Verifier checks evidence against one policy. It is safe for concurrent use.
type Verifier struct {
	policy Policy
	logger *slog.Logger
	warned sync.Once
}

// NewVerifier returns a verifier, or ErrPolicy if the policy could never be
// met or would accept too much.
func NewVerifier(policy Policy, logger *slog.Logger) (*Verifier, error) {
	if len(policy.Providers) == 0 {
		return nil, fmt.Errorf("%w: it allows no provider: list at least one of %v", ErrPolicy, knownProviders())
	}
	for _, name := range policy.Providers {
		if _, known := documentVerifiers[name]; !known {
			return nil, fmt.Errorf("%w: provider %q is not one this build can verify: %v", ErrPolicy, name, knownProviders())
		}
	}
	if policy.Production && policy.Model == "" {
		return nil, fmt.Errorf("%w: in production it must name the model digest", ErrPolicy)
	}
	policy.Providers = slices.Clone(policy.Providers)
	policy.Configurations = slices.Clone(policy.Configurations)
	policy.Builds = slices.Clone(policy.Builds)
	return &Verifier{policy: policy, logger: logger}, nil
}

func knownProviders() []string {
	var names []string
	for name := range documentVerifiers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Verified is evidence that a Verifier accepted. Only Verify makes one.
type Verified struct {
	evidence Evidence
	time     time.Time
}

// Evidence returns the accepted evidence.
func (v *Verified) Evidence() Evidence { return v.evidence }

// Claims returns the accepted claims.
func (v *Verified) Claims() Claims { return v.evidence.Claims }

// Identity returns the identity of the enclave key.
func (v *Verified) Identity() Identity { return v.evidence.Identity() }

// Time tells when the evidence was accepted.
func (v *Verified) Time() time.Time { return v.time }

// Verify accepts the evidence if it was made for the nonce, by an allowed
// provider, claims what the policy expects and carries a document that vouches
// for exactly these claims. Otherwise the error wraps one of
// ErrDevelopmentEvidence, ErrMalformed, ErrNonce, ErrProvider, ErrClaims and
// ErrDocument.
func (v *Verifier) Verify(evidence Evidence, nonce []byte) (*Verified, error) {
	refuse := func(err error) (*Verified, error) {
		return nil, fmt.Errorf("attest: verifying evidence from provider %q: %w", evidence.Provider, err)
	}
	if err := evidence.check(); err != nil {
		return nil, fmt.Errorf("attest: verifying evidence: %w", err)
	}
	if evidence.Provider == DevelopmentName && v.policy.Production {
		return refuse(ErrDevelopmentEvidence)
	}
	if !slices.Contains(v.policy.Providers, evidence.Provider) {
		return refuse(fmt.Errorf("%w: the policy lists %v", ErrProvider, v.policy.Providers))
	}
	if !bytes.Equal(evidence.Nonce, nonce) {
		return refuse(fmt.Errorf("%w: it was made for another nonce", ErrNonce))
	}
	claims := evidence.Claims
	switch {
	case v.policy.Model != "" && claims.Model != v.policy.Model:
		return refuse(fmt.Errorf("%w: model %s, expected %s", ErrClaims, claims.Model, v.policy.Model))
	case len(v.policy.Configurations) > 0 && !slices.Contains(v.policy.Configurations, claims.Configuration):
		return refuse(fmt.Errorf("%w: configuration %s is not in the policy", ErrClaims, claims.Configuration))
	case len(v.policy.Builds) > 0 && !slices.Contains(v.policy.Builds, claims.Build):
		return refuse(fmt.Errorf("%w: build %q is not in the policy", ErrClaims, claims.Build))
	}
	if err := documentVerifiers[evidence.Provider](evidence.Document, evidence.ReportData()); err != nil {
		return refuse(err)
	}
	if evidence.Provider == DevelopmentName {
		v.warned.Do(func() { warnDevelopment(v.logger, "verifier") })
		v.logger.Warn("accepted development evidence, which proves nothing", "enclave", evidence.Identity().String())
	}
	return &Verified{evidence: evidence, time: time.Now()}, nil
}
