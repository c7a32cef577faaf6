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

// digest is secagg.VectorDigest of the answer's vector, if it is as long as the
// round's are.
func (a Answer) digest(r secagg.Round) ([sha256.Size]byte, error) {
	have, want := 4*int64(len(a.Vector)), 4*int64(r.Length)
	if a.Spool != nil {
		have, want = a.Spool.Size(), r.Bytes()
	}
	switch {
	case have != want:
		return [sha256.Size]byte{}, fmt.Errorf("%w: a vector of %d bytes, want %d", ErrAnswer, have, want)
	case a.Spool == nil:
		return secagg.VectorDigest(a.Vector), nil
	case r.Bits == 0:
		return a.Spool.Digest(), nil
	}
	hash := sha256.New() // of the numbers, which the bytes are packed from
	buffer := make([]byte, 4*pieceNumbers)
	err := a.each(r, func(_ int, part []uint32) {
		for len(part) > 0 {
			n := min(len(part), pieceNumbers)
			putWords(buffer[:4*n], part)
			hash.Write(buffer[:4*n])
			part = part[n:]
		}
	})
	return [sha256.Size]byte(hash.Sum(nil)), err
}

const pieceNumbers = 1 << 14

// each reads the answer's vector piece by piece, so that no more than a piece of
// one that lies in a file is in memory.
func (a Answer) each(r secagg.Round, do func(at int, part []uint32)) error {
	if a.Spool == nil {
		do(0, a.Vector)
		return nil
	}
	return r.Unpack(a.Spool, do)
}

// arrivals are the answers whose vectors are in a sum, by their sites.
type arrivals map[string]Answer

// vector is a site's, whole, or nil if there is none.
func (a arrivals) vector(name string, r secagg.Round) ([]uint32, error) {
	answer, have := a[name]
	if !have || answer.Spool == nil {
		return answer.Vector, nil
	}
	v := make([]uint32, r.Length)
	return v, answer.each(r, func(at int, part []uint32) { copy(v[at:], part) })
}

func (a arrivals) close() {
	for _, answer := range a {
		answer.Close()
	}
	clear(a)
}

// halfFlag in the length of a part says that its numbers have 16 bits.
const halfFlag = 1 << 63

// words is how many words a part's numbers take.
func (w *Weights) words(part []float32) int {
	if w.half {
		return (len(part) + 1) / 2
	}
	return len(part)
}

// Words is how many words of 32 bits the weights are written in: for each part its
// length, low half first, and its numbers as IEEE 754, two in a word if they have 16
// bits. These bytes are what travels. Of numbers of 32 bits they are what Digest is
// of.
func (w *Weights) Words() int { return 4 + w.words(w.Variables) + w.words(w.Control) }

// PutWords writes as many words as b holds, little-endian, from a word on.
func (w *Weights) PutWords(b []byte, from int) {
	for _, part := range [][]float32{w.Variables, w.Control} {
		length := uint64(len(part))
		if w.half {
			length |= halfFlag
		}
		for ; from < 2 && len(b) >= 4; from++ {
			binary.LittleEndian.PutUint32(b, uint32(length>>(32*from)))
			b = b[4:]
		}
		if from < 2 {
			return // b is full
		}
		words := w.words(part)
		if at := from - 2; at < words {
			n := min(words-at, len(b)/4)
			if w.half {
				putHalves(b[:4*n], part[2*at:])
			} else {
				putWords(b[:4*n], part[at:])
			}
			b = b[4*n:]
			from += n
		}
		from -= 2 + words
		if from < 0 {
			return
		}
	}
}

// offered is what a round begins with: the global weights, as they travel.
func (c *Coordinator) offered() (*Weights, error) {
	w := c.Weights()
	if c.Terms.Down == 16 {
		rounded := make([]float32, len(w.Variables))
		for j, v := range w.Variables {
			h, ok := toHalf(v)
			if !ok {
				return nil, fmt.Errorf("federate: starting a round: %w: variable %d is %g, and travels in 16 bits: the terms want 32", ErrRound, j, v)
			}
			rounded[j] = fromHalf(h)
		}
		w.Variables, w.half = rounded, true
	}
	digest := w.Digest()
	w.sum = &digest
	if w.half {
		hash := sha256.New()
		buffer := make([]byte, 4*pieceNumbers)
		for at := 0; at < w.Words(); at += pieceNumbers {
			b := buffer[:4*min(pieceNumbers, w.Words()-at)]
			w.PutWords(b, at)
			hash.Write(b)
		}
		packed := [sha256.Size]byte(hash.Sum(nil))
		w.packed = &packed
	}
	return w, nil
}

// Packed is the SHA-256 digest of what PutWords writes.
func (w *Weights) Packed() [sha256.Size]byte {
	if w.packed != nil {
		return *w.packed
	}
	return w.Sum()
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
	buffer, all := make([]byte, 1<<16), halves()
	for i, part := range []struct {
		to   *[]float32
		want int
	}{{&w.Variables, variables}, {&w.Control, control}} {
		var length [8]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return nil, fmt.Errorf("federate: reading weights: %w", err)
		}
		n := binary.LittleEndian.Uint64(length[:])
		half := n&halfFlag != 0
		if n &^= halfFlag; n != uint64(part.want) || i > 0 && half != w.half {
			return nil, fmt.Errorf("federate: reading weights: %w: %d numbers, this model has %d", ErrOrder, n, part.want)
		}
		if w.half = half; half {
			w.sum = nil // the digest of a round's weights is of numbers of 32 bits
		}
		if part.want == 0 {
			continue
		}
		*part.to = make([]float32, part.want)
		for rest := *part.to; len(rest) > 0; {
			n := min(len(rest), len(buffer)/4)
			b := buffer[:4*n]
			if half {
				n = min(len(rest), len(buffer)/2)
				b = buffer[:(2*n+3)&^3]
			}
			if _, err := io.ReadFull(r, b); err != nil {
				return nil, fmt.Errorf("federate: reading weights: %w", err)
			}
			for j := range rest[:n] {
				if half {
					rest[j] = all[binary.LittleEndian.Uint16(b[2*j:])]
				} else {
					rest[j] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*j:]))
				}
			}
			if half && n%2 == 1 && (b[2*n] != 0 || b[2*n+1] != 0) {
				return nil, fmt.Errorf("federate: reading weights: %w: their last word is not filled with zeros", ErrOrder)
			}
			rest = rest[n:]
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
