package dimse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"
)

const (
	chunkBuffer = 64 << 10
	// maxStrayData is what is drained of a data set that no operation of ours
	// takes (an unknown command's).
	maxStrayData = 1 << 20
)

var errShutdown = errors.New("dimse: the server is shutting down")

// association is one accepted association of a server.
type association struct {
	server   *Server
	link     *link
	peer     Peer
	contexts map[byte]presentation
	chunk    []byte
	end      time.Time
	objects  int
	log      *slog.Logger
}

// serveConnection lives through one connection, from the first byte to the
// last. Whatever happens in it stays in it.
func (s *Server) serveConnection(ctx context.Context, conn net.Conn, live *links) {
	remote := conn.RemoteAddr().String()
	log := s.cfg.Logger.With("remote", remote)
	defer conn.Close()
	defer func() {
		if p := recover(); p != nil {
			// Not the value: it might quote an object. The stack has no values.
			log.Error("an association panicked", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
		}
	}()
	leave := s.lobby.enter(conn)
	defer func() { leave() }()

	secure := prompt(conn)
	if s.cfg.TLS != nil {
		secure = tls.Server(secure, s.cfg.TLS)
	}
	l := newLink(secure, uint32(s.cfg.MaxPDU), s.cfg.ARTIM)
	l.until = time.Now().Add(s.cfg.ARTIM)
	live.add(l)
	defer live.remove(l)

	a := &association{server: s, link: l, peer: Peer{RemoteAddr: remote}, log: log}
	request, err := a.open(ctx)
	if err != nil {
		s.refused.Add(1)
		log.Info("connection refused", "error", err)
		a.fail(err)
		return
	}
	a.log = log.With("calling", a.peer.CallingAE)

	vacate, err := s.admit(a, request)
	if err != nil {
		s.rejected.Add(1)
		a.log.Warn("association rejected", "called", a.peer.CalledAE, "error", err)
		if l.write(rejection(err).pdu()) == nil {
			l.linger(time.Now().Add(s.cfg.ARTIM))
		}
		return
	}
	defer vacate()
	s.accepted.Add(1)
	leave()
	started := time.Now()
	err = a.run(ctx, request)
	a.log.Info("association ended", "objects", a.objects, "duration", time.Since(started).Round(time.Millisecond), "how", describe(err))
	if err != nil {
		s.aborted.Add(1)
	}
	// The place is free for another peer before this one is seen off.
	vacate()
	leave = s.lobby.enter(conn)
	a.fail(err)
}

// describe is the log's word for the end of an association.
func describe(err error) string {
	if err == nil {
		return "released"
	}
	return err.Error()
}

// rejection finds what to tell a peer that Allow turned away.
func rejection(err error) *RejectedError {
	var r *RejectedError
	if !errors.As(err, &r) {
		errors.As(ErrCallingAE, &r)
	}
	return r
}

// open performs the TLS handshake and reads the association request, all under
// the ARTIM timer.
func (a *association) open(ctx context.Context) (*associate, error) {
	l := a.link
	l.wait(true)
	defer l.wait(false)
	if secure, ok := l.conn.(*tls.Conn); ok {
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("dimse: TLS handshake: %w", timeout(err))
		}
		if certificates := secure.ConnectionState().PeerCertificates; len(certificates) > 0 {
			a.peer.Certificate = certificates[0]
		}
	}
	kind, length, err := l.next()
	if err != nil {
		return nil, err
	}
	body, err := l.body(length)
	if err != nil {
		return nil, err
	}
	request, err := decodeAssociate(kind, body)
	if err != nil {
		return nil, err
	}
	a.peer.CallingAE, a.peer.CalledAE = request.calling, request.called
	return request, nil
}

// admit checks the request against the configuration and takes a place, which
// vacate gives back, the first time it is called.
func (s *Server) admit(a *association, rq *associate) (vacate func(), err error) {
	switch {
	case rq.version&protocolVersion == 0:
		return nil, ErrProtocolVersion
	case rq.application != applicationContext:
		return nil, ErrApplicationContext
	case rq.called == "" || (s.cfg.AETitle != "" && rq.called != s.cfg.AETitle):
		return nil, ErrCalledAE
	case rq.calling == "":
		return nil, ErrCallingAE
	}
	if err := s.cfg.Allow(a.peer); err != nil {
		return nil, fmt.Errorf("dimse: not allowed: %w", err)
	}
	select {
	case s.slots <- struct{}{}:
	default:
		return nil, ErrTooMany
	}
	s.open.Add(1)
	return sync.OnceFunc(func() {
		s.open.Add(-1)
		<-s.slots
	}), nil
}

// run answers the request and serves messages until the association ends; nil
// means a release.
func (a *association) run(ctx context.Context, rq *associate) error {
	cfg, l := &a.server.cfg, a.link
	answers, accepted, roles := negotiate(rq, a.server.accepts)
	a.contexts = accepted
	if l.send = DefaultMaxPDU; rq.user.maxLength != 0 {
		if l.send = min(rq.user.maxLength, DefaultMaxPDU); l.send < MinMaxPDU {
			return violate(reasonInvalidParameterValue, "maximum length of %d bytes", rq.user.maxLength)
		}
	}
	ac := &associate{
		version: protocolVersion, called: rq.called, calling: rq.calling, application: applicationContext, contexts: answers,
		user: userInformation{
			maxLength: uint32(cfg.MaxPDU), class: ImplementationClassUID, version: ImplementationVersion, roles: roles,
			// One operation at a time, said aloud when the peer asked for more.
			async: rq.user.async, asyncInvoke: 1, asyncDo: 1,
		},
	}
	l.idle = cfg.IdleTimeout
	a.end = time.Now().Add(cfg.AssociationTimeout)
	l.state = established
	if err := l.write(ac.encode(pduAssociateAC)); err != nil {
		return err
	}
	a.log.Info("association accepted", "contexts", len(accepted), "of", len(answers))
	a.chunk = make([]byte, chunkBuffer)
	for {
		a.limit(cfg.IdleTimeout + cfg.ObjectTimeout) // to begin, and to send the command
		context, c, err := l.readCommand()
		if errors.Is(err, errReleaseRequested) {
			return l.write(releaseRP())
		}
		if err != nil {
			if l.isInterrupted() {
				return errShutdown
			}
			return err
		}
		a.limit(cfg.ObjectTimeout)
		if err := a.serve(ctx, context, c); err != nil {
			return err
		}
	}
}

// limit gives the peer a time from now, within the association's.
func (a *association) limit(d time.Duration) {
	a.link.until = time.Now().Add(d)
	if a.end.Before(a.link.until) {
		a.link.until = a.end
	}
}

// serve performs one operation and answers it.
func (a *association) serve(ctx context.Context, context byte, c *command) error {
	accepted, ok := a.contexts[context]
	if !ok {
		return violate(reasonUnexpectedParameter, "message on presentation context %d, which was not accepted", context)
	}
	if c.isResponse() {
		return violate(reasonNotSpecified, "response 0x%04X to nothing", c.field)
	}
	var status Status
	switch c.field {
	case commandStoreRQ:
		var err error
		if status, err = a.store(ctx, accepted, c); err != nil {
			return err
		}
	case commandEchoRQ:
		if err := a.drain(c, context, maxStrayData); err != nil {
			return err
		}
		if accepted.abstract != VerificationSOPClass {
			status = SOPClassNotSupported
		}
	case commandCancelRQ: // what it would cancel is over; it has no answer
		return a.drain(c, context, 0)
	default:
		if err := a.drain(c, context, maxStrayData); err != nil {
			return err
		}
		status = UnrecognizedOperation
	}
	return a.link.sendCommand(context, c.respond(status))
}

// drain reads a data set that nobody wants.
func (a *association) drain(c *command, context byte, limit int64) error {
	if !c.hasData() {
		return nil
	}
	return a.drainFrom(&dataSet{link: a.link, context: context}, limit)
}

func (a *association) drainFrom(data io.Reader, limit int64) error {
	for {
		n, err := data.Read(a.chunk)
		if limit -= int64(n); limit < 0 {
			return violate(reasonNotSpecified, "the peer does not stop sending a data set that was given up")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// refusal is why a C-STORE-RQ is not even looked at further; Success when it is.
func refusal(accepted presentation, c *command) Status {
	switch {
	case !c.has(hasAffectedClass | hasInstance):
		return MissingAttribute
	case c.affectedClass != accepted.abstract || accepted.abstract == VerificationSOPClass:
		return SOPClassNotSupported
	case !validUID(c.instance):
		return InvalidSOPInstance
	case !c.hasData():
		return CannotUnderstand
	}
	return Success
}

// store receives one object. An error ends the association; everything else
// is a status.
func (a *association) store(ctx context.Context, accepted presentation, c *command) (Status, error) {
	s, cfg := a.server, &a.server.cfg
	if status := refusal(accepted, c); status != Success {
		return status, a.drain(c, accepted.id, cfg.MaxObject)
	}
	data := &dataSet{link: a.link, context: accepted.id}
	spool, err := cfg.NewSpool()
	if err != nil {
		s.discarded.Add(1)
		a.log.Error("no room for an object", "error", err)
		return OutOfResources, a.drainFrom(data, cfg.MaxObject)
	}
	discard := spool.Discard
	defer func() { discard() }()

	size, full, err := a.fill(spool, data, fileHeader(c.affectedClass, c.instance, accepted.transfer[0], a.peer.CallingAE))
	if err != nil {
		return 0, err
	}
	if full != nil {
		s.discarded.Add(1)
		a.log.Error("an object was given up", "error", full)
		spool.Discard()
		discard = func() {}
		return OutOfResources, a.drainFrom(data, cfg.MaxObject)
	}
	s.objects.Add(1)
	s.bytes.Add(size)
	a.objects++
	status := cfg.Store(ctx, StoreRequest{
		Peer: a.peer, SOPClass: c.affectedClass, SOPInstance: c.instance, TransferSyntax: accepted.transfer[0],
		Spool: spool, Size: size,
	})
	if status.Stored() {
		s.stored.Add(1)
	}
	return status, nil
}

// fill copies header and data into the spool. full says why the spool cannot
// take the object while the association goes on; err that it does not.
func (a *association) fill(spool Spool, data io.Reader, header []byte) (size int64, full, err error) {
	limit := a.server.cfg.MaxObject
	piece := header
	for ended := false; ; {
		if size += int64(len(piece)); size > limit {
			return size, fmt.Errorf("dimse: the object is larger than the %d bytes allowed", limit), nil
		}
		if _, err := spool.Write(piece); err != nil {
			return size, fmt.Errorf("dimse: spooling: %w", err), nil
		}
		if ended {
			return size, nil, nil
		}
		// TLS hands out 16 KiB at a time; a spool is written to in larger pieces.
		n := 0
		for n < len(a.chunk) && !ended {
			m, err := data.Read(a.chunk[n:])
			if err != nil && !errors.Is(err, io.EOF) {
				return size, nil, err
			}
			n, ended = n+m, err != nil
		}
		piece = a.chunk[:n]
	}
}

// fail tells the peer, in the protocol's words, why the connection ends, and
// sees it off. After a release (nil) it only waits for the peer to close.
func (a *association) fail(err error) {
	l := a.link
	end := time.Now().Add(a.server.cfg.ARTIM)
	var v *violation
	var aborted *AbortedError
	switch {
	case err == nil:
	case errors.As(err, &aborted), errors.Is(err, errPeerClosed):
		return
	case l.state == awaitingRequest && !errors.As(err, &v): // AA-2
		return
	case errors.As(err, &v):
		source := abortByProvider
		if l.state.on(0) == abortAsUser || v.reason == reasonNotSpecified {
			source = abortByUser
		}
		l.abort(source, v.reason)
	default: // a timeout, a shutdown, a broken connection
		l.abort(abortByProvider, reasonNotSpecified)
	}
	l.linger(end)
}
