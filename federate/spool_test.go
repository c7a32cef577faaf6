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

	"github.com/vigie/vigie/federate/secagg"
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

func TestNumbersOf16BitsAreIEEE754(t *testing.T) {
	for x, want := range map[float32]uint16{ // as NumPy has them
		0: 0, 1: 0x3c00, -2: 0xc000, 0.1: 0x2e66, 65504: 0x7bff, 65519.99: 0x7bff, 0x1p-14: 0x0400, 0x1p-24: 1, 0x1p-25: 0, 0x1.8p-24: 2, 1e-8: 0,
		0x1.ff8p-15: 0x03ff, 0x1.ffcp-15: 0x0400, 1.00048828125: 0x3c00, 1.00146484375: 0x3c02, 1.9999: 0x4000, 3.14159: 0x4248,
	} {
		if got, ok := toHalf(x); !ok || got != want {
			t.Errorf("%g is %#04x, want %#04x", x, got, want)
		}
	}
	for h := range 1 << 16 {
		x := fromHalf(uint16(h))
		if h>>10&0x1f == 31 {
			if _, ok := toHalf(x); ok {
				t.Fatalf("%#04x, %g, has been written", h, x)
			}
			continue
		}
		if got, ok := toHalf(x); !ok || got != uint16(h) {
			t.Fatalf("%#04x is %g is %#04x", h, x, got)
		}
		if next := fromHalf(uint16(h + 1)); h&0x7fff < 0x7bff { // and whatever lies between goes to the nearer one
			for _, share := range []float32{0.25, 0.49, 0.51, 0.75} {
				want := uint16(h)
				if share > 0.5 {
					want++
				}
				if got, _ := toHalf(x + share*(next-x)); got != want {
					t.Fatalf("%g of the way from %#04x up is %#04x", share, h, got)
				}
			}
		}
	}
	for _, x := range []float32{65520, -1e30, float32(math.Inf(1)), float32(math.NaN())} {
		if _, ok := toHalf(x); ok {
			t.Errorf("%g has been written", x)
		}
	}
}

func TestWeightsOf16BitsTravelInHalfTheBytes(t *testing.T) {
	for _, n := range []int{1, 2, 3, 32_767, 70_001} {
		w := someWeights(n, 0)
		for j := range w.Variables {
			w.Variables[j] = float32(j%1000)/7 - 50
		}
		c := &Coordinator{CoordinatorOptions: CoordinatorOptions{Variables: w.Variables, Trained: n, Terms: Terms{Down: 16}}}
		offered, err := c.offered()
		if err != nil {
			t.Fatal(err)
		}
		whole := make([]byte, 4*offered.Words())
		offered.PutWords(whole, 0)
		if sha256.Sum256(whole) != offered.Packed() || len(whole) > 2*n+20 {
			t.Errorf("%d numbers: %d bytes, or of another digest", n, len(whole))
		}
		part := make([]byte, 4*min(7, offered.Words()-1))
		if offered.PutWords(part, 1); !bytes.Equal(part, whole[4:4+len(part)]) {
			t.Errorf("%d numbers: from the second word on there are others", n)
		}
		got, err := ReadWeights(bytes.NewReader(whole), offered.Packed(), n, 0)
		if err != nil || !slices.Equal(got.Variables, offered.Variables) || got.Sum() != offered.Sum() {
			t.Errorf("%d numbers: others, %v", n, err)
		}
		for j, v := range offered.Variables {
			if math.Abs(float64(v-w.Variables[j])) > 0.035 {
				t.Fatalf("%g has become %g", w.Variables[j], v)
			}
		}
		w.Variables[0] = 1e6
		if _, err := c.offered(); !errors.Is(err, ErrRound) {
			t.Errorf("a weight that does not fit: %v", err)
		}
	}
}

func TestWithFewerBitsTheSumIsExactAndTheRoundIsNearlyTheSame(t *testing.T) {
	run := func(change func(*Terms)) (*Coordinator, Outcome) {
		s := newSchool(t, 5, 300, func(terms *Terms) {
			terms.Bound = 30
			if change != nil {
				change(terms)
			}
		})
		c := s.coordinator(t, nil)
		var out Outcome
		var err error
		for range 3 {
			if out, err = c.Round(t.Context(), s.links()); err != nil {
				t.Fatal(err)
			}
		}
		return c, out
	}
	plain, wide := run(nil)
	for _, bits := range []int{12, 16, 20, 31} {
		narrow, out := run(func(terms *Terms) { terms.Bits, terms.Limit, terms.Down = bits, 0.5, 16 })
		if out.Bytes.Up >= wide.Bytes.Up*int64(bits+1)/32 || out.Bytes.Down > wide.Bytes.Down*6/10 {
			t.Errorf("%d bits: %+v, with all %+v", bits, out.Bytes, wide.Bytes)
		}
		worst, off := 0.0, 0.0
		for j, v := range narrow.Weights().Variables {
			d := float64(v - plain.Weights().Variables[j])
			worst, off = max(worst, math.Abs(d)), off+d/300
		}
		// a step for each site and round, over Σ weight, and the rounding of the weights
		step := narrow.Terms.numbers(5).Error()
		if bound := 3 * (5*step/wide.Groups[0].Weight + 2e-3); worst > bound {
			t.Errorf("%d bits: a variable is off by %g, at most %g is due to rounding", bits, worst, bound)
		}
		// rounded at random, the errors have no direction
		if math.Abs(off) > 3*(5*step/wide.Groups[0].Weight+2e-3)/5 {
			t.Errorf("%d bits: the variables are off by %g in the mean", bits, off)
		}
	}
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
		r := secagg.Round{Length: n}
		for _, length := range []int{n - 1, n + 1} {
			if _, err := out.digest(secagg.Round{Length: length}); err == nil {
				t.Errorf("%d numbers are taken for %d", n, length)
			}
		}
		want, err := in.digest(r)
		got, err2 := out.digest(r)
		if err := errors.Join(err, err2); err != nil || got != want {
			t.Errorf("%d numbers: another digest, %v", n, err)
		}
		a := arrivals{"lyon": out, "oslo": in}
		for _, name := range []string{"lyon", "oslo"} {
			if got, err := a.vector(name, r); err != nil || !slices.Equal(got, v) {
				t.Errorf("%d numbers of %s: others, %v", n, name, err)
			}
		}
		if none, err := a.vector("rome", r); none != nil || err != nil {
			t.Error(none, err)
		}
		spooled.broken = true
		if _, err := a.vector("lyon", r); err == nil {
			t.Error("a file that cannot be read is a vector")
		}
		a.close()
		a.close()
		if spooled.closed != 1 {
			t.Errorf("closed %d times", spooled.closed)
		}
	}
}
