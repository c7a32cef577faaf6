package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/store"
)

// What a person can do with a case in review or quarantine.
const (
	ActionRelease  = "release"  // the model's answer stands
	ActionOverride = "override" // the person's labels replace the model's
	ActionReject   = "reject"   // nothing is reported
)

// ErrDecision is returned for a decision that does not fit its case.
var ErrDecision = errors.New("the decision does not fit the case")

// Decide records what a person decided about a case in review or quarantine,
// and queues the delivery of the outcome. The note is sealed in the vault; the
// audit log names the person and the action. It returns vigie.ErrTransition
// when the case does not wait for a person, or no longer.
func (b *Casebook) Decide(ctx context.Context, id vigie.CaseID, decision vigie.HumanDecision) (*vigie.Case, error) {
	c, err := b.Case(ctx, id)
	if err != nil {
		return nil, err
	}
	if !c.Erased.IsZero() {
		return nil, errErased(id)
	}
	if !c.State.CanBecome(vigie.Reviewed) {
		return nil, fmt.Errorf("gateway: deciding case %s: it is %s, not in review or quarantined: %w", id, c.State, vigie.ErrTransition)
	}
	decision.Choices = nil
	if decision.Action == ActionOverride {
		if decision.Choices, err = b.choices(c); err != nil {
			return nil, err
		}
	}
	if err := b.checkDecision(ctx, c, decision); err != nil {
		return nil, err
	}
	decision.Time = b.now().UTC()
	sealed, err := b.sealValue(ctx, c, valueDecision, decision)
	if err != nil {
		return nil, err
	}
	from := c.State
	err = b.store.Update(ctx, func(tx *store.Tx) error {
		if err := errors.Join(notErased(tx, id), tx.CheckSealed(c.Patient, sealed)); err != nil {
			return err
		}
		reviewed, err := tx.Advance(id, from, vigie.Reviewed, nil)
		if err != nil {
			return err
		}
		if err := tx.PutValue(id, valueDecision, sealed); err != nil {
			return err
		}
		// The output is what was decided, note included, as a digest of the
		// sealed bytes: the log proves which decision it was, and tells nothing.
		if err := b.record(tx, reviewed, audit.Record{
			Kind: audit.KindReviewed, Actor: decision.Actor, Decision: decision.Action, Model: c.Model,
			Output: vigie.DigestOf(sealed), From: from, To: vigie.Reviewed,
		}); err != nil {
			return err
		}
		_, err = tx.Enqueue(deliverArgs{Case: id}, deliverOptions())
		return err
	})
	if err != nil {
		return nil, err
	}
	return b.Case(ctx, id)
}

func (b *Casebook) checkDecision(ctx context.Context, c *vigie.Case, d vigie.HumanDecision) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("gateway: deciding case %s: %w: %s", c.ID, ErrDecision, fmt.Sprintf(format, args...))
	}
	if strings.TrimSpace(d.Actor) == "" {
		return fail("it names no actor")
	}
	switch d.Action {
	case ActionRelease:
		if c.Finding == nil || len(c.Finding.Predictions) == 0 {
			return fail("the model gave no answer that could be released: override it with your own labels, or reject it")
		}
		if c.State == vigie.Quarantined {
			return fail("a quarantined case is not released as it is: override or reject it")
		}
	case ActionOverride:
		var known []string
		for _, choice := range d.Choices {
			known = append(known, choice.Name)
		}
		for _, label := range d.Labels {
			if !slices.Contains(known, label) {
				return fail("label %q is not one of %s", label, strings.Join(known, ", "))
			}
		}
		pkg, err := b.openModel()
		if err != nil {
			return err
		}
		for _, rule := range pkg.Manifest.Plausibility {
			both := slices.DeleteFunc(slices.Clone(rule.Labels), func(label string) bool { return !slices.Contains(d.Labels, label) })
			if rule.Rule == model.Exclusive && len(both) > 1 {
				return fail("labels %s exclude each other: choose one", strings.Join(both, ", "))
			}
		}
	case ActionReject:
	default:
		return fail("action %q is none of release, override, reject", d.Action)
	}
	if d.Action == ActionOverride {
		source, err := b.sourceOf(ctx, c)
		if err != nil {
			return err
		}
		for _, tag := range []dicom.Tag{dicom.StudyInstanceUID, dicom.SeriesInstanceUID, dicom.SOPInstanceUID, dicom.SOPClassUID} {
			if !isUID(source.UID(tag)) {
				return fail("the object does not name its study, so there is nowhere to report to: reject it, and have it sent again")
			}
		}
	}
	if d.Action != ActionOverride && len(d.Labels) > 0 {
		return fail("labels belong to an override")
	}
	return nil
}

// openModel opens the model package of the configuration on first use.
func (b *Casebook) openModel() (*model.Package, error) {
	if b.model == nil {
		pkg, err := model.Open(b.config.Model)
		if err != nil {
			return nil, err
		}
		b.model = pkg
	}
	return b.model, nil
}

// choices are the labels that a person may override a case with: those of its
// finding, and without one those of the model package.
func (b *Casebook) choices(c *vigie.Case) ([]vigie.Label, error) {
	var out []vigie.Label
	if c.Finding != nil && len(c.Finding.Predictions) > 0 {
		for _, p := range c.Finding.Predictions {
			out = append(out, vigie.Label{Name: p.Label, Code: p.Code})
		}
		return out, nil
	}
	pkg, err := b.openModel()
	if err != nil {
		return nil, err
	}
	for _, l := range pkg.Manifest.Output.Labels {
		out = append(out, vigie.Label{Name: l.Name, Code: l.Code})
	}
	return out, nil
}
