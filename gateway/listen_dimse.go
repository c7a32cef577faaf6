package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys/certificates"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/store"
)

// dimseServer builds the DICOM listener's server.
func (g *Gateway) dimseServer() (*dimse.Server, error) {
	c := g.config.DIMSE
	config := dimse.ServerConfig{
		AETitle: c.AETitle,
		Plain:   c.Plain,
		Allow: func(p dimse.Peer) error {
			err := allow(c.Allow, p.CallingAE, p.Certificate, maySend)
			if err != nil {
				g.metrics.refusals.WithLabelValues("dimse", "not-allowed").Inc()
			}
			return err
		},
		MaxAssociations: g.config.Limits.Associations,
		MaxObject:       int64(g.config.Limits.ObjectSize),
		NewSpool:        func() (dimse.Spool, error) { return g.newSpool("dimse") },
		Store:           g.storeDIMSE,
		Logger:          g.logger,
	}
	if !c.Plain {
		var err error
		if config.TLS, err = g.serverTLS(c.TLS, certificates.ServerOptions{}); err != nil {
			return nil, err
		}
	}
	server, err := dimse.NewServer(config)
	if err != nil {
		return nil, fmt.Errorf("gateway: preparing the DICOM listener: %w", err)
	}
	return server, nil
}

// newSpool opens a sealed spool, unless the disk is so full that what must be
// written for an object might no longer fit.
func (g *Gateway) newSpool(protocol string) (*spool, error) {
	if err := g.probeDisk(context.Background()); err != nil {
		g.metrics.refusals.WithLabelValues(protocol, "out-of-resources").Inc()
		return nil, err
	}
	s, err := newSpool(g.store.Blobs(), int64(g.config.Limits.ObjectSize))
	if err != nil {
		g.metrics.refusals.WithLabelValues(protocol, "out-of-resources").Inc()
		g.logger.Error("an object is refused: no spool", "protocol", protocol, "error", err)
	}
	return s, err
}

// storeDIMSE answers a C-STORE. Success means that the object is durable.
func (g *Gateway) storeDIMSE(ctx context.Context, r dimse.StoreRequest) dimse.Status {
	source := vigie.Source{Protocol: "dimse", AETitle: r.Peer.CallingAE}
	if c := r.Peer.Certificate; c != nil {
		source.Certificate, source.Subject = certificateDigest(c), certificateSubject(c)
	}
	return g.take(ctx, source, r.Spool, announced{sopClass: r.SOPClass, sopInstance: r.SOPInstance, transferSyntax: r.TransferSyntax})
}

// take answers for one object, in DICOM's words on either protocol.
func (g *Gateway) take(ctx context.Context, source vigie.Source, from dimse.Spool, said announced) dimse.Status {
	sealed, ok := from.(*spool)
	if !ok {
		return dimse.ProcessingFailure // newSpool makes no other
	}
	_, err := g.receive(ctx, source, sealed, said)
	if err == nil {
		return dimse.Success
	}
	g.refused(source.Protocol, err)
	if errors.Is(err, errOtherStudy) {
		return dimse.DataSetMismatch
	}
	if store.OutOfResources(err) || errors.Is(err, ErrTooLarge) {
		return dimse.OutOfResources
	}
	return dimse.ProcessingFailure
}

// refused counts and logs an object that was not taken.
func (g *Gateway) refused(protocol string, err error) {
	label := "error"
	switch {
	case errors.Is(err, ErrTooLarge):
		label = "too-large"
	case errors.Is(err, errOtherStudy):
		label = "other-study"
	case store.OutOfResources(err):
		label = "out-of-resources"
	}
	g.metrics.refusals.WithLabelValues(protocol, label).Inc()
	g.logger.Error("an object is refused", "protocol", protocol, "reason", label, "error", err)
}
