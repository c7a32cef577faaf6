package enclave

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
)

// clock is a clock that a test moves.
type clock struct {
	mu   sync.Mutex
	time time.Time
}

func newClock() *clock { return &clock{time: time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)} }
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.time
}
func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.time = c.time.Add(d)
}

func TestAnOldKeyOpensCasesDuringItsGraceAndNotAfter(t *testing.T) {
	c := newClock()
	w := scriptedWorker(t, &scripted{}, Options{RotateEvery: 12 * time.Hour, RotateGrace: time.Hour, Clock: c.now})
	old := verified(t, w)
	sealed, pending, err := Seal(old, exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	c.advance(12*time.Hour + 59*time.Minute)
	if fresh := verified(t, w); fresh.Identity() == old.Identity() {
		t.Error("the key did not turn after 12 hours")
	}
	reply, err := w.Diagnose(context.Background(), sealed)
	if err != nil {
		t.Fatalf("during the grace: %v", err)
	}
	if _, err := pending.Open(reply); err != nil {
		t.Fatalf("during the grace: %v", err)
	}
	c.advance(time.Minute)
	if err := w.Ready(context.Background()); err != nil { // a probe is enough for an idle enclave to forget
		t.Fatal(err)
	}
	if w.keys.previous != nil {
		t.Error("the old key is still in memory after its grace")
	}
	if _, err := w.Diagnose(context.Background(), sealed); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("after the grace: got %v, want ErrUnknownKey", err)
	}
}

func TestAClientFollowsARotatedKeyByItself(t *testing.T) {
	c := newClock()
	w := scriptedWorker(t, &scripted{}, Options{RotateEvery: time.Hour, RotateGrace: time.Minute, Clock: c.now})
	client := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{})
	first, err := client.Diagnose(context.Background(), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	c.advance(48 * time.Hour)
	second, err := client.Diagnose(context.Background(), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	if first.Evidence.Identity() == second.Evidence.Identity() {
		t.Error("the key did not turn")
	}
	if !bytes.Equal(first.Evidence.Claims.SigningKey, second.Evidence.Claims.SigningKey) {
		t.Error("the signing key changed with the sealing key")
	}
}

// substituted answers with evidence that a test changed.
type substituted struct {
	Enclave
	change func(*attest.Evidence)
	asked  int
}

func (s *substituted) Evidence(ctx context.Context, nonce []byte) (attest.Evidence, error) {
	s.asked++
	e, err := s.Enclave.Evidence(ctx, nonce)
	s.change(&e)
	return e, err
}

func (s *substituted) Diagnose(ctx context.Context, sealed []byte) ([]byte, error) {
	panic("a case was sent to an enclave that is not trusted")
}

func TestNoCaseIsSentToAnEnclaveWhoseEvidenceDoesNotVerify(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	other := verified(t, scriptedWorker(t, &scripted{}, Options{}))
	for name, change := range map[string]func(*attest.Evidence){
		"another's sealing key": func(e *attest.Evidence) { e.Claims.SealingKey = other.Claims().SealingKey },
		"another's signing key": func(e *attest.Evidence) { e.Claims.SigningKey = other.Claims().SigningKey },
		"another model":         func(e *attest.Evidence) { e.Claims.Model = "sha256:2" },
		"replayed":              func(e *attest.Evidence) { *e = other.Evidence() },
	} {
		client := NewClient(&substituted{Enclave: w, change: change}, developmentVerifier(t, exampleModel), ClientOptions{})
		for range 2 {
			if _, err := client.Diagnose(context.Background(), exampleRequest()); !errors.Is(err, ErrUntrusted) {
				t.Errorf("%s: got %v, want ErrUntrusted", name, err)
			}
		}
	}
	production, err := attest.NewVerifier(attest.Policy{Production: true, Providers: []string{attest.DevelopmentName}, Model: exampleModel}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewClient(&substituted{Enclave: w, change: func(*attest.Evidence) {}}, production, ClientOptions{}).Diagnose(context.Background(), exampleRequest())
	if !errors.Is(err, ErrUntrusted) || !errors.Is(err, attest.ErrDevelopmentEvidence) {
		t.Errorf("production: got %v, want ErrUntrusted and ErrDevelopmentEvidence", err)
	}
}

func TestEvidenceIsAskedForOnceForManyCases(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{MaxConcurrent: 4})
	counted := &counting{Enclave: w}
	client := NewClient(counted, developmentVerifier(t, exampleModel), ClientOptions{})
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if _, err := client.Diagnose(context.Background(), exampleRequest()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if counted.asked != 1 {
		t.Errorf("evidence was asked for %d times, want 1", counted.asked)
	}
}

type counting struct {
	Enclave
	asked int // Client fetches evidence in one goroutine at a time
}

func (c *counting) Evidence(ctx context.Context, nonce []byte) (attest.Evidence, error) {
	c.asked++
	return c.Enclave.Evidence(ctx, nonce)
}

func TestAPanicCostsOneCaseAndQuotesNothing(t *testing.T) {
	var log bytes.Buffer
	w := scriptedWorker(t, &scripted{answer: func(_ context.Context, _ vigie.PatientPseudonym, dicom []byte) vigie.Finding {
		if bytes.Contains(dicom, []byte("hostile")) {
			panic("DUPONT^MARIE made me panic")
		}
		return positive()
	}}, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	client := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{})
	hostile := exampleRequest()
	hostile.DICOM = []byte("hostile")
	result, err := client.Diagnose(context.Background(), hostile)
	if err != nil {
		t.Fatal(err)
	}
	f := result.Finding
	if len(f.Predictions) != 0 || len(f.Referrals) != 1 || f.Referrals[0].Code != vigie.ReasonEnclave || f.Input != vigie.DigestOf(hostile.DICOM) {
		t.Errorf("a panic gave %+v", f)
	}
	if strings.Contains(log.String()+string(result.Signed.Payload), "DUPONT") {
		t.Error("the panic's value was logged or reported")
	}
	if !strings.Contains(log.String(), "a panic was contained") {
		t.Error("the panic was not logged")
	}
	if result, err = client.Diagnose(context.Background(), exampleRequest()); err != nil || len(result.Finding.Predictions) != 1 {
		t.Errorf("the next case: %v", err)
	}
}

func TestAContradictoryAnswerIsReferredNotSent(t *testing.T) {
	for name, change := range map[string]func(*vigie.Finding){
		"not a number":     func(f *vigie.Finding) { f.Predictions[0].Probability = math.NaN() },
		"raw not a number": func(f *vigie.Finding) { f.Predictions[0].Raw = math.NaN() },
		"guard infinite":   func(f *vigie.Finding) { f.Guards = []vigie.GuardResult{{PValue: math.Inf(1)}} },
		"no answer":        func(f *vigie.Finding) { f.Predictions = nil },
		"huge": func(f *vigie.Finding) {
			f.Explanation.Map, f.Explanation.Rows, f.Explanation.Columns = make([]uint8, MaxFinding), 1, MaxFinding
		},
	} {
		w := scriptedWorker(t, &scripted{answer: func(context.Context, vigie.PatientPseudonym, []byte) vigie.Finding {
			f := positive()
			change(&f)
			return f
		}}, Options{})
		result, err := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{}).Diagnose(context.Background(), exampleRequest())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if f := result.Finding; len(f.Predictions) != 0 || len(f.Referrals) != 1 || f.Referrals[0].Code != vigie.ReasonInternal {
			t.Errorf("%s: got %+v", name, f)
		}
	}
}

func TestACaseThatTakesTooLongIsReferredAndItsSlotStaysTakenUntilItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		first := true
		w, err := newWorker(&scripted{model: exampleModel, answer: func(context.Context, vigie.PatientPseudonym, []byte) vigie.Finding {
			if first { // a decoder that does not look at its context
				first = false
				<-free
			}
			return positive()
		}}, attest.NewDevelopment(quiet()), Options{Timeout: 10 * time.Second, MaxConcurrent: 1, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		client := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{})
		start := time.Now()
		result, err := client.Diagnose(context.Background(), exampleRequest())
		if err != nil {
			t.Fatal(err)
		}
		if f := result.Finding; len(f.Predictions) != 0 || f.Referrals[0].Code != vigie.ReasonEnclave || time.Since(start) != 10*time.Second {
			t.Errorf("after %s: %+v", time.Since(start), f)
		}
		if err := w.Ready(context.Background()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("with the only slot stuck, Ready is %v, want ErrUnavailable", err)
		}
		waiting, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := client.Diagnose(waiting, exampleRequest()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("with the only slot stuck: got %v, want ErrUnavailable", err)
		}
		close(free)
		synctest.Wait()
		if err := w.Ready(context.Background()); err != nil {
			t.Errorf("after the late case ended: %v", err)
		}
		if result, err := client.Diagnose(context.Background(), exampleRequest()); err != nil || len(result.Finding.Predictions) != 1 {
			t.Errorf("after the late case ended: %v", err)
		}
	})
}

func TestNoMoreCasesRunAtOnceThanAllowed(t *testing.T) {
	var mu sync.Mutex
	running, most := 0, 0
	full := make(chan struct{}) // closed when as many run as may
	filled := sync.OnceFunc(func() { close(full) })
	w := scriptedWorker(t, &scripted{answer: func(ctx context.Context, _ vigie.PatientPseudonym, _ []byte) vigie.Finding {
		mu.Lock()
		running++
		most = max(most, running)
		if running == 3 {
			filled()
		}
		mu.Unlock()
		select {
		case <-full: // the first ones wait for each other
		case <-ctx.Done():
		}
		time.Sleep(2 * time.Millisecond)
		mu.Lock()
		running--
		mu.Unlock()
		return positive()
	}}, Options{MaxConcurrent: 3})
	client := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{})
	var group sync.WaitGroup
	for range 30 {
		group.Go(func() {
			if _, err := client.Diagnose(context.Background(), exampleRequest()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if most != 3 {
		t.Errorf("%d cases ran at once, want 3", most)
	}
}

func TestClosingLetsRunningCasesFinishAndRefusesNewOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{model: exampleModel, answer: func(context.Context, vigie.PatientPseudonym, []byte) vigie.Finding {
			time.Sleep(5 * time.Second)
			return positive()
		}}
		w, err := newWorker(s, attest.NewDevelopment(quiet()), Options{MaxConcurrent: 2, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		client := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{})
		finished := make(chan error, 1)
		go func() {
			_, err := client.Diagnose(context.Background(), exampleRequest())
			finished <- err
		}()
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- w.Close(context.Background()) }()
		synctest.Wait()
		if _, err := client.Diagnose(context.Background(), exampleRequest()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("a new case while closing: got %v, want ErrUnavailable", err)
		}
		if s.closed.Load() {
			t.Error("the engine was freed under a running case")
		}
		if err := <-finished; err != nil {
			t.Errorf("the running case: %v", err)
		}
		if err := <-closed; err != nil || !s.closed.Load() {
			t.Errorf("closing: %v, freed %v", err, s.closed.Load())
		}
	})
}

func TestACaseNobodyWaitsForIsAnErrorNotAFinding(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	w := scriptedWorker(t, &scripted{answer: func(inner context.Context, _ vigie.PatientPseudonym, _ []byte) vigie.Finding {
		cancel()
		<-inner.Done() // the analyst hears of it
		return positive()
	}}, Options{})
	if _, err := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{}).Diagnose(ctx, exampleRequest()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestNoImageStaysInMemoryAfterItsCase(t *testing.T) {
	for name, fails := range map[string]bool{"answered": false, "panicked": true} {
		var seen []byte
		w := scriptedWorker(t, &scripted{answer: func(_ context.Context, _ vigie.PatientPseudonym, dicom []byte) vigie.Finding {
			seen = dicom
			if fails {
				panic("x")
			}
			return positive()
		}}, Options{})
		request := exampleRequest()
		if _, err := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{}).Diagnose(context.Background(), request); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(context.Background()); err != nil { // the last goroutine of the case has ended
			t.Fatal(err)
		}
		if len(seen) != len(request.DICOM) || !bytes.Equal(seen, make([]byte, len(seen))) {
			t.Errorf("%s: the enclave still holds %q", name, seen)
		}
	}
}

func TestOptionsThatContradictThemselvesAreRefused(t *testing.T) {
	for name, options := range map[string]Options{
		"negative threads":         {Threads: -1},
		"grace longer than a life": {RotateEvery: time.Hour, RotateGrace: 2 * time.Hour},
	} {
		if _, err := newWorker(&scripted{model: exampleModel}, attest.NewDevelopment(quiet()), options); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTheConfigurationDigestCoversWhatCanChangeAnAnswer(t *testing.T) {
	base := scriptedWorker(t, &scripted{}, Options{Threads: 1}).Configuration()
	if scriptedWorker(t, &scripted{}, Options{Threads: 1}).Configuration() != base {
		t.Error("the same options have another digest")
	}
	for name, options := range map[string]Options{"threads": {Threads: 3}, "timeout": {Threads: 1, Timeout: time.Second}} {
		if scriptedWorker(t, &scripted{}, options).Configuration() == base {
			t.Errorf("the digest does not cover %s", name)
		}
	}
}
