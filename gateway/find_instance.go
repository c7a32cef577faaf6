package gateway

import (
	"context"
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/store"
)

// CaseOf returns the newest case about an object that was received under this
// SOP Instance UID: the original one, which only somebody who has it can ask
// for. It returns store.ErrNotFound if there is none.
func (b *Casebook) CaseOf(ctx context.Context, sopInstance string) (*vigie.Case, error) {
	pseudonym := vigie.InstanceUID(b.profile.UID(sopInstance))
	var id vigie.CaseID
	err := b.store.View(ctx, func(tx *store.Tx) error {
		objects, err := tx.Objects(store.ObjectFilter{Instance: pseudonym, Kind: kindReceived})
		if err != nil {
			return err
		}
		if len(objects) == 0 {
			return fmt.Errorf("gateway: finding the case of an object: %w", store.ErrNotFound)
		}
		id = objects[len(objects)-1].Case
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.Case(ctx, id)
}
