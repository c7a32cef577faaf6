package enclave

import (
	"crypto/ed25519"
	"crypto/hpke"
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
)

// Both directions use HPKE (RFC 9180) in base mode with X-Wing (ML-KEM-768 and
// X25519, draft-ietf-hpke-pq), HKDF-SHA256 and AES-256-GCM: what is recorded
// today stays closed to a quantum computer of tomorrow. HKDF-SHA256 rather
// than SHAKE because it is in every HPKE implementation and is FIPS approved.
//
// The info strings bind the protocol version, the direction and the enclave's
// identity, which covers the model, the configuration and both of its keys.
var (
	suiteKEM  = hpke.MLKEM768X25519()
	suiteKDF  = hpke.HKDFSHA256()
	suiteAEAD = hpke.AES256GCM()
)

func caseInfo(identity attest.Identity) []byte {
	return append([]byte("vigie/enclave/case/1 "), identity[:]...)
}

func findingInfo(identity attest.Identity) []byte {
	return append([]byte("vigie/enclave/finding/1 "), identity[:]...)
}

// A requestSecret names one request to the two who share its HPKE context, and
// to nobody else: it is exported from the context (RFC 9180 section 5.3), which
// is new for every sealed case and seals one message only. A reply is bound to
// it, so that it answers these exact bytes. Hashing the sealed case would say
// the same and cost a pass over it on both sides.
type requestSecret []byte

const requestSecretSize = 32

func exportSecret(context interface {
	Export(exporterContext string, length int) ([]byte, error)
}) (requestSecret, error) {
	return context.Export("vigie/enclave/request/1", requestSecretSize)
}

// replyAAD ties a reply to the request it answers.
func replyAAD(request requestSecret) []byte {
	return append([]byte(findingMagic), request...)
}

// Pending is a sealed case that waits for its reply. It holds the only key
// that opens it.
type Pending struct {
	id       vigie.CaseID
	input    vigie.Digest
	enclave  *attest.Verified
	request  requestSecret
	replyKey hpke.PrivateKey
}

// Seal seals a case to a verified enclave. Every call makes a new reply key,
// so the bytes differ each time; the same bytes may be sent more than once.
func Seal(enclave *attest.Verified, request Request) ([]byte, *Pending, error) {
	if err := checkCaseID(request.Case); err != nil {
		return nil, nil, fmt.Errorf("enclave: sealing a case: %w", err)
	}
	if len(request.Patient) > maxPatient {
		return nil, nil, fmt.Errorf("enclave: sealing case %s: the pseudonym has %d bytes, at most %d are allowed", request.Case, len(request.Patient), maxPatient)
	}
	if len(request.DICOM) > MaxDICOM {
		return nil, nil, fmt.Errorf("enclave: sealing case %s: %w: %d bytes, at most %d are allowed", request.Case, ErrTooLarge, len(request.DICOM), MaxDICOM)
	}
	public, err := suiteKEM.NewPublicKey(enclave.Claims().SealingKey)
	if err != nil {
		return nil, nil, fmt.Errorf("enclave: sealing case %s: %w: its sealing key: %w", request.Case, ErrUntrusted, err)
	}
	replyKey, err := suiteKEM.GenerateKey()
	if err != nil {
		return nil, nil, fmt.Errorf("enclave: sealing case %s: making a reply key: %w", request.Case, err)
	}
	identity := enclave.Identity()
	enc, sender, err := hpke.NewSender(public, suiteKDF, suiteAEAD, caseInfo(identity))
	if err != nil {
		return nil, nil, fmt.Errorf("enclave: sealing case %s: %w", request.Case, err)
	}
	plaintext := sealedCase{patient: request.Patient, replyKey: replyKey.PublicKey().Bytes(), dicom: request.DICOM}.encode()
	aad := header{identity: identity, id: request.Case}.append(nil)
	ciphertext, err := sender.Seal(aad, plaintext)
	if err != nil {
		return nil, nil, fmt.Errorf("enclave: sealing case %s: %w", request.Case, err)
	}
	secret, err := exportSecret(sender)
	if err != nil {
		return nil, nil, fmt.Errorf("enclave: sealing case %s: %w", request.Case, err)
	}
	sealed := make([]byte, 0, len(aad)+len(enc)+len(ciphertext))
	sealed = append(append(append(sealed, aad...), enc...), ciphertext...)
	return sealed, &Pending{
		id: request.Case, input: vigie.DigestOf(request.DICOM), enclave: enclave,
		request: secret, replyKey: replyKey,
	}, nil
}

// openCase opens a sealed case whose header named this key.
func openCase(private hpke.PrivateKey, aad []byte, h header, enc, ciphertext []byte) (sealedCase, requestSecret, error) {
	refuse := func(err error) (sealedCase, requestSecret, error) {
		return sealedCase{}, nil, fmt.Errorf("enclave: opening case %s: %w: %w", h.id, ErrSealed, err)
	}
	recipient, err := hpke.NewRecipient(enc, private, suiteKDF, suiteAEAD, caseInfo(h.identity))
	if err != nil {
		return refuse(err)
	}
	plaintext, err := recipient.Open(aad, ciphertext)
	if err != nil {
		return refuse(err)
	}
	secret, err := exportSecret(recipient)
	if err != nil {
		return refuse(err)
	}
	content, err := decodeCase(h.id, plaintext)
	return content, secret, err
}

// sealFinding seals a signed finding to the reply key of the request with the
// given secret.
func sealFinding(replyKey hpke.PublicKey, identity attest.Identity, request requestSecret, signed SignedFinding) ([]byte, error) {
	enc, sender, err := hpke.NewSender(replyKey, suiteKDF, suiteAEAD, findingInfo(identity))
	if err != nil {
		return nil, fmt.Errorf("enclave: sealing a finding: %w", err)
	}
	plaintext := make([]byte, 0, len(signed.Signature)+len(signed.Payload))
	plaintext = append(append(plaintext, signed.Signature...), signed.Payload...)
	ciphertext, err := sender.Seal(replyAAD(request), plaintext)
	if err != nil {
		return nil, fmt.Errorf("enclave: sealing a finding: %w", err)
	}
	reply := make([]byte, 0, magicSize+len(enc)+len(ciphertext))
	return append(append(append(reply, findingMagic...), enc...), ciphertext...), nil
}

// Open opens the reply to this case and checks that the enclave whose evidence
// was verified signed it, about this case, these input bytes, this model and
// this configuration. Everything else is ErrReply.
func (p *Pending) Open(reply []byte) (Result, error) {
	refuse := func(err error) (Result, error) {
		return Result{}, fmt.Errorf("enclave: opening the reply to case %s: %w: %w", p.id, ErrReply, err)
	}
	if len(reply) < magicSize+encSize+ed25519.SignatureSize+tagSize || len(reply) > MaxReply {
		return refuse(fmt.Errorf("it has %d bytes", len(reply)))
	}
	if string(reply[:magicSize]) != findingMagic {
		return refuse(fmt.Errorf("it does not start as a sealed finding of version 1 does"))
	}
	identity := p.enclave.Identity()
	recipient, err := hpke.NewRecipient(reply[magicSize:magicSize+encSize], p.replyKey, suiteKDF, suiteAEAD, findingInfo(identity))
	if err != nil {
		return refuse(err)
	}
	plaintext, err := recipient.Open(replyAAD(p.request), reply[magicSize+encSize:])
	if err != nil {
		return refuse(err)
	}
	claims := p.enclave.Claims()
	signed := SignedFinding{
		Payload:   plaintext[ed25519.SignatureSize:],
		Signature: plaintext[:ed25519.SignatureSize],
		Key:       claims.SigningKey,
	}
	finding, err := signed.Verify(claims.SigningKey)
	if err != nil {
		return refuse(err)
	}
	switch {
	case finding.Case != p.id:
		err = fmt.Errorf("it is about another case")
	case finding.Input != p.input:
		err = fmt.Errorf("it is about other input bytes")
	case finding.Model != claims.Model:
		err = fmt.Errorf("it is by another model")
	case finding.Configuration != claims.Configuration:
		err = fmt.Errorf("it is under another configuration")
	default:
		err = checkFinding(finding)
	}
	if err != nil {
		return refuse(err)
	}
	return Result{Finding: finding, Signed: signed, Evidence: p.enclave.Evidence()}, nil
}

// checkFinding holds a finding to what the vocabulary promises, so that no
// reader downstream must.
func checkFinding(finding vigie.Finding) error {
	for _, p := range finding.Predictions {
		if !(p.Probability >= 0 && p.Probability <= 1) || p.Positive != (p.Probability >= p.Threshold) {
			return fmt.Errorf("the prediction for %q contradicts itself", p.Label)
		}
	}
	if err := checkExplanation(finding.Explanation); err != nil {
		return err
	}
	if err := checkCertificate(finding); err != nil {
		return err
	}
	if len(finding.Predictions) == 0 && len(finding.Referrals) == 0 {
		return fmt.Errorf("it has neither a prediction nor a reason why not")
	}
	return nil
}

// checkExplanation refuses a map that contradicts its label. A label may be
// missing: enclaves of before there were tests give none, and readers take such
// a map as untested.
func checkExplanation(e *vigie.Explanation) error {
	if e == nil {
		return nil
	}
	if e.Verdict == vigie.MapNone {
		if e.Rows != 0 || e.Columns != 0 || len(e.Map) != 0 || e.Method != "" || e.Text.English == "" || e.Text.French == "" {
			return fmt.Errorf("the explanation says that there is no map, and has one or no reason")
		}
		return nil
	}
	if e.Rows <= 0 || e.Columns <= 0 || len(e.Map)/e.Rows != e.Columns || len(e.Map)%e.Rows != 0 {
		return fmt.Errorf("the explanation has %d values for %d by %d", len(e.Map), e.Rows, e.Columns)
	}
	switch e.Verdict {
	case "", vigie.MapUntested, vigie.MapFailed:
		return nil
	case vigie.MapPassed:
		if len(e.Failures) > 0 || e.Tests == nil || e.Tests.P == nil {
			return fmt.Errorf("the explanation passed tests that it failed, or that nobody made")
		}
		return nil
	}
	return fmt.Errorf("the explanation's verdict %q is not known", e.Verdict)
}
