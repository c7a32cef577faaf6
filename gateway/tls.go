package gateway

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys/certificates"
)

// ErrNotAllowed is returned for a peer that no entry of an allow-list matches.
var ErrNotAllowed = errors.New("the peer is not on the allow-list")

// serverTLS builds a TLS 1.3 configuration that demands a client certificate
// signed by the client CA, and reads its files again when they are renewed.
func (g *Gateway) serverTLS(files ServerTLS, options certificates.ServerOptions) (*tls.Config, error) {
	return certificates.Files{
		Certificate: files.Certificate, Key: files.Key, Authority: files.ClientCA, Private: g.config.Production, Logger: g.logger,
	}.Server(options)
}

// clientTLSConfig builds the dialling side; nil for a plain transport. private
// refuses a key that others may read.
func clientTLSConfig(files ClientTLS, plain, private bool, logger *slog.Logger) (*tls.Config, error) {
	if plain {
		return nil, nil
	}
	return certificates.Files{
		Certificate: files.Certificate, Key: files.Key, Authority: files.CA, Private: private, Logger: logger,
	}.Client(files.ServerName)
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
		if err := certificates.CheckPrivate(used[name]); err != nil {
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
