package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/riverqueue/river"
	"golang.org/x/sync/errgroup"

	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/store"
)

// Gateway serves one site. Make it with Open, serve with Run, then Close.
type Gateway struct {
	*Casebook
	policy       Policy
	diagnoser    enclave.Diagnoser
	destinations map[string]destination
	metrics      *metrics
	probes       []probe
	free         func(path string) (int64, error)
	recent       recent
	examining    chan struct{} // holds one for each header in memory
	quit         atomic.Bool
	started      chan struct{} // closed when Run accepts
	addresses    Addresses     // set before started is closed
}

// Addresses are where a running gateway listens; nil where it does not.
type Addresses struct{ DIMSE, HTTP net.Addr }

// Started returns a channel that is closed once Run accepts objects.
func (g *Gateway) Started() <-chan struct{} { return g.started }

// Addresses returns where the gateway listens, once it has started.
func (g *Gateway) Addresses() Addresses { return g.addresses }

// Options changes what tests need changed. The zero value is for production.
type Options struct {
	Files     store.FileSystem                 // under the sealed objects; nil is the operating system
	Free      func(path string) (int64, error) // free bytes of a disk; nil asks the operating system
	Diagnoser enclave.Diagnoser                // instead of the configured enclave
}

// Open opens everything that the configuration names and starts the enclave if
// it runs inside this process. Nothing is accepted before Run.
func Open(ctx context.Context, config *Config, logger *slog.Logger, options Options) (_ *Gateway, err error) {
	if err := config.checkPrivateKeys(); err != nil {
		return nil, err
	}
	book, err := openCasebook(ctx, config, logger, options.Files)
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		Casebook:     book,
		policy:       Policy{Everything: config.Review.Everything, Positive: config.Review.Positive, Margin: config.Review.Margin},
		destinations: map[string]destination{},
		metrics:      newMetrics(),
		free:         options.Free,
		examining:    make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
		started:      make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	if g.free == nil {
		g.free = diskFree
	}
	if _, err = g.openModel(); err != nil {
		return nil, fmt.Errorf("gateway: opening the model package: %w", err)
	}
	for _, d := range config.Destinations {
		if g.destinations[d.Name], err = newDestination(d, config.Production, logger); err != nil {
			return nil, fmt.Errorf("gateway: destination %s: %w", d.Name, err)
		}
	}
	g.diagnoser = options.Diagnoser
	if g.diagnoser == nil {
		if err = g.openEnclave(ctx); err != nil {
			return nil, err
		}
	}
	g.metrics.registry.MustRegister(&caseCollector{book: book})
	g.probes = append(g.probes,
		probe{"store", g.probeStore},
		probe{"disk", g.probeDisk})
	return g, nil
}

// openEnclave starts the enclave of this process, or prepares to reach the one
// that the configuration names. Either must prove to serve our model package.
func (g *Gateway) openEnclave(ctx context.Context) error {
	verifier, err := attest.NewVerifier(attest.Policy{
		// Only a site that says development takes evidence that proves nothing.
		Production: !g.config.Development, Providers: []string{attest.DevelopmentName}, Model: g.model.Digest,
	}, g.logger)
	if err != nil {
		return fmt.Errorf("gateway: preparing to verify the enclave: %w", err)
	}
	var places []enclave.Enclave
	if urls := strings.Fields(g.config.Enclave.URL); len(urls) > 0 {
		for _, url := range urls {
			secure, err := clientTLSConfig(g.config.Enclave.TLS, isPlainURL(url), g.config.Production, g.logger)
			if err != nil {
				return err
			}
			remote, err := enclave.NewRemote(enclave.RemoteOptions{
				URL: url, TLS: secure, Development: g.config.Development, Timeout: g.config.Enclave.Timeout,
			})
			if err != nil {
				return err
			}
			places = append(places, remote)
		}
	} else {
		if !g.config.Development {
			return fmt.Errorf("gateway: an enclave inside the gateway's process has development evidence only: name an attested one in enclave.url, or say development: true where no patient's data come: %w", attest.ErrDevelopmentEvidence)
		}
		server := enclave.ModelServer{URL: g.config.Enclave.ModelServer}
		if server.URL != "" {
			var err error
			if server.TLS, err = clientTLSConfig(g.config.Enclave.TLS, isPlainURL(server.URL), g.config.Production, g.logger); err != nil {
				return err
			}
		}
		worker, err := enclave.New(g.model, attest.NewDevelopment(g.logger), enclave.Options{
			Threads: g.config.Enclave.Threads, Timeout: g.config.Enclave.Timeout, ExplainBudget: g.config.Enclave.ExplainBudget, CertifyBudget: g.config.Enclave.CertificateBudget,
			ModelServer: server, Logger: g.logger,
			Guarding: enclave.Guarding{Missing: g.config.Enclave.GuardsMissing, Budget: g.config.Enclave.GuardBudget, Remember: g.config.Enclave.GuardMemory},
		})
		if err != nil {
			return fmt.Errorf("gateway: starting the enclave: %w", err)
		}
		g.closers = append(g.closers, func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			return worker.Close(ctx)
		})
		places = append(places, worker)
	}
	var clients []*enclave.Client
	var copies []enclave.Diagnoser
	for _, place := range places {
		client := enclave.NewClient(place, verifier, enclave.ClientOptions{})
		clients, copies = append(clients, client), append(copies, client)
	}
	g.diagnoser = enclave.NewSpread(copies...)
	g.probes = append(g.probes, probe{"enclave", func(ctx context.Context) error {
		var errs []error
		for _, client := range clients {
			err := client.Ready(ctx)
			if err == nil {
				return nil // one trusted copy that answers is enough to work
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}})
	return nil
}

// stopping reports whether Run was asked to end.
func (g *Gateway) stopping() bool { return g.quit.Load() }

// shutdownGrace is how long running work may take to end in good order.
const shutdownGrace = 20 * time.Second

// Run serves until ctx ends, or a listener fails. Then it accepts nothing
// more, lets running transfers and jobs end, and publishes a last checkpoint
// of the log. What could not end goes on at the next start.
func (g *Gateway) Run(ctx context.Context) error {
	began := time.Now()
	time.Sleep(coarseTime) // so that what this run writes is surely younger
	listeners, err := g.listen()
	if err != nil {
		return err
	}
	// Jobs outlive the listeners: they are stopped by StopJobs, not by ctx.
	working, endWork := context.WithCancel(context.WithoutCancel(ctx))
	defer endWork()
	if err := errors.Join(g.recordStart(ctx), g.startJobs(working)); err != nil {
		listeners.close()
		return err
	}
	if err := g.sweep(ctx, began); err != nil && ctx.Err() == nil {
		listeners.close()
		return errors.Join(err, g.store.StopJobs(ctx))
	}
	group, serving := errgroup.WithContext(ctx)
	if listeners.dimse != nil {
		group.Go(func() error { return g.serveDIMSE(serving, listeners.dimse) })
	}
	if listeners.http != nil {
		group.Go(func() error { return g.serveHTTP(serving, listeners.http) })
	}
	// The publisher signs once more when its context ends, so it must outlive
	// the jobs.
	publishing, endPublishing := context.WithCancel(working)
	defer endPublishing()
	published := make(chan error, 1)
	go func() {
		publisher := audit.Publisher{Log: g.log, TileDir: g.config.StateFile("log"), Logger: g.logger}
		published <- publisher.Run(publishing)
	}()
	g.addresses = listeners.addresses()
	if len(g.config.Destinations) == 0 {
		g.logger.Warn("no destination is configured: results are kept here, can be searched over DICOMweb, and are sent to nobody")
	}
	g.logger.Info("gateway ready", "dimse", g.addresses.DIMSE, "http", g.addresses.HTTP,
		"model", g.model.Manifest.Name, "version", g.model.Manifest.Version, "digest", g.model.Digest, "store", g.store.Database())
	close(g.started)
	err = group.Wait()
	g.quit.Store(true)
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	err = errors.Join(err, g.store.StopJobs(stopping))
	if failed := g.recordStop(stopping); failed != nil {
		g.logger.Warn("the log does not say that the gateway stopped", "error", failed)
	}
	endPublishing()
	err = errors.Join(err, <-published)
	g.logger.Info("gateway stopped", "error", err)
	return err
}

// coarseTime is how far the times of files lag behind the clock: a tick of the
// kernel.
const coarseTime = 10 * time.Millisecond

// sweep removes what a crash left in the folder of objects. It must come after
// startJobs, which on SQLite only one process can do: what another running
// gateway receives is not left over. Our own jobs make objects too, so nothing
// younger than this run is judged, nor, on PostgreSQL, where several gateways
// share the folder, anything younger than an hour.
func (g *Gateway) sweep(ctx context.Context, began time.Time) error {
	age := time.Since(began)
	if g.store.Database() != "sqlite" {
		age += time.Hour
	}
	removed, err := g.store.Sweep(ctx, age)
	if err != nil {
		return fmt.Errorf("gateway: sweeping unfinished objects: %w", err)
	}
	if removed > 0 {
		g.logger.Info("unfinished objects of a former run removed", "count", removed)
	}
	return nil
}

func (g *Gateway) startJobs(ctx context.Context) error {
	workers := river.NewWorkers()
	if err := errors.Join(
		river.AddWorkerSafely(workers, &diagnoseWorker{g: g}),
		river.AddWorkerSafely(workers, &deliverWorker{g: g})); err != nil {
		return fmt.Errorf("gateway: registering jobs: %w", err)
	}
	return g.store.StartJobs(ctx, workers, map[string]river.QueueConfig{
		queueDiagnose: {MaxWorkers: g.config.Limits.DiagnoseJobs},
		queueDeliver:  {MaxWorkers: g.config.Limits.DeliverJobs},
	})
}

// listeners are the open ports of a gateway.
type listeners struct{ dimse, http net.Listener }

func (l listeners) close() {
	for _, one := range []net.Listener{l.dimse, l.http} {
		if one != nil {
			one.Close()
		}
	}
}

func (l listeners) addresses() (a Addresses) {
	if l.dimse != nil {
		a.DIMSE = l.dimse.Addr()
	}
	if l.http != nil {
		a.HTTP = l.http.Addr()
	}
	return a
}

func (g *Gateway) listen() (l listeners, err error) {
	for _, open := range []struct {
		address string
		into    *net.Listener
	}{{g.config.DIMSE.Listen, &l.dimse}, {g.config.HTTP.Listen, &l.http}} {
		if open.address == "" {
			continue
		}
		if *open.into, err = net.Listen("tcp", open.address); err != nil {
			l.close()
			return listeners{}, fmt.Errorf("gateway: listening on %s: %w", open.address, err)
		}
	}
	return l, nil
}

func (g *Gateway) serveDIMSE(ctx context.Context, listener net.Listener) error {
	server, err := g.dimseServer()
	if err != nil {
		listener.Close()
		return err
	}
	return server.Serve(ctx, listener)
}

func (g *Gateway) serveHTTP(ctx context.Context, listener net.Listener) error {
	server, err := g.httpServer()
	if err != nil {
		listener.Close()
		return err
	}
	ended := make(chan error, 1)
	go func() {
		if server.TLSConfig != nil {
			ended <- server.ServeTLS(listener, "", "")
			return
		}
		ended <- server.Serve(listener)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("gateway: serving HTTP: %w", err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	err = server.Shutdown(stopping)
	if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

func (g *Gateway) probeStore(ctx context.Context) error {
	return g.store.Update(ctx, func(tx *store.Tx) error {
		return tx.PutSetting("written last", []byte(tx.Now().Format(time.RFC3339Nano)))
	})
}

func (g *Gateway) probeDisk(context.Context) error {
	free, err := g.free(g.config.StateFile("objects"))
	if err != nil {
		return err
	}
	if limit := int64(g.config.Limits.DiskFree); free < limit {
		return fmt.Errorf("%v free, limits.disk_free is %v: intake is refused: %w", Size(free>>20<<20), Size(limit), store.ErrFull)
	}
	return nil
}

var _ dimse.Spool = (*spool)(nil)
