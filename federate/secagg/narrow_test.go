package secagg

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestAPackedVectorIsTheSameUnpacked(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for _, bits := range []int{0, 8, 12, 16, 17, 20, 31} {
		for _, n := range []int{1, 2, 3, 7, packedRun, packedRun + 1, 2*packedRun + 5} {
			for wide := range min(n+1, 3) {
				r := Round{Length: n, Bits: bits, Wide: wide}
				if bits == 0 {
					r.Wide = 0
				}
				v := make([]uint32, n)
				for j := range v {
					v[j] = rng.Uint32()
				}
				r.narrow(v)
				packed := r.Pack(v)
				if int64(len(packed)) != r.Bytes() {
					t.Fatalf("%+v: %d bytes, want %d", r, len(packed), r.Bytes())
				}
				got := make([]uint32, n)
				if err := r.Unpack(bytes.NewReader(packed), func(at int, part []uint32) { copy(got[at:], part) }); err != nil || !slices.Equal(got, v) {
					t.Fatalf("%+v: another vector, %v", r, err)
				}
				if r.Unpack(bytes.NewReader(packed[:len(packed)-1]), func(int, []uint32) {}) == nil {
					t.Fatalf("%+v: a vector without its end is one", r)
				}
			}
		}
	}
}

func TestNarrowSumsCannotOverflow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := Fixed{Bound: math.Ldexp(1, rapid.IntRange(-20, 10).Draw(t, "exponent")) * rapid.Float64Range(1, 2).Draw(t, "mantissa"),
			Sites: rapid.IntRange(1, 200).Draw(t, "sites"), Bits: rapid.IntRange(12, 31).Draw(t, "bits")}
		if f.Check() != nil {
			t.Skip()
		}
		bound := float32(f.Bound)
		if float64(bound) > f.Bound {
			bound = math.Nextafter32(bound, 0)
		}
		x, v := []float32{bound, -bound, bound / 3, 0}, make([]uint32, 4)
		r := Round{Length: 4, Bits: f.Bits}
		sum, random := make([]uint32, 4), rand.NewChaCha8([32]byte{9})
		want := make([]float64, 4)
		for range f.Sites {
			if err := f.EncodeRandomly(v, x, random); err != nil {
				t.Fatal(err)
			}
			r.narrow(v)
			for j := range sum {
				sum[j] += v[j]
				want[j] += float64(x[j])
			}
		}
		r.widen(sum)
		got := make([]float64, 4)
		f.Decode(got, sum)
		for j := range got {
			if math.Abs(got[j]-want[j]) > float64(f.Sites)*f.Error() {
				t.Fatalf("%+v: the sum of number %d is %g, want %g", f, j, got[j], want[j])
			}
		}
	})
}

func TestRandomRoundingIsRightInTheMean(t *testing.T) {
	f := Fixed{Bound: 1, Sites: 15, Bits: 12}
	const n = 40_000
	for _, x := range []float32{0.00317, -0.7512, 0, 0.5} {
		in, out, got := make([]float32, n), make([]uint32, n), make([]float64, n)
		for j := range in {
			in[j] = x
		}
		if err := f.EncodeRandomly(out, in, rand.NewChaCha8([32]byte{1})); err != nil {
			t.Fatal(err)
		}
		f.Decode(got, out)
		mean := 0.0
		for _, v := range got {
			mean += v / n
		}
		// the deviation of one is at most half a step
		if math.Abs(mean-float64(x)) > 5*f.Error()/2/math.Sqrt(n)+1e-9 {
			t.Errorf("%g is %g in the mean", x, mean)
		}
	}
	if err := f.EncodeRandomly(make([]uint32, 1), []float32{1.01}, rand.NewChaCha8([32]byte{})); err == nil {
		t.Error("a number beyond the bound was written")
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(16, 2, 20, make([]byte, 44))
	f.Add(31, 0, 9, []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, bits, wide, length int, data []byte) {
		r := Round{Federation: "north", Minimum: 3, Length: length, Bits: bits, Wide: wide}
		if length < 1 || length > 1<<17 || wide < 0 || wide > length || bits < minBits || bits > 31 {
			return
		}
		v := make([]uint32, length)
		err := r.Unpack(bytes.NewReader(data), func(at int, part []uint32) { copy(v[at:], part) })
		if (err == nil) != (int64(len(data)) >= r.Bytes()) {
			t.Fatalf("%d bytes of %d: %v", len(data), r.Bytes(), err)
		}
		if err != nil {
			return
		}
		again := slices.Clone(v)
		r.narrow(again)
		if !slices.Equal(again, v) {
			t.Fatal("numbers have more bits than there are")
		}
	})
}

func TestSumsOfFewerBitsAreExactWhoeverIsLost(t *testing.T) {
	for _, lost := range []map[string]step{{}, {"site-001": stepMasked}, {"site-000": stepShares, "site-004": stepMasked}, {"site-002": stepConfirm}} {
		c := newCast(t, 7, 50, 3)
		c.round.Bits, c.round.Wide = 16, 2
		for _, name := range c.names() {
			c.sites[name] = c.start(t, name)
		}
		sum, survivors, _, err := c.play(t, lost, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]uint32, 50)
		for _, name := range survivors {
			add(want, c.vectors[name])
			for j, v := range c.masked[name][:48] {
				if v>>16 != 0 {
					t.Fatalf("number %d of %s has left as %#x", j, name, v)
				}
			}
		}
		c.round.narrow(want)
		c.round.widen(want)
		if !slices.Equal(sum, want) {
			t.Errorf("lost %v: the sum is %v, want %v", lost, sum, want)
		}
	}
}

func TestEveryPartyMustMeanTheSameBits(t *testing.T) {
	a := newCast(t, 3, 5, 1).round
	for _, other := range []Round{{Bits: 16}, {Bits: 16, Wide: 2}, {Bits: 20, Wide: 2}} {
		b := a
		b.Bits, b.Wide = other.Bits, other.Wide
		if b.Digest() == a.Digest() {
			t.Errorf("%+v has the digest of all bits", other)
		}
		a = b
	}
	for _, other := range []Round{{Bits: 7}, {Bits: 32}, {Bits: -1}, {Bits: 16, Wide: -1}, {Bits: 16, Wide: 6}, {Wide: 1}} {
		b := newCast(t, 3, 5, 1).round
		b.Bits, b.Wide = other.Bits, other.Wide
		if b.Check() == nil {
			t.Errorf("%+v can be run", other)
		}
	}
}
