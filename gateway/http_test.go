package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestHealthReadinessAndMetricsAnswer(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	root := "http://" + g.Addresses().HTTP.String()
	settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case, vigie.Delivered)
	if code, body := get(t, root+"/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", code, body)
	}
	code, body := get(t, root+"/readyz")
	var ready Readiness
	if err := json.Unmarshal([]byte(body), &ready); err != nil || code != 200 || !ready.Ready || ready.Checks["store"] != "ok" {
		t.Errorf("/readyz: %d %s, %v", code, body, err)
	}
	// A step is counted once it is committed, a moment after its case is seen.
	for _, want := range []string{
		`vigie_cases{state="delivered"} 1`, `vigie_cases{state="in review"} 0`, `vigie_intake_objects_total{outcome="case",protocol="dimse"} 1`,
		`vigie_triage_total{decision="release"} 1`, `vigie_stage_seconds_count{stage="de-identify"} 1`, `vigie_stage_seconds_count{stage="enclave/infer"} 1`, `vigie_store_up 1`,
	} {
		eventually(t, "/metrics to say "+want, func() bool {
			_, body := get(t, root+"/metrics")
			return strings.Contains(body, want+"\n")
		})
	}
}

func TestWhatVigieMadeIsFoundAndFetchedOverDICOMweb(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.97))})
	root := "http://" + g.Addresses().HTTP.String() + "/dicom-web"
	data := chest(t, 1, phantom.Options{})
	answer, err := (&dicomweb.Client{BaseURL: root}).Store(context.Background(), "", bytes.NewReader(data))
	if err != nil || len(answer.Stored) != 1 {
		t.Fatalf("STOW: %+v, %v", answer, err)
	}
	c, err := g.CaseOf(context.Background(), answer.Stored[0].SOPInstance)
	if err != nil {
		t.Fatal(err)
	}
	if c.Source.Protocol != "dicomweb" {
		t.Errorf("source %+v", c.Source)
	}
	c = settled(t, g.Casebook, c.ID, vigie.Delivered)
	source, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	study, id := source.DataSet.UID(dicom.StudyInstanceUID), source.DataSet.String(dicom.PatientID)
	code, body := get(t, root+"/instances?PatientID="+id)
	if code != 200 || !strings.Contains(body, ResultUID(c.ID, c.Model, RoleReport)) || !strings.Contains(body, ResultUID(c.ID, c.Model, RoleOverlay)) {
		t.Errorf("QIDO: %d %s", code, body)
	}
	// Without http.url a Retrieve URL is a path of this server, and it works.
	retrieve := "/dicom-web/studies/" + study + "/series/" + ResultUID(c.ID, c.Model, RoleReportSeries) + "/instances/" + ResultUID(c.ID, c.Model, RoleReport)
	if !strings.Contains(body, `"`+retrieve+`"`) {
		t.Errorf("QIDO lacks the Retrieve URL %s: %s", retrieve, body)
	}
	if code, _ := get(t, strings.TrimSuffix(root, "/dicom-web")+retrieve); code != 200 {
		t.Errorf("%s: %d", retrieve, code)
	}
	if strings.Contains(body, source.DataSet.UID(dicom.SOPInstanceUID)+`"`) {
		t.Error("QIDO offers the received image, which the PACS has")
	}
	for _, path := range []string{"", "/metadata"} {
		if code, body := get(t, root+"/studies/"+study+path); code != 200 || !strings.Contains(body, id) {
			t.Errorf("WADO %s: %d, %d bytes", path, code, len(body))
		}
	}
	code, body = get(t, root+"/studies/"+study+"/series/"+ResultUID(c.ID, c.Model, RoleOverlaySeries)+"/instances/"+ResultUID(c.ID, c.Model, RoleOverlay)+"/rendered")
	if code != 200 || !strings.HasPrefix(body, "\x89PNG") {
		t.Errorf("rendered overlay: %d", code)
	}
	if code, _ := get(t, root+"/studies/1.2.3"); code != 404 {
		t.Errorf("an unknown study: %d", code)
	}
}
