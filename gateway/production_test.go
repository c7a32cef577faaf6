package gateway

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/attest"
)

func TestDevelopmentEvidenceNeedsASiteThatSaysDevelopment(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"production": func(c *Config) { c.Development, c.Production = false, true },
		"neither":    func(c *Config) { c.Development = false },
	} {
		config := testConfig(t)
		change(config)
		g, err := Open(context.Background(), config, slog.New(slog.DiscardHandler), Options{})
		if err == nil {
			g.Close()
		}
		if !errors.Is(err, attest.ErrDevelopmentEvidence) {
			t.Errorf("%s: %v, want ErrDevelopmentEvidence", name, err)
		}
	}
}

func TestProductionDoesNotStartWithATLSKeyThatOthersMayRead(t *testing.T) {
	for name, use := range map[string]func(*Config, string){
		"dimse.tls.key": func(c *Config, key string) { c.DIMSE.Plain, c.DIMSE.TLS.Key = false, key },
		"http.tls.key":  func(c *Config, key string) { c.HTTP.Plain, c.HTTP.TLS.Key = false, key },
		"destinations[0].tls.key": func(c *Config, key string) {
			c.Destinations = []DestinationConfig{{Name: "p", Kind: "stow", URL: "https://p", TLS: ClientTLS{Key: key}}}
		},
		"enclave.tls.key": func(c *Config, key string) { c.Enclave.TLS.Key = key },
	} {
		for mode, refused := range map[fs.FileMode]bool{0o600: false, 0o640: true, 0o604: true} {
			config := testConfig(t)
			config.Development, config.Production = false, true
			config.DIMSE.Listen, config.HTTP.Plain = "127.0.0.1:0", true
			key := filepath.Join(t.TempDir(), "x.key")
			if err := errors.Join(os.WriteFile(key, nil, 0o600), os.Chmod(key, mode)); err != nil { // whatever the umask
				t.Fatal(err)
			}
			use(config, key)
			g, err := Open(context.Background(), config, slog.New(slog.DiscardHandler), Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
			if err == nil {
				g.Close()
			}
			if got := err != nil && strings.Contains(err.Error(), name) && strings.Contains(err.Error(), "chmod 600"); got != refused {
				t.Errorf("%s with mode %04o: %v, want it refused: %v", name, mode, err, refused)
			}
		}
	}
}

func TestProductionReachesADatabaseElsewhereOverTLSOnly(t *testing.T) {
	for store, refused := range map[string]bool{
		"sqlite:/var/lib/vigie/vigie.db":                          false,
		"postgres://u@localhost/vigie":                            false,
		"postgres://u@/vigie?host=/run/postgresql":                false,
		"postgres://u@db.example/vigie?sslmode=verify-full":       false,
		"postgres://u@db.example/vigie":                           true,
		"postgres://u@db.example/vigie?sslmode=disable":           true,
		"postgresql://u@db.example/vigie?sslmode=require":         true,
		"postgres://u@localhost/vigie?host=db.example":            true,
		"postgres://u@[::1]/vigie":                                false,
		"postgres://u@127.0.0.1.example/vigie?sslmode=verify-ca":  true,
		"postgres://u@localhost,db.example/vigie?sslmode=disable": true,
	} {
		for _, production := range []bool{true, false} {
			config := testConfig(t)
			config.Store, config.Production, config.Development = store, production, !production
			complaint := strings.Contains(config.validate(Origins{}).Error(), "sslmode=verify-full")
			if complaint != (refused && production) {
				t.Errorf("%s, production %v: refused %v", store, production, complaint)
			}
		}
	}
}
