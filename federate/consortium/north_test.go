package consortium

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vigie/vigie/demo/ports"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// north is a consortium with a server and sites, for a test.
type north struct {
	t          testing.TB
	dir        string
	address    string
	consortium *Consortium
	model      string

	mu     sync.Mutex
	ends   map[string]func() // of what runs, by name
	logger *slog.Logger
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

// newNorth makes a consortium and starts its server.
func newNorth(t testing.TB, change func(*Policy)) *north {
	t.Helper()
	addresses, err := ports.Reserve(1)
	if err != nil {
		t.Fatal(err)
	}
	n := &north{t: t, dir: t.TempDir(), address: addresses[0], ends: map[string]func(){}, logger: slog.New(slog.DiscardHandler)}
	if os.Getenv("VIGIE_TEST_LOG") != "" {
		n.logger = slog.New(slog.NewTextHandler(logWriter{t}, nil))
	}
	s := Settings{Name: "north", URL: "https://" + n.address, Listen: n.address, Policy: DefaultPolicy()}
	if change != nil {
		change(&s.Policy)
	}
	if n.consortium, err = Create(filepath.Join(n.dir, "consortium"), s); err != nil {
		t.Fatal(err)
	}
	n.serve()
	t.Cleanup(func() {
		for _, name := range n.running() {
			n.end(name)
		}
	})
	return n
}

func (n *north) running() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for name := range n.ends {
		names = append(names, name)
	}
	return names
}

// start runs something under a name until end.
func (n *north) start(name string, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ends[name] = func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			n.t.Errorf("%s: %v", name, err)
		}
	}
}

func (n *north) end(name string) {
	n.mu.Lock()
	end := n.ends[name]
	delete(n.ends, name)
	n.mu.Unlock()
	if end != nil {
		end()
	}
}

func (n *north) serve() {
	n.t.Helper()
	c, err := Open(n.consortium.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	n.start("server", func(ctx context.Context) error { return c.Serve(ctx, ServeOptions{Logger: n.logger}) })
}

func (n *north) siteDir(name string) string { return filepath.Join(n.dir, "sites", name) }

// join invites a site and lets it join over TLS.
func (n *north) join(name string) *Site {
	n.t.Helper()
	document, err := n.consortium.Invite(name, time.Hour)
	if err != nil {
		n.t.Fatal(err)
	}
	var s *Site
	n.until("the server admits "+name, func() bool {
		s, err = Join(n.t.Context(), document, n.siteDir(name))
		return err == nil || errors.Is(err, ErrInvitation)
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// until waits for what must come, however slow the machine is.
func (n *north) until(what string, holds func() bool) {
	n.t.Helper()
	end := time.Now().Add(2 * time.Minute)
	for !holds() {
		if time.Now().After(end) {
			n.t.Fatalf("it has not come in two minutes: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// work starts a site on examples of its own.
func (n *north) work(s *Site, o RunOptions) {
	n.t.Helper()
	if o.Data.Data == "" {
		o.Data.Data = n.examples(s.Name)
	}
	o.Logger = n.logger.With("site", s.Name)
	n.start(s.Name, func(ctx context.Context) error {
		again, err := OpenSite(s.dir)
		if err != nil {
			return err
		}
		return again.Run(ctx, o)
	})
}

// examples writes images of 8 by 8 pixels, of which those of class 1 are bright
// on one side.
func (n *north) examples(name string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name+".npz")
	seed := uint64(len(name))
	for _, c := range name {
		seed = 31*seed + uint64(c)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	const count = 24
	images, labels := make([]uint8, count*64), make([]uint8, count)
	for i := range count {
		labels[i] = uint8(i % 2)
		for p := range 64 {
			images[64*i+p] = uint8(60 + rng.IntN(60))
			if labels[i] == 1 && p%8 < 4 {
				images[64*i+p] += 70
			}
		}
	}
	f, err := os.Create(path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer f.Close()
	arrays := map[string]train.Array{}
	for _, part := range []string{"train", "val"} {
		arrays[part+"_images"] = train.Array{Shape: []int64{count, 8, 8}, Data: images}
		arrays[part+"_labels"] = train.Array{Shape: []int64{count, 1}, Data: labels}
	}
	if err := train.WriteNPZ(f, arrays); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// network writes a small network, or skips where nothing can run it.
func (n *north) network() string {
	n.t.Helper()
	if n.model != "" {
		return n.model
	}
	network, err := train.CNN{Channels: 1, Rows: 8, Columns: 8, Classes: 2, Stages: [][]int{{4}, {8}}, Deviation: 1}.Build(rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		n.t.Fatal(err)
	}
	data, err := network.Model.Marshal()
	if err != nil {
		n.t.Fatal(err)
	}
	m, err := onnx.Parse(data)
	if err != nil {
		n.t.Fatal(err)
	}
	session, err := engine.Open(m, engine.Options{Threads: 1})
	if errors.Is(err, engine.ErrNoRuntime) {
		n.t.Skip("this build has no ONNX Runtime: make runtime")
	}
	if err != nil {
		n.t.Fatal(err)
	}
	session.Close()
	n.model = filepath.Join(n.dir, "net.onnx")
	if err := os.WriteFile(n.model, data, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return n.model
}

// ask starts a run.
func (n *north) ask(run string, rounds int, change func(*StartOptions)) Job {
	n.t.Helper()
	o := StartOptions{Run: run, Scientist: "Dr Example", Purpose: "bright sides", Model: n.network(), Classes: []string{"dark", "bright"}, Terms: federate.DefaultTerms("")}
	o.Terms.Rounds, o.Terms.Batch, o.Terms.Deadline = rounds, 8, 2*time.Minute
	o.Local.Patience = Period(time.Hour)
	if change != nil {
		change(&o)
	}
	j, _, err := n.consortium.Start(n.t.Context(), o)
	if err != nil {
		n.t.Fatal(err)
	}
	return j
}

// stands waits until a run is in a state, and fails if it fails instead.
func (n *north) stands(run string, want State) Status {
	n.t.Helper()
	var s Status
	n.until(fmt.Sprintf("run %s is %s", run, want), func() bool {
		var err error
		if s, _, err = n.consortium.Status(run); err != nil {
			n.t.Fatal(err)
		}
		if s.State == Failed && want != Failed {
			n.t.Fatalf("run %s has failed: %s", run, s.Why)
		}
		return s.State == want
	})
	return s
}

// rules replaces what a data owner allows.
func (n *north) rules(s *Site, text string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, rulesFile), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

const openRules = `approve: {scientists: [Dr Example], purposes: [bright sides], algorithms: [fedavg], max_rounds: 50, without_privacy: true, tasks: [evaluate]}
joins: accept
`

// sites are sites that let everything of openRules through.
func (n *north) sites(names ...string) []*Site {
	n.t.Helper()
	var all []*Site
	for _, name := range names {
		s := n.join(name)
		n.rules(s, openRules)
		all = append(all, s)
	}
	return all
}
