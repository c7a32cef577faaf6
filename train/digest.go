package train

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
)

// Digest identifies a set: its examples and labels, in order.
func (s *Set) Digest() string {
	h := sha256.New()
	fmt.Fprintf(h, "%v %d %v\n", s.Example(), s.Classes, s.Multi())
	h.Write(s.Pixels)
	var word [4]byte
	for _, v := range s.Values {
		binary.LittleEndian.PutUint32(word[:], math.Float32bits(v))
		h.Write(word[:])
	}
	for _, l := range s.Labels {
		binary.LittleEndian.PutUint32(word[:], uint32(l))
		h.Write(word[:])
	}
	h.Write(s.Marks)
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// fingerprint identifies one example by its content, without its label.
func (s *Set) fingerprint(i int) [sha256.Size]byte {
	if s.Pixels != nil {
		return sha256.Sum256(s.Image(i))
	}
	v := s.values(i)
	raw := make([]byte, 4*len(v))
	for j, x := range v {
		binary.LittleEndian.PutUint32(raw[4*j:], math.Float32bits(x))
	}
	return sha256.Sum256(raw)
}
