package gateway

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

const validFile = `state: state
model: models/demo
development: true
dimse:
  listen: 127.0.0.1:11112
  plain: true
  allow:
    - ae_title: MODALITY
enclave:
  timeout: 20s
limits:
  object_size: 64MiB
`

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "site.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestALaterSourceWinsAndIsRemembered(t *testing.T) {
	path := writeConfig(t, validFile)
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	BindFlags(flags)
	if err := flags.Parse([]string{"--limits-object-size", "3MiB"}); err != nil {
		t.Fatal(err)
	}
	c, origins, err := Load(Sources{
		File:    path,
		Environ: []string{"VIGIE_GATEWAY_ENCLAVE_TIMEOUT=7s", "VIGIE_GATEWAY_LIMITS_OBJECT_SIZE=2MiB", "HOME=/root"},
		Flags:   flags,
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Enclave.Timeout != 7*time.Second || c.Limits.ObjectSize != 3<<20 || c.DIMSE.Listen != "127.0.0.1:11112" || c.DIMSE.AETitle != "VIGIE" {
		t.Errorf("got %+v", c)
	}
	for key, want := range map[string]string{
		"enclave.timeout":     "environment VIGIE_GATEWAY_ENCLAVE_TIMEOUT",
		"limits.object_size":  "flag --limits-object-size",
		"dimse.listen":        path + ":5",
		"dimse.ae_title":      path + ":4",
		"review.margin":       "default",
		"dimse.allow[0].xyz":  path + ":8",
		"limits.associations": path + ":11",
	} {
		if got := origins.Of(key); got != want {
			t.Errorf("origin of %s: got %s, want %s", key, got, want)
		}
	}
	if want := filepath.Join(filepath.Dir(path), "models/demo"); c.Model != want {
		t.Errorf("a path in the file counts from the file: got %s, want %s", c.Model, want)
	}
}

func TestASettingThatNobodyMadeIsADefaultEvenInASectionOfTheFile(t *testing.T) {
	path := writeConfig(t, strings.Replace(validFile, "  plain: true\n", "", 1)+"http:\n  listen: 127.0.0.1:0\n  plain: true\n")
	_, origins, _ := Load(Sources{File: path}) // the problems are another matter
	c := Default()
	got := map[string]string{}
	for _, row := range c.Explain(origins) {
		got[row.Setting] = row.Origin
	}
	for key, want := range map[string]string{"dimse.plain": "default", "dimse.ae_title": "default", "dimse.listen": path + ":5", "http.plain": path + ":14"} {
		if got[key] != want {
			t.Errorf("%s comes from %q, want %q", key, got[key], want)
		}
	}
}

func TestAFlagOfTheSameNameThatIsNoSettingIsLeftAlone(t *testing.T) {
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags.String("state", "", "a state of cases, not the state folder")
	if err := flags.Parse([]string{"--state", "quarantined"}); err != nil {
		t.Fatal(err)
	}
	path := writeConfig(t, validFile)
	c, _, err := Load(Sources{File: path, Flags: flags})
	if err != nil || c.State != filepath.Join(filepath.Dir(path), "state") {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestEveryMistakeNamesItsLineAndWhatIsAccepted(t *testing.T) {
	for name, test := range map[string]struct {
		text    string
		environ []string
		want    []string
	}{
		"unknown key": {validFile + "retries: 3\n", nil, []string{"site.yaml:13: retries: no such setting", "accepted here: destinations"}},
		"misspelt key": {strings.Replace(validFile, "ae_title", "ae_titel", 1), nil,
			[]string{"site.yaml:8: dimse.allow[0].ae_titel: no such setting, did you mean ae_title?"}},
		"wrong type":       {strings.Replace(validFile, "20s", "soon", 1), nil, []string{`site.yaml:10: enclave.timeout: "soon" is not valid here: want a duration`}},
		"boolean":          {strings.Replace(validFile, "plain: true", "plain: maybe", 1), nil, []string{"site.yaml:6: dimse.plain:", "want true or false"}},
		"size":             {strings.Replace(validFile, "64MiB", "64 apples", 1), nil, []string{"site.yaml:12: limits.object_size:", "want a size"}},
		"mapping":          {"state: x\ndimse: 3\n", nil, []string{"site.yaml:2: dimse: want a mapping with ae_title, allow, listen, plain, tls"}},
		"list":             {"dimse:\n  allow: everyone\n", nil, []string{"site.yaml:2: dimse.allow: want a list"}},
		"twice":            {validFile + "destinations:\n  - {name: a, kind: dimse, kind: stow}\n", nil, []string{"site.yaml:14: this is not YAML: ", "already defined"}},
		"accepted":         {validFile + "destinations:\n  - name: a\n    kind: ftp\n", nil, []string{`site.yaml:15: destinations[0].kind: "ftp" is not valid here: want one of dimse, stow`}},
		"environment":      {validFile, []string{"VIGIE_GATEWAY_STAT=/x"}, []string{"environment VIGIE_GATEWAY_STAT: no such setting, did you mean VIGIE_GATEWAY_STATE?"}},
		"public plain":     {strings.Replace(validFile, "127.0.0.1", "0.0.0.0", 1), nil, []string{"site.yaml:6: dimse.plain: a transport without TLS is only for loopback"}},
		"undeclared":       {strings.Replace(validFile, "development: true", "development: false", 1), nil, []string{"dimse.plain: a transport without TLS needs development: true"}},
		"no files":         {strings.Replace(validFile, "plain: true", "plain: false", 1), nil, []string{"dimse.tls.certificate: must name a PEM file", "site.yaml:8: dimse.allow[0]: names no certificate"}},
		"nobody":           {"state: s\nmodel: m\ndevelopment: true\ndimse:\n  listen: 127.0.0.1:1\n  plain: true\n", nil, []string{"site.yaml:4: dimse.allow: is empty"}},
		"both":             {validFile + "production: true\n", nil, []string{"site.yaml:3: development: production and development are both true"}},
		"two dests":        {validFile + "destinations:\n- {name: a, kind: dimse, address: 'h:1', ae_title: A, tls: {ca: a, certificate: b, key: c}}\n- {name: a, kind: dimse, address: 'h:1', ae_title: A, tls: {ca: a, certificate: b, key: c}}\n", nil, []string{`site.yaml:15: destinations[1].name: "a" is used by another`}},
		"margin":           {validFile + "review:\n  margin: 0.7\n", nil, []string{"site.yaml:14: review.margin: 0.7 is out of range: want 0 to 0.5"}},
		"password":         {validFile + "store: mysql://root:hunter2@db/x\n", nil, []string{"site.yaml:13: store:", "is no store"}},
		"not yaml":         {"a: [", nil, []string{"site.yaml:1: this is not YAML"}},
		"second doc":       {validFile + "---\nstate: x\n", nil, []string{"a second YAML document"}},
		"long AE title":    {strings.Replace(validFile, "MODALITY", "MODALITYMODALITYX", 1), nil, []string{"site.yaml:8: dimse.allow[0].ae_title:", "1 to 16 characters"}},
		"right over DIMSE": {strings.Replace(validFile, "- ae_title: MODALITY", "- ae_title: MODALITY\n      may: send", 1), nil, []string{"site.yaml:9: dimse.allow[0].may: over DIMSE peers send"}},
		"two enclaves":     {validFile, []string{"VIGIE_GATEWAY_ENCLAVE_URL=http://127.0.0.1:1", "VIGIE_GATEWAY_ENCLAVE_MODEL_SERVER=http://127.0.0.1:2"}, []string{"environment VIGIE_GATEWAY_ENCLAVE_MODEL_SERVER: enclave.model_server: belongs to the enclave that enclave.url names"}},
		"far model server": {validFile, []string{"VIGIE_GATEWAY_ENCLAVE_MODEL_SERVER=http://10.1.1.1:8000"}, []string{"enclave.model_server: a transport without TLS is only for loopback"}},
		"no such right":    {validFile + "http:\n  allow:\n    - {subject: CN=x, may: write}\n", nil, []string{`site.yaml:15: http.allow[0].may: "write" is not valid here: want one of send, read`}},
		"url of enclave":   {validFile, []string{"VIGIE_GATEWAY_ENCLAVE_URL=http://10.1.1.1:80"}, []string{"environment VIGIE_GATEWAY_ENCLAVE_URL: enclave.url: a transport without TLS is only for loopback"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := Load(Sources{File: writeConfig(t, test.text), Environ: test.environ})
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error\n%v\nlacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("the error shows a password")
			}
		})
	}
}

func TestAllProblemsAreReportedAtOnce(t *testing.T) {
	text := strings.Replace(validFile, "20s", "0s", 1) + "review:\n  margin: -1\n"
	_, _, err := Load(Sources{File: writeConfig(t, text)})
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != 2 {
		t.Fatalf("got %v", err)
	}
}

func TestTheSameSettingsGiveTheSameDigest(t *testing.T) {
	path := writeConfig(t, validFile)
	a, _, err := Load(Sources{File: path})
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := Load(Sources{File: path})
	if err != nil {
		t.Fatal(err)
	}
	da, _ := a.Digest()
	db, _ := b.Digest()
	b.Review.Margin = 0.06
	dc, _ := b.Digest()
	if da != db || da == dc {
		t.Errorf("digests %s %s %s", da, db, dc)
	}
}

func TestASizeReadsBackAsItWasWritten(t *testing.T) {
	for text, want := range map[string]Size{"512MiB": 512 << 20, "3 KiB": 3 << 10, "17": 17, "2TiB": 2 << 40, "0": 0} {
		var s, again Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: got %d, %v", text, s, err)
		}
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%s: written %s, read %d, %v", text, s, again, err)
		}
	}
	for _, text := range []string{"", "-1", "1MB", "9999999TiB", "1.5GiB"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q accepted", text)
		}
	}
}
