package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/keys/certificates"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/store"
)

// expiresSoon is how long before a certificate ends Check speaks up.
const expiresSoon = 14 * 24 * time.Hour

// Check looks at the machine as Open and Run would, and returns everything
// that would keep them from working, or soon will. It changes nothing but
// what opening a store for the first time creates.
func (c *Config) Check(ctx context.Context, origins Origins) Problems {
	k := &checker{config: c, origins: origins}
	k.state()
	k.keyFile()
	k.modelPackage()
	k.listeners()
	k.destinations()
	if len(k.problems) == 0 {
		// Opening a store creates it: only where the rest is in order.
		k.store(ctx)
	}
	return k.problems
}

type checker struct {
	config   *Config
	origins  Origins
	problems Problems
}

func (k *checker) fail(key, format string, args ...any) {
	k.problems = append(k.problems, Problem{k.origins.Of(key), key, fmt.Sprintf(format, args...)})
}

func (k *checker) state() {
	path := k.config.State
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		// It will be made; what must exist is where.
		parent := filepath.Dir(path)
		if unix.Access(parent, unix.W_OK|unix.X_OK) != nil {
			k.fail("state", "%s does not exist and cannot be made in %s: make it and give it to this user", path, parent)
		}
		return
	}
	switch {
	case err != nil:
		k.fail("state", "%v", err)
	case !info.IsDir():
		k.fail("state", "%s is not a folder", path)
	case unix.Access(path, unix.W_OK|unix.X_OK) != nil:
		k.fail("state", "%s cannot be written by this user", path)
	case info.Mode().Perm()&0o022 != 0:
		k.fail("state", "%s has mode %04o: others may change it, run chmod 700 on it", path, info.Mode().Perm())
	default:
		free, err := diskFree(path)
		if err != nil {
			k.fail("state", "%v", err)
		} else if limit := k.config.Limits.DiskFree; free < int64(limit) {
			k.fail("state", "%s has %v free, limits.disk_free is %v", path, Size(free>>20<<20), limit)
		}
	}
}

func (k *checker) keyFile() {
	provider, err := keys.OpenFile(k.config.Keys)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k.fail("keys", "%s does not exist: make it with vigie gateway init, and keep a copy elsewhere", k.config.Keys)
	case err != nil:
		k.fail("keys", "%v", err)
	default:
		_ = provider.Close() // it only forgets the keys
	}
}

func (k *checker) modelPackage() {
	if _, err := model.Open(k.config.Model); err != nil {
		k.fail("model", "%v", err)
	}
	if k.config.Production && k.config.Enclave.URL == "" {
		k.fail("production", "an enclave inside the gateway's process has development evidence only: name an attested one in enclave.url")
	}
}

func (k *checker) listeners() {
	for _, l := range []struct {
		name, listen string
		plain        bool
		tls          ServerTLS
	}{
		{"dimse", k.config.DIMSE.Listen, k.config.DIMSE.Plain, k.config.DIMSE.TLS},
		{"http", k.config.HTTP.Listen, k.config.HTTP.Plain, k.config.HTTP.TLS},
	} {
		if l.listen == "" {
			continue
		}
		listener, err := net.Listen("tcp", l.listen)
		if err != nil {
			k.fail(l.name+".listen", "%v", err)
		} else {
			_ = listener.Close()
		}
		if l.plain {
			continue
		}
		k.pair(l.name+".tls", l.tls.Certificate, l.tls.Key)
		k.authorities(l.name+".tls.client_ca", l.tls.ClientCA)
	}
}

func (k *checker) destinations() {
	for i, d := range k.config.Destinations {
		if !d.Plain {
			k.clientTLS(fmt.Sprintf("destinations[%d].tls", i), d.TLS)
		}
	}
	if k.config.Enclave.TLS.Certificate != "" {
		k.clientTLS("enclave.tls", k.config.Enclave.TLS)
	}
}

func isPlainURL(url string) bool { return strings.HasPrefix(url, "http://") }

func (k *checker) clientTLS(key string, files ClientTLS) {
	k.pair(key, files.Certificate, files.Key)
	k.authorities(key+".ca", files.CA)
}

// pair checks a certificate and its key.
func (k *checker) pair(key, certificate, private string) {
	pair, err := tls.LoadX509KeyPair(certificate, private)
	if err != nil {
		k.fail(key+".certificate", "%s with key %s: %v", certificate, private, err)
		return
	}
	if err := certificates.CheckPrivate(private); err != nil {
		k.fail(key+".key", "%v", err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		k.fail(key+".certificate", "%s: %v", certificate, err)
		return
	}
	k.validity(key+".certificate", certificate, leaf)
}

func (k *checker) validity(key, path string, c *x509.Certificate) {
	now := time.Now()
	switch {
	case now.Before(c.NotBefore):
		k.fail(key, "%s is not valid before %s", path, c.NotBefore.Format(time.RFC3339))
	case now.After(c.NotAfter):
		k.fail(key, "%s expired on %s: renew it", path, c.NotAfter.Format(time.RFC3339))
	case now.Add(expiresSoon).After(c.NotAfter) && !k.config.Development:
		k.fail(key, "%s expires on %s: renew it now", path, c.NotAfter.Format(time.RFC3339))
	}
}

func (k *checker) authorities(key, path string) {
	if _, err := certificates.LoadPool(path); err != nil {
		k.fail(key, "%v", err)
	}
}

func (k *checker) store(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	book, err := OpenCasebook(ctx, k.config, quiet)
	if err != nil {
		k.fail("store", "%v", err)
		return
	}
	defer book.Close()
	err = book.store.Update(ctx, func(tx *store.Tx) error {
		return tx.PutSetting("written last", []byte(tx.Now().Format(time.RFC3339Nano)))
	})
	if err != nil {
		k.fail("store", "%s cannot be written: %v", redactURL(k.config.Store), err)
	}
}
