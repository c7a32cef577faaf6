package gateway

import (
	"crypto/sha256"
	"math/big"

	"github.com/vigie/vigie"
)

// The roles of the UIDs of a case's results.
const (
	RoleReport        = "report"         // SOP Instance UID of the structured report
	RoleReportSeries  = "report series"  // its Series Instance UID
	RoleOverlay       = "overlay"        // SOP Instance UID of the secondary capture
	RoleOverlaySeries = "overlay series" // its Series Instance UID
)

// ResultUID derives the DICOM UID of something Vigie produces for a case: the
// same case, model and role always give the same UID, so that a repeat after a
// crash is the same object to every receiver. The form is 2.25 and a UUID as a
// decimal number (PS3.5 B.2), here a version 8 UUID (RFC 9562) made from a
// SHA-256. The case id is 128 random bits, so the UID tells nothing about the
// patient and cannot be linked to the source by a third party.
func ResultUID(id vigie.CaseID, model vigie.ModelDigest, role string) string {
	h := sha256.New()
	for _, part := range []string{"vigie result", string(id), string(model), role} {
		h.Write([]byte{byte(len(part) >> 8), byte(len(part))})
		h.Write([]byte(part))
	}
	uuid := h.Sum(nil)[:16]
	uuid[6] = uuid[6]&0x0f | 0x80
	uuid[8] = uuid[8]&0x3f | 0x80
	return "2.25." + new(big.Int).SetBytes(uuid).String()
}
