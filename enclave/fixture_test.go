package enclave

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// scripted is an analyst that does as a test says.
type scripted struct {
	model  vigie.ModelDigest
	answer func(ctx context.Context, patient vigie.PatientPseudonym, dicom []byte) vigie.Finding
	closed atomic.Bool
}

func (s *scripted) describe() description {
	return description{model: s.model, name: "scripted", version: "1", settings: map[string]int{"a": 1}}
}
func (s *scripted) ready(context.Context) error { return nil }
func (s *scripted) close() error                { s.closed.Store(true); return nil }
func (s *scripted) analyse(ctx context.Context, patient vigie.PatientPseudonym, dicom []byte) vigie.Finding {
	if s.answer != nil {
		return s.answer(ctx, patient, dicom)
	}
	return positive()
}

const exampleModel = vigie.ModelDigest("sha256:0000000000000000000000000000000000000000000000000000000000000001")

func positive() vigie.Finding {
	return vigie.Finding{
		Instance:    "2.25.1",
		Predictions: []vigie.Prediction{{Label: "pneumonia", Probability: 0.9, Raw: 0.8, Threshold: 0.5, Positive: true}},
		Explanation: &vigie.Explanation{Method: "grad-cam", Target: "pneumonia", Rows: 2, Columns: 3, Map: []uint8{0, 1, 2, 3, 4, 255}},
		Stages:      []vigie.Stage{{Name: "infer", Duration: time.Millisecond}},
	}
}

func scriptedWorker(t testing.TB, s *scripted, options Options) *Worker {
	t.Helper()
	if s.model == "" {
		s.model = exampleModel
	}
	if options.Logger == nil {
		options.Logger = quiet()
	}
	w, err := newWorker(s, attest.NewDevelopment(quiet()), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		w.Close(ctx)
	})
	return w
}

func developmentVerifier(t testing.TB, model vigie.ModelDigest) *attest.Verifier {
	t.Helper()
	v, err := attest.NewVerifier(attest.Policy{Providers: []string{attest.DevelopmentName}, Model: model}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func verified(t testing.TB, e Enclave) *attest.Verified {
	t.Helper()
	v, err := NewClient(e, developmentVerifier(t, ""), ClientOptions{}).Verified(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func exampleRequest() Request {
	return Request{Case: "abcdefghijklmnopqrstuvwxyz", Patient: "VP-0123456789", DICOM: []byte("these bytes stand for a DICOM file")}
}
