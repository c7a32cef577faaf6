package secagg

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cloudflare/circl/zk/dl"
)

// upTo plays a round until a step and returns what the coordinator holds.
type stage struct {
	*cast
	coordinator *Coordinator
	roster      []Message
	parcels     map[string][]Message // by receiver
	partners    []string
}

func (c *cast) dealt(t *testing.T) *stage {
	t.Helper()
	s := &stage{cast: c, parcels: map[string][]Message{}}
	var err error
	if s.coordinator, err = NewCoordinator(c.round); err != nil {
		t.Fatal(err)
	}
	for _, name := range c.names() {
		if err := s.coordinator.AddKeys(c.sites[name].Keys()); err != nil {
			t.Fatal(err)
		}
	}
	if s.roster, err = s.coordinator.CloseKeys(); err != nil {
		t.Fatal(err)
	}
	return s
}

// share lets every site deal; change may exchange what one deals.
func (s *stage) share(t *testing.T, change func(name string, parcels []Message) []Message) {
	t.Helper()
	for _, name := range s.names() {
		parcels, err := s.sites[name].Share(s.roster)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			parcels = change(name, parcels)
		}
		if parcels == nil {
			continue
		}
		if err := s.coordinator.AddShares(name, parcels); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if s.parcels, err = s.coordinator.CloseShares(); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) accept(t *testing.T) {
	t.Helper()
	for _, name := range sortedKeys(s.parcels) {
		m, err := s.sites[name].Accept(s.parcels[name])
		if err != nil {
			t.Fatal(err)
		}
		if err := s.coordinator.AddAcceptance(m); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if s.partners, err = s.coordinator.CloseAcceptances(); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) mask(t *testing.T, partners []string, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := s.cast.mask(name, partners); err != nil {
			t.Fatal(err)
		}
	}
}

// resign lets a site sign another payload than its own machine would.
func (c *cast) resign(t *testing.T, kind string, m Message, change func(map[string]any)) Message {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal(m.Envelope.Payload, &fields); err != nil {
		t.Fatal(err)
	}
	change(fields)
	body, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	out, err := signMessage(c.signers[m.From], kind, raw{body, m.From})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type raw struct {
	body []byte
	from string
}

func (r raw) header() head                 { return head{From: r.from} }
func (r raw) MarshalJSON() ([]byte, error) { return r.body, nil }

// A lying server, step by step: each lie is refused by the sites themselves.

func TestSitesRefuseARosterThatALyingServerMadeUp(t *testing.T) {
	c := newCast(t, 5, 3, 1)
	s := c.dealt(t)
	earlier := newCast(t, 5, 3, 1) // the same sites and certificates in another round
	earlier.round.Number = 6
	for name := range earlier.sites {
		earlier.sites[name] = earlier.start(t, name)
	}
	later := c.start(t, "site-001") // the site again, with other keys
	for name, roster := range map[string][]Message{
		"keys replayed from another round":     append(slices.Clone(s.roster[:4]), earlier.sites["site-004"].Keys()),
		"a site twice":                         append(slices.Clone(s.roster[:4]), s.roster[3]),
		"one site left out, below the minimum": s.roster[:2],
		"this site left out":                   s.roster[1:],
		"another site's keys under a name": append(slices.Clone(s.roster[:4]),
			Message{From: "site-004", Envelope: s.roster[3].Envelope}),
		"keys of a site that is no member": append(slices.Clone(s.roster[:4]), Message{From: "zz", Envelope: s.roster[3].Envelope}),
		"keys that nobody signed":          append(slices.Clone(s.roster[:4]), forged(s.roster[4])),
	} {
		if _, err := c.start(t, "site-000").Share(roster); err == nil {
			t.Errorf("%s: the site dealt its shares", name)
		}
	}
	if _, err := later.Share(s.roster); !errors.Is(err, ErrForged) {
		t.Errorf("other keys of the site itself: %v", err)
	}
	if _, err := c.sites["site-000"].Share(s.roster); err != nil {
		t.Fatal(err)
	}
	if _, err := c.sites["site-000"].Share(s.roster[:4]); !errors.Is(err, ErrStep) {
		t.Errorf("a second roster in the same round: %v", err)
	}
}

func forged(m Message) Message {
	m.Envelope.Signature = slices.Clone(m.Envelope.Signature)
	m.Envelope.Signature[7] ^= 1
	return m
}

func TestSitesRefuseParcelsThatAreNotWhatTheDealerSigned(t *testing.T) {
	c := newCast(t, 4, 3, 1)
	s := c.dealt(t)
	s.share(t, nil)
	to := "site-000"
	for name, parcels := range map[string][]Message{
		"a parcel to another site":      {s.parcels["site-001"][1]},
		"a parcel twice":                {s.parcels[to][0], s.parcels[to][0]},
		"a parcel that nobody signed":   {forged(s.parcels[to][0])},
		"a parcel under another's name": {{From: "site-002", Envelope: s.parcels[to][0].Envelope}},
	} {
		if _, err := c.sites[to].Accept(parcels); !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSitesRefuseALyingServersPartnersAndSurvivors(t *testing.T) {
	c := newCast(t, 7, 3, 1) // the threshold is 5
	s := c.dealt(t)
	s.share(t, nil)
	s.accept(t)
	names := c.names()
	for name, partners := range map[string][]string{
		"one partner":             {"site-000"},
		"fewer than needed":       names[:4],
		"without this site":       names[1:],
		"somebody else":           append(slices.Clone(names[:6]), "zz"),
		"a partner twice":         append(slices.Clone(names), "site-006"),
		"partners out of order":   append([]string{"site-006"}, names[:6]...),
		"nobody at all":           nil,
		"a partner that is empty": append([]string{""}, names...),
	} {
		if _, err := c.sites["site-000"].Mask(context.Background(), partners, make([]uint32, 3)); err == nil {
			t.Errorf("%s: the site masked for them", name)
		}
	}
	s.mask(t, names, names[:6]...)
	for name, survivors := range map[string][]string{
		"all but one dropped":   {"site-000"},
		"fewer than needed":     names[:4],
		"without this site":     names[1:],
		"one that is no member": append(slices.Clone(names[:6]), "zz"),
		"one twice":             append(slices.Clone(names[:6]), "site-005"),
	} {
		if _, err := c.confirm("site-000", survivors); err == nil {
			t.Errorf("%s: the site confirmed them", name)
		}
	}
}

func TestADoubleListNeverOpensBothKindsOfShareOfOneSite(t *testing.T) {
	// The server tells half of the sites that site-006 was lost, and the others
	// that it was not: with both answers it could take all masks off its vector.
	c := newCast(t, 7, 3, 1)
	s := c.dealt(t)
	s.share(t, nil)
	s.accept(t)
	names := c.names()
	s.mask(t, names, names...)
	confirmations := map[string]Message{}
	for i, name := range names {
		survivors := names
		if i < 3 {
			survivors = names[:6]
		}
		m, err := c.confirm(name, survivors)
		if err != nil {
			t.Fatal(err)
		}
		confirmations[name] = m
	}
	lists := map[string][]Message{"all": nil, "without": nil, "with": nil}
	for i, name := range names {
		lists["all"] = append(lists["all"], confirmations[name])
		if i < 3 {
			lists["without"] = append(lists["without"], confirmations[name])
		} else {
			lists["with"] = append(lists["with"], confirmations[name])
		}
	}
	// padded to the threshold with repetitions, and with a forged one
	lists["repeated"] = slices.Concat(lists["with"], lists["with"], lists["with"])
	lists["forged"] = append(slices.Clone(lists["with"]), Message{From: "site-000", Envelope: forged(confirmations["site-000"]).Envelope})
	for _, name := range names {
		for what, list := range lists {
			if _, err := c.sites[name].Reveal(list); err == nil {
				t.Errorf("%s revealed its shares on the confirmations %q", name, what)
			}
		}
	}
}

func TestPartnersShownDifferentlyAreFoundBeforeAnythingIsRevealed(t *testing.T) {
	c := newCast(t, 7, 3, 1)
	s := c.dealt(t)
	s.share(t, nil)
	s.accept(t)
	names := c.names()
	s.mask(t, names, names[:3]...)
	s.mask(t, names[:6], names[3:6]...) // told that site-006 is no partner
	var list []Message
	for _, name := range names[:6] {
		m, err := c.confirm(name, names[:6])
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	for _, name := range names[:6] {
		if _, err := c.sites[name].Reveal(list); !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A lying site, step by step: it is named, and the round goes on without it.

func finish(t *testing.T, s *stage, liar string, wantSurvivors []string, change func(Message) Message) {
	t.Helper()
	c := s.coordinator
	for _, name := range s.partners {
		m, err := s.cast.mask(name, s.partners)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Arrived(m, VectorDigest(s.masked[name])); err != nil {
			t.Fatal(err)
		}
	}
	survivors, err := c.CloseMasked()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(survivors, wantSurvivors) {
		t.Fatalf("survivors %v, want %v", survivors, wantSurvivors)
	}
	masked := s.sum(survivors)
	if err := c.Commit(masked.Digest()); err != nil {
		t.Fatal(err)
	}
	for _, name := range survivors {
		m, err := s.confirm(name, survivors)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.AddConfirmation(m); err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.CloseConfirmations()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range survivors {
		m, err := s.sites[name].Reveal(list)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil && name == liar {
			m = change(m)
		}
		if err := c.AddReveal(m); (err != nil) != (change != nil && name == liar) {
			t.Fatalf("revealing at %s: %v", name, err)
		}
	}
	if err := c.Open(context.Background(), masked.Low); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(masked.Low, s.plain(survivors)) {
		t.Error("the sum is not the plain one")
	}
	if len(c.Accusations) != 1 || c.Accusations[0].Site != liar {
		t.Errorf("accused are %v, want %s alone", c.Accusations, liar)
	}
}

func TestADealerOfBadSharesIsNamedAndTheRoundGoesOn(t *testing.T) {
	c := newCast(t, 7, 3, 1)
	s := c.dealt(t)
	s.share(t, func(name string, parcels []Message) []Message {
		if name != "site-002" {
			return parcels
		}
		// the box that was made for another site, to this one
		var other parcelPayload
		if err := json.Unmarshal(parcels[4].Envelope.Payload, &other); err != nil {
			t.Fatal(err)
		}
		parcels = slices.Clone(parcels)
		parcels[1] = c.resign(t, ParcelType, parcels[1], func(p map[string]any) { p["box"] = other.Box })
		return parcels
	})
	s.accept(t)
	finish(t, s, "site-002", without(c.names(), []string{"site-002"}), nil)
	if reason := s.coordinator.Accusations[0].Reason; !strings.Contains(reason, `dealt "site-001" bad shares`) {
		t.Errorf("the reason is %q", reason)
	}
}

func TestADealerOfSharesOfAnotherPolynomialIsNamed(t *testing.T) {
	c := newCast(t, 7, 3, 1)
	s := c.dealt(t)
	s.share(t, func(name string, parcels []Message) []Message {
		if name != "site-002" {
			return parcels
		}
		// a well-sealed box whose shares are not of what was committed to
		other, err := newSecret(c.random)
		if err != nil {
			t.Fatal(err)
		}
		wrong, _ := other.deal(5, 7)
		return dealBadly(t, s, c.sites[name], func(i int, mask, seed []byte) ([]byte, []byte) {
			if i == 5 {
				return mask, wrong[5]
			}
			return mask, seed
		})
	})
	s.accept(t)
	finish(t, s, "site-002", without(c.names(), []string{"site-002"}), nil)
}

func TestASiteThatComplainsWithoutCauseIsNamed(t *testing.T) {
	for what, change := range map[string]func(c *cast, s *stage) []map[string]any{
		"about a good parcel": func(c *cast, s *stage) []map[string]any {
			var p parcelPayload
			if err := json.Unmarshal(s.parcels["site-003"][0].Envelope.Payload, &p); err != nil {
				t.Fatal(err)
			}
			site, ephemeral := c.sites["site-003"], elementOf(p.Ephemeral)
			shared := site.seal.agree(ephemeral)
			proof, err := prover.Prove(site.seal.scalar, ristretto.Generator(), site.seal.public, ephemeral, elementOf(shared), c.random)
			if err != nil {
				t.Fatal(err)
			}
			bytes, err := proof.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			return []map[string]any{{"dealer": "site-000", "shared": shared, "proof": bytes}}
		},
		"with the wrong element": func(c *cast, s *stage) []map[string]any {
			return []map[string]any{{"dealer": "site-000", "shared": encodeElement(c.sites["site-001"].mask.public), "proof": make([]byte, 64)}}
		},
		"with nothing": func(c *cast, s *stage) []map[string]any {
			return []map[string]any{{"dealer": "site-000", "shared": []byte{}, "proof": []byte{}}}
		},
	} {
		c := newCast(t, 7, 3, 1)
		s := c.dealt(t)
		s.share(t, nil)
		for _, name := range c.names() {
			m, err := c.sites[name].Accept(s.parcels[name])
			if err != nil {
				t.Fatal(err)
			}
			if name == "site-003" {
				m = c.resign(t, AcceptanceType, m, func(p map[string]any) { p["complaints"] = change(c, s) })
			}
			if err := s.coordinator.AddAcceptance(m); (err != nil) != (name == "site-003") {
				t.Fatalf("%s: %v", what, err)
			}
		}
		var err error
		if s.partners, err = s.coordinator.CloseAcceptances(); err != nil {
			t.Fatal(err)
		}
		finish(t, s, "site-003", without(c.names(), []string{"site-003"}), nil)
	}
}

func TestASiteThatRevealsAWrongShareIsNamedAndTheSumIsOpenedWithoutIt(t *testing.T) {
	c := newCast(t, 7, 3, 1)
	s := c.dealt(t)
	s.share(t, nil)
	s.accept(t)
	finish(t, s, "site-004", c.names(), func(m Message) Message {
		return c.resign(t, RevealType, m, func(p map[string]any) {
			p["seed"].(map[string]any)["site-001"] = p["seed"].(map[string]any)["site-002"]
		})
	})
}

func TestADealerCannotPassOffAnothersEphemeralKey(t *testing.T) {
	// The complaint about such a parcel would open what the other dealt.
	c := newCast(t, 5, 3, 1)
	s := c.dealt(t)
	theirs, err := c.sites["site-000"].Share(s.roster)
	if err != nil {
		t.Fatal(err)
	}
	var stolen parcelPayload
	if err := json.Unmarshal(theirs[0].Envelope.Payload, &stolen); err != nil {
		t.Fatal(err)
	}
	parcels, err := c.sites["site-001"].Share(s.roster)
	if err != nil {
		t.Fatal(err)
	}
	for i := range parcels {
		parcels[i] = c.resign(t, ParcelType, parcels[i], func(p map[string]any) { p["ephemeral"], p["proof"] = stolen.Ephemeral, stolen.Proof })
	}
	if err := s.coordinator.AddShares("site-001", parcels); !errors.Is(err, ErrForged) {
		t.Errorf("the coordinator: %v", err)
	}
	if len(s.coordinator.Accusations) != 1 || s.coordinator.Accusations[0].Site != "site-001" {
		t.Errorf("accused are %v", s.coordinator.Accusations)
	}
	if _, err := c.sites["site-002"].Share(s.roster); err != nil {
		t.Fatal(err)
	}
	m, err := c.sites["site-002"].Accept([]Message{parcels[1]})
	if !errors.Is(err, ErrForged) {
		t.Errorf("a site to which a lying coordinator passes it on: %v, %s", err, m.Envelope.Payload)
	}
}

// dealBadly deals with a site's secrets, but with the shares that a test wants.
func dealBadly(t *testing.T, s *stage, site *Site, change func(i int, mask, seed []byte) (newMask, newSeed []byte)) []Message {
	t.Helper()
	o := site.roster
	own, _ := o.place(site.name)
	threshold := site.round.Threshold(len(o.names))
	masks, maskCommitments := site.mask.deal(threshold, len(o.names))
	seeds, seedCommitments := site.own.deal(threshold, len(o.names))
	ephemeral, err := newSecret(s.random)
	if err != nil {
		t.Fatal(err)
	}
	proof := dl.Prove(ristretto, ristretto.Generator(), ephemeral.public, ephemeral.scalar, []byte(site.name), o.proofLabel(), s.random)
	var parcels []Message
	for i, to := range o.names {
		if i == own {
			continue
		}
		mask, seed := change(i, masks[i], seeds[i])
		aead := o.box(ephemeral.agree(o.keys[i].seal), site.name, to)
		parcel, err := signMessage(site.signer, ParcelType, parcelPayload{head: site.head(), To: to,
			dealt: dealt{encodeElements(maskCommitments), encodeElements(seedCommitments), encodeElement(ephemeral.public),
				[2][]byte{encodeElement(proof.V), encodeScalar(proof.R)}},
			Box: aead.Seal(nil, make([]byte, aead.NonceSize()), slices.Concat(mask, seed), nil)})
		if err != nil {
			t.Fatal(err)
		}
		parcels = append(parcels, parcel)
	}
	return parcels
}
