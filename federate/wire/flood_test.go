package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vigie/vigie/federate/wire/protocol"
)

// unavailable is a server that takes no answer.
type unavailable struct {
	protocol.FederationClient
	asked atomic.Int64
	hold  chan struct{} // Answer returns when it is closed
}

func (u *unavailable) Answer(ctx context.Context, _ *connect.Request[protocol.AnswerRequest]) (*connect.Response[protocol.AnswerResponse], error) {
	u.asked.Add(1)
	select {
	case <-u.hold:
	case <-ctx.Done():
	}
	return nil, connect.NewError(connect.CodeUnavailable, errors.New("not now"))
}

func flooded(t *testing.T, h Handler) (*session, *unavailable) {
	t.Helper()
	c := &Client{URL: "https://127.0.0.1:1", TLS: &tls.Config{}, Dir: t.TempDir(), Limits: Limits{Calls: 2}, Backoff: time.Nanosecond}
	s, err := c.start(h)
	if err != nil {
		t.Fatal(err)
	}
	u := &unavailable{hold: make(chan struct{})}
	s.rpc = u
	return s, u
}

func TestCallsBeyondTheLimitCostOneTryAndThenTheConnection(t *testing.T) {
	var worked atomic.Int64
	s, u := flooded(t, func(ctx context.Context, c Call) (Reply, error) {
		worked.Add(1)
		<-ctx.Done()
		return Reply{}, ErrSilent
	})
	ctx, cancel := context.WithCancel(t.Context())
	var works sync.WaitGroup
	send := func(i int) error {
		return s.accept(ctx, &works, &protocol.Call{Id: fmt.Sprint("call-", i), Run: "1", Kind: "test", Body: bytes.Repeat([]byte("1"), 1<<10)})
	}
	for i := range 3 { // two that are worked on, and one that is refused
		if err := send(i); err != nil {
			t.Fatal(err)
		}
	}
	for i := 3; i < 1000; i++ {
		if err := send(i); !errors.Is(err, errFlood) {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	until(t, "refusal", func() bool { return u.asked.Load() == 1 && worked.Load() == 2 })
	close(u.hold) // it is not taken
	until(t, "end of the refusal", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return !s.refusing })
	if n := u.asked.Load(); n != 1 || len(s.calls) != 2 {
		t.Errorf("%d tries, and %d calls are kept", n, len(s.calls))
	}
	if err := send(1000); err != nil {
		t.Errorf("the next one is refused in its turn: %v", err)
	}
	cancel()
	works.Wait()
}

func TestAnswersOnTheirWayCountAndAreGivenUpInTheEnd(t *testing.T) {
	var worked atomic.Int64
	s, u := flooded(t, func(_ context.Context, c Call) (Reply, error) {
		worked.Add(1)
		return Reply{Body: json.RawMessage(`"` + string(bytes.Repeat([]byte("1"), 1<<20)) + `"`)}, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var works sync.WaitGroup
	send := func(i int) error {
		return s.accept(ctx, &works, &protocol.Call{Id: fmt.Sprint("call-", i), Run: "1", Kind: "test", Body: []byte("1")})
	}
	for i := range 2 {
		if err := send(i); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "both answers", func() bool { return u.asked.Load() == 2 })
	if send(2) != nil || !errors.Is(send(3), errFlood) || worked.Load() != 2 {
		t.Error("work begins while as many answers wait as there may be calls")
	}
	close(u.hold)
	works.Wait()
	if n := u.asked.Load(); n != 2*(giveUp+1)+1 {
		t.Errorf("%d tries", n)
	}
	s.mu.Lock()
	for id, w := range s.calls {
		if !w.done || w.reply.Body != nil {
			t.Errorf("%s is kept: %d bytes", id, len(w.reply.Body))
		}
	}
	s.mu.Unlock()
	if err := send(0); err != nil {
		t.Fatal(err)
	}
	cancel()
	works.Wait()
	if worked.Load() != 3 {
		t.Errorf("a call that came again was worked on %d times in all", worked.Load())
	}
}
