package dimse

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

// orthanc is a running Orthanc with a modality "vigie" at our address.
type orthanc struct {
	t          testing.TB
	web, dicom string // host:port
}

// startOrthanc runs Orthanc with DICOM over TLS, certificates of ca on both
// sides.
func startOrthanc(t testing.TB, ca *authority, vigie string) *orthanc {
	t.Helper()
	path := program(t, "Orthanc")
	dir := t.TempDir()
	caFile, cert, key := ca.files(dir, ca.issue("orthanc.test"))
	o := &orthanc{t: t, dicom: freeAddr(t)}
	_, vigiePort, _ := net.SplitHostPort(vigie)
	_, dicomPort, _ := net.SplitHostPort(o.dicom)
	config := map[string]any{
		"Name": "peer", "StorageDirectory": filepath.Join(dir, "db"), "IndexDirectory": filepath.Join(dir, "db"), "Plugins": []string{},
		"DicomScuTimeout": 120, "DicomScpTimeout": 120, "HttpTimeout": 120, // a busy machine answers late
		"DicomAet": "ORTHANC", "DicomCheckCalledAet": true, "RemoteAccessAllowed": false,
		"DicomPort": number(dicomPort), "DicomTlsEnabled": true, "DicomTlsCertificate": cert, "DicomTlsPrivateKey": key,
		"DicomTlsTrustedCertificates": caFile, "DicomTlsRemoteCertificateRequired": true, "DicomAlwaysAllowStore": true, "DicomAlwaysAllowEcho": true,
		"DicomModalities": map[string]any{"vigie": map[string]any{
			"AET": "VIGIE", "Host": "127.0.0.1", "Port": number(vigiePort), "UseDicomTls": true, "AllowTranscoding": false,
		}},
	}
	o.web = startPeer(t, path, func(port string) []string {
		config["HttpPort"] = number(port)
		text, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "orthanc.json")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{file}
	})
	waitFor(t, "Orthanc to be ready", func() bool {
		response, err := http.Get("http://" + o.web + "/system")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == 200
	})
	return o
}

func number(port string) int {
	n, err := strconv.Atoi(port)
	if err != nil {
		panic(err)
	}
	return n
}

// call makes a REST request and decodes the answer.
func (o *orthanc) call(method, path string, body []byte, answer any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://"+o.web+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 {
		return fmt.Errorf("%s %s: %d %s (%v)", method, path, response.StatusCode, text, err)
	}
	if raw, ok := answer.(*[]byte); ok {
		*raw = text
		return nil
	}
	if answer != nil {
		return json.Unmarshal(text, answer)
	}
	return nil
}

func TestOrthancStoresToUsOverTLS13(t *testing.T) {
	ca := newAuthority(t)
	var version atomic.Uint32
	s := open(t, func(cfg *ServerConfig) {
		ca.secure(cfg)
		cfg.TLS.VerifyConnection = func(state tls.ConnectionState) error { version.Store(uint32(state.Version)); return nil }
	})
	o := startOrthanc(t, ca, s.addr)
	if err := o.call("POST", "/modalities/vigie/echo", []byte("{}"), nil); err != nil {
		t.Fatalf("echo: %v", err)
	}
	if version.Load() != tls.VersionTLS13 {
		t.Errorf("TLS version 0x%04X", version.Load())
	}
	files := []string{"CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm"}
	var ids []string
	for _, name := range files {
		file, err := os.ReadFile(pydicomFile(t, name))
		if err != nil {
			t.Fatal(err)
		}
		var created struct{ ID string }
		if err := o.call("POST", "/instances", file, &created); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, created.ID)
	}
	list, _ := json.Marshal(ids)
	if err := o.call("POST", "/modalities/vigie/store", list, nil); err != nil {
		t.Fatalf("store: %v", err)
	}
	got := s.got()
	if len(got) != len(files) {
		t.Fatalf("%d of %d objects arrived", len(got), len(files))
	}
	syntaxes := map[string]int{}
	for i, r := range got {
		syntaxes[r.TransferSyntax]++
		if r.Peer.CallingAE != "ORTHANC" || r.Peer.Certificate.Subject.CommonName != "orthanc.test" {
			t.Errorf("object %d came from %q, %q", i, r.Peer.CallingAE, r.Peer.Certificate.Subject)
		}
		file, err := dicom.Parse(bytes.NewReader(r.file), dicom.Limits{})
		if err != nil || file.DataSet.UID(dicom.SOPInstanceUID) != r.SOPInstance || file.TransferSyntax != r.TransferSyntax {
			t.Errorf("object %d does not read back: %v", i, err)
		}
	}
	for _, uid := range []string{dicom.RLELossless, dicom.JPEGBaseline, "1.2.840.10008.1.2.4.91"} {
		if syntaxes[uid] == 0 {
			t.Errorf("nothing arrived in %s: %v", uid, syntaxes)
		}
	}
}

func TestWeStoreToOrthancOverTLS13(t *testing.T) {
	ca := newAuthority(t)
	o := startOrthanc(t, ca, "127.0.0.1:104")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	files := map[string]*dicom.File{}
	var contexts []Context
	for _, name := range []string{"CT_small.dcm", "MR_small_bigendian.dcm", "SC_rgb_jpeg_dcmtk.dcm", "JPEG2000.dcm", "test-SR.dcm"} {
		file, err := os.ReadFile(pydicomFile(t, name))
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := dicom.Parse(bytes.NewReader(file), dicom.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		files[name] = parsed
		contexts = append(contexts, Context{SOPClass: parsed.DataSet.UID(dicom.SOPClassUID), TransferSyntaxes: []string{parsed.TransferSyntax}})
	}
	config := ClientConfig{CallingAE: "VIGIE", CalledAE: "ORTHANC", TLS: ClientTLS(ca.issue("vigie.test"), ca.pool(), "orthanc.test")}
	a, err := Dial(ctx, o.dicom, config, append(contexts, Verification))
	if err != nil {
		t.Fatal(err)
	}
	if status, err := a.Echo(ctx); err != nil || status != Success {
		t.Fatalf("echo: %v, %v", status, err)
	}
	for name, file := range files {
		var data bytes.Buffer
		if err := file.DataSet.Write(&data, file.TransferSyntax); err != nil {
			t.Fatal(err)
		}
		instance := file.DataSet.UID(dicom.SOPInstanceUID)
		status, err := a.Store(ctx, file.DataSet.UID(dicom.SOPClassUID), instance, file.TransferSyntax, &data)
		if err != nil || status != Success {
			t.Fatalf("%s: %v, %v", name, status, err)
		}
		var found []struct{ ID string }
		if err := o.call("POST", "/tools/lookup", []byte(instance), &found); err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, found %v", name, err, found)
		}
		var kept []byte
		if err := o.call("GET", "/instances/"+found[0].ID+"/file", nil, &kept); err != nil {
			t.Fatal(err)
		}
		back, err := dicom.Parse(bytes.NewReader(kept), dicom.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		// dcmtk writes lengths anew, and big endian as little.
		if inJSON(t, back.DataSet) != inJSON(t, file.DataSet) {
			t.Errorf("%s: Orthanc kept another data set", name)
		}
	}
	if err := a.Release(ctx); err != nil {
		t.Error(err)
	}
	if _, err := Dial(ctx, o.dicom, ClientConfig{CallingAE: "VIGIE", CalledAE: "NOBODY", TLS: config.TLS}, contexts); err == nil || !strings.Contains(err.Error(), "called AE title not recognised") {
		t.Errorf("a wrong called AE title: %v", err)
	}
}

func inJSON(t testing.TB, d *dicom.DataSet) string {
	t.Helper()
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
