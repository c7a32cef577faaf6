package store

import (
	"errors"
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys"
)

// CheckSealed returns keys.ErrErased if any of what keys.Ring sealed for the
// patient was sealed with a data key that has been erased since. Another
// process may have erased it while this one still had it in memory; committed,
// the bytes could never be opened. Call it in the transaction that stores
// them, forget the key (keys.Ring.Forget), seal again, and retry.
func (tx *Tx) CheckSealed(patient vigie.PatientPseudonym, sealed ...[]byte) error {
	for _, s := range sealed {
		generation, err := keys.Generation(s)
		if err != nil {
			return fmt.Errorf("store: checking what was sealed: %w", err)
		}
		key, err := tx.patientKey(patient, generation)
		if err != nil {
			return err
		}
		if key.Wrapped == nil {
			return fmt.Errorf("store: checking what was sealed: %w", keys.ErrErased)
		}
	}
	return nil
}

// ForgetCase deletes what is kept of a case beside its row: its objects, its
// values and its deliveries. It returns the blobs that nothing refers to any
// more, to be removed once the transaction is committed. The row stays, as the
// audit log speaks of it.
func (tx *Tx) ForgetCase(id vigie.CaseID) (blobs []BlobName, err error) {
	err = tx.Query(func(scan func(...any) error) error {
		var blob BlobName
		err := scan(&blob)
		blobs = append(blobs, blob)
		return err
	}, "SELECT blob FROM objects WHERE case_id = $1", string(id))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("store: forgetting case %s: %w", id, err)
	}
	for _, table := range []string{"deliveries", "objects", "case_values"} {
		if _, err := tx.Exec("DELETE FROM "+table+" WHERE case_id = $1", string(id)); err != nil {
			return nil, fmt.Errorf("store: forgetting the %s of case %s: %w", table, id, err)
		}
	}
	return blobs, nil
}
