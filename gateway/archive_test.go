package gateway

import (
	"context"
	"fmt"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/store"
)

func TestASearchThroughMoreThanItLooksAtSeesTheNewest(t *testing.T) {
	book, err := OpenCasebook(context.Background(), testConfig(t), testLogger(t, new(lockedBuffer)))
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
	const more = 10_001
	uid := func(i int) vigie.InstanceUID { return vigie.InstanceUID(fmt.Sprintf("2.25.%d", i)) }
	err = book.store.Update(context.Background(), func(tx *store.Tx) error {
		c := vigie.Case{ID: store.NewCaseID(), Patient: "p", State: vigie.Received, Input: vigie.DigestOf(nil)}
		if err := tx.CreateCase(c); err != nil {
			return err
		}
		for i := range more {
			o := store.Object{Case: c.ID, Kind: kindReport, Study: "s", Instance: uid(i), Digest: vigie.DigestOf([]byte(uid(i)))}
			if err := tx.AddObject(&o); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	objects, _, err := (&archive{book: book}).list(context.Background(), dicomweb.Scope{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[vigie.InstanceUID]bool{}
	for _, o := range objects {
		seen[o.Instance] = true
	}
	if len(objects) >= more || !seen[uid(more-1)] || seen[uid(0)] {
		t.Errorf("of %d reports %d are looked at; the newest is among them: %v, the oldest: %v", more, len(objects), seen[uid(more-1)], seen[uid(0)])
	}
}
