package gateway

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/vigie/vigie"
)

func fileWithMeta(meta, content string) []byte {
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
