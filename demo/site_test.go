package demo_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/gateway"
)

func TestAFreshSiteHasAConfigurationThatLoads(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "site")
	site, err := demo.NewSite(dir, demo.SiteOptions{Model: "../models/x", STOW: "https://localhost:9/dicom-web", Margin: "0.1"})
	if err != nil {
		t.Fatal(err)
	}
	config, _, err := gateway.Load(gateway.Sources{File: site.Config})
	if err != nil {
		t.Fatal(err)
	}
	if config.State != filepath.Join(dir, "state") || len(config.Destinations) != 2 || config.Review.Margin != 0.1 {
		t.Errorf("got %+v", config)
	}
	info, err := os.Stat(site.Path("tls", "gateway.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the gateway's key: %v, %v", info, err)
	}
	if _, err := demo.NewSite(dir, demo.SiteOptions{Model: "x"}); err == nil {
		t.Error("a second site was made over the first")
	}
}
