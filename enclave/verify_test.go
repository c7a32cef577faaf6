package enclave

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/guard/job"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// asking adds a wish for disagreement to a package's manifest.
func asking(t testing.TB, pkg *model.Package, section string) *model.Package {
	t.Helper()
	path := filepath.Join(pkg.Dir, model.ManifestFile)
	manifest, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, append(manifest, []byte("\n"+section+"\n")...), 0o644)
	}
	if err == nil {
		_, err = model.Seal(pkg.Dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return reopened(t, pkg)
}

func reopened(t testing.TB, pkg *model.Package) *model.Package {
	t.Helper()
	opened, err := model.Open(pkg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

// ensemble turns a package into one of two members, whose biases differ by apart.
func ensemble(t testing.TB, pkg *model.Package, apart float32) *model.Package {
	t.Helper()
	m := pkg.Graph.Clone()
	output := m.Graph.Outputs[0]
	m.Graph.Outputs = nil
	at := slices.IndexFunc(m.Graph.Nodes, func(n *onnx.Node) bool { return slices.Contains(n.Outputs, "logits") })
	m.Graph.Nodes[at].Name, m.Graph.Nodes[at].Outputs = "one", []string{"one"}
	b := onnx.Extend(m)
	b.Node(&onnx.Node{OpType: "Add", Inputs: []string{"one", b.Weight("apart", []int64{2}, []float32{apart, -apart})}, Outputs: []string{"other"}}, 1)
	b.Node(&onnx.Node{OpType: "Mean", Inputs: []string{"one", "other"}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, output.Shape...)
	joined, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	data, err := joined.Marshal()
	if err == nil {
		err = os.WriteFile(filepath.Join(pkg.Dir, model.GraphFile), data, 0o644)
	}
	if err == nil {
		_, err = model.Seal(pkg.Dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return reopened(t, pkg)
}

// verifierCases are flat images of which the brighter ones mostly have pneumonia.
func verifierCases(t testing.TB, pkg *model.Package, score func(input engine.Tensor, a guard.Answered) float64) []guard.Held {
	t.Helper()
	network, err := job.Network(pkg)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 1))
	var images [][]float32
	var truth [][]bool
	for range 200 {
		level := rng.Float32()
		l := &dicom.Luminance{Rows: 28, Columns: 28, Values: slices.Repeat([]float32{level}, 28*28)}
		input, err := pkg.Manifest.Prepare(l)
		if err != nil {
			t.Fatal(err)
		}
		values, err := engine.Values[float32](input)
		if err != nil {
			t.Fatal(err)
		}
		present := level+0.3*(rng.Float32()-0.5) > 0.5
		images, truth = append(images, values), append(truth, []bool{!present, present})
	}
	answers, err := guard.Answers(context.Background(), network, images, 1, guard.MembersOf(pkg.Graph, "logits")...)
	if err != nil {
		t.Fatal(err)
	}
	var held []guard.Held
	for i, a := range answers {
		predictions, err := pkg.Predictions(a.Output)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, guard.Held{Predictions: predictions, Truth: truth[i], Apart: score(engine.Float32([]int64{1, 1, 28, 28}, images[i]), a)})
	}
	return held
}

// verified fits verifiers to a package, changes them and seals it with them and the
// guards it has.
func verifiedPackage(t testing.TB, pkg *model.Package, apart *guard.Apart, change func(*guard.Verifiers)) *model.Package {
	t.Helper()
	guards, subject, err := pkg.Guards()
	if err != nil && !errors.Is(err, model.ErrNoGuards) {
		t.Fatal(err)
	}
	score := func(engine.Tensor, guard.Answered) float64 { return 0 }
	if apart != nil && apart.By == guard.Views {
		second, err := guard.OpenSecond(pkg.Graph, apart, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		score = func(input engine.Tensor, a guard.Answered) float64 {
			v, err := second.Ask(context.Background(), input, a.Output)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	v, err := guard.FitVerifiers(verifierCases(t, pkg, score), nil, guard.VerifierOptions{Subject: subject, Data: "flat images", Labels: []string{"normal", "pneumonia"},
		Excluding: true, Target: "pneumonia", Apart: apart})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(v)
	}
	data, err := v.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pkg.WriteFitted(guards, data); err != nil {
		t.Fatal(err)
	}
	return reopened(t, pkg)
}

func views(t testing.TB, pkg *model.Package) *guard.Apart {
	t.Helper()
	n, err := job.Network(pkg)
	if err != nil {
		t.Fatal(err)
	}
	return &guard.Apart{By: guard.Views, Views: guard.ViewsOf(28, 28, 0, 0, false), Wiring: guard.WiringOf(n)}
}

func diagnosed(t testing.TB, pkg *model.Package) vigie.Finding {
	t.Helper()
	client := NewClient(modelWorker(t, pkg), developmentVerifier(t, pkg.Digest), ClientOptions{})
	result, err := client.Diagnose(context.Background(), chest(t, phantom.Options{}, nil))
	if err != nil {
		t.Fatal(err)
	}
	return result.Finding
}

func TestTheSignedFindingCarriesThePredictionSetAndAnUndecidedOneIsReferred(t *testing.T) {
	for name, c := range map[string]struct {
		alpha     float64
		undecided bool
	}{"nothing is ruled out": {0, true}, "much is": {0.5, false}} {
		pkg := verifiedPackage(t, brightness(t, 40, -2), nil, func(v *guard.Verifiers) { v.Sets.Alpha = c.alpha })
		f := diagnosed(t, pkg)
		if len(f.Sets) != 1 || f.Sets[0].Decided() == c.undecided || f.Sets[0].Coverage != 1-c.alpha {
			t.Errorf("%s: %+v", name, f.Sets)
		}
		if slices.Contains(codes(f), vigie.ReasonUndecided) != c.undecided || len(f.Predictions) != 2 {
			t.Errorf("%s: %v", name, codes(f))
		}
		for _, r := range f.Referrals {
			if r.Code == vigie.ReasonUndecided && (r.Text.English == "" || r.Text.French == "") {
				t.Errorf("%s: %+v", name, r)
			}
		}
	}
	plain := diagnosed(t, brightness(t, 40, -2))
	if len(plain.Sets) > 0 {
		t.Errorf("a package without verifiers: %+v", plain.Sets)
	}
}

func TestDisagreementIsMeasuredBetweenViewsAndBetweenMembers(t *testing.T) {
	t.Run("views", func(t *testing.T) {
		pkg := asking(t, brightness(t, 40, -2), "disagreement: {mode: on}")
		f := diagnosed(t, verifiedPackage(t, pkg, views(t, pkg), nil))
		if r := named(f.Guards, string(guard.Disagreement)); r == nil || !(r.PValue > 0 && r.PValue <= 1) {
			t.Errorf("%+v", f.Guards)
		}
	})
	t.Run("borderline, of an answer that is sure", func(t *testing.T) {
		pkg := asking(t, brightness(t, 40, -2), "disagreement: {mode: borderline, below: 0.51}")
		apart := views(t, pkg)
		apart.Below = 1
		f := diagnosed(t, verifiedPackage(t, pkg, apart, func(v *guard.Verifiers) { v.Apart.Below = 0.51 }))
		if r := named(f.Guards, string(guard.Disagreement)); r != nil {
			t.Errorf("%+v of %+v", r, f.Predictions)
		}
	})
	for name, prepare := range map[string]func(testing.TB, *model.Package) *model.Package{
		"members, without guards": func(_ testing.TB, p *model.Package) *model.Package { return p },
		"members, with guards":    guarded,
	} {
		t.Run(name, func(t *testing.T) {
			pkg := prepare(t, asking(t, ensemble(t, brightness(t, 40, -2), 1.5), "disagreement: {mode: on, by: members}"))
			members := guard.MembersOf(pkg.Graph, "logits")
			pkg = verifiedPackage(t, pkg, &guard.Apart{By: guard.Members, Members: members}, nil)
			f := diagnosed(t, pkg)
			r := named(f.Guards, string(guard.Disagreement))
			// Members that differ by 1.5 either way lie apart; they never did in calibration.
			if r == nil || !r.Alarm || r.Reason == nil || !slices.Contains(codes(f), vigie.ReasonUnstable) {
				t.Errorf("%+v, %v", r, codes(f))
			}
			p, err := newPipeline(pkg, Options{Logger: quiet(), Threads: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			input, err := pkg.Manifest.Prepare(&dicom.Luminance{Rows: 28, Columns: 28, Values: slices.Repeat([]float32{0.06}, 784)})
			if err != nil {
				t.Fatal(err)
			}
			output, others, _, unguarded, err := p.answer(context.Background(), input)
			if err != nil || unguarded != nil || len(others) != 2 {
				t.Fatalf("%v, %v, %v", others, unguarded, err)
			}
			for i := range output {
				if mean := (others[0][i] + others[1][i]) / 2; math.Abs(float64(mean-output[i])) > 1e-5 {
					t.Errorf("output %d is %v, the members' mean in the same run %v", i, output[i], mean)
				}
			}
		})
	}
}

func TestVerifiersThatFailSendTheCaseToAPersonWithItsAnswer(t *testing.T) {
	pkg := asking(t, brightness(t, 40, -2), "disagreement: {mode: on}")
	pkg = verifiedPackage(t, pkg, views(t, pkg), nil)
	p, err := newPipeline(pkg, Options{Logger: quiet(), Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.verify.second.Close(); err != nil {
		t.Fatal(err)
	}
	input, err := pkg.Manifest.Prepare(&dicom.Luminance{Rows: 28, Columns: 28, Values: slices.Repeat([]float32{0.3}, 784)})
	if err != nil {
		t.Fatal(err)
	}
	output, err := p.infer(context.Background(), input)
	if err != nil {
		t.Fatal(err)
	}
	predictions, err := pkg.Predictions(output)
	if err != nil {
		t.Fatal(err)
	}
	f := &vigie.Finding{Predictions: predictions}
	p.verify.add(context.Background(), input, output, nil, f)
	failed := named(f.Guards, outputVerifiers)
	if failed == nil || !failed.Alarm || len(f.Referrals) != 1 || len(f.Predictions) != 2 {
		t.Errorf("%+v", f)
	}
	// A panic is no answer either.
	p.verify.fitted = nil
	f = &vigie.Finding{Predictions: predictions}
	p.verify.add(context.Background(), input, output, nil, f)
	if failed := named(f.Guards, outputVerifiers); failed == nil || !failed.Alarm {
		t.Errorf("after a panic: %+v", f)
	}
	p.verify.fitted = &guard.Verifiers{} // for close
}

func TestAWorkerDoesNotStartWithVerifiersThatAreNotItsOwn(t *testing.T) {
	open := func(p *model.Package) error {
		w, err := New(p, attest.NewDevelopment(quiet()), Options{Logger: quiet()})
		if err == nil {
			w.Close(context.Background())
		}
		return err
	}
	one := verifiedPackage(t, brightness(t, 40, -2), nil, nil)
	data, _, err := one.Verifiers()
	if err != nil {
		t.Fatal(err)
	}
	other := brightness(t, 39, -2)
	if _, err := other.WriteFitted(nil, data); err != nil {
		t.Fatal(err)
	}
	if err := open(reopened(t, other)); !errors.Is(err, guard.ErrOtherModel) {
		t.Errorf("verifiers of another model: %v", err)
	}
	if _, err := one.WriteFitted(nil, bytes.Replace(data, []byte(`"alpha": 0`), []byte(`"alpha": 7`), 1)); err != nil {
		t.Fatal(err)
	}
	if err := open(reopened(t, one)); !errors.Is(err, guard.ErrVerifiers) {
		t.Errorf("verifiers that cannot be read: %v", err)
	}
	if err := open(asking(t, brightness(t, 40, -2), "disagreement: {mode: on}")); !errors.Is(err, model.ErrNoVerifiers) {
		t.Errorf("a manifest that asks for what nobody fitted: %v", err)
	}
	half := asking(t, brightness(t, 40, -2), "disagreement: {mode: on}")
	if err := open(verifiedPackage(t, half, nil, nil)); err == nil {
		t.Error("a manifest that asks for disagreement, with verifiers that know none")
	}
	if err := open(verifiedPackage(t, asking(t, brightness(t, 40, -2), "disagreement: {mode: off}"), nil, nil)); err != nil {
		t.Errorf("a manifest that turns it off: %v", err)
	}
}
