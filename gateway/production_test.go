package gateway

import (
	"context"
	"errors"
	"log/slog"
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
