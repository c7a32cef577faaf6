package enclave

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
)

// Options tunes a worker. The zero value is a good start.
type Options struct {
	Threads       int              // threads of the engine for one operator; 0 is two, or one on a single core
	Timeout       time.Duration    // for one case, after which it is referred; 0 is DefaultTimeout
	ExplainBudget time.Duration    // of it, for making and testing the map of the answer; 0 is DefaultExplainBudget
	CertifyBudget time.Duration    // of it, for the certificate of the answer, where the package asks for one; 0 is DefaultCertifyBudget
	MaxConcurrent int              // cases read at once; 0 is as many as fit the cores
	RotateEvery   time.Duration    // life of a sealing key; 0 is DefaultRotateEvery
	RotateGrace   time.Duration    // how long the previous sealing key still opens cases; 0 is DefaultRotateGrace
	Guarding      Guarding         // what the input guards may cost, and what a package without them means
	ModelServer   ModelServer      // computes the answers; without a URL the engine in this process does
	Build         string           // version of the binary; "" is what the Go tool recorded
	Clock         func() time.Time // nil is time.Now
	Logger        *slog.Logger     // nil is slog.Default()
}

// The defaults of Options.
const (
	DefaultTimeout       = 60 * time.Second
	DefaultExplainBudget = 5 * time.Second
	DefaultCertifyBudget = 10 * time.Second
	DefaultRotateEvery   = 12 * time.Hour
	DefaultRotateGrace   = 1 * time.Hour
)

// crowded says whether cases may want more threads at once than there are
// processors.
func (o Options) crowded() bool { return o.Threads*o.MaxConcurrent > runtime.NumCPU() }

func (o Options) withDefaults() (Options, error) {
	if o.Threads < 0 || o.Timeout < 0 || o.ExplainBudget < 0 || o.CertifyBudget < 0 || o.MaxConcurrent < 0 || o.RotateEvery < 0 || o.RotateGrace < 0 {
		return o, errors.New("enclave: reading the options: no number or duration may be negative")
	}
	if o.Threads == 0 {
		o.Threads = min(2, runtime.NumCPU())
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.ExplainBudget == 0 {
		o.ExplainBudget = min(DefaultExplainBudget, o.Timeout/2)
	}
	if o.ExplainBudget >= o.Timeout {
		return o, fmt.Errorf("enclave: reading the options: %s for the map of a case leave nothing of its %s", o.ExplainBudget, o.Timeout)
	}
	if o.CertifyBudget == 0 {
		o.CertifyBudget = min(DefaultCertifyBudget, o.Timeout/2)
	}
	if o.CertifyBudget >= o.Timeout {
		return o, fmt.Errorf("enclave: reading the options: %s for the certificate of a case leave nothing of its %s", o.CertifyBudget, o.Timeout)
	}
	if o.MaxConcurrent == 0 {
		o.MaxConcurrent = max(1, runtime.NumCPU()/o.Threads)
	}
	if o.RotateEvery == 0 {
		o.RotateEvery = DefaultRotateEvery
	}
	if o.RotateGrace == 0 {
		o.RotateGrace = min(DefaultRotateGrace, o.RotateEvery)
	}
	if o.RotateGrace > o.RotateEvery {
		return o, fmt.Errorf("enclave: reading the options: the grace of a key, %s, is longer than its life, %s", o.RotateGrace, o.RotateEvery)
	}
	if o.Build == "" {
		o.Build = recordedBuild()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o, nil
}

// recordedBuild names the build by the module version or the commit that the
// Go tool recorded.
func recordedBuild() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := info.Main.Version
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && (version == "" || version == "(devel)") {
			version = setting.Value
		}
	}
	if version == "" {
		return "unknown"
	}
	return version
}

// analyst reads the inside of a case. It never fails: what it cannot do is a
// referral in the finding. It must respect the context where it can; it may
// panic.
type analyst interface {
	// describe names the model and the settings that can change an answer.
	describe() description
	// analyse fills the finding's Instance, Predictions, Guards, Explanation,
	// Certificate, Referrals and Stages.
	analyse(ctx context.Context, patient vigie.PatientPseudonym, dicom []byte) vigie.Finding
	// ready tells whether it could analyse now.
	ready(ctx context.Context) error
	close() error
}

// description is what an analyst says of itself.
type description struct {
	model    vigie.ModelDigest
	name     string
	version  string
	settings any // encodes to JSON; goes into the configuration digest
}

// Worker is an enclave in this process. It is safe for concurrent use.
type Worker struct {
	analyst       analyst
	about         description
	provider      attest.Provider
	keys          *keyRing
	configuration vigie.Digest
	options       Options
	observe       *metrics

	slots    chan struct{} // holds one token for each case being read, late ones included
	late     atomic.Int64  // cases past their timeout that still run
	closing  chan struct{}
	once     sync.Once
	closeErr error
}

var _ Enclave = (*Worker)(nil)

func newWorker(analyst analyst, provider attest.Provider, options Options) (*Worker, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	about := analyst.describe()
	configuration, err := json.Marshal(struct {
		Protocol int    `json:"protocol"`
		Threads  int    `json:"threads"`
		Timeout  string `json:"timeout"`
		Settings any    `json:"settings"`
	}{1, options.Threads, options.Timeout.String(), about.settings})
	if err != nil {
		return nil, fmt.Errorf("enclave: encoding the configuration: %w", err)
	}
	digest := vigie.DigestOf(configuration)
	keys, err := newKeyRing(provider.Name(), about.model, digest, options.Build, options)
	if err != nil {
		return nil, err
	}
	w := &Worker{
		analyst: analyst, about: about, provider: provider, keys: keys, configuration: digest, options: options,
		observe: newMetrics(about, options),
		slots:   make(chan struct{}, options.MaxConcurrent), closing: make(chan struct{}),
	}
	keys.turned = w.observe.rotations.Inc
	options.Logger.Info("enclave ready", "model", about.name, "version", about.version, "digest", about.model,
		"configuration", string(configuration), "provider", provider.Name(), "build", options.Build,
		"concurrent", options.MaxConcurrent)
	return w, nil
}

// Configuration returns the digest of the effective configuration.
func (w *Worker) Configuration() vigie.Digest { return w.configuration }

// Evidence returns evidence for the newest key, made for the nonce.
func (w *Worker) Evidence(ctx context.Context, nonce []byte) (attest.Evidence, error) {
	key, err := w.keys.newest()
	if err != nil {
		return attest.Evidence{}, err
	}
	return attest.Collect(ctx, w.provider, key.claims, nonce)
}

// Diagnose opens a sealed case, reads it and returns the sealed finding. It
// waits while MaxConcurrent cases are being read.
func (w *Worker) Diagnose(ctx context.Context, sealed []byte) ([]byte, error) {
	release, err := w.acquire(ctx)
	if err != nil {
		return nil, err
	}
	return w.diagnose(ctx, sealed, release)
}

// acquire waits for the right to read one case. The caller hands release to
// diagnose, or calls it.
func (w *Worker) acquire(ctx context.Context) (release func(), err error) {
	select {
	case <-w.closing:
		return nil, fmt.Errorf("enclave: starting a case: %w: shutting down", ErrUnavailable)
	default:
	}
	select {
	case w.slots <- struct{}{}:
		w.observe.running.Inc()
		return func() {
			w.observe.running.Dec()
			<-w.slots
		}, nil
	case <-w.closing:
		return nil, fmt.Errorf("enclave: starting a case: %w: shutting down", ErrUnavailable)
	case <-ctx.Done():
		return nil, fmt.Errorf("enclave: waiting to start a case: %w: %w", ErrUnavailable, ctx.Err())
	}
}

// diagnose is Diagnose once a slot is held. It calls release when the last
// goroutine of the case has ended, which may be after it returned.
func (w *Worker) diagnose(ctx context.Context, sealed []byte, release func()) ([]byte, error) {
	key, content, secret, err := w.open(sealed)
	if err != nil {
		release()
		w.observe.cases.WithLabelValues("refused").Inc()
		return nil, err
	}
	replyKey, err := suiteKEM.NewPublicKey(content.replyKey)
	if err != nil {
		release()
		w.observe.cases.WithLabelValues("refused").Inc()
		return nil, fmt.Errorf("enclave: opening case %s: %w: its reply key: %w", content.id, ErrSealed, err)
	}
	finding, err := w.read(ctx, content, release)
	if err != nil {
		w.observe.cases.WithLabelValues("abandoned").Inc()
		return nil, err
	}
	payload, err := encodeFinding(finding)
	if err != nil {
		w.options.Logger.Error("the analyst contradicts itself", "case", content.id, "error", err)
		finding.Predictions, finding.Guards, finding.Explanation, finding.Certificate = nil, nil, nil, nil
		finding.Referrals = []vigie.Reason{reasonInternal(err)}
		if payload, err = encodeFinding(finding); err != nil {
			return nil, fmt.Errorf("enclave: encoding the finding of case %s: %w", content.id, err)
		}
	}
	w.observe.finding(finding)
	signed, err := sign(w.keys.signing, payload)
	if err != nil {
		return nil, err
	}
	return sealFinding(replyKey, key.identity, secret, signed)
}

func (w *Worker) open(sealed []byte) (*enclaveKey, sealedCase, requestSecret, error) {
	if len(sealed) > MaxSealed {
		return nil, sealedCase{}, nil, fmt.Errorf("enclave: opening a case of %d bytes: %w", len(sealed), ErrTooLarge)
	}
	aad, h, enc, ciphertext, err := splitSealed(sealed)
	if err != nil {
		return nil, sealedCase{}, nil, err
	}
	key, err := w.keys.named(h.identity)
	if err != nil {
		return nil, sealedCase{}, nil, err
	}
	content, secret, err := openCase(key.private, aad, h, enc, ciphertext)
	return key, content, secret, err
}

// read lets the analyst work within the timeout and outside this goroutine, so
// that a panic or a decoder that does not return costs one case.
func (w *Worker) read(ctx context.Context, content sealedCase, release func()) (vigie.Finding, error) {
	limited, cancel := context.WithTimeout(ctx, w.options.Timeout)
	done := make(chan vigie.Finding, 1)
	var overdue atomic.Bool
	start := w.options.Clock()
	input := vigie.DigestOf(content.dicom)
	go func() {
		defer release()
		defer cancel()
		defer clear(content.dicom) // an image must not wait in memory for the collector
		finding := w.contain(limited, content)
		if !overdue.CompareAndSwap(false, true) { // read gave up on it before
			w.late.Add(-1)
		}
		done <- finding
	}()

	var finding vigie.Finding
	select {
	case finding = <-done:
	case <-limited.Done():
		if !overdue.CompareAndSwap(false, true) { // it finished at this very moment
			finding = <-done
		} else {
			w.late.Add(1)
			finding = referral(reasonTimeout(w.options.Timeout))
			finding.Stages = []vigie.Stage{{Name: "abandoned", Duration: w.options.Clock().Sub(start)}}
		}
	}
	if err := ctx.Err(); err != nil { // nobody waits for the answer any more
		return vigie.Finding{}, fmt.Errorf("enclave: reading case %s: %w", content.id, err)
	}
	finding.Case = content.id
	finding.Model = w.about.model
	finding.ModelName = w.about.name
	finding.ModelVersion = w.about.version
	finding.Input = input
	finding.Configuration = w.configuration
	finding.Time = w.options.Clock().UTC()
	return finding, nil
}

// encodeFinding writes the bytes to sign, if a client would accept them.
func encodeFinding(finding vigie.Finding) ([]byte, error) {
	if err := checkFinding(finding); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(finding)
	if err != nil {
		return nil, err
	}
	if len(payload) > MaxFinding {
		return nil, fmt.Errorf("the finding has %d bytes, at most %d are allowed", len(payload), MaxFinding)
	}
	return payload, nil
}

// contain runs the analyst and turns a panic into a referral. The panic's value
// may quote the input, so only its type is kept.
func (w *Worker) contain(ctx context.Context, content sealedCase) (finding vigie.Finding) {
	defer func() {
		if cause := recover(); cause != nil {
			w.observe.panics.Inc()
			w.options.Logger.Error("a panic was contained", "case", content.id, "type", fmt.Sprintf("%T", cause), "stack", string(debug.Stack()))
			finding = referral(reasonPanic())
		}
	}()
	return w.analyst.analyse(ctx, content.patient, content.dicom)
}

// referral is a finding without an answer.
func referral(reasons ...vigie.Reason) vigie.Finding {
	return vigie.Finding{Referrals: reasons, Stages: []vigie.Stage{}}
}

// Ready returns an error that wraps ErrUnavailable when no case can be read:
// the worker is closing, its model server is away, or every slot is held by a
// case that is past its timeout, in which case only a restart helps.
func (w *Worker) Ready(ctx context.Context) error {
	select {
	case <-w.closing:
		return fmt.Errorf("%w: shutting down", ErrUnavailable)
	default:
	}
	if w.stuck() {
		return fmt.Errorf("%w: every slot is held by a case past its timeout", ErrUnavailable)
	}
	if _, err := w.keys.newest(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return w.analyst.ready(ctx)
}

func (w *Worker) stuck() bool { return w.late.Load() >= int64(w.options.MaxConcurrent) }

// Close refuses new cases, waits for those being read (at most until ctx ends)
// and frees the engine. Only the first call has an effect.
func (w *Worker) Close(ctx context.Context) error {
	w.once.Do(func() {
		close(w.closing)
		for range w.options.MaxConcurrent {
			select {
			case w.slots <- struct{}{}: // nobody gives this one back
			case <-ctx.Done():
				w.closeErr = fmt.Errorf("enclave: closing: cases are still being read: %w", ctx.Err())
				return
			}
		}
		w.closeErr = w.analyst.close()
	})
	return w.closeErr
}
