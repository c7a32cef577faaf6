// Package enclave reads cases where nobody is trusted with more than a proof.
//
// A gateway seals a de-identified case to a key that attested evidence binds,
// and gets back a finding that is signed by the same enclave and sealed to a
// key that only this request knows:
//
//	            gateway                                     enclave
//	Client.Diagnose(Request)                          Worker (holds the keys, the model)
//	  evidence ── nonce ──────────────────────────────▶ Evidence
//	  verify  ◀─ claims + provider's document ─────────
//	  seal    ── case: DICOM, pseudonym, reply key ───▶ Diagnose
//	                                                     decode ▸ guard-in ▸ infer ▸ explain ▸ guard-out ▸ sign
//	  open    ◀─ finding, signed, sealed to the reply key
//
// The two halves meet in the interface [Enclave]. A [Worker] is one in process
// and a [Remote] is one behind HTTP; [Client] speaks to either with the very
// same sealed bytes, so a deployment on one machine exercises what a
// deployment on two relies on:
//
//	worker, err := enclave.New(pkg, attest.NewDevelopment(logger), enclave.Options{})
//	verifier, err := attest.NewVerifier(attest.Policy{Providers: …, Model: pkg.Digest}, logger)
//	client := enclave.NewClient(worker, verifier, enclave.ClientOptions{})
//	result, err := client.Diagnose(ctx, enclave.Request{Case: id, Patient: pseudonym, DICOM: file})
//
// Whatever is wrong with a case that could be opened is part of its signed
// finding, as a referral to a person; an error means that there is no finding.
//
// The enclave keeps no state between cases, stores nothing, and must never
// learn an identity: a case that still carries one is referred unread.
package enclave

import (
	"context"
	"errors"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
)

// Enclave is what can be asked of an enclave, wherever it runs. Neither method
// is trusted by its caller: evidence is verified and replies authenticate.
type Enclave interface {
	// Evidence returns evidence made for the nonce (attest.MinNonce to
	// attest.MaxNonce bytes).
	Evidence(ctx context.Context, nonce []byte) (attest.Evidence, error)
	// Diagnose answers a sealed case with a sealed finding. The error wraps
	// ErrUnknownKey, ErrSealed, ErrTooLarge, ErrUnavailable or ctx's error.
	Diagnose(ctx context.Context, sealed []byte) ([]byte, error)
	// Ready tells whether a case would be taken now, at the cost of one small
	// request. The error wraps ErrUnavailable or ctx's error.
	Ready(ctx context.Context) error
}

// Diagnoser answers a de-identified case with a finding whose origin is proven.
type Diagnoser interface {
	Diagnose(ctx context.Context, request Request) (Result, error)
}

// Request is one case to diagnose.
type Request struct {
	Case    vigie.CaseID           // 1 to 64 printable ASCII characters
	Patient vigie.PatientPseudonym // must be the Patient ID inside DICOM
	DICOM   []byte                 // a de-identified PS3.10 file, at most MaxDICOM bytes
}

// Result is a finding that authenticated.
type Result struct {
	Finding  vigie.Finding   // Signed.Payload, decoded
	Signed   SignedFinding   // the bytes that were signed, to be kept
	Evidence attest.Evidence // the evidence that vouched for the enclave's keys, to be kept
}

// The errors of a diagnosis. Callers branch on what to do next.
var (
	// ErrUnavailable: the enclave cannot be reached, is shutting down or is too
	// busy. The same case may be tried again later.
	ErrUnavailable = errors.New("enclave is not available")
	// ErrUnknownKey: the case was sealed to a key that the enclave no longer or
	// never held. Fetch fresh evidence and seal again; Client does.
	ErrUnknownKey = errors.New("the case is sealed to a key this enclave does not hold")
	// ErrUntrusted: the enclave's evidence was refused. It also wraps the
	// reason, one of package attest's errors. A person must act.
	ErrUntrusted = errors.New("the enclave is not trusted")
	// ErrSealed: a sealed case is malformed or does not authenticate.
	ErrSealed = errors.New("the sealed case does not open")
	// ErrReply: a reply is malformed, does not authenticate or answers another
	// question. Somebody may be tampering.
	ErrReply = errors.New("the enclave's reply is refused")
	// ErrTooLarge: the case exceeds the enclave's limits and was not read.
	ErrTooLarge = errors.New("the case is too large")
)
