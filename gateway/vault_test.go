package gateway

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// planted is the identity that the test searches for afterwards.
var planted = phantom.Identity{
	Name: "Zyxwvutsrq^Plantedname", ID: "PLANTED-4711-ID", Issuer: "PLANTED-ISSUER", BirthDate: "20230417",
	Accession: "PLANTEDACC9", Physician: "Plantedphysician^Q", Operator: "Plantedoperator^R", Institution: "Plantedhospital", Address: "Plantedstreet 1",
}

func TestNothingOfAPatientLiesInClearOnDiskOrInTheLog(t *testing.T) {
	config := testConfig(t)
	peer := startPACS(t)
	config.Destinations = []DestinationConfig{peer.destination("pacs")}
	var answer atomic.Value // a float64
	answer.Store(0.97)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, func(enclaveRequest) (float64, error) { return answer.Load().(float64), nil })})
	needles := map[string]bool{}
	for _, text := range []string{planted.Name, "Zyxwvutsrq", "Plantedname", planted.ID, planted.Issuer, planted.BirthDate, planted.Accession,
		"Plantedphysician", "Plantedoperator", planted.Institution, planted.Address, "private-remark-of-the-reader"} {
		needles[text] = true
	}
	send := func(seed uint64, o phantom.Options, cut int) vigie.CaseID {
		o.Identity = planted
		data := chest(t, seed, o)
		file, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for _, tag := range []dicom.Tag{dicom.SOPInstanceUID, dicom.StudyInstanceUID, dicom.SeriesInstanceUID} {
			needles[file.DataSet.UID(tag)] = true
		}
		return mustGive(t, g.Gateway, data[:len(data)-cut]).Case
	}
	settled(t, g.Casebook, send(101, phantom.Options{}, 0), vigie.Delivered)
	settled(t, g.Casebook, send(102, phantom.Options{BurnedIn: true}, 0), vigie.InReview)
	settled(t, g.Casebook, send(103, phantom.Options{}, 2000), vigie.Quarantined)
	answer.Store(0.5)
	reviewed := send(104, phantom.Options{}, 0)
	settled(t, g.Casebook, reviewed, vigie.InReview)
	if _, err := g.Decide(context.Background(), reviewed, vigie.HumanDecision{Action: ActionOverride, Labels: []string{"normal"}, Actor: "dr.test", Note: "private-remark-of-the-reader"}); err != nil {
		t.Fatal(err)
	}
	settled(t, g.Casebook, reviewed, vigie.Delivered)
	// An object that is only half received, too.
	s, err := g.newSpool("dimse")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(chest(t, 105, phantom.Options{Identity: planted})); err != nil {
		t.Fatal(err)
	}
	searched := searchFolder(t, config.State, needles)
	s.Discard()
	metrics, err := g.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range metrics {
		searchBytes(t, "metric "+family.GetName(), []byte(family.String()), needles)
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	searched += searchFolder(t, config.State, needles)
	searchBytes(t, "the log", []byte(g.log.String()), needles)
	if searched < 20 {
		t.Errorf("only %d files were searched", searched)
	}
	// The needles must be findable at all: the PACS has them in clear.
	found := false
	for _, times := range peer.received() {
		found = found || bytes.Contains(times[0], []byte("Zyxwvutsrq"))
	}
	if !found {
		t.Error("the planted name is nowhere, so that the search proves nothing")
	}
}

func searchFolder(t *testing.T, dir string, needles map[string]bool) (files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a gateway that runs has just given a new file of its log its name
		}
		if err != nil {
			return err
		}
		files++
		searchBytes(t, path, data, needles)
		for text := range needles {
			if bytes.Contains([]byte(path), []byte(text)) {
				t.Errorf("the name of %s holds %q", path, text)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func searchBytes(t *testing.T, where string, data []byte, needles map[string]bool) {
	t.Helper()
	for text := range needles {
		if bytes.Contains(data, []byte(text)) {
			t.Errorf("%s holds %q in clear", where, text)
		}
	}
}
