package enclave

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
)

// The stages of a case, as findings and metrics name them.
const (
	stageDecode   = "decode"
	stageGuardIn  = "guard-in"
	stageInfer    = "infer"
	stageCertify  = "certify"
	stageExplain  = "explain"
	stageGuardOut = "guard-out"
)

// New makes a worker that reads cases with a model package. It runs the model
// once before it returns, so that a worker that exists can work. The package's
// digest becomes part of the evidence.
func New(pkg *model.Package, provider attest.Provider, options Options) (*Worker, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	p, err := newPipeline(pkg, options)
	if err != nil {
		return nil, fmt.Errorf("enclave: loading model %s %s: %w", pkg.Manifest.Name, pkg.Manifest.Version, err)
	}
	w, err := newWorker(p, provider, options)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return w, nil
}

// pipeline is the analyst that runs a model package.
type pipeline struct {
	pkg     *model.Package
	session engine.Session // the package's own graph: its answer is the one reported
	server  *served        // the session, where a model server computes it; nil in process
	fitted  *fitted        // input guards, or their absence
	verify  *verifiers     // of the answer; nil: none were fitted
	prover  *prover        // nil: the manifest wants no certificate
	maps    *mapper        // nil: the manifest wants no map
	timeout time.Duration
	now     func() time.Time
}

var _ analyst = (*pipeline)(nil)

func newPipeline(pkg *model.Package, options Options) (*pipeline, error) {
	p := &pipeline{pkg: pkg, timeout: options.Timeout, now: options.Clock}
	var err error
	graph := pkg.Graph
	if p.verify, err = newVerifiers(pkg, options); err == nil {
		graph, err = p.verify.extend(graph, pkg.Manifest.Output.Name)
	}
	if err != nil {
		return nil, errors.Join(err, p.verify.close())
	}
	if options.ModelServer.URL != "" {
		if p.server, err = openServed(pkg, options.ModelServer); err != nil {
			return nil, errors.Join(err, p.verify.close())
		}
		p.session = p.server
	} else if p.session, err = engine.Open(graph, engine.Options{Threads: options.Threads, Yield: options.crowded()}); err != nil {
		return nil, errors.Join(err, p.verify.close())
	}
	if p.fitted, err = newFitted(pkg, options, p.verify.members()...); err != nil {
		return nil, errors.Join(err, p.close())
	}
	if p.server != nil {
		if err := p.compare(options.Threads); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	if err := p.warmUp(options); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// warmUp runs the model on a blank image, chooses how its answers are explained,
// and explains this one.
func (p *pipeline) warmUp(options Options) error {
	in := p.pkg.Manifest.Input
	blank := &dicom.Luminance{Rows: in.Rows, Columns: in.Columns, Values: make([]float32, in.Rows*in.Columns)}
	input, err := p.pkg.Manifest.Prepare(blank)
	if err != nil {
		return err
	}
	output, err := p.infer(context.Background(), input)
	if err != nil {
		return err
	}
	if _, err := p.pkg.Predictions(output); err != nil {
		return fmt.Errorf("its answer on a blank image: %w", err)
	}
	if p.prover, err = newProver(p.pkg, options); err != nil {
		return err
	}
	if p.maps, err = newMapper(p.pkg, options); err != nil || p.maps == nil {
		return err
	}
	return p.maps.warmUp(context.Background(), input, options.Logger)
}

// describe puts into the configuration digest what this build adds to the
// package: the rules that decide whether its answer counts.
func (p *pipeline) describe() description {
	runs := 0.0
	if p.server != nil {
		runs = 1
	}
	settings := map[string]any{
		"max_object": float64(decodeLimits.Total), "max_frame": float64(decodeLimits.Frame),
		"min_spread": minSpread, "min_levels": minLevels, "max_modal": maxModal, "max_extreme": maxExtreme,
		"model_server": runs, "min_correlation": minCorrelation, "max_aspect": maxAspect, "max_disagreement": maxDisagreement,
	}
	if p.maps != nil {
		settings["explanation"], settings["explain_budget"] = p.maps.method(), p.maps.budget.String()
	}
	if p.prover != nil {
		settings["certificate"], settings["certificate_budget"] = p.pkg.Manifest.Certificate.String(), p.prover.budget.String()
	}
	p.fitted.describe(settings)
	p.verify.describe(settings)
	return description{model: p.pkg.Digest, name: p.pkg.Manifest.Name, version: p.pkg.Manifest.Version, settings: settings}
}

func (p *pipeline) ready(ctx context.Context) error {
	if p.server == nil {
		return nil
	}
	return p.server.ready(ctx)
}

func (p *pipeline) close() error {
	var err error
	if p.maps != nil {
		err = p.maps.close()
	}
	return errors.Join(err, p.prover.close(), p.verify.close(), p.fitted.close(), p.session.Close())
}

// analyse takes one case down the line. Each step adds to the finding what it
// found; the first that cannot go on ends it.
func (p *pipeline) analyse(ctx context.Context, patient vigie.PatientPseudonym, file []byte) vigie.Finding {
	watch := newStopwatch(p.now)
	finding := &vigie.Finding{}
	p.read(ctx, patient, file, finding, watch)
	finding.Stages = watch.stages
	return *finding
}

func (p *pipeline) read(ctx context.Context, patient vigie.PatientPseudonym, file []byte, finding *vigie.Finding, watch *stopwatch) {
	parsed, reasons := parse(patient, file)
	watch.lap(stageDecode)
	if finding.Referrals = append(finding.Referrals, reasons...); len(reasons) > 0 {
		return
	}
	finding.Instance = vigie.InstanceUID(parsed.DataSet.UID(dicom.SOPInstanceUID))

	// What the attributes rule out is not decoded at all.
	reasons = p.pkg.Manifest.Check(parsed.DataSet)
	made, unusual := p.pkg.Manifest.Technique(parsed.DataSet)
	finding.Guards, reasons = append(finding.Guards, made...), append(reasons, unusual...)
	finding.Referrals = append(finding.Referrals, reasons...)
	watch.lap(stageGuardIn)
	for _, r := range reasons {
		if model.Blocking(r) {
			return
		}
	}
	image, reasons := decode(parsed)
	watch.lap(stageDecode)
	if finding.Referrals = append(finding.Referrals, reasons...); len(reasons) > 0 {
		return
	}
	in := p.pkg.Manifest.Input
	rules, reasons := guardImage(factsOf(image), in.Rows, in.Columns)
	finding.Guards = append(finding.Guards, rules...)
	watch.lap(stageGuardIn)
	if finding.Referrals = append(finding.Referrals, reasons...); len(reasons) > 0 {
		return
	}

	// An image that is mostly cropped away is analysed all the same: what was
	// seen may help the person who reads the rest.
	if unseen := unseenShare(in.Window(image.Rows, image.Columns), image.Rows, image.Columns); unseen > maxUnseen {
		finding.Referrals = append(finding.Referrals, reasonUnseen(unseen))
	}

	input, err := p.pkg.Manifest.Prepare(image)
	if err != nil {
		watch.lap(stageInfer)
		finding.Referrals = append(finding.Referrals, reasonPixels(err.Error()))
		return
	}
	output, members, look, unguarded, err := p.answer(ctx, input)
	watch.lap(stageInfer)
	if err != nil {
		finding.Referrals = append(finding.Referrals, p.engineFailed(ctx, "inference"))
		return
	}
	p.fitted.verdict(ctx, patient, look, unguarded, finding)
	watch.lap(stageGuardIn)
	if p.prover != nil {
		// What makes no sense is nothing to certify: guardOutput says so.
		if predictions, err := p.pkg.Predictions(output); err == nil {
			p.prover.certify(ctx, input, image, predictions, finding)
		}
		watch.lap(stageCertify)
	}
	var second []float32 // the same answer, computed again; nil if it was not
	if p.maps != nil {
		if made, err := p.maps.explain(ctx, input); err != nil {
			finding.Referrals = append(finding.Referrals, p.engineFailed(ctx, "explanation"))
		} else {
			second, finding.Explanation = made.logits, made.label
			if made.shown != nil {
				overImage(finding.Explanation, made.shown, in.Window(image.Rows, image.Columns), image.Rows, image.Columns)
			}
		}
		watch.lap(stageExplain)
	}
	p.guardOutput(finding, output, second, parsed.DataSet)
	p.verify.add(ctx, input, output, members, finding)
	watch.lap(stageGuardOut)
}

// answer runs the model once, with what its guards need. Where they cannot be
// run with it, or a model server computes the answer, the model is run by itself
// and unguarded says why there is no look, if there should be one. members are the
// answers of an ensemble's members from the same run, where the verifiers compare
// them.
func (p *pipeline) answer(ctx context.Context, input engine.Tensor) (output []float32, members [][]float32, look *guard.Look, unguarded, err error) {
	look, unguarded = p.fitted.look(ctx, input)
	if look != nil && unguarded == nil && p.server == nil {
		return look.Output, look.Also, look, nil, nil
	}
	output, members, err = p.run(ctx, input)
	if err == nil && look != nil && !(disagreement(output, look.Output) <= maxDisagreement) {
		look, unguarded = nil, errors.New("the guards saw another answer")
	}
	if look != nil && p.server != nil {
		members = look.Also
	}
	return output, members, look, unguarded, err
}

// infer runs the package's own graph on one prepared image.
func (p *pipeline) infer(ctx context.Context, input engine.Tensor) ([]float32, error) {
	output, _, err := p.run(ctx, input)
	return output, err
}

// run is infer with the answers of an ensemble's members, where they are wanted
// and the session gives them: a model server does not.
func (p *pipeline) run(ctx context.Context, input engine.Tensor) (output []float32, members [][]float32, err error) {
	names := []string{p.pkg.Manifest.Output.Name}
	if p.server == nil {
		names = append(names, p.verify.members()...)
	}
	outputs, err := p.session.Run(ctx, map[string]engine.Tensor{p.pkg.Manifest.Input.Name: input}, names...)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names[1:] {
		values, err := engine.Values[float32](outputs[name])
		if err != nil {
			return nil, nil, err
		}
		members = append(members, values)
	}
	output, err = engine.Values[float32](outputs[names[0]])
	return output, members, err
}

func (p *pipeline) engineFailed(ctx context.Context, step string) vigie.Reason {
	if ctx.Err() != nil {
		return reasonTimeout(p.timeout)
	}
	return reasonEngine(step)
}

// maxDisagreement is how far two computations of the same answer may lie
// apart, relative to 1 + their size. Float32 in another order of summation
// stays below 1e-5 on deep networks.
const maxDisagreement = 1e-3

// guardOutput turns the model's output into predictions, unless it makes no
// sense. second is the answer that the explanation computed in a session of its
// own; if the two disagree, the machine, the engine or the model server is at
// fault and neither is believed.
func (p *pipeline) guardOutput(finding *vigie.Finding, output, second []float32, about *dicom.DataSet) {
	predictions, err := p.pkg.Predictions(output)
	sense := outputRule("output-values", err != nil, "not one number for each label", vigie.Text{
		English: "The model's output is not a number.",
		French:  "La sortie du modèle n'est pas un nombre."})
	finding.Guards = append(finding.Guards, sense)
	broken := sense.Alarm
	if second != nil && !sense.Alarm {
		apart := disagreement(output, second)
		agree := outputRule("output-agreement", !(apart <= maxDisagreement), fmt.Sprintf("two computations differ by %.2g", apart), vigie.Text{
			English: "Two computations of the same answer disagree.",
			French:  "Deux calculs de la même réponse ne concordent pas."})
		finding.Guards = append(finding.Guards, agree)
		broken = broken || agree.Alarm
	}
	if broken {
		for _, guard := range finding.Guards {
			if guard.Alarm {
				finding.Referrals = append(finding.Referrals, *guard.Reason)
			}
		}
		finding.Explanation, finding.Certificate = nil, nil
		return
	}
	finding.Predictions = predictions
	finding.Referrals = append(finding.Referrals, p.pkg.Manifest.Review(predictions, about)...)
}

func outputRule(name string, broken bool, detail string, text vigie.Text) vigie.GuardResult {
	if !broken {
		return vigie.GuardResult{Guard: name, PValue: ruleHolds}
	}
	why := vigie.Reason{Code: vigie.ReasonImplausible, Text: text, Detail: name + ": " + detail}
	return vigie.GuardResult{Guard: name, PValue: ruleBroken, Alarm: true, Reason: &why}
}

// disagreement is the largest difference between two outputs, relative to
// 1 + the size of the first; infinite if they are not comparable.
func disagreement(a, b []float32) float64 {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	var most float64
	for i := range a {
		apart := math.Abs(float64(a[i])-float64(b[i])) / (1 + math.Abs(float64(a[i])))
		if math.IsNaN(apart) {
			return math.Inf(1)
		}
		most = max(most, apart)
	}
	return most
}
