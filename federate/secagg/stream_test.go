package secagg

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"
)

func TestStreamsAreAddedNumberByNumber(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for _, n := range []int{0, 1, 15, 16, 17, 63, 64, 8192, 8195} {
		for range 3 {
			dst, src, want, back := make([]uint32, n), make([]byte, 4*n), make([]uint32, n), make([]uint32, n)
			for j := range dst {
				dst[j] = rng.Uint32()
				x := rng.Uint32()
				binary.LittleEndian.PutUint32(src[4*j:], x)
				want[j], back[j] = dst[j]+x, dst[j]
			}
			addStream(dst, src)
			if !slices.Equal(dst, want) {
				t.Fatalf("%d numbers: another sum", n)
			}
			subtractStream(dst, src)
			if !slices.Equal(dst, back) {
				t.Fatalf("%d numbers: another difference", n)
			}
		}
	}
}

func TestCarriesAreCountedNumberByNumber(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	edges := []uint32{0, 1, 1<<31 - 1, 1 << 31, 1<<31 + 1, 1<<32 - 2, 1<<32 - 1}
	for _, n := range []int{0, 1, 7, 8, 9, 16, 8195} {
		sum, want := NewSum(n), make([]uint64, n)
		for range 20 {
			part := make([]uint32, n)
			for j := range part {
				part[j] = rng.Uint32()
				if rng.IntN(2) == 0 {
					part[j] = edges[rng.IntN(len(edges))]
				}
				want[j] += uint64(part[j])
			}
			sum.Add(0, part)
		}
		for j, w := range want {
			if got := uint64(sum.High[j])<<32 | uint64(sum.Low[j]); got != w {
				t.Fatalf("number %d of %d is %d, want %d", j, n, got, w)
			}
		}
	}
}

// The library's own verification multiplies by whole scalars.
func TestSharesAreJudgedAsTheLibraryJudgesThem(t *testing.T) {
	s, err := newSecret(zeroReader{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{3, 4, 15, 40} {
		threshold := 2*n/3 + 1
		shares, commitments := s.deal(threshold, n)
		for i, share := range shares {
			for other := range n {
				value, err := decodeScalar(share)
				if err != nil {
					t.Fatal(err)
				}
				want := secretsharing.Verify(uint(threshold-1), secretsharing.Share{ID: position(other), Value: value}, commitments)
				if got := good(share, other, commitments); got != want || want != (i == other) {
					t.Fatalf("share %d of %d at place %d: %v, the library says %v", i, n, other, got, want)
				}
			}
			if n > 15 {
				break
			}
		}
	}
	if good(make([]byte, scalarSize), 0, []group.Element{ristretto.Generator()}) {
		t.Error("zero is a share of one")
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }
