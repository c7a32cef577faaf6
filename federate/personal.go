package federate

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Part names a part of a model that may stay at the site.
type Part string

// The parts.
const (
	// NormPart are the gains, shifts and running statistics of normalisations:
	// FedBN (Li et al. 2021).
	NormPart Part = "norm"
	// HeadPart are the weights and the bias of the layer that the logits come from:
	// FedPer with one layer (Arivazhagan et al. 2019).
	HeadPart Part = "head"
)

// Parts lists all parts.
func Parts() []Part { return []Part{NormPart, HeadPart} }

func (t Terms) checkPersonal() error {
	for i, part := range t.Personal {
		if !slices.Contains(Parts(), part) || slices.Contains(t.Personal[:i], part) {
			var names []string
			for _, p := range Parts() {
				names = append(names, string(p))
			}
			return fmt.Errorf("part %q that stays at its site: there is none, or it is there twice; want %s", part, strings.Join(names, ", "))
		}
	}
	return nil
}

// PersonalTrainer is a Trainer some of whose variables are the site's own. Size,
// the global variables and the updates are of the others.
type PersonalTrainer interface {
	Trainer
	// Personal are the values that the site's own variables begin with.
	Personal() []float32
}

// personal are a site's own variables. They move with the rounds that count, as
// the global ones do.
type personal struct {
	now  []float32 // after the last round that counted
	next []float32 // what they become if this one counts
}

func (p *personal) begin() []float32 { return slices.Clone(p.now) }

// trained takes what training made of the variables. Training that has diverged
// changes nothing, as it adds nothing to the sum.
func (p *personal) trained(own []float32) {
	if p.now == nil || slices.ContainsFunc(own, func(v float32) bool { return math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) }) {
		return
	}
	p.next = own
}

func (p *personal) count() {
	if p.next != nil {
		p.now, p.next = p.next, nil
	}
}

// takePersonal takes the site's own variables from the trainer.
func (s *Site) takePersonal() error {
	t, has := s.Trainer.(PersonalTrainer)
	if has {
		s.own.now = slices.Clone(t.Personal())
	}
	if s.Trainer != nil && (len(s.own.now) > 0) != (len(s.Terms.Personal) > 0) {
		return fmt.Errorf("federate: making a site of %q: %w: the terms leave %q to the site, of which its trainer has %d variables", s.name, ErrTerms, s.Terms.Personal, len(s.own.now))
	}
	return nil
}

// Own are the site's own variables after the last round that counted.
func (s *Site) Own() []float32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own.begin()
}
