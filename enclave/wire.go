package enclave

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
)

// The sizes of the sealed formats.
const (
	MaxDICOM   = 256 << 20                      // a de-identified DICOM file, bytes
	MaxSealed  = MaxDICOM + sealedOverhead      // a sealed case, bytes
	MaxFinding = 16 << 20                       // a finding's JSON, bytes
	MaxReply   = MaxFinding + replyOverhead     // a sealed finding, bytes
	maxCaseID  = 64                             // bytes
	maxPatient = 256                            // bytes
	keySize    = 1216                           // serialised X-Wing public key
	encSize    = 1120                           // X-Wing encapsulated key
	tagSize    = 16                             // AES-GCM tag
	headerMax  = magicSize + 32 + 1 + maxCaseID // everything before the encapsulated key
	magicSize  = 8

	sealedOverhead = headerMax + encSize + tagSize + 12 + maxPatient + keySize
	replyOverhead  = magicSize + encSize + tagSize + 64
)

// The first eight bytes say what the rest is, and in which version.
const (
	caseMagic    = "VIGIEC\x00\x01"
	findingMagic = "VIGIEF\x00\x01"
)

// header is the part of a sealed case that travels in clear, authenticated but
// not secret:
//
//	magic       8 bytes
//	identity   32 bytes   which enclave key the case is sealed to
//	case        1 byte length, 1 to 64 bytes of printable ASCII
//
// The encapsulated key (1120 bytes) and the ciphertext follow.
type header struct {
	identity attest.Identity
	id       vigie.CaseID
}

func (h header) append(b []byte) []byte {
	b = append(b, caseMagic...)
	b = append(b, h.identity[:]...)
	b = append(b, byte(len(h.id)))
	return append(b, h.id...)
}

// splitSealed cuts a sealed case into its header as bytes (the additional
// authenticated data), the header, the encapsulated key and the ciphertext. It
// copies nothing.
func splitSealed(sealed []byte) (aad []byte, h header, enc, ciphertext []byte, err error) {
	const fixed = magicSize + len(h.identity) + 1
	fail := func(what string) ([]byte, header, []byte, []byte, error) {
		return nil, header{}, nil, nil, fmt.Errorf("enclave: reading a sealed case: %w: %s", ErrSealed, what)
	}
	if len(sealed) < fixed {
		return fail("shorter than its header")
	}
	if string(sealed[:magicSize]) != caseMagic {
		return fail("it does not start as a sealed case of version 1 does")
	}
	copy(h.identity[:], sealed[magicSize:])
	end := fixed + int(sealed[fixed-1])
	if len(sealed) < end+encSize+tagSize {
		return fail("truncated")
	}
	h.id = vigie.CaseID(sealed[fixed:end])
	if err := checkCaseID(h.id); err != nil {
		return fail(err.Error())
	}
	return sealed[:end:end], h, sealed[end : end+encSize], sealed[end+encSize:], nil
}

func checkCaseID(id vigie.CaseID) error {
	if len(id) == 0 || len(id) > maxCaseID {
		return fmt.Errorf("case id of %d bytes, want 1 to %d", len(id), maxCaseID)
	}
	for _, char := range []byte(id) {
		if char <= ' ' || char > '~' {
			return errors.New("case id is not printable ASCII")
		}
	}
	return nil
}

// sealedCase is what the enclave finds inside a sealed case.
type sealedCase struct {
	id       vigie.CaseID
	patient  vigie.PatientPseudonym
	replyKey []byte // serialised HPKE public key
	dicom    []byte // aliases the plaintext
}

// encode writes the secret part: three fields, each preceded by its length in
// four big-endian bytes.
func (c sealedCase) encode() []byte {
	b := make([]byte, 0, 12+len(c.patient)+len(c.replyKey)+len(c.dicom))
	for _, field := range [][]byte{[]byte(c.patient), c.replyKey, c.dicom} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
		b = append(b, field...)
	}
	return b
}

// decodeCase reads what encode wrote; the DICOM bytes are not copied.
func decodeCase(id vigie.CaseID, plaintext []byte) (sealedCase, error) {
	var fields [3][]byte
	for i, limit := range []int{maxPatient, keySize, MaxDICOM} {
		if len(plaintext) < 4 {
			return sealedCase{}, fmt.Errorf("enclave: reading case %s: %w: field %d is missing", id, ErrSealed, i)
		}
		length := binary.BigEndian.Uint32(plaintext)
		plaintext = plaintext[4:]
		if uint64(length) > uint64(limit) || uint64(length) > uint64(len(plaintext)) {
			return sealedCase{}, fmt.Errorf("enclave: reading case %s: %w: field %d claims %d bytes", id, ErrSealed, i, length)
		}
		fields[i], plaintext = plaintext[:length:length], plaintext[length:]
	}
	if len(plaintext) != 0 {
		return sealedCase{}, fmt.Errorf("enclave: reading case %s: %w: %d bytes too many", id, ErrSealed, len(plaintext))
	}
	return sealedCase{id: id, patient: vigie.PatientPseudonym(fields[0]), replyKey: fields[1], dicom: fields[2]}, nil
}
