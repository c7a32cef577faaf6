package federate

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func someWeights(variables, control int) *Weights {
	rng := rand.New(rand.NewPCG(1, 9))
	w := &Weights{Variables: make([]float32, variables)}
	for j := range w.Variables {
		w.Variables[j] = math.Float32frombits(rng.Uint32())
	}
	for range control {
		w.Control = append(w.Control, rng.Float32())
	}
	return w
}

func TestWeightsTravelAsTheBytesThatTheirDigestIsOf(t *testing.T) {
	for _, size := range [][2]int{{1, 0}, {5, 0}, {5, 3}, {70_000, 0}, {70_000, 20_001}} {
		w := someWeights(size[0], size[1])
		whole := make([]byte, 4*w.Words())
		w.PutWords(whole, 0)
		if sha256.Sum256(whole) != w.Digest() {
			t.Fatalf("%v: other bytes than those of the digest", size)
		}
		for from := range min(w.Words(), 12) { // from any word, as many as there is room for
			for _, n := range []int{0, 1, 2, 3, w.Words() - from} {
				part := make([]byte, 4*min(n, w.Words()-from))
				w.PutWords(part, from)
				if !bytes.Equal(part, whole[4*from:4*from+len(part)]) {
					t.Fatalf("%v: %d words from %d on are others", size, n, from)
				}
			}
		}
		got, err := ReadWeights(bytes.NewReader(whole), w.Digest(), size[0], size[1])
		if err != nil {
			t.Fatal(err)
		}
		if got.Digest() != w.Digest() || got.Sum() != w.Digest() || len(got.Control) != size[1] {
			t.Errorf("%v: other weights were read", size)
		}
	}
}

func FuzzReadWeights(f *testing.F) {
	w := someWeights(3, 2)
	whole := make([]byte, 4*w.Words())
	w.PutWords(whole, 0)
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(append(slices.Clone(whole), 0))
	f.Add(binary.LittleEndian.AppendUint64(nil, 1<<63))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := ReadWeights(bytes.NewReader(data), [32]byte{}, 3, 2)
		if (err == nil) != (len(data) == 4*w.Words() && data[0] == 3 && data[20] == 2 && bytes.Equal(data[1:8], make([]byte, 7)) && bytes.Equal(data[21:28], make([]byte, 7))) {
			t.Fatalf("%x: %v", data, err)
		}
		if err == nil {
			again := make([]byte, len(data))
			got.PutWords(again, 0)
			if !bytes.Equal(again, data) {
				t.Fatalf("%x is written as %x", data, again)
			}
		}
	})
}

// fileSpool is a Spool in memory.
type fileSpool struct {
	*bytes.Reader
	broken bool
	closed int
}

func (s *fileSpool) Digest() [sha256.Size]byte {
	data := make([]byte, s.Reader.Size())
	s.Reader.ReadAt(data, 0)
	return sha256.Sum256(data)
}
func (s *fileSpool) Close() error { s.closed++; return nil }
func (s *fileSpool) ReadAt(p []byte, at int64) (int, error) {
	if s.broken {
		return 0, io.ErrUnexpectedEOF
	}
	return s.Reader.ReadAt(p, at)
}

func TestASpooledVectorIsTheSameInPieces(t *testing.T) {
	for _, n := range []int{1, 1 << 14, 1<<14 + 1, 100_000} {
		v := make([]uint32, n)
		for j := range v {
			v[j] = uint32(j) * 2654435761
		}
		in, spooled := Answer{Vector: v}, &fileSpool{Reader: bytes.NewReader(encodeVector(v))}
		out := Answer{Spool: spooled}
		for _, length := range []int{n - 1, n + 1} {
			if _, err := out.digest(length); err == nil {
				t.Errorf("%d numbers are taken for %d", n, length)
			}
		}
		want, err := in.digest(n)
		got, err2 := out.digest(n)
		if err := errors.Join(err, err2); err != nil || got != want {
			t.Errorf("%d numbers: another digest, %v", n, err)
		}
		a := arrivals{"lyon": out, "oslo": in}
		for _, name := range []string{"lyon", "oslo"} {
			if got, err := a.vector(name, n); err != nil || !slices.Equal(got, v) {
				t.Errorf("%d numbers of %s: others, %v", n, name, err)
			}
		}
		if none, err := a.vector("rome", n); none != nil || err != nil {
			t.Error(none, err)
		}
		spooled.broken = true
		if _, err := a.vector("lyon", n); err == nil {
			t.Error("a file that cannot be read is a vector")
		}
		a.close()
		a.close()
		if spooled.closed != 1 {
			t.Errorf("closed %d times", spooled.closed)
		}
	}
}
