package enclave

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/vigie/vigie/keys/certificates"
)

// ServeOptions says where and how a worker is served.
type ServeOptions struct {
	Listener net.Listener  // where cases arrive
	TLS      *tls.Config   // see TLSOptions; nil serves plain HTTP, which is refused except on a loopback address
	Observe  net.Listener  // if set, /healthz, /readyz and /metrics in plain HTTP, for probes that hold no certificate
	Drain    time.Duration // how long running cases may take to finish; 0 is the worker's timeout
}

// Serve serves the worker until ctx ends, then refuses new cases, lets those
// being read finish. However it returns, the worker is closed.
func Serve(ctx context.Context, worker *Worker, options ServeOptions) error {
	if options.Drain == 0 {
		options.Drain = worker.options.Timeout
	}
	if options.TLS == nil && !loopback(options.Listener.Addr()) {
		refused := fmt.Errorf("enclave: serving on %s: plain HTTP is for development on a loopback address: give certificates, or listen on 127.0.0.1", options.Listener.Addr())
		return errors.Join(refused, worker.Close(ctx))
	}
	logger := worker.options.Logger
	server := newHTTPServer(worker.Handler(), logger)
	servers := []*http.Server{server}
	failed := make(chan error, 2)
	go func() {
		if options.TLS != nil {
			server.TLSConfig = options.TLS
			failed <- server.ServeTLS(options.Listener, "", "")
			return
		}
		failed <- server.Serve(options.Listener)
	}()
	if options.Observe != nil {
		observe := newHTTPServer(worker.Observability(), logger)
		servers = append(servers, observe)
		go func() { failed <- observe.Serve(options.Observe) }()
	}
	logger.Info("enclave listening", "address", options.Listener.Addr().String(), "tls", options.TLS != nil)

	var result error
	select {
	case <-ctx.Done():
		logger.Info("enclave stopping: running cases finish first", "at most", options.Drain)
	case err := <-failed:
		result = fmt.Errorf("enclave: serving: %w", err)
	}
	drain, stop := context.WithTimeout(context.WithoutCancel(ctx), options.Drain)
	defer stop()
	for _, server := range servers {
		if err := server.Shutdown(drain); err != nil {
			result = errors.Join(result, fmt.Errorf("enclave: stopping: %w", err))
			server.Close()
		}
	}
	return errors.Join(result, worker.Close(drain))
}

// TLSOptions are those of a configuration for Serve (certificates.Files.Server).
// The seam does not rest on TLS for secrecy or for the finding's origin, which
// HPKE and signatures give; mutual TLS decides who may use the enclave's time at
// all, and hides who sends cases and when.
func TLSOptions() certificates.ServerOptions {
	return certificates.ServerOptions{Protocols: []string{"http/1.1"}}
}

// newHTTPServer speaks HTTP/1.1 only: in HTTP/2 the cases of one client share
// a flow-control window, and those that wait for a slot would starve the one
// that has it.
func newHTTPServer(handler http.Handler, logger *slog.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           handler,
		Protocols:         &protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}

// loopback tells whether only this machine can reach the address.
func loopback(address net.Addr) bool {
	switch a := address.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}
