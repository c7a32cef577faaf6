package secagg

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// cast is a round with all its sites and what each of them puts in.
type cast struct {
	round   Round
	signers map[string]ed25519.PrivateKey
	sites   map[string]*Site
	vectors map[string][]uint32
	masked  map[string][]uint32 // what has left
	random  *rand.ChaCha8
}

func newCast(t tester, n, length int, seed byte) *cast {
	t.Helper()
	c := &cast{signers: map[string]ed25519.PrivateKey{}, sites: map[string]*Site{}, vectors: map[string][]uint32{}, masked: map[string][]uint32{}, random: rand.NewChaCha8([32]byte{seed})}
	c.round = Round{Federation: "north", Number: 7, Task: [32]byte{1}, Length: length, Minimum: 3}
	for i := range n {
		name := fmt.Sprintf("site-%03d", i)
		var key [32]byte
		c.random.Read(key[:])
		c.signers[name] = ed25519.NewKeyFromSeed(key[:])
		c.round.Members = append(c.round.Members, Member{name, c.signers[name].Public().(ed25519.PublicKey)})
		v := make([]uint32, length)
		for j := range v {
			v[j] = uint32(c.random.Uint64())
		}
		c.vectors[name] = v
	}
	for _, m := range c.round.Members {
		c.sites[m.Name] = c.start(t, m.Name)
	}
	return c
}

func (c *cast) start(t tester, name string) *Site {
	t.Helper()
	s, err := NewSite(c.round, name, c.signers[name], c.random)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mask masks a site's vector and keeps what leaves.
func (c *cast) mask(name string, partners []string) (Message, error) {
	v := slices.Clone(c.vectors[name])
	m, err := c.sites[name].Mask(context.Background(), partners, v)
	if err == nil {
		c.masked[name] = v
	}
	return m, err
}

// sum is that of what has left the named sites.
func (c *cast) sum(names []string) *Sum {
	s := NewSum(c.round.Length)
	for _, name := range names {
		if v := c.masked[name]; v != nil {
			s.Add(0, v)
		}
	}
	return s
}

// confirm has a site confirm survivors and the sum of what they sent.
func (c *cast) confirm(name string, survivors []string) (Message, error) {
	digest := c.sum(survivors).Digest()
	return c.sites[name].Confirm(context.Background(), survivors, digest[:], c.masked[name])
}

// add adds modulo 2³².
func add(sum, v []uint32) {
	for j := range sum {
		sum[j] += v[j]
	}
}

func (c *cast) names() []string { return sortedKeys(c.sites) }

// restart puts each site through its saved state, as a killed process would.
func (c *cast) restart(t tester, name string) {
	t.Helper()
	data, err := c.sites[name].MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if c.sites[name], err = RestoreSite(c.round, name, c.signers[name], data); err != nil {
		t.Fatal(err)
	}
}

// play runs a whole round through the real machines. lost says at which step a
// site falls silent; hook, if not nil, is called for each site before each
// step.
func (c *cast) play(t tester, lost map[string]step, hook func(step, string)) (sum []uint32, survivors []string, coordinator *Coordinator, err error) {
	t.Helper()
	coordinator, err = NewCoordinator(c.round)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	each := func(s step, among []string, do func(name string, site *Site)) {
		for _, name := range among {
			if at, falls := lost[name]; falls && at <= s {
				continue
			}
			if hook != nil {
				hook(s, name)
			}
			do(name, c.sites[name])
		}
	}
	each(stepKeys, c.names(), func(_ string, site *Site) { must(coordinator.AddKeys(site.Keys())) })
	roster, err := coordinator.CloseKeys()
	if err != nil {
		return nil, nil, coordinator, err
	}
	var entered []string
	for _, m := range roster {
		entered = append(entered, m.From)
	}
	each(stepShares, entered, func(name string, site *Site) {
		parcels, err := site.Share(roster)
		must(err)
		must(coordinator.AddShares(name, parcels))
	})
	parcels, err := coordinator.CloseShares()
	if err != nil {
		return nil, nil, coordinator, err
	}
	each(stepAccept, sortedKeys(parcels), func(name string, site *Site) {
		acceptance, err := site.Accept(parcels[name])
		must(err)
		must(coordinator.AddAcceptance(acceptance))
	})
	partners, err := coordinator.CloseAcceptances()
	if err != nil {
		return nil, nil, coordinator, err
	}
	each(stepMasked, partners, func(name string, _ *Site) {
		m, err := c.mask(name, partners)
		must(err)
		must(coordinator.Arrived(m, VectorDigest(c.masked[name])))
	})
	survivors, err = coordinator.CloseMasked()
	if err != nil {
		return nil, nil, coordinator, err
	}
	masked := c.sum(survivors)
	must(coordinator.Commit(masked.Digest()))
	each(stepConfirm, survivors, func(name string, _ *Site) {
		m, err := c.confirm(name, survivors)
		must(err)
		must(coordinator.AddConfirmation(m))
	})
	_, err = coordinator.Audit(context.Background(), masked, func(name string) ([]uint32, error) { return c.masked[name], nil })
	must(err)
	confirmations, err := coordinator.CloseConfirmations()
	if err != nil {
		return nil, nil, coordinator, err
	}
	each(stepReveal, survivors, func(_ string, site *Site) {
		m, err := site.Reveal(confirmations)
		must(err)
		must(coordinator.AddReveal(m))
	})
	return masked.Low, survivors, coordinator, coordinator.Open(context.Background(), masked.Low)
}

func (c *cast) plain(names []string) []uint32 {
	sum := make([]uint32, c.round.Length)
	for _, name := range names {
		add(sum, c.vectors[name])
	}
	return sum
}

func TestTheOpenedSumIsThePlainSumOfTheSurvivorsWhoeverIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(3, 6).Draw(t, "sites")
		c := newCast(t, n, rapid.IntRange(1, 40).Draw(t, "length"), rapid.Byte().Draw(t, "seed"))
		lost := map[string]step{}
		for _, name := range c.names() {
			if rapid.IntRange(0, 3).Draw(t, "falls") == 0 {
				lost[name] = step(rapid.IntRange(int(stepKeys), int(stepReveal)).Draw(t, "at"))
			}
		}
		restart := rapid.Bool().Draw(t, "restart")
		sum, survivors, coordinator, err := c.play(t, lost, func(_ step, name string) {
			if restart {
				c.restart(t, name)
			}
		})
		entered, helped := 0, 0
		for _, name := range c.names() {
			at, falls := lost[name]
			if !falls || at > stepKeys {
				entered++
			}
			if !falls {
				helped++
			}
		}
		if enough := helped >= c.round.Threshold(entered); enough != (err == nil) {
			t.Fatalf("%d of %d helped to the end, the threshold is %d: %v", helped, entered, c.round.Threshold(entered), err)
		}
		if err != nil {
			if !errors.Is(err, ErrTooFew) {
				t.Fatal(err)
			}
			return
		}
		if !slices.Equal(sum, c.plain(survivors)) {
			t.Fatalf("the sum over %v is not the plain one", survivors)
		}
		if len(coordinator.Accusations) != 0 {
			t.Fatalf("honest sites are accused: %v", coordinator.Accusations)
		}
	})
}

// tester is what both testing.TB and a property have.
type tester interface {
	Helper()
	Fatal(...any)
}

func TestAMaskedVectorSaysNothingOfWhatIsUnderIt(t *testing.T) {
	// Two vectors that differ everywhere, masked for the same partners in many
	// rounds: the top bits of what leaves must be as random for one as for the
	// other. Chi-square over 16 bins, 15 degrees of freedom; 44 is exceeded once
	// in ten thousand, and the seeds are fixed.
	for _, value := range []uint32{0, 1 << 31} {
		c := newCast(t, 3, 4096, 3)
		for name := range c.vectors {
			for j := range c.vectors[name] {
				c.vectors[name][j] = value
			}
		}
		var seen []uint32
		c.play(t, nil, func(s step, name string) {
			if s == stepConfirm && seen == nil {
				// what left the first site, made again from its state
				site := c.sites[c.names()[0]]
				site.state.Masked = false
				seen = slices.Clone(c.vectors[site.name])
				if _, err := site.Mask(context.Background(), site.state.Partners, seen); err != nil {
					t.Fatal(err)
				}
			}
		})
		bins := make([]float64, 16)
		for _, v := range seen {
			bins[v>>28]++
		}
		chi, expected := 0.0, float64(len(seen))/16
		for _, n := range bins {
			chi += (n - expected) * (n - expected) / expected
		}
		if chi > 44 {
			t.Errorf("what leaves a site with the value %d in every place is not uniform: chi-square %.1f of 15", value, chi)
		}
	}
}

func TestFewerSharesThanTheThresholdFitEverySecret(t *testing.T) {
	s, err := newSecret(rand.NewChaCha8([32]byte{5}))
	if err != nil {
		t.Fatal(err)
	}
	const threshold = 4
	shares, commitments := s.deal(threshold, 6)
	some := map[int][]byte{0: shares[0], 2: shares[2], 5: shares[5]}
	if _, err := recoverSecret(threshold, some); !errors.Is(err, ErrTooFew) {
		t.Fatalf("three shares of a sharing that needs four: %v", err)
	}
	// with each value of the missing share, another secret comes out
	secrets := map[string]bool{}
	for i := range 8 {
		guess := maps.Clone(some)
		guess[1] = encodeScalar(ristretto.NewScalar().SetUint64(uint64(i)))
		recovered, err := recoverSecret(threshold, guess)
		if err != nil {
			t.Fatal(err)
		}
		secrets[string(recovered.bytes())] = true
	}
	if len(secrets) != 8 {
		t.Errorf("8 guesses of the missing share lead to %d secrets", len(secrets))
	}
	some[1] = shares[1]
	recovered, err := recoverSecret(threshold, some)
	if err != nil || string(recovered.bytes()) != string(s.bytes()) {
		t.Errorf("four good shares do not recover the secret: %v", err)
	}
	for i, share := range shares {
		if !good(share, i, commitments) || good(share, (i+1)%6, commitments) {
			t.Errorf("share %d is judged wrongly", i)
		}
	}
}

func TestStepsSaidAgainAreTheSameAndOthersAreRefused(t *testing.T) {
	c := newCast(t, 4, 5, 9)
	var refused []string
	want := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrStep) {
			t.Errorf("%s: %v", what, err)
		}
		refused = append(refused, what)
	}
	name := c.names()[1]
	_, _, _, err := c.play(t, nil, func(s step, at string) {
		if at != name {
			return
		}
		site := c.sites[name]
		switch s {
		case stepShares:
			_, err := site.Accept(nil)
			want("accepting before dealing", err)
			_, err = site.Mask(context.Background(), c.names(), make([]uint32, 5))
			want("masking before accepting", err)
		case stepMasked:
			_, err := c.confirm(name, c.names())
			want("confirming before masking", err)
			_, err = site.Accept(nil)
			want("accepting other parcels", err)
		case stepConfirm:
			_, err := site.Mask(context.Background(), c.names(), make([]uint32, 5))
			want("masking a second vector", err)
			_, err = site.Reveal(nil)
			want("revealing before confirming", err)
		case stepReveal:
			first, err := c.confirm(name, c.names())
			if err != nil {
				t.Fatal(err)
			}
			again, err := c.confirm(name, c.names())
			if err != nil || string(first.Envelope.Signature) != string(again.Envelope.Signature) {
				t.Errorf("confirming the same survivors again: %v", err)
			}
			_, err = c.confirm(name, c.names()[:3])
			want("confirming other survivors", err)
			other := c.sum(c.names()[1:]).Digest()
			_, err = site.Confirm(t.Context(), c.names(), other[:], c.masked[name])
			want("confirming another sum", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(refused) != 8 {
		t.Errorf("only %d steps were tried: %v", len(refused), refused)
	}
}

func TestARoundThatCannotBeRunIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Round){
		"no name":             func(r *Round) { r.Federation = "" },
		"a name with a slash": func(r *Round) { r.Members[1].Name = "a/b" },
		"out of order":        func(r *Round) { r.Members[0], r.Members[1] = r.Members[1], r.Members[0] },
		"twice the same":      func(r *Round) { r.Members[1].Name = r.Members[0].Name },
		"one key twice":       func(r *Round) { r.Members[1].Key = r.Members[0].Key },
		"a short key":         func(r *Round) { r.Members[1].Key = r.Members[1].Key[:5] },
		"no numbers":          func(r *Round) { r.Length = 0 },
		"too many numbers":    func(r *Round) { r.Length = MaxLength + 1 },
		"two sites":           func(r *Round) { r.Minimum = 2 },
		"too few members":     func(r *Round) { r.Minimum = 9 },
	} {
		c := newCast(t, 4, 2, 1)
		r := c.round
		r.Members = slices.Clone(r.Members)
		change(&r)
		if err := r.Check(); !errors.Is(err, ErrRound) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := NewCoordinator(r); !errors.Is(err, ErrRound) {
			t.Errorf("%s, at the coordinator: %v", name, err)
		}
	}
	c := newCast(t, 4, 2, 1)
	if _, err := NewSite(c.round, "site-000", c.signers["site-001"], c.random); !errors.Is(err, ErrRound) {
		t.Errorf("another's signing key: %v", err)
	}
	if _, err := NewSite(c.round, "elsewhere", c.signers["site-001"], c.random); !errors.Is(err, ErrRound) {
		t.Errorf("no member: %v", err)
	}
}

func TestEveryFieldOfARoundIsInItsDigest(t *testing.T) {
	seen := map[[32]byte]string{}
	for _, change := range []struct {
		name string
		do   func(*Round)
	}{
		{"nothing", func(*Round) {}},
		{"federation", func(r *Round) { r.Federation = "south" }},
		{"number", func(r *Round) { r.Number++ }},
		{"task", func(r *Round) { r.Task[3] = 1 }},
		{"length", func(r *Round) { r.Length++ }},
		{"minimum", func(r *Round) { r.Minimum++ }},
		{"a member less", func(r *Round) { r.Members = r.Members[:4] }},
		{"a name", func(r *Round) { r.Members[4].Name = "zz" }},
		{"a key", func(r *Round) { r.Members[4].Key = slices.Repeat(ed25519.PublicKey{1}, 32) }},
	} {
		r := newCast(t, 5, 2, 1).round
		change.do(&r)
		if other, same := seen[r.Digest()]; same {
			t.Errorf("a change of %s has the same digest as %s", change.name, other)
		}
		seen[r.Digest()] = change.name
	}
}

func TestAStateOfAnotherRoundIsNotRestored(t *testing.T) {
	c := newCast(t, 3, 2, 1)
	data, err := c.sites["site-000"].MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	other := c.round
	other.Number++
	if _, err := RestoreSite(other, "site-000", c.signers["site-000"], data); !errors.Is(err, ErrStep) {
		t.Errorf("another round: %v", err)
	}
	if _, err := RestoreSite(c.round, "site-001", c.signers["site-001"], data); !errors.Is(err, ErrStep) {
		t.Errorf("another site: %v", err)
	}
	if _, err := RestoreSite(c.round, "site-000", c.signers["site-000"], data[:len(data)/2]); err == nil || !strings.Contains(err.Error(), "restoring round 7") {
		t.Errorf("half a state: %v", err)
	}
}
