package secagg

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/zk/dl"
)

// participant is a site's two public keys.
type participant struct {
	seal, mask group.Element
}

func (p keysPayload) open() (participant, error) {
	seal, err := decodeElement(p.Seal)
	if err != nil {
		return participant{}, err
	}
	mask, err := decodeElement(p.Mask)
	if err != nil {
		return participant{}, err
	}
	return participant{seal, mask}, nil
}

// Site is a site's half of one round. Its methods are called in the order of
// the steps, from one goroutine at a time. Called again with the same content,
// a step returns the same message again, for one that was lost on the way; with
// other content it returns ErrStep.
//
// Before a message leaves, MarshalBinary must be on the site's disk: a site that
// forgets what it has said could be made to say something else.
type Site struct {
	round  Round
	name   string
	signer crypto.Signer

	state  siteState
	seal   secret
	mask   secret
	own    secret // seed of the site's own mask
	roster *roster
}

// siteState is what outlives a process. It holds the secrets of the round.
type siteState struct {
	Seal []byte  `json:"seal"` // scalar
	Mask []byte  `json:"mask"` // scalar
	Own  []byte  `json:"own"`  // scalar
	Keys Message `json:"keys"`

	Roster     []Message         `json:"roster,omitempty"`
	Parcels    []Message         `json:"parcels,omitempty"`      // dealt by this site
	OwnShares  [][]byte          `json:"own_shares,omitempty"`   // its shares of its own secrets: mask key, seed
	MaskShares map[string][]byte `json:"mask_shares,omitempty"`  // good ones, by dealer
	SeedShares map[string][]byte `json:"seed_shares,omitempty"`  //
	Received   []byte            `json:"received,omitempty"`     // digest of the parcels that were judged
	Acceptance *Message          `json:"acceptance,omitempty"`   //
	Partners   []string          `json:"partners,omitempty"`     // for whom the vector was masked
	Masked     bool              `json:"masked,omitempty"`       // a vector was
	Vector     *Message          `json:"vector,omitempty"`       // signed, once it was
	Survivors  []string          `json:"survivors,omitempty"`    //
	Sum        []byte            `json:"sum,omitempty"`          // digest
	Confirmed  *Message          `json:"confirmation,omitempty"` //
	Revealed   *Message          `json:"reveal,omitempty"`       //
}

// NewSite starts a round at the named site, whose certificate's key signs. random
// is where keys come from, crypto/rand.Reader but in tests. Errors wrap ErrRound
// for a round that cannot be run, or that the site has no part in.
func NewSite(r Round, name string, signer crypto.Signer, random io.Reader) (*Site, error) {
	s, err := openSite(r, name, signer)
	if err != nil {
		return nil, err
	}
	if s.seal, err = newSecret(random); err != nil {
		return nil, err
	}
	if s.mask, err = newSecret(random); err != nil {
		return nil, err
	}
	if s.own, err = newSecret(random); err != nil {
		return nil, err
	}
	s.state.Seal, s.state.Mask, s.state.Own = s.seal.bytes(), s.mask.bytes(), s.own.bytes()
	s.state.Keys, err = signMessage(signer, KeysType, keysPayload{head: s.head(), Seal: encodeElement(s.seal.public), Mask: encodeElement(s.mask.public)})
	return s, err
}

func openSite(r Round, name string, signer crypto.Signer) (*Site, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	member, in := r.member(name)
	if !in {
		return nil, fmt.Errorf("secagg: starting round %d at %q: %w: it is no member", r.Number, name, ErrRound)
	}
	if key, is := signer.Public().(ed25519.PublicKey); !is || !member.Key.Equal(key) {
		return nil, fmt.Errorf("secagg: starting round %d at %q: %w: the signing key is not the member's", r.Number, name, ErrRound)
	}
	return &Site{round: r, name: name, signer: signer}, nil
}

// MarshalBinary writes the site's state, with the secrets of the round: a file
// that only the site may read. Whoever keeps it removes it when the round is over.
func (s *Site) MarshalBinary() ([]byte, error) { return json.Marshal(s.state) }

// RestoreSite goes on with what MarshalBinary wrote for the same round.
func RestoreSite(r Round, name string, signer crypto.Signer, data []byte) (*Site, error) {
	s, err := openSite(r, name, signer)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s.state); err != nil {
		return nil, fmt.Errorf("secagg: restoring round %d at %q: %w", r.Number, name, err)
	}
	if _, err := openMessage[keysPayload](r, nil, KeysType, s.state.Keys); err != nil || s.state.Keys.From != name {
		return nil, fmt.Errorf("secagg: restoring round %d at %q: %w: the state is of another round or site", r.Number, name, ErrStep)
	}
	for _, part := range []struct {
		from []byte
		to   *secret
	}{{s.state.Seal, &s.seal}, {s.state.Mask, &s.mask}, {s.state.Own, &s.own}} {
		if s.Erased() {
			break
		}
		scalar, err := decodeScalar(part.from)
		if err != nil {
			return nil, fmt.Errorf("secagg: restoring round %d at %q: %w", r.Number, name, err)
		}
		*part.to = secretOf(scalar)
	}
	if s.state.Roster != nil {
		if s.roster, err = newRoster(r, s.state.Roster); err != nil {
			return nil, fmt.Errorf("secagg: restoring round %d at %q: %w", r.Number, name, err)
		}
	}
	return s, nil
}

func (s *Site) head() head {
	digest := s.round.Digest()
	h := head{Round: digest[:], From: s.name}
	if s.roster != nil {
		h.Roster = s.roster.digest
	}
	return h
}

func (s *Site) fail(doing string, err error) error {
	return fmt.Errorf("secagg: %s in round %d at %q: %w", doing, s.round.Number, s.name, err)
}

// Masked says whether a vector was masked in this round.
func (s *Site) Masked() bool { return s.state.Masked }

// Keys is the site's first message.
func (s *Site) Keys() Message { return s.state.Keys }

// Share takes the keys messages of all who entered the round, this site's among
// them, verifies every signature, and deals: one signed parcel for each other
// site, in the order of their names.
func (s *Site) Share(all []Message) ([]Message, error) {
	const doing = "dealing shares"
	if s.Erased() {
		return nil, s.fail(doing, errErased)
	}
	o, err := newRoster(s.round, all)
	if err != nil {
		return nil, s.fail(doing, err)
	}
	if s.roster != nil {
		if !bytes.Equal(o.digest, s.roster.digest) {
			return nil, s.fail(doing, fmt.Errorf("%w: another roster was dealt for", ErrStep))
		}
		return s.state.Parcels, nil
	}
	own, in := o.place(s.name)
	threshold := s.round.Threshold(len(o.names))
	switch {
	case !in:
		return nil, s.fail(doing, fmt.Errorf("%w: this site's keys are not in the roster", ErrForged))
	case !o.keys[own].seal.IsEqual(s.seal.public) || !o.keys[own].mask.IsEqual(s.mask.public):
		return nil, s.fail(doing, fmt.Errorf("%w: the roster has other keys of this site than those of this round", ErrForged))
	case len(o.names) < threshold:
		return nil, s.fail(doing, fmt.Errorf("%w: %d entered, %d are needed", ErrTooFew, len(o.names), threshold))
	}
	s.roster = o
	maskShares, maskCommitments := s.mask.deal(threshold, len(o.names))
	seedShares, seedCommitments := s.own.deal(threshold, len(o.names))
	ephemeral, err := newSecret(rand.Reader)
	if err != nil {
		return nil, s.fail(doing, err)
	}
	proof := dl.Prove(ristretto, ristretto.Generator(), ephemeral.public, ephemeral.scalar, []byte(s.name), o.proofLabel(), rand.Reader)
	public := dealt{Mask: encodeElements(maskCommitments), Seed: encodeElements(seedCommitments),
		Ephemeral: encodeElement(ephemeral.public), Proof: [2][]byte{encodeElement(proof.V), encodeScalar(proof.R)}}
	var parcels []Message
	for i, to := range o.names {
		if i == own {
			continue
		}
		aead := o.box(ephemeral.agree(o.keys[i].seal), s.name, to)
		p := parcelPayload{head: s.head(), dealt: public, To: to,
			Box: aead.Seal(nil, make([]byte, aead.NonceSize()), slices.Concat(maskShares[i], seedShares[i]), nil)}
		parcel, err := signMessage(s.signer, ParcelType, p)
		if err != nil {
			return nil, err
		}
		parcels = append(parcels, parcel)
	}
	s.state.Roster = all
	s.state.OwnShares = [][]byte{maskShares[own], seedShares[own]}
	s.state.Parcels = parcels
	return parcels, nil
}

func encodeElements(elements []group.Element) [][]byte {
	list := make([][]byte, len(elements))
	for i, e := range elements {
		list[i] = encodeElement(e)
	}
	return list
}

// Accept takes the parcels that other sites dealt this one, opens each and holds
// the shares against the commitments. About each that is no good the signed
// acceptance complains, in a way that others can judge. Only what the
// coordinator should not have passed on is an error.
func (s *Site) Accept(parcels []Message) (Message, error) {
	const doing = "accepting shares"
	if s.roster == nil {
		return Message{}, s.fail(doing, fmt.Errorf("%w: this site has dealt no shares yet", ErrStep))
	}
	hash := sha256.New()
	for _, m := range parcels {
		hash.Write(appendField(appendField(nil, []byte(m.From)), m.Envelope.Payload))
	}
	received := hash.Sum(nil)
	if s.state.Acceptance != nil {
		if !bytes.Equal(received, s.state.Received) {
			return Message{}, s.fail(doing, fmt.Errorf("%w: other parcels were accepted", ErrStep))
		}
		return *s.state.Acceptance, nil
	}
	if s.Erased() {
		return Message{}, s.fail(doing, errErased)
	}
	own, _ := s.roster.place(s.name)
	maskShares := map[string][]byte{s.name: s.state.OwnShares[0]}
	seedShares := map[string][]byte{s.name: s.state.OwnShares[1]}
	seen := map[string]bool{}
	complaints := []complaint{}
	for _, m := range parcels {
		p, err := openMessage[parcelPayload](s.round, s.roster.digest, ParcelType, m)
		if err != nil {
			return Message{}, s.fail(doing, err)
		}
		dealer, in := s.roster.place(m.From)
		if !in || p.To != s.name || seen[m.From] || m.From == s.name {
			return Message{}, s.fail(doing, fmt.Errorf("%w: a parcel from %q to %q", ErrForged, m.From, p.To))
		}
		seen[m.From] = true
		d, err := s.roster.openDealt(p.dealt, dealer, s.round.Threshold(len(s.roster.names)))
		if err != nil {
			return Message{}, s.fail(doing, fmt.Errorf("a parcel of %q: %w", m.From, err))
		}
		shared := s.seal.agree(d.ephemeral)
		mask, seed, ok := s.roster.openParcel(shared, d, own, p)
		if !ok {
			proof, err := prover.Prove(s.seal.scalar, ristretto.Generator(), s.seal.public, d.ephemeral, elementOf(shared), rand.Reader)
			if err != nil {
				return Message{}, s.fail(doing, err)
			}
			bytes, err := proof.MarshalBinary()
			if err != nil {
				return Message{}, s.fail(doing, err)
			}
			complaints = append(complaints, complaint{Dealer: m.From, Shared: shared, Proof: bytes})
			continue
		}
		maskShares[m.From], seedShares[m.From] = mask, seed
	}
	slices.SortFunc(complaints, func(a, b complaint) int { return strings.Compare(a.Dealer, b.Dealer) })
	acceptance, err := signMessage(s.signer, AcceptanceType, acceptancePayload{head: s.head(), Complaints: complaints})
	if err != nil {
		return Message{}, err
	}
	s.state.MaskShares, s.state.SeedShares, s.state.Received, s.state.Acceptance = maskShares, seedShares, received, &acceptance
	return acceptance, nil
}

// Mask masks a vector in place for the partners, those whom the coordinator says
// all agreed to; this site is one of them. The masked vector is what leaves the
// site, with the signed message that Mask returns. It must be on disk before it
// does: a second vector under the same masks would give away the difference, and
// is refused with ErrStep.
func (s *Site) Mask(ctx context.Context, partners []string, vector []uint32) (Message, error) {
	const doing = "masking"
	switch {
	case s.Erased():
		return Message{}, s.fail(doing, errErased)
	case s.state.Acceptance == nil:
		return Message{}, s.fail(doing, fmt.Errorf("%w: no shares were accepted yet", ErrStep))
	case s.state.Masked:
		return Message{}, s.fail(doing, fmt.Errorf("%w: a vector was masked in this round", ErrStep))
	case len(vector) != s.round.Length:
		return Message{}, s.fail(doing, fmt.Errorf("%w: a vector of %d numbers, want %d", ErrRound, len(vector), s.round.Length))
	}
	if err := s.checkPartners(partners); err != nil {
		return Message{}, s.fail(doing, err)
	}
	masks := []mask{selfMask(s.own.bytes(), s.roster.context, s.name)}
	for _, other := range partners {
		if other == s.name {
			continue
		}
		i, _ := s.roster.place(other)
		masks = append(masks, pairMask(s.mask.agree(s.roster.keys[i].mask), s.roster.context, s.name, other))
	}
	// said before it is done: a crash in the middle costs the round, not the vector
	s.state.Partners, s.state.Masked = slices.Clone(partners), true
	if err := apply(ctx, vector, masks); err != nil {
		return Message{}, s.fail(doing, err)
	}
	s.round.narrow(vector)
	digest := VectorDigest(vector)
	m, err := signMessage(s.signer, VectorType, vectorPayload{head: s.head(), Partners: partners, Digest: digest[:]})
	if err != nil {
		return Message{}, err
	}
	s.state.Vector = &m
	return m, nil
}

// Vector is the message that goes with the masked vector, once there is one.
func (s *Site) Vector() (Message, error) {
	if s.state.Vector == nil {
		return Message{}, s.fail("sending a vector", fmt.Errorf("%w: no vector was masked to the end", ErrStep))
	}
	return *s.state.Vector, nil
}

// VectorDigest is what the site signed as the digest of its masked vector.
func (s *Site) VectorDigest() ([sha256.Size]byte, error) {
	m, err := s.Vector()
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	p, err := openMessage[vectorPayload](s.round, s.roster.digest, VectorType, m)
	if err != nil {
		return [sha256.Size]byte{}, s.fail("reading what was signed", err)
	}
	if len(p.Digest) != sha256.Size {
		return [sha256.Size]byte{}, s.fail("reading what was signed", ErrForged)
	}
	return [sha256.Size]byte(p.Digest), nil
}

func (s *Site) checkPartners(partners []string) error {
	if err := s.roster.checkSubset(partners); err != nil {
		return err
	}
	if !subset([]string{s.name}, partners) {
		return fmt.Errorf("%w: the partners do not name this site", ErrForged)
	}
	for _, name := range partners {
		if _, have := s.state.MaskShares[name]; !have {
			return fmt.Errorf("%w: %q is said to be a partner, but dealt this site no good share", ErrForged, name)
		}
	}
	if threshold := s.round.Threshold(len(s.roster.names)); len(partners) < threshold {
		return fmt.Errorf("%w: %d partners, %d are needed", ErrTooFew, len(partners), threshold)
	}
	return nil
}

// Confirm signs who survived, whose vectors the coordinator says are in the sum,
// and the digest of that sum, with the checksum of this site's own masked vector. A
// site signs one such set and sum in a round.
func (s *Site) Confirm(ctx context.Context, survivors []string, sum []byte, vector []uint32) (Message, error) {
	const doing = "confirming the survivors"
	if s.state.Vector == nil {
		return Message{}, s.fail(doing, fmt.Errorf("%w: no vector was masked yet", ErrStep))
	}
	if s.state.Confirmed != nil {
		if !slices.Equal(survivors, s.state.Survivors) || !bytes.Equal(sum, s.state.Sum) {
			return Message{}, s.fail(doing, fmt.Errorf("%w: other survivors or another sum were confirmed: the coordinator shows more than one set", ErrStep))
		}
		return *s.state.Confirmed, nil
	}
	if s.Erased() {
		return Message{}, s.fail(doing, errErased)
	}
	threshold := s.round.Threshold(len(s.roster.names))
	if err := s.roster.checkSubset(survivors); err != nil {
		return Message{}, s.fail(doing, err)
	}
	switch {
	case !subset(survivors, s.state.Partners):
		return Message{}, s.fail(doing, fmt.Errorf("%w: a survivor that was no partner", ErrForged))
	case !subset([]string{s.name}, survivors):
		return Message{}, s.fail(doing, fmt.Errorf("%w: the survivors do not name this site", ErrForged))
	case len(survivors) < threshold:
		return Message{}, s.fail(doing, fmt.Errorf("%w: %d survivors, %d are needed", ErrTooFew, len(survivors), threshold))
	case len(sum) != sha256.Size:
		return Message{}, s.fail(doing, fmt.Errorf("%w: a digest of the sum of %d bytes", ErrForged, len(sum)))
	}
	checksum, err := vectorChecksum(ctx, coefficients(s.roster.context, [sha256.Size]byte(sum), survivors), vector)
	if err != nil {
		return Message{}, s.fail(doing, err)
	}
	m, err := signMessage(s.signer, ConfirmType, confirmPayload{head: s.head(), Partners: s.state.Partners, Survivors: survivors, Sum: sum, Checksum: checksum})
	if err != nil {
		return Message{}, err
	}
	s.state.Survivors, s.state.Sum, s.state.Confirmed = slices.Clone(survivors), slices.Clone(sum), &m
	return m, nil
}

// Reveal takes confirmations and, if a threshold of survivors have signed the
// very set that this site has, returns its shares of the survivors' seeds and of
// the lost sites' mask keys, so that the sum can be opened.
func (s *Site) Reveal(confirmations []Message) (Message, error) {
	const doing = "revealing shares"
	if s.state.Confirmed == nil {
		return Message{}, s.fail(doing, fmt.Errorf("%w: no survivors were confirmed yet", ErrStep))
	}
	if s.state.Revealed != nil {
		return *s.state.Revealed, nil
	}
	if s.Erased() {
		return Message{}, s.fail(doing, errErased)
	}
	signed := map[string]bool{s.name: true}
	for _, m := range confirmations {
		p, err := openMessage[confirmPayload](s.round, s.roster.digest, ConfirmType, m)
		if err != nil {
			return Message{}, s.fail(doing, err)
		}
		if !p.same(s.state.Partners, s.state.Survivors, s.state.Sum) {
			return Message{}, s.fail(doing, fmt.Errorf("%w: %q has signed another set of survivors, or another sum: the coordinator shows more than one", ErrForged, m.From))
		}
		if !subset([]string{m.From}, s.state.Survivors) {
			return Message{}, s.fail(doing, fmt.Errorf("%w: a confirmation of %q, which is no survivor", ErrForged, m.From))
		}
		signed[m.From] = true
	}
	if threshold := s.round.Threshold(len(s.roster.names)); len(signed) < threshold {
		return Message{}, s.fail(doing, fmt.Errorf("%w: %d sites confirmed the survivors, %d are needed", ErrTooFew, len(signed), threshold))
	}
	p := revealPayload{head: s.head(), Survivors: s.state.Survivors, Seed: map[string][]byte{}, Mask: map[string][]byte{}}
	for _, name := range s.state.Survivors {
		p.Seed[name] = s.state.SeedShares[name]
	}
	for _, name := range without(s.state.Partners, s.state.Survivors) {
		p.Mask[name] = s.state.MaskShares[name]
	}
	m, err := signMessage(s.signer, RevealType, p)
	if err != nil {
		return Message{}, err
	}
	s.state.Revealed = &m
	s.Erase()
	return m, nil
}

// Erase forgets the secrets of the round: its keys, its seed, what it was dealt.
// From then on nobody who takes the site's disk can open what the site sent in the
// round, and the site can only repeat what it has said. Reveal does it by itself;
// who drives the site does it when a round ends before. MarshalBinary must be on
// the disk afterwards, in the place of what was there.
func (s *Site) Erase() {
	s.state.Seal, s.state.Mask, s.state.Own, s.state.OwnShares, s.state.MaskShares, s.state.SeedShares, s.state.Parcels = nil, nil, nil, nil, nil, nil, nil
	s.seal, s.mask, s.own = secret{}, secret{}, secret{}
}

var errErased = fmt.Errorf("%w: the secrets of this round were erased", ErrStep)

// Erased says whether the secrets of the round were erased.
func (s *Site) Erased() bool { return s.state.Own == nil }
