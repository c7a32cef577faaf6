// Package dicomweb speaks DICOM over HTTP (PS3.18): it receives objects
// (STOW-RS), lets others search (QIDO-RS) and fetch (WADO-RS) what an archive
// holds, and sends objects to other servers ([Client]).
//
// Like package dimse it never looks into an object further than the file meta
// information. An object is written into a [dimse.Spool] and handed to the
// owner's Store, whose status is what the sender is told:
//
//	handler, err := dicomweb.NewHandler(dicomweb.Config{
//		Authorize: dicomweb.MutualTLS,
//		NewSpool:  vault.NewSpool,
//		Store:     intake.StoreWeb,
//		Archive:   results,
//	})
//	mux.Handle("/dicom-web/", http.StripPrefix("/dicom-web", handler))
//
// Resources, relative to where the handler is mounted:
//
//	POST /studies[/{study}]                             store
//	GET  /studies, /series, /instances                  search
//	GET  /studies/{study}/series, …/instances           search below
//	GET  /studies/{study}[/series/{series}[/instances/{instance}]]            retrieve
//	GET  …/metadata                                     retrieve attributes
//	GET  …/instances/{instance}/rendered                an image as PNG
//
// Objects travel as application/dicom in multipart/related, attributes as
// application/dicom+json. XML and separate bulk data are refused with 406
// (asked for) or 415 (sent).
//
// Part headers, parts, requests, search results and the number of requests at
// once are bounded; a request costs a constant amount of memory, whatever its
// size. Nothing that is logged comes from an object or from a URL.
package dicomweb

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/vigie/vigie/medical/dicom/dimse"
)

// Peer is who makes a request, as far as Authorize could establish it.
type Peer struct {
	Name        string            // certificate subject, SPIFFE id, token subject, …
	Certificate *x509.Certificate // verified leaf certificate, if any
	RemoteAddr  string            // host:port
}

// ErrUnauthenticated is for Authorize to return when a request carries no
// proof of who makes it: answered 401. Any other error is answered 403.
var ErrUnauthenticated = errors.New("dicomweb: the request does not prove who makes it")

// MutualTLS is an Authorize that takes any verified client certificate and no
// request without one.
func MutualTLS(r *http.Request) (Peer, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Peer{}, ErrUnauthenticated
	}
	leaf := r.TLS.VerifiedChains[0][0]
	return Peer{Name: leaf.Subject.String(), Certificate: leaf, RemoteAddr: r.RemoteAddr}, nil
}

// StoreRequest is one complete object, ready to be taken. Its identifiers are
// those of its file meta information; its data set may claim others.
type StoreRequest struct {
	Peer           Peer
	Study          string // Study Instance UID of the URL, to which the object must belong; "": any
	SOPClass       string
	SOPInstance    string
	TransferSyntax string
	Spool          dimse.Spool // holds the whole file
	Size           int64       // bytes written to Spool
}

// Disclosure is what kind of answer shows attributes, and of how much. It
// holds no value of any.
type Disclosure struct {
	Kind  string // "search study", "search series", "search instance" or "metadata"
	Count int    // entities in the answer, at least 1
}

// Defaults of a [Config].
const (
	DefaultMaxObject   = dimse.DefaultMaxObject
	DefaultMaxRequest  = 4 << 30
	DefaultMaxParts    = 10_000
	DefaultMaxStores   = 32
	DefaultMaxResults  = 1000
	DefaultIdleTimeout = 60 * time.Second
	DefaultMaxDuration = time.Hour
)

// Config says how a handler behaves. Authorize is required; NewSpool and Store
// come together; a zero value of the rest means its default.
type Config struct {
	// Authorize decides who may do what: it sees the method and the path.
	Authorize func(*http.Request) (Peer, error)

	NewSpool func() (dimse.Spool, error)                            // nil: nothing can be stored. An error is answered OutOfResources
	Store    func(ctx context.Context, r StoreRequest) dimse.Status // may block until the object is durable
	Archive  Archive                                                // nil: nothing can be searched or retrieved
	BaseURL  string                                                 // of the handler as clients see it, for Retrieve URLs: absolute, or the path at which it is mounted, such as /dicom-web; "": it is mounted at the root

	// Disclose is told before attributes leave without their object, which no
	// Open tells; an error withholds them. nil: nobody is told.
	Disclose func(ctx context.Context, peer Peer, d Disclosure) error

	MaxObject   int64         // bytes of one object; a larger one fails with OutOfResources
	MaxRequest  int64         // bytes of one store request: 413
	MaxParts    int           // objects of one store request: 413
	MaxStores   int           // store requests at once: 503
	MaxResults  int           // results of one search; more are announced by a Warning header
	IdleTimeout time.Duration // for the sender to send anything
	MaxDuration time.Duration // for one store request to arrive

	Logger *slog.Logger // default: discards
}

// handler serves the resources of the package comment.
type handler struct {
	cfg    Config
	base   string
	stores chan struct{}
}

// NewHandler checks the configuration, fills in its defaults and returns the
// handler, to be mounted with http.StripPrefix.
func NewHandler(cfg Config) (http.Handler, error) {
	switch {
	case cfg.Authorize == nil:
		return nil, errors.New("dicomweb: making a handler: Authorize is required, for instance MutualTLS")
	case (cfg.NewSpool == nil) != (cfg.Store == nil):
		return nil, errors.New("dicomweb: making a handler: NewSpool and Store come together")
	case cfg.MaxObject < 0 || cfg.MaxRequest < 0 || cfg.MaxParts < 0 || cfg.MaxStores < 0 || cfg.MaxResults < 0 || cfg.IdleTimeout < 0 || cfg.MaxDuration < 0:
		return nil, errors.New("dicomweb: making a handler: limits and timeouts are positive")
	}
	if cfg.BaseURL != "" {
		u, err := url.Parse(cfg.BaseURL)
		absolute, path := err == nil && u.Scheme != "" && u.Host != "", err == nil && u.Scheme == "" && u.Host == "" && strings.HasPrefix(u.Path, "/")
		if !absolute && !path || u.RawQuery != "" {
			return nil, fmt.Errorf("dicomweb: making a handler: BaseURL %q: want an absolute URL or an absolute path, without query", cfg.BaseURL)
		}
	}
	setDefault(&cfg.MaxObject, DefaultMaxObject)
	setDefault(&cfg.MaxRequest, DefaultMaxRequest)
	setDefault(&cfg.MaxParts, DefaultMaxParts)
	setDefault(&cfg.MaxStores, DefaultMaxStores)
	setDefault(&cfg.MaxResults, DefaultMaxResults)
	setDefault(&cfg.IdleTimeout, DefaultIdleTimeout)
	setDefault(&cfg.MaxDuration, DefaultMaxDuration)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &handler{cfg: cfg, base: strings.TrimSuffix(cfg.BaseURL, "/"), stores: make(chan struct{}, cfg.MaxStores)}
	mux := http.NewServeMux()
	if cfg.Store != nil {
		mux.Handle("POST /studies", h.guard(h.store))
		mux.Handle("POST /studies/{study}", h.guard(h.store))
	}
	if cfg.Archive != nil {
		for pattern, level := range map[string]*level{
			"GET /studies": studyLevel, "GET /series": seriesLevel, "GET /instances": instanceLevel,
			"GET /studies/{study}/series": seriesLevel, "GET /studies/{study}/instances": instanceLevel,
			"GET /studies/{study}/series/{series}/instances": instanceLevel,
		} {
			mux.Handle(pattern, h.guard(func(w http.ResponseWriter, r *http.Request, p Peer) { h.search(w, r, p, level) }))
		}
		for _, resource := range []string{
			"GET /studies/{study}", "GET /studies/{study}/series/{series}", "GET /studies/{study}/series/{series}/instances/{instance}",
		} {
			mux.Handle(resource, h.guard(h.retrieve))
			mux.Handle(resource+"/metadata", h.guard(h.metadata))
		}
		mux.Handle("GET /studies/{study}/series/{series}/instances/{instance}/rendered", h.guard(h.rendered))
	}
	return mux, nil
}

func setDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// guard asks Authorize, checks the identifiers in the path and keeps a panic
// in its request.
func (h *handler) guard(serve func(http.ResponseWriter, *http.Request, Peer)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				if p != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so, too
					// Not the value: it might quote an object.
					h.cfg.Logger.Error("a request panicked", "method", r.Method, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
				}
				panic(http.ErrAbortHandler) // the answer may be half written: end the connection
			}
		}()
		peer, err := h.cfg.Authorize(r)
		switch {
		case errors.Is(err, ErrUnauthenticated):
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, http.StatusUnauthorized, "authenticate with a client certificate or a bearer token")
			return
		case err != nil:
			h.cfg.Logger.Warn("request refused", "method", r.Method, "remote", r.RemoteAddr, "error", err)
			refuse(w, http.StatusForbidden, "not allowed")
			return
		}
		for _, name := range []string{"study", "series", "instance"} {
			if uid := r.PathValue(name); uid != "" && !validUID(uid) {
				refuse(w, http.StatusBadRequest, "the "+name+" in the path is not a UID")
				return
			}
		}
		serve(w, r, peer)
	})
}

// refuse answers with a status and a sentence that says the next move. The
// sentence never quotes the request.
func refuse(w http.ResponseWriter, status int, sentence string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	fmt.Fprintln(w, sentence)
}

// validUID holds the alphabet and length of PS3.5 section 9.1.
func validUID(uid string) bool {
	return uid != "" && len(uid) <= 64 && strings.Trim(uid, "0123456789.") == ""
}
