package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Bulk is bytes that travel beside a message. The zero Bulk is none.
type Bulk struct {
	Length int64
	Digest [sha256.Size]byte // SHA-256
	open   func() (Content, error)
	drop   func() error
}

// Content is an open Bulk.
type Content interface {
	io.ReaderAt
	io.Closer
}

// None says that there is no bulk part.
func (b Bulk) None() bool { return b.open == nil }

// Open returns the bytes, from any place.
func (b Bulk) Open() (Content, error) {
	if b.None() {
		return nil, errors.New("wire: opening a bulk part: there is none")
	}
	return b.open()
}

// Close gives up what holds the bytes: a file that they arrived in is removed.
func (b Bulk) Close() error {
	if b.drop == nil {
		return nil
	}
	return b.drop()
}

// once makes Close do its work once, however many copies of a Bulk there are.
func once(f func() error) func() error { return sync.OnceValue(f) }

type unclosed struct{ io.ReaderAt }

func (unclosed) Close() error { return nil }

// bulkOf reads the content once for its digest.
func bulkOf(r io.ReaderAt, length int64) Bulk {
	b := Bulk{Length: length, open: func() (Content, error) { return unclosed{r}, nil }}
	hash := sha256.New()
	if _, err := copyTo(hash, io.NewSectionReader(r, 0, length)); err != nil {
		panic("wire: " + err.Error()) // memory does not fail
	}
	b.Digest = [sha256.Size]byte(hash.Sum(nil))
	return b
}

// Bytes is a bulk part of these bytes, which must stay as they are.
func Bytes(data []byte) Bulk { return bulkOf(bytes.NewReader(data), int64(len(data))) }

// numbers is a bulk part of numbers of 32 bits in little-endian order, without
// its digest. They are not copied, and must stay as they are.
func numbers(v []uint32) Bulk {
	w := words{len(v), func(p []byte, from int) {
		for i, x := range v[from : from+len(p)/4] {
			binary.LittleEndian.PutUint32(p[4*i:], x)
		}
	}}
	return Bulk{Length: 4 * int64(len(v)), open: func() (Content, error) { return unclosed{w}, nil }}
}

// File is a bulk part that lies in a file, which must stay as it is.
func File(path string) (Bulk, error) {
	f, err := os.Open(path)
	if err != nil {
		return Bulk{}, fmt.Errorf("wire: reading a bulk part: %w", err)
	}
	defer f.Close()
	hash := sha256.New()
	n, err := copyTo(hash, f)
	if err != nil {
		return Bulk{}, fmt.Errorf("wire: reading a bulk part: %w", err)
	}
	b := inFile(path, n)
	b.Digest = [sha256.Size]byte(hash.Sum(nil))
	return b, nil
}

func inFile(path string, length int64) Bulk {
	return Bulk{Length: length, open: func() (Content, error) { return os.Open(path) }}
}

// words reads n numbers as bytes: put writes as many as there is room for, from a
// number on.
type words struct {
	n   int
	put func(p []byte, from int)
}

func (w words) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("wire: reading before the first byte")
	}
	size := 4 * int64(w.n)
	if off >= size {
		return 0, io.EOF
	}
	if int64(len(p)) > size-off {
		p, err = p[:size-off], io.EOF
	}
	i := int(off / 4)
	var word [4]byte
	if skip := int(off % 4); skip > 0 {
		w.put(word[:], i)
		n = copy(p, word[skip:])
		i++
	}
	whole := (len(p) - n) &^ 3
	w.put(p[n:n+whole], i)
	n += whole
	if n < len(p) {
		w.put(word[:], i+whole/4)
		n += copy(p[n:], word[:])
	}
	return n, err
}

// piece is how many bytes are moved at a time.
const piece = 256 << 10

var pieces = sync.Pool{New: func() any { b := make([]byte, piece); return &b }}

// copyTo is io.Copy with a buffer that is used again.
func copyTo(w io.Writer, r io.Reader) (int64, error) {
	buffer := pieces.Get().(*[]byte)
	defer pieces.Put(buffer)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *buffer)
}
