package dimse

import (
	"crypto/tls"
	"crypto/x509"
)

// ServerTLS makes the configuration for a [Server]: TLS 1.3 and nothing older,
// and a client certificate that chains to one of clientCAs. Sessions are not
// resumed, so a certificate is checked on every connection.
func ServerTLS(certificate tls.Certificate, clientCAs *x509.CertPool) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{certificate},
		ClientCAs:              clientCAs,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
	}
}

// ClientTLS makes the configuration for [Dial]: TLS 1.3 and nothing older, our
// certificate shown, the server's chaining to one of serverCAs and naming
// serverName. With an empty serverName, Dial checks against the host it dials.
func ClientTLS(certificate tls.Certificate, serverCAs *x509.CertPool, serverName string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{certificate},
		RootCAs:      serverCAs,
		ServerName:   serverName,
		MinVersion:   tls.VersionTLS13,
	}
}
