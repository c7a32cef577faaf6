package consortium

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"crypto/tls"

	"github.com/vigie/vigie/federate/wire"
	"github.com/vigie/vigie/keys/certificates"
)

// ServeOptions say how the server works.
type ServeOptions struct {
	Listener net.Listener // nil: one at Settings.Listen
	Kernels  int          // train.Recipe.Kernels, of evaluation
	Logger   *slog.Logger // nil discards
	Limits   wire.Limits
}

// Serve leads the consortium's runs until the context ends. It reads from the
// folder what commands have changed there, and keeps there all that must
// outlive it.
func (c *Consortium) Serve(ctx context.Context, o ServeOptions) error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	lock, err := c.lockServer()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := c.renewServer(); err != nil {
		return err
	}
	if _, err := c.roster(); err != nil {
		return err
	}
	files := c.keys.files()
	files.Logger = o.Logger
	config, err := files.Server(certificates.ServerOptions{Optional: true, Protocols: []string{"h2", "http/1.1"}})
	if err != nil {
		return err
	}
	s := &server{Consortium: c, ServeOptions: o, active: map[string]context.CancelFunc{}, joining: make(chan struct{}, joiners)}
	if s.wire, err = wire.NewServer(wire.Options{Federation: c.Name, Dir: filepath.Join(c.state(), "spool"), Limits: o.Limits, Logger: o.Logger, Allowed: s.allowed}); err != nil {
		return err
	}
	listener := o.Listener
	if listener == nil {
		if listener, err = net.Listen("tcp", c.Listen); err != nil {
			return fmt.Errorf("consortium: listening: %w", err)
		}
	}
	defer listener.Close()
	web := s.wire.HTTP(config)
	web.Handler = s.routes()
	web.Protocols.SetHTTP1(true) // of whoever joins, and of probes
	served := make(chan error, 1)
	go func() { served <- web.Serve(tls.NewListener(listener, config)) }()
	o.Logger.Info("the consortium is open", "name", c.Name, "address", listener.Addr().String(), "url", c.URL)
	working, stop := context.WithCancel(ctx)
	defer stop()
	var runs sync.WaitGroup
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for err == nil {
		s.look(working, &runs)
		select {
		case <-tick.C:
			continue
		case err = <-served:
			err = fmt.Errorf("consortium: serving: %w", err)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	o.Logger.Info("the consortium closes; runs go on at the next start")
	stop()
	runs.Wait()
	s.wire.Close()
	ending, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if shutting := web.Shutdown(ending); shutting != nil {
		web.Close()
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Consortium) lockServer() (*os.File, error) {
	if err := os.MkdirAll(c.state(), 0o700); err != nil {
		return nil, fmt.Errorf("consortium: starting: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(c.state(), "serve.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("consortium: starting: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("consortium: starting: %w: another process serves this consortium", ErrFolder)
	}
	return f, nil
}

// server is a consortium at work.
type server struct {
	*Consortium
	ServeOptions
	wire    *wire.Server
	joining chan struct{} // held by whoever joins

	mu     sync.Mutex
	active map[string]context.CancelFunc // runs that are led
	cached signedRoster
	seen   os.FileInfo
}

// current is the list of sites, read again when its file has changed.
func (s *server) current() (signedRoster, error) {
	seen, err := os.Stat(filepath.Join(s.state(), rosterFile))
	if err != nil { // nobody has joined
		return s.roster()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen != nil && os.SameFile(s.seen, seen) && s.seen.ModTime().Equal(seen.ModTime()) {
		return s.cached, nil
	}
	if s.cached, err = s.roster(); err != nil {
		return signedRoster{}, err
	}
	s.seen = seen
	return s.cached, nil
}

// allowed asks the current list whether a certificate may speak.
func (s *server) allowed(name string, certificate *x509.Certificate) error {
	r, err := s.current()
	if err != nil {
		return err
	}
	listed, err := r.Admits(certificate)
	if err == nil && listed != name {
		err = fmt.Errorf("consortium: admitting %q: %w: the certificate is of %q", name, ErrRoster, listed)
	}
	return err
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+joinPath, s.join)
	mux.HandleFunc("GET /healthz", s.health)
	mux.Handle("/", s.wire.Handler())
	return mux
}

// What an application may have, how many are read at a time, and how long one may
// take to arrive.
const (
	maxApplication = 64 << 10 // bytes
	joiners        = 16       // at a time
)

var joinPatience = 10 * time.Second

// join admits a site that has no certificate yet.
func (s *server) join(w http.ResponseWriter, r *http.Request) {
	select {
	case s.joining <- struct{}{}:
		defer func() { <-s.joining }()
	default:
		http.Error(w, "others are joining; try again in a moment", http.StatusServiceUnavailable)
		return
	}
	// Whoever speaks here has shown no certificate.
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(joinPatience))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxApplication))
	if err != nil {
		http.Error(w, "the request is too long, or was cut off", http.StatusBadRequest)
		return
	}
	answer, name, err := s.Admit(body)
	if err != nil {
		s.Logger.Warn("a site was not admitted", "site", name, "address", r.RemoteAddr, "error", err)
		status, text := http.StatusInternalServerError, "the consortium could not admit the site; its log says why"
		if errors.Is(err, ErrInvitation) || errors.Is(err, ErrDocument) {
			status, text = http.StatusForbidden, err.Error()
		}
		http.Error(w, text, status)
		return
	}
	s.Logger.Info("a site has joined", "site", name, "address", r.RemoteAddr)
	w.Header().Set("Content-Type", "application/json")
	w.Write(answer)
}

// health answers probes, which hold no certificate: it names nobody.
func (s *server) health(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	runs := len(s.active)
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"status": "ok", "sites_connected": len(s.wire.Connected()), "runs": runs})
}

// look starts to lead runs that are new, or go on, and ends those that were
// stopped.
func (s *server) look(ctx context.Context, runs *sync.WaitGroup) {
	all, err := s.runs()
	if err != nil {
		s.Logger.Error("looking for runs", "error", err)
		return
	}
	for _, name := range all {
		s.mu.Lock()
		cancel, leading := s.active[name]
		s.mu.Unlock()
		wanted := s.wanted(name)
		switch {
		case leading && !wanted && cancel != nil:
			cancel()
		case !leading && wanted:
			leading, cancel := context.WithCancel(ctx)
			s.mu.Lock()
			s.active[name] = cancel
			s.mu.Unlock()
			runs.Go(func() {
				defer cancel()
				s.lead(leading, name)
				s.mu.Lock()
				delete(s.active, name)
				s.mu.Unlock()
			})
		}
	}
}
