package store

import "fmt"

// PutSetting stores a named value, replacing an earlier one.
func (tx *Tx) PutSetting(name string, value []byte) error {
	if value == nil {
		value = []byte{}
	}
	_, err := tx.Exec(`INSERT INTO settings (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`, name, value)
	if err != nil {
		return fmt.Errorf("store: storing setting %q: %w", name, err)
	}
	return nil
}

// Pristine reports whether the store has never held anything but settings: no
// case, no patient's key, no record of the log.
func (tx *Tx) Pristine() (bool, error) {
	var used int64
	err := tx.QueryRow([]any{&used}, `SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM cases LIMIT 1) AS a)
		+ (SELECT COUNT(*) FROM (SELECT 1 FROM patient_keys LIMIT 1) AS b)
		+ (SELECT COUNT(*) FROM (SELECT 1 FROM audit_entries LIMIT 1) AS c)`)
	if err != nil {
		return false, fmt.Errorf("store: asking whether anything is stored: %w", err)
	}
	return used == 0, nil
}

// Setting returns a named value, or ErrNotFound.
func (tx *Tx) Setting(name string) ([]byte, error) {
	var value []byte
	if err := tx.QueryRow([]any{&value}, "SELECT value FROM settings WHERE name = $1", name); err != nil {
		return nil, fmt.Errorf("store: reading setting %q: %w", name, err)
	}
	return value, nil
}
