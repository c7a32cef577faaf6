package secagg

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits of a round.
const (
	MaxSites  = 1000    // that may take part in a round; what each pair of sites costs grows with the square
	MaxName   = 64      // bytes of a site's or federation's name
	MaxLength = 1 << 30 // numbers of a vector
	minSites  = 3       // with two, either learns the other's vector from the sum
)

// Errors that callers branch on. Each is wrapped with what happened.
var (
	// ErrRound is returned for the description of a round that cannot be run.
	ErrRound = errors.New("not a round that can be run")
	// ErrForged is returned for a message that its sender did not sign, or not
	// for this round and step, or that is not in the form of one.
	ErrForged = errors.New("not a valid message of this round")
	// ErrTooFew is returned when fewer sites are left than the threshold: the
	// round ends without a result, and nothing of any site is learned.
	ErrTooFew = errors.New("too few sites are left")
	// ErrStep is returned for a step that is taken twice with other content, or
	// before another. A site that meets it must not go on with the round.
	ErrStep = errors.New("not the step that this round is at")
)

// Member is a site that may take part in a round.
type Member struct {
	Name string            // 1 to MaxName bytes of a-z, 0-9, '-', '.'
	Key  ed25519.PublicKey // of the site's certificate
}

// Round is what a round is about. Every signature covers its digest, so no
// message of one round is any good in another. A site makes its own Round from
// the consortium's policy and what it was asked, never from what the coordinator
// says that others agreed to.
type Round struct {
	Federation string
	// Number rises from round to round. A site keeps the last one on disk and
	// takes part in no round with the same number or a lower one.
	Number uint64
	// Task is the digest of what the vectors mean: model, parameters, policy.
	Task [sha256.Size]byte
	// Length is how many numbers a vector has.
	Length int
	// Minimum is how many sites a sum must at least consist of; the threshold
	// may ask for more.
	Minimum int
	// Bits, if not 0, takes all numbers but the last Wide ones modulo 2^Bits, so that
	// each of them is sent in so many bits: see Pack.
	Bits, Wide int
	// Members are all who may take part, in the order of their names.
	Members []Member
}

func validName(name string) bool {
	return name != "" && len(name) <= MaxName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}

// Check returns an error that wraps ErrRound if no round can be run so.
func (r Round) Check() error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("secagg: checking round %d of %q: %w: %s", r.Number, r.Federation, ErrRound, fmt.Sprintf(format, arguments...))
	}
	switch {
	case !validName(r.Federation):
		return fail("the federation's name needs 1 to %d bytes of a-z, 0-9, '-' and '.'", MaxName)
	case r.Length < 1 || r.Length > MaxLength:
		return fail("%d numbers a vector, want 1 to %d", r.Length, MaxLength)
	case r.Bits != 0 && (r.Bits < minBits || r.Bits >= 32) || r.Wide < 0 || r.Wide > r.Length || r.Bits == 0 && r.Wide != 0:
		return fail("numbers of %d bits but for the last %d, want %d to 31 bits, or 0 for 32 and no exception", r.Bits, r.Wide, minBits)
	case r.Minimum < minSites:
		return fail("a sum of %d sites; fewer than %d hide nothing from each other", r.Minimum, minSites)
	case len(r.Members) < r.Minimum || len(r.Members) > MaxSites:
		return fail("%d members, want %d to %d", len(r.Members), r.Minimum, MaxSites)
	}
	keys := map[string]string{}
	for i, m := range r.Members {
		if !validName(m.Name) {
			return fail("member %d has the name %q; a name needs 1 to %d bytes of a-z, 0-9, '-' and '.'", i, m.Name, MaxName)
		}
		if i > 0 && r.Members[i-1].Name >= m.Name {
			return fail("members %q and %q are not in order, or the same", r.Members[i-1].Name, m.Name)
		}
		if len(m.Key) != ed25519.PublicKeySize {
			return fail("member %q has a key of %d bytes, want %d", m.Name, len(m.Key), ed25519.PublicKeySize)
		}
		if other, taken := keys[string(m.Key)]; taken {
			return fail("members %q and %q have the same key", other, m.Name)
		}
		keys[string(m.Key)] = m.Name
	}
	return nil
}

// Threshold is how many sites must help to open a sum when n sites have entered
// their keys: more than two thirds of them, and at least Minimum.
func (r Round) Threshold(n int) int { return max(r.Minimum, 2*n/3+1) }

// Digest is the SHA-256 digest of all fields.
func (r Round) Digest() [sha256.Size]byte {
	h := []byte("vigie secagg round v1\x00")
	h = appendField(h, []byte(r.Federation))
	h = binary.BigEndian.AppendUint64(h, r.Number)
	h = append(h, r.Task[:]...)
	h = binary.BigEndian.AppendUint64(h, uint64(r.Length))
	h = binary.BigEndian.AppendUint64(h, uint64(r.Minimum))
	if r.Bits != 0 {
		h = append(h, "narrow"...)
		h = binary.BigEndian.AppendUint64(h, uint64(r.Bits))
		h = binary.BigEndian.AppendUint64(h, uint64(r.Wide))
	}
	h = binary.BigEndian.AppendUint64(h, uint64(len(r.Members)))
	for _, m := range r.Members {
		h = appendField(h, []byte(m.Name))
		h = appendField(h, m.Key)
	}
	return sha256.Sum256(h)
}

// appendField appends a field preceded by its length, so that no two lists of
// fields have the same bytes.
func appendField(b, field []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(len(field)))
	return append(b, field...)
}

func (r Round) member(name string) (Member, bool) {
	i, found := slices.BinarySearchFunc(r.Members, name, func(m Member, name string) int { return strings.Compare(m.Name, name) })
	if !found {
		return Member{}, false
	}
	return r.Members[i], true
}
