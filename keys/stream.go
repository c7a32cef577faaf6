package keys

import (
	"bufio"
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// A sealed stream is
//
//	"VGS1"  4 bytes
//	salt   32 bytes, random
//	chunk  64 KiB of plaintext, encrypted, + 16-byte tag     (0 or more)
//	chunk  at most 64 KiB, encrypted, + 16-byte tag          (the last one)
//
// following the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár:
// "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance",
// CRYPTO 2015, section 7). Chunk i is sealed with AES-256-GCM under a key made
// for this stream alone and the nonce
//
//	prefix (7 bytes) ‖ i (4 bytes, big endian) ‖ 1 if last, else 0
//
// so a chunk opens only at its place and the stream only ends where it was
// closed. Stream key and prefix are HKDF-SHA256(key, salt, label ‖ aad)
// (RFC 5869): a fresh salt per stream keeps nonces apart however many streams
// one key seals, and binds the whole stream to aad.
//
// The last chunk is empty only when the whole stream is, so that one plaintext
// has one shape.
const (
	streamMagic = "VGS1"
	saltSize    = 32
	headerSize  = len(streamMagic) + saltSize
	prefixSize  = 7
	chunkSize   = 64 << 10
	streamLabel = "vigie sealed stream v1\x00"
)

// SealedSize returns the size in bytes of a stream sealed from size bytes of
// plaintext.
func SealedSize(size int64) int64 {
	chunks := max(1, (size+chunkSize-1)/chunkSize)
	return int64(headerSize) + size + chunks*tagSize
}

type streamCipher struct {
	aead    cipher.AEAD
	nonce   [nonceSize]byte
	counter uint64
}

func newStreamCipher(key, salt, aad []byte) (*streamCipher, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("keys: a key of %d bytes was given, %d expected", len(key), KeySize)
	}
	derived, err := hkdf.Key(sha256.New, key, salt, streamLabel+string(aad), KeySize+prefixSize)
	if err != nil {
		return nil, fmt.Errorf("keys: deriving a stream key: %w", err)
	}
	defer clear(derived)
	aead, err := newGCM(derived[:KeySize])
	if err != nil {
		return nil, err
	}
	c := &streamCipher{aead: aead}
	copy(c.nonce[:], derived[KeySize:])
	return c, nil
}

// at sets the nonce of the current chunk.
func (c *streamCipher) at(last bool) []byte {
	binary.BigEndian.PutUint32(c.nonce[prefixSize:], uint32(c.counter))
	c.nonce[nonceSize-1] = 0
	if last {
		c.nonce[nonceSize-1] = 1
	}
	return c.nonce[:]
}

// next moves to the following chunk; a stream holds at most 2^32 of them
// (256 TiB), because the counter must not repeat.
func (c *streamCipher) next() error {
	if c.counter == math.MaxUint32 {
		return errors.New("keys: a sealed stream cannot exceed 2^32 chunks of 64 KiB: split the data")
	}
	c.counter++
	return nil
}

type writer struct {
	to     io.Writer
	cipher *streamCipher
	buffer []byte // plaintext of the chunk being filled; sealed in place
	err    error  // sticky
	closed bool
}

// NewWriter returns a writer that seals everything written to it into w, under
// key (KeySize bytes) and bound to aad. Close seals the last chunk and must be
// called: a stream that was not closed does not open. Close does not close w.
// After an error every call returns it, and w holds a stream that will be
// refused.
func NewWriter(w io.Writer, key, aad []byte) (io.WriteCloser, error) {
	header := make([]byte, headerSize)
	copy(header, streamMagic)
	rand.Read(header[len(streamMagic):])
	return newWriter(w, key, aad, header)
}

func newWriter(w io.Writer, key, aad, header []byte) (io.WriteCloser, error) {
	cipher, err := newStreamCipher(key, header[len(streamMagic):], aad)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(header); err != nil {
		return nil, fmt.Errorf("keys: writing the head of a sealed stream: %w", err)
	}
	return &writer{to: w, cipher: cipher, buffer: make([]byte, 0, chunkSize+tagSize)}, nil
}

func (w *writer) Write(p []byte) (int, error) {
	if w.closed {
		return 0, errors.New("keys: writing to a sealed stream that is closed")
	}
	written := 0
	for len(p) > 0 && w.err == nil {
		// A full chunk waits until more follows, because only then is it
		// known not to be the last.
		if len(w.buffer) == chunkSize {
			if w.err = w.flush(false); w.err != nil {
				break
			}
		}
		n := min(len(p), chunkSize-len(w.buffer))
		w.buffer = append(w.buffer, p[:n]...)
		p = p[n:]
		written += n
	}
	return written, w.err
}

func (w *writer) flush(last bool) error {
	sealed := w.cipher.aead.Seal(w.buffer[:0], w.cipher.at(last), w.buffer, nil)
	if _, err := w.to.Write(sealed); err != nil {
		return fmt.Errorf("keys: writing a chunk of a sealed stream: %w", err)
	}
	w.buffer = w.buffer[:0]
	if last {
		return nil
	}
	return w.cipher.next()
}

func (w *writer) Close() error {
	if w.closed {
		return w.err
	}
	w.closed = true
	if w.err == nil {
		w.err = w.flush(true)
	}
	clear(w.buffer[:cap(w.buffer)])
	return w.err
}

type reader struct {
	from   *bufio.Reader
	cipher *streamCipher
	sealed []byte
	plain  []byte // what is left of the opened chunk, inside sealed
	last   bool
	err    error // sticky
}

// NewReader returns a reader of the plaintext that was sealed into r under key
// (KeySize bytes) and aad. Every byte it returns was authenticated, at its
// place in the stream; only at io.EOF is it known that the stream is whole.
// A caller that acts on a part of it must accept that the rest may be missing.
// Read returns ErrCorrupt when the stream is altered, truncated or extended.
func NewReader(r io.Reader, key, aad []byte) (io.Reader, error) {
	// One byte more than a chunk shows whether another follows.
	from := bufio.NewReaderSize(r, chunkSize+tagSize+1)
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(from, header); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("keys: reading the head of a sealed stream: it is cut short: %w", ErrCorrupt)
		}
		return nil, fmt.Errorf("keys: reading the head of a sealed stream: %w", err)
	}
	if !bytes.HasPrefix(header, []byte(streamMagic)) {
		return nil, fmt.Errorf("keys: reading a sealed stream: it does not begin with %q: %w", streamMagic, ErrCorrupt)
	}
	cipher, err := newStreamCipher(key, header[len(streamMagic):], aad)
	if err != nil {
		return nil, err
	}
	return &reader{from: from, cipher: cipher, sealed: make([]byte, chunkSize+tagSize)}, nil
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.plain) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.last {
			r.err = io.EOF
			return 0, r.err
		}
		if r.plain, r.err = r.chunk(); r.err != nil {
			r.plain = nil
			clear(r.sealed)
			return 0, r.err
		}
	}
	n := copy(p, r.plain)
	clear(r.plain[:n]) // do not leave plaintext behind longer than needed
	r.plain = r.plain[n:]
	return n, nil
}

// chunk reads and opens the next chunk.
func (r *reader) chunk() ([]byte, error) {
	n, err := io.ReadFull(r.from, r.sealed)
	switch {
	case err == nil:
		_, err = r.from.Peek(1)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("keys: reading a sealed stream: %w", err)
		}
		r.last = err != nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		r.last = true
	default:
		return nil, fmt.Errorf("keys: reading a sealed stream: %w", err)
	}
	if n < tagSize || (n == tagSize && r.cipher.counter > 0) {
		return nil, fmt.Errorf("keys: reading chunk %d of a sealed stream: it is cut short: %w", r.cipher.counter, ErrCorrupt)
	}
	plain, err := r.cipher.aead.Open(r.sealed[:0], r.cipher.at(r.last), r.sealed[:n], nil)
	if err != nil {
		return nil, fmt.Errorf("keys: opening chunk %d of a sealed stream: %w", r.cipher.counter, ErrCorrupt)
	}
	if !r.last {
		if err := r.cipher.next(); err != nil {
			return nil, err
		}
	}
	return plain, nil
}
