package certificates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.issue(&x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) issue(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// write puts a fresh certificate of that name, its key and the authority into
// the files.
func (a *authority) write(f Files, name string) {
	a.t.Helper()
	cert, key := a.issue(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for _, file := range []struct {
		path, kind string
		der        []byte
	}{{f.Certificate, "CERTIFICATE", cert.Raw}, {f.Key, "PRIVATE KEY", private}, {f.Authority, "CERTIFICATE", a.cert.Raw}} {
		// A new file in the place of the old one, as those who renew do it.
		if err := os.WriteFile(file.path+".new", pem.EncodeToMemory(&pem.Block{Type: file.kind, Bytes: file.der}), 0o600); err != nil {
			a.t.Fatal(err)
		}
		if err := os.Rename(file.path+".new", file.path); err != nil {
			a.t.Fatal(err)
		}
	}
}

func testFiles(t *testing.T) Files {
	dir := t.TempDir()
	return Files{Certificate: filepath.Join(dir, "x.pem"), Key: filepath.Join(dir, "x.key"), Authority: filepath.Join(dir, "ca.pem"), Private: true}
}

// meet shakes hands and returns the names by which each side knows the other.
func meet(server, client *tls.Config) (serverName, clientName string, err error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	in, out := tls.Server(a, server), tls.Client(b, client)
	served := make(chan error, 1)
	go func() {
		err := in.Handshake()
		if err == nil {
			_, err = in.Write([]byte("welcome"))
		}
		a.Close()
		served <- err
	}()
	_, read := io.ReadAll(out)
	if err := errors.Join(<-served, read); err != nil {
		return "", "", err
	}
	clientName = "nobody"
	if peers := in.ConnectionState().PeerCertificates; len(peers) > 0 {
		clientName = peers[0].Subject.CommonName
	}
	return out.ConnectionState().PeerCertificates[0].Subject.CommonName, clientName, nil
}

// age makes a configuration look at its files again at the next handshake; in
// the bubble of a test (testing/synctest) that takes no time.
func age() { time.Sleep(lookEvery) }

func TestBothSidesShowARenewedCertificateWithoutARestart(t *testing.T) {
	synctest.Test(t, bothSidesShowARenewedCertificateWithoutARestart)
}

func bothSidesShowARenewedCertificateWithoutARestart(t *testing.T) {
	ca := newAuthority(t)
	serverFiles, clientFiles := testFiles(t), testFiles(t)
	ca.write(serverFiles, "server 1")
	ca.write(clientFiles, "client 1")
	server, err := serverFiles.Server(ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientFiles.Client("localhost")
	if err != nil {
		t.Fatal(err)
	}
	expect := func(wantServer, wantClient string) {
		t.Helper()
		if s, c, err := meet(server, client); err != nil || s != wantServer || c != wantClient {
			t.Errorf("%s meets %s, %v; want %s and %s", s, c, err, wantServer, wantClient)
		}
	}
	expect("server 1", "client 1")
	ca.write(serverFiles, "server 2")
	ca.write(clientFiles, "client 2")
	age()
	expect("server 2", "client 2")
}

func TestANewAuthorityAdmitsItsClientsAndNoLongerThoseOfTheOld(t *testing.T) {
	synctest.Test(t, aNewAuthorityAdmitsItsClientsAndNoLongerThoseOfTheOld)
}

func aNewAuthorityAdmitsItsClientsAndNoLongerThoseOfTheOld(t *testing.T) {
	before, after := newAuthority(t), newAuthority(t)
	serverFiles, oldFiles, newFiles := testFiles(t), testFiles(t), testFiles(t)
	before.write(serverFiles, "server")
	server, err := serverFiles.Server(ServerOptions{Optional: true, Protocols: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	before.write(oldFiles, "old")
	old, err := oldFiles.Client("localhost")
	if err != nil {
		t.Fatal(err)
	}
	if _, name, err := meet(server, old); err != nil || name != "old" {
		t.Fatalf("%s, %v", name, err)
	}
	after.write(serverFiles, "server")
	after.write(newFiles, "new")
	age()
	renewed, err := newFiles.Client("localhost")
	if err != nil {
		t.Fatal(err)
	}
	if _, name, err := meet(server, renewed); err != nil || name != "new" {
		t.Errorf("a client of the new authority: %s, %v", name, err)
	}
	old.RootCAs = renewed.RootCAs // it trusts the server; what it shows is of the former authority
	if _, name, err := meet(server, old); err == nil {
		t.Errorf("a client of the former authority was admitted as %s", name)
	}
	anonymous := &tls.Config{RootCAs: renewed.RootCAs, ServerName: "localhost"}
	if _, name, err := meet(server, anonymous); err != nil || name != "nobody" {
		t.Errorf("a client without a certificate where it is optional: %s, %v", name, err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Builder.Write(p)
}

func TestHalfARenewalKeepsTheFormerCertificateInUse(t *testing.T) {
	synctest.Test(t, halfARenewalKeepsTheFormerCertificateInUse)
}

func halfARenewalKeepsTheFormerCertificateInUse(t *testing.T) {
	ca := newAuthority(t)
	f, clientFiles := testFiles(t), testFiles(t)
	var log lockedBuffer
	f.Logger = slog.New(slog.NewTextHandler(&log, nil))
	ca.write(f, "server 1")
	ca.write(clientFiles, "client")
	server, err := f.Server(ServerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientFiles.Client("localhost")
	if err != nil {
		t.Fatal(err)
	}
	for what, harm := range map[string]func() error{
		"the key is not there yet":       func() error { return os.Remove(f.Key) },
		"the certificate is cut off":     func() error { return os.WriteFile(f.Certificate, []byte("-----BEGIN"), 0o600) },
		"the key is that of another":     func() error { return os.Rename(clientFiles.Key, f.Key) },
		"others may read the key":        func() error { return os.Chmod(f.Key, 0o644) },
		"the authority is an empty file": func() error { return os.WriteFile(f.Authority, nil, 0o600) },
	} {
		if err := harm(); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		age()
		if name, _, err := meet(server, client); err != nil || name != "server 1" {
			t.Errorf("%s: %s, %v, want the former certificate", what, name, err)
		}
	}
	log.mu.Lock()
	if text := log.String(); !strings.Contains(text, "the former ones stay in use") {
		t.Errorf("the log says %q", text)
	}
	log.mu.Unlock()
	ca.write(f, "server 2")
	age()
	if name, _, err := meet(server, client); err != nil || name != "server 2" {
		t.Errorf("once it is whole: %s, %v", name, err)
	}
}

func TestFilesThatCannotServeAreRefusedAtTheStart(t *testing.T) {
	ca := newAuthority(t)
	for name, harm := range map[string]func(*Files){
		"no certificate is named": func(f *Files) { f.Certificate = "" },
		"the key is absent":       func(f *Files) { f.Key += ".absent" },
		"no authority":            func(f *Files) { f.Authority = f.Key },
		"others may read the key": func(f *Files) {
			if err := os.Chmod(f.Key, 0o640); err != nil {
				t.Fatal(err)
			}
		},
	} {
		f := testFiles(t)
		ca.write(f, "x")
		harm(&f)
		if _, err := f.Server(ServerOptions{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := f.Client(""); err == nil {
			t.Errorf("%s: accepted by a client", name)
		}
	}
}
