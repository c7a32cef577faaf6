package enclave

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// TLSFiles names PEM files. The seam does not rest on TLS for secrecy or for
// the finding's origin, which HPKE and signatures give; mutual TLS decides who
// may use the enclave's time at all, and hides who sends cases and when.
type TLSFiles struct {
	Certificate string // own certificate chain, leaf first
	Key         string // its private key
	Authority   string // certificates that the other side's must chain to
}

// ServerTLS requires TLS 1.3 and a client certificate from the authority.
func (f TLSFiles) ServerTLS() (*tls.Config, error) {
	certificate, pool, err := f.load()
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate},
		ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}, nil
}

// ClientTLS requires TLS 1.3 and a server certificate from the authority.
func (f TLSFiles) ClientTLS() (*tls.Config, error) {
	certificate, pool, err := f.load()
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, RootCAs: pool}, nil
}

func (f TLSFiles) load() (tls.Certificate, *x509.CertPool, error) {
	for what, name := range map[string]string{"a certificate": f.Certificate, "a private key": f.Key, "the other side's authority": f.Authority} {
		if name == "" {
			return tls.Certificate{}, nil, fmt.Errorf("enclave: setting up TLS: no file is named for %s; mutual TLS needs all three", what)
		}
	}
	certificate, err := tls.LoadX509KeyPair(f.Certificate, f.Key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("enclave: setting up TLS from %s and %s: %w", f.Certificate, f.Key, err)
	}
	authority, err := os.ReadFile(f.Authority)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("enclave: setting up TLS: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return tls.Certificate{}, nil, fmt.Errorf("enclave: setting up TLS: %s holds no PEM certificate", f.Authority)
	}
	return certificate, pool, nil
}
