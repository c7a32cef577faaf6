package dimse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// pduType is the first byte of a protocol data unit (PS3.8 section 9.3.1).
type pduType byte

const (
	pduAssociateRQ pduType = 0x01
	pduAssociateAC pduType = 0x02
	pduAssociateRJ pduType = 0x03
	pduData        pduType = 0x04
	pduReleaseRQ   pduType = 0x05
	pduReleaseRP   pduType = 0x06
	pduAbort       pduType = 0x07
)

func (t pduType) String() string {
	switch t {
	case pduAssociateRQ:
		return "A-ASSOCIATE-RQ"
	case pduAssociateAC:
		return "A-ASSOCIATE-AC"
	case pduAssociateRJ:
		return "A-ASSOCIATE-RJ"
	case pduData:
		return "P-DATA-TF"
	case pduReleaseRQ:
		return "A-RELEASE-RQ"
	case pduReleaseRP:
		return "A-RELEASE-RP"
	case pduAbort:
		return "A-ABORT"
	}
	return fmt.Sprintf("PDU type 0x%02X", byte(t))
}

const (
	pduHeaderLength = 6
	// maxAssociatePDU bounds association PDUs. 128 presentation contexts of 30
	// transfer syntaxes each, the most a sane peer proposes, take 100 KiB.
	maxAssociatePDU = 128 << 10
	// shortPDULength is the body of A-ASSOCIATE-RJ, A-RELEASE-* and A-ABORT.
	shortPDULength = 4
	// DefaultMaxPDU is the largest P-DATA-TF body that a side accepts unless
	// configured otherwise, in bytes.
	DefaultMaxPDU = 256 << 10
	// MinMaxPDU is the smallest such limit that can be configured or that is
	// accepted from a peer: one that allows less wants to be flooded with
	// headers.
	MinMaxPDU = 1 << 10
	// MaxMaxPDU is the largest limit that can be configured.
	MaxMaxPDU = 16 << 20
)

// abortReason is why the service provider aborts (PS3.8 table 9-26).
type abortReason byte

const (
	reasonNotSpecified          abortReason = 0
	reasonUnrecognizedPDU       abortReason = 1
	reasonUnexpectedPDU         abortReason = 2
	reasonUnexpectedParameter   abortReason = 5
	reasonInvalidParameterValue abortReason = 6
)

// violation is a breach of the protocol by the peer. It ends the association
// with an A-ABORT that carries the reason.
type violation struct {
	reason abortReason
	text   string
}

func (v *violation) Error() string { return "dimse: protocol violation: " + v.text }

func violate(reason abortReason, format string, args ...any) error {
	return &violation{reason: reason, text: fmt.Sprintf(format, args...)}
}

// readHeader reads the six bytes that start every PDU and checks the declared
// length against what that type may have, before anything is allocated.
// maxData is the largest P-DATA-TF body that was announced to the peer.
func readHeader(r io.Reader, maxData uint32) (pduType, uint32, error) {
	var head [pduHeaderLength]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return 0, 0, err // io.EOF: the peer closed between two PDUs
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return 0, 0, noEOF(err)
	}
	kind, length := pduType(head[0]), binary.BigEndian.Uint32(head[2:])
	switch kind {
	case pduAssociateRQ, pduAssociateAC:
		if length > maxAssociatePDU {
			return 0, 0, violate(reasonInvalidParameterValue, "%s of %d bytes, at most %d are accepted", kind, length, maxAssociatePDU)
		}
		if length < associateFixedLength {
			return 0, 0, violate(reasonInvalidParameterValue, "%s of %d bytes, at least %d are needed", kind, length, associateFixedLength)
		}
	case pduData:
		if length > maxData {
			return 0, 0, violate(reasonInvalidParameterValue, "%s of %d bytes, %d were negotiated", kind, length, maxData)
		}
		if length < fragmentHeaderLength {
			return 0, 0, violate(reasonInvalidParameterValue, "%s of %d bytes holds no fragment", kind, length)
		}
	case pduAssociateRJ, pduReleaseRQ, pduReleaseRP, pduAbort:
		if length != shortPDULength {
			return 0, 0, violate(reasonInvalidParameterValue, "%s of %d bytes, it has exactly %d", kind, length, shortPDULength)
		}
	default:
		return 0, 0, violate(reasonUnrecognizedPDU, "%s", kind)
	}
	return kind, length, nil
}

// noEOF turns an end of input inside a PDU into an unexpected one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func shortPDU(kind pduType, body [shortPDULength]byte) []byte {
	return append([]byte{byte(kind), 0, 0, 0, 0, shortPDULength}, body[:]...)
}

func releaseRQ() []byte { return shortPDU(pduReleaseRQ, [4]byte{}) }
func releaseRP() []byte { return shortPDU(pduReleaseRP, [4]byte{}) }

// abortSource says who aborts (PS3.8 table 9-26).
type abortSource byte

const (
	abortByUser     abortSource = 0
	abortByProvider abortSource = 2
)

func abortPDU(source abortSource, reason abortReason) []byte {
	return shortPDU(pduAbort, [4]byte{0, 0, byte(source), byte(reason)})
}

// AbortedError is an A-ABORT received from the peer (PS3.8 section 9.3.8).
type AbortedError struct {
	Source byte // 0: the peer's application, 2: its protocol machine
	Reason byte // meaningful when Source is 2
}

func (e *AbortedError) Error() string {
	by := "its application"
	if e.Source == byte(abortByProvider) {
		by = "its protocol machine"
	}
	return fmt.Sprintf("dimse: the peer aborted the association (by %s, reason %d)", by, e.Reason)
}

// RejectedError is an A-ASSOCIATE-RJ (PS3.8 table 9-21). A server's Allow may
// return one to choose what the peer is told.
type RejectedError struct {
	Result byte // 1: permanent, 2: transient
	Source byte // 1: service user, 2: ACSE provider, 3: presentation provider
	Reason byte // depends on Source
}

// The rejections that this package itself answers with.
var (
	ErrApplicationContext error = &RejectedError{Result: 1, Source: 1, Reason: 2}
	ErrCallingAE          error = &RejectedError{Result: 1, Source: 1, Reason: 3}
	ErrCalledAE           error = &RejectedError{Result: 1, Source: 1, Reason: 7}
	ErrProtocolVersion    error = &RejectedError{Result: 1, Source: 2, Reason: 2}
	ErrTemporarilyBusy    error = &RejectedError{Result: 2, Source: 3, Reason: 1}
	ErrTooMany            error = &RejectedError{Result: 2, Source: 3, Reason: 2}
)

var rejectionText = map[[2]byte]string{
	{1, 1}: "no reason given",
	{1, 2}: "application context name not supported",
	{1, 3}: "calling AE title not recognised",
	{1, 7}: "called AE title not recognised",
	{2, 1}: "no reason given by the ACSE provider",
	{2, 2}: "protocol version not supported",
	{3, 1}: "temporary congestion",
	{3, 2}: "local limit exceeded",
}

func (e *RejectedError) Error() string {
	text, ok := rejectionText[[2]byte{e.Source, e.Reason}]
	if !ok {
		text = fmt.Sprintf("source %d, reason %d", e.Source, e.Reason)
	}
	if e.Result == 2 {
		return "dimse: association rejected for now: " + text
	}
	return "dimse: association rejected: " + text
}

// Is makes two rejections with the same content the same error.
func (e *RejectedError) Is(target error) bool {
	other, ok := target.(*RejectedError)
	return ok && *other == *e
}

// Temporary reports whether the peer invites to try again later.
func (e *RejectedError) Temporary() bool { return e.Result == 2 }

func (e *RejectedError) pdu() []byte {
	return shortPDU(pduAssociateRJ, [4]byte{0, e.Result, e.Source, e.Reason})
}
