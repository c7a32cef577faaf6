package consortium

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/wire"
)

func TestAServerCannotMakeASiteFetchOrStoreWhatItLikes(t *testing.T) {
	n := newNorth(t, nil)
	s := n.join("lyon")
	model := make([]byte, 10)
	document := func(run string) []byte {
		t.Helper()
		j, _, _, err := verify[Job](n.private(run, nil), JobType, n.consortium.Key())
		if err != nil {
			t.Fatal(err)
		}
		j.Model.SHA256 = DigestOf(model)
		d, err := sign(n.consortium.signer, JobType, j)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	bulk := func(length int64) wire.Bulk { b := wire.Bytes(model); b.Length = length; return b }
	order := func(step federate.Step) json.RawMessage { return marshal(federate.Order{Step: step, Round: 1}) }
	first := document("first")
	job, err := s.receive(first, func(path string) error { return os.WriteFile(path, model, 0o600) })
	if err != nil {
		t.Fatal(err)
	}
	result, err := sign(n.consortium.signer, ResultType, Result{Version: 1, Run: "first", Job: job.digest, Model: DigestOf(model)})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		wire.Call
		fits bool
	}{
		"a job's model":             {wire.Call{Kind: kindDecide, Body: document("second"), Bulk: bulk(10)}, true},
		"once more":                 {wire.Call{Kind: kindDecide, Body: first, Bulk: bulk(10)}, true},
		"more than the job names":   {wire.Call{Kind: kindDecide, Body: document("second"), Bulk: bulk(11)}, false},
		"less than the job names":   {wire.Call{Kind: kindJob, Body: first, Bulk: bulk(9)}, false},
		"another one":               {wire.Call{Kind: kindDecide, Body: document("second"), Bulk: wire.Bytes([]byte("0123456789"))}, false},
		"of no job":                 {wire.Call{Kind: kindDecide, Body: json.RawMessage(`{}`), Bulk: bulk(10)}, false},
		"beside a list of sites":    {wire.Call{Kind: kindRoster, Body: json.RawMessage(`{}`), Bulk: bulk(10)}, false},
		"beside what nobody knows":  {wire.Call{Kind: "other", Body: json.RawMessage(`{}`), Bulk: bulk(10)}, false},
		"weights":                   {wire.Call{Run: "first", Kind: wire.OrderKind, Body: order(federate.StepTrain), Bulk: bulk(64)}, true},
		"weights of a larger model": {wire.Call{Run: "first", Kind: wire.OrderKind, Body: order(federate.StepTrain), Bulk: bulk(1 << 20)}, false},
		"weights in another step":   {wire.Call{Run: "first", Kind: wire.OrderKind, Body: order(federate.StepReveal), Bulk: bulk(64)}, false},
		"weights of another run":    {wire.Call{Run: "second", Kind: wire.OrderKind, Body: order(federate.StepTrain), Bulk: bulk(64)}, false},
		"a result":                  {wire.Call{Run: "first", Kind: kindResult, Body: result, Bulk: bulk(12)}, true},
		"a result far too large":    {wire.Call{Run: "first", Kind: kindResult, Body: result, Bulk: bulk(1 << 30)}, false},
		"an unsigned result":        {wire.Call{Run: "first", Kind: kindResult, Body: json.RawMessage(`{}`), Bulk: bulk(12)}, false},
	} {
		if err := s.accepts(c.Call); (err == nil) != c.fits {
			t.Errorf("%s: %v", what, err)
		} else if _, said := outward(err).(interface{ Unwrap() []error }); err != nil && errors.Is(err, ErrDocument) && !said {
			t.Errorf("%s: the server is not told why", what)
		}
	}
	jobs, stored := maxJobs, maxStored
	defer func() { maxJobs, maxStored = jobs, stored }()
	about, err := os.Stat(filepath.Join(s.path("jobs", "first"), jobFile))
	if err != nil {
		t.Fatal(err)
	}
	none := func(string) error { return nil }
	maxStored = about.Size() + 10 + 9
	if _, err := s.receive(document("second"), none); !errors.Is(err, ErrPolicy) {
		t.Errorf("a byte more than all jobs together may have: %v", err)
	}
	maxStored++
	if _, err := s.receive(document("second"), none); err != nil {
		t.Errorf("as much as all jobs together may have: %v", err)
	}
	maxStored, maxJobs = stored, 2
	if _, err := s.receive(document("third"), none); !errors.Is(err, ErrPolicy) {
		t.Errorf("a job more than there may be: %v", err)
	}
	if err := s.accepts(wire.Call{Run: "first", Kind: kindResult, Body: result, Bulk: bulk(12)}); err != nil {
		t.Errorf("the result of a job that is there: %v", err)
	}
}
