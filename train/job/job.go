package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// ErrAsk says that the options contradict each other or the data; the message
// says what to change.
var ErrAsk = errors.New("cannot be trained like this")

// Demo is the name of the network that the demo model has.
const Demo = "demo"

// Options are a training job.
type Options struct {
	Network string    // member of package zoo, or Demo (the default); empty with From
	CNN     train.CNN // what Demo is; its sizes are the data's
	Norm    string    // of a member of the zoo: zoo.BatchNorm (the default) or zoo.GroupNorm
	Members int       // networks whose answers are averaged, in one graph (train.Ensemble); 0 is as the recipe has it

	From    string   // ONNX file to go on from
	Weights string   // safetensors file whose tensors replace weights of the same name
	Output  string   // of the file: the logits; empty means the first output
	Head    string   // give the file a new last layer: "auto", a number of classes, or their names
	Freeze  []string // patterns of weights that stay

	Data         studies.Options
	Recipe       train.Recipe // a Rate of 0 is one that suits the network; the augmentation is Augment's
	ClassWeights string       // "balanced", or a weight for each class; empty counts examples alike
	Augment      string       // "standard" (the default for images) or "none"
	Sensitivity  float64      // of the second operating point [0.98]
	// Kernels says what computes: "auto" (the default) is the engine's own
	// operators where the processor has what they need, but for the demo model,
	// which shall come out alike everywhere; "off", "2" or "3" decide it.
	Kernels string

	Out             string // folder, or file that ends in .onnx
	Checkpoint      bool
	CheckpointEvery time.Duration
}

// Default are the options that a job starts from: the demo model's recipe, with
// a rate that suits the network.
func Default() Options {
	o := Options{CNN: train.DemoCNN, Recipe: train.DemoRecipe, Sensitivity: 0.98, CheckpointEvery: time.Minute}
	o.Recipe.Rate, o.Recipe.Augmentation = 0, train.Augmentation{}
	return o
}

// asRecipe is the Augment of a named recipe: its own.
const asRecipe = "recipe"

// SetRecipe takes network and recipe of a named recipe.
func (o *Options) SetRecipe(name string) error {
	r, err := train.RecipeNamed(name)
	if err != nil {
		return fmt.Errorf("job: %w: %w", ErrAsk, err)
	}
	if o.From != "" || o.Network != "" && o.Network != Demo {
		return fmt.Errorf("job: %w: recipe %s has a network of its own; leave the other one out", ErrAsk, name)
	}
	o.TakeRecipe(r, true)
	return nil
}

// TakeRecipe takes a recipe with its augmentation and, if asked to, its network.
func (o *Options) TakeRecipe(r train.NamedRecipe, network bool) {
	o.Recipe, o.Augment = r.Recipe, asRecipe
	if network {
		o.Network, o.CNN = Demo, r.Network
	}
}

// Progress is told how a job goes on. Every field may be nil.
type Progress struct {
	Reading func(done, total int)          // images
	Ready   func(Ready)                    // data and network are there, training starts
	Epoch   func(e train.Epoch, total int) //
}

// Ready says what will be trained.
type Ready struct {
	Train, Validation, Test int // examples; Test 0 if there is no such split
	Classes                 []string
	Counts                  []int // training examples of each class; nil in a private run, which has not paid for them
	Numbered                bool  // the data have numbers for the classes, which were named in their order
	Trained                 int   // numbers that change
	Duplicates              []train.Duplicate
	Given                   bool // the data came divided
}

// SafetensorsFile holds the weights beside the model.
const SafetensorsFile = train.WeightsFile

// Run reads the data, builds the network, trains, and writes the results. It holds
// the output from before the data are read: another run that writes there is
// train.ErrBusy.
func (o Options) Run(ctx context.Context, p Progress) (report *train.Report, err error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	held, err := train.HoldOutput(o.Out)
	if errors.Is(err, train.ErrBusy) {
		return nil, fmt.Errorf("job: %w", err)
	}
	if err != nil { // before hours are spent on what cannot be written
		return nil, fmt.Errorf("job: %w; choose another --out", err)
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	f, s, err := o.Prepare(ctx, p.Reading)
	if err != nil && ctx.Err() != nil {
		return nil, &train.Interrupted{Of: o.Recipe.Epochs, Cause: err}
	}
	if err != nil {
		return nil, err
	}
	f.Held = held
	if p.Ready != nil {
		p.Ready(ReadyFor(f, s))
	}
	epoch := func(e train.Epoch) {
		if p.Epoch != nil {
			p.Epoch(e, f.Recipe.Epochs)
		}
	}
	report, result, err := f.Run(ctx, epoch)
	if err != nil {
		return nil, err
	}
	return report, writeWeights(f.File(SafetensorsFile), result.Model, f.Network.Weights)
}

// ReadyFor says what Prepare has made ready.
func ReadyFor(f *train.Fit, s *studies.Studies) Ready {
	r := Ready{Train: s.Train.Len(), Validation: s.Validation.Len(), Duplicates: s.Duplicates, Given: s.Given, Trained: parameters(f.Network)}
	if s.Test != nil {
		r.Test = s.Test.Len()
	}
	r.Numbered = s.Kind == "npz" && s.Train.ClassNames != nil
	if f.Recipe.Private == nil {
		r.Counts = s.Train.Counts()
	}
	for c := range s.Train.Classes {
		r.Classes = append(r.Classes, s.Train.ClassName(c))
	}
	return r
}

// complete checks the options among themselves.
func (o *Options) complete() error {
	if o.Out == "" || o.Data.Data == "" {
		return fmt.Errorf("job: %w: data and an output are needed", ErrAsk)
	}
	if o.From != "" && o.Network != "" {
		return fmt.Errorf("job: %w: the network is either %s or that of %s", ErrAsk, o.Network, o.From)
	}
	if o.From == "" && (o.Head != "" || o.Output != "") {
		return fmt.Errorf("job: %w: a new head or another output is for a network from a file", ErrAsk)
	}
	if o.Members < 0 || o.Members > train.MaxMembers {
		return fmt.Errorf("job: %w: %d members; want 1 to %d", ErrAsk, o.Members, train.MaxMembers)
	}
	if o.From != "" && o.Members > 1 {
		return fmt.Errorf("job: %w: %d members that begin with the weights of one file would stay alike; members are for a network with fresh weights", ErrAsk, o.Members)
	}
	if o.Network == "" && o.From == "" {
		o.Network = Demo
	}
	if known := zoo.Architectures(); o.Network != "" && o.Network != Demo && !slices.ContainsFunc(known, func(a zoo.Architecture) bool { return a.Name == o.Network }) {
		names := []string{Demo}
		for _, a := range known {
			names = append(names, a.Name)
		}
		return fmt.Errorf("job: %w: there is no network %q; choose one of %s", ErrAsk, o.Network, strings.Join(names, ", "))
	}
	return nil
}

// Prepare does everything up to the first step.
func (o Options) Prepare(ctx context.Context, reading func(done, total int)) (*train.Fit, *studies.Studies, error) {
	if err := o.complete(); err != nil {
		return nil, nil, err
	}
	var imported *train.Network
	var err error
	o.Data.Seed = o.Recipe.Seed
	o.Data.Progress = reading
	if o.From != "" {
		if imported, err = o.open(); err != nil {
			return nil, nil, err
		}
	}
	s, err := studies.Open(ctx, o.Data)
	if err != nil {
		return nil, nil, err
	}
	if s.Train == nil || s.Validation == nil {
		return nil, nil, fmt.Errorf("job: %w: %s has no training split", ErrAsk, o.Data.Data)
	}
	f := &train.Fit{
		Train: s.Train, Validation: s.Validation, Test: s.Test, Data: filepath.Base(o.Data.Data), DataDigest: s.Digest, Duplicates: s.Duplicates,
		Sensitivity: o.Sensitivity, Out: o.Out, Checkpoint: o.Checkpoint, CheckpointEvery: o.CheckpointEvery,
	}
	if err := o.network(f, imported); err != nil {
		return nil, nil, err
	}
	if err := describe(f.Network.Model, s); err != nil {
		return nil, nil, err
	}
	f.Recipe, err = o.recipe(s.Train)
	return f, s, err
}

// open reads the network of a file, and has the data brought to its size.
func (o *Options) open() (*train.Network, error) {
	m, err := onnx.Load(o.From)
	if err != nil {
		return nil, fmt.Errorf("job: opening %s: %w", o.From, err)
	}
	n, err := train.Import(m, train.ImportOptions{Output: o.Output})
	if err != nil {
		return nil, fmt.Errorf("job: opening %s: %w", o.From, err)
	}
	if o.Head != "" && o.Head != "auto" {
		if _, err := strconv.Atoi(o.Head); err != nil {
			names := strings.Split(o.Head, ",")
			if o.Data.Classes != nil && !slices.Equal(names, o.Data.Classes) {
				return nil, fmt.Errorf("job: %w: the head is for %s, the classes are %s", ErrAsk, o.Head, strings.Join(o.Data.Classes, ","))
			}
			if o.Data.Classes == nil {
				o.Data.ClassesBy = "--head"
			}
			o.Data.Classes = names
		}
	}
	npz := strings.EqualFold(filepath.Ext(o.Data.Data), ".npz") // has images of one size
	for _, in := range n.Model.Graph.Inputs {
		if in.Name != n.Input || len(in.Shape) != 4 || npz {
			continue
		}
		for _, to := range []struct {
			d    onnx.Dim
			size *int
		}{{in.Shape[1], &o.Data.Channels}, {in.Shape[2], &o.Data.Rows}, {in.Shape[3], &o.Data.Columns}} {
			if to.d.Known() && *to.size == 0 {
				*to.size = int(to.d.Value)
			}
		}
	}
	classes, columns, err := train.Described(n.Model)
	if err != nil {
		return nil, fmt.Errorf("job: opening %s: %w", o.From, err)
	}
	if o.Data.Encoding == nil {
		o.Data.Encoding = columns
	}
	if o.Head == "" && o.Data.Classes == nil && classes != nil {
		o.Data.Classes, o.Data.ClassesBy = classes, filepath.Base(o.From)+"; with --head it gets new ones"
	}
	return n, nil
}

// network gives the job its network.
func (o Options) network(f *train.Fit, imported *train.Network) error {
	s, seed := f.Train, o.Recipe.Seed
	switch {
	case imported != nil:
		if err := o.adapt(imported, s); err != nil {
			return err
		}
		n, err := train.Import(imported.Model, train.ImportOptions{Output: imported.Logits, Freeze: o.Freeze})
		if err != nil {
			return fmt.Errorf("job: training %s: %w", o.From, err)
		}
		f.Network = n
		f.About = map[string]any{"from": filepath.Base(o.From), "frozen": o.Freeze, "head": o.Head, "weights": filepath.Base(o.Weights)}
		return o.load(n.Model)
	case o.Network == Demo:
		if s.Shape != nil {
			return fmt.Errorf("job: %w: the demo network reads images, and examples have shape %v; choose another network, such as tabular-mlp for a table", ErrAsk, s.Shape)
		}
		cnn := o.CNN
		if o.Members != 0 {
			cnn.Members = o.Members
		}
		n, err := cnn.ForRecipe(s, o.Recipe)
		if err != nil {
			return err
		}
		f.Network, f.About = n, cnn
	default:
		options := zoo.Options{Input: s.Example(), Classes: s.Classes, Norm: o.Norm}
		if s.Shape == nil {
			mean, deviation := o.Recipe.Moments(s)
			for range s.Channels {
				options.Mean, options.Deviation = append(options.Mean, mean), append(options.Deviation, max(deviation, 1e-4))
			}
		}
		rng := rand.New(rand.NewPCG(seed, 0))
		n, err := train.EnsembleOf(max(1, o.Members), func() (*train.Network, error) {
			n, err := zoo.Build(o.Network, options, rng)
			if err != nil {
				return nil, err
			}
			return &train.Network{Model: n.Model, Input: n.Input, Logits: n.Logits, Weights: n.Weights, Layer: n.Layer}, nil
		})
		if err != nil {
			return fmt.Errorf("job: %w", err)
		}
		f.Network = n
		f.About = map[string]any{"architecture": o.Network, "input": options.Input, "norm": o.Norm, "members": max(1, o.Members), "mean": options.Mean, "deviation": options.Deviation, "weights": filepath.Base(o.Weights)}
	}
	if err := f.Network.Freeze(o.Freeze...); err != nil {
		return err
	}
	return o.load(f.Network.Model)
}

// adapt replaces the head of an imported network, if asked to.
func (o Options) adapt(n *train.Network, s *train.Set) error {
	if o.Head == "" {
		return nil
	}
	classes := s.Classes
	if wanted, err := strconv.Atoi(o.Head); err == nil && wanted != classes && !(wanted == 1 && classes == 2) {
		return fmt.Errorf("job: %w: a head of %d classes for data of %d", ErrAsk, wanted, classes)
	} else if err == nil {
		classes = wanted
	}
	_, err := train.ReplaceHead(n.Model, n.Logits, classes, rand.New(rand.NewPCG(o.Recipe.Seed, 0x4ead)))
	if err != nil {
		return fmt.Errorf("job: training %s: %w", o.From, err)
	}
	return nil
}

// load replaces weights by those of the safetensors file.
func (o Options) load(m *onnx.Model) error {
	if o.Weights == "" {
		return nil
	}
	file, err := os.Open(o.Weights)
	if err != nil {
		return fmt.Errorf("job: opening weights: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("job: opening weights: %w", err)
	}
	held, err := safetensors.Read(file, info.Size(), safetensors.Limits{})
	if err != nil {
		return fmt.Errorf("job: reading %s: %w", o.Weights, err)
	}
	taken := 0
	for _, name := range slices.Sorted(maps.Keys(held.Tensors)) {
		t := held.Tensors[name]
		w := m.Graph.Initializer(name)
		if w == nil || strings.HasPrefix(name, "head.") && o.Head != "" {
			continue
		}
		values, err := engine.Values[float32](t)
		if err != nil {
			return fmt.Errorf("job: reading %s: tensor %q: %w", o.Weights, name, err)
		}
		if !slices.Equal(t.Shape, w.Dims) {
			return fmt.Errorf("job: reading %s: %w: tensor %q has shape %v, the network's weight %v", o.Weights, ErrAsk, name, t.Shape, w.Dims)
		}
		*w = *onnx.NewTensor(name, w.Dims, values)
		taken++
	}
	if taken == 0 {
		return fmt.Errorf("job: reading %s: %w: none of its %d tensors is a weight of the network; their names must be the same", o.Weights, ErrAsk, len(held.Tensors))
	}
	return nil
}

// kernels is the recipe's number of terms.
func (o Options) kernels() (int, error) {
	switch o.Kernels {
	case "", "auto":
		if (o.Network == Demo || o.Network == "" && o.From == "") && o.Augment != asRecipe {
			return 0, nil
		}
		return engine.KernelTerms(), nil
	case "off":
		return 0, nil
	case "1", "2", "3":
		if err := engine.CheckKernels(int(o.Kernels[0] - '0')); err != nil {
			return 0, fmt.Errorf("job: kernels %s: %w; leave them to auto", o.Kernels, err)
		}
		return int(o.Kernels[0] - '0'), nil
	}
	return 0, fmt.Errorf("job: kernels %q: %w: want auto, off, 1, 2 or 3", o.Kernels, ErrAsk)
}

// recipe completes the recipe for the data.
func (o Options) recipe(s *train.Set) (train.Recipe, error) {
	r := o.Recipe
	if r.Parts <= 0 || r.Batch%r.Parts != 0 {
		r.Parts = 1
	}
	if r.Rate == 0 {
		switch {
		case r.Optimizer == "sgd":
			r.Rate = 0.05
		case o.From != "":
			r.Rate = 3e-4
		case o.Network == Demo || o.Network == "":
			r.Rate = train.DemoRecipe.Rate
		case strings.HasPrefix(o.Network, "vit"):
			r.Rate = 5e-4
		default:
			r.Rate = 1e-3
		}
	}
	var err error
	if r.Kernels, err = o.kernels(); err != nil {
		return r, err
	}
	switch o.Augment {
	case "", "standard":
		if s.Shape == nil {
			r.Augmentation = train.StandardAugmentation(s.Rows, s.Columns)
		}
	case asRecipe:
	case "none":
		r.Augmentation = train.Augmentation{}
	default:
		return r, fmt.Errorf("job: augmentation %q: %w: want standard or none", o.Augment, ErrAsk)
	}
	switch {
	case o.ClassWeights == "":
	case s.Multi():
		return r, fmt.Errorf("job: %w: class weights are for classes that exclude each other", ErrAsk)
	case o.ClassWeights == "balanced":
		r.ClassWeights = train.BalancedWeights(s)
	default:
		for part := range strings.SplitSeq(o.ClassWeights, ",") {
			w, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
			if err != nil || !(w > 0) {
				return r, fmt.Errorf("job: class weight %q: %w: want balanced, or a positive number for each class", part, ErrAsk)
			}
			r.ClassWeights = append(r.ClassWeights, w)
		}
	}
	return r, nil
}

var notInLabel = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// describe keeps with the model what its users need: the names of the classes,
// also in the form that a package made of the model takes, and the encoding of a
// table.
func describe(m *onnx.Model, s *studies.Studies) error {
	delete(m.Metadata, zoo.LabelsKey)
	if err := train.Describe(m, s.Train.ClassNames, s.Encoding); err != nil {
		return err
	}
	if names := s.Train.ClassNames; names != nil {
		labels := make([]string, len(names))
		for i, name := range names {
			labels[i] = strings.Trim(notInLabel.ReplaceAllString(name, "-"), "-")
		}
		m.Metadata[zoo.LabelsKey] = strings.Join(labels, ",")
	}
	return nil
}

func parameters(n *train.Network) int {
	total := 0
	for _, name := range n.Weights {
		if w := n.Model.Graph.Initializer(name); w != nil {
			total += len(w.Raw) / 4
		}
	}
	return total
}

// writeWeights writes every float constant of the model under its name.
func writeWeights(path string, m *onnx.Model, trained []string) (err error) {
	tensors := map[string]engine.Tensor{}
	for _, w := range m.Graph.Initializers {
		if w.Type != onnx.Float {
			continue
		}
		if tensors[w.Name], err = engine.FromONNX(w); err != nil {
			return fmt.Errorf("job: writing weights: %w", err)
		}
	}
	metadata := map[string]string{"format": "pt", "trained": strings.Join(trained, ",")}
	if info, ok := debug.ReadBuildInfo(); ok {
		metadata["producer"] = "vigie " + info.Main.Version
	}
	err = train.WriteWhole(path, func(w io.Writer) error { return safetensors.Write(w, tensors, metadata) })
	if err != nil {
		return fmt.Errorf("job: writing weights to %s: %w", path, err)
	}
	return nil
}
