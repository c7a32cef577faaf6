// Package deidentify makes the copy of a DICOM file that may leave the side
// that knows the patient: PS3.15 Annex E, Basic Application Level
// Confidentiality Profile, with nothing retained.
//
//	profile, err := deidentify.New(key)          // 32 secret bytes of the hospital
//	result, err := profile.Apply(file)           // file is not changed
//	if len(result.Refer) > 0 { … }               // a person must look: burned-in text, …
//	result.File.Write(w)
//
// It fails closed. Table E.1-1 says what must go (every row is in the files
// table_*.go); the keep list (keep.go, terms.go) says what may stay and how its
// value is vouched for; an attribute on neither is removed, private ones first.
// The same holds at every depth of nesting. UIDs and the patient's identity
// become keyed pseudonyms: the same key gives the same pseudonym, so that
// objects of one study still belong together, and nobody without the key can
// tell which patient it was or test a guess.
//
// Pixels are not looked at: an image that says, or whose kind suggests, that
// text is burned into it is referred to a person (burnedin.go). What hides
// beside the pixels is removed: unused high bits, bytes after the last pixel,
// comments and application segments inside compressed frames (pixels.go).
//
// Dates go too, ages included (a model that needs an age must be asked before
// de-identification). What remains possible is to recognise a patient by the
// anatomy itself, for someone who holds another image of the same body.
//
// The keep list is made for images. Of a report, a plan, a segmentation or a
// waveform only an empty shell is left.
package deidentify

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// KeySize is the least number of bytes of a Profile's key.
const KeySize = 32

// ErrKey is returned for a key that is too short to resist guessing.
var ErrKey = errors.New("deidentify: the key needs at least 32 secret bytes")

// Profile de-identifies under one key. It is safe for concurrent use.
type Profile struct {
	uids, patients, studies []byte // subkeys, so that no pseudonym says anything about another kind
}

// New returns the profile of a site's key (32 random bytes or more, kept
// secret: with it, a guessed identity can be confirmed).
func New(key []byte) (*Profile, error) {
	if len(key) < KeySize {
		return nil, fmt.Errorf("%w, it has %d", ErrKey, len(key))
	}
	subkey := func(purpose string) []byte {
		return keyed(key, "vigie deidentify 1", purpose)
	}
	return &Profile{uids: subkey("uid"), patients: subkey("patient"), studies: subkey("patient of a study without patient id")}, nil
}

// keyed returns HMAC-SHA-256 over the parts, each preceded by its length so
// that no two lists of parts are the same bytes.
func keyed(key []byte, parts ...string) []byte {
	mac := hmac.New(sha256.New, key)
	for _, part := range parts {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		mac.Write(size[:])
		mac.Write([]byte(part))
	}
	return mac.Sum(nil)
}

// significant removes the padding that PS3.5 6.2 declares insignificant.
func significant(value string) string { return strings.Trim(value, " \x00") }

// UID returns the pseudonym of a UID: 2.25. followed by the decimal value of a
// version 8 UUID (PS3.5 annex B.2, RFC 9562) made of 122 keyed bits; at most 44
// characters. The same UID always gives the same pseudonym. An empty UID stays
// empty.
func (p *Profile) UID(uid string) string {
	uid = significant(uid)
	if uid == "" {
		return ""
	}
	uuid := keyed(p.uids, uid)[:16]
	uuid[6] = uuid[6]&0x0F | 0x80
	uuid[8] = uuid[8]&0x3F | 0x80
	return "2.25." + new(big.Int).SetBytes(uuid).String()
}

var pseudonyms = base32.StdEncoding.WithPadding(base32.NoPadding)

func pseudonym(digest []byte) vigie.PatientPseudonym {
	return vigie.PatientPseudonym(strings.ToLower(pseudonyms.EncodeToString(digest[:16])))
}

// Pseudonym returns the pseudonym of a patient: 26 characters of lower-case
// base32, 128 keyed bits of the issuer (Issuer of Patient ID, may be empty) and
// the patient id.
func (p *Profile) Pseudonym(issuer, patientID string) vigie.PatientPseudonym {
	return pseudonym(keyed(p.patients, significant(issuer), significant(patientID)))
}

// Patient returns the pseudonym of the patient of a data set. Without a
// Patient ID it is that of the study (or, without one, of the object), so that
// patients nobody identified are not taken for one and the same.
func (p *Profile) Patient(d *dicom.DataSet) vigie.PatientPseudonym {
	if id := d.String(dicom.PatientID); significant(id) != "" {
		return p.Pseudonym(d.String(dicom.IssuerOfPatientID), id)
	}
	if study := significant(d.UID(dicom.StudyInstanceUID)); study != "" {
		return pseudonym(keyed(p.studies, "study", study))
	}
	return pseudonym(keyed(p.studies, "instance", significant(d.UID(dicom.SOPInstanceUID))))
}
