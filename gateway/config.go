package gateway

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/vigie/vigie"
)

// Config is everything an operator can decide about a gateway. Each field's
// tags are its documentation: the setting's name in the file, what it means,
// and the values it accepts. The same table yields the file's keys, the
// environment variables, the flags and the text of `vigie gateway config`.
type Config struct {
	Site        string `koanf:"site" help:"name of the site in its audit log, such as vigie.hospital.example; never change it: the log's public key holds it"`
	State       string `koanf:"state" kind:"path" help:"folder for everything the gateway keeps: store, sealed objects, log checkpoints"`
	Store       string `koanf:"store" help:"database: sqlite:/path/vigie.db or postgres://user@host/db (default: a SQLite file in the state folder)"`
	Keys        string `koanf:"keys" kind:"path" help:"file of the site's master key, mode 0600 (default: master.key in the state folder)"`
	Model       string `koanf:"model" kind:"path" help:"folder of the model package that answers"`
	Production  bool   `koanf:"production" help:"refuse development evidence, plain transports and lax key files"`
	Development bool   `koanf:"development" help:"allow plain transports on loopback and development evidence"`

	DIMSE        DIMSEConfig         `koanf:"dimse"`
	HTTP         HTTPConfig          `koanf:"http"`
	Destinations []DestinationConfig `koanf:"destinations" help:"where results are delivered; a case is delivered when all of them acknowledged"`
	Enclave      EnclaveConfig       `koanf:"enclave"`
	Limits       LimitsConfig        `koanf:"limits"`
	Review       ReviewConfig        `koanf:"review"`
}

// DIMSEConfig is the DICOM listener (PS3.8 over TLS 1.3 with client certificates).
type DIMSEConfig struct {
	Listen  string       `koanf:"listen" help:"host:port of the DICOM listener; empty turns it off"`
	AETitle string       `koanf:"ae_title" help:"our application entity title, 1 to 16 characters"`
	Plain   bool         `koanf:"plain" help:"no TLS; only with development: true on a loopback address"`
	TLS     ServerTLS    `koanf:"tls"`
	Allow   []PeerConfig `koanf:"allow" help:"who may send; a peer must match the AE title and the certificate of one entry"`
}

// HTTPConfig is the listener for DICOMweb, health and metrics.
type HTTPConfig struct {
	Listen string       `koanf:"listen" help:"host:port of the HTTP listener (DICOMweb, /healthz, /readyz, /metrics); empty turns it off"`
	URL    string       `koanf:"url" help:"address of DICOMweb as clients see it, for Retrieve URLs: https://vigie.hospital.example/dicom-web (default: a path)"`
	Plain  bool         `koanf:"plain" help:"no TLS; only with development: true on a loopback address"`
	TLS    ServerTLS    `koanf:"tls"`
	Allow  []PeerConfig `koanf:"allow" help:"client certificates that may use DICOMweb, to send, to read, or both; /healthz and /readyz need none"`
}

// ServerTLS names the files of a listening side. Client certificates are
// always demanded and verified against ClientCA.
type ServerTLS struct {
	Certificate string `koanf:"certificate" kind:"path" help:"PEM certificate chain shown to the peer; read again when it, its key or client_ca changes"`
	Key         string `koanf:"key" kind:"path" help:"PEM private key of that certificate, mode 0600"`
	ClientCA    string `koanf:"client_ca" kind:"path" help:"PEM certificates that sign the peers' certificates"`
}

// PeerConfig is one entry of an allow-list. All the fields given must match.
type PeerConfig struct {
	AETitle     string `koanf:"ae_title" help:"calling AE title (DIMSE only)"`
	Certificate string `koanf:"certificate" help:"SHA-256 of the leaf certificate, sha256:… as openssl x509 -fingerprint -sha256 gives it, lower case without colons"`
	Subject     string `koanf:"subject" help:"subject (CN=…,O=…) or SPIFFE id (spiffe://…) of the leaf certificate"`
	May         string `koanf:"may" accept:"send read" help:"what it may do (HTTP only): send (STOW-RS) or read (QIDO-RS, WADO-RS); without it, both"`
}

// DestinationConfig is one receiver of results.
type DestinationConfig struct {
	Name           string    `koanf:"name" help:"name in the audit log and in metrics; unique"`
	Kind           string    `koanf:"kind" accept:"dimse stow" help:"dimse (C-STORE) or stow (DICOMweb)"`
	Address        string    `koanf:"address" help:"host:port (dimse)"`
	URL            string    `koanf:"url" help:"service root, https://host/dicom-web (stow)"`
	AETitle        string    `koanf:"ae_title" help:"called AE title (dimse)"`
	CallingAETitle string    `koanf:"calling_ae_title" help:"our AE title towards it (default dimse.ae_title)"`
	Plain          bool      `koanf:"plain" help:"no TLS; only with development: true to a loopback address"`
	TLS            ClientTLS `koanf:"tls"`
}

// ClientTLS names the files of a dialling side.
type ClientTLS struct {
	CA          string `koanf:"ca" kind:"path" help:"PEM certificates that sign the server's certificate; a new one takes a restart"`
	Certificate string `koanf:"certificate" kind:"path" help:"PEM certificate chain that we show; read again when it or its key changes"`
	Key         string `koanf:"key" kind:"path" help:"PEM private key of that certificate, mode 0600"`
	ServerName  string `koanf:"server_name" help:"name expected in the server's certificate (default: the host dialled)"`
}

// EnclaveConfig says where predictions are made.
type EnclaveConfig struct {
	URL         string        `koanf:"url" help:"https://host:port of a vigie enclave, or of several copies separated by blanks; empty runs one inside this process"`
	ModelServer string        `koanf:"model_server" help:"address of an Open Inference Protocol server (Triton, KServe) that computes the answers of the enclave inside this process: https://host:port (with enclave.tls), or http:// on loopback; it sees the de-identified images and no evidence covers it"`
	TLS         ClientTLS     `koanf:"tls"`
	Timeout     time.Duration `koanf:"timeout" help:"longest wait for one prediction"`
	GiveUpAfter time.Duration `koanf:"give_up_after" help:"a case that could not be analysed for this long goes to a person"`
	Threads     int           `koanf:"threads" help:"processor threads of the enclave inside this process; 0 lets it choose"`
	// GuardsMissing, GuardBudget and GuardMemory are for the enclave inside this process.
	GuardsMissing string        `koanf:"guards_missing" accept:"accept review" help:"what happens to the cases of a model without fitted input guards (vigie model fit) in the enclave inside this process: accept, or review"`
	GuardBudget   time.Duration `koanf:"guard_budget" help:"how long the input guards may take over one case in the enclave inside this process, after which it goes to a person; 0 is 10s"`
	GuardMemory   int           `koanf:"guard_memory" help:"images of which the enclave inside this process remembers fingerprints, to notice near copies under another patient; 0 is none"`
	// ExplainBudget and CertificateBudget are parts of Timeout.
	ExplainBudget     time.Duration `koanf:"explain_budget" help:"of one prediction by the enclave inside this process, the time for making and testing its map; what does not fit is labelled as untested, or left out; 0 is 5s, or half of enclave.timeout if that is shorter"`
	CertificateBudget time.Duration `koanf:"certificate_budget" help:"of one prediction by the enclave inside this process, the time for the certificate that a package asks for; a case whose certificate does not fit goes to a person; 0 is 10s, or half of enclave.timeout if that is shorter"`
}

// LimitsConfig bounds what peers can make the gateway do.
type LimitsConfig struct {
	ObjectSize    Size          `koanf:"object_size" help:"largest object accepted"`
	Associations  int           `koanf:"associations" help:"DICOM associations and STOW requests open at once"`
	DiskFree      Size          `koanf:"disk_free" help:"intake refuses (out of resources) when the disk has less than this free"`
	DiagnoseJobs  int           `koanf:"diagnose_jobs" help:"cases analysed at once"`
	DeliverJobs   int           `koanf:"deliver_jobs" help:"cases delivered at once"`
	DeliveryRetry time.Duration `koanf:"delivery_retry" help:"longest pause between two tries at a destination"`
}

// ReviewConfig is the local policy of triage.
type ReviewConfig struct {
	Everything bool    `koanf:"everything" help:"send every case to a person, whatever the model says"`
	Positive   bool    `koanf:"positive" help:"send every positive finding to a person"`
	Margin     float64 `koanf:"margin" help:"a calibrated probability within this distance of its operating point is borderline, 0 to 0.5"`
}

// Default returns the configuration before file, environment and flags.
func Default() Config {
	return Config{
		Site:  "vigie.localhost",
		State: "/var/lib/vigie",
		DIMSE: DIMSEConfig{AETitle: "VIGIE"},
		Enclave: EnclaveConfig{
			Timeout:     time.Minute,
			GiveUpAfter: 15 * time.Minute,
		},
		Limits: LimitsConfig{
			ObjectSize:    2 << 30,
			Associations:  64,
			DiskFree:      256 << 20,
			DiagnoseJobs:  2,
			DeliverJobs:   4,
			DeliveryRetry: 5 * time.Minute,
		},
		Review: ReviewConfig{Margin: 0.05},
	}
}

// Digest returns the digest of the effective configuration as it is written
// into audit records: the same settings always give the same digest.
func (c *Config) Digest() (vigie.Digest, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("gateway: digesting the configuration: %w", err)
	}
	return vigie.DigestOf(data), nil
}
