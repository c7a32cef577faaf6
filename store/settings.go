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

// Setting returns a named value, or ErrNotFound.
func (tx *Tx) Setting(name string) ([]byte, error) {
	var value []byte
	if err := tx.QueryRow([]any{&value}, "SELECT value FROM settings WHERE name = $1", name); err != nil {
		return nil, fmt.Errorf("store: reading setting %q: %w", name, err)
	}
	return value, nil
}
