package consortium

import (
	"crypto"
	"fmt"
	"sync"
)

// Charge is an entry of a site's privacy ledger: what a round of training is
// about to cost.
type Charge struct {
	Run   string `json:"run"`
	Job   Digest `json:"job"`
	Round int    `json:"round"` // of the terms, from 1
	// Attempt counts the times that the site has trained for the run, from 1.
	Attempt int `json:"attempt"`
	// Costs are added to what was spent before. The first attempt of a run is
	// charged with all that the run states, and the rounds after it with nothing:
	// a statement about all rounds says nothing of what fewer would have cost. One
	// attempt more than the run has rounds is charged like a run of its own.
	Costs []Cost `json:"costs,omitempty"`
}

// Spent is what a site has spent, added up by basic composition.
type Spent struct {
	Patient  Limit `json:"patient"`
	Hospital Limit `json:"hospital"`
}

func (s *Spent) of(statement Statement) *Limit {
	if statement == PerPatient {
		return &s.Patient
	}
	return &s.Hospital
}

func (s *Spent) add(c Charge) {
	for _, cost := range c.Costs {
		l := s.of(cost.Statement)
		l.Epsilon += cost.Epsilon
		l.Delta += cost.Delta
	}
}

const ledgerName = "privacy ledger"

// ledger is the site's account.
type ledger struct {
	*chain[Charge]

	mu       sync.Mutex
	spent    Spent
	attempts map[Digest]int // by job
}

func openLedger(path, site string, signer crypto.Signer) (*ledger, error) {
	l := &ledger{attempts: map[Digest]int{}}
	c, err := openChain(path, ledgerName, site, signer, func(e Entry[Charge]) { l.note(e.What) })
	l.chain = c
	return l, err
}

func (l *ledger) note(c Charge) {
	l.spent.add(c)
	l.attempts[c.Job]++
}

// next is what training for a job once more would be charged.
func (l *ledger) next(j signedJob, round int) Charge {
	done := l.attempts[j.digest]
	c := Charge{Run: j.Run, Job: j.digest, Round: round + 1, Attempt: done + 1}
	if done%j.Terms.Rounds == 0 {
		c.Costs = j.Costs
	}
	return c
}

// allows returns an error that wraps ErrBudget if the budget does not hold what
// training for a job once more would cost.
func (l *ledger) allows(j signedJob, round int, b Budget) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holds(l.next(j, round), b)
}

func (l *ledger) holds(c Charge, b Budget) error {
	for _, cost := range c.Costs {
		limit, spent := b.of(cost.Statement), l.spent.of(cost.Statement)
		if limit == nil {
			continue
		}
		const hair = 1 + 1e-9 // of rounding
		if spent.Epsilon+cost.Epsilon > limit.Epsilon*hair || spent.Delta+cost.Delta > limit.Delta*hair {
			return fmt.Errorf("consortium: charging job %s: %w: ε %g, δ %g per %s on top of %g, %g is more than %g, %g", c.Run, ErrBudget,
				cost.Epsilon, cost.Delta, cost.Statement, spent.Epsilon, spent.Delta, limit.Epsilon, limit.Delta)
		}
	}
	return nil
}

// charge records, durably, that the site is about to train for a job.
func (l *ledger) charge(j signedJob, round int, b Budget) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.next(j, round)
	if err := l.holds(c, b); err != nil {
		return err
	}
	if err := l.add(c); err != nil {
		return err
	}
	l.note(c)
	return nil
}
