package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/store"
)

func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	s, err := store.Open(ctx, store.Config{
		URL:     "sqlite:" + filepath.Join(dir, "vigie.db"),
		BlobDir: filepath.Join(dir, "objects"),
	})
	if err != nil {
		panic(err)
	}
	defer s.Close()

	c := vigie.Case{ID: store.NewCaseID(), Patient: "pseudonym", State: vigie.Received}
	err = s.Update(ctx, func(tx *store.Tx) error { return tx.CreateCase(c) })
	if err != nil {
		panic(err)
	}
	diagnose := func() error {
		return s.Update(ctx, func(tx *store.Tx) error {
			_, err := tx.Advance(c.ID, vigie.Received, vigie.Diagnosed, nil)
			return err
		})
	}
	fmt.Println("first worker:", diagnose())
	fmt.Println("second worker is late:", errors.Is(diagnose(), vigie.ErrTransition))
	// Output:
	// first worker: <nil>
	// second worker is late: true
}
