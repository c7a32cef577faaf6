package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys"
)

var _ keys.Keep = (*Store)(nil)

// LatestKey implements keys.Keep.
func (s *Store) LatestKey(ctx context.Context, patient vigie.PatientPseudonym) (keys.WrappedKey, error) {
	return s.readPatientKey(ctx, patient, 0)
}

// Key implements keys.Keep.
func (s *Store) Key(ctx context.Context, patient vigie.PatientPseudonym, generation uint32) (keys.WrappedKey, error) {
	if generation == 0 {
		return keys.WrappedKey{}, fmt.Errorf("store: reading generation 0 of a patient's data key: %w", keys.ErrNoKey)
	}
	return s.readPatientKey(ctx, patient, generation)
}

func (s *Store) readPatientKey(ctx context.Context, patient vigie.PatientPseudonym, generation uint32) (key keys.WrappedKey, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		key, err = tx.patientKey(patient, generation)
		return err
	})
	return key, err
}

// patientKey reads one generation, or the newest if it is 0.
func (tx *Tx) patientKey(patient vigie.PatientPseudonym, generation uint32) (keys.WrappedKey, error) {
	query, args := "SELECT generation, wrapped FROM patient_keys WHERE patient = $1 ORDER BY generation DESC LIMIT 1", []any{string(patient)}
	if generation != 0 {
		query, args = "SELECT generation, wrapped FROM patient_keys WHERE patient = $1 AND generation = $2", append(args, int64(generation))
	}
	var key keys.WrappedKey
	err := tx.QueryRow([]any{&key.Generation, &key.Wrapped}, query, args...)
	if errors.Is(err, ErrNotFound) {
		err = keys.ErrNoKey
	}
	if err != nil {
		return keys.WrappedKey{}, fmt.Errorf("store: reading a patient's data key: %w", err)
	}
	return key, nil
}

// AddKey implements keys.Keep. It commits a transaction of its own.
func (s *Store) AddKey(ctx context.Context, patient vigie.PatientPseudonym, key keys.WrappedKey) (keys.WrappedKey, error) {
	if patient == "" || key.Generation == 0 || key.Wrapped == nil {
		return keys.WrappedKey{}, errors.New("store: adding a data key without patient, generation or bytes")
	}
	var stored keys.WrappedKey
	err := s.Update(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`INSERT INTO patient_keys (patient, generation, wrapped, created)
			VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
			string(patient), int64(key.Generation), key.Wrapped, micros(tx.Now()))
		if err != nil {
			return fmt.Errorf("store: adding a patient's data key: %w", err)
		}
		stored, err = tx.patientKey(patient, key.Generation)
		return err
	})
	return stored, err
}

// EraseKeys implements keys.Keep. When it returns nil, the wrapped keys are
// overwritten in the database, and on SQLite in its log too.
func (s *Store) EraseKeys(ctx context.Context, patient vigie.PatientPseudonym) error {
	err := s.Update(ctx, func(tx *Tx) error { return tx.EraseKeys(patient) })
	if err != nil {
		return err
	}
	if err := s.db.forget(ctx); err != nil {
		return fmt.Errorf("store: the keys are erased, but their old bytes may be left on the disk; erase again: %w", mapped(err))
	}
	return nil
}

// EraseKeys destroys every data key of the patient as a part of the
// transaction, so that its audit record commits with it. Call
// keys.Ring.Erase after it, which also removes old bytes from the disk.
func (tx *Tx) EraseKeys(patient vigie.PatientPseudonym) error {
	_, err := tx.Exec("UPDATE patient_keys SET wrapped = NULL, erased = $1 WHERE patient = $2 AND wrapped IS NOT NULL",
		micros(tx.Now()), string(patient))
	if err != nil {
		return fmt.Errorf("store: erasing a patient's data keys: %w", err)
	}
	return nil
}
