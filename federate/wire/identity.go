package wire

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/vigie/vigie/federate/secagg"
)

// SiteID is the SPIFFE id of a site, the one URI of its certificate.
func SiteID(federation, site string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: federation, Path: "/site/" + site}
}

// SiteName returns the name of the site of a federation that a certificate is
// for, or an error if it is for somebody else.
func SiteName(federation string, certificate *x509.Certificate) (string, error) {
	if len(certificate.URIs) != 1 {
		return "", fmt.Errorf("wire: reading the name of a site: the certificate has %d URIs, want one", len(certificate.URIs))
	}
	id := certificate.URIs[0]
	name, is := strings.CutPrefix(id.Path, "/site/")
	if !is || !validSite(name) || id.String() != SiteID(federation, name).String() {
		return "", fmt.Errorf("wire: reading the name of a site: %q is not spiffe://%s/site/NAME", id, federation)
	}
	return name, nil
}

// validSite is what secagg takes for a site's name, and no path.
func validSite(name string) bool {
	return name != "" && len(name) <= secagg.MaxName && name[0] != '.' && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}

// notASite refuses a server that shows the certificate of a site: hospitals have
// certificates of the same authority, and none may pass for the server.
func notASite(state tls.ConnectionState) error {
	for _, id := range state.PeerCertificates[0].URIs {
		if strings.HasPrefix(id.Path, "/site/") {
			return fmt.Errorf("wire: connecting: the server shows the certificate of the site %q", id)
		}
	}
	return nil
}

var errNoCertificate = errors.New("no verified client certificate")

// identify says which site a request is from, if it may speak.
func (s *Server) identify(r *http.Request) (string, *x509.Certificate, error) {
	if r.TLS == nil || r.TLS.Version < tls.VersionTLS13 || len(r.TLS.VerifiedChains) == 0 {
		return "", nil, errNoCertificate
	}
	leaf := r.TLS.VerifiedChains[0][0]
	name, err := SiteName(s.Federation, leaf)
	if err != nil {
		return "", nil, err
	}
	return name, leaf, s.admits(name, leaf)
}

func (s *Server) admits(name string, leaf *x509.Certificate) error {
	if s.Allowed == nil {
		return nil
	}
	if err := s.Allowed(name, leaf); err != nil {
		return fmt.Errorf("wire: admitting %q: %w", name, err)
	}
	return nil
}
