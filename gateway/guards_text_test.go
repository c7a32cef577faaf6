package gateway

import (
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
)

func TestTheAuditRecordHoldsThePValuesOfTheGuards(t *testing.T) {
	guards := []vigie.GuardResult{
		{Guard: "image-contrast", PValue: 1}, // a rule that holds says nothing
		{Guard: "layers", PValue: 0.3125},
		{Guard: "combined", PValue: 0.0033, Alarm: true, Reason: &vigie.Reason{Code: vigie.ReasonGuard}},
		{Guard: "input-guards", PValue: 1, Reason: &vigie.Reason{Code: vigie.ReasonGuard}},
	}
	text := guardsText(guards)
	if text != "layers=0.312 combined=0.0033! input-guards=1" {
		t.Errorf("got %q", text)
	}
	record := audit.Record{Kind: audit.KindDiagnosed, Time: time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC), Guards: text}
	data, err := record.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	read, err := audit.ParseRecord(data)
	if err != nil || read.Guards != text {
		t.Errorf("read back %q (%v)", read.Guards, err)
	}
	for range 100 {
		guards = append(guards, vigie.GuardResult{Guard: "a-guard-with-a-rather-long-name", PValue: 0.5})
	}
	record.Guards = guardsText(guards)
	if _, err := record.Marshal(); err != nil || !strings.HasSuffix(record.Guards, "…") {
		t.Errorf("many guards: %d bytes, %v", len(record.Guards), err)
	}
}
