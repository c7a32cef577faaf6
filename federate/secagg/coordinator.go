package secagg

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"reflect"
	"slices"
)

// Coordinator is the other half of a round: it carries messages, decides who is
// still in, and opens the sum. It learns the sum and nothing else. Add… methods
// take a site's message, verify it, and return an error that names the site and
// wraps ErrForged if it is no good; the site is then as one that sent nothing.
// Close… methods end a step with those who made it, and return ErrTooFew if
// they are not enough: the round is over.
//
// Its state is what it was told: after a restart, the same calls with the same
// messages lead to the same place. It is used from one goroutine at a time.
type Coordinator struct {
	round     Round
	threshold int // once the roster is closed

	keys        map[string]Message
	roster      *roster
	dealt       map[string]*dealing
	accepted    map[string]bool
	expelled    map[string]bool
	partners    []string
	arrived     map[string][]byte // digests of masked vectors
	survivors   []string
	sum         []byte // digest that was committed to
	confirmed   map[string]Message
	checksums   map[string]Checksum
	confirmers  []string
	seedShares  map[string]map[int][]byte // by whose secret, then by the place of who revealed it
	maskShares  map[string]map[int][]byte
	revealed    map[string]bool
	step        step
	Accusations []Accusation // what sites were found to have done, in the order that it was found
}

// dealing is what a site dealt.
type dealing struct {
	opened
	parcels  map[string]Message // by receiver
	payloads map[string]parcelPayload
}

// Accusation says what a site did that cost it its place in the round.
type Accusation struct {
	Site   string `json:"site"`
	Reason string `json:"reason"`
}

type step int

const (
	stepKeys step = iota
	stepShares
	stepAccept
	stepMasked
	stepConfirm
	stepReveal
)

var stepNames = [...]string{"keys", "shares", "acceptances", "vectors", "confirmations", "reveals"}

// NewCoordinator starts a round.
func NewCoordinator(r Round) (*Coordinator, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	return &Coordinator{round: r, keys: map[string]Message{}}, nil
}

func (c *Coordinator) at(want step) error {
	if c.step != want {
		return fmt.Errorf("secagg: coordinating round %d: %w: it collects %s and not %s", c.round.Number, ErrStep, stepNames[c.step], stepNames[want])
	}
	return nil
}

func (c *Coordinator) few(have int) error {
	return fmt.Errorf("secagg: closing the %s of round %d: %w: %d, and %d are needed", stepNames[c.step], c.round.Number, ErrTooFew, have, c.threshold)
}

func (c *Coordinator) refuse(from string, format string, arguments ...any) error {
	return fmt.Errorf("secagg: taking the %s of %q in round %d: %w: %s", stepNames[c.step], from, c.round.Number, ErrForged, fmt.Sprintf(format, arguments...))
}

// AddKeys takes a site's first message.
func (c *Coordinator) AddKeys(m Message) error {
	if err := c.at(stepKeys); err != nil {
		return err
	}
	p, err := openMessage[keysPayload](c.round, nil, KeysType, m)
	if err != nil {
		return err
	}
	if _, err := p.open(); err != nil {
		return c.refuse(m.From, "%v", err)
	}
	if _, again := c.keys[m.From]; again {
		return c.refuse(m.From, "it has sent keys before")
	}
	for _, other := range sortedKeys(c.keys) { // a site that repeats another's key would spoil the roster for all
		theirs, err := openMessage[keysPayload](c.round, nil, KeysType, c.keys[other])
		if err != nil {
			return err
		}
		for _, key := range [][]byte{theirs.Seal, theirs.Mask} {
			if string(key) == string(p.Seal) || string(key) == string(p.Mask) {
				return c.refuse(m.From, "it has sent a key of %q", other)
			}
		}
	}
	c.keys[m.From] = m
	return nil
}

// CloseKeys returns the keys of all who entered, for each of them.
func (c *Coordinator) CloseKeys() ([]Message, error) {
	if err := c.at(stepKeys); err != nil {
		return nil, err
	}
	var all []Message
	for _, name := range sortedKeys(c.keys) {
		all = append(all, c.keys[name])
	}
	c.threshold = c.round.Threshold(len(all))
	if len(all) < c.threshold {
		return nil, c.few(len(all))
	}
	var err error
	if c.roster, err = newRoster(c.round, all); err != nil {
		return nil, err
	}
	c.dealt = map[string]*dealing{}
	c.step = stepShares
	return all, nil
}

// AddShares takes all the parcels that a site dealt: one for each other site,
// with the same commitments in each.
func (c *Coordinator) AddShares(from string, parcels []Message) error {
	if err := c.at(stepShares); err != nil {
		return err
	}
	place, in := c.roster.place(from)
	switch {
	case !in:
		return c.refuse(from, "it has no keys in this round")
	case c.dealt[from] != nil:
		return c.refuse(from, "it has dealt before")
	case len(parcels) != len(c.roster.names)-1:
		return c.refuse(from, "%d parcels, want one for each of %d other sites", len(parcels), len(c.roster.names)-1)
	}
	d := &dealing{parcels: map[string]Message{}, payloads: map[string]parcelPayload{}}
	var first parcelPayload
	for i, m := range parcels {
		p, err := openMessage[parcelPayload](c.round, c.roster.digest, ParcelType, m)
		if err != nil {
			return err
		}
		if _, known := c.roster.place(p.To); m.From != from || p.To == from || !known {
			return c.refuse(from, "a parcel from %q to %q", m.From, p.To)
		}
		if _, again := d.parcels[p.To]; again {
			return c.refuse(from, "two parcels to %q", p.To)
		}
		if i == 0 {
			first = p
			if d.opened, err = c.roster.openDealt(p.dealt, place, c.threshold); err != nil {
				return c.accuse(from, err.Error())
			}
		} else if !reflect.DeepEqual(first.dealt, p.dealt) {
			return c.refuse(from, "other commitments to %q than to %q", p.To, first.To)
		}
		d.parcels[p.To], d.payloads[p.To] = m, p
	}
	c.dealt[from] = d
	return nil
}

// CloseShares returns for each site that dealt the parcels to it, in the order
// of their dealers.
func (c *Coordinator) CloseShares() (map[string][]Message, error) {
	if err := c.at(stepShares); err != nil {
		return nil, err
	}
	dealers := sortedKeys(c.dealt)
	if len(dealers) < c.threshold {
		return nil, c.few(len(dealers))
	}
	parcels := map[string][]Message{}
	for _, to := range dealers {
		for _, from := range dealers {
			if from != to {
				parcels[to] = append(parcels[to], c.dealt[from].parcels[to])
			}
		}
	}
	c.accepted, c.expelled = map[string]bool{}, map[string]bool{}
	c.step = stepAccept
	return parcels, nil
}

// AddAcceptance takes a site's word on what it was dealt.
func (c *Coordinator) AddAcceptance(m Message) error {
	if err := c.at(stepAccept); err != nil {
		return err
	}
	p, err := openMessage[acceptancePayload](c.round, c.roster.digest, AcceptanceType, m)
	if err != nil {
		return err
	}
	place, _ := c.roster.place(m.From)
	if c.accepted[m.From] || c.dealt[m.From] == nil {
		return c.refuse(m.From, "it has no parcels to accept, or has done so before")
	}
	for i, complaint := range p.Complaints {
		d := c.dealt[complaint.Dealer]
		if d == nil || complaint.Dealer == m.From || i > 0 && p.Complaints[i-1].Dealer >= complaint.Dealer {
			return c.refuse(m.From, "a complaint about %q, out of order or about no dealer", complaint.Dealer)
		}
		if c.expelled[complaint.Dealer] {
			continue
		}
		guilty, reason := c.roster.guilty(complaint, d.opened, place, d.payloads[m.From])
		c.expelled[guilty] = true
		if guilty == m.From {
			return c.accuse(guilty, reason)
		}
		c.Accusations = append(c.Accusations, Accusation{guilty, reason})
	}
	c.accepted[m.From] = true
	return nil
}

// CloseAcceptances returns for whom vectors are to be masked: those who accepted
// and were not found to have dealt badly.
func (c *Coordinator) CloseAcceptances() ([]string, error) {
	if err := c.at(stepAccept); err != nil {
		return nil, err
	}
	remaining := without(sortedKeys(c.accepted), sortedKeys(c.expelled))
	if len(remaining) < c.threshold {
		return nil, c.few(len(remaining))
	}
	c.partners = remaining
	c.arrived = map[string][]byte{}
	c.step = stepMasked
	return remaining, nil
}

// Arrived takes a site's word that a vector with this digest (VectorDigest, of
// what has arrived whole) is its own. Who calls adds the vectors of CloseMasked's
// survivors, and of nobody else.
func (c *Coordinator) Arrived(m Message, digest [sha256.Size]byte) error {
	if err := c.at(stepMasked); err != nil {
		return err
	}
	p, err := openMessage[vectorPayload](c.round, c.roster.digest, VectorType, m)
	if err != nil {
		return err
	}
	return c.arrive(m.From, p, digest[:])
}

// ArrivedElsewhere is Arrived for an auditor, who has no vectors and learns from
// Audit whether the sum is of those that the sites signed.
func (c *Coordinator) ArrivedElsewhere(m Message) error {
	if err := c.at(stepMasked); err != nil {
		return err
	}
	p, err := openMessage[vectorPayload](c.round, c.roster.digest, VectorType, m)
	if err != nil {
		return err
	}
	return c.arrive(m.From, p, p.Digest)
}

func (c *Coordinator) arrive(from string, p vectorPayload, digest []byte) error {
	switch {
	case !subset([]string{from}, c.partners) || c.arrived[from] != nil:
		return c.refuse(from, "it is no partner, or its vector is there already")
	case !slices.Equal(p.Partners, c.partners):
		return c.refuse(from, "it was masked for others than the partners")
	case len(digest) != sha256.Size || !bytes.Equal(p.Digest, digest):
		return c.refuse(from, "what has arrived is not what it signed")
	}
	c.arrived[from] = p.Digest
	return nil
}

// CloseMasked returns who survived.
func (c *Coordinator) CloseMasked() ([]string, error) {
	if err := c.at(stepMasked); err != nil {
		return nil, err
	}
	survivors := sortedKeys(c.arrived)
	if len(survivors) < c.threshold {
		return nil, c.few(len(survivors))
	}
	c.survivors = survivors
	c.confirmed, c.checksums = map[string]Message{}, map[string]Checksum{}
	c.step = stepConfirm
	return survivors, nil
}

// Commit says which sum (Sum.Digest) the survivors' vectors come to, before any
// survivor confirms. It cannot be taken back.
func (c *Coordinator) Commit(sum [sha256.Size]byte) error {
	if err := c.at(stepConfirm); err != nil {
		return err
	}
	if c.sum != nil {
		return fmt.Errorf("secagg: committing to the sum of round %d: %w: it was committed to one", c.round.Number, ErrStep)
	}
	c.sum = sum[:]
	return nil
}

// AddConfirmation takes a survivor's signature.
func (c *Coordinator) AddConfirmation(m Message) error {
	if err := c.at(stepConfirm); err != nil {
		return err
	}
	p, err := openMessage[confirmPayload](c.round, c.roster.digest, ConfirmType, m)
	if err != nil {
		return err
	}
	if c.sum == nil || !p.same(c.partners, c.survivors, c.sum) || !subset([]string{m.From}, c.survivors) {
		return c.refuse(m.From, "it confirms other survivors or another sum, or is no survivor")
	}
	c.confirmed[m.From], c.checksums[m.From] = m, Checksum{reduce(p.Checksum[0] & math.MaxInt64), reduce(p.Checksum[1] & math.MaxInt64)}
	return nil
}

// Audit holds the committed sum against what the survivors signed about their
// vectors, and returns in the order of their names the survivors who have not
// vouched for theirs: lost since, or with a wrong checksum, which costs them their
// confirmation and is an accusation. The vectors of these are needed, and asked of
// vector, which may return nil for one that it does not have; so is every vector
// if the checksums do not add up. An error that wraps ErrForged says that the sum
// is not the sum of the vectors, or that it cannot be known. It is called before
// CloseConfirmations.
func (c *Coordinator) Audit(ctx context.Context, sum *Sum, vector func(name string) ([]uint32, error)) ([]string, error) {
	if err := c.at(stepConfirm); err != nil {
		return nil, err
	}
	fail := func(format string, arguments ...any) ([]string, error) {
		return nil, fmt.Errorf("secagg: auditing the sum of round %d: %w: %s", c.round.Number, ErrForged, fmt.Sprintf(format, arguments...))
	}
	digest := sum.Digest()
	if !bytes.Equal(digest[:], c.sum) {
		return fail("it is not the one that was committed to")
	}
	key := coefficients(c.roster.context, digest, c.survivors)
	want, err := sum.checksum(ctx, key)
	if err != nil {
		return nil, err
	}
	own := func(name string) (*Checksum, error) {
		v, err := vector(name)
		if err != nil || v == nil {
			return nil, err
		}
		if d := VectorDigest(v); len(v) != c.round.Length || !bytes.Equal(d[:], c.arrived[name]) {
			return nil, fmt.Errorf("secagg: auditing the sum of round %d: %w: the vector of %q is not the one that it signed", c.round.Number, ErrForged, name)
		}
		sum, err := vectorChecksum(ctx, key, v)
		return &sum, err
	}
	var total Checksum
	var unvouched []string
	for _, name := range c.survivors {
		signed, confirmed := c.checksums[name]
		if !confirmed {
			unvouched = append(unvouched, name)
			real, err := own(name)
			if err != nil {
				return nil, err
			}
			if real == nil {
				return fail("%q has not vouched for its vector, and the vector was not kept", name)
			}
			signed = *real
		}
		total = total.Plus(signed)
	}
	if total == want {
		return unvouched, nil
	}
	total, unvouched = Checksum{}, nil
	for _, name := range c.survivors {
		signed, confirmed := c.checksums[name]
		real, err := own(name)
		if err != nil {
			return nil, err
		}
		if real != nil && confirmed && *real != signed {
			c.Accusations = append(c.Accusations, Accusation{Site: name, Reason: "it signed a wrong checksum of its vector"})
			delete(c.confirmed, name)
			delete(c.checksums, name)
			confirmed = false
		}
		if !confirmed {
			unvouched = append(unvouched, name)
		}
		if real != nil {
			signed = *real
		}
		total = total.Plus(signed)
	}
	if total != want {
		return fail("it is not the sum of the vectors that the survivors signed")
	}
	return unvouched, nil
}

// CloseConfirmations returns the confirmations, for each survivor that sent one.
func (c *Coordinator) CloseConfirmations() ([]Message, error) {
	if err := c.at(stepConfirm); err != nil {
		return nil, err
	}
	c.confirmers = sortedKeys(c.confirmed)
	if len(c.confirmers) < c.threshold {
		return nil, c.few(len(c.confirmers))
	}
	var all []Message
	for _, name := range c.confirmers {
		all = append(all, c.confirmed[name])
	}
	c.seedShares, c.maskShares, c.revealed = map[string]map[int][]byte{}, map[string]map[int][]byte{}, map[string]bool{}
	c.step = stepReveal
	return all, nil
}

// AddReveal takes a survivor's shares. Each is held against the commitments of
// its dealer; if one is wrong, none of the message counts and the site is
// accused.
func (c *Coordinator) AddReveal(m Message) error {
	if err := c.at(stepReveal); err != nil {
		return err
	}
	p, err := openMessage[revealPayload](c.round, c.roster.digest, RevealType, m)
	if err != nil {
		return err
	}
	place, _ := c.roster.place(m.From)
	lost := without(c.partners, c.survivors)
	if !subset([]string{m.From}, c.survivors) || c.revealed[m.From] || !slices.Equal(p.Survivors, c.survivors) ||
		!slices.Equal(sortedKeys(p.Seed), c.survivors) || !slices.Equal(sortedKeys(p.Mask), lost) {
		return c.refuse(m.From, "it reveals for other sites than was asked, or for the second time")
	}
	for _, of := range c.survivors {
		if !good(p.Seed[of], place, c.dealt[of].seed) {
			return c.accuse(m.From, fmt.Sprintf("it revealed a wrong share of the seed of %q", of))
		}
	}
	for _, of := range lost {
		if !good(p.Mask[of], place, c.dealt[of].mask) {
			return c.accuse(m.From, fmt.Sprintf("it revealed a wrong share of the mask key of %q", of))
		}
	}
	c.revealed[m.From] = true
	for _, part := range []struct {
		from map[string][]byte
		to   map[string]map[int][]byte
	}{{p.Seed, c.seedShares}, {p.Mask, c.maskShares}} {
		for of, share := range part.from {
			if part.to[of] == nil {
				part.to[of] = map[int][]byte{}
			}
			part.to[of][place] = share
		}
	}
	return nil
}

func (c *Coordinator) accuse(site, reason string) error {
	c.Accusations = append(c.Accusations, Accusation{Site: site, Reason: reason})
	return c.refuse(site, "%s", reason)
}

// Enough says whether the sum can be opened.
func (c *Coordinator) Enough() bool { return c.step == stepReveal && len(c.revealed) >= c.threshold }

// Open takes the masks out of the sum of the survivors' vectors, in place.
func (c *Coordinator) Open(ctx context.Context, sum []uint32) error {
	if err := c.at(stepReveal); err != nil {
		return err
	}
	if len(sum) != c.round.Length {
		return fmt.Errorf("secagg: opening round %d: %w: a sum of %d numbers, want %d", c.round.Number, ErrRound, len(sum), c.round.Length)
	}
	if !c.Enough() {
		return c.few(len(c.revealed))
	}
	var masks []mask
	for _, of := range c.survivors {
		seed, err := recoverSecret(c.threshold, c.seedShares[of])
		if err != nil {
			return err
		}
		masks = append(masks, selfMask(seed.bytes(), c.roster.context, of).inverse())
	}
	for _, of := range without(c.partners, c.survivors) {
		key, err := recoverSecret(c.threshold, c.maskShares[of])
		if err != nil {
			return err
		}
		// what each survivor put in for the lost site, seen from the survivor
		for _, survivor := range c.survivors {
			i, _ := c.roster.place(survivor)
			masks = append(masks, pairMask(key.agree(c.roster.keys[i].mask), c.roster.context, survivor, of).inverse())
		}
	}
	if err := apply(ctx, sum, masks); err != nil {
		return err
	}
	c.round.widen(sum)
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
