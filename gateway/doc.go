// Package gateway is the spine of Vigie: it walks a case from a hospital
// system's C-STORE or STOW-RS to a delivered, explained and audited answer.
//
//	intake ▸ vault ▸ job ▸ de-identify ▸ seal ▸ enclave ▸ open ▸ triage ▸ review ▸ deliver
//
// One rule holds all of it together: every arrow is one SQL transaction that
// moves the case, appends the audit record and queues the next job. Kill the
// process anywhere, start it again, and every acknowledged case goes on from
// its last arrow. Each step is idempotent, results carry SOP Instance UIDs
// derived from the case and the model, and their bytes are stable, so that a
// repeat after a crash is the same object at the receiver.
//
// The gateway holds identities; the model side never does. It must not know
// how a model works, how a database stores rows or how DIMSE frames a PDU:
// those are packages model, store and dimse.
//
//	config, origins, err := gateway.Load(gateway.Sources{File: "site.yaml", Environ: os.Environ()})
//	if err != nil { … }                       // every problem, with file and line
//	g, err := gateway.Open(ctx, config, slog.Default())
//	if err != nil { … }
//	defer g.Close()
//	err = g.Run(ctx)                          // until ctx ends, then a clean shutdown
package gateway
