package demo

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"text/template"

	"github.com/vigie/vigie/demo/ports"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/models"
)

// AE titles of the members of the site.
const (
	GatewayAE  = "VIGIE"
	ModalityAE = "MODALITY"
	PACSAE     = "PACS"
)

// SiteOptions says what a site is made with.
type SiteOptions struct {
	Model  string // folder of the model package; empty means the demo package inside the binary
	Store  string // store address; empty means SQLite inside the site's folder
	STOW   string // address of a STOW-RS destination beside the PACS; empty means none
	Extra  string // more settings, as YAML lines
	Margin string // review.margin; empty means the default
}

// Site is a throw-away hospital in a folder.
type Site struct {
	Dir    string // the folder
	Config string // its config.yaml
	DIMSE  string // address of the gateway's DICOM listener
	HTTP   string // address of the gateway's HTTP listener
	PACS   string // address of the PACS's DICOM listener
}

var configTemplate = template.Must(template.New("config.yaml").Parse(
	`# A throw-away site made by vigie demo. Not for production.
state: state
keys: keys/master.key
model: {{printf "%q" .Options.Model}}
{{- with .Options.Store}}
store: {{printf "%q" .}}
{{- end}}
development: true     # accept evidence that proves nothing: this site has no attested hardware

dimse:
  listen: {{.Site.DIMSE}}
  ae_title: {{.GatewayAE}}
  tls: {certificate: tls/gateway.pem, key: tls/gateway.key, client_ca: tls/ca.pem}
  allow:
    - {ae_title: {{.ModalityAE}}, subject: {{.ModalityID}}}

http:
  listen: {{.Site.HTTP}}
  tls: {certificate: tls/gateway.pem, key: tls/gateway.key, client_ca: tls/ca.pem}
  allow:
    - {subject: {{.ModalityID}}}

destinations:
  - name: pacs
    kind: dimse
    address: {{.Site.PACS}}
    ae_title: {{.PACSAE}}
    tls: {ca: tls/ca.pem, certificate: tls/gateway.pem, key: tls/gateway.key, server_name: localhost}
{{- with .Options.STOW}}
  - name: archive
    kind: stow
    url: {{.}}
    tls: {ca: tls/ca.pem, certificate: tls/gateway.pem, key: tls/gateway.key, server_name: localhost}
{{- end}}
{{- with .Options.Margin}}

review:
  margin: {{.}}
{{- end}}
{{.Options.Extra}}`))

// NewSite makes a site in dir, which must be empty or absent: a certificate
// authority, the members' certificates, the master key and the configuration.
func NewSite(dir string, options SiteOptions) (*Site, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("demo: making a site: %w", err)
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("demo: making a site in %s: the folder is not empty: remove it or name another", dir)
	}
	if options.Model != "" {
		if options.Model, err = filepath.Abs(options.Model); err != nil {
			return nil, fmt.Errorf("demo: making a site: %w", err)
		}
	}
	for _, sub := range []string{"", "tls", "keys", "state", "pacs", "out"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("demo: making a site: %w", err)
		}
	}
	if options.Model == "" {
		if options.Model, err = models.WriteDemo(dir); err != nil {
			return nil, err
		}
	}
	authority, err := newAuthority(filepath.Join(dir, "tls"))
	if err != nil {
		return nil, err
	}
	for _, member := range []string{"gateway", "modality", "pacs", "archive", "enclave", "stranger"} {
		if err := authority.issue(member); err != nil {
			return nil, err
		}
	}
	master, err := keys.CreateFile(filepath.Join(dir, "keys", "master.key"))
	if err != nil {
		return nil, fmt.Errorf("demo: making a site: %w", err)
	}
	if err := master.Close(); err != nil {
		return nil, err
	}

	addresses, err := ports.Reserve(3)
	if err != nil {
		return nil, err
	}
	site := &Site{Dir: dir, Config: filepath.Join(dir, "config.yaml"), DIMSE: addresses[0], HTTP: addresses[1], PACS: addresses[2]}
	var config bytes.Buffer
	err = configTemplate.Execute(&config, map[string]any{
		"Site": site, "Options": options,
		"GatewayAE": GatewayAE, "ModalityAE": ModalityAE, "PACSAE": PACSAE,
		"ModalityID": spiffeID("modality").String(),
	})
	if err != nil {
		return nil, fmt.Errorf("demo: writing the configuration: %w", err)
	}
	if err := os.WriteFile(site.Config, config.Bytes(), 0o600); err != nil {
		return nil, fmt.Errorf("demo: writing the configuration: %w", err)
	}
	return site, nil
}

// TLS returns the TLS 1.3 configuration of a member of the site (gateway,
// modality, pacs, archive, enclave, or stranger, which the gateway's allow-list
// lacks), good for either side of a connection.
func (s *Site) TLS(member string) (*tls.Config, error) {
	return memberTLS(filepath.Join(s.Dir, "tls"), member)
}

// Path joins names to the site's folder.
func (s *Site) Path(names ...string) string {
	return filepath.Join(append([]string{s.Dir}, names...)...)
}
