package dimse

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

// raw is a peer that sends any bytes it likes.
type raw struct {
	net.Conn
	t testing.TB
}

func (s *site) raw(t testing.TB) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return &raw{conn, t}
}

func (r *raw) send(parts ...[]byte) {
	r.t.Helper()
	for _, p := range parts {
		if _, err := r.Write(p); err != nil {
			r.t.Fatal(err)
		}
	}
}

// next reads one PDU.
func (r *raw) next() (pduType, []byte) {
	r.t.Helper()
	kind, length, err := readHeader(r, MaxMaxPDU)
	if err != nil {
		r.t.Fatalf("reading an answer: %v", err)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		r.t.Fatal(err)
	}
	return kind, body
}

// establish makes an association with CT on context 1 (explicit) and 3
// (implicit), Verification on 5.
func (r *raw) establish() {
	r.t.Helper()
	r.send(sampleRequest().encode(pduAssociateRQ))
	if kind, _ := r.next(); kind != pduAssociateAC {
		r.t.Fatalf("answered with %s", kind)
	}
}

func (r *raw) wantAbort(source abortSource, reason abortReason) {
	r.t.Helper()
	kind, body := r.next()
	if kind != pduAbort || body[2] != byte(source) || body[3] != byte(reason) {
		r.t.Fatalf("answered %s %v, want A-ABORT from %d because of %d", kind, body, source, reason)
	}
}

// wantClosed checks that the server hangs up once the peer has, as it waits
// for (PS3.8 9.1.5).
func (r *raw) wantClosed() {
	r.t.Helper()
	if err := r.Conn.(*net.TCPConn).CloseWrite(); err != nil && !isReset(err) {
		r.t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, r)
	if err != nil && !errors.Is(err, io.EOF) && !isReset(err) {
		r.t.Fatalf("waiting for the end: %v", err)
	}
	if n > 0 {
		r.t.Fatalf("%d more bytes came", n)
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

func sampleRequest() *associate {
	return &associate{
		version: 1, called: "VIGIE", calling: "RAW", application: applicationContext,
		contexts: []presentation{
			{id: 1, abstract: ctStorage, transfer: []string{dicom.ExplicitLittleEndian}},
			{id: 3, abstract: ctStorage, transfer: []string{dicom.ImplicitLittleEndian}},
			{id: 5, abstract: VerificationSOPClass, transfer: []string{dicom.ImplicitLittleEndian}},
		},
		user: userInformation{maxLength: 16384, class: "1.2.3", version: "RAW"},
	}
}

// pdv is one fragment inside a P-DATA-TF.
func pdv(context, control byte, data []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(data)+2))
	return append(append(out, context, control), data...)
}

// pdata is a P-DATA-TF of fragments.
func pdata(fragments ...[]byte) []byte {
	out := []byte{byte(pduData), 0, 0, 0, 0, 0}
	for _, f := range fragments {
		out = append(out, f...)
	}
	binary.BigEndian.PutUint32(out[2:], uint32(len(out)-6))
	return out
}

func storeRQ(instance string) *command {
	return &command{
		field: commandStoreRQ, messageID: 7, affectedClass: ctStorage, instance: instance, dataSetType: withDataSet,
		present: hasField | hasMessageID | hasAffectedClass | hasInstance | hasPriority | hasDataSetType,
	}
}

func echoRQ() *command {
	return &command{field: commandEchoRQ, messageID: 9, affectedClass: VerificationSOPClass, dataSetType: noDataSet,
		present: hasField | hasMessageID | hasAffectedClass | hasDataSetType}
}

// response reads one command.
func (r *raw) response() *command {
	r.t.Helper()
	kind, body := r.next()
	if kind != pduData {
		r.t.Fatalf("answered with %s % x", kind, body)
	}
	c, err := decodeCommand(body[6:])
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}
