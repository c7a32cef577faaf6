package gateway

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

// changed alters what a stand-in answers after it was signed.
type changed struct {
	*standIn
	change func(*vigie.Finding)
}

func (c changed) Diagnose(ctx context.Context, r enclave.Request) (enclave.Result, error) {
	result, err := c.standIn.Diagnose(ctx, r)
	c.change(&result.Finding)
	return result, err
}

func TestAnAnswerThatCannotBeUsedGoesToAPerson(t *testing.T) {
	for name, change := range map[string]func(*vigie.Finding){
		"about another instance": func(f *vigie.Finding) { f.Instance = "2.25.1" },
		"that no audit record holds": func(f *vigie.Finding) {
			f.Referrals = append(f.Referrals, vigie.Reason{Code: vigie.ReasonCode(strings.Repeat("x", 600))})
		},
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t)
			config.Enclave.Timeout, config.Enclave.GiveUpAfter = time.Second, time.Second
			g := start(t, config, Options{Diagnoser: changed{newStandIn(t, config.Model, always(0.03)), change}})
			c := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case, vigie.InReview)
			if codesOf(c) != string(vigie.ReasonEnclave) || c.Finding != nil {
				t.Errorf("reasons %q and finding %v, want %q and none", codesOf(c), c.Finding, vigie.ReasonEnclave)
			}
			mustVerify(t, g.Casebook)
		})
	}
}

// recordsOf reads the records of a kind.
func recordsOf(t testing.TB, b *Casebook, kind audit.Kind) (found []audit.Record) {
	t.Helper()
	if err := b.store.View(context.Background(), func(tx *store.Tx) error {
		return tx.Query(func(scan func(...any) error) error {
			var data []byte
			if err := scan(&data); err != nil {
				return err
			}
			r, err := audit.ParseRecord(data)
			if r.Kind == kind {
				found = append(found, r)
			}
			return err
		}, "SELECT record FROM audit_entries ORDER BY idx")
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestRetrievalIsRecordedAndAnErasureHidesNobodyElse(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	one := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{Identity: phantom.Identity{Name: "A", ID: "1"}})).Case, vigie.Delivered)
	two := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 2, phantom.Options{Identity: phantom.Identity{Name: "B", ID: "2"}})).Case, vigie.Delivered)

	web := &archive{g.Casebook}
	report := objectsOf(t, g.Casebook, store.ObjectFilter{Case: one.ID, Kind: kindReport})[0]
	instance, err := web.instance(context.Background(), dicomweb.Peer{}, one.Patient, &report)
	if err != nil {
		t.Fatal(err)
	}
	if seen := recordsOf(t, g.Casebook, audit.KindViewed); len(seen) != 0 {
		t.Fatalf("recorded before anything was retrieved: %+v", seen)
	}
	opened, err := instance.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	opened.Close()
	seen := recordsOf(t, g.Casebook, audit.KindViewed)
	if len(seen) != 1 || seen[0].Case != one.ID || seen[0].Patient != one.Patient || seen[0].Instance != report.Instance || seen[0].Source.Protocol != "dicomweb" {
		t.Errorf("records %+v", seen)
	}

	if err := g.ring.Erase(context.Background(), one.Patient); err != nil {
		t.Fatal(err)
	}
	answer, err := http.Get("http://" + g.Addresses().HTTP.String() + "/dicom-web/studies")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("a search after the erasure of one patient: %s, want case %s in it", answer.Status, two.ID)
	}
}

func TestAnswersToQueriesAreRecordedWithoutTheirValues(t *testing.T) {
	config := testConfig(t)
	options := Options{Diagnoser: newStandIn(t, config.Model, always(0.97))}
	receiving := start(t, config, options)
	data := chest(t, 1, phantom.Options{Identity: phantom.Identity{Name: "Asked^For", ID: "ASKED-1"}})
	settled(t, receiving.Casebook, mustGive(t, receiving.Gateway, data).Case, vigie.Delivered)
	if err := receiving.stop(); err != nil {
		t.Fatal(err)
	}
	// The same site once more, now one that knows its peers by certificate.
	config.HTTP.Plain, config.HTTP.Allow = false, []PeerConfig{{Subject: "CN=pacs"}}
	g, err := Open(context.Background(), config, slog.New(slog.DiscardHandler), options)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	file, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	study := file.DataSet.UID(dicom.StudyInstanceUID)
	web, err := g.dicomweb()
	if err != nil {
		t.Fatal(err)
	}
	peer := certified("pacs")
	for _, step := range []struct {
		path   string
		status int
		want   string // "" is no record
	}{
		{"/studies?PatientID=ASKED-1", 200, "search study: 1"},
		{"/instances?PatientName=Asked*", 200, "search instance: 2"},
		{"/studies/" + study + "/series", 200, "search series: 2"},
		{"/studies/" + study + "/metadata", 200, "metadata: 2"},
		{"/studies?PatientID=NOBODY", 204, ""},
	} {
		before := len(recordsOf(t, g.Casebook, audit.KindViewed))
		if w := ask(web, "GET", step.path, peer); w.Code != step.status {
			t.Errorf("%s: %d %s", step.path, w.Code, w.Body)
		}
		seen := recordsOf(t, g.Casebook, audit.KindViewed)[before:]
		if step.want == "" {
			if len(seen) != 0 {
				t.Errorf("%s: recorded %+v, want nothing", step.path, seen)
			}
			continue
		}
		if len(seen) != 1 || seen[0].Decision != step.want || seen[0].Source.Certificate != certificateDigest(peer) || seen[0].Case != "" {
			t.Errorf("%s: recorded %+v, want %q by the peer's certificate", step.path, seen, step.want)
		}
		for _, r := range seen {
			if text, err := r.Marshal(); err != nil || bytes.Contains(text, []byte("ASKED")) || bytes.Contains(text, []byte("Asked")) || bytes.Contains(text, []byte(study)) {
				t.Errorf("the record holds what was asked: %s, %v", text, err)
			}
		}
	}
	mustVerify(t, g.Casebook)
}

func TestARunThatEndsInGoodOrderSaysSo(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.03))})
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	book, err := OpenCasebook(context.Background(), config, testLogger(t, g.log))
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
	started, stopped := recordsOf(t, book, audit.KindStarted), recordsOf(t, book, kindStopped)
	if len(started) != 1 || len(stopped) != 1 || stopped[0].Configuration != started[0].Configuration {
		t.Errorf("started %+v, stopped %+v", started, stopped)
	}
	mustVerify(t, book)
}
