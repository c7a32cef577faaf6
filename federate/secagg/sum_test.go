package secagg

import (
	"bytes"
	"context"
	"crypto/aes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestAChecksumIsItsLinearFunctionInWholeNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 3*stride).Draw(t, "length")
		values := rapid.SliceOfN(rapid.Uint64Range(0, 1<<48-1), 1, 50).Draw(t, "values")
		key := [32]byte{byte(n)}
		at := func(j int) uint64 { return values[j%len(values)] }
		got, err := checksum(context.Background(), key, n, at)
		if err != nil {
			t.Fatal(err)
		}
		// the oracle: coefficients block by block, sums in big integers
		block, _ := aes.NewCipher(key[:])
		p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 61), big.NewInt(1))
		var want [2]big.Int
		counter, out := make([]byte, 16), make([]byte, 16)
		for j := range n {
			binary.BigEndian.PutUint64(counter[8:], uint64(j))
			block.Encrypt(out, counter)
			for k := range want {
				r := new(big.Int).SetUint64(binary.LittleEndian.Uint64(out[8*k:]) & prime)
				want[k].Add(&want[k], r.Mul(r, new(big.Int).SetUint64(at(j))))
			}
		}
		for k := range want {
			if want[k].Mod(&want[k], p); want[k].Uint64() != got[k] {
				t.Fatalf("checksum %d of %d numbers is %d, want %d", k, n, got[k], want[k].Uint64())
			}
		}
	})
}

func TestChecksumsOfVectorsAddUpToThatOfTheirSumAndOfNoOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "length")
		sum, total := NewSum(n), Checksum{}
		key := [32]byte{1}
		for range rapid.IntRange(1, 20).Draw(t, "vectors") {
			v := make([]uint32, n)
			for j := range v {
				v[j] = rapid.Uint32().Draw(t, "v")
			}
			cut := rapid.IntRange(0, n).Draw(t, "cut") // in two parts, as it arrives
			sum.Add(0, v[:cut])
			sum.Add(cut, v[cut:])
			c, err := vectorChecksum(context.Background(), key, v)
			if err != nil {
				t.Fatal(err)
			}
			total = total.Plus(c)
		}
		if got, err := sum.checksum(context.Background(), key); err != nil || got != total {
			t.Fatalf("the sum's checksum is %v, the vectors' %v (%v)", got, total, err)
		}
		j := rapid.IntRange(0, n-1).Draw(t, "changed")
		if rapid.Bool().Draw(t, "high") {
			sum.High[j] ^= 1 << rapid.IntRange(0, 15).Draw(t, "bit")
		} else {
			sum.Low[j] ^= 1 << rapid.IntRange(0, 31).Draw(t, "bit")
		}
		if got, _ := sum.checksum(context.Background(), key); got == total {
			t.Fatalf("another sum has the same checksum")
		}
	})
}

// confirming plays a round until the survivors have confirmed. change may alter a
// confirmation, or make it nil.
func confirming(t *testing.T, commit func(*cast, []string) *Sum, change func(*cast, Message) *Message) (*cast, *Coordinator, *Sum) {
	t.Helper()
	c := newCast(t, 7, 50, 4)
	s := c.dealt(t)
	s.share(t, nil)
	s.accept(t)
	for _, name := range s.partners {
		m, err := c.mask(name, s.partners)
		if err != nil {
			t.Fatal(err)
		}
		if name == "site-005" {
			continue // lost on the way
		}
		if err := s.coordinator.Arrived(m, VectorDigest(c.masked[name])); err != nil {
			t.Fatal(err)
		}
	}
	survivors, err := s.coordinator.CloseMasked()
	if err != nil {
		t.Fatal(err)
	}
	sum := commit(c, survivors)
	digest := sum.Digest()
	if err := s.coordinator.Commit(digest); err != nil {
		t.Fatal(err)
	}
	for _, name := range survivors {
		m, err := c.sites[name].Confirm(t.Context(), survivors, digest[:], c.masked[name])
		if err != nil {
			t.Fatal(err)
		}
		if changed := change(c, m); changed != nil {
			if err := s.coordinator.AddConfirmation(*changed); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c, s.coordinator, sum
}

func honest(c *cast, survivors []string) *Sum { return c.sum(survivors) }
func asItIs(_ *cast, m Message) *Message      { return &m }

func none(string) ([]uint32, error) { return nil, nil }

func TestAnAuditorNeedsNoVectorIfAllHaveVouched(t *testing.T) {
	_, a, sum := confirming(t, honest, asItIs)
	if unvouched, err := a.Audit(t.Context(), sum, none); err != nil || len(unvouched) != 0 {
		t.Errorf("%v have not vouched (%v)", unvouched, err)
	}
	sum.Low[3]++
	if _, err := a.Audit(t.Context(), sum, none); !errors.Is(err, ErrForged) {
		t.Errorf("another sum than was committed to: %v", err)
	}
}

func TestACoordinatorThatCommitsToAnotherSumIsFoundOut(t *testing.T) {
	for what, commit := range map[string]func(*cast, []string) *Sum{
		"a number changed": func(c *cast, names []string) *Sum {
			s := c.sum(names)
			s.Low[7] += 1000
			return s
		},
		"a survivor left out": func(c *cast, names []string) *Sum { return c.sum(names[1:]) },
		"one that was lost let in": func(c *cast, names []string) *Sum {
			s := c.sum(names)
			s.Add(0, c.masked["site-005"])
			return s
		},
		"a carry changed": func(c *cast, names []string) *Sum {
			s := c.sum(names)
			s.High[49]--
			return s
		},
	} {
		c, a, sum := confirming(t, commit, asItIs)
		for who, vector := range map[string]func(string) ([]uint32, error){"an auditor": none, "one who has the vectors": func(name string) ([]uint32, error) { return c.masked[name], nil }} {
			if _, err := a.Audit(t.Context(), sum, vector); !errors.Is(err, ErrForged) {
				t.Errorf("%s, to %s: %v", what, who, err)
			}
		}
		if len(a.Accusations) != 0 {
			t.Errorf("%s: %v are accused", what, a.Accusations)
		}
	}
}

func TestASiteThatIsLostBeforeItConfirmsIsVouchedForByItsSignedVector(t *testing.T) {
	c, a, sum := confirming(t, honest, func(_ *cast, m Message) *Message {
		if m.From == "site-003" {
			return nil
		}
		return &m
	})
	if _, err := a.Audit(t.Context(), sum, none); !errors.Is(err, ErrForged) {
		t.Errorf("without its vector: %v", err)
	}
	asked := func(name string) ([]uint32, error) {
		if name != "site-003" {
			t.Errorf("the vector of %s is asked for", name)
		}
		return c.masked[name], nil
	}
	if unvouched, err := a.Audit(t.Context(), sum, asked); err != nil || !slices.Equal(unvouched, []string{"site-003"}) {
		t.Errorf("%v have not vouched (%v)", unvouched, err)
	}
	other := func(string) ([]uint32, error) { return make([]uint32, 50), nil }
	if _, err := a.Audit(t.Context(), sum, other); !errors.Is(err, ErrForged) {
		t.Errorf("with another vector than it signed: %v", err)
	}
}

func TestASiteThatSignsAWrongChecksumIsNamedAndTheRoundGoesOn(t *testing.T) {
	c, a, sum := confirming(t, honest, func(c *cast, m Message) *Message {
		if m.From == "site-002" {
			m = c.resign(t, ConfirmType, m, func(fields map[string]any) { fields["checksum"] = []uint64{1, 2} })
		}
		return &m
	})
	unvouched, err := a.Audit(t.Context(), sum, func(name string) ([]uint32, error) { return c.masked[name], nil })
	if err != nil || !slices.Equal(unvouched, []string{"site-002"}) {
		t.Fatalf("%v have not vouched (%v)", unvouched, err)
	}
	if len(a.Accusations) != 1 || a.Accusations[0].Site != "site-002" {
		t.Errorf("accused are %v", a.Accusations)
	}
	list, err := a.CloseConfirmations()
	if err != nil || len(list) != 5 {
		t.Fatalf("%d confirmations count (%v)", len(list), err)
	}
	for _, m := range list {
		reveal, err := c.sites[m.From].Reveal(list)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.AddReveal(reveal); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Open(t.Context(), sum.Low); err != nil || !slices.Equal(sum.Low, c.plain(a.survivors)) {
		t.Errorf("the sum is not the plain one (%v)", err)
	}
}

func TestAVectorThatItsSiteDidNotSignDoesNotCount(t *testing.T) {
	c := newCast(t, 5, 4, 1)
	s := c.dealt(t)
	s.share(t, nil)
	s.accept(t)
	m, err := c.mask("site-001", s.partners)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.coordinator.Arrived(m, VectorDigest(make([]uint32, 4))); !errors.Is(err, ErrForged) {
		t.Errorf("another vector than was signed: %v", err)
	}
	m.From = "site-002"
	if err := s.coordinator.Arrived(m, VectorDigest(c.masked["site-001"])); !errors.Is(err, ErrForged) {
		t.Errorf("for another site: %v", err)
	}
}

func TestARoundsSecretsAreErasedWhenItIsOver(t *testing.T) {
	c := newCast(t, 4, 5, 9)
	secrets := map[string][][]byte{}
	if _, _, _, err := c.play(t, nil, func(s step, name string) {
		if s == stepReveal {
			state := c.sites[name].state
			secrets[name] = append([][]byte{state.Seal, state.Mask, state.Own}, state.OwnShares...)
			for _, other := range c.names() {
				if other != name {
					secrets[name] = append(secrets[name], state.MaskShares[other])
				}
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range c.names() {
		data, err := c.sites[name].MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		before, err := c.start(t, name).MarshalBinary()
		if err != nil || !strings.Contains(string(before), `"own":"`) {
			t.Fatalf("the state of a round that is not over holds no secrets: %s (%v)", before, err)
		}
		for i, secret := range secrets[name] {
			if encoded := base64.StdEncoding.EncodeToString(secret); len(secret) == 0 || bytes.Contains(data, []byte(encoded)) {
				t.Errorf("%s still keeps its secret %d", name, i)
			}
		}
		// it can repeat what it said, and nothing else
		c.restart(t, name)
		site := c.sites[name]
		if _, err := site.Reveal(nil); err != nil {
			t.Errorf("revealing again: %v", err)
		}
		if _, err := site.Share(site.state.Roster); !errors.Is(err, ErrStep) {
			t.Errorf("dealing again: %v", err)
		}
		if _, err := site.Mask(t.Context(), site.state.Partners, make([]uint32, 5)); !errors.Is(err, ErrStep) {
			t.Errorf("masking again: %v", err)
		}
	}
	// before it is over, too
	site := c.start(t, "site-000")
	site.Erase()
	if _, err := site.Share(nil); !errors.Is(err, ErrStep) || !site.Erased() {
		t.Errorf("dealing after the end: %v", err)
	}
}

func BenchmarkChecksum(b *testing.B) {
	v := make([]uint32, 1_000_000)
	for j := range v {
		v[j] = uint32(j) * 2654435761
	}
	b.SetBytes(int64(4 * len(v)))
	for b.Loop() {
		if _, err := vectorChecksum(context.Background(), [32]byte{1}, v); err != nil {
			b.Fatal(err)
		}
	}
}
