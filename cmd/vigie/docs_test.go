package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vigie/vigie/gateway"
)

var update = flag.Bool("update", false, "write the documents again")

// configurationDocument renders docs/configuration.md from the table of
// settings that the gateway itself reads.
func configurationDocument() string {
	var b strings.Builder
	b.WriteString("# Configuration of the gateway\n\n" +
		"Generated from the settings that the gateway reads; `go test ./cmd/vigie -run Configuration -update` writes it again.\n\n" +
		"A setting comes from the YAML file (`-c`), then from the environment, then from a flag; the later wins. " +
		"An unknown key or an impossible value is an error that names the file and the line. " +
		"`vigie gateway config -c FILE` shows each value and where it came from; `vigie gateway check -c FILE` says everything that is wrong before start.\n\n" +
		"Lists exist only in the file: `dimse.allow` and `http.allow` (`ae_title`, `certificate`, `subject`) and `destinations` " +
		"(`name`, `kind`: dimse or stow, `address`, `url`, `ae_title`, `calling_ae_title`, `plain`, `tls`).\n\n" +
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
