package gateway

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"github.com/vigie/vigie"
)

// contentDigest hashes a DICOM file (PS3.10) as it streams by, in two ways:
// the whole file, which is what the audit log names, and the data set alone
// without preamble and meta information, which tells whether an object that
// is sent again is the same one. The meta information cannot be part of the
// latter: it names the sender and differs between DIMSE and DICOMweb.
type contentDigest struct {
	file, content hash.Hash
	head          []byte // the first bytes, until the meta information's end is known
	want          int    // how many of them are needed next
	known         bool
}

const (
	// metaHead is the preamble (128), "DICM" (4) and the whole element
	// (0002,0000) UL (12), whose value is the length of the rest (PS3.10 7.1).
	metaHead = 128 + 4 + 12
	// maxMeta bounds the rest: it takes a few hundred bytes.
	maxMeta = 64 << 10
)

func newContentDigest() *contentDigest {
	return &contentDigest{file: sha256.New(), content: sha256.New(), want: metaHead}
}

func (d *contentDigest) Write(p []byte) (int, error) {
	n := len(p)
	d.file.Write(p)
	for !d.known {
		take := min(len(p), d.want-len(d.head))
		d.head, p = append(d.head, p[:take]...), p[take:]
		if len(d.head) < d.want {
			return n, nil
		}
		d.look()
	}
	d.content.Write(p)
	return n, nil
}

// look decides from the head where the data set starts. The group length is
// the sender's word: one that is wrong could hide the data set from the digest,
// and let another object pass for this one. So what it covers must be elements
// of the meta information to its last byte; anything else is hashed as a whole.
func (d *contentDigest) look() {
	h := d.head
	if len(h) == metaHead && string(h[128:132]) == "DICM" && string(h[132:140]) == "\x02\x00\x00\x00UL\x04\x00" {
		if rest := binary.LittleEndian.Uint32(h[140:]); rest > 0 && rest <= maxMeta {
			d.want += int(rest)
			return
		}
	}
	d.known, d.head = true, nil
	if len(h) == metaHead || dataSetOffset(h) != len(h) {
		d.content.Write(h)
	}
}

// sums returns the digest of the file and that of the content in the transfer
// syntax: the same bytes mean another image in another syntax.
func (d *contentDigest) sums(transferSyntax string) (file, content vigie.Digest) {
	if !d.known {
		d.content.Write(d.head) // the file ended before its data set
		d.known, d.head = true, nil
	}
	outer := sha256.New()
	outer.Write([]byte(transferSyntax + "\x00"))
	outer.Write(d.content.Sum(nil))
	return vigie.DigestFromSum([32]byte(d.file.Sum(nil))), vigie.DigestFromSum([32]byte(outer.Sum(nil)))
}
