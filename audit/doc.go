// Package audit is Vigie's transparency log: every step of every case leaves
// one record, in the same SQL transaction as the step, and no record can be
// altered, removed, reordered or slipped in later without [Verify] or a third
// party noticing.
//
// Records are the leaves of a Merkle tree (RFC 6962 hashes, stored densely as
// golang.org/x/mod/sumdb/tlog does). A [Publisher] signs the tree's head each
// second as a C2SP checkpoint (an Ed25519 signed note) and, if asked, writes
// the tree as C2SP tlog-tiles, so that tools of others can follow the log.
//
//	log, err := audit.New(s, signerKey)
//	…
//	err = s.Update(ctx, func(tx *store.Tx) error {
//		if err := tx.CreateCase(c); err != nil {
//			return err
//		}
//		_, err := log.Append(tx, audit.Record{Kind: audit.KindReceived, Case: c.ID, To: vigie.Received, …})
//		return err
//	})
//	…
//	report, err := audit.Verify(ctx, s, log.VerifierKey(), nil)
//
// [Prove] writes a file with every record of one case, which [Check] verifies
// anywhere with nothing but the log's public key.
//
// # What it does and does not show
//
// A checkpoint that left the machine (a witness, a printed line, a tile
// server) makes any later change of what it covers evident, even by someone
// who holds the signing key and the database: give it to [Verify]. Without one
// such a person could rewrite everything. Records after the last checkpoint,
// normally those of the last second, are protected by the database alone;
// [Report.Unsigned] counts them.
//
// A record holds digests, pseudonyms, codes and actors, never a patient datum.
package audit
