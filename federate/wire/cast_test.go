package wire

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"
)

// authority makes certificates that live as long as a test.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate, key}
}

// issue makes a certificate for both sides of TLS on loopback.
func (a *authority) issue(t testing.TB, uris ...*url.URL) *tls.Config {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, URIs: uris}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"}}
}

// stage is a server on a port of its own, with an authority for its sites.
type stage struct {
	*Server
	t         testing.TB
	authority *authority
	address   string
	http      *http.Server
}

func newStage(t testing.TB, change func(*Options)) *stage {
	t.Helper()
	st := &stage{t: t, authority: newAuthority(t)}
	o := Options{Federation: "north", Dir: t.TempDir()}
	if change != nil {
		change(&o)
	}
	var err error
	if st.Server, err = NewServer(o); err != nil {
		t.Fatal(err)
	}
	st.listen("127.0.0.1:0")
	t.Cleanup(st.stop)
	return st
}

func (st *stage) listen(address string) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		st.t.Fatal(err)
	}
	st.address = listener.Addr().String()
	config := st.authority.issue(st.t)
	st.http = st.HTTP(config)
	go st.http.ServeTLS(listener, "", "")
}

func (st *stage) stop() {
	st.Close()
	st.http.Close()
}

// player is a client that runs.
type player struct {
	stop func() error // returns what Run did
}

func (st *stage) client(site string) *Client {
	return &Client{URL: "https://" + st.address, TLS: st.authority.issue(st.t, SiteID("north", site)), Dir: st.t.TempDir(), Backoff: 10 * time.Millisecond}
}

func (st *stage) play(c *Client, h Handler) player {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, h) }()
	p := player{stop: sync.OnceValue(func() error { cancel(); return <-ended })}
	st.t.Cleanup(func() { p.stop() })
	return p
}

// until waits for a condition; only a broken program makes it wait for long.
func until(t testing.TB, what string, met func() bool) {
	t.Helper()
	for start := time.Now(); !met(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("after a minute there is still no %s", what)
		}
	}
}

func (st *stage) connected(names ...string) {
	st.t.Helper()
	until(st.t, "connection of all sites", func() bool { return slices.Equal(st.Connected(), names) })
}

// echo answers with what it was sent, the bulk part too.
func echo(_ context.Context, c Call) (Reply, error) {
	if c.Bulk.None() {
		return Reply{Body: c.Body}, nil
	}
	data, err := readAll(c.Bulk)
	return Reply{Body: c.Body, Bulk: Bytes(data)}, err
}

func readAll(b Bulk) ([]byte, error) {
	content, err := b.Open()
	if err != nil {
		return nil, err
	}
	defer content.Close()
	data := make([]byte, b.Length)
	n, err := content.ReadAt(data, 0)
	if n < len(data) {
		return nil, err
	}
	return data, nil
}

func (st *stage) ask(site string, c Call) ([]byte, json.RawMessage, error) {
	st.t.Helper()
	if c.Run == "" {
		c.Run, c.Kind = "1", "echo"
	}
	if c.Room == 0 {
		c.Room = 64 << 20
	}
	reply, err := st.Ask(st.t.Context(), site, c)
	if err != nil {
		return nil, nil, err
	}
	defer reply.Bulk.Close()
	if reply.Bulk.None() {
		return nil, reply.Body, nil
	}
	data, err := readAll(reply.Bulk)
	return data, reply.Body, err
}
