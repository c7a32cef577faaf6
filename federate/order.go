package federate

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/vigie/vigie/federate/secagg"
)

// Step is a step of a round, as an order names it.
type Step string

// The steps, in their order.
const (
	StepKeys    Step = "keys"    // sign fresh keys for the round
	StepShares  Step = "shares"  // deal shares of their secrets
	StepAccept  Step = "accept"  // judge what was dealt
	StepTrain   Step = "train"   // train, and send the masked update
	StepConfirm Step = "confirm" // sign who survived
	StepReveal  Step = "reveal"  // open the masks of the sum
	StepEnd     Step = "end"     // forget the round's secrets: it is over, with a result or without
)

// Order is what the coordinator asks of a site. Fields that a step does not need
// are empty.
type Order struct {
	Step  Step   `json:"step"`
	Round uint64 `json:"round"` // rises with every attempt; see secagg.Round.Number

	// Of StepKeys: which round of the terms it is, from 0, who is in the site's
	// group, and the digest of the weights that it starts from.
	Index int      `json:"index,omitempty"`
	Group []string `json:"group,omitempty"`
	Model []byte   `json:"model,omitempty"`
	// Question is what the round asks instead of training; nil is training.
	Question *Question `json:"question,omitempty"`

	Messages []secagg.Message `json:"messages,omitempty"` // of StepShares, StepAccept, StepReveal
	Names    []string         `json:"names,omitempty"`    // partners of StepTrain, survivors of StepConfirm
	Sum      []byte           `json:"sum,omitempty"`      // digest of the masked sum, of StepConfirm

	// Weights are the global weights, and Control SCAFFOLD's, of StepTrain. They
	// do not travel with an order over a network, but beside it.
	Weights *Weights `json:"-"`
}

// Answer is what a site answers.
type Answer struct {
	Messages []secagg.Message `json:"messages,omitempty"`
	// Vector is the masked update, of StepTrain. It travels beside the answer, whose
	// message signs it.
	Vector []uint32 `json:"-"`
	// Round says how the vector is packed for a network.
	Round secagg.Round `json:"-"`
	// Sum is the vector's secagg.VectorDigest, which the site signed.
	Sum [sha256.Size]byte `json:"-"`
	// Spool is the vector, where it has arrived over a network.
	Spool Spool `json:"-"`
}

// Link is a site as the coordinator reaches it. Ask returns the site's answer,
// or an error that wraps ErrOrder for an order that the site refused, or the
// context's.
type Link interface {
	Name() string
	Ask(ctx context.Context, o Order) (Answer, error)
}

// Direct is the link to a site in the same process.
func Direct(s *Site) Link { return direct{s} }

type direct struct{ site *Site }

func (d direct) Name() string { return d.site.name }

func (d direct) Ask(ctx context.Context, o Order) (Answer, error) { return d.site.Obey(ctx, o) }

// Weights are the global variables of a model, one after the other, and what
// SCAFFOLD sends with them.
type Weights struct {
	Variables []float32
	Control   []float32 // nil but for SCAFFOLD
	// half says that the numbers are those of 16 bits (IEEE 754 binary16), and travel
	// in so many.
	half   bool
	sum    *[sha256.Size]byte
	packed *[sha256.Size]byte
}

// Digest is the SHA-256 digest of both, as little-endian float32.
func (w *Weights) Digest() [sha256.Size]byte {
	hash := sha256.New()
	buffer := make([]byte, 0, 1<<16)
	for _, part := range [][]float32{w.Variables, w.Control} {
		buffer = binary.LittleEndian.AppendUint64(buffer, uint64(len(part)))
		for _, v := range part {
			buffer = binary.LittleEndian.AppendUint32(buffer, math.Float32bits(v))
			if len(buffer) > 1<<16-16 {
				hash.Write(buffer)
				buffer = buffer[:0]
			}
		}
	}
	hash.Write(buffer)
	return [sha256.Size]byte(hash.Sum(nil))
}

// round is the secure aggregation that an order begins: the same at the
// coordinator and at every site that goes by the same terms.
func (t Terms) round(o Order, members []secagg.Member, length int) (secagg.Round, error) {
	r := secagg.Round{Federation: t.Federation, Number: o.Round, Length: length, Minimum: t.Minimum}
	if t.Bits != 0 && o.Question == nil {
		r.Bits, r.Wide = t.Bits, 2 // weight and loss have all their bits
	}
	for _, name := range o.Group {
		found := false
		for _, m := range members {
			if m.Name == name {
				r.Members, found = append(r.Members, m), true
			}
		}
		if !found {
			return secagg.Round{}, fmt.Errorf("%w: %q is in the group, but no member of the federation", ErrOrder, name)
		}
	}
	terms := t.Digest()
	task := sha256.New()
	task.Write([]byte("vigie federate task v1\x00"))
	task.Write(terms[:])
	task.Write(binary.BigEndian.AppendUint64(nil, uint64(o.Index)))
	task.Write(o.Model)
	// Everybody goes by the same list of members, whose number decides how numbers
	// are written.
	for _, m := range members {
		task.Write(binary.BigEndian.AppendUint64(nil, uint64(len(m.Name))))
		task.Write([]byte(m.Name))
		task.Write(m.Key)
	}
	if o.Question != nil {
		question := o.Question.digest()
		task.Write(question[:])
	}
	r.Task = [sha256.Size]byte(task.Sum(nil))
	return r, r.Check()
}

// length is how many numbers a site sends for an order.
func (t Terms) length(o Order, variables, trained int) int {
	if o.Question != nil {
		return wideLimbs * o.Question.Numbers
	}
	return t.vectorLength(variables, trained)
}

// vectorLength is how many numbers a site sends that has trained: its update,
// SCAFFOLD's, its weight and its loss.
func (t Terms) vectorLength(variables, trained int) int {
	if t.DP != nil { // weights and losses would have to be noisy, too
		return variables
	}
	if t.Algorithm == SCAFFOLD {
		variables += trained
	}
	return variables + 2
}
