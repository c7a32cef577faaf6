package consortium

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	privacyjob "github.com/vigie/vigie/attack/privacy/job"
)

// AuditRule says that every run must have passed a privacy audit of its model under
// its terms (vigie privacy audit), and who may have made it.
type AuditRule struct {
	Auditors []string `yaml:"auditors" json:"auditors"` // their Ed25519 keys, hexadecimal
	// Limits that the audit's counts are held against: see privacyjob.AuditLimits.
	Trials        int     `yaml:"trials" json:"trials"`
	Reconstructed float64 `yaml:"reconstructed" json:"reconstructed"`
	Membership    float64 `yaml:"membership" json:"membership"`
}

// text is the rule as a part of the file that people edit.
func (a *AuditRule) text() string {
	out := `
# A privacy audit (vigie privacy audit) of its model under its terms, without which no
# run starts; each site verifies it, too. Without this block, none is needed.
#require_audit:
#  auditors: []           # their Ed25519 public keys, 64 hexadecimal digits each
#  trials: 30000          # images that each attack was tried on
#  reconstructed: 1e-4    # share of them that may be found, with 95 % confidence
#  membership: 0.05       # share of members that may be named at 1 % false alarms
`
	if a != nil {
		out += fmt.Sprintf("require_audit: {auditors: [\"%s\"], trials: %d, reconstructed: %g, membership: %g}\n", strings.Join(a.Auditors, `", "`), a.Trials, a.Reconstructed, a.Membership)
	}
	return out
}

func (a *AuditRule) keys() ([]ed25519.PublicKey, error) {
	if len(a.Auditors) == 0 {
		return nil, errors.New("it names no auditor")
	}
	var out []ed25519.PublicKey
	for _, text := range a.Auditors {
		key, err := hex.DecodeString(text)
		if err != nil || len(key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("auditor %q is no Ed25519 key of 64 hexadecimal digits", text)
		}
		out = append(out, key)
	}
	return out, nil
}

func (a *AuditRule) limits() privacyjob.AuditLimits {
	return privacyjob.AuditLimits{Trials: a.Trials, Reconstructed: a.Reconstructed, Membership: a.Membership}
}

// check says what is wrong with the rule.
func (a *AuditRule) check() error {
	if a == nil {
		return nil
	}
	if _, err := a.keys(); err != nil {
		return err
	}
	return a.limits().Check()
}

// allows returns nil if the job carries an audit that the rule asks for.
func (a *AuditRule) allows(j Job) error {
	if a == nil {
		return nil
	}
	if len(j.Audit) == 0 {
		return errors.New("it carries no privacy audit")
	}
	keys, err := a.keys()
	if err != nil {
		return err
	}
	_, err = privacyjob.VerifyAudit(j.Audit, keys, j.Model.SHA256.String(), privacyjob.TermsDigest(j.Terms), a.limits())
	return err
}
