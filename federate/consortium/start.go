package consortium

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// StartOptions are a run as a data scientist asks for it.
type StartOptions struct {
	Run       string // name; empty: made of the algorithm and the day
	Scientist string
	Purpose   string
	Terms     federate.Terms // Federation is filled in
	// Trainer is a file of the scientist's own code, that the sites run by
	// vigie site run --trainer; empty: the built-in trainer.
	Trainer string
	// Audit is the file of a signed report of vigie privacy audit; empty: none.
	Audit string
	// Dry ends before anything is signed: the job says what would be asked.
	Dry bool
	// Units is how many patients (or, for privacy per hospital, hospitals) take part
	// about, if Terms.DP does not say its Lot; 0 hospitals are those of the list.
	Units int

	Model   string   // an ONNX file
	Output  string   // its logits; empty: the first output
	Freeze  []string // patterns of weights that are not trained
	Recipe  string   // instead of Model: the network of one of vigie train's recipes, with fresh weights by Terms.Seed
	Shape   []int64  // of one example, of Recipe or where Model leaves it open
	Classes []string // names in the model's order
	Multi   bool     // labels do not exclude each other

	Local Local
}

// Start signs a job and leaves it for the server, which brings it to the sites.
// Everything that can be wrong with it is said here.
func (c *Consortium) Start(ctx context.Context, o StartOptions) (Job, Digest, error) {
	fail := func(err error) (Job, Digest, error) {
		return Job{}, Digest{}, fmt.Errorf("consortium: starting a run: %w", err)
	}
	roster, err := c.roster()
	if err != nil {
		return Job{}, Digest{}, err
	}
	now := c.now().UTC().Truncate(time.Second)
	if o.Run == "" {
		o.Run = fmt.Sprintf("%s-%s", o.Terms.Algorithm, now.Format("20060102-150405"))
	}
	if err := checkName("run", o.Run); err != nil {
		return Job{}, Digest{}, err
	}
	if _, err := os.Stat(c.runsDir(o.Run)); !errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("%w: there is a run %q already; go on with it by vigie fed resume, or choose another --run", ErrFolder, o.Run))
	}
	o.Terms.Federation = federation(c.Name, o.Run)
	if o.Local.AtSites > 0 {
		o.Terms.Tasks, o.Terms.Questions = []federate.Task{federate.TaskEvaluate}, o.Terms.Rounds/o.Local.AtSites+1
	}
	model, data, err := o.model(ctx)
	if err != nil {
		return Job{}, Digest{}, err
	}
	var code *Code
	if o.Trainer != "" {
		text, err := readLimited(o.Trainer, maxModel)
		if err != nil {
			return fail(err)
		}
		code = &Code{SHA256: DigestOf(text), About: filepath.Base(o.Trainer)}
	}
	if err := o.plan(len(roster.Sites), model, data); err != nil {
		return Job{}, Digest{}, err
	}
	j := Job{Version: 1, Run: o.Run, Consortium: c.Name, Policy: roster.Policy, Scientist: o.Scientist, Purpose: o.Purpose, Time: now,
		Terms: o.Terms, Model: model, Trainer: code}
	if o.Dry {
		return j, Digest{}, j.Check()
	}
	if o.Audit != "" {
		if j.Audit, err = readLimited(o.Audit, maxDocument/4); err != nil {
			return fail(err)
		}
	}
	if err := j.Check(); err != nil {
		return Job{}, Digest{}, err
	}
	if err := c.Policy.Allows(j); err != nil {
		return Job{}, Digest{}, err
	}
	if len(roster.Sites) < j.Terms.Minimum {
		return fail(fmt.Errorf("%w: %d sites have joined, and a sum must hold %d", ErrRoster, len(roster.Sites), j.Terms.Minimum))
	}
	if err := j.Terms.Check(len(roster.Sites)); err != nil {
		return Job{}, Digest{}, err
	}
	if o.Local.Sites > len(roster.Sites) || o.Local.Sites < 0 {
		return fail(fmt.Errorf("%w: it would wait for %d sites, and %d have joined", ErrRoster, o.Local.Sites, len(roster.Sites)))
	}
	signed, err := signJob(c.signer, j)
	if err != nil {
		return Job{}, Digest{}, err
	}
	// What a site would stumble over is found here: can this network be trained?
	if err := o.try(ctx, model, data, j.Terms); err != nil {
		return Job{}, Digest{}, err
	}
	if o.Local.Evaluation.Data != "" {
		if o.Local.Evaluation.Data, err = filepath.Abs(o.Local.Evaluation.Data); err != nil {
			return fail(err)
		}
		if _, _, err := model.examples(ctx, o.Local.Evaluation.Options, o.Local.Split); err != nil {
			return Job{}, Digest{}, err
		}
	}
	local, err := json.MarshalIndent(o.Local, "", "  ")
	if err != nil {
		return fail(err)
	}
	keeper, err := federate.Folder(c.runsDir(o.Run))
	if err != nil {
		return Job{}, Digest{}, err
	}
	for _, err := range []error{keeper.Put(modelFile, data), keeper.Put(localFile, local), keeper.Put(jobFile, signed.document)} { // the job last: with it the run is there
		if err != nil {
			return Job{}, Digest{}, err
		}
	}
	return j, signed.digest, nil
}

// model reads or builds the network and describes it.
func (o StartOptions) model(ctx context.Context) (Model, []byte, error) {
	fail := func(format string, arguments ...any) (Model, []byte, error) {
		return Model{}, nil, fmt.Errorf("consortium: describing the model: %w: %s", ErrDocument, fmt.Sprintf(format, arguments...))
	}
	m := Model{Output: o.Output, Classes: o.Classes, Multi: o.Multi, Example: o.Shape}
	var graph *onnx.Model
	var err error
	switch {
	case (o.Model == "") == (o.Recipe == ""):
		return fail("name an ONNX file or a recipe, and not both")
	case o.Model != "":
		if graph, err = onnx.Load(o.Model); err != nil {
			return Model{}, nil, err
		}
	default:
		if graph, m.Freeze, err = o.recipe(ctx, &m); err != nil {
			return Model{}, nil, err
		}
	}
	if m.Classes == nil {
		if m.Classes, _, err = train.Described(graph); err != nil {
			return Model{}, nil, err
		}
	}
	network, err := train.Import(graph, train.ImportOptions{Output: m.Output, Freeze: o.Freeze})
	if err != nil {
		return Model{}, nil, err
	}
	if o.Model != "" && o.Freeze != nil {
		all, err := train.Import(graph, train.ImportOptions{Output: m.Output})
		if err != nil {
			return Model{}, nil, err
		}
		m.Freeze = except(all.Weights, network.Weights)
	}
	if m.Example, err = exampleOf(network, m.Example); err != nil {
		return fail("%v", err)
	}
	m.Image = len(m.Example) == 3
	if m.Outputs, err = outputsOf(network); err != nil {
		return fail("%v", err)
	}
	data, err := graph.Marshal()
	if err != nil {
		return Model{}, nil, err
	}
	m.SHA256, m.Bytes = DigestOf(data), int64(len(data))
	return m, data, nil
}

// recipe builds the network of a recipe for images, and says which of its
// numbers stay as they are: a filter bank, for instance.
func (o StartOptions) recipe(ctx context.Context, m *Model) (*onnx.Model, []string, error) {
	r, err := train.RecipeNamed(o.Recipe)
	if err != nil {
		return nil, nil, err
	}
	cnn := r.Network
	if o.Shape == nil && o.Local.Evaluation.Data != "" {
		data, err := studies.Open(ctx, o.Local.Evaluation.Options)
		if err != nil {
			return nil, nil, err
		}
		for _, set := range []*train.Set{data.Train, data.Validation, data.Test} {
			if set != nil {
				m.Example = set.Example()
				if m.Classes == nil {
					m.Classes = set.ClassNames
				}
			}
		}
	}
	if len(m.Example) != 3 {
		return nil, nil, fmt.Errorf("consortium: building the network of recipe %s: %w: it is for images: say their size and their channels", o.Recipe, ErrDocument)
	}
	cnn.Channels, cnn.Rows, cnn.Columns, cnn.Members = int(m.Example[0]), int(m.Example[1]), int(m.Example[2]), 0
	if cnn.Classes = len(m.Classes); cnn.Classes == 0 {
		cnn.Classes = 2
	}
	network, err := cnn.Build(rand.New(rand.NewPCG(o.Terms.Seed, 0xfed)))
	if err != nil {
		return nil, nil, err
	}
	found, err := train.Import(network.Model, train.ImportOptions{Output: network.Logits})
	if err != nil {
		return nil, nil, err
	}
	m.Output = network.Logits
	return network.Model, except(found.Weights, network.Weights), nil
}

func except(all, some []string) []string {
	var rest []string
	for _, name := range all {
		if !slices.Contains(some, name) {
			rest = append(rest, quoted(name))
		}
	}
	return rest
}

// quoted makes a pattern of path.Match that matches this name alone.
func quoted(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

// exampleOf is the shape of one example: as the graph has it, with what it leaves
// open filled in.
func exampleOf(n *train.Network, given []int64) ([]int64, error) {
	for _, v := range n.Model.Graph.Inputs {
		if v.Name != n.Input {
			continue
		}
		var dims []int64
		for _, d := range v.Shape {
			dims = append(dims, d.Value)
		}
		if len(dims) < 2 {
			return nil, fmt.Errorf("its input %s has no examples", v)
		}
		dims = dims[1:]
		if given != nil && len(given) != len(dims) {
			return nil, fmt.Errorf("its input is %s, and examples of shape %v were named", v, given)
		}
		for i, d := range dims {
			switch {
			case d <= 0 && given == nil:
				return nil, fmt.Errorf("its input is %s: name the shape of one example", v)
			case d <= 0:
				dims[i] = given[i]
			case given != nil && given[i] != d:
				return nil, fmt.Errorf("its input is %s, and examples of shape %v were named", v, given)
			}
		}
		return dims, nil
	}
	return nil, fmt.Errorf("it has no input %q", n.Input)
}

func outputsOf(n *train.Network) (int, error) {
	for _, v := range slices.Concat(n.Model.Graph.Outputs, n.Model.Graph.ValueInfo) {
		if v.Name == n.Logits && len(v.Shape) == 2 && v.Shape[1].Value > 0 {
			return int(v.Shape[1].Value), nil
		}
	}
	return 0, fmt.Errorf("it does not say how many logits %q holds", n.Logits)
}

// try makes the network ready for training once.
func (o StartOptions) try(_ context.Context, m Model, data []byte, t federate.Terms) error {
	e, err := engineOf(m, data, t)
	if err != nil {
		return err
	}
	return e.Close()
}

func engineOf(m Model, data []byte, t federate.Terms) (*federate.Engine, error) {
	graph, err := onnx.Parse(data)
	if err != nil {
		return nil, err
	}
	network, err := train.Import(graph, train.ImportOptions{Output: m.Output, Freeze: m.Freeze})
	if err != nil {
		return nil, err
	}
	return federate.NewEngine(network, t, m.like(), 0)
}

// plan fills in what the terms' privacy leaves open, and works out the noise, for
// a tenth more attempts than there are rounds.
func (o *StartOptions) plan(sites int, m Model, data []byte) error {
	if o.Terms.DP == nil {
		return nil
	}
	d := *o.Terms.DP
	o.Terms.DP = &d
	if d.Attempts == 0 {
		d.Attempts = o.Terms.Rounds + (o.Terms.Rounds+9)/10
	}
	units := o.Units
	switch {
	case units < 0 || units == 0 && d.Unit == federate.Patient:
		return fmt.Errorf("consortium: starting a run: %w: privacy per patient needs to know how many patients take part about", federate.ErrTerms)
	case units == 0:
		units = sites
	}
	if d.Delta == 0 && d.Unit == federate.Hospital { // as little as sites allow that say nothing
		d.Delta = min(defaultDelta, 0.01/float64(units))
	}
	plain := o.Terms
	plain.DP, plain.Algorithm = nil, federate.FedAvg // the model's size alone is asked for
	e, err := engineOf(m, data, plain)
	if err != nil {
		return err
	}
	variables, _ := e.Variables()
	if err := e.Close(); err != nil {
		return err
	}
	o.Terms, err = o.Terms.Complete(sites, units, len(variables))
	return err
}
