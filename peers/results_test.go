package peers

import (
	"bytes"
	"encoding/json"
	"image/png"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/gateway"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// attributes is an item of an answer in the DICOM JSON model (PS3.18 annex F).
type attributes map[string]struct {
	Value []any `json:"Value"`
}

func (a attributes) first(tag string) any {
	if v := a[tag].Value; len(v) > 0 {
		return v[0]
	}
	return nil
}

func (s *site) search(path string) (found []attributes) {
	s.t.Helper()
	status, header, text := s.get("/dicom-web"+path, "application/dicom+json")
	switch {
	case status == http.StatusNoContent:
		return nil
	case status != http.StatusOK || header.Get("Content-Type") != "application/dicom+json":
		s.t.Fatalf("%s: %d %s", path, status, text)
	}
	if err := json.Unmarshal(text, &found); err != nil {
		s.t.Fatal(err)
	}
	return found
}

func TestWhatVigieMadeIsFoundAndRetrievedOverDICOMweb(t *testing.T) {
	s := startSite(t, demo.SiteOptions{})
	pacs := s.startPACS()
	source, other := chest(t, 51, phantom.Options{Opacity: 0.9}), chest(t, 52, phantom.Options{})
	for _, file := range []*dicom.File{source, other} {
		if status, err := s.cstoreFile(file); err != nil || !status.Stored() {
			t.Fatalf("%v, %v", status, err)
		}
	}
	s.delivered(s.rest(instanceOf(other)))
	c := s.delivered(s.rest(instanceOf(source)))
	report, overlay := gateway.ResultUID(c.ID, c.Model, gateway.RoleReport), gateway.ResultUID(c.ID, c.Model, gateway.RoleOverlay)
	study := source.DataSet.UID(dicom.StudyInstanceUID)

	studies := s.search("/studies?PatientID=" + source.DataSet.String(dicom.PatientID))
	if len(studies) != 1 || studies[0].first("0020000D") != study || studies[0].first("00201208") != 2.0 {
		t.Errorf("by the patient's id: %v", studies)
	}
	if all := s.search("/studies"); len(all) != 2 {
		t.Errorf("%d studies of 2", len(all))
	}
	if none := s.search("/studies?PatientID=nobody"); len(none) != 0 {
		t.Errorf("somebody else's study: %v", none)
	}
	modalities := map[any]any{}
	for _, series := range s.search("/studies/" + study + "/series") {
		modalities[series.first("00080060")] = series.first("00201209")
	}
	if len(modalities) != 2 || modalities["SR"] != 1.0 || modalities["OT"] != 1.0 {
		t.Errorf("series: %v", modalities)
	}
	seriesOf := map[any]string{}
	for _, instance := range s.search("/instances?StudyInstanceUID=" + study) {
		seriesOf[instance.first("00080018")] = instance.first("0020000E").(string)
	}
	if len(seriesOf) != 2 || seriesOf[report] == "" || seriesOf[overlay] == "" {
		t.Fatalf("instances: %v, want %s and %s", seriesOf, report, overlay)
	}

	dir := t.TempDir()
	for i, file := range s.retrieve("/studies/" + study) {
		path := filepath.Join(dir, string(rune('a'+i))+".dcm")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		uid := instanceOf(parse(t, file))
		kind := map[string]string{report: "SR", overlay: "SC"}[uid]
		if kind == "" {
			t.Errorf("retrieved %s, which is neither report nor overlay", uid)
			continue
		}
		if _, err := os.Stat("/usr/bin/dcmdump"); err == nil {
			checkResult(t, path, kind, source)
		}
		// It is what the PACS was given.
		at, err := os.ReadFile(pacs.Objects()[uid].Path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dataSetOf(t, file), dataSetOf(t, at)) {
			t.Errorf("the %s differs from what the PACS got", kind)
		}
	}
	if n := len(s.retrieve("/studies/" + study + "/series/" + seriesOf[report] + "/instances/" + report)); n != 1 {
		t.Errorf("%d objects for one report", n)
	}

	instance := "/studies/" + study + "/series/" + seriesOf[overlay] + "/instances/" + overlay
	if meta := s.search(instance + "/metadata"); len(meta) != 1 || meta[0].first("00080018") != overlay {
		t.Errorf("metadata: %v", meta)
	}
	status, _, image := s.get("/dicom-web"+instance+"/rendered", "image/png")
	if picture, err := png.Decode(bytes.NewReader(image)); status != http.StatusOK || err != nil || picture.Bounds().Dx() < 256 {
		t.Errorf("rendered: %d, %v", status, err)
	}
	// The source itself stays in the vault: the PACS has it.
	if status, _, _ := s.get("/dicom-web/studies/"+study+"/series/"+source.DataSet.UID(dicom.SeriesInstanceUID), "multipart/related"); status != http.StatusNotFound {
		t.Errorf("the source's series: %d", status)
	}
	if status, _, _ := s.get("/dicom-web/studies/1.2.3.4", "multipart/related"); status != http.StatusNotFound {
		t.Errorf("an unknown study: %d", status)
	}
	s.strangerSees(t, "/dicom-web/studies", "/dicom-web/studies/"+study, "/dicom-web"+instance+"/rendered", "/metrics")
}

// strangerSees expects that a certificate of the right authority that is not on
// the list is shown nothing.
func (s *site) strangerSees(t *testing.T, paths ...string) {
	t.Helper()
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: s.tls("stranger")}}
	defer stranger.CloseIdleConnections()
	for _, path := range paths {
		response, err := stranger.Get("https://" + s.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusForbidden {
			t.Errorf("%s is answered %d to a stranger", path, response.StatusCode)
		}
	}
}

// retrieve gets objects by WADO-RS.
func (s *site) retrieve(path string) (files [][]byte) {
	s.t.Helper()
	status, header, body := s.get("/dicom-web"+path, `multipart/related; type="application/dicom"; transfer-syntax=*`)
	media, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	if status != http.StatusOK || err != nil || media != "multipart/related" {
		s.t.Fatalf("%s: %d, %q, %v", path, status, header.Get("Content-Type"), err)
	}
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF { //nolint:errorlint // as multipart says the end
			return files
		}
		if err != nil {
			s.t.Fatal(err)
		}
		file, err := io.ReadAll(part)
		if err != nil {
			s.t.Fatal(err)
		}
		files = append(files, file)
	}
}
