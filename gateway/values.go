package gateway

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/store"
)

// keptFinding is what a case keeps, sealed, of an enclave's answer: enough to
// prove later who signed it and what vouched for the signer.
type keptFinding struct {
	Signed   enclave.SignedFinding `json:"signed"`
	Evidence attest.Evidence       `json:"evidence"`
}

// sealValue seals a JSON value of a case. Never inside a store.Update.
func (b *Casebook) sealValue(ctx context.Context, c *vigie.Case, name string, value any) ([]byte, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("gateway: encoding %s of case %s: %w", name, c.ID, err)
	}
	sealed, err := b.ring.Seal(ctx, c.Patient, data, valueAAD(c.ID, name))
	if err != nil {
		return nil, fmt.Errorf("gateway: sealing %s of case %s: %w", name, c.ID, err)
	}
	return sealed, nil
}

// openValue opens what sealValue sealed.
func (b *Casebook) openValue(ctx context.Context, c *vigie.Case, name string, sealed []byte, into any) error {
	data, err := b.ring.Open(ctx, c.Patient, sealed, valueAAD(c.ID, name))
	if err != nil {
		return fmt.Errorf("gateway: opening %s of case %s: %w", name, c.ID, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("gateway: decoding %s of case %s: %w", name, c.ID, err)
	}
	return nil
}

// openValues fills the finding and the decision of a case. The signature is
// verified against the key of the evidence that was verified before the
// finding was stored.
func (b *Casebook) openValues(ctx context.Context, c *vigie.Case, sealed map[string][]byte) error {
	if value, ok := sealed[valueFinding]; ok {
		var kept keptFinding
		if err := b.openValue(ctx, c, valueFinding, value, &kept); err != nil {
			return err
		}
		finding, err := kept.Signed.Verify(kept.Evidence.Claims.SigningKey)
		if err != nil {
			return fmt.Errorf("gateway: reading the finding of case %s: %w", c.ID, err)
		}
		c.Finding = &finding
	}
	c.Verdict = nil // the row's copy, in clear, is for lists
	if value, ok := sealed[valueVerdict]; ok {
		c.Verdict = new(vigie.Verdict)
		if err := b.openValue(ctx, c, valueVerdict, value, c.Verdict); err != nil {
			return err
		}
	}
	if value, ok := sealed[valueDecision]; ok {
		c.Decision = new(vigie.HumanDecision)
		if err := b.openValue(ctx, c, valueDecision, value, c.Decision); err != nil {
			return err
		}
	}
	return nil
}

// putReferrals keeps the reasons that intake found. They hold no patient data
// and need no seal.
func putReferrals(tx *store.Tx, id vigie.CaseID, referrals []vigie.Reason) error {
	data, err := json.Marshal(referrals)
	if err != nil {
		return fmt.Errorf("gateway: encoding the referrals of case %s: %w", id, err)
	}
	return tx.PutValue(id, valueReferrals, data)
}

// publicVerdict is the part of a verdict that is stored in clear, for lists
// and counts: decision and codes with a general sentence. The sentences of
// the verdict itself may hold numbers about the patient; it is sealed whole.
func publicVerdict(v vigie.Verdict) *vigie.Verdict {
	public := &vigie.Verdict{Decision: v.Decision}
	for _, r := range v.Reasons {
		public.Reasons = append(public.Reasons, vigie.Reason{Code: r.Code, Text: texts[r.Code]})
	}
	return public
}
