package gateway

import (
	"bytes"
	"context"
	"testing"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

func TestStoringToAStudyRefusesTheObjectsOfAnother(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
	client := dicomweb.Client{BaseURL: "http://" + g.Addresses().HTTP.String() + "/dicom-web"}
	here, elsewhere := chest(t, 1, phantom.Options{}), chest(t, 2, phantom.Options{})
	identify := func(data []byte) (study, instance string) {
		file, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		return file.DataSet.UID(dicom.StudyInstanceUID), file.DataSet.UID(dicom.SOPInstanceUID)
	}
	study, mine := identify(here)
	_, other := identify(elsewhere)
	answer, err := client.Store(context.Background(), study, bytes.NewReader(here), bytes.NewReader(elsewhere))
	if err != nil {
		t.Fatal(err)
	}
	if status, found := answer.Status(mine); !found || status != dimse.Success {
		t.Errorf("an object of the study: %v", status)
	}
	if status, found := answer.Status(other); !found || status != dimse.DataSetMismatch {
		t.Errorf("an object of another study: %v, want a failure of this instance", status)
	}
	if kept := objectsOf(t, g.Casebook, store.ObjectFilter{Kind: kindReceived}); len(kept) != 1 {
		t.Errorf("%d objects are kept, want the one of the study", len(kept))
	}
	if answer, err = client.Store(context.Background(), "", bytes.NewReader(elsewhere)); err != nil || len(answer.Stored) != 1 {
		t.Errorf("sent to no study in particular: %+v, %v", answer, err)
	}
}
