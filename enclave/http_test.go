package enclave

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/keys/certificates"
)

// serve runs a worker behind HTTP until the test ends, and returns its address
// and a function that stops it and waits.
func serve(t testing.TB, w *Worker, options ServeOptions) (address string, stop func() error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	options.Listener = listener
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, w, options) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { stop() })
	return listener.Addr().String(), stop
}

func remote(t testing.TB, options RemoteOptions) *Remote {
	t.Helper()
	if options.Backoff == 0 {
		options.Backoff = time.Millisecond
	}
	r, err := NewRemote(options)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAnEnclaveBehindHTTPAnswersLikeOneInProcess(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	address, _ := serve(t, w, ServeOptions{})
	client := NewClient(remote(t, RemoteOptions{URL: "http://" + address, Development: true}), developmentVerifier(t, exampleModel), ClientOptions{})
	result, err := client.Diagnose(context.Background(), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Finding.Predictions) != 1 || result.Finding.Case != exampleRequest().Case {
		t.Errorf("got %+v", result.Finding)
	}
}

// authority writes a CA and certificates for a server and a client to a folder.
func authority(t *testing.T) (server, client certificates.Files) {
	t.Helper()
	folder := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	issue := func(name string, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, string, string) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return certificate, key, write(name+".pem", "CERTIFICATE", der), write(name+".key", "PRIVATE KEY", private)
	}
	validity := func(template *x509.Certificate) *x509.Certificate {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		return template
	}
	ca, caKey, caFile, _ := issue("ca", validity(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}), nil, nil)
	_, _, serverFile, serverKey := issue("server", validity(&x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}), ca, caKey)
	_, _, clientFile, clientKey := issue("client", validity(&x509.Certificate{SerialNumber: big.NewInt(3),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}), ca, caKey)
	return certificates.Files{Certificate: serverFile, Key: serverKey, Authority: caFile}, certificates.Files{Certificate: clientFile, Key: clientKey, Authority: caFile}
}

func TestMutualTLSAdmitsOnlyTheAuthoritysClients(t *testing.T) {
	serverFiles, clientFiles := authority(t)
	_, strangerFiles := authority(t)
	serverTLS, err := serverFiles.Server(TLSOptions())
	if err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, scriptedWorker(t, &scripted{}, Options{}), ServeOptions{TLS: serverTLS})
	diagnose := func(change func(*tls.Config)) error {
		config, err := clientFiles.Client("")
		if err != nil {
			t.Fatal(err)
		}
		change(config)
		r := remote(t, RemoteOptions{URL: "https://" + address, TLS: config, Attempts: 1})
		_, err = NewClient(r, developmentVerifier(t, exampleModel), ClientOptions{}).Diagnose(context.Background(), exampleRequest())
		return err
	}
	if err := diagnose(func(*tls.Config) {}); err != nil {
		t.Errorf("the right client: %v", err)
	}
	stranger, err := strangerFiles.Client("")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*tls.Config){
		"no certificate":             func(c *tls.Config) { c.GetClientCertificate = nil },
		"another authority's client": func(c *tls.Config) { c.GetClientCertificate = stranger.GetClientCertificate },
		"another authority's server": func(c *tls.Config) { c.RootCAs = stranger.RootCAs },
		"TLS 1.2":                    func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
	} {
		if err := diagnose(change); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: got %v, want ErrUnavailable", name, err)
		}
	}
}

func TestPlainHTTPIsRefusedBeyondTheMachineAndOutsideDevelopment(t *testing.T) {
	for name, options := range map[string]RemoteOptions{
		"plain without development": {URL: "http://127.0.0.1:1"},
		"plain to another machine":  {URL: "http://192.0.2.1:1", Development: true},
		"https without certificate": {URL: "https://127.0.0.1:1", Development: true},
		"another scheme":            {URL: "ftp://127.0.0.1", Development: true},
		"a path":                    {URL: "http://127.0.0.1/x", Development: true},
		"a password":                {URL: "http://a:b@127.0.0.1", Development: true},
		"no host":                   {URL: "127.0.0.1:8443", Development: true},
	} {
		if _, err := NewRemote(options); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "a:b@") {
			t.Errorf("%s: the error shows a password", name)
		}
	}
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := Serve(context.Background(), scriptedWorker(t, &scripted{}, Options{}), ServeOptions{Listener: listener}); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("serving plain HTTP to everybody: got %v", err)
	}
}

func TestTheClientTriesAgainWhenTheConnectionFailsOrTheEnclaveIsBusy(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	var calls atomic.Int64
	for name, fail := range map[string]http.HandlerFunc{
		"connection cut": func(rw http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		},
		"busy":     func(rw http.ResponseWriter, r *http.Request) { http.Error(rw, "", http.StatusServiceUnavailable) },
		"balancer": func(rw http.ResponseWriter, r *http.Request) { http.Error(rw, "", http.StatusBadGateway) },
		"half a reply": func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Length", "5000")
			rw.Write([]byte("VIGIE"))
			panic(http.ErrAbortHandler)
		},
	} {
		calls.Store(0)
		handler := w.Handler()
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if calls.Add(1)%3 != 0 { // two failures before each success
				fail(rw, r)
				return
			}
			handler.ServeHTTP(rw, r)
		}))
		server.Config.ErrorLog = nil
		client := NewClient(remote(t, RemoteOptions{URL: server.URL, Development: true}), developmentVerifier(t, exampleModel), ClientOptions{})
		if _, err := client.Diagnose(context.Background(), exampleRequest()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if calls.Load() != 6 {
			t.Errorf("%s: %d calls, want 6", name, calls.Load())
		}
		server.Close()
	}
}

func TestTheClientGivesUpOnWhatTryingAgainDoesNotCure(t *testing.T) {
	var calls int
	for status, want := range map[int]error{
		http.StatusNotFound:              ErrReply,
		http.StatusFound:                 ErrReply,
		http.StatusBadRequest:            ErrSealed,
		http.StatusRequestEntityTooLarge: ErrTooLarge,
		http.StatusMisdirectedRequest:    ErrUnknownKey,
	} {
		calls = 0
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			calls++
			rw.Header().Set("Location", "/elsewhere")
			rw.WriteHeader(status)
		}))
		_, err := remote(t, RemoteOptions{URL: server.URL, Development: true}).Diagnose(context.Background(), []byte("x"))
		if !errors.Is(err, want) || calls != 1 {
			t.Errorf("status %d: got %v after %d calls, want %v after 1", status, err, calls, want)
		}
		server.Close()
	}
}

func TestAnEnclaveThatKeepsRefusingItsOwnKeyIsReportedUnavailable(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	refusing := &refusing{Enclave: w}
	_, err := NewClient(refusing, developmentVerifier(t, exampleModel), ClientOptions{}).Diagnose(context.Background(), exampleRequest())
	if !errors.Is(err, ErrUnavailable) || refusing.calls != attempts {
		t.Errorf("got %v after %d calls, want ErrUnavailable after %d", err, refusing.calls, attempts)
	}
}

type refusing struct {
	Enclave
	calls int
}

func (r *refusing) Diagnose(context.Context, []byte) ([]byte, error) {
	r.calls++
	return nil, ErrUnknownKey
}

func TestAnOverlongReplyIsRefusedAndNotKept(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		chunk := make([]byte, 1<<20)
		for range attest.MaxEvidence/len(chunk) + 2 {
			rw.Write(chunk)
		}
	}))
	defer server.Close()
	if _, err := remote(t, RemoteOptions{URL: server.URL, Development: true}).Evidence(context.Background(), attest.NewNonce()); !errors.Is(err, ErrReply) {
		t.Errorf("got %v, want ErrReply", err)
	}
}

func TestTheHandlerAnswersEachBadRequestWithItsStatus(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	other := scriptedWorker(t, &scripted{}, Options{})
	sealedElsewhere, _, err := Seal(verified(t, other), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	request := func(method, path, contentType string, body []byte, length int64) int {
		r := httptest.NewRequest(method, path, bytes.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		r.ContentLength = length
		recorder := httptest.NewRecorder()
		w.Handler().ServeHTTP(recorder, r)
		return recorder.Code
	}
	size := int64(len(sealedElsewhere))
	for name, test := range map[string]struct{ got, want int }{
		"garbage":            {request("POST", diagnosePath, octets, []byte("garbage"), 7), 400},
		"another's key":      {request("POST", diagnosePath, octets, sealedElsewhere, size), 421},
		"too large":          {request("POST", diagnosePath, octets, nil, MaxSealed+1), 413},
		"no length":          {request("POST", diagnosePath, octets, sealedElsewhere, -1), 411},
		"a form":             {request("POST", diagnosePath, "text/plain", sealedElsewhere, size), 415},
		"GET on diagnose":    {request("GET", diagnosePath, octets, nil, 0), 404},
		"no nonce":           {request("GET", evidencePath, "", nil, 0), 400},
		"a short nonce":      {request("GET", evidencePath+"?nonce=AAAA", "", nil, 0), 400},
		"a nonce not base64": {request("GET", evidencePath+"?nonce=%21%21", "", nil, 0), 400},
		"health":             {request("GET", "/healthz", "", nil, 0), 200},
		"readiness":          {request("GET", "/readyz", "", nil, 0), 200},
	} {
		if test.got != test.want {
			t.Errorf("%s: status %d, want %d", name, test.got, test.want)
		}
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/readyz": 503, "/healthz": 200} {
		if got := request("GET", path, "", nil, 0); got != want {
			t.Errorf("%s after closing: status %d, want %d", path, got, want)
		}
	}
	if got := request("POST", diagnosePath, octets, sealedElsewhere, size); got != 503 {
		t.Errorf("a case after closing: status %d, want 503", got)
	}
}

func TestMetricsCountCasesWithoutNamingThem(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	address, _ := serve(t, w, ServeOptions{})
	client := NewClient(remote(t, RemoteOptions{URL: "http://" + address, Development: true}), developmentVerifier(t, exampleModel), ClientOptions{})
	for range 3 {
		if _, err := client.Diagnose(context.Background(), exampleRequest()); err != nil {
			t.Fatal(err)
		}
	}
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`vigie_enclave_cases_total{outcome="analysed"} 3`, `vigie_enclave_stage_seconds_count{stage="infer"} 3`, `version="1"`} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	for _, secret := range []string{string(exampleRequest().Case), string(exampleRequest().Patient), "2.25.1"} {
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("the metrics name %s", secret)
		}
	}
}

func TestStoppingTheServerFinishesTheRunningCase(t *testing.T) {
	started := make(chan struct{})
	w := scriptedWorker(t, &scripted{answer: func(context.Context, vigie.PatientPseudonym, []byte) vigie.Finding {
		close(started)
		time.Sleep(200 * time.Millisecond)
		return positive()
	}}, Options{})
	address, stop := serve(t, w, ServeOptions{})
	client := NewClient(remote(t, RemoteOptions{URL: "http://" + address, Development: true}), developmentVerifier(t, exampleModel), ClientOptions{})
	answered := make(chan error, 1)
	go func() {
		_, err := client.Diagnose(context.Background(), exampleRequest())
		answered <- err
	}()
	<-started
	if err := stop(); err != nil {
		t.Errorf("stopping: %v", err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the running case: %v", err)
	}
	if _, err := client.Diagnose(context.Background(), exampleRequest()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after stopping: got %v, want ErrUnavailable", err)
	}
}

func TestReadinessIsThatOfTheEnclaveNowAndNotOfItsEvidence(t *testing.T) {
	release := make(chan struct{})
	w := scriptedWorker(t, &scripted{answer: func(context.Context, vigie.PatientPseudonym, []byte) vigie.Finding {
		<-release
		return positive()
	}}, Options{MaxConcurrent: 1, Timeout: 200 * time.Millisecond})
	defer close(release)
	address, stop := serve(t, w, ServeOptions{Drain: time.Millisecond})
	client := NewClient(remote(t, RemoteOptions{URL: "http://" + address, Development: true}), developmentVerifier(t, exampleModel), ClientOptions{})
	if err := client.Ready(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Diagnose(context.Background(), exampleRequest()); err != nil {
		t.Fatal(err)
	}
	if err := client.Ready(context.Background()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with its only slot stuck: %v, want ErrUnavailable", err)
	}
	_ = stop() // the stuck case does not end in time
	if err := client.Ready(context.Background()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("once nobody listens: %v, want ErrUnavailable", err)
	}
	if _, err := client.Verified(context.Background()); err != nil {
		t.Errorf("the evidence is as good as it was: %v", err)
	}
}
