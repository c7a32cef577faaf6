package enclave

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/model"
)

// Guarding says what the fitted input guards of a package may cost, and what a
// package without them means.
type Guarding struct {
	// Missing is what happens to the cases of a package to which no guards were
	// fitted: GuardsAccept or GuardsReview; "" is GuardsAccept. Either way every
	// finding says so.
	Missing string
	// Budget is how long the guards may take over one case, after which it goes
	// to a person; 0 is DefaultGuardBudget.
	Budget time.Duration
	// Remember is how many images the worker remembers fingerprints of, to notice
	// near copies under another patient. 0 is none: then no case leaves anything
	// behind. The memory is that of this process only.
	Remember int
}

// The values of Guarding.Missing.
const (
	GuardsAccept = "accept" // answers count, and findings say that nobody guarded them
	GuardsReview = "review" // every case goes to a person
)

// DefaultGuardBudget is long: guards that need it are broken.
const DefaultGuardBudget = 10 * time.Second

// inputGuards is the name under which findings say that the guards are missing
// or failed.
const inputGuards = "input-guards"

// judge is what the pipeline needs of package guard; tests put others here.
type judge interface {
	Run(ctx context.Context, input engine.Tensor) (*guard.Look, error)
	Judge(ctx context.Context, look *guard.Look) ([]vigie.GuardResult, error)
	Seen(memory guard.Memory, patient vigie.PatientPseudonym, look *guard.Look) (vigie.GuardResult, error)
	Close() error
}

// fitted is the guards of a package, or their absence.
type fitted struct {
	judge  judge // nil: the package has none
	policy Guarding
	memory guard.Memory // nil: nothing is remembered
}

// newFitted opens the guards of a package. Statistics that cannot be read, or
// belong to another model, are an error: a worker must not start with less than
// its package promises. members are tensors that a look is to hold as well.
func newFitted(pkg *model.Package, options Options, members ...string) (*fitted, error) {
	f := &fitted{policy: options.Guarding}
	if f.policy.Missing == "" {
		f.policy.Missing = GuardsAccept
	}
	if f.policy.Budget == 0 {
		f.policy.Budget = DefaultGuardBudget
	}
	if f.policy.Missing != GuardsAccept && f.policy.Missing != GuardsReview {
		return nil, fmt.Errorf("enclave: reading the options: missing guards are %q: want %s or %s", f.policy.Missing, GuardsAccept, GuardsReview)
	}
	if f.policy.Budget < 0 || f.policy.Remember < 0 || f.policy.Remember > 1<<20 {
		return nil, fmt.Errorf("enclave: reading the options: %s for the guards and a memory of %d images: want no negative values and at most %d images", f.policy.Budget, f.policy.Remember, 1<<20)
	}
	data, subject, err := pkg.Guards()
	if errors.Is(err, model.ErrNoGuards) {
		logger := options.Logger
		if logger == nil {
			logger = slog.Default()
		}
		logger.Warn("this model has no fitted input guards: unusual or manipulated images are not noticed; fit them with vigie model fit",
			"model", pkg.Manifest.Name, "digest", pkg.Digest, "cases", f.policy.Missing)
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	statistics, err := guard.Parse(data)
	if err != nil {
		return nil, err
	}
	if f.judge, err = guard.Open(pkg.Graph, statistics, guard.Options{Subject: subject, Threads: options.Threads, Also: members}); err != nil {
		return nil, err
	}
	if f.policy.Remember > 0 {
		f.memory = guard.NewRecent(f.policy.Remember)
	}
	return f, nil
}

// describe goes into the configuration digest.
func (f *fitted) describe(settings map[string]any) {
	settings["input_guards"] = "fitted"
	if f.judge == nil {
		settings["input_guards"] = "missing: " + f.policy.Missing
	}
	settings["guard_budget"], settings["guard_memory"] = f.policy.Budget.String(), f.policy.Remember
}

func (f *fitted) close() error {
	if f == nil || f.judge == nil {
		return nil
	}
	return f.judge.Close()
}

// look runs the model with its guards: one run gives the answer and what the
// guards need. A nil look without an error says that there are no guards.
func (f *fitted) look(ctx context.Context, input engine.Tensor) (look *guard.Look, err error) {
	if f.judge == nil {
		return nil, nil
	}
	defer func() {
		if cause := recover(); cause != nil { // the value may quote the input
			look, err = nil, fmt.Errorf("contained panic (%T)", cause)
		}
	}()
	return f.judge.Run(ctx, input)
}

// verdict adds to a finding what the guards say of a look. failure is why there
// is no look. Whatever goes wrong is a reason for a person to read the case.
func (f *fitted) verdict(ctx context.Context, patient vigie.PatientPseudonym, look *guard.Look, failure error, finding *vigie.Finding) {
	if f.judge == nil {
		why := reasonUnguarded()
		result := vigie.GuardResult{Guard: inputGuards, PValue: ruleHolds, Reason: &why}
		if f.policy.Missing == GuardsReview {
			result.PValue, result.Alarm = ruleBroken, true
			finding.Referrals = append(finding.Referrals, why)
		}
		finding.Guards = append(finding.Guards, result)
		return
	}
	var results []vigie.GuardResult
	if failure == nil {
		results, failure = f.ask(ctx, patient, look)
	}
	if failure != nil {
		why := reasonGuardFailed(failure)
		results = []vigie.GuardResult{{Guard: inputGuards, PValue: ruleBroken, Alarm: true, Reason: &why}}
	}
	for _, r := range results {
		if r.Alarm && r.Reason != nil {
			finding.Referrals = append(finding.Referrals, *r.Reason)
		}
	}
	finding.Guards = append(finding.Guards, results...)
}

var errGuardBudget = errors.New("out of time")

// ask lets the guards work within their budget and outside this goroutine, so
// that one that does not return costs one case, and its answer is still read by
// a person.
func (f *fitted) ask(ctx context.Context, patient vigie.PatientPseudonym, look *guard.Look) ([]vigie.GuardResult, error) {
	type outcome struct {
		results []vigie.GuardResult
		err     error
	}
	limited, cancel := context.WithTimeout(ctx, f.policy.Budget)
	done := make(chan outcome, 1)
	go func() {
		defer cancel()
		var o outcome
		defer func() {
			if cause := recover(); cause != nil {
				o = outcome{err: fmt.Errorf("contained panic (%T)", cause)}
			}
			done <- o
		}()
		if o.results, o.err = f.judge.Judge(limited, look); o.err != nil || f.memory == nil {
			return
		}
		var seen vigie.GuardResult
		if seen, o.err = f.judge.Seen(f.memory, patient, look); o.err == nil {
			o.results = append(o.results, seen)
		}
	}()
	select {
	case o := <-done:
		if o.err == nil && len(o.results) == 0 {
			o.err = errors.New("no guard said anything")
		}
		return o.results, o.err
	case <-limited.Done():
		select {
		case o := <-done: // it ended at this very moment
			if o.err == nil && len(o.results) > 0 {
				return o.results, nil
			}
		default:
		}
		return nil, errGuardBudget
	}
}

func reasonUnguarded() vigie.Reason {
	return reason(vigie.ReasonGuard, inputGuards+": none were fitted to this model",
		"Nobody checked whether this image is of a kind that the model knows: it has no input guards.",
		"Rien n’a vérifié que cette image est d’un type connu du modèle : il n’a pas de contrôles d’entrée.")
}

// reasonGuardFailed names the kind of failure only: an engine's message may
// quote what it was given.
func reasonGuardFailed(err error) vigie.Reason {
	detail := "failed"
	if errors.Is(err, errGuardBudget) || errors.Is(err, context.DeadlineExceeded) {
		detail = "out of time"
	}
	return reason(vigie.ReasonGuard, inputGuards+": "+detail,
		"The checks of the image could not be completed, so nobody vouches for it.",
		"Les contrôles de l’image n’ont pas pu être achevés ; rien ne garantit donc celle-ci.")
}
