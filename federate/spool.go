package federate

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/vigie/vigie/federate/secagg"
)

// Spool is a masked vector that has arrived over a network and lies in a file:
// little-endian numbers, as Answer.Vector would hold them. Close removes it.
type Spool interface {
	io.ReaderAt
	io.Closer
	Size() int64               // bytes
	Digest() [sha256.Size]byte // of all bytes, which were held against it: secagg.VectorDigest
}

// Close gives up what an answer lies in.
func (a Answer) Close() error {
	if a.Spool == nil {
		return nil
	}
	return a.Spool.Close()
}

// digest is secagg.VectorDigest of the answer's vector, if it has so many numbers.
func (a Answer) digest(length int) ([sha256.Size]byte, error) {
	have := 4 * int64(len(a.Vector))
	if a.Spool != nil {
		have = a.Spool.Size()
	}
	if have != 4*int64(length) {
		return [sha256.Size]byte{}, fmt.Errorf("%w: a vector of %d bytes, want %d", ErrAnswer, have, 4*int64(length))
	}
	if a.Spool != nil {
		return a.Spool.Digest(), nil
	}
	return secagg.VectorDigest(a.Vector), nil
}

// each reads the answer's vector piece by piece, so that no more than a piece of
// one that lies in a file is in memory.
func (a Answer) each(length int, do func(at int, part []uint32)) error {
	if a.Spool == nil {
		do(0, a.Vector)
		return nil
	}
	const numbers = 1 << 14
	buffer, part := make([]byte, 4*numbers), make([]uint32, numbers)
	for at := 0; at < length; at += numbers {
		part = part[:min(numbers, length-at)]
		if n, err := a.Spool.ReadAt(buffer[:4*len(part)], 4*int64(at)); n < 4*len(part) {
			return fmt.Errorf("federate: reading a spooled vector: %w", err)
		}
		for i := range part {
			part[i] = binary.LittleEndian.Uint32(buffer[4*i:])
		}
		do(at, part)
	}
	return nil
}

// arrivals are the answers whose vectors are in a sum, by their sites.
type arrivals map[string]Answer

// vector is a site's, whole, or nil if there is none.
func (a arrivals) vector(name string, length int) ([]uint32, error) {
	answer, have := a[name]
	if !have || answer.Spool == nil {
		return answer.Vector, nil
	}
	v := make([]uint32, length)
	return v, answer.each(length, func(at int, part []uint32) { copy(v[at:], part) })
}

func (a arrivals) close() {
	for _, answer := range a {
		answer.Close()
	}
	clear(a)
}

// Words is how many numbers of 32 bits the weights are written in: for each part
// its length, low half first, and its numbers as IEEE 754. These bytes are what
// Digest is of, and what travels.
func (w *Weights) Words() int { return 4 + len(w.Variables) + len(w.Control) }

// PutWords writes as many words as b holds, little-endian, from a word on.
func (w *Weights) PutWords(b []byte, from int) {
	for _, part := range [][]float32{w.Variables, w.Control} {
		for ; from < 2 && len(b) >= 4; from++ {
			binary.LittleEndian.PutUint32(b, uint32(uint64(len(part))>>(32*from)))
			b = b[4:]
		}
		if from < 2 {
			return // b is full
		}
		if at := from - 2; at < len(part) {
			n := min(len(part)-at, len(b)/4)
			for i, v := range part[at : at+n] {
				binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
			}
			b = b[4*n:]
			from += n
		}
		from -= 2 + len(part)
		if from < 0 {
			return
		}
	}
}

// Sum is Digest, without the work where it was done: by the coordinator that made
// the weights, or when they arrived.
func (w *Weights) Sum() [sha256.Size]byte {
	if w.sum == nil {
		return w.Digest()
	}
	return *w.sum
}

// ReadWeights reads what PutWords wrote, of a model with so many variables and
// so many in its control variate. Other lengths are refused before anything of
// them is in memory. sum is the digest that the bytes were held against when they
// arrived.
func ReadWeights(r io.Reader, sum [sha256.Size]byte, variables, control int) (*Weights, error) {
	w := &Weights{sum: &sum}
	for _, part := range []struct {
		to   *[]float32
		want int
	}{{&w.Variables, variables}, {&w.Control, control}} {
		var length [8]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return nil, fmt.Errorf("federate: reading weights: %w", err)
		}
		if n := binary.LittleEndian.Uint64(length[:]); n != uint64(part.want) {
			return nil, fmt.Errorf("federate: reading weights: %w: %d numbers, this model has %d", ErrOrder, n, part.want)
		}
		if part.want == 0 {
			continue
		}
		*part.to = make([]float32, part.want)
		buffer := make([]byte, min(4*part.want, 1<<16))
		for at := 0; at < part.want; {
			b := buffer[:min(len(buffer), 4*(part.want-at))]
			if _, err := io.ReadFull(r, b); err != nil {
				return nil, fmt.Errorf("federate: reading weights: %w", err)
			}
			for ; len(b) > 0; b, at = b[4:], at+1 {
				(*part.to)[at] = math.Float32frombits(binary.LittleEndian.Uint32(b))
			}
		}
	}
	if n, _ := io.ReadFull(r, make([]byte, 1)); n > 0 {
		return nil, fmt.Errorf("federate: reading weights: %w: bytes after their end", ErrOrder)
	}
	return w, nil
}

// SizeOfWeights is what a site's model takes: how many variables it has, and how
// many are in SCAFFOLD's control variate.
func (s *Site) SizeOfWeights() (variables, control int) {
	variables, trained := s.Trainer.Size()
	if s.Terms.Algorithm != SCAFFOLD {
		trained = 0
	}
	return variables, trained
}
