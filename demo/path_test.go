package demo_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/gateway"
	"github.com/vigie/vigie/keys/certificates"
	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

// patience is how long a test waits for what must come, on a machine however busy.
const patience = 5 * time.Minute

// demoModel returns the committed model package, if this build can run it.
func demoModel(t *testing.T) string {
	t.Helper()
	dir := filepath.Join("..", "models", "chest-pneumonia-28")
	pkg, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	session, err := engine.Open(pkg.Graph, engine.Options{Threads: 1})
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("END TO END NOT TESTED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestTheDemoEndsAsExpected(t *testing.T) {
	options := demo.Options{Dir: filepath.Join(t.TempDir(), "site"), Model: demoModel(t)}
	if out, err := exec.Command("go", "env", "GOMODCACHE").Output(); err == nil {
		path := filepath.Join(strings.TrimSpace(string(out)), "github.com/suyashkumar/dicom@v1.1.0", "testdata", "4.dcm")
		if _, err := os.Stat(path); err == nil {
			options.Radiograph = path
		}
	}
	if options.Radiograph == "" {
		t.Log("the real radiograph is absent: only phantoms are sent")
	}
	var out bytes.Buffer
	if err := demo.Run(context.Background(), &out, options); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{"everything as expected", "verified whole", "records proven offline", "quarantined", "in review", "released"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, &out)
		}
	}
	for _, line := range strings.Split(out.String(), "\n") {
		if n := len([]rune(line)); n > 100 && !strings.Contains(line, options.Dir) && !strings.Contains(line, "127.0.0.1") {
			t.Errorf("a line has %d columns: %s", n, line)
		}
	}
	log, err := os.ReadFile(filepath.Join(options.Dir, "gateway.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Quimperl", "Vandenplas", "Obafemi", "Lindqvist", "Tsukamoto", "Zielinska", "Delacroix", "PHX-", "COVID-19-AR"} {
		if bytes.Contains(log, []byte(name)) {
			t.Errorf("the log holds %q", name)
		}
	}
}

// running is a site with a gateway and a PACS that end with the test.
type running struct {
	*demo.Site
	gateway *gateway.Gateway
	pacs    *demo.PACS
}

func run(t *testing.T, options demo.SiteOptions, adjust func(*demo.Site) string) *running {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "site")
	site, err := demo.NewSite(dir, options)
	if err != nil {
		t.Fatal(err)
	}
	if adjust != nil {
		data, err := os.ReadFile(site.Config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(site.Config, append(data, adjust(site)...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	logger := slog.New(slog.DiscardHandler)
	pacs, err := site.StartPACS(context.Background(), logger)
	if err != nil {
		t.Fatal(err)
	}
	config, _, err := gateway.Load(gateway.Sources{File: site.Config})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g, err := gateway.Open(ctx, config, logger, gateway.Options{})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	select {
	case <-g.Started():
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, g.Close(), pacs.Close()); err != nil {
			t.Error(err)
		}
	})
	return &running{site, g, pacs}
}

func (r *running) clientTLS(member string) gateway.ClientTLS {
	return gateway.ClientTLS{CA: r.Path("tls", "ca.pem"), Certificate: r.Path("tls", member+".pem"), Key: r.Path("tls", member+".key"), ServerName: "localhost"}
}

// send sends a phantom as a member of the site.
func (r *running) send(t *testing.T, member, protocol string, seed uint64) gateway.Sent {
	t.Helper()
	file, err := phantom.Chest(seed, phantom.Options{Rows: 256, Columns: 256})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "object.dcm")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Write(out), out.Close()); err != nil {
		t.Fatal(err)
	}
	target := gateway.DestinationConfig{Name: "vigie", Kind: protocol, TLS: r.clientTLS(member)}
	switch protocol {
	case "dimse":
		target.Address, target.AETitle, target.CallingAETitle = r.DIMSE, demo.GatewayAE, demo.ModalityAE
	case "stow":
		target.URL = "https://" + r.HTTP + "/dicom-web"
	}
	var sent gateway.Sent
	if err := gateway.Send(context.Background(), target, []string{path}, func(s gateway.Sent) { sent = s }); err != nil {
		t.Fatal(err)
	}
	return sent
}

// rest waits until the case of an object rests.
func (r *running) rest(t *testing.T, sopInstance string) *vigie.Case {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		c, err := r.gateway.CaseOf(context.Background(), sopInstance)
		if err != nil {
			t.Fatal(err)
		}
		if c.State == vigie.Delivered || c.State == vigie.InReview || c.State == vigie.Quarantined {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("case %s is still %s", c.ID, c.State)
		}
	}
}

func TestAStrangerIsRefusedOnBothProtocols(t *testing.T) {
	r := run(t, demo.SiteOptions{Model: demoModel(t)}, nil)
	for _, protocol := range []string{"dimse", "stow"} {
		if sent := r.send(t, "stranger", protocol, 1); sent.Error == "" {
			t.Errorf("%s: a certificate of the right authority that is not on the list was let in", protocol)
		}
		if sent := r.send(t, "modality", protocol, 1); sent.Error != "" {
			t.Errorf("%s: the modality is refused: %s", protocol, sent.Error)
		}
	}
	secure, err := r.TLS("modality")
	if err != nil {
		t.Fatal(err)
	}
	secure.Certificates = nil
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: secure}}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 401, "/dicom-web/studies": 401} {
		response, err := client.Get("https://" + r.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s without a certificate: %d, want %d", path, response.StatusCode, want)
		}
	}
}

func TestARenewedCertificateIsShownWithoutARestart(t *testing.T) {
	r := run(t, demo.SiteOptions{Model: demoModel(t)}, nil)
	secure, err := r.TLS("modality")
	if err != nil {
		t.Fatal(err)
	}
	shown := func(address string) string {
		t.Helper()
		conn, err := tls.Dial("tcp", address, secure)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	for _, address := range []string{r.DIMSE, r.HTTP} {
		if name := shown(address); name != "gateway" {
			t.Fatalf("%s shows the certificate of %s", address, name)
		}
	}
	// Another certificate of the same authority takes the place of the gateway's.
	for _, kind := range []string{".key", ".pem"} {
		if err := os.Rename(r.Path("tls", "archive"+kind), r.Path("tls", "gateway"+kind)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(patience); shown(r.DIMSE) != "archive" || shown(r.HTTP) != "archive"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the former certificate is still shown")
		}
	}
	if sent := r.send(t, "modality", "dimse", 1); sent.Error != "" {
		t.Error(sent.Error)
	}
	if sent := r.send(t, "modality", "stow", 2); sent.Error != "" {
		t.Error(sent.Error)
	}
}

func TestAnEnclaveInAnotherProcessReadsTheSameCases(t *testing.T) {
	dir := demoModel(t)
	pkg, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	r := run(t, demo.SiteOptions{Model: dir}, func(site *demo.Site) string {
		logger := slog.New(slog.DiscardHandler)
		worker, err := enclave.New(pkg, attest.NewDevelopment(logger), enclave.Options{Threads: 1, Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		files := certificates.Files{Certificate: site.Path("tls", "enclave.pem"), Key: site.Path("tls", "enclave.key"), Authority: site.Path("tls", "ca.pem")}
		secure, err := files.Server(enclave.TLSOptions())
		if err != nil {
			t.Fatal(err)
		}
		go func() { served <- enclave.Serve(ctx, worker, enclave.ServeOptions{Listener: listener, TLS: secure}) }()
		return "enclave:\n  url: https://" + listener.Addr().String() + "\n" +
			"  tls: {ca: tls/ca.pem, certificate: tls/gateway.pem, key: tls/gateway.key}\n"
	})
	sent := r.send(t, "modality", "dimse", 1)
	if sent.Error != "" {
		t.Fatal(sent.Error)
	}
	c := r.rest(t, sent.SOPInstance)
	if c.Finding == nil || c.Finding.Model != pkg.Digest || len(c.Finding.Predictions) != 2 || c.Finding.Explanation == nil {
		t.Errorf("finding %+v, verdict %+v", c.Finding, c.Verdict)
	}
	if ready := r.gateway.Ready(context.Background()); !ready.Ready {
		t.Errorf("not ready: %v", ready.Checks)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	served <- nil // for the cleanup
	if ready := r.gateway.Ready(context.Background()); ready.Ready || ready.Checks["enclave"] == "ok" {
		t.Errorf("ready right after the enclave ended: %v", ready.Checks)
	}
}

func TestResultsReachAnArchiveBySTOWAndThePACSByCSTORE(t *testing.T) {
	var mu sync.Mutex
	kept := map[string]string{}
	handler, err := dicomweb.NewHandler(dicomweb.Config{
		Authorize: dicomweb.MutualTLS,
		NewSpool:  func() (dimse.Spool, error) { return &memorySpool{}, nil },
		Store: func(_ context.Context, r dicomweb.StoreRequest) dimse.Status {
			mu.Lock()
			defer mu.Unlock()
			kept[r.SOPInstance] = r.SOPClass
			return dimse.Success
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.StripPrefix("/dicom-web", handler))
	server.Listener = listener
	// The limit decides alone: whatever the model says of the phantom is released.
	options := demo.SiteOptions{Model: demoModel(t), STOW: "https://" + listener.Addr().String() + "/dicom-web", Margin: "0"}
	r := run(t, options, func(site *demo.Site) string {
		if server.TLS, err = site.TLS("archive"); err != nil {
			t.Fatal(err)
		}
		server.StartTLS()
		t.Cleanup(server.Close)
		return ""
	})
	sent := r.send(t, "modality", "stow", 1)
	if sent.Error != "" {
		t.Fatal(sent.Error)
	}
	c := r.rest(t, sent.SOPInstance)
	if c.State == vigie.InReview { // the model finds the phantom borderline
		if _, err := r.gateway.Decide(context.Background(), c.ID, vigie.HumanDecision{Action: gateway.ActionRelease, Actor: "dr.test"}); err != nil {
			t.Fatal(err)
		}
		for c.State != vigie.Delivered {
			if c, err = r.gateway.Case(context.Background(), c.ID); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	atPACS := r.pacs.Objects()
	for _, role := range []string{gateway.RoleReport, gateway.RoleOverlay} {
		uid := gateway.ResultUID(c.ID, c.Model, role)
		if kept[uid] == "" || atPACS[uid].Times != 1 {
			t.Errorf("the %s: at the archive %q, at the PACS %+v", role, kept[uid], atPACS[uid])
		}
	}
}

type memorySpool struct{ bytes.Buffer }

func (*memorySpool) Discard() {}
