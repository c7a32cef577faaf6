package dimse

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"testing"
	"time"
)

// memoryConn is a connection whose peer has already said everything.
type memoryConn struct{ io.Reader }

func (memoryConn) Write(p []byte) (int, error)      { return len(p), nil }
func (memoryConn) Close() error                     { return nil }
func (memoryConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (memoryConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (memoryConn) SetDeadline(time.Time) error      { return nil }
func (memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (memoryConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzPDU reads any bytes as either side would. Association PDUs that are
// understood must survive being written and read again; messages must be read
// to their end or to an error, without a panic.
func FuzzPDU(f *testing.F) {
	rq := sampleRequest()
	rq.user.roles = []role{{class: ctStorage, scu: true}}
	rq.user.async = true
	ac := sampleRequest()
	for i := range ac.contexts {
		ac.contexts[i].abstract = ""
	}
	ac.contexts[1].result = contextTransferSyntaxUnsupported
	set := storeRQ("1.2.3").encode()
	for _, seed := range [][]byte{
		rq.encode(pduAssociateRQ), ac.encode(pduAssociateAC), releaseRQ(), releaseRP(), abortPDU(abortByProvider, 6), ErrTooMany.(*RejectedError).pdu(),
		append(pdata(pdv(1, 1, set[:9])), pdata(pdv(1, 3, set[9:]), pdv(1, 0, pattern(50)), pdv(1, 2, pattern(3)))...),
		append(pdata(pdv(5, 3, echoRQ().encode())), releaseRQ()...),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if kind, length, err := readHeader(bytes.NewReader(input), DefaultMaxPDU); err == nil && len(input)-pduHeaderLength >= int(length) {
			if kind == pduAssociateRQ || kind == pduAssociateAC {
				a, err := decodeAssociate(kind, input[pduHeaderLength:pduHeaderLength+int(length)])
				if err == nil {
					again, err := decodeAssociate(kind, a.encode(kind)[pduHeaderLength:])
					if err != nil || !reflect.DeepEqual(a, again) {
						t.Fatalf("%+v\nbecame %+v\n%v", a, again, err)
					}
				}
				var v *violation
				if err != nil && !errors.As(err, &v) {
					t.Fatalf("error of type %T", err)
				}
			}
		}
		for _, s := range []state{awaitingRequest, awaitingAnswer, releasing} {
			l := newLink(memoryConn{bytes.NewReader(input)}, DefaultMaxPDU, time.Minute)
			l.state = s
			for {
				_, length, err := l.next()
				if err != nil {
					break
				}
				if _, err := l.body(length); err != nil {
					break
				}
			}
		}
		l := newLink(memoryConn{bytes.NewReader(input)}, DefaultMaxPDU, time.Minute)
		l.state = established
		for {
			context, c, err := l.readCommand()
			if err != nil {
				break
			}
			if !c.hasData() {
				continue
			}
			n, err := io.Copy(io.Discard, &dataSet{link: l, context: context})
			if n > int64(len(input)) {
				t.Fatalf("%d bytes of data out of an input of %d", n, len(input))
			}
			if err != nil {
				break
			}
		}
	})
}

// FuzzCommand reads any bytes as a command set; what is understood must mean
// the same after being written and read again.
func FuzzCommand(f *testing.F) {
	f.Add(storeRQ("1.2.3").encode())
	f.Add(echoRQ().encode())
	f.Add(storeRQ("1.2.3").respond(OutOfResources).encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, input []byte) {
		c, err := decodeCommand(input)
		if err != nil {
			var v *violation
			if !errors.As(err, &v) {
				t.Fatalf("error of type %T", err)
			}
			return
		}
		again, err := decodeCommand(c.encode())
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Fatalf("%+v\nbecame %+v\n%v", c, again, err)
		}
		if r := c.respond(Success); !r.isResponse() && c.field&responseBit == 0 {
			t.Fatalf("the response to %+v is %+v", c, r)
		}
	})
}
