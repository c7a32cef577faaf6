package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dimse"
)

// Outgoing is one DICOM object on its way to a destination.
type Outgoing struct {
	SOPClass       string
	SOPInstance    string
	TransferSyntax string
	File           []byte // PS3.10, or a bare data set
	dataSet        int    // where the data set starts in File
}

// NewOutgoing reads from a DICOM file what a sender must announce. A file that
// is damaged further on is no error: the receiver is the one to judge it.
func NewOutgoing(file []byte) (Outgoing, error) {
	out := Outgoing{File: file}
	parsed, err := dicom.ParseHeader(bytes.NewReader(file), dicom.PixelData, dicom.Limits{})
	if parsed == nil {
		return out, fmt.Errorf("gateway: preparing an object to send: %w", err)
	}
	out.SOPClass, out.SOPInstance = parsed.DataSet.UID(dicom.SOPClassUID), parsed.DataSet.UID(dicom.SOPInstanceUID)
	if out.SOPClass == "" {
		out.SOPClass = parsed.Meta.UID(dicom.MediaStorageSOPClassUID)
	}
	if out.SOPInstance == "" {
		out.SOPInstance = parsed.Meta.UID(dicom.MediaStorageSOPInstanceUID)
	}
	out.TransferSyntax = parsed.TransferSyntax
	out.dataSet = dataSetOffset(file)
	if out.SOPClass == "" || out.SOPInstance == "" || out.TransferSyntax == "" {
		return out, errors.New("gateway: preparing an object to send: it names no SOP class, SOP instance or transfer syntax")
	}
	return out, nil
}

// dataSetOffset finds the end of the meta information by walking its elements,
// which are explicit little endian (PS3.10 7.1): its group length is often
// wrong.
func dataSetOffset(file []byte) int {
	at := 0
	if len(file) >= 132 && string(file[128:132]) == "DICM" {
		at = 132
	}
	for len(file)-at >= 8 && binary.LittleEndian.Uint16(file[at:]) == 0x0002 {
		head, length := 8, uint64(binary.LittleEndian.Uint16(file[at+6:]))
		switch string(file[at+4 : at+6]) {
		case "OB", "OW", "UN", "UT", "SQ", "OF", "OD", "OL", "UC", "UR": // PS3.5 7.1.2
			if len(file)-at < 12 {
				return at
			}
			head, length = 12, uint64(binary.LittleEndian.Uint32(file[at+8:]))
		}
		if length > uint64(len(file)-at-head) {
			return at
		}
		at += head + int(length)
	}
	return at
}

// ErrRefused is wrapped by the error for an object that the destination
// understood and refused for good: sending it again as it is changes nothing.
var ErrRefused = errors.New("the destination refuses the object")

// destination sends objects to one receiver. done is called once for each
// object whose fate is known, in any order; the error of send is about the
// connection, and then objects that done was not called for may or may not
// have arrived.
type destination interface {
	send(ctx context.Context, objects []Outgoing, done func(i int, err error)) error
}

func newDestination(c DestinationConfig, production bool, logger *slog.Logger) (destination, error) {
	secure, err := clientTLSConfig(c.TLS, c.Plain, production, logger)
	if err != nil {
		return nil, err
	}
	switch c.Kind {
	case "dimse":
		return &dimseDestination{config: c, tls: secure}, nil
	case "stow":
		return newSTOWDestination(c, secure)
	default:
		return nil, fmt.Errorf("gateway: destination %s: kind %q is neither dimse nor stow", c.Name, c.Kind)
	}
}

// dimseDestination delivers with C-STORE (PS3.4 annex B).
type dimseDestination struct {
	config DestinationConfig
	tls    *tls.Config
}

func (d *dimseDestination) send(ctx context.Context, objects []Outgoing, done func(int, error)) error {
	var contexts []dimse.Context
	proposed := map[[2]string]bool{}
	for _, o := range objects {
		if pair := [2]string{o.SOPClass, o.TransferSyntax}; !proposed[pair] {
			proposed[pair] = true
			contexts = append(contexts, dimse.Context{SOPClass: o.SOPClass, TransferSyntaxes: []string{o.TransferSyntax}})
		}
	}
	association, err := dimse.Dial(ctx, d.config.Address, dimse.ClientConfig{
		CallingAE: d.config.CallingAETitle, CalledAE: d.config.AETitle, TLS: d.tls, Plain: d.config.Plain,
	}, contexts)
	if err != nil {
		return err
	}
	defer association.Abort()
	for i, o := range objects {
		status, err := association.Store(ctx, o.SOPClass, o.SOPInstance, o.TransferSyntax, bytes.NewReader(o.File[o.dataSet:]))
		switch {
		case errors.Is(err, dimse.ErrNotAccepted):
			done(i, fmt.Errorf("%w: %w", ErrRefused, err))
		case err != nil:
			return err
		case status.Stored():
			done(i, nil)
		case status.Transient():
			done(i, fmt.Errorf("the destination answers %v", status))
		default:
			done(i, fmt.Errorf("%w: %v", ErrRefused, status))
		}
	}
	return association.Release(ctx)
}
