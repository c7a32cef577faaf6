package gateway

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

func TestALostSiteSecretIsNotMadeAnewOverCasesOrALog(t *testing.T) {
	for name, work := range map[string]func(*testing.T, *running){
		"a case":             func(t *testing.T, g *running) { mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})) },
		"only its own start": func(*testing.T, *running) {},
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t)
			g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
			work(t, g)
			var secret []byte
			if err := g.store.Update(context.Background(), func(tx *store.Tx) (err error) {
				if secret, err = tx.Setting(siteSecret); err != nil {
					return err
				}
				_, err = tx.Exec("DELETE FROM settings WHERE name = $1", siteSecret)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			key := g.VerifierKey()
			if err := g.stop(); err != nil {
				t.Fatal(err)
			}
			quiet := slog.New(slog.DiscardHandler)
			book, err := OpenCasebook(context.Background(), config, quiet)
			if err == nil {
				book.Close()
			}
			if !errors.Is(err, errNoSiteSecret) || !strings.Contains(err.Error(), "restore that row") {
				t.Fatalf("opened with %v, want a refusal that says what to do", err)
			}
			s, err := store.Open(context.Background(), store.Config{URL: config.Store, BlobDir: config.StateFile("objects"), Logger: quiet})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.Update(context.Background(), func(tx *store.Tx) error { return tx.PutSetting(siteSecret, secret) }), s.Close()); err != nil {
				t.Fatal(err)
			}
			g = start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
			if g.VerifierKey() != key {
				t.Error("with the row restored the site signs with another key")
			}
		})
	}
}
