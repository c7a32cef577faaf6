package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/medical/dicom/dimse"
)

// webRoot is where DICOMweb is mounted.
const webRoot = "/dicom-web"

// dicomweb serves STOW-RS into intake, and QIDO-RS and WADO-RS over what Vigie
// itself produced.
func (g *Gateway) dicomweb() (http.Handler, error) {
	results := &archive{g.Casebook}
	handler, err := dicomweb.NewHandler(dicomweb.Config{
		Authorize: func(r *http.Request) (dicomweb.Peer, error) { return g.authorize(r, wantsOf(r)) },
		NewSpool:  func() (dimse.Spool, error) { return g.newSpool("dicomweb") },
		Store:     g.storeWeb,
		Archive:   results,
		Disclose:  results.disclosed,
		BaseURL:   cmp.Or(g.config.HTTP.URL, webRoot),
		MaxObject: int64(g.config.Limits.ObjectSize),
		MaxStores: g.config.Limits.Associations,
		Logger:    g.logger,
	})
	if err != nil {
		return nil, fmt.Errorf("gateway: preparing DICOMweb: %w", err)
	}
	// A disk that is full before a request begins is told in HTTP's own words,
	// to those who may store at all; one that fills up meanwhile, by the failure
	// reason (A700) of each object.
	store := g.admit(maySend, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := g.probeDisk(r.Context()); err != nil {
			g.metrics.refusals.WithLabelValues("dicomweb", "out-of-resources").Inc()
			w.Header().Set("Retry-After", "60")
			http.Error(w, "out of resources: try again later", http.StatusInsufficientStorage)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			store.ServeHTTP(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	}), nil
}

// wantsOf is the right that a request to DICOMweb needs.
func wantsOf(r *http.Request) string {
	if r.Method == http.MethodPost {
		return maySend
	}
	return mayRead
}

// identify holds a request's client certificate, and what it wants, against
// http.allow. On a plain transport (development, loopback) everybody passes.
func (g *Gateway) identify(r *http.Request, wants string) (dicomweb.Peer, error) {
	if g.config.HTTP.Plain {
		return dicomweb.Peer{RemoteAddr: r.RemoteAddr}, nil
	}
	peer, err := dicomweb.MutualTLS(r)
	if err != nil {
		return peer, err
	}
	if err := allow(g.config.HTTP.Allow, "", peer.Certificate, wants); err != nil {
		return peer, err
	}
	peer.Name = certificateSubject(peer.Certificate)
	return peer, nil
}

// authorize is identify for what not everybody may do: refusals are counted.
func (g *Gateway) authorize(r *http.Request, wants string) (dicomweb.Peer, error) {
	peer, err := g.identify(r, wants)
	switch {
	case errors.Is(err, dicomweb.ErrUnauthenticated):
		g.metrics.refusals.WithLabelValues("dicomweb", "no-certificate").Inc()
	case err != nil:
		g.metrics.refusals.WithLabelValues("dicomweb", "not-allowed").Inc()
	}
	return peer, err
}

// admit lets a request pass that authorize accepts.
func (g *Gateway) admit(wants string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch _, err := g.authorize(r, wants); {
		case errors.Is(err, dicomweb.ErrUnauthenticated):
			http.Error(w, "a client certificate is required", http.StatusUnauthorized)
		case err != nil:
			http.Error(w, "not allowed", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// storeWeb answers for one object of a STOW-RS request.
func (g *Gateway) storeWeb(ctx context.Context, r dicomweb.StoreRequest) dimse.Status {
	return g.take(ctx, webSource(r.Peer), r.Spool, announced{sopClass: r.SOPClass, sopInstance: r.SOPInstance, transferSyntax: r.TransferSyntax, target: r.Study})
}
