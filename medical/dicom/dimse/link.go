package dimse

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	fragmentHeaderLength = 6 // item length, context id, message control header
	readBuffer           = 16 << 10
	controlCommand       = 1 // message control header bits (PS3.8 annex E.2)
	controlLast          = 2
)

// ErrTimeout is returned when the peer was silent or slow for too long.
var ErrTimeout = errors.New("dimse: the peer took too long")

// errReleaseRequested and errPeerClosed end an association in good order and
// in bad.
var (
	errReleaseRequested = errors.New("dimse: the peer asked to release the association")
	errPeerClosed       = errors.New("dimse: the peer closed the connection without releasing the association")
)

// link is one connection with the protocol's state, used by both sides. Only
// interrupt and cancel may be called from another goroutine than the
// association's own.
type link struct {
	conn    net.Conn
	r       *bufio.Reader
	state   state
	receive uint32        // largest P-DATA-TF body accepted, as announced
	send    uint32        // largest P-DATA-TF body sent
	idle    time.Duration // longest wait for a PDU to begin, and for it to end
	until   time.Time     // hard end of the current phase; zero: none

	left  int // bytes of the current P-DATA-TF not yet read
	piece int // bytes of the current fragment not yet read

	mu          sync.Mutex // guards the read deadline with the flags below
	waiting     bool       // between two messages: may be interrupted
	interrupted bool       // shut down as soon as waiting
	cancelled   bool       // shut down at once
}

func newLink(conn net.Conn, receive uint32, idle time.Duration) *link {
	return &link{conn: conn, r: bufio.NewReaderSize(conn, readBuffer), receive: receive, send: MinMaxPDU, idle: idle}
}

// past is a deadline that has always passed.
var past = time.Unix(1, 0)

// arm gives the peer until the idle time from now, within the phase's end.
func (l *link) arm() {
	deadline := time.Now().Add(l.idle)
	if !l.until.IsZero() && l.until.Before(deadline) {
		deadline = l.until
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancelled || (l.interrupted && l.waiting) {
		deadline = past
	}
	// A failing SetReadDeadline means a closed connection; the read says so.
	_ = l.conn.SetReadDeadline(deadline)
}

// wait marks the time between two messages, in which a shutdown needs not be
// polite to a running transfer.
func (l *link) wait(on bool) {
	l.mu.Lock()
	l.waiting = on
	l.mu.Unlock()
	l.arm()
}

// interrupt ends the association as soon as no message is under way.
func (l *link) interrupt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.interrupted = true
	if l.waiting {
		_ = l.conn.SetReadDeadline(past)
	}
}

// cancel ends the association at once.
func (l *link) cancel() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cancelled = true
	_ = l.conn.SetDeadline(past)
}

func (l *link) isInterrupted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.interrupted || l.cancelled
}

// write sends whole PDUs.
func (l *link) write(b []byte) error {
	l.mu.Lock()
	deadline := time.Now().Add(l.idle)
	if l.cancelled {
		deadline = past
	}
	_ = l.conn.SetWriteDeadline(deadline)
	l.mu.Unlock()
	_, err := l.conn.Write(b)
	return timeout(err)
}

// timeout names a deadline error.
func timeout(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrTimeout
	}
	return err
}

// next reads the header of the next PDU that the state lets through, and the
// body of an abort. A release collision is answered here.
func (l *link) next() (pduType, int, error) {
	for {
		l.arm()
		kind, length, err := readHeader(l.r, l.receive)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return 0, 0, errPeerClosed
			}
			return 0, 0, timeout(err)
		}
		switch l.state.on(kind) {
		case take:
			return kind, int(length), nil
		case collide:
			if _, err := l.body(shortPDULength); err != nil {
				return 0, 0, err
			}
			if err := l.write(releaseRP()); err != nil {
				return 0, 0, err
			}
		case stop:
			body, err := l.body(shortPDULength)
			if err != nil {
				return 0, 0, err
			}
			return 0, 0, &AbortedError{Source: body[2], Reason: body[3]}
		default:
			return 0, 0, violate(reasonUnexpectedPDU, "%s in this state", kind)
		}
	}
}

// body reads the length bytes of a PDU that readHeader let through.
func (l *link) body(length int) ([]byte, error) {
	body := make([]byte, length)
	if _, err := io.ReadFull(l.r, body); err != nil {
		return nil, timeout(noEOF(err))
	}
	return body, nil
}

// fragment is the head of one presentation data value (PS3.8 section 9.3.5.1).
type fragment struct {
	context byte
	command bool
	last    bool
}

// nextFragment reads up to the data of the next fragment.
func (l *link) nextFragment() (fragment, error) {
	if l.left == 0 {
		kind, length, err := l.next()
		if err != nil {
			return fragment{}, err
		}
		switch kind {
		case pduData:
			l.left = length
		case pduReleaseRQ:
			if _, err := l.body(shortPDULength); err != nil {
				return fragment{}, err
			}
			return fragment{}, errReleaseRequested
		default:
			return fragment{}, violate(reasonUnexpectedPDU, "%s where data were expected", kind)
		}
	}
	if l.left < fragmentHeaderLength {
		return fragment{}, violate(reasonInvalidParameterValue, "%d bytes left in a P-DATA-TF where a fragment begins", l.left)
	}
	var head [fragmentHeaderLength]byte
	if _, err := io.ReadFull(l.r, head[:]); err != nil {
		return fragment{}, timeout(noEOF(err))
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < 2 || uint64(length) > uint64(l.left-4) {
		return fragment{}, violate(reasonInvalidParameterValue, "fragment of %d bytes in a P-DATA-TF with %d left", length, l.left-4)
	}
	if head[5]&^(controlCommand|controlLast) != 0 {
		return fragment{}, violate(reasonInvalidParameterValue, "message control header 0x%02X", head[5])
	}
	l.left -= fragmentHeaderLength
	l.piece = int(length) - 2
	return fragment{context: head[4], command: head[5]&controlCommand != 0, last: head[5]&controlLast != 0}, nil
}

// read fills p from the current fragment; n is 0 only at its end.
func (l *link) read(p []byte) (int, error) {
	if l.piece == 0 {
		return 0, nil
	}
	if len(p) > l.piece {
		p = p[:l.piece]
	}
	n, err := l.r.Read(p)
	l.piece -= n
	l.left -= n
	if n > 0 {
		return n, nil
	}
	return 0, timeout(noEOF(err))
}

// readCommand reads one whole command set and the context it came on.
func (l *link) readCommand() (byte, *command, error) {
	l.wait(true)
	first, err := l.nextFragment()
	l.wait(false)
	if err != nil {
		return 0, nil, err
	}
	var set []byte
	for f := first; ; {
		switch {
		case !f.command:
			return 0, nil, violate(reasonNotSpecified, "data set fragment where a command was expected")
		case f.context != first.context:
			return 0, nil, violate(reasonNotSpecified, "command fragments of contexts %d and %d interleaved", first.context, f.context)
		case len(set)+l.piece > maxCommand:
			return 0, nil, violate(reasonNotSpecified, "command set of more than %d bytes", maxCommand)
		}
		begin := len(set)
		set = append(set, make([]byte, l.piece)...)
		for begin < len(set) {
			n, err := l.read(set[begin:])
			if err != nil {
				return 0, nil, err
			}
			begin += n
		}
		if f.last {
			break
		}
		if f, err = l.nextFragment(); err != nil {
			return 0, nil, midMessage(err)
		}
	}
	c, err := decodeCommand(set)
	return first.context, c, err
}

// midMessage makes a release inside a message the violation that it is.
func midMessage(err error) error {
	if errors.Is(err, errReleaseRequested) {
		return violate(reasonUnexpectedPDU, "release inside a message")
	}
	return err
}

// dataSet reads the data set that follows a command on the same context.
type dataSet struct {
	link    *link
	context byte
	current fragment
	started bool
}

// Read implements io.Reader; io.EOF comes after the last fragment.
func (d *dataSet) Read(p []byte) (int, error) {
	for {
		if d.started {
			if n, err := d.link.read(p); n > 0 || err != nil {
				return n, err
			}
			if d.link.piece > 0 { // p is empty
				return 0, nil
			}
			if d.current.last {
				return 0, io.EOF
			}
		}
		f, err := d.link.nextFragment()
		if err != nil {
			return 0, midMessage(err)
		}
		switch {
		case f.command:
			return 0, violate(reasonNotSpecified, "command fragment inside a data set")
		case f.context != d.context:
			return 0, violate(reasonNotSpecified, "data set fragment on context %d inside one on %d", f.context, d.context)
		}
		d.current, d.started = f, true
	}
}

// sendCommand sends a command set in as many fragments as the peer needs.
func (l *link) sendCommand(context byte, c *command) error {
	set := c.encode()
	room := int(l.send) - fragmentHeaderLength
	for {
		n := min(room, len(set))
		out := appendDataHeader(make([]byte, 0, dataHeaderLength+n), n, context, true, n == len(set))
		if err := l.write(append(out, set[:n]...)); err != nil {
			return err
		}
		if set = set[n:]; len(set) == 0 {
			return nil
		}
	}
}

const dataHeaderLength = pduHeaderLength + fragmentHeaderLength

// appendDataHeader begins a P-DATA-TF with a single fragment of n bytes.
func appendDataHeader(out []byte, n int, context byte, isCommand, last bool) []byte {
	out = append(out, byte(pduData), 0)
	out = binary.BigEndian.AppendUint32(out, uint32(n+fragmentHeaderLength))
	out = binary.BigEndian.AppendUint32(out, uint32(n+2))
	return append(out, context, bit(isCommand)*controlCommand|bit(last)*controlLast)
}

// lingerReads bounds what is read from a peer that does not stop talking after
// the end.
const lingerReads = 256

// linger waits, until the deadline at most, for the peer to close, so that
// what was sent last (a release, a rejection, an abort) is not overtaken by a
// TCP reset. It is Sta13 of PS3.8, with everything that still arrives ignored.
func (l *link) linger(until time.Time) {
	l.mu.Lock()
	if l.cancelled || l.interrupted {
		until = past
	}
	l.waiting = true
	_ = l.conn.SetReadDeadline(until)
	l.mu.Unlock()
	sink := make([]byte, 4<<10)
	for range lingerReads {
		if _, err := l.r.Read(sink); err != nil {
			return
		}
	}
}

// abort tells the peer, as well as it goes, that the association is over.
func (l *link) abort(source abortSource, reason abortReason) {
	l.mu.Lock()
	_ = l.conn.SetWriteDeadline(time.Now().Add(abortWriteTime))
	l.mu.Unlock()
	_, _ = l.conn.Write(abortPDU(source, reason)) // the connection may be gone already
}

// abortWriteTime is how long a peer that does not read may delay its own end.
const abortWriteTime = 2 * time.Second
