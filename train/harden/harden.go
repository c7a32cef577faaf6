package harden

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/job"
)

// ErrAsk says that the options contradict each other, the model or the data; the
// message says what to change.
var ErrAsk = errors.New("cannot be hardened like this")

// Options are a hardening job.
type Options struct {
	// Model is a package or an ONNX file to go on from; empty: the network that Job
	// names is trained first, by the same recipe without hardening, into the folder
	// plain of the output.
	Model string
	// Job has the data, the recipe, and where there is no Model the network. Its Out
	// is a folder.
	Job       job.Options
	Hardening train.Hardening // without a Floor, which Budget gives
	Budget    float64         // of clean validation AUC that may be lost
	// Fresh hardens from fresh weights and not from those of the network before;
	// there is then nothing between the two to choose from.
	Fresh bool
	// Between are candidates on the way from the network before to the hardened
	// one, as shares of it.
	Between []float64

	// Mean and Std, of an ONNX file that wants normalised input: one number, or one
	// for each channel. As a package's preparation does, they become part of the
	// graph: what comes out takes pixels of 0..1.
	Mean, Std []float64

	Bounds  []Bound     // of the curve, rising; none: no curve
	Attack  attack.Name // that draws the curve
	Steps   int         // of the attack; 0: its default
	Verdict attack.Name // of the kept model at the last bound, and at the others; empty: none
	Limit   int         // validation images that are attacked; 0: all
	Command string      // as a person would type it again; part of the report

	preparation preparation
}

// Bound is a bound of an attack as it was written and as a number.
type Bound struct {
	Text  string  `json:"text"`
	Value float64 `json:"value"`
}

// Default are the options that a job starts from: PGD-AT at 8/255.
func Default() Options {
	o := Options{
		Job: job.Default(), Budget: 0.01, Between: []float64{0.5, 0.75, 0.9},
		Hardening: train.Hardening{Method: train.PGDAT, Norm: train.Linf, Eps: 8.0 / 255, Steps: 7, Ramp: 5},
		Attack:    attack.APGDCE, Steps: 30, Verdict: attack.Auto,
	}
	o.Job.Augment = "standard"
	return o
}

// Progress is told how a job goes on. Every field may be nil.
type Progress struct {
	Plain     job.Progress // of the training before
	Hardening job.Progress
	Baseline  func(auc train.Interval, floor float64) // the network before
	Attack    func(stage string, done float64)
}

// PlainFolder is where the network before is, below the output.
const PlainFolder = "plain"

// The files of a job beside those of a train.Fit.
const (
	ReportFile  = "hardening.json"
	TradeOffSVG = "trade-off.svg"
	TradeOffPNG = "trade-off.png"
	BeforeFile  = "before.onnx" // of a model whose pixels are prepared outside of its graph
)

// check finds what can be found wrong before data are read.
func (o *Options) check() error {
	switch {
	case o.Job.Out == "" || o.Job.Data.Data == "":
		return fmt.Errorf("harden: %w: data and an output are needed", ErrAsk)
	case strings.HasSuffix(o.Job.Out, ".onnx"):
		return fmt.Errorf("harden: %s: %w: the output is a folder", o.Job.Out, ErrAsk)
	case !(o.Budget >= 0 && o.Budget <= 1):
		return fmt.Errorf("harden: an AUC budget of %v: %w: want 0 to 1, such as 0.01", o.Budget, ErrAsk)
	case o.Job.Recipe.Private != nil:
		return fmt.Errorf("harden: %w: the recipe is differentially private, which no adversary goes with", ErrAsk)
	case o.Job.From != "":
		return fmt.Errorf("harden: %w: the network to go on from is the model itself", ErrAsk)
	case o.Model != "" && o.Job.Network != "":
		return fmt.Errorf("harden: %w: the network is either that of %s or %s", ErrAsk, o.Model, o.Job.Network)
	case o.Limit < 0:
		return fmt.Errorf("harden: a limit of %d images: %w: want 0 for all, or more", o.Limit, ErrAsk)
	case o.Hardening.Floor != 0:
		return fmt.Errorf("harden: an AUC floor: %w: it follows from the budget", ErrAsk)
	}
	for _, share := range o.Between {
		if !(share > 0 && share < 1) {
			return fmt.Errorf("harden: a candidate at a share of %v: %w: want more than 0 and less than 1", share, ErrAsk)
		}
	}
	for _, name := range []attack.Name{o.Attack, o.Verdict} {
		if name == "" {
			continue
		}
		row, err := attack.Find(name)
		if err != nil {
			return fmt.Errorf("harden: %w: %w", ErrAsk, err)
		}
		if norm := o.norm(); len(o.Bounds) > 0 && (!row.Bounded || !slices.Contains(row.Norms, norm)) {
			return fmt.Errorf("harden: attack %s: %w: want one within a bound of %s, such as %s", name, ErrAsk, norm, attack.Auto)
		}
	}
	return nil
}

// norm is that of the curve's bounds: the hardening's, or Linf.
func (o *Options) norm() attack.Norm {
	if o.Hardening.Norm == train.L2 {
		return attack.L2
	}
	return attack.Linf
}

// complete takes the model into the job.
func (o *Options) complete() error {
	if err := o.check(); err != nil {
		return err
	}
	if o.Hardening.Method == "" { // what only an adversary has
		o.Hardening = train.Hardening{Occlusion: o.Hardening.Occlusion, Noise: o.Hardening.Noise, AWP: o.Hardening.AWP}
	}
	if o.Model == "" {
		if len(o.Mean) > 0 || len(o.Std) > 0 {
			return fmt.Errorf("harden: %w: mean and std are of an ONNX file; a network that is built here normalises by itself", ErrAsk)
		}
		return nil
	}
	info, err := os.Stat(o.Model)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("harden: %s: %w: it is neither a package nor an ONNX file; a network of the zoo goes by --network", o.Model, ErrAsk)
	}
	if err != nil {
		return fmt.Errorf("harden: opening %s: %w", o.Model, err)
	}
	o.Job.From = o.Model
	if !info.IsDir() {
		o.preparation, err = normalised(o.Mean, o.Std)
		return err
	}
	p, err := model.Open(o.Model)
	if err != nil {
		return fmt.Errorf("harden: opening a package: %w", err)
	}
	if len(o.Mean) > 0 || len(o.Std) > 0 {
		return fmt.Errorf("harden: %s: %w: a package's manifest says how its input is prepared; leave mean and std out", o.Model, ErrAsk)
	}
	if p.Manifest.Input.Layout != "NCHW" {
		return fmt.Errorf("harden: %s: %w: its input is %s; training feeds NCHW: put a Transpose into the graph", o.Model, ErrAsk, p.Manifest.Input.Layout)
	}
	o.preparation = prepared(p.Manifest.Input)
	o.Job.From = filepath.Join(o.Model, model.GraphFile)
	o.Job.Output = p.Manifest.Output.Name
	if o.Job.Data.Classes == nil && !strings.EqualFold(filepath.Ext(o.Job.Data.Data), ".npz") {
		for _, l := range p.Manifest.Output.Labels {
			o.Job.Data.Classes = append(o.Job.Data.Classes, l.Name)
		}
		o.Job.Data.ClassesBy = o.Model
	}
	return nil
}

// Run hardens. Another run that writes to the same place is train.ErrBusy.
func (o Options) Run(ctx context.Context, p Progress) (r *Report, err error) {
	start := time.Now()
	if err := o.complete(); err != nil {
		return nil, err
	}
	held, err := train.HoldOutput(o.Job.Out)
	if err != nil {
		return nil, fmt.Errorf("harden: %w", err)
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	note, err := o.prepare()
	if err != nil {
		return nil, err
	}
	f, studies, err := o.Job.Prepare(ctx, p.Hardening.Reading)
	if err != nil {
		return nil, err
	}
	f.Held = held
	h := o.Hardening
	if err := (train.Config{Network: f.Network, Train: f.Train, Validation: f.Validation, Recipe: withHardening(f.Recipe, &h)}).Check(); err != nil {
		return nil, err // before the network before is trained
	}
	if o.Bounds != nil && f.Validation.Multi() {
		return nil, fmt.Errorf("harden: a curve of labels that do not exclude each other: %w: leave --bounds empty", ErrAsk)
	}
	r = &Report{
		Model: o.Model, Data: f.Data, DataDigest: f.DataDigest, Budget: o.Budget,
		Seed: f.Recipe.Seed, Command: o.Command, Attack: o.Attack, Norm: o.norm(), Bounds: o.Bounds,
		Commonest: commonest(f.Validation), byCurve: h.Method != "" && len(o.Bounds) > 0,
	}
	ready := job.ReadyFor(f, studies)
	before, err := o.before(ctx, f, p, ready)
	if err != nil {
		return nil, err
	}
	if r.Baseline, err = f.Validation.AUCInterval(before.logits, f.Recipe.Seed); err != nil {
		return nil, fmt.Errorf("harden: the network before: %w", err)
	}
	h.Floor = max(0, r.Baseline.Value-o.Budget)
	f.Recipe = withHardening(f.Recipe, &h)
	r.Floor = h.Floor
	if note != "" {
		r.Notes = append(r.Notes, note)
	}
	if p.Baseline != nil {
		p.Baseline(r.Baseline, h.Floor)
	}
	if !o.Fresh {
		network := *f.Network
		network.Model = before.model
		f.Network = &network
	}
	f.Choose = func(ctx context.Context, result *train.Result) error {
		return o.choose(ctx, f, before, result, r, p)
	}
	if p.Hardening.Ready != nil {
		p.Hardening.Ready(ready)
	}
	training, _, err := f.Run(ctx, func(e train.Epoch) {
		if p.Hardening.Epoch != nil {
			p.Hardening.Epoch(e, f.Recipe.Epochs)
		}
	})
	if err != nil {
		return nil, err
	}
	r.Training, r.Hardening = training, *training.History.Recipe.Hardening
	r.Seconds = time.Since(start).Seconds()
	return r, o.write(f, r)
}

func withHardening(r train.Recipe, h *train.Hardening) train.Recipe {
	r.Hardening = h
	return r
}

// prepare writes the network before with its preparation inside, where it has one,
// and says so.
func (o *Options) prepare() (note string, err error) {
	if o.Model == "" || o.preparation.none() {
		return "", nil
	}
	m, err := onnx.Load(o.Job.From)
	if err != nil {
		return "", fmt.Errorf("harden: opening %s: %w", o.Job.From, err)
	}
	if m, err = o.preparation.within(m); err != nil {
		return "", err
	}
	o.Job.From = filepath.Join(o.Job.Out, BeforeFile)
	if err := m.Save(o.Job.From); err != nil {
		return "", fmt.Errorf("harden: writing the network before: %w", err)
	}
	return "the preparation of the pixels is part of the graph now: the hardened model takes values of 0 to 1, and its manifest's range is {low: 0, high: 1}, without mean and std", nil
}

// network is a model with its validation logits.
type network struct {
	model  *onnx.Model
	logits [][]float64
}

// before is the network before: the model's own, or one that is trained now.
func (o Options) before(ctx context.Context, f *train.Fit, p Progress, ready job.Ready) (*network, error) {
	if o.Model != "" {
		logits, err := train.Logits(ctx, f.Network.Model, f.Network.Input, f.Network.Logits, f.Validation)
		if err != nil {
			return nil, fmt.Errorf("harden: the network before: %w", err)
		}
		return &network{f.Network.Model, logits}, nil
	}
	plain := *f
	plain.Out, plain.Held, plain.Test = filepath.Join(o.Job.Out, PlainFolder), nil, nil
	if p.Plain.Ready != nil {
		p.Plain.Ready(ready)
	}
	_, result, err := plain.Run(ctx, func(e train.Epoch) {
		if p.Plain.Epoch != nil {
			p.Plain.Epoch(e, plain.Recipe.Epochs)
		}
	})
	if err != nil {
		return nil, err
	}
	return &network{result.Model, result.Logits}, nil
}

// choose evaluates the candidates and puts the best within the budget into the
// result.
func (o Options) choose(ctx context.Context, f *train.Fit, before *network, result *train.Result, r *Report, p Progress) error {
	type candidate struct {
		name  string
		share float64
		model *onnx.Model
	}
	list := []candidate{{"before", 0, before.model}}
	if !o.Fresh {
		for _, share := range slices.Sorted(slices.Values(o.Between)) {
			m, err := train.Interpolate(before.model, result.Strongest, share)
			if err != nil {
				return err
			}
			list = append(list, candidate{fmt.Sprintf("%g of the way", share), share, m})
		}
	}
	list = append(list, candidate{fmt.Sprintf("epoch %d", result.History.Best), 1, result.Model})
	if result.History.Strongest != result.History.Best {
		list = append(list, candidate{fmt.Sprintf("epoch %d", result.History.Strongest), 1, result.Strongest})
	}
	var logits [][][]float64
	for i, c := range list {
		z, err := train.Logits(ctx, c.model, f.Network.Input, f.Network.Logits, f.Validation)
		if err != nil {
			return err
		}
		logits = append(logits, z)
		out := Candidate{Name: c.name, Share: c.share}
		if out.AUC, err = f.Validation.AUCInterval(z, f.Recipe.Seed); err != nil {
			return err
		}
		out.Accuracy = accuracy(f.Validation, z)
		if out.Cost, err = f.Validation.AUCCost(before.logits, z, 2000, f.Recipe.Seed); err != nil {
			return err
		}
		n := *f.Network
		n.Model = c.model
		if out.Withstood, err = train.Withstands(ctx, &n, f.Validation, f.Recipe.Hardening, f.Recipe.Seed); err != nil {
			return err
		}
		stage := fmt.Sprintf("%s on candidate %d of %d", o.Attack, i+1, len(list))
		if out.Curve, err = o.curve(ctx, f, c.model, o.Attack, o.Steps, stage, p); err != nil {
			return err
		}
		r.Candidates = append(r.Candidates, out)
	}
	kept := r.keep()
	chosen := &r.Candidates[kept]
	result.Model, result.Logits = list[kept].model, logits[kept]
	result.Hardened = &train.HardenedRecord{
		Against: f.Recipe.Hardening.String(), Baseline: r.Baseline, Budget: o.Budget, Floor: r.Floor,
		Met: chosen.AUC.Value >= r.Floor, Cost: chosen.Cost, Candidate: chosen.Name, Share: chosen.Share, Withstood: chosen.Withstood,
	}
	if o.Verdict == "" || len(o.Bounds) == 0 {
		return nil
	}
	var err error
	r.Verdict = &Verdict{Attack: o.Verdict}
	r.Verdict.Curve, err = o.curve(ctx, f, result.Model, o.Verdict, 0, fmt.Sprintf("%s on the kept model", o.Verdict), p)
	return err
}

// curve attacks a model's validation images at each bound.
func (o Options) curve(ctx context.Context, f *train.Fit, m *onnx.Model, name attack.Name, steps int, stage string, p Progress) ([]Point, error) {
	if len(o.Bounds) == 0 || name == "" {
		return nil, nil
	}
	s := f.Validation
	target, err := attack.Open(m, attack.NetworkOptions{Shape: s.Example(), Output: f.Network.Logits})
	if err != nil {
		return nil, fmt.Errorf("harden: %w", err)
	}
	defer target.Close()
	n := s.Len()
	if o.Limit > 0 {
		n = min(n, o.Limit)
	}
	size := target.Describe().Size()
	pixels := make([]float32, n*size)
	for i := range n {
		s.Fill(pixels[i*size:(i+1)*size], i)
	}
	var curve []Point
	for i, b := range o.Bounds {
		options := attack.Options{Norm: o.norm(), Eps: b.Value, Steps: steps, Seed: f.Recipe.Seed}
		if p.Attack != nil {
			options.Progress = func(done float64) {
				p.Attack(stage, (float64(i)+done)/float64(len(o.Bounds)))
			}
		}
		result, err := attack.Run(ctx, target, name, pixels, s.Labels[:n], options)
		if err != nil {
			return nil, fmt.Errorf("harden: %w", err)
		}
		clean, robust := result.Correct(), result.Correct()-result.Fooled()
		curve = append(curve, Point{Bound: b, Images: n, Clean: train.Wilson(clean, n), Robust: train.Wilson(robust, n)})
	}
	return curve, nil
}

// commonest is the share of the commonest class, which a model that always answers
// it tells right under any attack.
func commonest(s *train.Set) float64 {
	if s.Multi() {
		return 0
	}
	return float64(slices.Max(s.Counts())) / float64(s.Len())
}

func accuracy(s *train.Set, logits [][]float64) train.Interval {
	of := s.Len()
	if s.Multi() {
		of *= s.Classes
	}
	return train.Wilson(int(math.Round(s.Accuracy(logits)*float64(of))), of)
}
