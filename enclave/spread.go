package enclave

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// rest is how long an enclave that was unavailable is asked only after the
// others.
const rest = 10 * time.Second

// Spread diagnoses in several copies of an enclave, each with its own verified
// keys. A case goes to the least busy copy; if that one is unavailable, to the
// next. Any other error is returned: a copy that is not trusted is an alarm,
// not a reason to ask around.
type Spread struct {
	mu     sync.Mutex
	copies []*enclaveCopy
	now    func() time.Time
}

type enclaveCopy struct {
	diagnoser Diagnoser
	busy      int
	resting   time.Time // until when
}

var _ Diagnoser = (*Spread)(nil)

// NewSpread returns the copies as one diagnoser.
func NewSpread(copies ...Diagnoser) *Spread {
	s := &Spread{now: time.Now}
	for _, diagnoser := range copies {
		s.copies = append(s.copies, &enclaveCopy{diagnoser: diagnoser})
	}
	return s
}

// Diagnose asks the copies in turn until one is available. If none is, the
// error wraps ErrUnavailable and every copy's own.
func (s *Spread) Diagnose(ctx context.Context, request Request) (Result, error) {
	tried := make(map[*enclaveCopy]bool, len(s.copies))
	failures := []error{ErrUnavailable}
	for len(tried) < len(s.copies) && ctx.Err() == nil {
		next := s.take(tried)
		tried[next] = true
		result, err := next.diagnoser.Diagnose(ctx, request)
		unavailable := errors.Is(err, ErrUnavailable)
		s.giveBack(next, unavailable && ctx.Err() == nil)
		if !unavailable {
			return result, err
		}
		failures = append(failures, err)
	}
	if err := ctx.Err(); err != nil {
		failures = append(failures, err)
	}
	return Result{}, errors.Join(failures...)
}

// take picks the copy that is not resting and has the fewest cases.
func (s *Spread) take(tried map[*enclaveCopy]bool) *enclaveCopy {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	candidates := slices.DeleteFunc(slices.Clone(s.copies), func(c *enclaveCopy) bool { return tried[c] })
	chosen := slices.MinFunc(candidates, func(a, b *enclaveCopy) int {
		if aRests, bRests := now.Before(a.resting), now.Before(b.resting); aRests != bRests {
			if aRests {
				return 1
			}
			return -1
		}
		return a.busy - b.busy
	})
	chosen.busy++
	return chosen
}

func (s *Spread) giveBack(c *enclaveCopy, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.busy--
	c.resting = time.Time{}
	if failed {
		c.resting = s.now().Add(rest)
	}
}
