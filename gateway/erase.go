package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/store"
)

// valueErased is when a case was erased, in RFC 3339. It needs no seal.
const valueErased = "erased"

// Erasure is what erasing a patient destroys, or destroyed.
type Erasure struct {
	Patient vigie.PatientPseudonym `json:"patient"`
	Cases   []vigie.CaseID         `json:"cases"`   // not erased before
	Objects int                    `json:"objects"` // received ones, reports and overlays
}

// Erasable tells what Erase would destroy of the patient of a case.
func (b *Casebook) Erasable(ctx context.Context, id vigie.CaseID) (e Erasure, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		c, err := tx.Case(id)
		if err != nil {
			return err
		}
		e, err = b.erasable(tx, c.Patient)
		return err
	})
	return e, err
}

func (b *Casebook) erasable(tx *store.Tx, patient vigie.PatientPseudonym) (Erasure, error) {
	e := Erasure{Patient: patient, Cases: []vigie.CaseID{}}
	filter := store.Filter{Patient: patient, OldestFirst: true}
	for {
		cases, err := tx.Cases(filter)
		if err != nil || len(cases) == 0 {
			return e, err
		}
		for _, c := range cases {
			if at, err := erasedAt(tx, c.ID); err != nil || !at.IsZero() {
				if err != nil {
					return e, err
				}
				continue
			}
			objects, err := tx.Objects(store.ObjectFilter{Case: c.ID})
			if err != nil {
				return e, err
			}
			e.Cases = append(e.Cases, c.ID)
			e.Objects += len(objects)
		}
		filter.After = &cases[len(cases)-1]
	}
}

// Erase destroys the data keys of the patient of a case, and with them every
// image, report, finding, decision and identity that they sealed, of all the
// patient's cases. What is left are the cases' pseudonymous rows and the audit
// log, which gets one record for each case in the same transaction. What was
// delivered is at its destination, and a backup of the database made before
// holds the wrapped keys.
//
// A running gateway may use a key that it has in memory to read, for a minute;
// it stores nothing with it. Erase may be repeated: after an error that says
// that old bytes may be left on the disk, it must be.
func (b *Casebook) Erase(ctx context.Context, id vigie.CaseID, actor string) (Erasure, error) {
	if strings.TrimSpace(actor) == "" {
		return Erasure{}, fmt.Errorf("gateway: erasing the patient of case %s: nobody is named who erases", id)
	}
	var done Erasure
	var blobs []store.BlobName
	err := b.store.Update(ctx, func(tx *store.Tx) error {
		blobs = nil // the function may run again
		c, err := tx.Case(id)
		if err != nil {
			return err
		}
		if done, err = b.erasable(tx, c.Patient); err != nil {
			return err
		}
		if err := tx.EraseKeys(c.Patient); err != nil {
			return err
		}
		for _, id := range done.Cases {
			freed, err := tx.ForgetCase(id)
			if err != nil {
				return err
			}
			blobs = append(blobs, freed...)
			if err := tx.PutValue(id, valueErased, []byte(tx.Now().Format(time.RFC3339))); err != nil {
				return err
			}
			if err := b.record(tx, &vigie.Case{ID: id, Patient: c.Patient}, audit.Record{Kind: audit.KindErased, Actor: actor}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Erasure{}, fmt.Errorf("gateway: erasing the patient of case %s: %w", id, err)
	}
	if err := b.ring.Erase(ctx, done.Patient); err != nil {
		return done, err
	}
	for _, blob := range blobs {
		if err := b.store.Blobs().Remove(blob); err != nil {
			// Nobody can open it; the sweep at the next start removes it.
			b.logger.Warn("an erased object's file is left for the next sweep", "error", err)
		}
	}
	return done, nil
}

// erasedAt is when a case was erased, the zero time if it was not.
func erasedAt(tx *store.Tx, id vigie.CaseID) (time.Time, error) {
	value, err := tx.Value(id, valueErased)
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	at, err := time.Parse(time.RFC3339, string(value))
	if err != nil {
		return at, fmt.Errorf("gateway: reading when case %s was erased: %w", id, err)
	}
	return at, nil
}

// notErased is called in a transaction that adds to a case.
func notErased(tx *store.Tx, id vigie.CaseID) error {
	at, err := erasedAt(tx, id)
	if err == nil && !at.IsZero() {
		err = errErased(id)
	}
	return err
}

// errErased says that nothing is left of a case.
func errErased(id vigie.CaseID) error {
	return fmt.Errorf("gateway: case %s was erased, and nothing of its patient is kept here: %w", id, keys.ErrErased)
}
