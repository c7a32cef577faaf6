package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// certified is the leaf of a peer whose chain TLS has verified.
func certified(name string) *x509.Certificate {
	return &x509.Certificate{Raw: []byte(name), Subject: pkix.Name{CommonName: name}}
}

// ask has a handler answer a request of a peer; nil is one without certificate.
func ask(handler http.Handler, method, path string, peer *x509.Certificate) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader("--b--"))
	r.Header.Set("Content-Type", `multipart/related; type="application/dicom"; boundary=b`)
	r.TLS = &tls.ConnectionState{}
	if peer != nil {
		r.TLS.VerifiedChains = [][]*x509.Certificate{{peer}}
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w
}

func TestWhoMaySendMayNotReadUnlessTheListSaysSo(t *testing.T) {
	config := testConfig(t)
	config.HTTP.Plain = false
	config.HTTP.Allow = []PeerConfig{{Subject: "CN=cr", May: "send"}, {Subject: "CN=viewer", May: "read"}, {Subject: "CN=pacs"}}
	g, err := Open(context.Background(), config, slog.New(slog.DiscardHandler), Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	web, err := g.dicomweb()
	if err != nil {
		t.Fatal(err)
	}
	server, err := g.routes()
	if err != nil {
		t.Fatal(err)
	}
	for name, may := range map[string]struct{ send, read bool }{"cr": {true, false}, "viewer": {false, true}, "pacs": {true, true}, "other": {false, false}} {
		for _, test := range []struct {
			method, path string
			may          bool
		}{
			{"POST", "/studies", may.send}, {"POST", "/studies/1.2.3", may.send},
			{"GET", "/studies", may.read}, {"GET", "/instances?PatientID=1", may.read}, {"GET", "/studies/1.2.3", may.read},
			{"GET", "/studies/1.2.3/metadata", may.read}, {"HEAD", "/studies", may.read},
		} {
			if w := ask(web, test.method, test.path, certified(name)); (w.Code != http.StatusForbidden) != test.may {
				t.Errorf("%s asks %s %s: %d, want it allowed: %v", name, test.method, test.path, w.Code, test.may)
			}
		}
		if w := ask(server, "GET", "/metrics", certified(name)); (w.Code == http.StatusOK) != (name != "other") {
			t.Errorf("%s asks for /metrics: %d", name, w.Code)
		}
	}
}

func TestStrangersLearnNothingOfTheMachine(t *testing.T) {
	config := testConfig(t)
	config.HTTP.Plain = false
	config.HTTP.Allow = []PeerConfig{{Subject: "CN=pacs"}}
	g, err := Open(context.Background(), config, slog.New(slog.DiscardHandler), Options{
		Diagnoser: newStandIn(t, config.Model, always(0.5)),
		Free:      func(string) (int64, error) { return 1 << 10, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	const secret = "dial tcp db.hospital.example:5432"
	g.probes = append(g.probes, probe{"enclave", func(context.Context) error { return errors.New(secret) }})
	web, err := g.dicomweb()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		peer    *x509.Certificate
		status  int
		details bool
	}{
		"without certificate": {nil, http.StatusUnauthorized, false},
		"not on the list":     {certified("other"), http.StatusForbidden, false},
		"on the list":         {certified("pacs"), http.StatusInsufficientStorage, true},
	} {
		if w := ask(web, "POST", "/studies", test.peer); w.Code != test.status {
			t.Errorf("%s: a full disk is answered %d, want %d", name, w.Code, test.status)
		}
		w := ask(http.HandlerFunc(g.serveReady), "GET", "/readyz", test.peer)
		body := w.Body.String()
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(body, `"store":"ok"`) {
			t.Errorf("%s: /readyz: %d %s", name, w.Code, body)
		}
		if strings.Contains(body, secret) != test.details || strings.Contains(body, "limits.disk_free") != test.details || strings.Contains(body, `"disk":"not ok"`) == test.details {
			t.Errorf("%s: /readyz says %s", name, body)
		}
	}
}
