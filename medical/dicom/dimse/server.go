package dimse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of a [ServerConfig].
const (
	DefaultMaxAssociations    = 64
	DefaultMaxObject          = 1 << 30
	DefaultARTIM              = 15 * time.Second
	DefaultIdleTimeout        = 60 * time.Second
	DefaultObjectTimeout      = 15 * time.Minute
	DefaultAssociationTimeout = 4 * time.Hour
	DefaultShutdownGrace      = 30 * time.Second
)

// ServerConfig says how a [Server] behaves. NewSpool and Store are required,
// and so is either TLS or Plain; every zero value of the rest means its
// default.
type ServerConfig struct {
	AETitle string      // the called AE title to insist on; "": any
	TLS     *tls.Config // see [ServerTLS]; anything laxer than TLS 1.3 with verified client certificates is refused
	Plain   bool        // without TLS; then Serve takes loopback listeners only

	// Allow decides about a peer after its certificate has been verified. An
	// error rejects the association: a *RejectedError as it says, any other as
	// "calling AE title not recognised". nil allows every verified peer.
	Allow func(Peer) error

	// MorePrivate lists SOP classes to accept beyond [IsStorage], for vendors'
	// private storage classes.
	MorePrivate []string

	MaxPDU             int           // largest P-DATA-TF body accepted, in bytes
	MaxAssociations    int           // at once; further ones are told "local limit exceeded"
	MaxConnections     int           // connections at once that are not associations (handshakes, farewells); beyond it the oldest is closed. Default twice MaxAssociations, at least 64
	MaxObject          int64         // largest object, in bytes of its file; a larger one is drained (as much again at most) and answered OutOfResources
	ARTIM              time.Duration // from connecting to the association request, and for closing (PS3.8 section 9.1.5)
	IdleTimeout        time.Duration // for the next PDU to arrive completely
	ObjectTimeout      time.Duration // for one message to arrive completely
	AssociationTimeout time.Duration // for a whole association
	ShutdownGrace      time.Duration // for messages under way when Serve's context ends

	// NewSpool opens the place for one object. An error is answered
	// OutOfResources after the object has been drained.
	NewSpool func() (Spool, error)

	// Store takes a complete object and returns what to answer. It may block
	// until the object is durable. ctx ends when a shutdown is past its grace;
	// Serve returns only after Store has.
	Store func(ctx context.Context, r StoreRequest) Status

	Logger *slog.Logger // default: discards
}

// Stats counts what a server has done since it was made.
type Stats struct {
	Open      int64 // associations now
	Accepted  int64 // associations
	Rejected  int64 // associations
	Aborted   int64 // associations that did not end with a release
	Refused   int64 // connections without a valid handshake or request
	Objects   int64 // received completely, whatever Store said
	Stored    int64 // answered with success or a warning
	Discarded int64 // given up before Store: too large, no spool
	Bytes     int64 // of objects received completely
}

// Server is a service class provider of Verification and Storage. Make it with
// [NewServer].
type Server struct {
	cfg     ServerConfig
	private map[string]bool
	slots   chan struct{}
	lobby   *lobby

	open, accepted, rejected, aborted, refused atomic.Int64
	objects, stored, discarded, bytes          atomic.Int64
}

// NewServer checks the configuration and fills in its defaults.
func NewServer(cfg ServerConfig) (*Server, error) {
	switch {
	case cfg.NewSpool == nil || cfg.Store == nil:
		return nil, errors.New("dimse: making a server: NewSpool and Store are required")
	case cfg.AETitle != "" && !checkAE(cfg.AETitle):
		return nil, fmt.Errorf("dimse: making a server: AE title %q: want 1 to 16 printable characters without backslash or outer blanks", cfg.AETitle)
	case cfg.TLS == nil && !cfg.Plain:
		return nil, errors.New("dimse: making a server: no TLS configuration; make one with ServerTLS, or set Plain for a loopback listener")
	case cfg.TLS != nil && cfg.Plain:
		return nil, errors.New("dimse: making a server: both TLS and Plain are set")
	case cfg.TLS != nil && (cfg.TLS.MinVersion < tls.VersionTLS13 || cfg.TLS.ClientAuth != tls.RequireAndVerifyClientCert):
		return nil, errors.New("dimse: making a server: the TLS configuration allows less than TLS 1.3 with verified client certificates; make it with ServerTLS")
	}
	setDefault(&cfg.MaxPDU, DefaultMaxPDU)
	setDefault(&cfg.MaxAssociations, DefaultMaxAssociations)
	setDefault(&cfg.MaxConnections, max(64, 2*cfg.MaxAssociations))
	setDefault(&cfg.MaxObject, DefaultMaxObject)
	setDefault(&cfg.ARTIM, DefaultARTIM)
	setDefault(&cfg.IdleTimeout, DefaultIdleTimeout)
	setDefault(&cfg.ObjectTimeout, DefaultObjectTimeout)
	setDefault(&cfg.AssociationTimeout, DefaultAssociationTimeout)
	setDefault(&cfg.ShutdownGrace, DefaultShutdownGrace)
	if cfg.MaxPDU < MinMaxPDU || cfg.MaxPDU > MaxMaxPDU {
		return nil, fmt.Errorf("dimse: making a server: MaxPDU %d: want %d to %d", cfg.MaxPDU, MinMaxPDU, MaxMaxPDU)
	}
	if cfg.MaxAssociations < 0 || cfg.MaxConnections < 0 || cfg.MaxObject < 0 || cfg.ARTIM < 0 || cfg.IdleTimeout < 0 ||
		cfg.ObjectTimeout < 0 || cfg.AssociationTimeout < 0 || cfg.ShutdownGrace < 0 {
		return nil, errors.New("dimse: making a server: limits and timeouts are positive")
	}
	if cfg.Allow == nil {
		cfg.Allow = func(Peer) error { return nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, private: map[string]bool{}, slots: make(chan struct{}, cfg.MaxAssociations), lobby: newLobby(cfg.MaxConnections)}
	for _, uid := range cfg.MorePrivate {
		if !validUID(uid) {
			return nil, fmt.Errorf("dimse: making a server: private SOP class %q is not a UID", uid)
		}
		s.private[uid] = true
	}
	return s, nil
}

func setDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	return Stats{
		Open: s.open.Load(), Accepted: s.accepted.Load(), Rejected: s.rejected.Load(), Aborted: s.aborted.Load(),
		Refused: s.refused.Load(), Objects: s.objects.Load(), Stored: s.stored.Load(), Discarded: s.discarded.Load(), Bytes: s.bytes.Load(),
	}
}

func (s *Server) accepts(sopClass string) bool {
	return sopClass == VerificationSOPClass || IsStorage(sopClass) || s.private[sopClass]
}

// Serve accepts associations on listener until ctx ends or the listener fails.
// When ctx ends it accepts no more, aborts associations that are between two
// messages, lets a message under way be finished and answered for
// ShutdownGrace, then ends the rest, and returns nil. The listener is closed in
// any case. Several Serve calls may share a server and its limits.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	defer listener.Close()
	if s.cfg.TLS == nil && !isLoopback(listener.Addr()) {
		return fmt.Errorf("dimse: serving on %s: without TLS only a loopback address is allowed; configure TLS or listen on 127.0.0.1", listener.Addr())
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()

	work, cancelWork := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelWork()
	var running sync.WaitGroup
	live := &links{}
	failure := s.acceptAll(ctx, listener, func(conn net.Conn) {
		running.Go(func() { s.serveConnection(work, conn, live) })
	})

	live.interrupt()
	done := make(chan struct{})
	go func() { running.Wait(); close(done) }()
	grace := time.NewTimer(s.cfg.ShutdownGrace)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
		cancelWork()
		live.cancel()
		<-done
	}
	return failure
}

// acceptAll hands out connections until ctx ends (nil) or the listener fails.
// A lack of descriptors or memory is waited out.
func (s *Server) acceptAll(ctx context.Context, listener net.Listener, handle func(net.Conn)) error {
	const shortest, longest = 5 * time.Millisecond, time.Second
	pause := shortest
	for {
		conn, err := listener.Accept()
		if err == nil {
			pause = shortest
			handle(conn)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("dimse: serving on %s: %w", listener.Addr(), err)
		}
		s.cfg.Logger.Warn("accepting a connection failed, trying again", "error", err, "pause", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}

// isLoopback reports whether an address can only be reached from this machine.
func isLoopback(addr net.Addr) bool {
	host, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// links is the set of running connections of one Serve.
type links struct {
	mu          sync.Mutex
	set         map[*link]struct{}
	interrupted bool
	cancelled   bool
}

func (s *links) add(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = map[*link]struct{}{}
	}
	s.set[l] = struct{}{}
	if s.interrupted {
		l.interrupt()
	}
	if s.cancelled {
		l.cancel()
	}
}

func (s *links) remove(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.set, l)
}

func (s *links) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interrupted = true
	for l := range s.set {
		l.interrupt()
	}
}

func (s *links) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancelled = true
	for l := range s.set {
		l.cancel()
	}
}
