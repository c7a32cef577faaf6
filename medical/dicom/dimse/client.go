package dimse

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

// ErrNotAccepted is returned when the peer accepted no presentation context
// that fits an operation. The object may be sent in another transfer syntax.
var ErrNotAccepted = errors.New("dimse: the peer did not accept this SOP class with this transfer syntax")

// ClientConfig says how [Dial] introduces itself.
type ClientConfig struct {
	CallingAE string        // our AE title
	CalledAE  string        // the peer's
	TLS       *tls.Config   // see [ClientTLS]
	Plain     bool          // without TLS; then only a loopback address is dialled
	MaxPDU    int           // largest P-DATA-TF body accepted, in bytes; 0: DefaultMaxPDU
	Timeout   time.Duration // longest silence of the peer, an answer to a C-STORE included; 0: DefaultIdleTimeout
}

// Context is a presentation context to propose. The peer picks one of the
// transfer syntaxes. To learn about each of several, propose the class several
// times with one syntax each, or use [Contexts].
type Context struct {
	SOPClass         string
	TransferSyntaxes []string
}

// Contexts proposes a SOP class with each transfer syntax on its own, so that
// the peer's answer tells which of them it takes.
func Contexts(sopClass string, transferSyntaxes ...string) []Context {
	contexts := make([]Context, len(transferSyntaxes))
	for i, syntax := range transferSyntaxes {
		contexts[i] = Context{SOPClass: sopClass, TransferSyntaxes: []string{syntax}}
	}
	return contexts
}

// Verification is the context that [Association.Echo] needs.
var Verification = Context{SOPClass: VerificationSOPClass, TransferSyntaxes: []string{dicom.ImplicitLittleEndian}}

// Association is an established association, requestor's side. Its methods may
// be called from several goroutines; they run one after the other. After an
// error other than ErrNotAccepted the association is closed and every further
// call fails.
type Association struct {
	mu       sync.Mutex
	link     *link
	accepted map[byte]presentation
	order    []byte // of the accepted context ids
	message  uint16
	buffer   []byte
	broken   error
}

var errClosed = errors.New("dimse: the association is closed")

// Dial connects to addr (host:port) and requests an association with the given
// presentation contexts (1 to 128). The answer may be a *RejectedError or an
// *AbortedError. ctx bounds the dialling only.
func Dial(ctx context.Context, addr string, cfg ClientConfig, contexts []Context) (*Association, error) {
	setDefault(&cfg.MaxPDU, DefaultMaxPDU)
	setDefault(&cfg.Timeout, DefaultIdleTimeout)
	request, err := cfg.request(contexts)
	if err != nil {
		return nil, fmt.Errorf("dimse: calling %s: %w", addr, err)
	}
	conn, err := (&net.Dialer{Timeout: cfg.Timeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dimse: calling %s: %w", addr, err)
	}
	conn = prompt(conn)
	if cfg.Plain {
		if !isLoopback(conn.RemoteAddr()) {
			conn.Close()
			return nil, fmt.Errorf("dimse: calling %s: without TLS only a loopback address is allowed", addr)
		}
	} else {
		secure := cfg.TLS
		if secure.ServerName == "" {
			secure = secure.Clone()
			secure.ServerName, _, _ = net.SplitHostPort(addr) // Dial has parsed it
		}
		conn = tls.Client(conn, secure)
	}
	a := &Association{link: newLink(conn, uint32(cfg.MaxPDU), cfg.Timeout)}
	a.link.state = awaitingAnswer
	if err := a.during(ctx, func() error { return a.establish(ctx, request) }); err != nil {
		return nil, fmt.Errorf("dimse: calling %s: %w", addr, err)
	}
	return a, nil
}

// request makes the association request that the configuration describes.
func (cfg *ClientConfig) request(contexts []Context) (*associate, error) {
	switch {
	case !checkAE(cfg.CallingAE) || !checkAE(cfg.CalledAE):
		return nil, fmt.Errorf("AE titles %q and %q: want 1 to 16 printable characters without backslash or outer blanks", cfg.CallingAE, cfg.CalledAE)
	case (cfg.TLS == nil) != cfg.Plain:
		return nil, errors.New("want either a TLS configuration (see ClientTLS) or Plain")
	case cfg.TLS != nil && cfg.TLS.MinVersion < tls.VersionTLS13:
		return nil, errors.New("the TLS configuration allows less than TLS 1.3; make it with ClientTLS")
	case cfg.MaxPDU < MinMaxPDU || cfg.MaxPDU > MaxMaxPDU:
		return nil, fmt.Errorf("MaxPDU %d: want %d to %d", cfg.MaxPDU, MinMaxPDU, MaxMaxPDU)
	case len(contexts) == 0 || len(contexts) > maxContexts:
		return nil, fmt.Errorf("%d presentation contexts: want 1 to %d", len(contexts), maxContexts)
	}
	rq := &associate{
		version: protocolVersion, called: cfg.CalledAE, calling: cfg.CallingAE, application: applicationContext,
		user: userInformation{maxLength: uint32(cfg.MaxPDU), class: ImplementationClassUID, version: ImplementationVersion},
	}
	for i, c := range contexts {
		if !validUID(c.SOPClass) || len(c.TransferSyntaxes) == 0 || slices.ContainsFunc(c.TransferSyntaxes, func(uid string) bool { return !validUID(uid) }) {
			return nil, fmt.Errorf("presentation context %d: want a SOP class UID and at least one transfer syntax UID", i)
		}
		rq.contexts = append(rq.contexts, presentation{id: byte(2*i + 1), abstract: c.SOPClass, transfer: c.TransferSyntaxes})
	}
	return rq, nil
}

// establish performs the handshake and the negotiation.
func (a *Association) establish(ctx context.Context, rq *associate) error {
	l := a.link
	l.until = time.Now().Add(l.idle)
	l.arm()
	if secure, ok := l.conn.(*tls.Conn); ok {
		if err := secure.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS handshake: %w", timeout(err))
		}
	}
	pdu := rq.encode(pduAssociateRQ)
	if len(pdu) > maxAssociatePDU {
		return fmt.Errorf("the association request has %d bytes, at most %d are sent; propose fewer transfer syntaxes", len(pdu), maxAssociatePDU)
	}
	if err := l.write(pdu); err != nil {
		return err
	}
	kind, length, err := l.next()
	if err != nil {
		return err
	}
	body, err := l.body(length)
	if err != nil {
		return err
	}
	if kind == pduAssociateRJ {
		return &RejectedError{Result: body[1], Source: body[2], Reason: body[3]}
	}
	ac, err := decodeAssociate(kind, body)
	if err != nil {
		return err
	}
	a.accepted = map[byte]presentation{}
	for _, p := range ac.contexts {
		if int(p.id) >= 2*len(rq.contexts) {
			return violate(reasonInvalidParameterValue, "answer for presentation context %d, which was not proposed", p.id)
		}
		proposed := rq.contexts[p.id/2]
		if p.result != contextAccepted {
			continue
		}
		if !slices.Contains(proposed.transfer, p.transfer[0]) {
			return violate(reasonInvalidParameterValue, "presentation context %d accepted with a transfer syntax that was not proposed", p.id)
		}
		a.accepted[p.id] = presentation{id: p.id, abstract: proposed.abstract, transfer: p.transfer}
		a.order = append(a.order, p.id)
	}
	if l.send = DefaultMaxPDU; ac.user.maxLength != 0 {
		if l.send = min(ac.user.maxLength, DefaultMaxPDU); l.send < MinMaxPDU {
			return violate(reasonInvalidParameterValue, "maximum length of %d bytes", ac.user.maxLength)
		}
	}
	l.until = time.Time{}
	l.state = established
	return nil
}

// Accepted lists what the peer accepted: each context with the one transfer
// syntax it chose, in the peer's order.
func (a *Association) Accepted() []Context {
	out := make([]Context, 0, len(a.order))
	for _, id := range a.order {
		p := a.accepted[id]
		out = append(out, Context{SOPClass: p.abstract, TransferSyntaxes: slices.Clone(p.transfer)})
	}
	return out
}

// TransferSyntaxes lists the transfer syntaxes in which the peer takes objects
// of a SOP class.
func (a *Association) TransferSyntaxes(sopClass string) []string {
	var out []string
	for _, c := range a.Accepted() {
		if c.SOPClass == sopClass {
			out = append(out, c.TransferSyntaxes...)
		}
	}
	return out
}

// find returns the context for a class and syntax ("": any).
func (a *Association) find(sopClass, transferSyntax string) (byte, error) {
	for _, id := range a.order {
		if p := a.accepted[id]; p.abstract == sopClass && (transferSyntax == "" || p.transfer[0] == transferSyntax) {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%w: %s, %s", ErrNotAccepted, SOPClassName(sopClass), transferSyntax)
}

// Echo sends a C-ECHO and waits for the answer.
func (a *Association) Echo(ctx context.Context) (Status, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	context, err := a.find(VerificationSOPClass, "")
	if err != nil {
		return 0, err
	}
	rq := &command{
		field: commandEchoRQ, affectedClass: VerificationSOPClass, dataSetType: noDataSet,
		present: hasField | hasMessageID | hasAffectedClass | hasDataSetType,
	}
	return a.request(ctx, context, rq, nil)
}

// Store sends one object and waits for the answer. data holds the bytes of the
// data set alone, without preamble and file meta information, encoded in
// transferSyntax. The status is the peer's word, good or bad; an error means
// that nothing is known about the object's fate.
func (a *Association) Store(ctx context.Context, sopClass, sopInstance, transferSyntax string, data io.Reader) (Status, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !validUID(sopInstance) {
		return 0, fmt.Errorf("dimse: storing an object: its SOP Instance UID of %d characters is not a UID", len(sopInstance))
	}
	context, err := a.find(sopClass, transferSyntax)
	if err != nil {
		return 0, err
	}
	rq := &command{
		field: commandStoreRQ, affectedClass: sopClass, instance: sopInstance, priority: priorityMedium, dataSetType: withDataSet,
		present: hasField | hasMessageID | hasAffectedClass | hasInstance | hasPriority | hasDataSetType,
	}
	return a.request(ctx, context, rq, data)
}

// request sends a command, its data set if any, and reads the answer.
func (a *Association) request(ctx context.Context, context byte, rq *command, data io.Reader) (Status, error) {
	a.message++
	rq.messageID = a.message
	var status Status
	err := a.during(ctx, func() error {
		if err := a.link.sendCommand(context, rq); err != nil {
			return err
		}
		if data != nil {
			if err := a.sendData(context, data); err != nil {
				return err
			}
		}
		answered, rsp, err := a.link.readCommand()
		switch {
		case errors.Is(err, errReleaseRequested):
			return violate(reasonUnexpectedPDU, "release before the answer")
		case err != nil:
			return err
		case answered != context || rsp.field != rq.field|responseBit || rsp.respondedTo != rq.messageID || rsp.hasData():
			return violate(reasonNotSpecified, "answer 0x%04X to message %d on context %d where 0x%04X to %d on %d was expected",
				rsp.field, rsp.respondedTo, answered, rq.field|responseBit, rq.messageID, context)
		}
		status = rsp.status
		return nil
	})
	return status, err
}

// sendData cuts a data set into P-DATA-TF as large as the peer takes. It reads
// one byte ahead, because the last fragment says that it is the last.
func (a *Association) sendData(context byte, data io.Reader) error {
	room := (int(a.link.send) - fragmentHeaderLength) &^ 1 // fragments have even length (PS3.8 annex E.1)
	if len(a.buffer) < dataHeaderLength+room+1 {
		a.buffer = make([]byte, dataHeaderLength+room+1)
	}
	payload := a.buffer[dataHeaderLength : dataHeaderLength+room+1]
	held := 0
	for {
		n, err := io.ReadFull(data, payload[held:])
		n += held
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return fmt.Errorf("reading the data set: %w", err)
		}
		size := min(n, room) // a short read, hence at most room, when last
		appendDataHeader(a.buffer[:0], size, context, false, last)
		if err := a.link.write(a.buffer[:dataHeaderLength+size]); err != nil {
			return a.whyNot(err)
		}
		if last {
			return nil
		}
		payload[0], held = payload[room], n-size
	}
}

// whyNot prefers the peer's abort, if one is waiting, to the broken pipe that
// it caused.
func (a *Association) whyNot(err error) error {
	a.link.until = time.Now().Add(time.Second)
	var aborted *AbortedError
	if _, _, readErr := a.link.next(); errors.As(readErr, &aborted) {
		return aborted
	}
	return err
}

// Release ends the association in good order.
func (a *Association) Release(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.during(ctx, func() error {
		l := a.link
		if err := l.write(releaseRQ()); err != nil {
			return err
		}
		l.state = releasing
		for {
			kind, length, err := l.next()
			if err != nil {
				return err
			}
			if _, err := l.body(length); err != nil || kind == pduReleaseRP {
				return err
			}
			// Data on the way when we asked (AR-6): nobody waits for them.
		}
	})
	if a.broken == nil {
		a.broken = errClosed
		a.link.conn.Close()
	}
	return err
}

// Abort ends the association at once. It does nothing on a closed one.
func (a *Association) Abort() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return
	}
	a.broken = errClosed
	a.link.abort(abortByUser, reasonNotSpecified)
	a.link.conn.Close()
}

// during runs an exchange that the end of ctx interrupts. A failed exchange
// leaves the association in an unknown state, so it is aborted and closed.
func (a *Association) during(ctx context.Context, exchange func() error) error {
	if a.broken != nil {
		return a.broken
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, a.link.cancel)
	err := exchange()
	stop()
	if err == nil {
		return nil
	}
	a.broken = errClosed
	var aborted *AbortedError
	var rejected *RejectedError
	var v *violation
	switch {
	case errors.As(err, &aborted), errors.As(err, &rejected):
	case errors.As(err, &v):
		a.link.abort(abortByProvider, v.reason)
	default:
		a.link.abort(abortByUser, reasonNotSpecified)
	}
	a.link.conn.Close()
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}
