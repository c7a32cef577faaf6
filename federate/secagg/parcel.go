package secagg

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"fmt"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/zk/dl"
	"github.com/cloudflare/circl/zk/dleq"
)

// The proof that a complaint opens a parcel with the right key.
var (
	proofs   = dleq.Params{G: ristretto, H: crypto.SHA512, DST: []byte("vigie secagg complaint v1")}
	prover   = dleq.Prover{Params: proofs}
	verifier = dleq.Verifier{Params: proofs}
)

// proofLabel binds a dealer's proof of knowledge to the round and its roster.
func (o *roster) proofLabel() []byte {
	return append([]byte("vigie secagg ephemeral v1"), o.context...)
}

// opened is dealt, decoded.
type opened struct {
	mask, seed []group.Element
	ephemeral  group.Element
}

// openDealt decodes what a dealer commits to and checks everything about it that
// everybody can see. An error means that the dealer did wrong: no coordinator
// should pass it on.
func (o *roster) openDealt(d dealt, dealer, threshold int) (opened, error) {
	var out opened
	if len(d.Mask) != threshold || len(d.Seed) != threshold {
		return opened{}, fmt.Errorf("%w: %d and %d commitments, want %d", ErrForged, len(d.Mask), len(d.Seed), threshold)
	}
	for _, part := range []struct {
		from [][]byte
		to   *[]group.Element
	}{{d.Mask, &out.mask}, {d.Seed, &out.seed}} {
		for _, b := range part.from {
			e, err := decodeElement(b)
			if err != nil {
				return opened{}, err
			}
			*part.to = append(*part.to, e)
		}
	}
	if !out.mask[0].IsEqual(o.keys[dealer].mask) {
		return opened{}, fmt.Errorf("%w: the commitments are to another key than the dealer's", ErrForged)
	}
	var err error
	if out.ephemeral, err = decodeElement(d.Ephemeral); err != nil {
		return opened{}, err
	}
	commitment, err := decodeElement(d.Proof[0])
	if err != nil {
		return opened{}, err
	}
	response, err := decodeScalar(d.Proof[1])
	if err != nil {
		return opened{}, err
	}
	if !dl.Verify(ristretto, ristretto.Generator(), out.ephemeral, dl.Proof{V: commitment, R: response}, []byte(o.names[dealer]), o.proofLabel()) {
		return opened{}, fmt.Errorf("%w: the dealer does not prove that it knows its ephemeral key", ErrForged)
	}
	return out, nil
}

// box is the cipher for one parcel. Its key is used for that alone, so the
// nonce is zero.
func (o *roster) box(shared []byte, from, to string) cipher.AEAD {
	key := derive(shared, o.context, "parcel", from, to)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("secagg: " + err.Error())
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("secagg: " + err.Error())
	}
	return aead
}

// openParcel returns the shares of the receiver in a parcel, given what its key
// is agreed from, if they are what the commitments stand for.
func (o *roster) openParcel(shared []byte, d opened, receiver int, p parcelPayload) (mask, seed []byte, ok bool) {
	aead := o.box(shared, p.From, p.To)
	shares, err := aead.Open(nil, make([]byte, aead.NonceSize()), p.Box, nil)
	if err != nil || len(shares) != 2*scalarSize {
		return nil, nil, false
	}
	mask, seed = shares[:scalarSize], shares[scalarSize:]
	return mask, seed, good(mask, receiver, d.mask) && good(seed, receiver, d.seed)
}

// guilty says who did wrong, given a complaint of a receiver about a parcel: the
// dealer if the parcel, opened with what the receiver proves to be its key, holds
// no good shares; else the receiver.
func (o *roster) guilty(c complaint, d opened, receiver int, p parcelPayload) (name, reason string) {
	liar := func(reason string) (string, string) { return o.names[receiver], reason }
	shared, err := decodeElement(c.Shared)
	if err != nil {
		return liar(fmt.Sprintf("its complaint about %q opens nothing", p.From))
	}
	proof := new(dleq.Proof)
	if err := proof.UnmarshalBinary(ristretto, c.Proof); err != nil ||
		!verifier.Verify(ristretto.Generator(), o.keys[receiver].seal, d.ephemeral, shared, proof) {
		return liar(fmt.Sprintf("its complaint about %q proves nothing", p.From))
	}
	if _, _, ok := o.openParcel(c.Shared, d, receiver, p); ok {
		return liar(fmt.Sprintf("it complained about good shares of %q", p.From))
	}
	return p.From, fmt.Sprintf("it dealt %q bad shares", o.names[receiver])
}
