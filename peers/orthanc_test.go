package peers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/gateway"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

const orthancPlugin = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"

// orthanc is a running Orthanc: the modality and the archive of a site at once,
// with TLS and certificates in both directions and on both protocols.
type orthanc struct {
	s   *site
	web string // host:port of its web server, on loopback
}

// startOrthanc starts Orthanc at the site's PACS address if takesDICOM, with
// its web server at an address of ours. Debian's Orthanc 1.10 ends with a
// segmentation fault when its own HTTPS server is connected to, so that what
// comes to it from outside goes through a proxy, as in most hospitals.
func startOrthanc(s *site, web string, takesDICOM bool) *orthanc {
	s.t.Helper()
	program(s.t, "Orthanc")
	if _, err := os.Stat(orthancPlugin); err != nil {
		s.t.Skipf("SKIPPED: %s is absent (Debian package orthanc-dicomweb): living with Orthanc is NOT tested here", orthancPlugin)
	}
	dir := s.t.TempDir()
	certificate, key, ca := s.Path("tls", "modality.pem"), s.Path("tls", "modality.key"), s.Path("tls", "ca.pem")
	number := func(address string) int {
		_, port := hostPort(s.t, address)
		n, err := strconv.Atoi(port)
		if err != nil {
			s.t.Fatal(err)
		}
		return n
	}
	config, err := json.Marshal(map[string]any{
		"Name": "peer", "StorageDirectory": filepath.Join(dir, "db"), "IndexDirectory": filepath.Join(dir, "db"), "Plugins": []string{orthancPlugin},
		"DicomScuTimeout": 120, "DicomScpTimeout": 120, "HttpTimeout": 120, // a busy machine answers late
		"HttpPort": number(web), "RemoteAccessAllowed": false,
		"HttpsVerifyPeers": true, "HttpsCACertificates": ca,
		"DicomServerEnabled": takesDICOM, "DicomPort": number(s.PACS), "DicomAet": demo.ModalityAE, "DicomCheckCalledAet": false,
		"DicomTlsEnabled": true, "DicomTlsCertificate": certificate, "DicomTlsPrivateKey": key,
		"DicomTlsTrustedCertificates": ca, "DicomTlsRemoteCertificateRequired": true, "DicomAlwaysAllowStore": true, "DicomAlwaysAllowEcho": true,
		"DicomModalities": map[string]any{"vigie": map[string]any{
			"AET": demo.GatewayAE, "Host": "127.0.0.1", "Port": number(s.DIMSE), "UseDicomTls": true, "AllowTranscoding": false,
		}},
		"DicomWeb": map[string]any{"Enable": true, "Root": "/dicom-web/", "Servers": map[string]any{"vigie": map[string]any{
			"Url": "https://" + s.HTTP + "/dicom-web", "CertificateFile": certificate, "CertificateKeyFile": key,
		}}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	file := filepath.Join(dir, "orthanc.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		s.t.Fatal(err)
	}
	startPeer(s.t, web, "Orthanc", file)
	o := &orthanc{s, web}
	waitFor(s.t, "Orthanc to be ready", func() bool { return o.call("GET", "/system", nil, nil) == nil })
	return o
}

// call makes a REST request and decodes the answer.
func (o *orthanc) call(method, path string, body []byte, answer any) error {
	request, err := http.NewRequest(method, "http://"+o.web+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := o.s.web.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return errors.Join(fmt.Errorf("%s %s: %d %s", method, path, response.StatusCode, text), err)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// keep gives Orthanc an image of its own and returns Orthanc's name of it.
func (o *orthanc) keep(file *dicom.File) string {
	o.s.t.Helper()
	var created struct{ ID string }
	if err := o.call("POST", "/instances", encode(o.s.t, file), &created); err != nil {
		o.s.t.Fatal(err)
	}
	return created.ID
}

// expectResults waits until Orthanc shows report and overlay of a case in the
// study of their source, and checks what Orthanc knows of them.
func (o *orthanc) expectResults(c *vigie.Case, source *dicom.File) {
	t := o.s.t
	t.Helper()
	type tags map[string]string
	type instance struct {
		ID            string
		MainDicomTags tags
		ParentSeries  string
	}
	var studies []struct{ ID string }
	if err := o.call("POST", "/tools/lookup", []byte(source.DataSet.UID(dicom.StudyInstanceUID)), &studies); err != nil || len(studies) != 1 {
		t.Fatalf("Orthanc has the source's study %d times: %v", len(studies), err)
	}
	expected := map[string]string{
		gateway.ResultUID(c.ID, c.Model, gateway.RoleReport):  "SR",
		gateway.ResultUID(c.ID, c.Model, gateway.RoleOverlay): "OT",
		instanceOf(source): source.DataSet.String(dicom.Modality),
	}
	var instances []instance
	if err := o.call("GET", "/studies/"+studies[0].ID+"/instances", nil, &instances); err != nil {
		t.Fatal(err)
	}
	if len(instances) != len(expected) {
		t.Errorf("the study has %d instances in Orthanc, want the source, a report and an overlay", len(instances))
	}
	for _, i := range instances {
		uid := i.MainDicomTags["SOPInstanceUID"]
		var series struct{ MainDicomTags tags }
		if err := o.call("GET", "/series/"+i.ParentSeries, nil, &series); err != nil {
			t.Fatal(err)
		}
		if want, known := expected[uid]; !known || series.MainDicomTags["Modality"] != want {
			t.Errorf("Orthanc shows %s as %s, want %s", uid, series.MainDicomTags["Modality"], want)
		}
		if expected[uid] == "OT" { // Orthanc draws it
			if err := o.call("GET", "/instances/"+i.ID+"/preview", nil, nil); err != nil && !isSyntaxError(err) {
				t.Errorf("Orthanc cannot show the overlay: %v", err)
			}
		}
	}
	var patient struct{ MainDicomTags, PatientMainDicomTags tags }
	if err := o.call("GET", "/studies/"+studies[0].ID, nil, &patient); err != nil {
		t.Fatal(err)
	}
	if got := patient.PatientMainDicomTags["PatientID"]; got != source.DataSet.String(dicom.PatientID) {
		t.Errorf("the study belongs to %q", got)
	}
}

// isSyntaxError reports an answer of 200 that is not JSON: an image.
func isSyntaxError(err error) bool {
	var syntax *json.SyntaxError
	return errors.As(err, &syntax)
}

func TestOrthancSendsByCSTOREAndFindsReportAndOverlayBesideTheSource(t *testing.T) {
	s := startSite(t, demo.SiteOptions{})
	o := startOrthanc(s, freeAddress(t), true)
	if err := o.call("POST", "/modalities/vigie/echo", []byte("{}"), nil); err != nil {
		t.Errorf("echo: %v", err)
	}
	var ids []string
	sources := []*dicom.File{
		chest(t, 31, phantom.Options{}), chest(t, 32, phantom.Options{Opacity: 1, TransferSyntax: dicom.RLELossless}),
		chest(t, 33, phantom.Options{TransferSyntax: dicom.JPEGBaseline}), chest(t, 34, phantom.Options{TransferSyntax: dicom.ImplicitLittleEndian}),
	}
	for _, file := range sources {
		ids = append(ids, o.keep(file))
	}
	order, err := json.Marshal(ids)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.call("POST", "/modalities/vigie/store", order, nil); err != nil {
		t.Fatalf("Orthanc could not send: %v", err)
	}
	for _, source := range sources {
		o.expectResults(s.delivered(s.rest(instanceOf(source))), source)
	}
	s.verifyLog()
}

func TestOrthancPushesBySTOWAndReceivesReportAndOverlayBySTOW(t *testing.T) {
	web := freeAddress(t)
	proxy := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: web}))
	_, port := hostPort(t, proxy.Listener.Addr().String())
	s := startSite(t, demo.SiteOptions{STOW: "https://localhost:" + port + "/dicom-web"})
	proxy.TLS = s.tls("archive")
	proxy.StartTLS()
	t.Cleanup(proxy.Close)
	s.startPACS()
	o := startOrthanc(s, web, false)
	sources := []*dicom.File{chest(t, 35, phantom.Options{}), chest(t, 36, phantom.Options{Opacity: 1})}
	var ids []string
	for _, file := range sources {
		ids = append(ids, o.keep(file))
	}
	order, err := json.Marshal(map[string]any{"Resources": ids, "Synchronous": true})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.call("POST", "/dicom-web/servers/vigie/stow", order, nil); err != nil {
		t.Fatalf("Orthanc could not push: %v", err)
	}
	for _, source := range sources {
		c := s.delivered(s.rest(instanceOf(source)))
		if c.Source.Protocol != "dicomweb" || c.Source.Subject != "spiffe://demo.vigie.example/modality" {
			t.Errorf("the source is %+v", c.Source)
		}
		o.expectResults(c, source)
	}
	// Orthanc finds them at Vigie too.
	uri := []byte(`{"Uri": "/instances", "Arguments": {"StudyInstanceUID": "` + sources[0].DataSet.UID(dicom.StudyInstanceUID) + `"}, "HttpHeaders": {"Accept": "application/dicom+json"}}`)
	var found []map[string]any
	if err := o.call("POST", "/dicom-web/servers/vigie/qido", uri, &found); err != nil || len(found) != 2 {
		t.Errorf("Orthanc finds %d results of the study at Vigie, want 2: %v", len(found), err)
	}
	s.verifyLog()
}
