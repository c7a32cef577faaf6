package secagg

import (
	"context"
	"crypto/aes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"math/big"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestAMaskIsAESInCounterModeBlockByBlock(t *testing.T) {
	// The oracle encrypts each counter by itself; that the block cipher is AES-256
	// is held by the vector of FIPS 197, appendix C.3.
	key, _ := hex.DecodeString("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	plain, _ := hex.DecodeString("00112233445566778899aabbccddeeff")
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 16)
	block.Encrypt(out, plain)
	if hex.EncodeToString(out) != "8ea2b7ca516745bfeafc49904b496089" {
		t.Fatalf("not AES-256: %x", out)
	}
	for _, length := range []int{1, 3, 4, stride - 1, stride, stride + 1, 5*stride + 7} {
		vector := make([]uint32, length)
		if err := apply(context.Background(), vector, []mask{{key: [32]byte(key)}}); err != nil {
			t.Fatal(err)
		}
		for i, v := range vector {
			var counter [16]byte
			binary.BigEndian.PutUint64(counter[8:], uint64(i/4))
			block.Encrypt(out, counter[:])
			if want := binary.LittleEndian.Uint32(out[i%4*4:]); v != want {
				t.Fatalf("number %d of %d is %08x, want %08x", i, length, v, want)
			}
		}
	}
}

func TestMasksOfAPairVanishAndInversesUndo(t *testing.T) {
	context_, shared := []byte("round and roster"), []byte("what both know")
	a, b := make([]uint32, 1000), make([]uint32, 1000)
	if err := apply(context.Background(), a, []mask{pairMask(shared, context_, "lyon", "nantes")}); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(a, b) {
		t.Fatal("the mask is zero")
	}
	if err := apply(context.Background(), b, []mask{pairMask(shared, context_, "nantes", "lyon")}); err != nil {
		t.Fatal(err)
	}
	sum := slices.Clone(a)
	add(sum, b)
	if !slices.Equal(sum, make([]uint32, 1000)) {
		t.Error("the masks of a pair do not vanish in the sum")
	}
	if err := apply(context.Background(), a, []mask{pairMask(shared, context_, "lyon", "nantes").inverse()}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a, make([]uint32, 1000)) {
		t.Error("the inverse does not undo the mask")
	}
}

func TestKeysDifferByUseRoundAndNames(t *testing.T) {
	seen := map[[32]byte]bool{}
	for _, m := range []mask{
		pairMask([]byte("s"), []byte("c"), "a", "b"), pairMask([]byte("s"), []byte("c"), "a", "c"),
		pairMask([]byte("s"), []byte("d"), "a", "b"), pairMask([]byte("t"), []byte("c"), "a", "b"),
		selfMask([]byte("s"), []byte("c"), "a"), selfMask([]byte("s"), []byte("c"), "ab"),
		{key: derive([]byte("s"), []byte("c"), "parcel", "a", "b")}, {key: derive([]byte("s"), []byte("c"), "parcel", "b", "a")},
	} {
		if seen[m.key] {
			t.Errorf("a key serves two uses")
		}
		seen[m.key] = true
	}
}

func TestNoSumOfFixedPointNumbersOverflows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := Fixed{Bound: rapid.Float64Range(1e-6, 1e5).Draw(t, "bound"), Sites: rapid.IntRange(1, 1000).Draw(t, "sites")}
		if f.Check() != nil {
			t.Skip()
		}
		// the worst case, exactly: every site at the bound, rounded away from zero
		scale, _ := new(big.Float).SetFloat64(f.Scale()).Rat(nil)
		bound, _ := new(big.Float).SetFloat64(f.Bound).Rat(nil)
		worst := new(big.Rat).Mul(scale, bound)
		worst.Add(worst, big.NewRat(1, 2))
		worst.Mul(worst, big.NewRat(int64(f.Sites), 1))
		if worst.Cmp(big.NewRat(math.MaxInt32, 1)) > 0 {
			t.Fatalf("%d sites with numbers of %g at a scale of %g come to %s", f.Sites, f.Bound, f.Scale(), worst.FloatString(3))
		}
		// and no coarser than need be
		double := new(big.Rat).Mul(worst, big.NewRat(2, 1))
		if double.Cmp(big.NewRat(math.MaxInt32, 1)) < 0 {
			t.Fatalf("half of the range is unused: %s", worst.FloatString(3))
		}
	})
}

func TestFixedPointSumsAreRightToHalfAStepASite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := Fixed{Bound: 4, Sites: rapid.IntRange(1, 30).Draw(t, "sites")}
		length := rapid.IntRange(1, 20).Draw(t, "length")
		sum, want := make([]uint32, length), make([]float64, length)
		for range f.Sites {
			x, encoded := make([]float32, length), make([]uint32, length)
			for i := range x {
				x[i] = rapid.Float32Range(-4, 4).Draw(t, "x")
				want[i] += float64(x[i])
			}
			if err := f.Encode(encoded, x); err != nil {
				t.Fatal(err)
			}
			lost := slices.Clone(x)
			if err := f.Encode(InPlace(lost), lost); err != nil || !slices.Equal(InPlace(lost), encoded) {
				t.Fatalf("in place it is %v, not %v: %v", InPlace(lost), encoded, err)
			}
			add(sum, encoded)
		}
		got := make([]float64, length)
		f.Decode(got, sum)
		for i := range got {
			if math.Abs(got[i]-want[i]) > float64(f.Sites)/2/f.Scale()+1e-12 {
				t.Fatalf("number %d is %g, want %g", i, got[i], want[i])
			}
		}
		for i, v := range f.DecodeInPlace(slices.Clone(sum), 3) {
			if v != float32(got[i]/3) {
				t.Fatalf("number %d is %g in place, want %g", i, v, got[i]/3)
			}
		}
	})
}

func TestNumbersBeyondTheBoundAreRefused(t *testing.T) {
	f := Fixed{Bound: 1, Sites: 15}
	for _, v := range []float32{1.0001, -1.0001, float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
		if err := f.Encode(make([]uint32, 2), []float32{0, v}); !errors.Is(err, ErrRange) {
			t.Errorf("%g: %v", v, err)
		}
	}
	for _, f := range []Fixed{{0, 3, 0}, {-1, 3, 0}, {math.NaN(), 3, 0}, {math.Inf(1), 3, 0}, {1, 0, 0}, {1, 1 << 30, 0}, {1, 300, 16}, {1, 3, 1}} {
		if f.Check() == nil {
			t.Errorf("%+v is said to work", f)
		}
	}
}

func TestACancelledMaskingSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := apply(ctx, make([]uint32, 10*stride), []mask{{}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
