package gateway

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
)

func TestCheckFindsWhatWouldKeepTheGatewayFromWorking(t *testing.T) {
	for name, test := range map[string]struct {
		harm func(*testing.T, *Config)
		want string
	}{
		"nothing": {func(*testing.T, *Config) {}, ""},
		"no key": {func(t *testing.T, c *Config) {
			if err := os.Remove(c.Keys); err != nil {
				t.Fatal(err)
			}
		}, "make it with vigie gateway init"},
		"open key": {func(t *testing.T, c *Config) {
			if err := os.Chmod(c.Keys, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "chmod 600"},
		"open folder": {func(t *testing.T, c *Config) {
			if err := os.Chmod(c.State, 0o777); err != nil {
				t.Fatal(err)
			}
		}, "others may change it"},
		"no model": {func(_ *testing.T, c *Config) { c.Model = "/nowhere" }, "model: "},
		"changed model": {func(t *testing.T, c *Config) {
			if err := os.WriteFile(c.Model+"/card.md", []byte("changed"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "card.md"},
		"port taken": {func(t *testing.T, c *Config) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			c.DIMSE.Listen = l.Addr().String()
		}, "dimse.listen: listen tcp"},
		"no certificate": {func(_ *testing.T, c *Config) {
			c.HTTP.Plain = false
			c.HTTP.TLS = ServerTLS{Certificate: "/no/a.pem", Key: "/no/a.key", ClientCA: "/no/ca.pem"}
		}, "http.tls.certificate: /no/a.pem"},
		"destination without CA": {func(_ *testing.T, c *Config) {
			c.Destinations = []DestinationConfig{{Name: "p", Kind: "stow", URL: "https://p", TLS: ClientTLS{CA: "/no/ca.pem", Certificate: "/no/a.pem", Key: "/no/a.key"}}}
		}, "destinations[0].tls.ca: "},
		"no database": {func(_ *testing.T, c *Config) {
			c.Store = "postgres://nobody:hunter2@127.0.0.1:1/none?connect_timeout=2"
		}, "store: "},
		"full disk":      {func(_ *testing.T, c *Config) { c.Limits.DiskFree = 1 << 60 }, "limits.disk_free is"},
		"not a folder":   {func(_ *testing.T, c *Config) { c.State = c.Keys }, "is not a folder"},
		"production":     {func(_ *testing.T, c *Config) { c.Production = true }, "development evidence only"},
		"foreign master": {foreignMaster, "wrapped by another master key"},
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t)
			test.harm(t, config)
			problems := config.Check(context.Background(), Origins{})
			if test.want == "" {
				if len(problems) > 0 {
					t.Errorf("found %v", problems)
				}
				return
			}
			if !strings.Contains(problems.Error(), test.want) {
				t.Errorf("found\n%v\nwant something with %q", problems, test.want)
			}
			if strings.Contains(problems.Error(), "hunter2") {
				t.Error("a problem shows a password")
			}
		})
	}
}

// foreignMaster uses the state of a site with another site's master key.
func foreignMaster(t *testing.T, c *Config) {
	book, err := OpenCasebook(context.Background(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := book.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.Keys); err != nil {
		t.Fatal(err)
	}
	if err := Init(c); err != nil {
		t.Fatal(err)
	}
}
