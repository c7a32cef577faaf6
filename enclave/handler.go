package enclave

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vigie/vigie/attest"
)

// The paths of the HTTP seam.
const (
	evidencePath = "/v1/evidence"
	diagnosePath = "/v1/diagnose"
	readyPath    = "/readyz"
)

// octets is the media type of sealed bytes.
const octets = "application/octet-stream"

// statusOf maps what a client branches on to an HTTP status, in the order in
// which errors are looked for. Remote reads the same table backwards.
var statusOf = []struct {
	err    error
	status int
}{
	{ErrUnknownKey, http.StatusMisdirectedRequest},
	{ErrTooLarge, http.StatusRequestEntityTooLarge},
	{ErrUnavailable, http.StatusServiceUnavailable},
	{ErrSealed, http.StatusBadRequest},
}

// Handler serves the worker over HTTP:
//
//	GET  /v1/evidence?nonce=N   evidence as JSON; N is 16 to 64 bytes in unpadded base64url
//	POST /v1/diagnose           a sealed case in, a sealed finding out (application/octet-stream)
//	GET  /healthz /readyz /metrics   as Observability
//
// A case is answered 200 when it has a finding, 421 when it is sealed to
// another key, 400 when it does not open, 413 when it is too large, 503 when
// the worker is busy or closing. Bodies of errors are one line of text without
// anything of the request in it.
func (w *Worker) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+evidencePath, w.serveEvidence)
	mux.HandleFunc("POST "+diagnosePath, w.serveDiagnose)
	mux.Handle("/", w.Observability())
	return mux
}

// Observability serves what orchestrators and monitors ask: /healthz (200
// unless only a restart helps), /readyz (200 if a case could be read now) and
// /metrics (Prometheus). Nothing in it is derived from a patient's data.
func (w *Worker) Observability() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		if w.stuck() {
			http.Error(rw, "every slot is held by a case past its timeout", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(rw, "ok")
	})
	mux.HandleFunc("GET "+readyPath, func(rw http.ResponseWriter, request *http.Request) {
		if err := w.Ready(request.Context()); err != nil {
			http.Error(rw, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(rw, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(w.observe.registry, promhttp.HandlerOpts{}))
	return mux
}

func (w *Worker) serveEvidence(rw http.ResponseWriter, request *http.Request) {
	nonce, err := base64.RawURLEncoding.DecodeString(request.URL.Query().Get("nonce"))
	if err != nil || len(nonce) < attest.MinNonce || len(nonce) > attest.MaxNonce {
		http.Error(rw, fmt.Sprintf("nonce must be %d to %d bytes in unpadded base64url", attest.MinNonce, attest.MaxNonce), http.StatusBadRequest)
		return
	}
	evidence, err := w.Evidence(request.Context(), nonce)
	if err == nil {
		var encoded []byte
		if encoded, err = evidence.Encode(); err == nil {
			rw.Header().Set("Content-Type", "application/json")
			rw.Header().Set("Cache-Control", "no-store")
			rw.Write(encoded)
			return
		}
	}
	w.options.Logger.Error("no evidence", "error", err)
	http.Error(rw, "no evidence: see the enclave's log", http.StatusServiceUnavailable)
}

// uploadRate is the slowest upload that is waited for once a slot is held.
const uploadRate = 256 << 10 // bytes per second

func (w *Worker) serveDiagnose(rw http.ResponseWriter, request *http.Request) {
	if request.Header.Get("Content-Type") != octets {
		http.Error(rw, "the body must be "+octets, http.StatusUnsupportedMediaType)
		return
	}
	if request.ContentLength < 0 {
		http.Error(rw, "the length must be given", http.StatusLengthRequired)
		return
	}
	if request.ContentLength > MaxSealed {
		w.refuse(rw, fmt.Errorf("enclave: a case of %d bytes: %w", request.ContentLength, ErrTooLarge))
		return
	}
	// The slot comes first: at most MaxConcurrent bodies are in memory.
	waiting, stop := context.WithTimeout(request.Context(), w.options.Timeout)
	release, err := w.acquire(waiting)
	stop()
	if err != nil {
		w.refuse(rw, err)
		return
	}
	deadline := http.NewResponseController(rw)
	deadline.SetReadDeadline(time.Now().Add(10*time.Second + time.Duration(request.ContentLength/uploadRate)*time.Second))
	// A claimed length is trusted up to 16 MiB, then memory follows what arrives.
	body := bytes.NewBuffer(make([]byte, 0, min(request.ContentLength, 16<<20)+bytes.MinRead))
	_, err = body.ReadFrom(io.LimitReader(request.Body, MaxSealed+1))
	deadline.SetReadDeadline(time.Time{})
	if err != nil {
		release()
		http.Error(rw, "the body did not arrive", http.StatusRequestTimeout)
		return
	}
	reply, err := w.diagnose(request.Context(), body.Bytes(), release)
	if err != nil {
		w.refuse(rw, err)
		return
	}
	rw.Header().Set("Content-Type", octets)
	rw.Header().Set("Content-Length", strconv.Itoa(len(reply)))
	rw.Write(reply)
}

// refuse answers with the status that tells the client what to do next, and
// keeps the details for the enclave's own log.
func (w *Worker) refuse(rw http.ResponseWriter, err error) {
	for _, row := range statusOf {
		if errors.Is(err, row.err) {
			if row.status == http.StatusServiceUnavailable {
				rw.Header().Set("Retry-After", "2")
			}
			w.options.Logger.Warn("case refused", "error", err)
			http.Error(rw, row.err.Error(), row.status)
			return
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		http.Error(rw, "the request ended", http.StatusRequestTimeout) // to a client that is gone
		return
	}
	w.options.Logger.Error("case failed", "error", err)
	http.Error(rw, "internal error: see the enclave's log", http.StatusInternalServerError)
}
