package dicomweb

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/vigie/vigie/demo/ports"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dimse"
)

const (
	orthancProgram = "/usr/sbin/Orthanc"
	orthancPlugin  = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
	pydicomFiles   = "/usr/lib/python3/dist-packages/pydicom/data/test_files"
)

// identity makes a certificate good as client and as server; with a nil parent
// it is an authority.
func identity(t testing.TB, name string, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	signer, signerKey := template, any(key)
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	} else {
		signer, signerKey = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, signerKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func writePEM(t testing.TB, path, kind string, der []byte) string {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// orthanc is a running Orthanc with the DICOMweb plugin.
type orthanc struct {
	t       testing.TB
	address string // http://host:port
}

// startOrthanc runs Orthanc with us as the DICOMweb server "vigie" at url, to
// which it shows client, and which it trusts by ca.
func startOrthanc(t testing.TB, url string, ca, client tls.Certificate) *orthanc {
	t.Helper()
	for _, path := range []string{orthancProgram, orthancPlugin, pydicomFiles} {
		if _, err := os.Stat(path); err != nil {
			t.Skipf("SKIPPED: %s is not installed (Debian packages orthanc, orthanc-dicomweb, python3-pydicom): interoperability with Orthanc is NOT tested here", path)
		}
	}
	dir := t.TempDir()
	addresses, err := ports.Reserve(1)
	if err != nil {
		t.Fatal(err)
	}
	_, number, _ := net.SplitHostPort(addresses[0])
	port, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(client.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{
		"Name": "peer", "StorageDirectory": filepath.Join(dir, "db"), "IndexDirectory": filepath.Join(dir, "db"),
		"HttpTimeout":        120, // a busy machine answers late
		"DicomServerEnabled": false, "HttpPort": port, "RemoteAccessAllowed": false, "Plugins": []string{orthancPlugin},
		"HttpsVerifyPeers": true, "HttpsCACertificates": writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", ca.Certificate[0]),
		"DicomWeb": map[string]any{"Enable": true, "Root": "/dicom-web/", "Servers": map[string]any{"vigie": map[string]any{
			"Url":                url,
			"CertificateFile":    writePEM(t, filepath.Join(dir, "cert.pem"), "CERTIFICATE", client.Certificate[0]),
			"CertificateKeyFile": writePEM(t, filepath.Join(dir, "key.pem"), "PRIVATE KEY", key),
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "orthanc.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.Command(orthancProgram, file)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("Orthanc said:\n%s", output.String())
		}
	})
	o := &orthanc{t: t, address: "http://127.0.0.1:" + strconv.Itoa(port)}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if response, err := http.Get(o.address + "/system"); err == nil {
			response.Body.Close()
			return o
		}
		if time.Now().After(end) {
			t.Fatal("Orthanc did not start")
		}
	}
}

func (o *orthanc) call(method, path string, body []byte, answer any) error {
	response, text := do(o.t, method, o.address+path, nil, bytes.NewReader(body))
	if response.StatusCode != 200 {
		return fmt.Errorf("%s %s: %d %s", method, path, response.StatusCode, text)
	}
	if raw, ok := answer.(*[]byte); ok {
		*raw = text
		return nil
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// secureSite is a site behind TLS 1.3 with client certificates.
func secureSite(t testing.TB, ca tls.Certificate, archive Archive) *site {
	t.Helper()
	s := &site{}
	handler, err := NewHandler(Config{
		Authorize: MutualTLS, Archive: archive,
		NewSpool: func() (dimse.Spool, error) { return &spool{}, nil },
		Store: func(_ context.Context, r StoreRequest) dimse.Status {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.objects = append(s.objects, received{r, bytes.Clone(r.Spool.(*spool).Bytes())})
			return dimse.Success
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	s.Server = httptest.NewUnstartedServer(http.StripPrefix("/dicom-web", handler))
	s.TLS = &tls.Config{
		Certificates: []tls.Certificate{identity(t, "vigie.test", &ca)}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	s.URL += "/dicom-web"
	return s
}

func TestOrthancPushesToUsBySTOWOverMutualTLS13(t *testing.T) {
	ca := identity(t, "Test CA", nil)
	s := secureSite(t, ca, nil)
	o := startOrthanc(t, s.URL, ca, identity(t, "orthanc.test", &ca))
	files := []string{"CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "test-SR.dcm", "liver_1frame.dcm", "waveform_ecg.dcm"}
	var ids []string
	kept := map[string][]byte{}
	for _, name := range files {
		file, err := os.ReadFile(filepath.Join(pydicomFiles, name))
		if err != nil {
			t.Fatal(err)
		}
		var created struct{ ID string }
		if err := o.call("POST", "/instances", file, &created); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, created.ID)
		var stored []byte
		if err := o.call("GET", "/instances/"+created.ID+"/file", nil, &stored); err != nil {
			t.Fatal(err)
		}
		parsed, err := dicom.Parse(bytes.NewReader(stored), dicom.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		kept[parsed.DataSet.UID(dicom.SOPInstanceUID)] = stored
	}
	order, _ := json.Marshal(map[string]any{"Resources": ids, "Synchronous": true})
	if err := o.call("POST", "/dicom-web/servers/vigie/stow", order, nil); err != nil {
		t.Fatal(err)
	}
	got := s.got()
	if len(got) != len(files) {
		t.Errorf("%d of %d objects arrived", len(got), len(files))
	}
	for _, r := range got {
		if !bytes.Equal(r.file, kept[r.SOPInstance]) {
			t.Errorf("%s changed on the way", r.SOPClass)
		}
		if r.Peer.Certificate == nil || r.Peer.Certificate.Subject.CommonName != "orthanc.test" {
			t.Errorf("peer %+v", r.Peer.Name)
		}
	}
}

func TestOrthancSearchesAndRetrievesFromUs(t *testing.T) {
	ca := identity(t, "Test CA", nil)
	archive := library(t)
	s := secureSite(t, ca, archive)
	o := startOrthanc(t, s.URL, ca, identity(t, "orthanc.test", &ca))
	order := []byte(`{"Uri": "/studies", "Arguments": {"00100020": "P1"}, "HttpHeaders": {"Accept": "application/dicom+json"}}`)
	var found []map[string]any
	if err := o.call("POST", "/dicom-web/servers/vigie/qido", order, &found); err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 {
		t.Errorf("Orthanc understood %d studies of 2: %v", len(found), found)
	}
	if err := o.call("POST", "/dicom-web/servers/vigie/retrieve", []byte(`{"Resources": [{"Study": "1.1"}], "Synchronous": true}`), nil); err != nil {
		t.Fatal(err)
	}
	var instances []string
	if err := o.call("GET", "/instances", nil, &instances); err != nil {
		t.Fatal(err)
	}
	if len(instances) != 3 {
		t.Errorf("Orthanc keeps %d instances of 3", len(instances))
	}
}

func TestOurClientStoresToOrthanc(t *testing.T) {
	ca := identity(t, "Test CA", nil)
	o := startOrthanc(t, "https://127.0.0.1:1/", ca, identity(t, "orthanc.test", &ca))
	client := &Client{BaseURL: o.address + "/dicom-web"}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var readers []io.Reader
	var uids []string
	for _, name := range []string{"CT_small.dcm", "JPEG2000.dcm", "test-SR.dcm"} {
		file, err := os.ReadFile(filepath.Join(pydicomFiles, name))
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := dicom.Parse(bytes.NewReader(file), dicom.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		uids = append(uids, parsed.DataSet.UID(dicom.SOPInstanceUID))
		readers = append(readers, bytes.NewReader(file))
	}
	answer, err := client.Store(ctx, "", readers...)
	if err != nil {
		t.Fatal(err)
	}
	for _, uid := range uids {
		if status, found := answer.Status(uid); !found || status != dimse.Success {
			t.Errorf("an object was answered %v, %v", status, found)
		}
	}
	var instances []string
	if err := o.call("GET", "/instances", nil, &instances); err != nil || len(instances) != len(uids) {
		t.Errorf("Orthanc keeps %d instances of %d (%v)", len(instances), len(uids), err)
	}
	answer, err = client.Store(ctx, "", bytes.NewReader([]byte("this is not DICOM")))
	if len(answer.Stored) != 0 {
		t.Errorf("Orthanc took nonsense: %+v, %v", answer, err)
	}
}

func TestNoCertificateNoService(t *testing.T) {
	ca := identity(t, "Test CA", nil)
	s := secureSite(t, ca, nil)
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	foreign := identity(t, "Other CA", nil)
	for name, certificates := range map[string][]tls.Certificate{"none": nil, "foreign": {identity(t, "stranger.test", &foreign)}} {
		client := &Client{BaseURL: s.URL, HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certificates}}}}
		if _, err := client.Store(context.Background(), "", bytes.NewReader(object(t, ctStorage, "1", "1", "1.1", 10))); err == nil {
			t.Errorf("certificate %s: served", name)
		}
	}
	request := httptest.NewRequest("GET", "/studies", nil)
	if _, err := MutualTLS(request); err == nil {
		t.Error("MutualTLS let a plain request in")
	}
}
