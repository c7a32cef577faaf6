package enclave

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

// outputVerifiers is the name under which findings say that the verifiers failed.
const outputVerifiers = "output-verifiers"

// verifiers are what was fitted to a package to look at its answers: see package
// guard. Nil has nothing to say.
type verifiers struct {
	fitted     *guard.Verifiers
	second     *guard.Second // of views; nil: nothing is asked again
	session    engine.Session
	input      string
	activation string
	budget     time.Duration
}

// newVerifiers opens the verifiers of a package: nil if it has none. Ones that
// cannot be read or belong to another model are an error, and so is a manifest
// that asks for disagreement that nobody fitted: a worker must not start with less
// than its package promises.
func newVerifiers(pkg *model.Package, options Options) (*verifiers, error) {
	asks := pkg.Manifest.Disagreement.Asks()
	data, subject, err := pkg.Verifiers()
	if errors.Is(err, model.ErrNoVerifiers) {
		if asks {
			return nil, fmt.Errorf("enclave: the manifest asks for disagreement: %w", err)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v := &verifiers{input: pkg.Manifest.Input.Name, activation: pkg.Manifest.Output.Activation, budget: options.Guarding.Budget}
	if v.budget <= 0 {
		v.budget = DefaultGuardBudget
	}
	if v.fitted, err = guard.ParseVerifiers(data); err != nil {
		return nil, err
	}
	var labels []string
	for _, l := range pkg.Manifest.Output.Labels {
		labels = append(labels, l.Name)
	}
	if err := v.fitted.Fits(subject, labels); err != nil {
		return nil, err
	}
	switch a := v.fitted.Apart; {
	case a == nil && asks:
		return nil, fmt.Errorf("enclave: the manifest asks for disagreement, but %s was fitted without: fit again with vigie model fit", model.VerifiersFile)
	case a == nil:
	case a.By == guard.Views:
		if v.second, err = guard.OpenSecond(pkg.Graph, a, options.Threads); err != nil {
			return nil, err
		}
	case options.ModelServer.URL != "":
		// A model server gives the answer and not the members'.
		graph, err := v.extend(pkg.Graph, pkg.Manifest.Output.Name)
		if err == nil {
			v.session, err = engine.Open(graph, engine.Options{Threads: options.Threads, Outputs: a.Members})
		}
		if err != nil {
			return nil, err
		}
	}
	return v, nil
}

// members are the tensors of an ensemble's members, where they are compared.
func (v *verifiers) members() []string {
	if v == nil || v.fitted.Apart == nil {
		return nil
	}
	return v.fitted.Apart.Members
}

// extend lets a graph give the members' answers with its own.
func (v *verifiers) extend(graph *onnx.Model, output string) (*onnx.Model, error) {
	if len(v.members()) == 0 {
		return graph, nil
	}
	return guard.WithOutputs(graph, output, v.members())
}

// describe goes into the configuration digest.
func (v *verifiers) describe(settings map[string]any) {
	if settings["output_verifiers"] = "none"; v != nil {
		settings["output_verifiers"] = "fitted"
	}
}

func (v *verifiers) close() error {
	if v == nil {
		return nil
	}
	err := v.second.Close()
	if v.session != nil {
		err = errors.Join(err, v.session.Close())
	}
	return err
}

// add says in a finding what the verifiers say of its predictions. Whatever goes
// wrong is a reason for a person to read the case.
func (v *verifiers) add(ctx context.Context, input engine.Tensor, output []float32, members [][]float32, finding *vigie.Finding) {
	if v == nil || len(finding.Predictions) == 0 {
		return
	}
	judged, err := v.judge(ctx, input, output, members, finding.Predictions)
	if err != nil {
		why := reasonVerifiersFailed(err)
		finding.Guards = append(finding.Guards, vigie.GuardResult{Guard: outputVerifiers, PValue: ruleBroken, Alarm: true, Reason: &why})
		finding.Referrals = append(finding.Referrals, why)
		return
	}
	finding.Sets = judged.Sets
	finding.Guards = append(finding.Guards, judged.Results...)
	finding.Referrals = append(finding.Referrals, judged.Reasons...)
}

func (v *verifiers) judge(ctx context.Context, input engine.Tensor, output []float32, members [][]float32, predictions []vigie.Prediction) (judged *guard.Judged, err error) {
	defer func() {
		if cause := recover(); cause != nil { // the value may quote the input
			judged, err = nil, fmt.Errorf("contained panic (%T)", cause)
		}
	}()
	apart := math.NaN()
	if v.fitted.Asks(predictions) {
		limited, cancel := context.WithTimeout(ctx, v.budget)
		defer cancel()
		if apart, err = v.apart(limited, input, output, members); err != nil {
			return nil, err
		}
	}
	return v.fitted.Judge(predictions, apart)
}

// apart measures how far apart several answers about one image are.
func (v *verifiers) apart(ctx context.Context, input engine.Tensor, output []float32, members [][]float32) (float64, error) {
	if v.second != nil {
		return v.second.Ask(ctx, input, output)
	}
	names := v.members()
	if members == nil && v.session != nil {
		outputs, err := v.session.Run(ctx, map[string]engine.Tensor{v.input: input}, names...)
		if err != nil {
			return 0, err
		}
		for _, name := range names {
			values, err := engine.Values[float32](outputs[name])
			if err != nil {
				return 0, err
			}
			members = append(members, values)
		}
	}
	if len(members) != len(names) {
		return 0, errors.New("the members' answers are missing")
	}
	others := make([][]float64, len(members))
	for i, m := range members {
		for _, x := range m {
			others[i] = append(others[i], float64(x))
		}
	}
	return guard.Spread(v.activation, output, others)
}

// reasonVerifiersFailed names the kind of failure only: an engine's message may
// quote what it was given.
func reasonVerifiersFailed(err error) vigie.Reason {
	detail := "failed"
	if errors.Is(err, context.DeadlineExceeded) {
		detail = "out of time"
	}
	return reason(vigie.ReasonGuard, outputVerifiers+": "+detail,
		"The checks of the answer could not be completed, so nobody vouches for it.",
		"Les contrôles de la réponse n’ont pas pu être achevés ; rien ne garantit donc celle-ci.")
}
