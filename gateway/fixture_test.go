package gateway

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// testModel makes a package with the demo model's manifest and a graph of one
// matrix product: what it answers does not matter here.
func testModel(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	manifest, err := os.ReadFile(filepath.Join("..", "models", "chest-pneumonia-28", "manifest.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// Its explanation is measured on its own graph only.
	before, rest, found := strings.Cut(string(manifest), "explanation:\n")
	_, after, more := strings.Cut(rest, "\nplausibility:")
	if !found || !more {
		t.Fatalf("the demo's manifest has no explanation before its plausibility:\n%s", manifest)
	}
	manifest = []byte(before + "explanation: {method: none}\nplausibility:" + after)
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	image := b.Input("image", onnx.Float, batch, onnx.Dim{Value: 1}, onnx.Dim{Value: 28}, onnx.Dim{Value: 28})
	flat := b.Op("Flatten", []string{image})
	weights := b.Weight("w", []int64{784, 2}, make([]float32, 784*2))
	logits := b.Op("MatMul", []string{flat, weights})
	out := b.Node(&onnx.Node{OpType: "Identity", Inputs: []string{logits}, Outputs: []string{"logits"}}, 1)
	b.Output(out[0], onnx.Float, batch, onnx.Dim{Value: 2})
	graph, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	data, err := graph.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"manifest.yaml": manifest, "model.onnx": data, "card.md": []byte("# Test\n"), "calibration.json": []byte(`{"method":"none"}`),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := model.Seal(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Open(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// otherModel is another version of a package.
func otherModel(t testing.TB, of string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(of)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "card.md"), []byte("# Another version\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Seal(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// testConfig is a development site with plain listeners on free ports.
func testConfig(t testing.TB) *Config {
	t.Helper()
	c := Default()
	c.State = filepath.Join(t.TempDir(), "state")
	c.Development = true
	c.Model = testModel(t)
	c.DIMSE = DIMSEConfig{Listen: "127.0.0.1:0", AETitle: "VIGIE", Plain: true, Allow: []PeerConfig{{AETitle: "MODALITY"}}}
	c.HTTP = HTTPConfig{Listen: "127.0.0.1:0", Plain: true}
	c.Limits.DiskFree = 1 << 20
	c.complete()
	if problems := c.validate(Origins{}); len(problems) > 0 {
		t.Fatal(problems)
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		t.Fatal(err)
	}
	provider, err := keys.CreateFile(c.Keys)
	if err != nil {
		t.Fatal(err)
	}
	if err := provider.Close(); err != nil {
		t.Fatal(err)
	}
	return &c
}

// standIn answers for an enclave: signed, about the very bytes it was given.
type standIn struct {
	key    ed25519.PrivateKey
	model  vigie.ModelDigest
	answer func(enclave.Request) (float64, error)
	maps   *vigie.Explanation // nil: as of an enclave that tests no maps
	sets   []vigie.LabelSet
	proof  *vigie.Certificate // nil: as of a package that asks for none

	mu    sync.Mutex
	asked []enclave.Request
}

func newStandIn(t testing.TB, dir string, answer func(enclave.Request) (float64, error)) *standIn {
	t.Helper()
	s, err := makeStandIn(dir, answer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func makeStandIn(dir string, answer func(enclave.Request) (float64, error)) (*standIn, error) {
	pkg, err := model.Open(dir)
	if err != nil {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return &standIn{key: key, model: pkg.Digest, answer: answer}, err
}

func always(p float64) func(enclave.Request) (float64, error) {
	return func(enclave.Request) (float64, error) { return p, nil }
}

func (s *standIn) Diagnose(_ context.Context, r enclave.Request) (enclave.Result, error) {
	s.mu.Lock()
	s.asked = append(s.asked, r)
	s.mu.Unlock()
	p, err := s.answer(r)
	if err != nil {
		return enclave.Result{}, err
	}
	file, err := dicom.Parse(bytes.NewReader(r.DICOM), dicom.Limits{})
	if err != nil {
		return enclave.Result{}, err
	}
	predict := func(label string, p float64) vigie.Prediction {
		return vigie.Prediction{Label: label, Code: vigie.Code{Value: "233604007", Scheme: "SCT", Meaning: label, French: label},
			Probability: p, Raw: p, Threshold: 0.5, Positive: p >= 0.5}
	}
	finding := vigie.Finding{
		Case: r.Case, Instance: vigie.InstanceUID(file.DataSet.UID(dicom.SOPInstanceUID)), Model: s.model,
		ModelName: "stand-in", ModelVersion: "1.0.0", Input: vigie.DigestOf(r.DICOM), Configuration: vigie.DigestOf(nil),
		Predictions: []vigie.Prediction{predict("normal", 1-p), predict("pneumonia", p)},
		Explanation: &vigie.Explanation{Method: "grad-cam", Target: "pneumonia", Rows: 2, Columns: 2, Map: []uint8{0, 80, 160, 255}},
		Stages:      []vigie.Stage{{Name: "infer", Duration: time.Millisecond}},
		Time:        time.Now().UTC(),
	}
	finding.Sets = s.sets
	if s.maps != nil {
		finding.Explanation = s.maps
	}
	finding.Certificate = s.proof
	payload, err := json.Marshal(finding)
	if err != nil {
		return enclave.Result{}, err
	}
	public := s.key.Public().(ed25519.PublicKey)
	signed := enclave.SignedFinding{Payload: payload, Key: public,
		Signature: ed25519.Sign(s.key, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(enclave.PayloadType), enclave.PayloadType, len(payload), payload))}
	return enclave.Result{Finding: finding, Signed: signed, Evidence: attest.Evidence{Provider: "development", Claims: attest.Claims{SigningKey: public, Model: s.model}}}, nil
}

func (s *standIn) requests() []enclave.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]enclave.Request(nil), s.asked...)
}

// running is a gateway that serves until the test ends.
type running struct {
	*Gateway
	log  *lockedBuffer
	stop func() error
}

func testLogger(t testing.TB, w *lockedBuffer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// lockedBuffer is a log that a test may read while the gateway still writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t testing.TB, config *Config, options Options) *running {
	t.Helper()
	log := new(lockedBuffer)
	ctx, cancel := context.WithCancel(context.Background())
	g, err := Open(ctx, config, testLogger(t, log), options)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	select {
	case <-g.Started():
	case err := <-ended:
		t.Fatalf("the gateway did not start: %v", err)
	}
	var once sync.Once
	var failure error
	r := &running{Gateway: g, log: log, stop: func() error {
		once.Do(func() {
			cancel()
			failure = <-ended
			if err := g.Close(); err != nil && failure == nil {
				failure = err
			}
		})
		return failure
	}}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the gateway ended with %v", err)
		}
		if t.Failed() {
			t.Logf("log of the gateway:\n%s", log)
		}
	})
	return r
}

// chest returns a phantom as file bytes.
func chest(t testing.TB, seed uint64, o phantom.Options) []byte {
	t.Helper()
	if o.Rows == 0 {
		o.Rows, o.Columns = 128, 128
	}
	file, err := phantom.Chest(seed, o)
	if err != nil {
		t.Fatal(err)
	}
	return written(t, file)
}

func written(t testing.TB, file *dicom.File) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := file.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// give hands an object to intake as a transport would.
func give(t testing.TB, g *Gateway, data []byte) (intakeOutcome, error) {
	t.Helper()
	s, err := g.newSpool("dimse")
	if err != nil {
		return intakeOutcome{}, err
	}
	defer s.Discard()
	if _, err := s.Write(data); err != nil {
		return intakeOutcome{}, err
	}
	said := announced{}
	if o, err := NewOutgoing(data); err == nil {
		said = announced{sopClass: o.SOPClass, sopInstance: o.SOPInstance, transferSyntax: o.TransferSyntax}
	}
	return g.receive(context.Background(), vigie.Source{Protocol: "dimse", AETitle: "MODALITY"}, s, said)
}

// patience is how long a test waits for what must come: long enough for a slow
// and busy machine, since whoever is not disappointed never waits that long.
const patience = 5 * time.Minute

// eventually waits for a condition.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// settled waits until a case is in one of the states.
func settled(t testing.TB, b *Casebook, id vigie.CaseID, states ...vigie.State) *vigie.Case {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		c, err := b.Case(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range states {
			if c.State == s {
				return c
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("case %s is still %s after %v, want one of %v", id, c.State, patience, states)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
