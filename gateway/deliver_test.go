package gateway

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/medical/dicom/report"
	"github.com/vigie/vigie/store"
)

func TestAResultArrivesOnceWithTheSourcesIdentity(t *testing.T) {
	config := testConfig(t)
	peer := startPACS(t)
	config.Destinations = []DestinationConfig{peer.destination("pacs")}
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.97))})
	data := chest(t, 1, phantom.Options{Identity: phantom.Identity{Name: "Lindqvist^Eskil", ID: "PHX-1", Accession: "ACC1"}})
	c := settled(t, g.Casebook, mustGive(t, g.Gateway, data).Case, vigie.Delivered)
	source, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	received := peer.received()
	if len(received) != 2 {
		t.Fatalf("%d objects arrived, want a report and an overlay", len(received))
	}
	for role, class := range map[string]string{RoleReport: report.ComprehensiveSR, RoleOverlay: report.SecondaryCaptureImage} {
		times := received[ResultUID(c.ID, c.Model, role)]
		if len(times) != 1 {
			t.Errorf("the %s arrived %d times", role, len(times))
			continue
		}
		file, err := dicom.Parse(bytes.NewReader(times[0]), dicom.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range []dicom.Tag{dicom.PatientName, dicom.PatientID, dicom.AccessionNumber, dicom.StudyInstanceUID} {
			if got, want := file.DataSet.String(tag), source.DataSet.String(tag); got != want {
				t.Errorf("%s %v: got %q, want %q", role, tag, got, want)
			}
		}
		if got := file.DataSet.UID(dicom.SOPClassUID); got != class {
			t.Errorf("%s: class %s, want %s", role, got, class)
		}
	}
	mustVerify(t, g.Casebook)
}

func TestADestinationThatFailsGetsTheSameBytesLaterAndOthersDoNotWait(t *testing.T) {
	config := testConfig(t)
	good, bad := startPACS(t), startPACS(t)
	config.Destinations = []DestinationConfig{good.destination("good"), bad.destination("bad")}
	config.Limits.DeliveryRetry = 200 * time.Millisecond
	bad.refuse.Store(uint32(dimse.OutOfResources))
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.97))})
	id := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case
	eventually(t, "the good destination to have both results, though the bad one refuses", func() bool { return len(good.received()) == 2 })
	if c := settled(t, g.Casebook, id, vigie.Released); len(bad.received()) != 0 {
		t.Errorf("case %s, %d objects at the bad destination", c.State, len(bad.received()))
	}
	bad.refuse.Store(0)
	settled(t, g.Casebook, id, vigie.Delivered)
	for uid, times := range bad.received() {
		if len(times) != 1 || len(good.received()[uid]) != 1 {
			t.Errorf("%s arrived %d and %d times", uid, len(good.received()[uid]), len(times))
		}
		if !bytes.Equal(times[0], good.received()[uid][0]) {
			t.Errorf("%s differs between destinations", uid)
		}
	}
	mustVerify(t, g.Casebook)
}

func TestAPeerThatLostOurAcknowledgementGetsTheIdenticalObject(t *testing.T) {
	config := testConfig(t)
	peer := startPACS(t)
	config.Destinations = []DestinationConfig{peer.destination("pacs")}
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.97))})
	id := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case
	c := settled(t, g.Casebook, id, vigie.Delivered)
	// As if the process had died between the peer's acknowledgement and the
	// commit of it: the rows say pending, the peer has the objects.
	if err := g.store.Update(context.Background(), func(tx *store.Tx) error {
		_, err := tx.Exec("UPDATE deliveries SET state = 'pending' WHERE case_id = $1", string(id))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	c.State = vigie.Released
	if err := g.sendResults(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	for uid, times := range peer.received() {
		if len(times) != 2 || !bytes.Equal(times[0], times[1]) {
			t.Errorf("%s arrived %d times, or with other bytes", uid, len(times))
		}
	}
}

func TestADestinationThatLeftTheConfigurationHoldsNothingUp(t *testing.T) {
	config := testConfig(t)
	peer := startPACS(t)
	peer.refuse.Store(uint32(dimse.ProcessingFailure))
	config.Destinations = []DestinationConfig{peer.destination("gone")}
	config.Limits.DeliveryRetry = 100 * time.Millisecond
	enclave := newStandIn(t, config.Model, always(0.97))
	g := start(t, config, Options{Diagnoser: enclave})
	id := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case
	settled(t, g.Casebook, id, vigie.Released)
	eventually(t, "a report to be made", func() bool {
		return len(objectsOf(t, g.Casebook, store.ObjectFilter{Case: id, Kind: kindReport})) > 0
	})
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	config.Destinations = nil
	g = start(t, config, Options{Diagnoser: enclave})
	settled(t, g.Casebook, id, vigie.Delivered)
	mustVerify(t, g.Casebook)
}

func TestTheSameCaseAlwaysGivesTheSameUIDs(t *testing.T) {
	a := ResultUID("case", "model", RoleReport)
	for _, other := range []string{ResultUID("case", "model", RoleOverlay), ResultUID("case", "other", RoleReport), ResultUID("cas", "emodel", RoleReport)} {
		if other == a {
			t.Error("two results share a UID")
		}
	}
	if again := ResultUID("case", "model", RoleReport); again != a || !isUID(a) || len(a) > 64 {
		t.Errorf("%s, again %s", a, again)
	}
}
