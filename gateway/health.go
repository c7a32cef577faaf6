package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vigie/vigie/store"
)

// probe is one thing that must hold for the gateway to take work.
type probe struct {
	name  string
	check func(context.Context) error
}

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready  bool              `json:"ready"`
	Checks map[string]string `json:"checks"` // "ok", or what is wrong
}

// forStrangers tells what works and what does not, without the texts, which
// name machines and files.
func (r Readiness) forStrangers() Readiness {
	out := Readiness{Ready: r.Ready, Checks: map[string]string{}}
	for name, text := range r.Checks {
		out.Checks[name] = "ok"
		if text != "ok" {
			out.Checks[name] = "not ok"
		}
	}
	return out
}

// probeTimeout bounds one probe, so that a hanging disk is an answer too.
const probeTimeout = 5 * time.Second

// Ready asks every probe at once. The texts name machines and files, never
// patients.
func (g *Gateway) Ready(ctx context.Context) Readiness {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	answers := make([]error, len(g.probes))
	var wait sync.WaitGroup
	for i, p := range g.probes {
		wait.Go(func() { answers[i] = p.check(ctx) })
	}
	wait.Wait()
	out := Readiness{Ready: true, Checks: map[string]string{}}
	for i, p := range g.probes {
		out.Checks[p.name] = "ok"
		if answers[i] != nil {
			out.Ready = false
			out.Checks[p.name] = answers[i].Error()
		}
	}
	return out
}

// readyFor is how long an answer of /readyz stands. Anybody may ask, and each
// look writes to the database.
const readyFor = time.Second

// recent is the last answer to /readyz.
type recent struct {
	mu     sync.Mutex
	at     time.Time
	answer Readiness
}

// get returns an answer that is not older than readyFor. changed is called for
// one in which another probe fails than in the one before.
func (r *recent) get(look func() Readiness, changed func(Readiness)) Readiness {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.IsZero() || time.Since(r.at) >= readyFor {
		former := r.answer
		r.answer, r.at = look(), time.Now()
		if !maps.Equal(former.forStrangers().Checks, r.answer.forStrangers().Checks) {
			changed(r.answer)
		}
	}
	return r.answer
}

func (g *Gateway) serveReady(w http.ResponseWriter, r *http.Request) {
	// Others wait for the answer too: it does not end with who asked first.
	answer := g.recent.get(func() Readiness { return g.Ready(context.WithoutCancel(r.Context())) }, func(now Readiness) {
		if now.Ready {
			g.logger.Info("ready", "checks", now.Checks)
			return
		}
		g.logger.Warn("not ready", "checks", now.Checks)
	})
	if _, err := g.identify(r, ""); err != nil {
		answer = answer.forStrangers()
	}
	w.Header().Set("Content-Type", "application/json")
	if !answer.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	// A failed write means that the asker has gone.
	_ = json.NewEncoder(w).Encode(answer)
}

// serveHealth says that the process serves requests; it asks nothing else, so
// that an orchestrator does not kill a gateway that waits for its database.
func (g *Gateway) serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}

// mountedReadOnly is ST_RDONLY of Linux and MNT_RDONLY of macOS and the BSDs.
const mountedReadOnly = 1

// diskFree returns the bytes that an unprivileged process may still write to
// the file system of path.
func diskFree(path string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, fmt.Errorf("gateway: asking for the free space of %s: %w", path, err)
	}
	if s.Flags&mountedReadOnly != 0 {
		return 0, fmt.Errorf("gateway: asking for the free space of %s: %w", path, store.ErrReadOnly)
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
