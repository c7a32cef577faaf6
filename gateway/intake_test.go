package gateway

import (
	"context"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

func TestAClearChestIsReleasedAndABorderlineOneIsNot(t *testing.T) {
	config := testConfig(t)
	answer := 0.03
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, func(enclave.Request) (float64, error) { return answer, nil })})
	outcome, err := give(t, g.Gateway, chest(t, 1, phantom.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	c := settled(t, g.Casebook, outcome.Case, vigie.Released, vigie.Delivered)
	if c.Finding == nil || len(c.Verdict.Reasons) != 0 || c.Model == "" {
		t.Errorf("got %+v", c)
	}
	answer = 0.5
	if outcome, err = give(t, g.Gateway, chest(t, 2, phantom.Options{})); err != nil {
		t.Fatal(err)
	}
	c = settled(t, g.Casebook, outcome.Case, vigie.InReview)
	if len(c.Verdict.Reasons) == 0 || c.Verdict.Reasons[0].Code != vigie.ReasonBorderline {
		t.Errorf("got %+v", c.Verdict)
	}
	report, err := g.VerifyLog(context.Background(), nil)
	if err != nil || !report.OK() {
		t.Errorf("the log: %+v, %v", report, err)
	}
	var objects []store.Object
	if err := g.store.View(context.Background(), func(tx *store.Tx) (err error) {
		objects, err = tx.Objects(store.ObjectFilter{Case: outcome.Case})
		return err
	}); err != nil || len(objects) == 0 {
		t.Errorf("objects: %v, %v", objects, err)
	}
}
