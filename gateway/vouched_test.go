package gateway

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

func TestAStateWrittenByHandDeliversNothing(t *testing.T) {
	for _, state := range []vigie.State{vigie.Released, vigie.Reviewed} {
		t.Run(string(state), func(t *testing.T) {
			config := testConfig(t)
			g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
			c := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case, vigie.InReview)
			if err := g.store.Update(context.Background(), func(tx *store.Tx) error {
				if _, err := tx.Exec(`UPDATE cases SET state = $1, verdict = '{"decision":"release"}' WHERE id = $2`, string(state), string(c.ID)); err != nil {
					return err
				}
				if _, err := tx.Exec("DELETE FROM case_values WHERE case_id = $1 AND name = $2", string(c.ID), valueVerdict); err != nil {
					return err
				}
				_, err := tx.Enqueue(deliverArgs{Case: c.ID}, deliverOptions())
				return err
			}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a complaint", func() bool { return strings.Contains(g.log.String(), errNotVouched.Error()) })
			if now := settled(t, g.Casebook, c.ID, state); len(objectsOf(t, g.Casebook, store.ObjectFilter{Case: c.ID, Kind: kindReport})) > 0 {
				t.Errorf("the case is %s and has a report", now.State)
			}
		})
	}
}

func TestAReportDoesNotWaitForAnOverlayThatCannotBeDrawn(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.97))}) // it looks at no pixel
	file, err := phantom.Chest(1, phantom.Options{Rows: 128, Columns: 128})
	if err != nil {
		t.Fatal(err)
	}
	file.DataSet.PutInt(dicom.Rows, 127)
	c := settled(t, g.Casebook, mustGive(t, g.Gateway, written(t, file)).Case, vigie.Delivered)
	for kind, want := range map[string]int{kindReport: 1, kindOverlay: 0} {
		if n := len(objectsOf(t, g.Casebook, store.ObjectFilter{Case: c.ID, Kind: kind})); n != want {
			t.Errorf("%d objects of kind %s, want %d", n, kind, want)
		}
	}
}

func TestAnImageOfAnotherPatientDoesNotJoinACase(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	slice := func(patient, instance string) []byte {
		file, err := phantom.AbdomenCT(1, phantom.Options{Identity: phantom.Identity{Name: "A^B", ID: patient}})
		if err != nil {
			t.Fatal(err)
		}
		file.DataSet.PutString(dicom.SOPInstanceUID, instance)
		file.Meta.PutString(dicom.MediaStorageSOPInstanceUID, instance)
		return written(t, file)
	}
	first := mustGive(t, g.Gateway, slice("P1", "1.2.3.1"))
	settled(t, g.Casebook, first.Case, vigie.InReview)
	if own := mustGive(t, g.Gateway, slice("P1", "1.2.3.2")); !own.Joined || own.Case != first.Case {
		t.Errorf("a slice of the same patient: %+v, want it in case %s", own, first.Case)
	}
	if other := mustGive(t, g.Gateway, slice("P2", "1.2.3.3")); other.Joined {
		t.Errorf("a slice of another patient under the same series joined: %+v", other)
	}
}

func TestWhatIsKeptBesideAnObjectIsSmall(t *testing.T) {
	file, err := phantom.Chest(1, phantom.Options{Rows: 64, Columns: 64})
	if err != nil {
		t.Fatal(err)
	}
	inner := &dicom.DataSet{}
	inner.Put(&dicom.Element{Tag: dicom.PixelData, VR: dicom.OB, Value: make([]byte, 4<<20)})
	file.DataSet.Put(&dicom.Element{Tag: 0x00880200, VR: dicom.SQ, Items: []*dicom.DataSet{inner}}) // an icon
	for i := range 100 {
		file.DataSet.Put(&dicom.Element{Tag: dicom.Tag(0x00081200 + 2*i), VR: dicom.UN, Value: make([]byte, keptValue-100)})
	}
	f, err := readFacts(bytes.NewReader(written(t, file)), announced{})
	if err != nil || len(f.unreadable) > 0 {
		t.Fatal(err, f.unreadable)
	}
	header, err := f.sealableHeader()
	if err != nil {
		t.Fatal(err)
	}
	if len(header) > keptHeader+4096 {
		t.Errorf("%d bytes are kept, want at most %d", len(header), keptHeader)
	}
	kept, err := readHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range alwaysKept {
		if kept.String(tag) != file.DataSet.String(tag) {
			t.Errorf("%v is %q, want %q", tag, kept.String(tag), file.DataSet.String(tag))
		}
	}
}

func TestOneCodeForManyLabelsFitsAnAuditRecord(t *testing.T) {
	var reasons []vigie.Reason
	for i := range 500 {
		reasons = append(reasons, reason(vigie.ReasonBorderline, fmt.Sprint("label ", i)), reason(vigie.ReasonPolicy, fmt.Sprint(i)))
	}
	if codes := reasonCodes(reasons); len(codes) != 2 || codes[0] != vigie.ReasonBorderline || codes[1] != vigie.ReasonPolicy {
		t.Errorf("codes %v", codes)
	}
}

func TestManyWhoAskWhetherItIsReadyCostOneLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks, changes := 0, 0
		look := func() Readiness {
			looks++
			return Readiness{Ready: looks == 1, Checks: map[bool]map[string]string{false: {"disk": "full"}}[looks == 1]}
		}
		var r recent
		for range 1000 {
			if !r.get(look, func(Readiness) { changes++ }).Ready {
				t.Fatal("the answer changed")
			}
		}
		time.Sleep(readyFor)
		if r.get(look, func(Readiness) { changes++ }).Ready || looks != 2 || changes != 1 {
			t.Errorf("after %v: %d looks, want a second one and its answer", readyFor, looks)
		}
	})
}

func TestAnObjectPutInThePlaceOfAnotherIsNoticed(t *testing.T) {
	config := testConfig(t)
	release := make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	enclave := newStandIn(t, config.Model, func(enclaveRequest) (float64, error) { <-release; return 0.03, nil })
	config.Limits.DiagnoseJobs = 1
	g := start(t, config, Options{Diagnoser: enclave})
	defer free() // or a test that fails leaves a worker that never ends
	identity := phantom.Identity{Name: "A^B", ID: "P1"}
	first := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{Identity: identity}))
	eventually(t, "the one worker to be busy with the first", func() bool { return len(enclave.requests()) > 0 })
	second := mustGive(t, g.Gateway, chest(t, 2, phantom.Options{Identity: identity}))
	err := g.store.Update(context.Background(), func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE objects SET blob = o.blob, sealed = o.sealed, size = o.size
			FROM objects AS o WHERE o.case_id = $1 AND objects.case_id = $2`, string(first.Case), string(second.Case))
		return err
	})
	free()
	if err != nil {
		t.Fatal(err)
	}
	settled(t, g.Casebook, first.Case, vigie.Delivered)
	if c := settled(t, g.Casebook, second.Case, vigie.Quarantined, vigie.Delivered); c.State != vigie.Quarantined || len(enclave.requests()) != 1 {
		t.Errorf("the case with another image of its patient is %s for %q", c.State, codesOf(c))
	}
}
