package consortium

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/federate"
)

// Charge is an entry of a site's privacy ledger: what a round of training is
// about to cost. It is on disk before anything that it pays for leaves.
type Charge struct {
	Federation string `json:"federation"` // consortium and run
	Round      uint64 `json:"round"`      // number of the attempt
	Job        Digest `json:"job"`
	// Unit says whom the run's statement protects; empty: it states nothing, and
	// the entry records no more than that the site has trained, or answered a
	// question.
	Unit federate.Unit `json:"unit,omitempty"`
	Run  *dp.Run       `json:"spent,omitempty"` // the mechanism that gives away as much
}

const ledgerName = "privacy ledger"

// book is what was charged: the mechanisms of each unit, which compose, and which
// attempts they were for.
type book struct {
	runs map[federate.Unit][]dp.Run // equal ones are one
	done map[attempt]bool
}

type attempt struct {
	federation string
	round      uint64
}

func (b *book) note(c Charge) {
	if c.Federation == "" { // the entry that goes on under new keys
		return
	}
	if b.runs == nil {
		b.runs, b.done = map[federate.Unit][]dp.Run{}, map[attempt]bool{}
	}
	b.done[attempt{c.Federation, c.Round}] = true
	if c.Run != nil {
		b.runs[c.Unit] = with(b.runs[c.Unit], *c.Run)
	}
}

// with adds a mechanism; its neighbours are left as they are.
func with(runs []dp.Run, run dp.Run) []dp.Run {
	runs = slices.Clone(runs)
	for i := range runs {
		if runs[i].Sigma == run.Sigma && runs[i].Rate == run.Rate {
			runs[i].Steps += run.Steps
			return runs
		}
	}
	return append(runs, run)
}

// fits returns an error that wraps ErrBudget if a mechanism would, with all that
// was charged before, cost more than a limit.
func (b *book) fits(unit federate.Unit, run dp.Run, budget Budget) error {
	limit := budget.of(unit)
	if limit == nil {
		return nil
	}
	spent, err := epsilon(with(b.runs[unit], run), *limit)
	if err != nil {
		return err
	}
	if spent > limit.Epsilon {
		before, err := epsilon(b.runs[unit], Limit{0, limit.Delta})
		if err != nil {
			return err
		}
		return fmt.Errorf("consortium: spending %d steps with a noise multiplier of %.4g: %w: ε %.4g per %s would be spent at δ %g, of %g; so far it is %.4g",
			run.Steps, run.Sigma, ErrBudget, spent, unit, limit.Delta, limit.Epsilon, before)
	}
	return nil
}

// epsilon is what mechanisms cost together at a limit's delta: by Rényi
// divergences, if these show that it is within the limit, which takes less time,
// else by the tighter privacy loss distribution.
func epsilon(runs []dp.Run, limit Limit) (float64, error) {
	if len(runs) == 0 {
		return 0, nil
	}
	if !(limit.Delta > 0) {
		return 0, fmt.Errorf("consortium: adding up a privacy budget: %w: its δ is 0, and noise from a bell curve always has one", ErrPolicy)
	}
	rough, err := dp.RDP{}.Compose(runs, limit.Delta)
	if err != nil || rough <= limit.Epsilon {
		return rough, err
	}
	tight, err := dp.PLD{Interval: 1e-3}.Compose(runs, limit.Delta)
	return min(rough, tight), err
}

// ledger is the site's account.
type ledger struct {
	*chain[Charge]
	site *Site

	mu   sync.Mutex
	book book
}

func (s *Site) openLedger() (*ledger, error) {
	l := &ledger{site: s}
	c, err := openChain(s.path(ledgerFile), ledgerName, s.Name, s.signer, func(e Entry[Charge]) { l.book.note(e.What) })
	l.chain = c
	return l, err
}

// ledgerOf is the ledger as one run sees it.
type ledgerOf struct {
	*ledger
	job signedJob
}

var _ federate.Ledger = ledgerOf{}

// Charge implements federate.Ledger.
func (l ledgerOf) Charge(_ context.Context, s federate.Spending) error {
	return l.enter(Charge{Federation: s.Federation, Round: s.Round, Job: l.job.digest, Unit: s.Unit, Run: &s.Run})
}

// enter charges an attempt once.
func (l *ledger) enter(c Charge) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.book.done[attempt{c.Federation, c.Round}] {
		return nil // before the process died, for the very same round
	}
	if c.Run != nil {
		rules, err := l.site.Rules()
		if err != nil {
			return err
		}
		if err := l.book.fits(c.Unit, *c.Run, rules.Budget); err != nil {
			return fmt.Errorf("%w: %w", federate.ErrBudget, err)
		}
	}
	if err := l.add(c); err != nil {
		return err
	}
	l.book.note(c)
	return nil
}

// fits says whether a job's next attempt would be within the budget.
func (l *ledger) fits(j signedJob, budget Budget) error {
	run, unit, stated := j.spends()
	if !stated {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	run.Steps = 1
	return l.book.fits(unit, run, budget)
}

// Spent is what a site has spent per unit.
type Spent struct {
	Unit    federate.Unit `json:"unit"`
	Epsilon float64       `json:"epsilon"`
	Delta   float64       `json:"delta"`
	Limit   *Limit        `json:"limit"` // null: none
	Runs    []dp.Run      `json:"runs"`
}

// spent adds up, at each limit's delta.
func (b *book) spent(budget Budget) ([]Spent, error) {
	var all []Spent
	for _, unit := range []federate.Unit{federate.Patient, federate.Hospital} {
		s := Spent{Unit: unit, Delta: 1e-5, Limit: budget.of(unit), Runs: b.runs[unit]}
		if s.Limit != nil {
			s.Delta = s.Limit.Delta
		}
		var err error
		if s.Epsilon, err = epsilon(s.Runs, Limit{0, s.Delta}); err != nil && len(s.Runs) > 0 {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}
