package wire

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vigie/vigie/federate/wire/protocol"
)

// Options says what a server is.
type Options struct {
	Federation string // whose sites it serves: the trust domain of their SPIFFE ids
	Dir        string // where what arrives is spooled; made if it is not there, and this server's alone
	Limits     Limits
	// Allowed is asked whenever a site speaks, and as long as it listens, whether it
	// may; so a site is admitted or sent away without a restart. nil admits every
	// certificate of a site that TLS has verified.
	Allowed  func(site string, certificate *x509.Certificate) error
	Compress bool         // messages by gzip; bulk parts do not get smaller by it
	Logger   *slog.Logger // nil discards
}

// Server is the consortium's end of the links to all sites. It keeps no state
// that matters beyond its process but parts of answers that were on their way.
type Server struct {
	Options

	doors doors

	mu     sync.Mutex
	sites  map[string]*peer
	closed chan struct{}
	shut   sync.Once
}

// peer is a site as the server knows it.
type peer struct {
	calls  []*call // that wait for an answer, in the order that they were asked
	cancel []string
	stream *stream // nil: not connected
	// answering is held by the request whose answer is read: one at a time, so that a
	// site has no more than one message in this server's memory.
	answering chan struct{}
	tidy      bool // what an earlier process left was removed
}

// stream is a connection on which a site listens.
type stream struct {
	wake     chan struct{}
	replaced chan struct{}
}

// call is a Call that waits for its answer.
type call struct {
	Call
	site   string
	sent   *stream // the stream that it was sent on last
	over   bool    // answered, or nobody waits any more
	answer chan Reply
	failed chan error

	uses uses // requests that read or write the bulk parts

	uploading sync.Mutex
	upload    *upload // of the answer's bulk part
}

// NewServer makes a server ready. It listens to nobody by itself: see HTTP.
func NewServer(o Options) (*Server, error) {
	if o.Federation == "" || o.Dir == "" {
		return nil, errors.New("wire: making a server: it needs the name of a federation and a folder")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Limits = o.Limits.filled()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("wire: making a server: %w", err)
	}
	s := &Server{Options: o, sites: map[string]*peer{}, closed: make(chan struct{})}
	s.doors = doors{limits: o.Limits, of: map[net.Conn]string{}, sites: map[string][]net.Conn{}}
	return s, nil
}

// Close ends all streams, so that an http.Server can be shut down. Sites keep
// trying to connect.
func (s *Server) Close() { s.shut.Do(func() { close(s.closed) }) }

// HTTP is an HTTP server for this one, with the time limits that keep slow
// clients from holding it. The configuration demands client certificates; see
// certificates.Files.Server.
func (s *Server) HTTP(config *tls.Config) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler: s.Handler(), TLSConfig: config, Protocols: protocols,
		ReadHeaderTimeout: s.Limits.Stall, IdleTimeout: 3 * s.Limits.Alive, MaxHeaderBytes: 16 << 10,
		HTTP2:     http2Config(s.Limits),
		ConnState: s.doors.state, ConnContext: withConn,
		ErrorLog: slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug),
	}
}

// http2Config keeps frames small: a connection's buffers for reading and writing one
// stay for as long as it does, and a server has very many.
func http2Config(l Limits) *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams: 32, MaxReadFrameSize: 16 << 10,
		MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 1 << 20,
		SendPingTimeout: l.Alive, PingTimeout: l.Alive, WriteByteTimeout: l.Stall,
	}
}

// caller is who a request is from, admitted by Handler.
type caller struct {
	site string
	leaf *x509.Certificate
}

type callerKey struct{}

func callerOf(ctx context.Context) caller { return ctx.Value(callerKey{}).(caller) }

// Handler serves the protocol, to be mounted at the root under TLS 1.3 with
// verified client certificates and HTTP/2. It answers nobody else.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	options := []connect.HandlerOption{connect.WithReadMaxBytes(s.Limits.Message), connect.WithCompressMinBytes(1 << 10)}
	if !s.Compress {
		options = append(options, connect.WithCompression("gzip", nil, nil))
	}
	mux.Handle(protocol.NewFederationHandler(federation{s}, options...))
	mux.HandleFunc("GET "+downPath+"{digest}", s.down)
	mux.HandleFunc(upPath+"{call}/{digest}", s.up)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			http.Error(w, "HTTP/2 is spoken here", http.StatusHTTPVersionNotSupported)
			return
		}
		name, leaf, err := s.identify(r)
		if err != nil {
			s.Logger.Warn("a client was turned away", "address", r.RemoteAddr, "reason", err)
			http.Error(w, "not admitted", http.StatusForbidden) // which Connect reads as permission denied
			return
		}
		s.doors.enter(r.Context(), name)
		switch body := http.NewResponseController(w); r.URL.Path {
		case protocol.FederationAnswerProcedure:
			leave := s.turn(r.Context(), name, r.Header.Get(callHeader))
			if leave == nil {
				connect.NewErrorWriter().Write(w, r, connect.NewError(connect.CodeNotFound, errors.New("no such call waits for this site")))
				return
			}
			defer leave()
			body.SetReadDeadline(time.Now().Add(4 * s.Limits.Stall))
		case protocol.FederationEventsProcedure: // which begins with a word
			r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
			body.SetReadDeadline(time.Now().Add(s.Limits.Stall))
		}
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller{name, leaf})))
	})
}

// turn waits until no other answer of a site is read, and returns nil if nobody
// waits for this one; with an empty id, for none.
func (s *Server) turn(ctx context.Context, site, id string) (leave func()) {
	wanted := func() chan struct{} {
		s.mu.Lock()
		defer s.mu.Unlock()
		if p := s.sites[site]; p != nil {
			for _, c := range p.calls {
				if !c.over && (id == "" || c.ID == id) {
					return p.answering
				}
			}
		}
		return nil
	}
	answering := wanted()
	if answering == nil {
		return nil
	}
	select {
	case answering <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	if wanted() == nil { // by now
		<-answering
		return nil
	}
	return func() { <-answering }
}

// Connected lists the sites that listen now, in the order of their names.
func (s *Server) Connected() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := []string{}
	for name, p := range s.sites {
		if p.stream != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (s *Server) peer(name string) *peer {
	p := s.sites[name]
	if p == nil {
		p = &peer{answering: make(chan struct{}, 1)}
		s.sites[name] = p
	}
	return p
}

// Ask sends a site a call and waits for its answer, over as many connections as
// it takes, until the context ends. An error wraps ErrRefused or ErrFailed for
// what the site said, ErrCall for a call that cannot be sent, or is the
// context's.
func (s *Server) Ask(ctx context.Context, site string, c Call) (Reply, error) {
	if c.ID == "" {
		c.ID = rand.Text()
	}
	fail := func(err error) (Reply, error) {
		return Reply{}, fmt.Errorf("wire: asking %q to %s in run %q: %w", site, c.Kind, c.Run, err)
	}
	if err := c.check(s.Limits); err != nil {
		return fail(err)
	}
	if !validSite(site) {
		return fail(fmt.Errorf("%w: no name of a site", ErrCall))
	}
	waiting := &call{Call: c, site: site, answer: make(chan Reply, 1), failed: make(chan error, 1)}
	if err := s.enqueue(waiting); err != nil {
		return fail(err)
	}
	defer s.dequeue(waiting)
	select {
	case reply := <-waiting.answer:
		return reply, nil
	case err := <-waiting.failed:
		return fail(err)
	case <-ctx.Done():
		return fail(ctx.Err())
	}
}

func (s *Server) enqueue(c *call) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peer(c.site)
	if len(p.calls) >= s.Limits.Calls {
		return fmt.Errorf("%w: %d calls wait there already", ErrCall, len(p.calls))
	}
	for _, other := range p.calls {
		if other.ID == c.ID {
			return fmt.Errorf("%w: %q waits there already", ErrCall, c.ID)
		}
	}
	p.calls = append(p.calls, c)
	if !p.tidy {
		s.tidy(c)
		p.tidy = true
	}
	p.stream.notify()
	return nil
}

// dequeue ends a call: nobody may use its bulk part any more, and what arrived
// of an answer that nobody took is removed.
func (s *Server) dequeue(c *call) {
	s.mu.Lock()
	p := s.sites[c.site]
	p.calls = slices.DeleteFunc(p.calls, func(other *call) bool { return other == c })
	if c.sent != nil && c.sent == p.stream && !c.over {
		p.cancel = append(p.cancel, c.ID)
		p.stream.notify()
	}
	c.over = true
	s.mu.Unlock()
	c.uses.end()
	select {
	case reply := <-c.answer: // it came as the context ended
		reply.Bulk.Close()
	default:
	}
	c.uploading.Lock()
	defer c.uploading.Unlock()
	if c.upload != nil {
		c.upload.end()
	}
}

// settle gives a call its answer, the first time. It returns false if the bulk
// part, which arrived by the upload, has been replaced by another since.
func (s *Server) settle(c *call, reply Reply, from *upload, failure error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.over {
		return true
	}
	if failure != nil {
		c.failed <- failure
	} else {
		if from != nil {
			c.uploading.Lock()
			defer c.uploading.Unlock()
			if c.upload != from {
				return false
			}
			from.handed = true
		}
		c.answer <- reply
	}
	c.over = true
	return true
}

// waiting finds a call of this site that waits.
func (s *Server) waiting(site, id string) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.sites[site]; p != nil {
		for _, c := range p.calls {
			if c.ID == id {
				return c
			}
		}
	}
	return nil
}

func (st *stream) notify() {
	if st == nil {
		return
	}
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// federation serves the RPCs.
type federation struct{ *Server }

var _ protocol.FederationHandler = federation{}

// Events pushes what waits for the site until one of both goes away, or the site
// connects from elsewhere.
func (f federation) Events(ctx context.Context, request *connect.Request[protocol.Hello], out *connect.ServerStream[protocol.Event]) error {
	s, name, leaf := f.Server, callerOf(ctx).site, callerOf(ctx).leaf
	if request.Msg.Version != version {
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("version %d of the protocol; this server speaks %d", request.Msg.Version, version))
	}
	st := &stream{wake: make(chan struct{}, 1), replaced: make(chan struct{})}
	s.mu.Lock()
	p := s.peer(name)
	if p.stream != nil {
		close(p.stream.replaced)
	}
	p.stream, p.cancel = st, nil
	s.mu.Unlock()
	s.Logger.Info("a site has connected", "site", name)
	defer func() {
		s.mu.Lock()
		if p.stream == st {
			p.stream = nil
		}
		s.mu.Unlock()
		s.Logger.Info("a site has gone", "site", name)
	}()
	alive := time.NewTicker(s.Limits.Alive)
	defer alive.Stop()
	if err := out.Send(&protocol.Event{Event: &protocol.Event_Alive{Alive: true}}); err != nil {
		return err
	}
	for {
		events := s.next(p, st)
		if len(events) > 0 {
			if err := s.admits(name, leaf); err != nil {
				return connect.NewError(connect.CodePermissionDenied, errors.New("not admitted"))
			}
		}
		for _, e := range events {
			if err := out.Send(e); err != nil {
				return err
			}
		}
		select {
		case <-st.wake:
		case <-st.replaced:
			return connect.NewError(connect.CodeAborted, errors.New("the site has connected once more"))
		case <-s.closed:
			return connect.NewError(connect.CodeUnavailable, errors.New("the server is going away"))
		case <-ctx.Done():
			return ctx.Err()
		case <-alive.C:
			if err := s.admits(name, leaf); err != nil {
				return connect.NewError(connect.CodePermissionDenied, errors.New("not admitted"))
			}
			if err := out.Send(&protocol.Event{Event: &protocol.Event_Alive{Alive: true}}); err != nil {
				return err
			}
		}
	}
}

// next is what was not yet sent on a stream.
func (s *Server) next(p *peer, st *stream) []*protocol.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.stream != st {
		return nil
	}
	var events []*protocol.Event
	for _, id := range p.cancel {
		events = append(events, &protocol.Event{Event: &protocol.Event_Cancel{Cancel: id}})
	}
	p.cancel = nil
	for _, c := range p.calls {
		if c.sent == st {
			continue
		}
		c.sent = st
		m := &protocol.Call{Id: c.ID, Run: c.Run, Kind: c.Kind, Body: c.Body, Room: uint64(c.Room)}
		if !c.Bulk.None() {
			m.Bulk = &protocol.Bulk{Sha256: c.Bulk.Digest[:], Length: uint64(c.Bulk.Length)}
		}
		events = append(events, &protocol.Event{Event: &protocol.Event_Call{Call: m}})
	}
	return events
}

// Answer takes the answer of a call that waits at this site.
func (f federation) Answer(ctx context.Context, request *connect.Request[protocol.AnswerRequest]) (*connect.Response[protocol.AnswerResponse], error) {
	m := request.Msg
	c := f.waiting(callerOf(ctx).site, m.Id)
	if c == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such call waits for this site"))
	}
	done := connect.NewResponse(&protocol.AnswerResponse{})
	invalid := func(format string, arguments ...any) (*connect.Response[protocol.AnswerResponse], error) {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, arguments...))
	}
	if m.Failure != nil {
		kind := ErrFailed
		if m.Failure.Refused {
			kind = ErrRefused
		}
		f.settle(c, Reply{}, nil, fmt.Errorf("%w: %s", kind, shorten(m.Failure.Text)))
		return done, nil
	}
	if !json.Valid(m.Body) {
		return invalid("the body is not JSON")
	}
	reply := Reply{Body: m.Body}
	var from *upload
	if m.Bulk != nil {
		if len(m.Bulk.Sha256) != sha256.Size {
			return invalid("a digest of %d bytes", len(m.Bulk.Sha256))
		}
		var err error
		if reply.Bulk, from, err = c.arrived([sha256.Size]byte(m.Bulk.Sha256), m.Bulk.Length); err != nil {
			return invalid("%v", err)
		}
	}
	if !f.settle(c, reply, from, nil) {
		return invalid("another bulk part was sent since")
	}
	return done, nil
}

// spool is where a site's bulk parts arrive.
func (s *Server) spool(site string) string { return filepath.Join(s.Dir, site) }

// tidy removes what an earlier process left of a site's answers, but for the
// part of this call's, which goes on where it was.
func (s *Server) tidy(c *call) {
	entries, err := os.ReadDir(s.spool(c.site))
	if err != nil {
		return // there is none yet
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), c.ID+".") {
			os.Remove(filepath.Join(s.spool(c.site), e.Name()))
		}
	}
}
