package secagg

import (
	"crypto/rand"
	"fmt"
	"io"
	"math/bits"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"
)

// ristretto is the group of mask keys and sharings: of prime order, with one
// encoding an element (RFC 9496), and with constant-time arithmetic.
var ristretto = group.Ristretto255

const (
	scalarSize  = 32 // bytes of a scalar or share
	elementSize = 32 // bytes of a group element
)

// secret is a scalar with the element that it stands for.
type secret struct {
	scalar group.Scalar
	public group.Element
}

// newSecret draws a scalar: 64 random bytes, hashed and reduced (RFC 9496 leaves
// no bias that could be seen).
func newSecret(random io.Reader) (secret, error) {
	var seed [64]byte
	if _, err := io.ReadFull(random, seed[:]); err != nil {
		return secret{}, fmt.Errorf("secagg: drawing a secret: %w", err)
	}
	return secretOf(ristretto.HashToScalar(seed[:], []byte("vigie secagg secret v1"))), nil
}

func secretOf(scalar group.Scalar) secret {
	return secret{scalar, ristretto.NewElement().MulGen(scalar)}
}

func (s secret) bytes() []byte { return encodeScalar(s.scalar) }

// agree is the Diffie-Hellman element of the secret and another's public key.
func (s secret) agree(public group.Element) []byte {
	return encodeElement(ristretto.NewElement().Mul(public, s.scalar))
}

// deal splits a secret among n sites so that threshold of them recover it:
// Shamir's sharing with Feldman's commitments, the first of which is the
// secret's public element. Share i is of site i, from 0. The polynomial is drawn
// by the library, always from the system's source.
func (s secret) deal(threshold, n int) (shares [][]byte, commitments []group.Element) {
	sharing := secretsharing.New(rand.Reader, uint(threshold-1), s.scalar)
	for _, share := range sharing.Share(uint(n)) {
		shares = append(shares, encodeScalar(share.Value))
	}
	return shares, sharing.CommitSecret()
}

// good says whether a share is site i's of what the commitments stand for: the
// polynomial of the commitments, at the site's place (Feldman 1987). All of it is
// public, and the place is a small number, so that Horner's rule takes a few
// doublings a step and not a whole multiplication.
func good(share []byte, i int, commitments []group.Element) bool {
	value, err := decodeScalar(share)
	if err != nil {
		return false
	}
	place := uint(i + 1)
	sum := ristretto.Identity()
	for k := len(commitments) - 1; k >= 0; k-- {
		product := ristretto.Identity()
		for bit := bits.Len(place) - 1; bit >= 0; bit-- {
			product.Dbl(product)
			if place>>bit&1 == 1 {
				product.Add(product, sum)
			}
		}
		sum = product.Add(product, commitments[k])
	}
	return ristretto.NewElement().MulGen(value).IsEqual(sum)
}

// recoverSecret combines good shares, by site, at least threshold of them.
func recoverSecret(threshold int, shares map[int][]byte) (secret, error) {
	list := make([]secretsharing.Share, 0, threshold)
	for i := 0; len(list) < threshold && i < MaxSites; i++ {
		if share, have := shares[i]; have {
			value, err := decodeScalar(share)
			if err != nil {
				return secret{}, err
			}
			list = append(list, secretsharing.Share{ID: position(i), Value: value})
		}
	}
	scalar, err := secretsharing.Recover(uint(threshold-1), list)
	if err != nil {
		return secret{}, fmt.Errorf("secagg: recovering a secret of %d shares, of which %d are needed: %w", len(shares), threshold, ErrTooFew)
	}
	return secretOf(scalar), nil
}

// position is where site i's share lies on the polynomial; 0 is the secret.
func position(i int) group.Scalar { return ristretto.NewScalar().SetUint64(uint64(i + 1)) }

func encodeScalar(s group.Scalar) []byte {
	b, err := s.MarshalBinary()
	if err != nil {
		panic("secagg: " + err.Error())
	}
	return b
}

func encodeElement(e group.Element) []byte {
	b, err := e.MarshalBinaryCompress()
	if err != nil {
		panic("secagg: " + err.Error())
	}
	return b
}

// elementOf decodes what encodeElement wrote.
func elementOf(b []byte) group.Element {
	e, err := decodeElement(b)
	if err != nil {
		panic(err)
	}
	return e
}

// decodeScalar reads the one encoding of a scalar.
func decodeScalar(b []byte) (group.Scalar, error) {
	s := ristretto.NewScalar()
	if err := s.UnmarshalBinary(b); err != nil {
		return nil, fmt.Errorf("secagg: reading a scalar of %d bytes: %w", len(b), ErrForged)
	}
	if string(encodeScalar(s)) != string(b) {
		return nil, fmt.Errorf("secagg: reading a scalar: %w: not reduced", ErrForged)
	}
	return s, nil
}

// decodeElement reads the one encoding of an element, and refuses the identity:
// what is agreed with it is known to everybody.
func decodeElement(b []byte) (group.Element, error) {
	e := ristretto.NewElement()
	if len(b) != elementSize {
		return nil, fmt.Errorf("secagg: reading a group element of %d bytes: %w", len(b), ErrForged)
	}
	if err := e.UnmarshalBinary(b); err != nil || e.IsIdentity() || string(encodeElement(e)) != string(b) {
		return nil, fmt.Errorf("secagg: reading a group element: %w", ErrForged)
	}
	return e, nil
}
