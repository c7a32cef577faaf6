package audit_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/store"
)

func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	s, err := store.Open(ctx, store.Config{URL: "sqlite:" + filepath.Join(dir, "vigie.db")})
	if err != nil {
		panic(err)
	}
	defer s.Close()
	seed := make([]byte, 32)
	rand.Read(seed)
	signerKey, verifierKey, err := audit.KeyFromSeed("vigie.hospital.example/audit", seed)
	if err != nil {
		panic(err)
	}
	log, err := audit.New(s, signerKey)
	if err != nil {
		panic(err)
	}

	// A step and its record are one transaction.
	id := store.NewCaseID()
	err = s.Update(ctx, func(tx *store.Tx) error {
		if err := tx.CreateCase(vigie.Case{ID: id, Patient: "pseudonym", State: vigie.Received}); err != nil {
			return err
		}
		_, err := log.Append(tx, audit.Record{Kind: audit.KindReceived, Case: id, To: vigie.Received})
		return err
	})
	if err != nil {
		panic(err)
	}
	if _, err := log.Publish(ctx); err != nil { // a Publisher does this each second
		panic(err)
	}

	report, err := audit.Verify(ctx, s, verifierKey, nil)
	if err != nil {
		panic(err)
	}
	fmt.Println("verified:", report.OK(), report.Size)

	file, err := audit.Prove(ctx, s, verifierKey, id)
	if err != nil {
		panic(err)
	}
	proven, err := audit.Check(bytes.NewReader(file), verifierKey) // by anyone, anywhere
	if err != nil {
		panic(err)
	}
	fmt.Println("proven:", proven.Origin, proven.Records[0].Kind)
	// Output:
	// verified: true 1
	// proven: vigie.hospital.example/audit received
}
