package audit

import (
	"context"

	"github.com/vigie/vigie/store"
)

// SignHead signs the log as it stands without storing the checkpoint.
func SignHead(ctx context.Context, l *Log) (signed []byte, err error) {
	err = l.store.View(ctx, func(tx *store.Tx) error {
		n, err := size(tx)
		if err != nil {
			return err
		}
		c, err := l.sign(tx, n)
		signed = c.Note
		return err
	})
	return signed, err
}
