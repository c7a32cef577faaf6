package enclave

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/guard/job"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

// guarded fits guards to a package on noise around grey, and opens it again.
func guarded(t testing.TB, pkg *model.Package) *model.Package {
	t.Helper()
	_, subject, err := pkg.Guards()
	if !errors.Is(err, model.ErrNoGuards) {
		t.Fatalf("a package without guards: %v", err)
	}
	network, err := job.Network(pkg)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var images guard.Examples
	for range 100 {
		l := &dicom.Luminance{Rows: 28, Columns: 28, Values: make([]float32, 28*28)}
		level := 0.3 + 0.4*rng.Float32()
		for i := range l.Values {
			l.Values[i] = level + 0.1*rng.Float32()
		}
		input, err := pkg.Manifest.Prepare(l)
		if err != nil {
			t.Fatal(err)
		}
		values, err := engine.Values[float32](input)
		if err != nil {
			t.Fatal(err)
		}
		images.Images = append(images.Images, values)
	}
	statistics, _, err := guard.Fit(context.Background(), network, images, guard.FitOptions{Subject: subject, FalseAlarms: 0.1, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	data, err := statistics.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := pkg.WriteFitted(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := model.Open(pkg.Dir)
	if err != nil || opened.Digest != digest || digest == pkg.Digest {
		t.Fatalf("the package with guards: digest %s, was %s (%v)", digest, pkg.Digest, err)
	}
	if _, again, err := opened.Guards(); err != nil || again != subject {
		t.Fatalf("the guards' own file is part of what they are bound to: %s, was %s (%v)", again, subject, err)
	}
	return opened
}

func named(guards []vigie.GuardResult, name string) *vigie.GuardResult {
	for i := range guards {
		if guards[i].Guard == name {
			return &guards[i]
		}
	}
	return nil
}

func TestTheSignedFindingCarriesWhatTheGuardsSaid(t *testing.T) {
	pkg := guarded(t, brightness(t, 40, -2))
	client := NewClient(modelWorker(t, pkg), developmentVerifier(t, pkg.Digest), ClientOptions{})
	result, err := client.Diagnose(context.Background(), chest(t, phantom.Options{}, nil))
	if err != nil {
		t.Fatal(err)
	}
	f := result.Finding
	combined := named(f.Guards, string(guard.Combined))
	if combined == nil || named(f.Guards, string(guard.Layers)) == nil || named(f.Guards, string(guard.Texture)) == nil {
		t.Fatalf("the finding holds %+v", f.Guards)
	}
	// A chest among flat grey images is unusual.
	if !combined.Alarm || combined.Reason == nil || combined.Reason.Text.French == "" || !slices.Contains(codes(f), vigie.ReasonGuard) {
		t.Errorf("a chest among flat images: %+v, referrals %v", combined, codes(f))
	}
	if len(f.Predictions) != 2 {
		t.Errorf("the reader sees no answer: %v", f.Predictions)
	}
}

func TestStatisticsOfAnotherModelAreRefusedAtTheStart(t *testing.T) {
	one := guarded(t, brightness(t, 40, -2))
	data, _, err := one.Guards()
	if err != nil {
		t.Fatal(err)
	}
	other := brightness(t, 39, -2)
	if _, err := other.WriteFitted(data, nil); err != nil {
		t.Fatal(err)
	}
	opened, err := model.Open(other.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(opened, attest.NewDevelopment(quiet()), Options{Logger: quiet()}); !errors.Is(err, guard.ErrOtherModel) {
		t.Errorf("got %v", err)
	}
	// Bytes that were changed after the package was sealed are not even read.
	path := filepath.Join(one.Dir, model.GuardsFile)
	if err := os.WriteFile(path, append(data, 0), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(one, attest.NewDevelopment(quiet()), Options{Logger: quiet()}); !errors.Is(err, model.ErrDigest) {
		t.Errorf("got %v", err)
	}
}

// broken stands for guards that fail.
type broken struct {
	judge
	run func() error
	ask func(ctx context.Context) ([]vigie.GuardResult, error)
}

func (b broken) Run(ctx context.Context, input engine.Tensor) (*guard.Look, error) {
	if b.run != nil {
		if err := b.run(); err != nil {
			return nil, err
		}
	}
	return b.judge.Run(ctx, input)
}

func (b broken) Judge(ctx context.Context, look *guard.Look) ([]vigie.GuardResult, error) {
	if b.ask != nil {
		return b.ask(ctx)
	}
	return b.judge.Judge(ctx, look)
}

func TestGuardsThatFailSendTheCaseToAPersonAndNeverThrough(t *testing.T) {
	pkg := guarded(t, brightness(t, 40, -2))
	asked := chest(t, phantom.Options{}, nil)
	release := make(chan struct{})
	defer close(release)
	for name, test := range map[string]broken{
		"an error":        {ask: func(context.Context) ([]vigie.GuardResult, error) { return nil, errors.New("no") }},
		"a panic":         {ask: func(context.Context) ([]vigie.GuardResult, error) { panic("no") }},
		"nothing to say":  {ask: func(context.Context) ([]vigie.GuardResult, error) { return nil, nil }},
		"deaf and slow":   {ask: func(context.Context) ([]vigie.GuardResult, error) { <-release; return nil, nil }},
		"slow":            {ask: func(ctx context.Context) ([]vigie.GuardResult, error) { <-ctx.Done(); return nil, ctx.Err() }},
		"no run":          {run: func() error { return errors.New("no") }},
		"a panic at once": {run: func() error { panic("no") }},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := newPipeline(pkg, mustOptions(t))
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			test.judge = p.fitted.judge
			p.fitted.judge = test
			if strings.Contains(name, "slow") {
				p.fitted.policy.Budget = time.Millisecond
			}
			f := p.analyse(context.Background(), asked.Patient, asked.DICOM)
			failed := named(f.Guards, inputGuards)
			if failed == nil || !failed.Alarm || failed.Reason == nil || !(failed.PValue > 0 && failed.PValue < 1e-9) {
				t.Fatalf("got %+v", f.Guards)
			}
			if !slices.ContainsFunc(f.Referrals, func(r vigie.Reason) bool { return r.Code == vigie.ReasonGuard && r.Detail == failed.Reason.Detail }) {
				t.Errorf("referrals %v", f.Referrals)
			}
			if len(f.Predictions) != 2 {
				t.Errorf("the answer itself was lost: %+v", f)
			}
			if err := checkFinding(f); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAPackageWithoutGuardsSaysSoInEveryFinding(t *testing.T) {
	pkg := brightness(t, 40, -2)
	asked := chest(t, phantom.Options{}, nil)
	for _, missing := range []string{"", GuardsAccept, GuardsReview} {
		options := mustOptions(t)
		var log bytes.Buffer
		options.Logger = slog.New(slog.NewTextHandler(&log, nil))
		options.Guarding.Missing = missing
		p, err := newPipeline(pkg, options)
		if err != nil {
			t.Fatal(err)
		}
		f := p.analyse(context.Background(), asked.Patient, asked.DICOM)
		p.close()
		said := named(f.Guards, inputGuards)
		if said == nil || said.Reason == nil || said.Alarm != (missing == GuardsReview) {
			t.Errorf("%q: %+v", missing, f.Guards)
		}
		if slices.Contains(codes(f), vigie.ReasonGuard) != (missing == GuardsReview) {
			t.Errorf("%q: referrals %v", missing, f.Referrals)
		}
		if !strings.Contains(log.String(), "no fitted input guards") {
			t.Errorf("%q: the log says %q", missing, log.String())
		}
	}
	options := mustOptions(t)
	options.Guarding.Missing = "ignore"
	if _, err := newPipeline(pkg, options); err == nil {
		t.Error("an unknown policy was taken")
	}
}

func TestAnImageUnderTwoPatientsIsNoticedWhereFingerprintsAreKept(t *testing.T) {
	options := mustOptions(t)
	options.Guarding.Remember = 8
	p, err := newPipeline(guarded(t, brightness(t, 40, -2)), options)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	asked := chest(t, phantom.Options{}, nil)
	first := p.analyse(context.Background(), asked.Patient, asked.DICOM)
	if r := named(first.Guards, string(guard.Replay)); r == nil || r.Alarm {
		t.Errorf("the first image: %+v", first.Guards)
	}
	other := chest(t, phantom.Options{}, func(f *dicom.File) {
		f.DataSet.PutString(dicom.PatientID, "VP-OTHER")
		f.DataSet.PutString(dicom.PatientName, "VP-OTHER")
	})
	second := p.analyse(context.Background(), "VP-OTHER", other.DICOM)
	if r := named(second.Guards, string(guard.Replay)); r == nil || !r.Alarm {
		t.Errorf("the same image under another patient: %+v, %v", second.Guards, second.Referrals)
	}
}
