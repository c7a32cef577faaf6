package secagg

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
)

// minBits leaves room for a sum of a few sites with numbers of a few steps.
const minBits = 8

// Masks are numbers modulo 2³², and 2^Bits divides 2³²: what is left of a masked
// number modulo 2^Bits is as random as before, and sums and masks go on to fit.

// narrow takes a vector's numbers modulo 2^Bits, but for the last Wide.
func (r Round) narrow(v []uint32) {
	if r.Bits == 0 {
		return
	}
	for j := range v[:len(v)-r.Wide] {
		v[j] &= 1<<r.Bits - 1
	}
}

// widen reads an opened sum's numbers modulo 2^Bits as signed ones.
func (r Round) widen(sum []uint32) {
	if r.Bits == 0 {
		return
	}
	shift := 32 - r.Bits
	for j := range sum[:len(sum)-r.Wide] {
		sum[j] = uint32(int32(sum[j]<<shift) >> shift)
	}
}

// Bytes is how long a packed vector is.
func (r Round) Bytes() int64 {
	if r.Bits == 0 {
		return 4 * int64(r.Length)
	}
	return (int64(r.Length-r.Wide)*int64(r.Bits)+7)/8 + 4*int64(r.Wide)
}

// Pack writes a masked vector as it travels: each number in Bits bits, the lowest
// first, without gaps, and then the last Wide ones as little-endian numbers of 32
// bits.
func (r Round) Pack(v []uint32) []byte {
	out := make([]byte, 0, r.Bytes())
	n, width := len(v)-r.Wide, r.Bits
	if width == 0 {
		width = 32
	}
	var held uint64
	have := 0
	for _, x := range v[:n] {
		held |= uint64(x) << have
		for have += width; have >= 32; have -= 32 {
			out = binary.LittleEndian.AppendUint32(out, uint32(held))
			held >>= 32
		}
	}
	for ; have > 0; have -= 8 {
		out = append(out, byte(held))
		held >>= 8
	}
	for _, x := range v[n:] {
		out = binary.LittleEndian.AppendUint32(out, x)
	}
	return out
}

// packedRun is how many numbers Unpack reads at a time: of any width they end at a
// whole byte.
const packedRun = 1 << 14

// Unpack reads what Pack wrote, piece by piece, and gives do each piece. The reader
// holds Bytes bytes.
func (r Round) Unpack(from interface {
	ReadAt(p []byte, at int64) (int, error)
}, do func(at int, part []uint32)) error {
	width := r.Bits
	if width == 0 {
		width = 32
	}
	buffer, part := make([]byte, 4*packedRun+8), make([]uint32, packedRun)
	n := r.Length - r.Wide
	wide := r.Bytes() - 4*int64(r.Wide)
	for at := 0; at < r.Length; {
		count, bits, place := min(packedRun, n-at), width, int64(at)*int64(width)/8
		if at >= n {
			count, bits, place = min(packedRun, r.Length-at), 32, wide+4*int64(at-n)
		}
		b := buffer[:(count*bits+7)/8]
		if got, err := from.ReadAt(b, place); got < len(b) {
			return fmt.Errorf("secagg: reading a packed vector: %w", err)
		}
		part = part[:count]
		if bits == 32 {
			for j := range part {
				part[j] = binary.LittleEndian.Uint32(b[4*j:])
			}
		} else {
			clear(buffer[len(b) : len(b)+8])
			for j := range part {
				first := j * bits
				part[j] = uint32(binary.LittleEndian.Uint64(buffer[first/8:])>>(first%8)) & (1<<bits - 1)
			}
		}
		do(at, part)
		at += count
	}
	return nil
}

// EncodeRandomly is Encode that rounds up or down at random, so that the
// mean of what is rounded is the number itself however few bits there are: with the
// scale s, each site adds at most Bound·s + 1 in size.
func (f Fixed) EncodeRandomly(dst []uint32, x []float32, random *rand.ChaCha8) error {
	if err := f.Check(); err != nil {
		return err
	}
	if len(dst) != len(x) {
		return fmt.Errorf("secagg: encoding %d numbers into %d places", len(x), len(dst))
	}
	scale := f.Scale()
	var word uint64
	for i, v := range x {
		if !(math.Abs(float64(v)) <= f.Bound) {
			return fmt.Errorf("secagg: encoding number %d of a vector, %g: %w: ±%g", i, v, ErrRange, f.Bound)
		}
		if i%2 == 0 {
			word = random.Uint64()
		}
		dst[i] = uint32(int32(math.Floor(float64(v)*scale + float64(uint32(word))*0x1p-32)))
		word >>= 32
	}
	return nil
}
