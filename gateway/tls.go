package gateway

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vigie/vigie"
)

// ErrNotAllowed is returned for a peer that no entry of an allow-list matches.
var ErrNotAllowed = errors.New("the peer is not on the allow-list")

// serverTLS builds a TLS 1.3 configuration that demands a client certificate
// signed by the client CA. optional lets a client come without one; what it
// shows is verified all the same.
func serverTLS(files ServerTLS, optional bool) (*tls.Config, error) {
	certificate, err := loadPair(files.Certificate, files.Key)
	if err != nil {
		return nil, err
	}
	pool, err := loadPool(files.ClientCA)
	if err != nil {
		return nil, err
	}
	auth := tls.RequireAndVerifyClientCert
	if optional {
		auth = tls.VerifyClientCertIfGiven
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{certificate},
		ClientCAs:    pool,
		ClientAuth:   auth,
	}, nil
}

// clientTLSConfig builds the dialling side; nil for a plain transport.
func clientTLSConfig(files ClientTLS, plain bool) (*tls.Config, error) {
	if plain {
		return nil, nil
	}
	certificate, err := loadPair(files.Certificate, files.Key)
	if err != nil {
		return nil, err
	}
	pool, err := loadPool(files.CA)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{certificate},
		RootCAs:      pool,
		ServerName:   files.ServerName,
	}, nil
}

func loadPair(certificate, key string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return pair, fmt.Errorf("gateway: loading certificate %s with key %s: %w", certificate, key, err)
	}
	return pair, nil
}

func loadPool(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("gateway: loading certificate authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("gateway: loading certificate authorities: %s holds no PEM certificate", path)
	}
	return pool, nil
}

// checkPrivate refuses a key file that others may read.
func checkPrivate(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o: others may read it, run chmod 600 %s", path, mode, filepath.Base(path))
	}
	return nil
}

// checkPrivateKeys refuses, in production, TLS keys in use that others may
// read.
func (c *Config) checkPrivateKeys() error {
	if !c.Production {
		return nil
	}
	used := map[string]string{}
	if c.DIMSE.Listen != "" && !c.DIMSE.Plain {
		used["dimse.tls.key"] = c.DIMSE.TLS.Key
	}
	if c.HTTP.Listen != "" && !c.HTTP.Plain {
		used["http.tls.key"] = c.HTTP.TLS.Key
	}
	for i, d := range c.Destinations {
		if !d.Plain {
			used[fmt.Sprintf("destinations[%d].tls.key", i)] = d.TLS.Key
		}
	}
	if c.Enclave.TLS.Key != "" {
		used["enclave.tls.key"] = c.Enclave.TLS.Key
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(used)) {
		if err := checkPrivate(used[name]); err != nil {
			errs = append(errs, fmt.Errorf("gateway: %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// certificateDigest is the SHA-256 of the certificate's DER form, as
// `openssl x509 -fingerprint -sha256` shows it.
func certificateDigest(c *x509.Certificate) vigie.Digest {
	return vigie.DigestFromSum(sha256.Sum256(c.Raw))
}

// certificateSubject is the SPIFFE id when the certificate has one, and the
// subject's distinguished name otherwise.
func certificateSubject(c *x509.Certificate) string {
	for _, uri := range c.URIs {
		if uri.Scheme == "spiffe" {
			return uri.String()
		}
	}
	return c.Subject.String()
}

// What an entry of http.allow may be restricted to.
const (
	maySend = "send"
	mayRead = "read"
)

// allow finds the allow-list entry that matches a peer and lets it do what it
// wants: maySend, mayRead, or "" for what everybody on the list may.
// certificate is nil on a plain transport, where only the AE title can match.
func allow(list []PeerConfig, aeTitle string, certificate *x509.Certificate, wants string) error {
	for _, entry := range list {
		if wants != "" && entry.May != "" && entry.May != wants {
			continue
		}
		if entry.AETitle != "" && entry.AETitle != strings.TrimSpace(aeTitle) {
			continue
		}
		// Behind TLS an entry must name the certificate or its subject: an AE
		// title is only a claim. Without TLS (development, loopback) there is
		// nothing else to match.
		proven := certificate == nil && entry.Certificate == "" && entry.Subject == ""
		if certificate != nil && (entry.Certificate != "" || entry.Subject != "") {
			proven = (entry.Certificate == "" || vigie.Digest(entry.Certificate) == certificateDigest(certificate)) &&
				(entry.Subject == "" || entry.Subject == certificateSubject(certificate))
		}
		if proven {
			return nil
		}
	}
	return ErrNotAllowed
}
