// Package certificates makes TLS 1.3 configurations from PEM files that may be
// renewed while they are in use: a certificate lives for months or days, and
// neither a listener nor a half-sent study must end for a new one.
//
//	files := certificates.Files{Certificate: "gateway.pem", Key: "gateway.key", Authority: "ca.pem"}
//	config, err := files.Server(certificates.ServerOptions{})
//	…
//	listener = tls.NewListener(listener, config)
//
// The files are looked at when a connection begins, at most once a second, and
// read again when one of them has changed. What does not load then (a
// certificate whose new key is not there yet) is logged, and the former one
// stays in use until it does; connections that exist are not touched.
//
// It knows nothing of who is allowed to do what: that is for whoever holds the
// verified certificate of the other side.
package certificates

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Files names the PEM files of one side of mutual TLS.
type Files struct {
	Certificate string // own certificate chain, leaf first
	Key         string // its private key
	Authority   string // certificates that the other side's must chain to

	Private bool         // refuse a key file that others than its owner may read
	Logger  *slog.Logger // hears of renewals and of files that do not load; nil discards
}

// ServerOptions says what a listening side demands.
type ServerOptions struct {
	Optional  bool     // a client may come without a certificate; one that it shows is verified all the same
	Protocols []string // ALPN, such as h2 and http/1.1; nil for a protocol without it
}

// lookEvery bounds how often the files are looked at.
const lookEvery = time.Second

// Server returns a configuration that demands TLS 1.3 and a client certificate
// of the authority. Certificate, key and authority are read again when they
// change. Sessions are not resumed, so that every connection shows its
// certificate to the authority of the day.
func (f Files) Server(o ServerOptions) (*tls.Config, error) {
	source, err := f.open()
	if err != nil {
		return nil, err
	}
	auth := tls.RequireAndVerifyClientCert
	if o.Optional {
		auth = tls.VerifyClientCertIfGiven
	}
	config := func(now *loaded) *tls.Config {
		return &tls.Config{
			MinVersion: tls.VersionTLS13, ClientAuth: auth, NextProtos: o.Protocols, SessionTicketsDisabled: true,
			Certificates: []tls.Certificate{now.pair}, ClientCAs: now.pool,
		}
	}
	first := config(source.current())
	first.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return config(source.current()), nil }
	return first, nil
}

// Client returns a configuration that shows the certificate and demands TLS 1.3
// and a server certificate of the authority that names serverName, or if that
// is empty the host that is dialled. Certificate and key are read again when
// they change; a new authority takes a restart.
func (f Files) Client(serverName string) (*tls.Config, error) {
	source, err := f.open()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: source.current().pool, ServerName: serverName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &source.current().pair, nil
		},
	}, nil
}

// LoadPool reads the certificates of an authority.
func LoadPool(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("certificates: loading an authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("certificates: loading an authority: %s holds no PEM certificate", path)
	}
	return pool, nil
}

// CheckPrivate refuses a key file that others than its owner may read.
func CheckPrivate(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o: others may read it, run chmod 600 %s", path, mode, filepath.Base(path))
	}
	return nil
}

// loaded is what the files held at one moment.
type loaded struct {
	pair tls.Certificate
	pool *x509.CertPool
}

// source hands out what the files hold now.
type source struct {
	files Files
	now   func() time.Time

	mu     sync.Mutex
	looked time.Time
	seen   [3]fs.FileInfo // of the last attempt to load
	loaded *loaded
}

func (f Files) open() (*source, error) {
	for _, file := range []struct{ what, name string }{
		{"a certificate", f.Certificate}, {"a private key", f.Key}, {"the other side's authority", f.Authority},
	} {
		if file.name == "" {
			return nil, fmt.Errorf("certificates: setting up TLS: no file is named for %s; mutual TLS needs all three", file.what)
		}
	}
	if f.Logger == nil {
		f.Logger = slog.New(slog.DiscardHandler)
	}
	s := &source{files: f, now: time.Now}
	s.seen, s.looked = s.look(), s.now() // before they are read: a change in between is seen later
	var err error
	s.loaded, err = f.load()
	return s, err
}

func (f Files) load() (*loaded, error) {
	if f.Private {
		if err := CheckPrivate(f.Key); err != nil {
			return nil, fmt.Errorf("certificates: loading a private key: %w", err)
		}
	}
	pair, err := tls.LoadX509KeyPair(f.Certificate, f.Key)
	if err != nil {
		return nil, fmt.Errorf("certificates: loading certificate %s with key %s: %w", f.Certificate, f.Key, err)
	}
	pool, err := LoadPool(f.Authority)
	if err != nil {
		return nil, err
	}
	return &loaded{pair, pool}, nil
}

// current is what was last loaded, after a look whether there is something
// newer.
func (s *source) current() *loaded {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if now.Sub(s.looked) < lookEvery {
		return s.loaded
	}
	s.looked = now
	seen := s.look()
	if same(seen, s.seen) {
		return s.loaded
	}
	s.seen = seen
	fresh, err := s.files.load()
	if err != nil {
		s.files.Logger.Error("renewed TLS files do not load: the former ones stay in use", "error", err)
		return s.loaded
	}
	s.files.Logger.Info("TLS files read again", "certificate", s.files.Certificate, "valid until", fresh.pair.Leaf.NotAfter)
	s.loaded = fresh
	return fresh
}

// look returns what the file system says of the three files; nil for one that
// is not there.
func (s *source) look() (seen [3]fs.FileInfo) {
	for i, path := range []string{s.files.Certificate, s.files.Key, s.files.Authority} {
		seen[i], _ = os.Stat(path) // follows links, as a mounted secret is one
	}
	return seen
}

func same(a, b [3]fs.FileInfo) bool {
	for i := range a {
		switch {
		case a[i] == nil || b[i] == nil:
			if a[i] != b[i] {
				return false
			}
		case !os.SameFile(a[i], b[i]) || a[i].Size() != b[i].Size() || !a[i].ModTime().Equal(b[i].ModTime()) || a[i].Mode() != b[i].Mode():
			return false
		}
	}
	return true
}
