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
	skip          int64  // bytes of meta information still to come
	known         bool
}

// metaHead is the preamble (128), "DICM" (4) and the whole element
// (0002,0000) UL (12), whose value is the length of the rest (PS3.10 7.1).
const metaHead = 128 + 4 + 12

func newContentDigest() *contentDigest {
	return &contentDigest{file: sha256.New(), content: sha256.New()}
}

func (d *contentDigest) Write(p []byte) (int, error) {
	n := len(p)
	d.file.Write(p)
	if !d.known {
		take := min(len(p), metaHead-len(d.head))
		d.head = append(d.head, p[:take]...)
		p = p[take:]
		if len(d.head) < metaHead {
			return n, nil
		}
		d.begin()
	}
	if skip := min(d.skip, int64(len(p))); skip > 0 {
		p = p[skip:]
		d.skip -= skip
	}
	d.content.Write(p)
	return n, nil
}

// begin decides from the head where the data set starts. A file in another
// form is hashed as a whole.
func (d *contentDigest) begin() {
	d.known = true
	h := d.head
	if len(h) == metaHead && string(h[128:132]) == "DICM" && string(h[132:140]) == "\x02\x00\x00\x00UL\x04\x00" {
		d.skip = int64(binary.LittleEndian.Uint32(h[140:]))
		return
	}
	d.content.Write(h)
}

// sums returns the digest of the file and that of the content in the transfer
// syntax: the same bytes mean another image in another syntax.
func (d *contentDigest) sums(transferSyntax string) (file, content vigie.Digest) {
	if !d.known {
		d.begin()
	}
	outer := sha256.New()
	outer.Write([]byte(transferSyntax + "\x00"))
	outer.Write(d.content.Sum(nil))
	return vigie.DigestFromSum([32]byte(d.file.Sum(nil))), vigie.DigestFromSum([32]byte(outer.Sum(nil)))
}
