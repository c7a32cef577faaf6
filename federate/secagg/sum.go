package secagg

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"runtime"
	"sync"
)

// Sum adds masked vectors as whole numbers, without losing what goes beyond 32
// bits: so that the sum can be held against what each site signs about its own
// vector (see Checksum). Low alone is the sum modulo 2³².
type Sum struct {
	Low  []uint32
	High []uint16 // how often the number in Low has passed 2³²
}

// NewSum is a sum of no vectors of so many numbers.
func NewSum(length int) *Sum {
	return &Sum{Low: make([]uint32, length), High: make([]uint16, length)}
}

// Add adds a part of a vector that begins at a number. At most 65,535 vectors
// fit; a round has fewer.
func (s *Sum) Add(at int, part []uint32) {
	addWide(s.Low[at:at+len(part)], s.High[at:at+len(part)], part)
}

func addWideGeneric(low []uint32, high []uint16, part []uint32) {
	for j, v := range part {
		sum, carry := bits.Add32(low[j], v, 0)
		low[j] = sum
		high[j] += uint16(carry)
	}
}

// Digest is the SHA-256 digest of the numbers, as little-endian 48-bit numbers.
func (s *Sum) Digest() [sha256.Size]byte {
	hash := sha256.New()
	hash.Write([]byte("vigie secagg sum v1\x00"))
	buffer := make([]byte, 0, 6*stride)
	for from := 0; from < len(s.Low); from += stride {
		buffer = buffer[:0]
		for j := from; j < min(from+stride, len(s.Low)); j++ {
			buffer = binary.LittleEndian.AppendUint32(buffer, s.Low[j])
			buffer = binary.LittleEndian.AppendUint16(buffer, s.High[j])
		}
		hash.Write(buffer)
	}
	return [sha256.Size]byte(hash.Sum(nil))
}

// VectorDigest is the SHA-256 digest of a masked vector, as little-endian 32-bit
// numbers: what its site signs when it sends it.
func VectorDigest(v []uint32) [sha256.Size]byte {
	hash := sha256.New()
	buffer := make([]byte, 0, 4*stride)
	for from := 0; from < len(v); from += stride {
		buffer = buffer[:0]
		for _, x := range v[from:min(from+stride, len(v))] {
			buffer = binary.LittleEndian.AppendUint32(buffer, x)
		}
		hash.Write(buffer)
	}
	return [sha256.Size]byte(hash.Sum(nil))
}

// A Checksum is two linear functions of a vector, modulo the prime 2⁶¹ − 1:
// Σ r_j·v_j with coefficients that nobody knows before the coordinator has
// committed to a sum. The checksums of vectors add up to that of their sum; a
// coordinator that committed to another sum is found out but for one chance in
// 2¹²², by anybody who has the sum and the signed checksums, and without the
// vectors. (Schwartz 1980; coefficients from a hash of the commitment after Fiat
// and Shamir 1986.) A checksum tells about the vector what the coordinator, who
// has the masked vector, can compute by itself.
type Checksum [2]uint64

// prime is 2⁶¹ − 1.
const prime = 1<<61 - 1

// Plus is the sum of two checksums.
func (c Checksum) Plus(d Checksum) Checksum {
	return Checksum{reduce(c[0] + d[0]), reduce(c[1] + d[1])}
}

// reduce brings a number below 2⁶³ into 0 … prime−1.
func reduce(x uint64) uint64 {
	x = x&prime + x>>61
	if x >= prime {
		x -= prime
	}
	return x
}

// times is a·b modulo the prime, for a up to the prime and b below 2⁶¹.
func times(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return reduce(low&prime + (high<<3 | low>>61))
}

// coefficients makes the key of a checksum's coefficients: known once the sum and
// who is in it are.
func coefficients(context []byte, sum [sha256.Size]byte, survivors []string) [32]byte {
	hash := sha256.New()
	hash.Write([]byte("vigie secagg coefficients v1\x00"))
	hash.Write(appendField(nil, context))
	hash.Write(sum[:])
	for _, name := range survivors {
		hash.Write(appendField(nil, []byte(name)))
	}
	return [32]byte(hash.Sum(nil))
}

// checksum computes the checksum of length numbers, of which at returns the one
// at a place, below 2⁴⁸, over all processors. An error is the context's.
func checksum(ctx context.Context, key [32]byte, length int, at func(j int) uint64) (Checksum, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return Checksum{}, fmt.Errorf("secagg: computing a checksum: %w", err)
	}
	strides := (length + stride - 1) / stride
	workers := min(runtime.GOMAXPROCS(0), max(1, strides))
	parts := make([]Checksum, workers)
	var wait sync.WaitGroup
	for w := range workers {
		from, to := strides*w/workers*stride, min(strides*(w+1)/workers*stride, length)
		wait.Go(func() {
			var sum Checksum
			bytes, zeros := make([]byte, 16*stride), make([]byte, 16*stride)
			var counter [aes.BlockSize]byte
			binary.BigEndian.PutUint64(counter[8:], uint64(from)) // one block holds a number's two coefficients
			stream := cipher.NewCTR(block, counter[:])
			for first := from; first < to && ctx.Err() == nil; first += stride {
				n := min(stride, to-first)
				stream.XORKeyStream(bytes[:16*n], zeros[:16*n])
				for j := range n {
					v := at(first + j)
					sum[0] = reduce(sum[0] + times(binary.LittleEndian.Uint64(bytes[16*j:])&prime, v))
					sum[1] = reduce(sum[1] + times(binary.LittleEndian.Uint64(bytes[16*j+8:])&prime, v))
				}
			}
			parts[w] = sum
		})
	}
	wait.Wait()
	var sum Checksum
	for _, p := range parts {
		sum = sum.Plus(p)
	}
	return sum, ctx.Err()
}

func vectorChecksum(ctx context.Context, key [32]byte, v []uint32) (Checksum, error) {
	return checksum(ctx, key, len(v), func(j int) uint64 { return uint64(v[j]) })
}

func (s *Sum) checksum(ctx context.Context, key [32]byte) (Checksum, error) {
	return checksum(ctx, key, len(s.Low), func(j int) uint64 { return uint64(s.High[j])<<32 | uint64(s.Low[j]) })
}
