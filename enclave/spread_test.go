package enclave

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// answering is a diagnoser that counts and answers as a test says.
type answering struct {
	mu    sync.Mutex
	calls int
	err   error
	hold  chan struct{}
}

func (a *answering) Diagnose(ctx context.Context, request Request) (Result, error) {
	a.mu.Lock()
	a.calls++
	err := a.err
	a.mu.Unlock()
	if a.hold != nil {
		<-a.hold
	}
	return Result{}, err
}

func TestCasesGoToTheLeastBusyCopy(t *testing.T) {
	held := make(chan struct{})
	copies := []*answering{{hold: held}, {hold: held}, {hold: held}}
	s := NewSpread(copies[0], copies[1], copies[2])
	var group sync.WaitGroup
	for range 9 {
		group.Go(func() {
			if _, err := s.Diagnose(context.Background(), exampleRequest()); err != nil {
				t.Error(err)
			}
		})
	}
	for { // until all nine are inside
		total := 0
		for _, c := range copies {
			c.mu.Lock()
			total += c.calls
			c.mu.Unlock()
		}
		if total == 9 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(held)
	group.Wait()
	for i, c := range copies {
		if c.calls != 3 {
			t.Errorf("copy %d has %d of 9 cases, want 3", i, c.calls)
		}
	}
}

func TestAnUnavailableCopyIsReplacedAndRests(t *testing.T) {
	down := &answering{err: fmt.Errorf("down: %w", ErrUnavailable)}
	up := &answering{}
	s := NewSpread(down, up)
	now := time.Now()
	s.now = func() time.Time { return now }
	for range 5 {
		if _, err := s.Diagnose(context.Background(), exampleRequest()); err != nil {
			t.Fatal(err)
		}
	}
	if down.calls != 1 || up.calls != 5 {
		t.Errorf("the copy that is down was asked %d times, the other %d; want 1 and 5", down.calls, up.calls)
	}
	now = now.Add(rest + time.Second)
	down.err = nil
	if _, err := s.Diagnose(context.Background(), exampleRequest()); err != nil || down.calls != 2 {
		t.Errorf("after its rest the copy was asked %d times in all, want 2 (%v)", down.calls, err)
	}
}

func TestAnUntrustedCopyIsAnAlarmNotAReasonToAskAnother(t *testing.T) {
	untrusted, other := &answering{err: ErrUntrusted}, &answering{}
	if _, err := NewSpread(untrusted, other).Diagnose(context.Background(), exampleRequest()); !errors.Is(err, ErrUntrusted) || other.calls != 0 {
		t.Errorf("got %v with %d calls to the other copy, want ErrUntrusted and none", err, other.calls)
	}
}

func TestWithEveryCopyDownTheCaseCanBeRetried(t *testing.T) {
	a, b := &answering{err: ErrUnavailable}, &answering{err: ErrUnavailable}
	if _, err := NewSpread(a, b).Diagnose(context.Background(), exampleRequest()); !errors.Is(err, ErrUnavailable) || a.calls != 1 || b.calls != 1 {
		t.Errorf("got %v after %d and %d calls, want ErrUnavailable after one each", err, a.calls, b.calls)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := NewSpread(a, b).Diagnose(ctx, exampleRequest()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
