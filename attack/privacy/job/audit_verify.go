package job

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/keys/dsse"
)

// AuditType is the DSSE payload type of a signed audit report.
const AuditType = "application/vnd.vigie.privacy-audit.v1+json"

const mostAudit = 4 << 20 // bytes of a signed report

// ErrAudit is returned for an audit report that does not let a run start; the
// message says what is wrong with it.
var ErrAudit = errors.New("not an audit that lets the run start")

// TermsDigest is what an audit names terms by: their digest without the name of the
// federation, the seed and the deadline, so that an audit holds for every run under
// such terms, and not for one alone.
func TermsDigest(t federate.Terms) [sha256.Size]byte {
	t.Federation, t.Seed, t.Deadline = "", 0, 0
	return t.Digest()
}

// Sign writes the report, signed: what a consortium requires by its digest, which is
// that of the returned bytes.
func (r *AuditReport) Sign(signer crypto.Signer) ([]byte, error) {
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("job: signing an audit: %w", err)
	}
	envelope, err := dsse.Sign(signer, AuditType, payload)
	if err != nil {
		return nil, fmt.Errorf("job: signing an audit: %w", err)
	}
	data, err := json.Marshal(envelope)
	if err != nil {
		return nil, fmt.Errorf("job: signing an audit: %w", err)
	}
	if len(data) > mostAudit {
		return nil, fmt.Errorf("job: signing an audit: %w: it has %d bytes, at most %d are read", ErrAudit, len(data), mostAudit)
	}
	return data, nil
}

// VerifyAudit returns a signed report if one of the trusted keys signed it, it is of
// this model (its digest as vigie prints it) under these terms (TermsDigest), and its counts keep to the limits, whatever limits and verdict it states itself.
// Everything else is an error that wraps ErrAudit.
func VerifyAudit(report []byte, trusted []ed25519.PublicKey, model string, terms [sha256.Size]byte, limits AuditLimits) (*AuditReport, error) {
	fail := func(format string, arguments ...any) (*AuditReport, error) {
		return nil, fmt.Errorf("job: verifying an audit: %w: %w", ErrAudit, fmt.Errorf(format, arguments...))
	}
	if err := limits.Check(); err != nil {
		return nil, err
	}
	if len(report) > mostAudit {
		return fail("%d bytes, at most %d are read", len(report), mostAudit)
	}
	var envelope dsse.Envelope
	if err := json.Unmarshal(report, &envelope); err != nil {
		return fail("%w", err)
	}
	err := fmt.Errorf("no key is trusted: %w", dsse.ErrSignature)
	for _, key := range trusted {
		if err = envelope.Verify(AuditType, key); err == nil {
			break
		}
	}
	if err != nil {
		return fail("%w", err)
	}
	r, err := parseAudit(envelope.Payload)
	if err != nil {
		return fail("%w", err)
	}
	if trimDigest(r.Digest) != trimDigest(model) || model == "" {
		return fail("it is of model %s, not of %s", r.Digest, model)
	}
	if r.Terms != hex.EncodeToString(terms[:]) {
		return fail("it is of terms %s, not of %x", r.Terms, terms)
	}
	if failures := limits.judge(r); len(failures) > 0 {
		var all []string
		for _, f := range failures {
			all = append(all, f.English)
		}
		return fail("%s", strings.Join(all, "; "))
	}
	return r, nil
}

// parseAudit reads a report whose signature was verified. Counts that contradict
// each other are refused.
func parseAudit(payload []byte) (*AuditReport, error) {
	r := &AuditReport{}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the report")
	}
	if r.Protocol != SecureSum && r.Protocol != SumAndDP {
		return nil, fmt.Errorf("a protocol %q", r.Protocol)
	}
	for _, f := range r.Figures {
		if f.Trials < 0 || f.Hits.Hits < 0 || f.Hits.Hits > f.Trials || f.NeverTrials < 0 || f.NeverHits < 0 || f.NeverHits > f.NeverTrials {
			return nil, fmt.Errorf("%d hits of %d and %d of %d by %s", f.Hits.Hits, f.Trials, f.NeverHits, f.NeverTrials, f.Attack)
		}
	}
	for _, m := range r.Members {
		if m.ROC == nil || m.Loss == nil {
			return nil, errors.New("a membership attack without figures")
		}
		for _, rate := range m.Rates {
			if !(rate.TPR.Low >= 0 && rate.TPR.Low <= rate.TPR.High && rate.TPR.High <= 1) {
				return nil, fmt.Errorf("a rate from %v to %v", rate.TPR.Low, rate.TPR.High)
			}
		}
	}
	return r, nil
}
