package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/gateway"
)

var update = flag.Bool("update", false, "write the documents again")

// exampleConfiguration is a whole site: what the table cannot show are lists,
// which exist only in the file, and how a peer's certificate is named.
const exampleConfiguration = "A whole site; paths are relative to the file:\n\n" +
	"```yaml\n" + exampleYAML + "```\n\n" +
	"A peer of `dimse.allow` or `http.allow` must match every field of one entry:\n\n" +
	"- `subject`: as `openssl x509 -noout -subject -nameopt RFC2253 -in peer.pem` prints it after `subject=`, or the SPIFFE id, which wins where the certificate has one\n" +
	"- `certificate`: `sha256:` and what `openssl x509 -outform DER -in peer.pem | sha256sum` prints\n" +
	"- `ae_title`: the calling AE title (`dimse.allow` only)\n\n" +
	"`may` says what a peer of `http.allow` may do: `send` (STOW-RS) or `read` (QIDO-RS, WADO-RS); without it, both.\n\n"

const exampleYAML = `site: vigie.hospital.example
state: /var/lib/vigie
keys: /etc/vigie/master.key
model: /srv/models/chest-pneumonia-28
development: true          # until an attested enclave is there
dimse:
  listen: 0.0.0.0:2762
  ae_title: VIGIE
  tls: {certificate: tls/gateway.pem, key: tls/gateway.key, client_ca: tls/ca.pem}
  allow:
    - {ae_title: CR_ROOM_1, subject: "CN=cr1,O=Hospital"}
http:
  listen: 0.0.0.0:8443
  tls: {certificate: tls/gateway.pem, key: tls/gateway.key, client_ca: tls/ca.pem}
  allow:
    - {subject: "CN=viewer,O=Hospital", may: read}
destinations:              # name, kind, and address + ae_title (dimse) or url (stow)
  - name: pacs
    kind: dimse
    address: pacs.hospital.example:2762
    ae_title: PACS
    tls: {ca: tls/ca.pem, certificate: tls/gateway.pem, key: tls/gateway.key}
`

// The example is held to the parser: a setting that is renamed breaks it.
func TestTheExampleConfigurationIsUsable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(path, []byte(exampleYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	if status := run([]string{"gateway", "config", "-c", path}); status != 0 {
		t.Error("vigie gateway config refuses the example of docs/configuration.md")
	}
}

// configurationDocument renders docs/configuration.md from the table of
// settings that the gateway itself reads.
func configurationDocument() string {
	var b strings.Builder
	b.WriteString("# Configuration of the gateway\n\n" +
		"Generated from the settings that the gateway reads; `go test ./cmd/vigie -run Configuration -update` writes it again.\n\n" +
		"A setting comes from the YAML file (`-c`), then from the environment, then from a flag; the later wins. " +
		"An unknown key or an impossible value is an error that names the file and the line. " +
		"`vigie gateway config -c FILE` shows each value and where it came from; `vigie gateway check -c FILE` says everything that is wrong before start.\n\n" +
		exampleConfiguration +
		"| in the file | variable | meaning |\n| --- | --- | --- |\n")
	for _, s := range gateway.Settings() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", s.Key, s.Env(), s.Help)
	}
	return b.String()
}

func TestTheConfigurationDocumentListsEverySetting(t *testing.T) {
	const path = "../../docs/configuration.md"
	want := configurationDocument()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Fatal("docs/configuration.md does not match the settings: run go test ./cmd/vigie -run Configuration -update")
	}
}
