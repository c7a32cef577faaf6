// Package keys holds Vigie's secrets at rest: it encrypts every stored byte
// and makes a patient's data unreadable by destroying one small value.
//
// The hierarchy has three steps:
//
//	master key (a Provider: file, HSM, …)
//	  └ wraps a data key per patient (Ring, kept wrapped by a Keep)
//	      └ seals small values (Ring.Seal) and streams (Ring.NewWriter)
//
// A value is sealed with [Seal] (AES-256-GCM, random nonce) and a stream with
// [NewWriter] (chunked AES-256-GCM, the STREAM construction), each bound to
// additional authenticated data that says what it is, so that a ciphertext
// moved to another row does not open:
//
//	provider, err := keys.OpenFile("/var/lib/vigie/keys/master.key")
//	…
//	ring := keys.NewRing(provider, store)
//	sealed, err := ring.Seal(ctx, patient, note, []byte("case/"+id+"/note"))
//	…
//	note, err := ring.Open(ctx, patient, sealed, []byte("case/"+id+"/note"))
//	…
//	err = ring.Erase(ctx, patient) // from now on Open gives ErrErased
//
// Bytes that arrive before their patient is known (a DICOM object still being
// received) are sealed under a fresh key from [NewKey]; that key is then
// itself sealed with Ring.Seal beside the object, so that erasure still
// reaches it.
//
// The package knows nothing of medicine, and never logs.
package keys
