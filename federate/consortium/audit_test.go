package consortium

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	privacyjob "github.com/vigie/vigie/attack/privacy/job"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/keys/dsse"
)

// audited is a report on model and terms that keeps to the limits below, but for
// what change makes of it.
func audited(t *testing.T, key ed25519.PrivateKey, model Digest, terms federate.Terms, change func(map[string]any)) []byte {
	t.Helper()
	digest := privacyjob.TermsDigest(terms)
	var moves []map[string]any
	for _, name := range []string{"inserted-layer", "other-weights", "small-group", "few-partners", "only-survivor", "few-survivors", "two-sums", "same-round", "altered-weights"} {
		moves = append(moves, map[string]any{"name": name, "refused": name != "altered-weights"})
	}
	figure := func(attack, means string, trials int) map[string]any {
		return map[string]any{"attack": attack, "means": means, "protection": "secure-sum", "view": "the opened sum", "trials": trials}
	}
	rate := map[string]any{"fpr": 0.01, "resolved": true, "tpr": map[string]any{"value": 0.01, "low": 0, "high": 0.02}}
	r := map[string]any{"digest": model.String(), "terms_digest": hex.EncodeToString(digest[:]), "protocol": "secure-sum", "moves": moves,
		"figures":    []any{figure("linear", "", 1000), figure("imprint", "weights", 1000), figure("imprint", "layer", 1000), figure("optimise", "", 4)},
		"membership": []any{map[string]any{"protection": "secure-sum", "view": "the global model", "rates": []any{rate}, "loss": map[string]any{}}}}
	if change != nil {
		change(r)
	}
	payload, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := dsse.Sign(key, privacyjob.AuditType, payload)
	if err != nil {
		t.Fatal(err)
	}
	document, err := json.Marshal(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return document
}

func TestAPolicyThatRequiresAnAuditAllowsNoRunWithoutTheRightOne(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32))
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{4}, 32))
	p := DefaultPolicy()
	p.RequireAudit = &AuditRule{Auditors: []string{hex.EncodeToString(key.Public().(ed25519.PublicKey))}, Trials: 1000, Reconstructed: 0.01, Membership: 0.05}
	again, err := ParsePolicy([]byte(p.Text("north"))) // as sites agree to it
	if err != nil || again.RequireAudit == nil || again.RequireAudit.Auditors[0] != p.RequireAudit.Auditors[0] || again.RequireAudit.limits() != p.RequireAudit.limits() {
		t.Fatalf("the policy's text says %+v: %v", again.RequireAudit, err)
	}
	j := Job{Run: "one", Terms: federate.DefaultTerms("north.one"), Model: Model{SHA256: DigestOf([]byte("a model"))}}
	j.Audit = audited(t, key, j.Model.SHA256, j.Terms, nil)
	if err := again.Allows(j); err != nil {
		t.Fatal(err)
	}
	other := j
	other.Run, other.Terms.Federation, other.Terms.Seed = "two", "north.two", 9
	if err := again.Allows(other); err != nil {
		t.Errorf("another run under the same terms: %v", err)
	}
	rounds := j.Terms
	rounds.Rounds++
	for what, document := range map[string][]byte{
		"no audit":        nil,
		"no document":     []byte("{}"),
		"a stranger's":    audited(t, stranger, j.Model.SHA256, j.Terms, nil),
		"another model's": audited(t, key, DigestOf([]byte("another")), j.Terms, nil),
		"of other terms":  audited(t, key, j.Model.SHA256, rounds, nil),
		"one that failed": audited(t, key, j.Model.SHA256, j.Terms, func(r map[string]any) {
			r["passed"] = true
			r["figures"].([]any)[0].(map[string]any)["hits"] = 300
		}),
		"tampered with": bytes.Replace(j.Audit, []byte("A"), []byte("B"), 1),
	} {
		bad := j
		bad.Audit = document
		if err := again.Allows(bad); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, change := range map[string]func(*AuditRule){
		"no auditor":   func(a *AuditRule) { a.Auditors = nil },
		"no key":       func(a *AuditRule) { a.Auditors = []string{"Dr Example"} },
		"no trials":    func(a *AuditRule) { a.Trials = 0 },
		"no bound":     func(a *AuditRule) { a.Reconstructed = 0 },
		"beyond a one": func(a *AuditRule) { a.Membership = 2 },
	} {
		bad := p
		rule := *p.RequireAudit
		change(&rule)
		bad.RequireAudit = &rule
		if err := bad.Check(); !errors.Is(err, ErrPolicy) || !strings.Contains(err.Error(), "require_audit") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
