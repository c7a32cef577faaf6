package secagg

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/vigie/vigie/keys/dsse"
)

// The DSSE payload types of what a site signs. The payloads are JSON, bound to
// the round by its digest.
const (
	KeysType       = "application/vnd.vigie.secagg.keys.v1+json"
	ParcelType     = "application/vnd.vigie.secagg.parcel.v1+json"
	AcceptanceType = "application/vnd.vigie.secagg.acceptance.v1+json"
	VectorType     = "application/vnd.vigie.secagg.vector.v1+json"
	ConfirmType    = "application/vnd.vigie.secagg.confirmation.v1+json"
	RevealType     = "application/vnd.vigie.secagg.reveal.v1+json"
)

// Message is one signed message of a site, as it is sent and as it belongs
// into a transcript.
type Message struct {
	From     string        `json:"from"`
	Envelope dsse.Envelope `json:"envelope"`
}

// head is how every payload begins: which round, and what went before.
type head struct {
	Round  []byte `json:"round"`            // Round.Digest
	Roster []byte `json:"roster,omitempty"` // digest of all keys messages; empty in those themselves
	From   string `json:"from"`
}

// keysPayload carries the two public keys of a site, fresh for this round.
type keysPayload struct {
	head
	Seal []byte `json:"seal"` // ristretto255: shares to this site are sealed to it
	Mask []byte `json:"mask"` // ristretto255: masks are agreed with it
}

// parcelPayload is what one site deals another: its share of the dealer's mask
// key and of the seed of the dealer's own mask, sealed, and the commitments
// that they can be held against.
type parcelPayload struct {
	head
	dealt
	To  string `json:"to"`
	Box []byte `json:"box"` // AES-256-GCM of both shares
}

// dealt is what is the same in all parcels of a dealer.
type dealt struct {
	Mask [][]byte `json:"mask"` // commitments to the mask key; the first is the key of keysPayload
	Seed [][]byte `json:"seed"` // commitments to the seed
	// Ephemeral is what the dealer agrees on a key with, with each receiver's
	// sealing key. The proof says that the dealer knows its secret: without it,
	// a dealer could pass off another's and learn from the complaint about it.
	Ephemeral []byte    `json:"ephemeral"`
	Proof     [2][]byte `json:"proof"` // Schnorr's, RFC 8235: commitment, response
}

// acceptancePayload says whose parcels a site could not use.
type acceptancePayload struct {
	head
	Complaints []complaint `json:"complaints"` // in the order of their dealers
}

// complaint opens one bad parcel for everybody: the element that its key was
// agreed from, with the proof that it is the right one (discrete logarithm
// equality, Chaum and Pedersen 1992). It opens nothing else.
type complaint struct {
	Dealer string `json:"dealer"`
	Shared []byte `json:"shared"`
	Proof  []byte `json:"proof"`
}

// vectorPayload says what a site has sent.
type vectorPayload struct {
	head
	Partners []string `json:"partners"` // for whom it was masked
	Digest   []byte   `json:"digest"`   // VectorDigest of the masked vector
}

// confirmPayload is what the survivors sign alike, but for their checksums.
type confirmPayload struct {
	head
	Partners  []string `json:"partners"`  // for whom vectors were masked
	Survivors []string `json:"survivors"` // whose vectors are in the sum
	Sum       []byte   `json:"sum"`       // Sum.Digest that the coordinator committed to
	Checksum  Checksum `json:"checksum"`  // of the site's own masked vector
}

// same says whether two sites have confirmed the same sum of the same vectors.
func (p confirmPayload) same(partners, survivors []string, sum []byte) bool {
	return slices.Equal(p.Partners, partners) && slices.Equal(p.Survivors, survivors) && bytes.Equal(p.Sum, sum)
}

// revealPayload opens masks.
type revealPayload struct {
	head
	Survivors []string          `json:"survivors"`
	Seed      map[string][]byte `json:"seed"` // shares of survivors' seeds
	Mask      map[string][]byte `json:"mask"` // shares of lost sites' mask keys
}

func (h head) header() head { return h }

type payload interface{ header() head }

// signMessage signs a payload as its type.
func signMessage(signer crypto.Signer, kind string, p payload) (Message, error) {
	body, err := json.Marshal(p)
	if err != nil {
		return Message{}, fmt.Errorf("secagg: encoding a message: %w", err)
	}
	envelope, err := dsse.Sign(signer, kind, body)
	if err != nil {
		return Message{}, fmt.Errorf("secagg: signing a message: %w", err)
	}
	return Message{From: p.header().From, Envelope: envelope}, nil
}

// MaxMessage is how many bytes the payload of a message may have.
const MaxMessage = 1 << 20

// openMessage verifies a message: signed by the member that it is from, of this
// kind, round and roster. It decodes strictly, after the signature.
func openMessage[P payload](r Round, roster []byte, kind string, m Message) (P, error) {
	var p P
	fail := func(format string, arguments ...any) (P, error) {
		var none P
		return none, fmt.Errorf("secagg: reading a message of %q: %w: %s", m.From, ErrForged, fmt.Sprintf(format, arguments...))
	}
	member, known := r.member(m.From)
	if !known {
		return fail("no member of this round")
	}
	if len(m.Envelope.Payload) > MaxMessage {
		return fail("%d bytes, at most %d are allowed", len(m.Envelope.Payload), MaxMessage)
	}
	if err := m.Envelope.Verify(kind, member.Key); err != nil {
		return fail("%v", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(m.Envelope.Payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&p); err != nil {
		return fail("%v", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return fail("bytes after its end")
	}
	h := p.header()
	digest := r.Digest()
	switch {
	case h.From != m.From:
		return fail("signed as from %q", h.From)
	case !bytes.Equal(h.Round, digest[:]):
		return fail("signed for another round")
	case !bytes.Equal(h.Roster, roster):
		return fail("signed for another roster of keys")
	}
	return p, nil
}

// roster is the keys of a round's participants, in the order of their names;
// a participant's place in it is where its shares lie.
type roster struct {
	names   []string
	keys    []participant
	digest  []byte // of the signed messages, which everything after is bound to
	context []byte // the round's digest and this one: salt of every derived key
}

// newRoster verifies keys messages. Any order is taken, once each.
func newRoster(r Round, messages []Message) (*roster, error) {
	messages = slices.Clone(messages)
	slices.SortFunc(messages, func(a, b Message) int { return bytes.Compare([]byte(a.From), []byte(b.From)) })
	o := &roster{}
	hash := sha256.New()
	hash.Write([]byte("vigie secagg roster v1\x00"))
	taken := map[string]string{}
	for i, m := range messages {
		if i > 0 && messages[i-1].From == m.From {
			return nil, fmt.Errorf("secagg: reading the keys of %q: %w: there twice", m.From, ErrForged)
		}
		p, err := openMessage[keysPayload](r, nil, KeysType, m)
		if err != nil {
			return nil, err
		}
		keys, err := p.open()
		if err != nil {
			return nil, fmt.Errorf("secagg: reading the keys of %q: %w", m.From, err)
		}
		for _, key := range [][]byte{p.Seal, p.Mask} {
			if other, known := taken[string(key)]; known {
				return nil, fmt.Errorf("secagg: reading the keys of %q: %w: a key that %q has, too", m.From, ErrForged, other)
			}
			taken[string(key)] = m.From
		}
		o.names = append(o.names, m.From)
		o.keys = append(o.keys, keys)
		hash.Write(appendField(nil, []byte(m.From)))
		hash.Write(appendField(nil, m.Envelope.Payload)) // what is signed, not the signature: two signatures may be good
	}
	o.digest = hash.Sum(nil)
	round := r.Digest()
	o.context = slices.Concat(round[:], o.digest)
	return o, nil
}

func (o *roster) place(name string) (int, bool) { return slices.BinarySearch(o.names, name) }

// checkSubset says whether names are some of the roster's, in order, each once.
func (o *roster) checkSubset(names []string) error {
	for i, name := range names {
		if i > 0 && names[i-1] >= name {
			return fmt.Errorf("%w: %q and %q are not in order, or the same", ErrForged, names[i-1], name)
		}
		if _, in := o.place(name); !in {
			return fmt.Errorf("%w: %q has no keys in this round", ErrForged, name)
		}
	}
	return nil
}

// subset says whether all of some are among names, which are in order.
func subset(some, names []string) bool {
	for _, name := range some {
		if _, in := slices.BinarySearch(names, name); !in {
			return false
		}
	}
	return true
}

// without returns the names that are not among some; both are in order.
func without(names, some []string) []string {
	var rest []string
	for _, name := range names {
		if _, in := slices.BinarySearch(some, name); !in {
			rest = append(rest, name)
		}
	}
	return rest
}
