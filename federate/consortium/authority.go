package consortium

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/keys/certificates"
)

// How long certificates are good for. A server's is made anew at its start when
// less than a third is left; a site's takes a new invitation.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	serverLife    = 365 * 24 * time.Hour
	siteLife      = 2 * 365 * 24 * time.Hour
)

// The names of files of keys, in the folder keys of either side.
const (
	authorityFile    = "ca.pem"
	authorityKeyFile = "ca.key"
	signingFile      = "signing.key" // Ed25519: of documents
	tlsFile          = "tls.pem"
	tlsKeyFile       = "tls.key"
)

// authority signs the consortium's certificates.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func newAuthority(name string, now time.Time) (*authority, []byte, error) {
	key, err := newTLSKey()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name, Organization: []string{"Vigie consortium"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("consortium: signing the authority's certificate: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	return &authority{certificate, key}, der, err
}

// server issues the certificate that the server shows at a URL.
func (a *authority) server(key crypto.PublicKey, at *url.URL, now time.Time) ([]byte, error) {
	template := a.template(at.Hostname(), now, serverLife)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if ip := net.ParseIP(at.Hostname()); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{at.Hostname()}
	}
	return a.sign(template, key)
}

// site issues the certificate that a site shows: its common name is the site's
// name.
func (a *authority) site(key crypto.PublicKey, name string, now time.Time) ([]byte, error) {
	template := a.template(name, now, siteLife)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	template.URIs = []*url.URL{{Scheme: "spiffe", Host: a.certificate.Subject.CommonName, Path: "/site/" + name}}
	return a.sign(template, key)
}

func (a *authority) template(name string, now time.Time, life time.Duration) *x509.Certificate {
	end := now.Add(life)
	if end.After(a.certificate.NotAfter) {
		end = a.certificate.NotAfter
	}
	return &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name, Organization: a.certificate.Subject.Organization},
		NotBefore: now.Add(-time.Hour), NotAfter: end, KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func (a *authority) sign(template *x509.Certificate, key crypto.PublicKey) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("consortium: signing the certificate of %q: %w", template.Subject.CommonName, err)
	}
	return der, nil
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails since Go 1.24
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

func newTLSKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("consortium: making a key for TLS: %w", err)
	}
	return key, nil
}

// Keys are a side's keys on disk.
type keyFolder string

func (k keyFolder) path(name string) string { return filepath.Join(string(k), name) }

// files are what TLS of this side needs.
func (k keyFolder) files() certificates.Files {
	return certificates.Files{Certificate: k.path(tlsFile), Key: k.path(tlsKeyFile), Authority: k.path(authorityFile), Private: true}
}

func (k keyFolder) putCertificate(name string, der []byte) error {
	keeper, err := federate.Folder(string(k))
	if err != nil {
		return err
	}
	return keeper.Put(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func (k keyFolder) putKey(name string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("consortium: writing the key %s: %w", name, err)
	}
	keeper, err := federate.Folder(string(k))
	if err != nil {
		return err
	}
	return keeper.Put(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// key reads a private key that only its owner may read.
func (k keyFolder) key(name string) (crypto.Signer, error) {
	if err := certificates.CheckPrivate(k.path(name)); err != nil {
		return nil, fmt.Errorf("consortium: reading a key: %w", err)
	}
	der, err := k.block(name, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("consortium: reading the key %s: %w", k.path(name), err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("consortium: reading the key %s: a %T cannot sign", k.path(name), key)
	}
	return signer, nil
}

// keyOrNew reads a key, or makes it where there is none.
func (k keyFolder) keyOrNew(name string, make func() (crypto.Signer, error)) (crypto.Signer, error) {
	key, err := k.key(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = make(); err != nil {
		return nil, err
	}
	return key, k.putKey(name, key)
}

func newSigningKey() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("consortium: making a signing key: %w", err)
	}
	return key, nil
}

func (k keyFolder) certificate(name string) (*x509.Certificate, error) {
	der, err := k.block(name, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("consortium: reading the certificate %s: %w", k.path(name), err)
	}
	return c, nil
}

func (k keyFolder) block(name, kind string) ([]byte, error) {
	data, err := os.ReadFile(k.path(name))
	if err != nil {
		return nil, fmt.Errorf("consortium: reading %s: %w", name, err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("consortium: reading %s: it holds no %s in PEM", k.path(name), kind)
	}
	return block.Bytes, nil
}
