// Package store keeps Vigie's state: cases, objects, deliveries, wrapped keys,
// the audit log's tables and the queue of jobs in one SQL database, and the
// encrypted objects themselves as files beside it.
//
// One machine needs nothing but a folder (SQLite); several gateways share one
// PostgreSQL. The code is the same. Every step of a case is one call of
// [Store.Update]: the new state, its audit record and the next job are
// committed together or not at all.
//
//	s, err := store.Open(ctx, store.Config{
//		URL:     "sqlite:/var/lib/vigie/vigie.db", // or postgres://…
//		BlobDir: "/var/lib/vigie/objects",
//	})
//	…
//	err = s.Update(ctx, func(tx *store.Tx) error {
//		if _, err := tx.Advance(id, vigie.Received, vigie.Diagnosed, nil); err != nil {
//			return err // vigie.ErrTransition: another worker made this step
//		}
//		if _, err := log.Append(tx, record); err != nil {
//			return err
//		}
//		_, err := tx.Enqueue(TriageArgs{Case: id}, nil)
//		return err
//	})
//
// # What a caller must know
//
// The function given to Update may run more than once (a deadlock or a
// serialization failure in PostgreSQL repeats it), so it changes nothing but
// the transaction. It must be short and must not wait for a network, another
// Update or a key: all writers of a process take turns, and the ones that wait
// share one durable commit.
//
// What must not be read in clear on disk is sealed by the caller (package
// keys): case values, the sealed column of an object, and every blob.
//
// When the disk is full or read-only, or the database cannot be reached,
// errors satisfy [OutOfResources]; nothing was acknowledged, and the same call
// works again once the cause is gone, without reopening.
//
// The package knows nothing of medicine.
package store
