package gateway

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/vigie/vigie"
)

// fileWithMeta is a file whose meta information holds one element, the sender's
// AE title.
func fileWithMeta(sender, content string) []byte {
	meta := "\x02\x00\x16\x00AE" + string([]byte{byte(len(sender)), 0}) + sender
	b := make([]byte, 128, 256)
	b = append(b, "DICM\x02\x00\x00\x00UL\x04\x00"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(meta)))
	return append(append(b, meta...), content...)
}

func digestInPieces(data []byte, piece int) (vigie.Digest, vigie.Digest) {
	d := newContentDigest()
	for len(data) > 0 {
		n := min(piece, len(data))
		d.Write(data[:n])
		data = data[n:]
	}
	return d.sums("1.2.840.10008.1.2.1")
}

func TestTheSameObjectFromAnotherSenderHasTheSameContent(t *testing.T) {
	a, b := fileWithMeta("sender A", "pixels"), fileWithMeta("sender BB", "pixels")
	fileA, contentA := digestInPieces(a, len(a))
	fileB, contentB := digestInPieces(b, len(b))
	if contentA != contentB || fileA == fileB || fileA != vigie.DigestOf(a) {
		t.Errorf("files %s %s, contents %s %s", fileA, fileB, contentA, contentB)
	}
	if _, other := digestInPieces(fileWithMeta("sender A", "pixelz"), 1000); other == contentA {
		t.Error("other pixels have the same content")
	}
}

func TestTheDigestDoesNotDependOnHowTheBytesArrive(t *testing.T) {
	for _, data := range [][]byte{fileWithMeta("sender", "pixels"), []byte("no DICOM"), bytes.Repeat([]byte{7}, 200), nil, fileWithMeta("sender", "")[:140]} {
		wholeFile, wholeContent := digestInPieces(data, len(data)+1)
		for _, piece := range []int{1, 3, 144, 145} {
			file, content := digestInPieces(data, piece)
			if file != wholeFile || content != wholeContent {
				t.Errorf("%d bytes in pieces of %d: another digest", len(data), piece)
			}
		}
	}
}

func TestALyingMetaLengthHidesNothingFromTheDigest(t *testing.T) {
	honest := len(fileWithMeta("sender", "")) - metaHead
	for _, length := range []int{0, 1, honest - 1, honest + 1, honest + 4, honest + 2000, maxMeta, maxMeta + 1, 1<<32 - 1} {
		lying := func(content string) []byte {
			b := fileWithMeta("sender", content+string(bytes.Repeat([]byte{9}, 1<<17)))
			binary.LittleEndian.PutUint32(b[140:], uint32(length))
			return b
		}
		_, a := digestInPieces(lying("pixels of one"), 4096)
		_, b := digestInPieces(lying("pixels of two"), 4096)
		if a == b {
			t.Errorf("meta length %d instead of %d: two objects have the same content", length, honest)
		}
	}
}
