package attest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/vigie/vigie"
)

func exampleClaims() Claims {
	return Claims{
		SealingKey:    bytes.Repeat([]byte{1}, 1216),
		SigningKey:    ed25519.PublicKey(bytes.Repeat([]byte{2}, ed25519.PublicKeySize)),
		Model:         vigie.ModelDigest(vigie.DigestOf([]byte("model"))),
		Configuration: vigie.DigestOf([]byte("configuration")),
		Build:         "v0.1.0",
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func exampleEvidence(t testing.TB, nonce []byte) Evidence {
	t.Helper()
	evidence, err := Collect(context.Background(), NewDevelopment(quiet()), exampleClaims(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	return evidence
}

func verifier(t testing.TB, change func(*Policy)) *Verifier {
	t.Helper()
	policy := Policy{Providers: []string{DevelopmentName}, Model: exampleClaims().Model}
	if change != nil {
		change(&policy)
	}
	v, err := NewVerifier(policy, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestFreshEvidenceForTheExpectedModelIsAccepted(t *testing.T) {
	nonce := NewNonce()
	evidence := exampleEvidence(t, nonce)
	verified, err := verifier(t, func(p *Policy) {
		p.Builds = []string{"v0.1.0"}
		p.Configurations = []vigie.Digest{exampleClaims().Configuration}
	}).Verify(evidence, nonce)
	if err != nil {
		t.Fatal(err)
	}
	if verified.Identity() != evidence.Identity() || verified.Claims().Build != "v0.1.0" || verified.Time().IsZero() {
		t.Errorf("verified evidence differs from what was given: %+v", verified)
	}
}

func TestProductionRefusesDevelopmentEvidenceEvenWhenItIsListed(t *testing.T) {
	nonce := NewNonce()
	v := verifier(t, func(p *Policy) { p.Production = true })
	if _, err := v.Verify(exampleEvidence(t, nonce), nonce); !errors.Is(err, ErrDevelopmentEvidence) {
		t.Fatalf("got %v, want ErrDevelopmentEvidence", err)
	}
}

func TestEachWrongPropertyIsRefusedForItsOwnReason(t *testing.T) {
	nonce := NewNonce()
	for name, test := range map[string]struct {
		policy   func(*Policy)
		evidence func(*Evidence)
		want     error
	}{
		"another nonce":            {evidence: func(e *Evidence) { e.Nonce = NewNonce() }, want: ErrNonce},
		"another model":            {policy: func(p *Policy) { p.Model = "sha256:other" }, want: ErrClaims},
		"another build":            {policy: func(p *Policy) { p.Builds = []string{"v9"} }, want: ErrClaims},
		"another configuration":    {policy: func(p *Policy) { p.Configurations = []vigie.Digest{"x"} }, want: ErrClaims},
		"a swapped sealing key":    {evidence: func(e *Evidence) { e.Claims.SealingKey = bytes.Repeat([]byte{9}, 1216) }, want: ErrDocument},
		"a swapped signing key":    {evidence: func(e *Evidence) { e.Claims.SigningKey = bytes.Repeat([]byte{9}, 32) }, want: ErrDocument},
		"a swapped configuration":  {evidence: func(e *Evidence) { e.Claims.Configuration = "sha256:0" }, want: ErrDocument},
		"an empty document":        {evidence: func(e *Evidence) { e.Document = nil }, want: ErrDocument},
		"a provider nobody allows": {evidence: func(e *Evidence) { e.Provider = "sev-snp" }, want: ErrProvider},
		"a future format":          {evidence: func(e *Evidence) { e.Version = 2 }, want: ErrMalformed},
		"a short nonce":            {evidence: func(e *Evidence) { e.Nonce = e.Nonce[:8] }, want: ErrMalformed},
		"a control character":      {evidence: func(e *Evidence) { e.Claims.Build = "v1\nINFO all is well" }, want: ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			evidence := exampleEvidence(t, nonce)
			if test.evidence != nil {
				test.evidence(&evidence)
			}
			if _, err := verifier(t, test.policy).Verify(evidence, nonce); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestAPolicyThatAcceptsTooMuchIsRefused(t *testing.T) {
	for name, policy := range map[string]Policy{
		"no provider":                   {Model: "m"},
		"a provider nobody can verify":  {Providers: []string{"sgx"}, Model: "m"},
		"production with any model":     {Production: true, Providers: []string{DevelopmentName}},
		"production with nothing named": {Production: true},
	} {
		if _, err := NewVerifier(policy, quiet()); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: got %v, want ErrPolicy", name, err)
		}
	}
}

func TestTheIdentityCoversEveryClaimAndNotTheNonce(t *testing.T) {
	base := exampleEvidence(t, NewNonce())
	other := exampleEvidence(t, NewNonce())
	if base.Identity() != other.Identity() {
		t.Error("the identity changed with the nonce")
	}
	if base.ReportData() == other.ReportData() {
		t.Error("the report data did not change with the nonce")
	}
	for name, change := range map[string]func(*Evidence){
		"provider":      func(e *Evidence) { e.Provider = "other" },
		"sealing key":   func(e *Evidence) { e.Claims.SealingKey = []byte{1} },
		"signing key":   func(e *Evidence) { e.Claims.SigningKey = bytes.Repeat([]byte{3}, 32) },
		"model":         func(e *Evidence) { e.Claims.Model = "other" },
		"configuration": func(e *Evidence) { e.Claims.Configuration = "other" },
		"build":         func(e *Evidence) { e.Claims.Build = "other" },
	} {
		changed := base
		change(&changed)
		if changed.Identity() == base.Identity() {
			t.Errorf("the identity does not cover the %s", name)
		}
	}
	// Moving a byte across a field boundary must not give the same digest.
	left, right := base, base
	left.Claims.Model, left.Claims.Configuration = "ab", "c"
	right.Claims.Model, right.Claims.Configuration = "a", "bc"
	if left.Identity() == right.Identity() {
		t.Error("two different lists of fields have the same identity")
	}
}

func TestTheWarningIsLoudAndComesOncePerVerifier(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	v, err := NewVerifier(Policy{Providers: []string{DevelopmentName}}, logger)
	if err != nil {
		t.Fatal(err)
	}
	if log.Len() != 0 {
		t.Error("a verifier that accepted nothing warned")
	}
	for range 3 {
		nonce := NewNonce()
		if _, err := v.Verify(exampleEvidence(t, nonce), nonce); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Count(log.String(), "NOT PROTECTED BY HARDWARE"); got != 1 {
		t.Errorf("the full warning appears %d times, want 1", got)
	}
	if got := strings.Count(log.String(), "accepted development evidence"); got != 3 {
		t.Errorf("acceptance is logged %d times, want 3", got)
	}
	log.Reset()
	NewDevelopment(logger)
	if lines := strings.Count(log.String(), "level=WARN"); lines < 4 {
		t.Errorf("starting the provider logged %d warning lines, want several", lines)
	}
}

func TestEvidenceSurvivesEncodingAndHasOneSpelling(t *testing.T) {
	evidence := exampleEvidence(t, NewNonce())
	encoded, err := evidence.Encode()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := Parse(encoded)
	if err != nil {
		t.Fatal(err)
	}
	if parsed.Identity() != evidence.Identity() || !bytes.Equal(parsed.Nonce, evidence.Nonce) || !bytes.Equal(parsed.Document, evidence.Document) {
		t.Error("the parsed evidence differs")
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, encoded, "", " "); err != nil {
		t.Fatal(err)
	}
	extra := bytes.Replace(encoded, []byte(`{"version":1`), []byte(`{"admin":true,"version":1`), 1)
	twice := bytes.Replace(encoded, []byte(`"version":1`), []byte(`"version":2,"version":1`), 1)
	for name, spelling := range map[string][]byte{
		"indented": indented.Bytes(), "unknown field": extra, "duplicate field": twice,
		"trailing data": append(bytes.Clone(encoded), '{', '}'), "trailing space": append(bytes.Clone(encoded), ' '),
		"truncated": encoded[:len(encoded)-1], "empty": {}, "null": []byte("null"),
		"too large": bytes.Repeat([]byte{' '}, MaxEvidence+1),
	} {
		if _, err := Parse(spelling); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want ErrMalformed", name, err)
		}
	}
}

type failingProvider struct{ document []byte }

func (failingProvider) Name() string { return "failing" }
func (p failingProvider) Attest(ctx context.Context, _ ReportData) ([]byte, error) {
	if p.document == nil {
		return nil, errors.New("device is gone")
	}
	return p.document, nil
}

func TestCollectReportsAProviderThatFailsOrSaysTooMuch(t *testing.T) {
	for name, provider := range map[string]Provider{
		"failing":  failingProvider{},
		"too long": failingProvider{document: make([]byte, MaxDocument+1)},
	} {
		if _, err := Collect(context.Background(), provider, exampleClaims(), NewNonce()); err == nil || !strings.Contains(err.Error(), "failing") {
			t.Errorf("%s: got %v, want an error that names the provider", name, err)
		}
	}
	if _, err := Collect(context.Background(), NewDevelopment(quiet()), exampleClaims(), []byte("short")); !errors.Is(err, ErrMalformed) {
		t.Errorf("a short nonce: got %v, want ErrMalformed", err)
	}
}

func FuzzParse(f *testing.F) {
	encoded, err := exampleEvidence(f, bytes.Repeat([]byte{7}, 32)).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		evidence, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error is not ErrMalformed: %v", err)
			}
			return
		}
		again, err := evidence.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("accepted evidence does not encode to itself: %v", err)
		}
	})
}
