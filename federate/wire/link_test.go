package wire

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie/federate"
)

// far is a client that reaches the server through a bad network.
func (st *stage) far(site string) (*Client, *proxy) {
	p := newProxy(st.t, st.address)
	c := st.client(site)
	c.URL = "https://" + p.address()
	return c, p
}

func TestABulkPartGoesOnAtTheByteWhereItsLinkBroke(t *testing.T) {
	const size = 6 << 20
	want := noise(size)
	for _, way := range []string{"up", "down"} {
		st := newStage(t, nil)
		c, p := st.far("lyon")
		p.cutAfter.Store(1 << 20)
		st.play(c, func(_ context.Context, c Call) (Reply, error) {
			if way == "up" {
				return Reply{Body: c.Body, Bulk: Bytes(want)}, nil
			}
			got, err := readAll(c.Bulk)
			if err != nil || !bytes.Equal(got, want) {
				return Reply{}, errors.New("other bytes")
			}
			return Reply{Body: c.Body}, nil
		})
		call := Call{Body: json.RawMessage(`{}`)}
		if way == "down" {
			call.Bulk = Bytes(want)
		}
		got, _, err := st.ask("lyon", call)
		if err != nil || way == "up" && !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes, %v", way, len(got), err)
		}
		// what was on its way when a link broke is sent twice; from the start, six
		// cuts would make it never arrive
		if through := p.up.Load() + p.down.Load(); through > size*4 || p.opened.Load() < 6 {
			t.Errorf("%s: %d bytes went over %d connections for %d", way, through, p.opened.Load(), size)
		}
	}
}

func TestAnAnswerOnItsWayOutlivesTheServer(t *testing.T) {
	const size = 3 << 20
	want := noise(size)
	digest := Bytes(want).Digest
	for what, there := range map[string][]byte{
		"half of it":             want[:size/2],
		"all of it":              want,
		"half, of other bytes":   noise(size/2 + 1)[1:],
		"more than there can be": append(slices.Clone(want), 1),
	} {
		st := newStage(t, nil)
		dir := filepath.Join(st.Dir, "lyon")
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "call-7."+hex.EncodeToString(digest[:])), there, 0o600),
			os.WriteFile(filepath.Join(dir, "call-6.left"), []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
		c, p := st.far("lyon")
		st.play(c, func(context.Context, Call) (Reply, error) {
			return Reply{Body: json.RawMessage(`1`), Bulk: Bytes(want)}, nil
		})
		got, _, err := st.ask("lyon", Call{ID: "call-7", Body: json.RawMessage(`{}`)})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", what, len(got), err)
		}
		if through := p.up.Load(); what == "half of it" && through > size*6/10 || what == "all of it" && through > size/10 {
			t.Errorf("%s was there, and %d bytes of %d were sent", what, through, size)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Errorf("%s: left are %v", what, left)
		}
	}
}

func TestACallIsAnsweredOnceHoweverOftenTheLinkBreaks(t *testing.T) {
	st := newStage(t, nil)
	c, p := st.far("lyon")
	var ran atomic.Int64
	started, finish := make(chan struct{}), make(chan struct{})
	st.play(c, func(_ context.Context, c Call) (Reply, error) {
		if ran.Add(1) == 1 {
			close(started)
		}
		<-finish
		return Reply{Body: json.RawMessage(`"once"`)}, nil
	})
	answered := make(chan error, 1)
	go func() {
		_, body, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`)})
		if err == nil && string(body) != `"once"` {
			err = errors.New(string(body))
		}
		answered <- err
	}()
	<-started
	for range 3 {
		before := p.opened.Load()
		p.cut()
		until(t, "connection anew", func() bool { return p.opened.Load() > before && len(st.Connected()) == 1 })
	}
	close(finish)
	if err := <-answered; err != nil || ran.Load() != 1 {
		t.Errorf("it ran %d times: %v", ran.Load(), err)
	}
}

func TestADeadLinkIsNoticedAndMadeAgain(t *testing.T) {
	st := newStage(t, func(o *Options) { o.Limits.Alive = 100 * time.Millisecond })
	c, p := st.far("lyon")
	c.Limits.Alive = 100 * time.Millisecond
	st.play(c, echo)
	st.connected("lyon")
	p.freeze() // no end of it comes through
	if _, body, err := st.ask("lyon", Call{Body: json.RawMessage(`2`)}); err != nil || string(body) != "2" {
		t.Errorf("%s, %v", body, err)
	}
	if p.opened.Load() < 2 {
		t.Error("there was one connection")
	}
}

func TestASiteThatConnectsAgainTakesItsPlaceAndTheFormerStops(t *testing.T) {
	st := newStage(t, nil)
	answer := func(what string) Handler {
		return func(context.Context, Call) (Reply, error) { return Reply{Body: json.RawMessage(what)}, nil }
	}
	ended := make(chan error, 1)
	first := st.client("lyon")
	go func() { ended <- first.Run(context.Background(), answer(`"first"`)) }()
	st.connected("lyon")
	st.play(st.client("lyon"), answer(`"second"`))
	if err := <-ended; !errors.Is(err, ErrReplaced) {
		t.Errorf("the former: %v", err)
	}
	if _, body, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`)}); err != nil || string(body) != `"second"` {
		t.Errorf("%s, %v", body, err)
	}
}

func TestCallsWaitForASiteThatComesBackAndEndWithTheirContext(t *testing.T) {
	st := newStage(t, nil)
	answered := make(chan error, 1)
	go func() { _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`)}); answered <- err }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := st.Ask(ctx, "oslo", Call{Run: "1", Kind: "echo", Body: json.RawMessage(`{}`)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a site that never comes: %v", err)
	}
	st.play(st.client("lyon"), echo)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestASiteIsToldThatNobodyWaitsAnyMore(t *testing.T) {
	st := newStage(t, nil)
	started, ended := make(chan struct{}), make(chan struct{})
	st.play(st.client("lyon"), func(ctx context.Context, c Call) (Reply, error) {
		if c.Kind == "long" {
			close(started)
			<-ctx.Done()
			close(ended)
			return Reply{}, ctx.Err()
		}
		return Reply{Body: c.Body}, nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := st.Ask(ctx, "lyon", Call{Run: "1", Kind: "long", Body: json.RawMessage(`{}`)}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-ended
	if _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`)}); err != nil {
		t.Errorf("the next call: %v", err)
	}
}

func TestALateSiteCostsARoundItsDeadlineAndNoMore(t *testing.T) {
	s := newSchool(5, 100)
	s.terms.Deadline = 4 * time.Second
	st := newStage(t, nil)
	var links []federate.Link
	for i, m := range s.members {
		orders := Orders(s.site(t, i))
		st.play(st.client(m.Name), func(ctx context.Context, c Call) (Reply, error) {
			if i == 2 && strings.Contains(string(c.Body), `"step":"train"`) {
				<-ctx.Done() // silent until it is told that the round went on
				return Reply{}, ctx.Err()
			}
			return orders(ctx, c)
		})
		links = append(links, Link(st.Server, "run", m.Name))
	}
	c := s.coordinator(t)
	out, err := c.Round(t.Context(), links)
	if err != nil || out.Sites != 4 || !slices.Equal(out.Lost, []string{"site-02"}) {
		t.Fatalf("%d sites, lost %v, %v", out.Sites, out.Lost, err)
	}
	if left, _ := filepath.Glob(filepath.Join(st.Dir, "*", "*")); len(left) > 0 {
		t.Errorf("left in the spool: %v", left)
	}
}
