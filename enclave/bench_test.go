package enclave

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"testing"
	"time"

	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

// demoPackage is the committed demo package.
func demoPackage(t testing.TB) *model.Package {
	t.Helper()
	pkg, err := model.Open("../models/chest-pneumonia-28")
	if err != nil {
		t.Skipf("the demo package cannot be opened: %v", err)
	}
	return pkg
}

// benchmarkDiagnosis reports the mean time of each stage, and what sealing,
// signing and opening add to them, in microseconds.
func benchmarkDiagnosis(b *testing.B, wrap func(*Worker) Enclave, o phantom.Options) {
	pkg := demoPackage(b)
	w, err := New(pkg, attest.NewDevelopment(quiet()), Options{Logger: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close(context.Background())
	client := NewClient(wrap(w), developmentVerifier(b, pkg.Digest), ClientOptions{})
	asked := chest(b, o, nil)
	stages := make(map[string]time.Duration)
	b.SetBytes(int64(len(asked.DICOM)))
	for b.Loop() {
		result, err := client.Diagnose(context.Background(), asked)
		if err != nil {
			b.Fatal(err)
		}
		if len(result.Finding.Predictions) == 0 {
			b.Fatalf("no prediction: %+v", result.Finding.Referrals)
		}
		for _, stage := range result.Finding.Stages {
			stages[stage.Name] += stage.Duration
		}
	}
	rest := b.Elapsed()
	for name, total := range stages {
		rest -= total
		b.ReportMetric(float64(total.Microseconds())/float64(b.N), name+"-µs")
	}
	b.ReportMetric(float64(rest.Microseconds())/float64(b.N), "seal+sign-µs")
}

func BenchmarkDiagnosisInProcess(b *testing.B) {
	benchmarkDiagnosis(b, func(w *Worker) Enclave { return w }, phantom.Options{})
}

// The size of a real computed radiograph.
func BenchmarkDiagnosisOf2140By1760(b *testing.B) {
	benchmarkDiagnosis(b, func(w *Worker) Enclave { return w }, phantom.Options{Rows: 2140, Columns: 1760})
}

func BenchmarkDiagnosisOverHTTP(b *testing.B) {
	benchmarkDiagnosis(b, func(w *Worker) Enclave {
		address, _ := serve(b, w, ServeOptions{})
		return remote(b, RemoteOptions{URL: "http://" + address, Development: true})
	}, phantom.Options{})
}

// BenchmarkBareRun is the same model on a prepared input, without anything
// around it.
func BenchmarkBareRun(b *testing.B) {
	pkg := demoPackage(b)
	session, err := engine.Open(pkg.Graph, engine.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer session.Close()
	shape := pkg.Manifest.Input.Shape(1)
	values := make([]float32, shape[0]*shape[1]*shape[2]*shape[3])
	inputs := map[string]engine.Tensor{pkg.Manifest.Input.Name: engine.Float32(shape, values)}
	for b.Loop() {
		if _, err := session.Run(context.Background(), inputs); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSealAndOpen(b *testing.B) {
	w := scriptedWorker(b, &scripted{}, Options{})
	v := verified(b, w)
	request := Request{Case: "a", Patient: "p", DICOM: make([]byte, 8<<20)}
	b.SetBytes(int64(len(request.DICOM)))
	for b.Loop() {
		sealed, pending, err := Seal(v, request)
		if err != nil {
			b.Fatal(err)
		}
		reply, err := w.Diagnose(context.Background(), sealed)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := pending.Open(reply); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSignFinding(b *testing.B) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, 4<<10)
	for b.Loop() {
		if _, err := sign(key, payload); err != nil {
			b.Fatal(err)
		}
	}
}
