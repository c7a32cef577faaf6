package enclave

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

// inference is a model server written from the text of the Open Inference
// Protocol, in its JSON form: it runs a package's graph.
type inference struct {
	session engine.Session
	away    atomic.Bool  // answers nothing but 503
	add     atomic.Int64 // thousandths added to every answer
	runs    atomic.Int64
}

type protocolTensor struct {
	Name     string    `json:"name"`
	Datatype string    `json:"datatype"`
	Shape    []int64   `json:"shape"`
	Data     []float32 `json:"data,omitempty"`
}

func serveModel(t *testing.T, pkg *model.Package) (*inference, *httptest.Server) {
	t.Helper()
	session, err := engine.Open(pkg.Graph, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	s := &inference{session: session}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
	mux.HandleFunc("GET /v2", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"name": "test"}) })
	about := func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"name": "brightness",
			"inputs":  []protocolTensor{{Name: "image", Datatype: "FP32", Shape: []int64{-1, 1, 28, 28}}},
			"outputs": []protocolTensor{{Name: "logits", Datatype: "FP32", Shape: []int64{-1, 2}}}})
	}
	ready := func(http.ResponseWriter, *http.Request) {}
	infer := func(w http.ResponseWriter, r *http.Request) {
		s.runs.Add(1)
		var asked struct{ Inputs []protocolTensor }
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := session.Run(r.Context(), map[string]engine.Tensor{"image": engine.Float32(asked.Inputs[0].Shape, asked.Inputs[0].Data)}, "logits")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		values, err := engine.Values[float32](out["logits"])
		if err != nil {
			panic(err)
		}
		values = slices.Clone(values)
		for i := range values {
			values[i] += float32(s.add.Load()) / 1000
		}
		answer(w, map[string]any{"outputs": []protocolTensor{{Name: "logits", Datatype: "FP32", Shape: out["logits"].Shape, Data: values}}})
	}
	for path, handler := range map[string]http.HandlerFunc{"GET %s": about, "GET %s/ready": ready, "POST %s/infer": infer} {
		for _, name := range []string{pkg.Manifest.Name, "other/versions/3"} {
			mux.HandleFunc(fmt.Sprintf(path, "/v2/models/"+name), handler)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.away.Load() {
			http.Error(w, "", http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.Close()
		if err := session.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, server
}

func servedWorker(pkg *model.Package, url string, timeout time.Duration) (*Worker, error) {
	return New(pkg, attest.NewDevelopment(quiet()), Options{Logger: quiet(), Timeout: timeout, ModelServer: ModelServer{URL: url}})
}

func TestAModelServerAnswersLikeTheEngineInProcess(t *testing.T) {
	pkg := brightness(t, 40, -2)
	asked := chest(t, phantom.Options{}, nil)
	ask := func(w *Worker) vigie.Finding {
		t.Helper()
		result, err := NewClient(w, developmentVerifier(t, pkg.Digest), ClientOptions{}).Diagnose(context.Background(), asked)
		if err != nil {
			t.Fatal(err)
		}
		return result.Finding
	}
	inProcess := modelWorker(t, pkg)
	want := ask(inProcess)
	s, server := serveModel(t, pkg)
	for _, path := range []string{"", "/v2/models/other/versions/3"} {
		w, err := servedWorker(pkg, server.URL+path, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close(context.Background())
		if w.Configuration() == inProcess.Configuration() {
			t.Error("the configuration digest does not say that a server answers")
		}
		before := s.runs.Load()
		got := ask(w)
		if len(got.Predictions) != 2 || got.Predictions[1].Probability != want.Predictions[1].Probability || got.Explanation == nil || s.runs.Load() != before+1 {
			t.Errorf("%s: %+v after %d runs, want %+v after one", path, got.Predictions, s.runs.Load()-before, want.Predictions)
		}
	}
}

func TestAModelServerThatServesSomethingElseIsRefusedOrNotBelieved(t *testing.T) {
	pkg := brightness(t, 40, -2)
	_, other := serveModel(t, brightness(t, 39, -2))
	if _, err := servedWorker(pkg, other.URL, 0); !errors.Is(err, errOtherModel) {
		t.Errorf("a server with other weights: %v, want errOtherModel", err)
	}
	s, server := serveModel(t, pkg)
	w, err := servedWorker(pkg, server.URL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close(context.Background())
	s.add.Store(2500) // from now on it answers otherwise
	result, err := NewClient(w, developmentVerifier(t, pkg.Digest), ClientOptions{}).Diagnose(context.Background(), chest(t, phantom.Options{}, nil))
	if err != nil {
		t.Fatal(err)
	}
	if f := result.Finding; len(f.Predictions) != 0 || !slices.Equal(codes(f), []vigie.ReasonCode{vigie.ReasonImplausible}) {
		t.Errorf("an answer that the explanation contradicts: %+v with %v", f.Predictions, f.Referrals)
	}
}

func TestAModelServerThatIsAwayIsWaitedForAndThenTheCaseGoesToAPerson(t *testing.T) {
	pkg := brightness(t, 40, -2)
	s, server := serveModel(t, pkg)
	w, err := servedWorker(pkg, server.URL, 2*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close(context.Background())
	if err := w.Ready(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.away.Store(true)
	if err := w.Ready(context.Background()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with its server away: %v, want ErrUnavailable", err)
	}
	back := time.AfterFunc(500*time.Millisecond, func() { s.away.Store(false) })
	defer back.Stop()
	asked := chest(t, phantom.Options{}, nil)
	result, err := NewClient(w, developmentVerifier(t, pkg.Digest), ClientOptions{}).Diagnose(context.Background(), asked)
	if err != nil || len(result.Finding.Predictions) != 2 {
		t.Errorf("a server that comes back: %+v, %v", result.Finding, err)
	}
	hasty, err := servedWorker(pkg, server.URL, 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer hasty.Close(context.Background())
	s.away.Store(true)
	result, err = NewClient(hasty, developmentVerifier(t, pkg.Digest), ClientOptions{}).Diagnose(context.Background(), asked)
	if err != nil || len(result.Finding.Predictions) != 0 || !slices.Equal(codes(result.Finding), []vigie.ReasonCode{vigie.ReasonEnclave}) {
		t.Errorf("a server that stays away: %+v, %v", result.Finding, err)
	}
}

func TestAModelServerIsReachedOverTLSOrOnThisMachineOnly(t *testing.T) {
	pkg := brightness(t, 40, -2)
	for name, test := range map[string]struct{ url, want string }{
		"plain elsewhere": {"http://10.1.1.1:8000", "plain HTTP is for a loopback address"},
		"no certificate":  {"https://10.1.1.1:8000", "needs a client certificate"},
		"a password":      {"https://a:hunter2@10.1.1.1:8000", "without user or query"},
		"another path":    {"http://127.0.0.1:8000/v1/models/x", "want none, /v2/models/NAME"},
		"no host":         {"127.0.0.1:8000", "want https://host:port"},
	} {
		_, err := servedWorker(pkg, test.url, 0)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
