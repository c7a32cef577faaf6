package federate

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	rand2 "math/rand/v2"
	"sync"

	"github.com/vigie/vigie/federate/secagg"
)

// Trainer learns from a site's own examples.
type Trainer interface {
	// Size is how many variables the model has, and how many of them, the first,
	// are trained; the others are running statistics.
	Size() (variables, trained int)
	// Examples is how many examples the site has.
	Examples() int
	// Train moves the variables by one round of local training and returns the
	// number of steps and their mean loss. The same work leads to the same
	// variables.
	Train(ctx context.Context, w Work) (steps int, loss float64, err error)
}

// Work is one round of local training.
type Work struct {
	Terms Terms
	Round int     // of the terms, from 0
	Rate  float64 // of this round
	// Variables are the global ones, moved in place.
	Variables []float32
	// Correction is added to each gradient of the trained variables, if not nil.
	Correction []float32
	// Own are the site's own variables, of Terms.Personal, moved in place.
	Own  []float32
	Seed uint64 // of the site's order of examples
}

// SiteOptions says what a site is.
type SiteOptions struct {
	Name    string
	Terms   Terms           // that the hospital agreed to
	Members []secagg.Member // of the federation, in the order of their names, this one among them
	Signer  crypto.Signer   // of the site's certificate
	Trainer Trainer         // nil: the site answers questions alone
	// Answers answers what is asked besides training, as far as the terms allow;
	// nil: nothing is answered.
	Answers Answerer
	Keeper  Keeper    // keeps what must outlive the process; nil: nothing does
	Random  io.Reader // of keys; nil: crypto/rand
	Seed    uint64    // of local training
	// Ledger is the hospital's book of privacy, which may refuse a round; nil: the
	// site's own account alone counts. Noise is where noise and patients are drawn
	// from: nil, crypto/rand, but in tests.
	Ledger Ledger
	Noise  io.Reader
	// Tamper, if not nil, changes what the site is about to send, after it was
	// clipped, as a malicious site would. For simulations of attacks alone.
	Tamper func(ctx context.Context, d *Draft) error
}

// Draft is what a site has learnt and is about to write in fixed point and mask.
type Draft struct {
	Round  int       // of the terms, from 0
	Group  []string  // that the sum will be of
	Global []float32 // variables that the round began with
	Update []float32 // changed in place
	Weight float64   // that the site counts for, 0 to 1
}

// Site is a hospital's side of a federation. It obeys one order at a time.
type Site struct {
	SiteOptions
	name string

	mu      sync.Mutex
	keep    memory // what Keeper holds
	round   secagg.Round
	session *secagg.Site
	vector  []uint32  // masked, until the round is over
	kept    *uint32   // first of the vector that Keeper holds
	control []float32 // of SCAFFOLD, after the last round that counted
	pending []float32 // what it becomes if this one counts
	own     personal
	account *account // of privacy; nil without
}

// NewSite makes a site ready, or goes on where its keeper says that it was.
func NewSite(o SiteOptions) (*Site, error) {
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Trainer == nil && o.Answers == nil || o.Signer == nil {
		return nil, fmt.Errorf("federate: making a site of %q: it needs a trainer, or what answers questions, and a signing key", o.Name)
	}
	if err := o.Terms.Check(len(o.Members)); err != nil {
		return nil, err
	}
	s := &Site{SiteOptions: o, name: o.Name}
	variables, trained := s.size()
	if o.Trainer != nil && (variables < 1 || trained < 1 || trained > variables || o.Trainer.Examples() < 1) {
		return nil, fmt.Errorf("federate: making a site of %q: %d variables, %d of them trained, on %d examples: want at least one of each", o.Name, variables, trained, o.Trainer.Examples())
	}
	if o.Terms.Algorithm == SCAFFOLD {
		s.control = make([]float32, trained)
	}
	if err := s.takePersonal(); err != nil {
		return nil, err
	}
	if err := s.checkPrivate(); err != nil {
		return nil, err
	}
	if err := s.openAccount(); err != nil {
		return nil, err
	}
	if err := s.restore(); err != nil {
		return nil, err
	}
	return s, nil
}

// size is that of the trainer's model.
func (s *Site) size() (variables, trained int) {
	if s.Trainer == nil {
		return 0, 0
	}
	return s.Trainer.Size()
}

func (s *Site) refuse(o Order, format string, arguments ...any) (Answer, error) {
	return Answer{}, fmt.Errorf("federate: obeying %q in round %d at %q: %w: %s", o.Step, o.Round, s.name, ErrOrder, fmt.Sprintf(format, arguments...))
}

// Obey follows an order, and returns the same answer if the same order comes
// again. Before an answer leaves, what the site must not forget is kept.
func (s *Site) Obey(ctx context.Context, o Order) (Answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Step == StepKeys {
		return s.begin(o)
	}
	if s.session == nil || o.Round != s.round.Number {
		return s.refuse(o, "the site is at round %d", s.keep.Round)
	}
	var answer Answer
	var err error
	switch o.Step {
	case StepShares:
		answer.Messages, err = s.session.Share(o.Messages)
	case StepAccept:
		answer.Messages, err = one(s.session.Accept(o.Messages))
	case StepTrain:
		if answer.Vector, err = s.train(ctx, o); err == nil {
			answer.Messages, err = one(s.session.Vector())
		}
		if err == nil {
			answer.Round = s.round
			answer.Sum, err = s.session.VectorDigest()
		}
	case StepConfirm:
		pinned, answered := s.keep.Pinned, maps.Clone(s.keep.Answered)
		if err = errors.Join(s.enough(o.Names), s.quorate(o.Names), s.tells(o.Names), s.pin(o.Names)); err == nil {
			answer.Messages, err = one(s.session.Confirm(ctx, o.Names, o.Sum, s.vector))
		}
		if err != nil { // nothing was agreed to
			s.keep.Pinned, s.keep.Answered = pinned, answered
		}
	case StepReveal:
		if answer.Messages, err = one(s.session.Reveal(o.Messages)); err == nil {
			if s.pending != nil {
				s.control, s.pending = s.pending, nil
			}
			s.own.count()
			s.vector = nil
		}
	case StepEnd: // a site that has not revealed is in no sum
		s.session.Erase()
		s.vector, s.pending, s.own.next = nil, nil, nil
	default:
		return s.refuse(o, "there is no such step")
	}
	if err != nil {
		return Answer{}, fmt.Errorf("federate: obeying %q in round %d at %q: %w", o.Step, o.Round, s.name, err)
	}
	if err := s.save(); err != nil {
		return Answer{}, err
	}
	return answer, nil
}

func one(m secagg.Message, err error) ([]secagg.Message, error) {
	return []secagg.Message{m}, err
}

// begin enters a round with a number above all that the site has entered.
func (s *Site) begin(o Order) (Answer, error) {
	if s.session != nil && o.Round == s.round.Number && sameOrder(o, s.keep.Order) {
		if err := s.save(); err != nil { // it may have failed the first time
			return Answer{}, err
		}
		return Answer{Messages: []secagg.Message{s.session.Keys()}}, nil
	}
	if o.Round <= s.keep.Round {
		return s.refuse(o, "the site has entered round %d: a round that was entered does not begin again", s.keep.Round)
	}
	if o.Question != nil {
		if err := s.allows(*o.Question); err != nil {
			return s.refuse(o, "%v", err)
		}
	} else if s.Trainer == nil {
		return s.refuse(o, "the site does not train")
	}
	if o.Index < 0 || o.Index >= s.Terms.Rounds && (o.Question == nil || o.Index > s.Terms.Rounds) || len(o.Model) != sha256.Size {
		return s.refuse(o, "round %d of %d, with a model digest of %d bytes", o.Index+1, s.Terms.Rounds, len(o.Model))
	}
	if err := s.pinned(o, nil); err != nil {
		return s.refuse(o, "%v", err)
	}
	if least := s.Terms.Least(len(s.Members)); s.Terms.together(o, len(s.Members)) && len(o.Group) < least {
		return s.refuse(o, "a round of %d sites; the terms want %d of %d to be asked", len(o.Group), least, len(s.Members))
	}
	if s.Terms.GroupSize > 0 && len(o.Group) < s.Terms.GroupSize {
		return s.refuse(o, "a group of %d sites; the terms want at least %d", len(o.Group), s.Terms.GroupSize)
	}
	if o.Question == nil && len(o.Group) > s.Terms.largest(len(s.Members)) {
		return s.refuse(o, "a group of %d sites; the terms leave room for sums of %d", len(o.Group), s.Terms.largest(len(s.Members)))
	}
	if d := s.Terms.DP; d != nil && o.Question == nil && len(o.Group) < d.survivors() {
		return s.refuse(o, "a group of %d sites; the terms' privacy needs %d", len(o.Group), d.survivors())
	}
	variables, trained := s.size()
	round, err := s.Terms.round(o, s.Members, s.Terms.length(o, variables, trained))
	if err != nil {
		return Answer{}, fmt.Errorf("federate: entering round %d at %q: %w", o.Round, s.name, err)
	}
	session, err := secagg.NewSite(round, s.name, s.Signer, s.Random)
	if err != nil {
		return Answer{}, fmt.Errorf("federate: entering round %d at %q: %w", o.Round, s.name, err)
	}
	s.round, s.session, s.vector, s.pending, s.own.next = round, session, nil, nil, nil
	s.keep.Round, s.keep.Order = o.Round, o
	if err := s.save(); err != nil {
		return Answer{}, err
	}
	return Answer{Messages: []secagg.Message{session.Keys()}}, nil
}

func sameOrder(a, b Order) bool {
	if a.Index != b.Index || !bytes.Equal(a.Model, b.Model) || !a.Question.same(b.Question) || len(a.Group) != len(b.Group) {
		return false
	}
	for i := range a.Group {
		if a.Group[i] != b.Group[i] {
			return false
		}
	}
	return true
}

// train trains, encodes and masks. A vector that was made once is sent again.
func (s *Site) train(ctx context.Context, o Order) ([]uint32, error) {
	if s.vector != nil {
		return s.vector, nil
	}
	if s.session.Erased() {
		return nil, fmt.Errorf("%w: the round is over", ErrOrder)
	}
	if err := s.quorate(o.Names); err != nil {
		return nil, err
	}
	variables, trained := s.size()
	w := o.Weights
	if w == nil || len(w.Variables) != variables || len(w.Control) != len(s.control) {
		return nil, fmt.Errorf("%w: weights of another model", ErrOrder)
	}
	if digest := w.Sum(); !bytes.Equal(digest[:], s.keep.Order.Model) {
		return nil, fmt.Errorf("%w: other weights than the round began with", ErrOrder)
	}
	if s.keep.Order.Question != nil {
		return s.answer(ctx, o)
	}
	if s.Terms.DP != nil {
		return s.trainPrivately(ctx, o)
	}
	work := Work{Terms: s.Terms, Round: s.keep.Order.Index, Own: s.own.begin(), Seed: s.Seed}
	if s.control != nil {
		work.Correction = make([]float32, trained)
		for j := range work.Correction {
			work.Correction[j] = w.Control[j] - s.control[j]
		}
	}
	plain, steps, loss, err := learn(ctx, s.Trainer, work, w.Variables)
	if err != nil {
		return nil, err
	}
	s.own.trained(work.Own)
	var change []float32
	if s.control != nil {
		// option II: c⁺ − c_i = −c + (x − y)/(K·η), and here x − y is −update
		s.pending, change = make([]float32, trained), make([]float32, trained)
		scale := float32(1 / (float64(steps) * s.Terms.rate(work.Round)))
		for j := range change {
			change[j] = -w.Control[j] - plain[j]*scale
		}
		clip(change, s.Terms.Bound)
		for j, v := range change {
			s.pending[j] = s.control[j] + v
		}
	}
	clip(plain, s.Terms.Bound)
	weight := float32(min(s.Trainer.Examples(), s.Terms.MaxExamples)) / float32(s.Terms.MaxExamples)
	if s.Tamper != nil {
		d := &Draft{Round: work.Round, Group: s.keep.Order.Group, Global: w.Variables, Update: plain, Weight: float64(weight)}
		if err := s.Tamper(ctx, d); err != nil {
			return nil, err
		}
		weight = float32(d.Weight)
	}
	plain = append(plain, change...)
	for j := range plain {
		plain[j] *= weight
	}
	if most := max(1, s.Terms.Bound); !(loss < most) { // nor is one that is no number
		loss = most
	}
	plain = append(plain, weight, weight*float32(max(loss, 0)))
	vector, err := s.encode(plain, work.Round)
	if err != nil {
		return nil, err
	}
	if _, err := s.session.Mask(ctx, o.Names, vector); err != nil {
		return nil, err
	}
	s.vector = vector
	return vector, nil
}

// encode writes a vector in fixed point, in its own memory.
func (s *Site) encode(plain []float32, round int) ([]uint32, error) {
	group, vector := s.Terms.largest(len(s.Members)), secagg.InPlace(plain)
	fixed := s.Terms.fixed(group)
	if s.Terms.Bits == 0 {
		return vector, fixed.Encode(vector, plain)
	}
	n := len(plain) - 2
	limit := float32(s.Terms.Limit)
	if float64(limit) > s.Terms.Limit {
		limit = math.Nextafter32(limit, 0)
	}
	for j, v := range plain[:n] {
		plain[j] = min(max(v, -limit), limit)
	}
	// drawn anew at each site and in each round, and the same when the round is tried
	// again
	terms := s.Terms.Digest()
	seed := sha256.Sum256(fmt.Appendf(nil, "vigie federate rounding v1\x00%x %q %d %d", terms, s.name, s.Seed, round))
	if err := s.Terms.numbers(group).EncodeRandomly(vector[:n], plain[:n], rand2.NewChaCha8(seed)); err != nil {
		return nil, err
	}
	return vector, fixed.Encode(vector[n:], plain[n:])
}

// Learn is what a site that is honest would send of its learning from the global
// variables: the update, within the terms' bound.
func Learn(ctx context.Context, t Trainer, w Work, global []float32) ([]float32, error) {
	if d := w.Terms.DP; d != nil && d.Unit == Patient {
		return expected(ctx, t, w, global)
	}
	update, _, _, err := learn(ctx, t, w, global)
	if err != nil {
		return nil, err
	}
	clip(update, w.Terms.Bound)
	return update, nil
}

// learn completes the work, has it done, and returns by what the variables have
// moved.
func learn(ctx context.Context, t Trainer, w Work, global []float32) (update []float32, steps int, loss float64, err error) {
	w.Rate = w.Terms.rate(w.Round)
	w.Variables = append(make([]float32, 0, len(global)+2), global...) // with room for what is sent beside
	if steps, loss, err = t.Train(ctx, w); err != nil {
		return nil, 0, 0, err
	}
	for j, v := range global {
		w.Variables[j] -= v
	}
	return w.Variables, steps, loss, nil
}

// clip shortens a vector to the bound, if it is longer. One that is not finite
// becomes zero: a site that has diverged adds nothing.
func clip(v []float32, bound float64) {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	length := math.Sqrt(sum)
	if math.IsNaN(length) || math.IsInf(length, 0) {
		clear(v)
		return
	}
	if length > bound {
		// a hair shorter, so that no rounding leads beyond the bound
		scale := float32(bound / length * (1 - 1e-6))
		for i := range v {
			v[i] *= scale
		}
	}
}

// ErrKept is returned when what a site kept cannot be used.
var ErrKept = errors.New("what the site has kept cannot be used")
