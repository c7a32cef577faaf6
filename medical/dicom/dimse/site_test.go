package dimse

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
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// authority is a certificate authority that lives as long as a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: cert, key: key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// issue makes a certificate for a name, good as client and as server.
func (a *authority) issue(name string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{name, "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// files writes the CA, a certificate and its key as PEM, as other software
// wants them.
func (a *authority) files(dir string, c tls.Certificate) (ca, cert, key string) {
	a.t.Helper()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			a.t.Fatal(err)
		}
		return path
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	return write("ca.pem", "CERTIFICATE", a.cert.Raw), write("cert.pem", "CERTIFICATE", c.Certificate[0]), write("key.pem", "PRIVATE KEY", der)
}

// memorySpool keeps an object in memory.
type memorySpool struct {
	bytes.Buffer
	discarded int
	fail      error // of every Write, when set
}

func (s *memorySpool) Write(p []byte) (int, error) {
	if s.fail != nil {
		return 0, s.fail
	}
	return s.Buffer.Write(p)
}

func (s *memorySpool) Discard() { s.discarded++ }

// nullSpool keeps nothing.
type nullSpool struct{}

func (nullSpool) Write(p []byte) (int, error) { return len(p), nil }
func (nullSpool) Discard()                    {}

// received is what a test server got.
type received struct {
	StoreRequest
	file []byte
}

// site is a running server with its ledger.
type site struct {
	*Server
	addr string
	stop context.CancelFunc
	done chan error

	mu      sync.Mutex
	objects []received
	spools  []*memorySpool
}

// open starts a server; adjust may change its configuration. It is stopped, and
// must stop in order, at the end of the test.
func open(t testing.TB, adjust func(*ServerConfig)) *site {
	t.Helper()
	s := &site{done: make(chan error, 1)}
	cfg := ServerConfig{
		AETitle: "VIGIE", Plain: true, ARTIM: time.Minute, IdleTimeout: time.Minute, ShutdownGrace: time.Minute,
		NewSpool: func() (Spool, error) {
			spool := &memorySpool{}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.spools = append(s.spools, spool)
			return spool, nil
		},
		Store: func(_ context.Context, r StoreRequest) Status {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.objects = append(s.objects, received{r, bytes.Clone(r.Spool.(*memorySpool).Bytes())})
			return Success
		},
	}
	if adjust != nil {
		adjust(&cfg)
	}
	server, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Server, s.addr = server, listener.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() { s.done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-s.done:
			if err != nil {
				t.Errorf("the server ended with %v", err)
			}
		case <-time.After(2 * time.Minute):
			t.Error("the server did not stop")
		}
	})
	return s
}

// secure turns a configuration to TLS with certificates of the authority.
func (a *authority) secure(cfg *ServerConfig) {
	cfg.Plain, cfg.TLS = false, ServerTLS(a.issue("vigie.test"), a.pool())
}

func (s *site) got() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]received(nil), s.objects...)
}

const (
	crStorage = "1.2.840.10008.5.1.4.1.1.1"
	ctStorage = "1.2.840.10008.5.1.4.1.1.2"
)

func plainClient() ClientConfig {
	return ClientConfig{CallingAE: "SENDER", CalledAE: "VIGIE", Plain: true, Timeout: time.Minute}
}

// dial calls a site in plain and hangs up at the end of the test.
func (s *site) dial(t testing.TB, contexts ...Context) *Association {
	t.Helper()
	a, err := Dial(context.Background(), s.addr, plainClient(), contexts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Abort)
	return a
}

// pattern is n bytes that differ along the way.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}
