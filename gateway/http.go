package gateway

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/vigie/vigie/keys/certificates"
)

// routes serves DICOMweb, health, readiness and metrics. /healthz and /readyz
// answer anybody who can connect, so that an orchestrator needs no certificate;
// what is wrong, and everything else, is only for certificates on http.allow.
func (g *Gateway) routes() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", g.serveHealth)
	mux.HandleFunc("GET /readyz", g.serveReady)
	mux.Handle("GET /metrics", g.admit("", promhttp.HandlerFor(g.metrics.registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(g.logger.Handler(), slog.LevelWarn)})))
	web, err := g.dicomweb()
	if err != nil {
		return nil, err
	}
	mux.Handle(webRoot+"/", http.StripPrefix(webRoot, web))
	return mux, nil
}

func (g *Gateway) httpServer() (*http.Server, error) {
	handler, err := g.routes()
	if err != nil {
		return nil, err
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(g.logger.Handler(), slog.LevelDebug),
	}
	if !g.config.HTTP.Plain {
		if server.TLSConfig, err = g.serverTLS(g.config.HTTP.TLS, certificates.ServerOptions{Optional: true, Protocols: []string{"h2", "http/1.1"}}); err != nil {
			return nil, err
		}
	}
	return server, nil
}
