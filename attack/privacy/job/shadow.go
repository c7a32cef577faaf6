package job

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/train"
)

// Training says how shadow models are trained: like the model, as its training
// record has it, or like a named recipe or a member of the zoo, with changes.
type Training struct {
	Recipe  string // of train.Recipes
	Network string // of package zoo, trained as vigie train does
	Epochs  int    // 0: the recipe's
	Batch   int    // likewise
	Rate    float64
	Augment string  // "none", or empty for the recipe's
	Epsilon float64 // of a privacy budget; 0: the recipe's
	Delta   float64 // likewise
	// Overfit chooses the epoch by the training examples themselves, so that the
	// most overfitted one is kept: what happens without a validation set.
	Overfit bool
}

// training is a network and its recipe.
type training struct {
	Name         string       `json:"name"`
	CNN          *train.CNN   `json:"cnn,omitempty"`
	Architecture string       `json:"architecture,omitempty"`
	Norm         string       `json:"norm,omitempty"`
	Members      int          `json:"members,omitempty"`
	Recipe       train.Recipe `json:"recipe"`
	Overfit      bool         `json:"overfit,omitempty"`
}

// training finds what shadow models are like.
func (o Training) training(r *record, s *train.Set) (*training, error) {
	t := &training{Overfit: o.Overfit}
	switch {
	case o.Recipe != "" && o.Network != "":
		return nil, fmt.Errorf("job: %w: a recipe has a network of its own; name a recipe or a network", ErrAsk)
	case o.Recipe != "":
		named, err := train.RecipeNamed(o.Recipe)
		if err != nil {
			return nil, fmt.Errorf("job: %w: %w", ErrAsk, err)
		}
		t.Name, t.CNN, t.Recipe = "recipe "+named.Name, &named.Network, named.Recipe
	case o.Network != "":
		t.Name, t.Architecture, t.Norm, t.Recipe = o.Network, o.Network, zoo.BatchNorm, train.DemoRecipe
		t.Recipe.Rate = 1e-3
		if t.Recipe.Augmentation = (train.Augmentation{}); s.Shape == nil {
			t.Recipe.Augmentation = train.StandardAugmentation(s.Rows, s.Columns)
		}
	case r != nil:
		t.Name, t.Recipe = "the model's training record", r.History.Recipe
		var about struct {
			Stages       [][]int `json:"stages"`
			Architecture string  `json:"architecture"`
			Norm         string  `json:"norm"`
			Members      int     `json:"members"`
			From         string  `json:"from"`
			Weights      string  `json:"weights"`
		}
		if err := json.Unmarshal(r.Network, &about); err != nil {
			return nil, fmt.Errorf("job: the training record's network: %w", err)
		}
		switch {
		case about.From != "" || about.Weights != "" && about.Weights != ".":
			return nil, fmt.Errorf("job: %w: the model went on from other weights (%s%s), which its shadow models would need too; name a --recipe or a --network instead", ErrAsk, about.From, about.Weights)
		case about.Stages != nil:
			t.CNN = &train.CNN{}
			if err := json.Unmarshal(r.Network, t.CNN); err != nil {
				return nil, fmt.Errorf("job: the training record's network: %w", err)
			}
		case about.Architecture != "":
			t.Architecture, t.Norm, t.Members = about.Architecture, about.Norm, about.Members
		default:
			return nil, fmt.Errorf("job: %w: the training record does not say what the network is; name a --recipe or a --network", ErrAsk)
		}
	default:
		return nil, fmt.Errorf("job: %w: there is no training record (%s) beside the model, so nobody knows how shadow models are to be trained; name a --recipe or a --network, or ask without shadow models (--shadows 0)", ErrAsk, train.TrainingFile)
	}
	if o.Epochs < 0 || o.Batch < 0 || !(o.Rate >= 0) || !(o.Epsilon >= 0) || !(o.Delta >= 0 && o.Delta < 1) {
		return nil, fmt.Errorf("job: %w: %d epochs, batches of %d, a rate of %v, epsilon %v, delta %v; want 0 for the recipe's, or more", ErrAsk, o.Epochs, o.Batch, o.Rate, o.Epsilon, o.Delta)
	}
	if o.Epochs > 0 {
		t.Recipe.Epochs = o.Epochs
	}
	if o.Batch > 0 {
		t.Recipe.Batch = o.Batch
	}
	if o.Rate > 0 {
		t.Recipe.Rate = o.Rate
	}
	switch o.Augment {
	case "":
	case "none":
		t.Recipe.Augmentation = train.Augmentation{}
	default:
		return nil, fmt.Errorf("job: augmentation %q: %w: want none, or leave it out for the recipe's", o.Augment, ErrAsk)
	}
	if o.Epsilon > 0 {
		p := train.Privacy{Delta: 1e-5}
		if t.Recipe.Private != nil {
			p = *t.Recipe.Private
		}
		p.Epsilon = o.Epsilon
		t.Recipe.Private = &p
	}
	if o.Delta > 0 {
		if t.Recipe.Private == nil {
			return nil, fmt.Errorf("job: %w: delta is for private training; name an epsilon too", ErrAsk)
		}
		t.Recipe.Private.Delta = o.Delta
	}
	if t.CNN != nil && s.Shape != nil {
		return nil, fmt.Errorf("job: %w: %s reads images, and the examples have shape %v; name a --network such as tabular-mlp", ErrAsk, t.Name, s.Shape)
	}
	if t.Architecture != "" && !slices.ContainsFunc(zoo.Architectures(), func(a zoo.Architecture) bool { return a.Name == t.Architecture }) {
		return nil, fmt.Errorf("job: network %q: %w: package zoo has none of that name; vigie train --help lists them", t.Architecture, ErrAsk)
	}
	t.Recipe.Patience = 0
	if err := t.checkSize(s); err != nil {
		return nil, err
	}
	_, err := t.build(s, 1) // says now what cannot be built
	return t, err
}

const mostWeights = 1 << 26 // of a shadow model

// checkSize refuses a record's network before it is built, if it would not fit.
func (t training) checkSize(s *train.Set) error {
	if t.Members < 0 || t.Members > train.MaxMembers {
		return fmt.Errorf("job: a network of %d members: %w: want at most %d", t.Members, ErrAsk, train.MaxMembers)
	}
	c := t.CNN
	if c == nil {
		return nil
	}
	tooLarge := fmt.Errorf("job: %s: %w: its network would have more than %d weights", t.Name, ErrAsk, mostWeights)
	if c.Orientations < 0 || c.Orientations > 64 || c.Hidden < 0 || c.Hidden > 1<<16 || len(c.Stages) > 16 || c.Members < 0 || c.Members > train.MaxMembers {
		return tooLarge
	}
	in, total, pixels := s.Channels*max(1, c.Orientations), 0, s.Rows*s.Columns
	for _, stage := range c.Stages {
		if len(stage) > 64 {
			return tooLarge
		}
		for _, out := range stage {
			if out < 1 || out > 1<<14 {
				return tooLarge
			}
			if total += 9 * in * out; total > mostWeights {
				return tooLarge
			}
			in = out
		}
		pixels /= 4
	}
	if (total+in*max(1, pixels)*max(1, c.Hidden))*max(1, c.Members) > mostWeights {
		return tooLarge
	}
	return nil
}

// build makes the network for a set.
func (t training) build(s *train.Set, seed uint64) (*train.Network, error) {
	r := t.Recipe
	r.Seed = seed
	if t.CNN != nil {
		cnn := *t.CNN
		return cnn.ForRecipe(s, r)
	}
	options := zoo.Options{Input: s.Example(), Classes: s.Classes, Norm: t.Norm}
	if s.Shape == nil {
		mean, deviation := r.Moments(s)
		for range s.Channels {
			options.Mean, options.Deviation = append(options.Mean, mean), append(options.Deviation, max(deviation, 1e-4))
		}
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	return train.EnsembleOf(max(1, t.Members), func() (*train.Network, error) {
		n, err := zoo.Build(t.Architecture, options, rng)
		if err != nil {
			return nil, err
		}
		return &train.Network{Model: n.Model, Input: n.Input, Logits: n.Logits, Weights: n.Weights, Layer: n.Layer}, nil
	})
}

// run trains one model on a part of a pool and returns it with its network and,
// of private training, its statement.
func (t training) run(ctx context.Context, pool *train.Set, in []bool, seed uint64, progress func(done float64)) (*onnx.Model, *train.Network, *train.Statement, error) {
	var with, without []int
	for i, member := range in {
		if member {
			with = append(with, i)
		} else {
			without = append(without, i)
		}
	}
	members, others := pool.Subset(with), pool.Subset(without)
	members.Name, others.Name = "members", "others"
	if t.Overfit {
		others = members
	}
	n, err := t.build(members, seed)
	if err != nil {
		return nil, nil, nil, err
	}
	r := t.Recipe
	r.Seed = seed
	if r.Batch == 0 {
		r.Batch = 64
	}
	r.Batch = min(r.Batch, members.Len())
	if r.Parts <= 0 || r.Batch%r.Parts != 0 {
		r.Parts = 1
	}
	result, err := train.Run(ctx, train.Config{Network: n, Train: members, Validation: others, Recipe: r}, func(e train.Epoch) {
		progress(float64(e.Epoch) / float64(r.Epochs))
	})
	if err != nil {
		return nil, nil, nil, err
	}
	return result.Model, n, result.Privacy, nil
}

// modelsWith is how many of the models are trained on a person.
func modelsWith(models int, share float64) int {
	return max(1, min(models-1, int(math.Round(share*float64(models)))))
}

// assign decides at random who is in whose training set: every person in the same
// number of the models, share of them. Persons' examples stay together.
func assign(pool *train.Set, models int, share float64, seed uint64) [][]bool {
	in := make([][]bool, models)
	for m := range in {
		in[m] = make([]bool, pool.Len())
	}
	rng := rand.New(rand.NewPCG(seed, 0x5ad0))
	with := modelsWith(models, share)
	chosen := map[string][]int{}
	for i := range pool.Len() {
		who := pool.Person(i)
		if chosen[who] == nil {
			chosen[who] = rng.Perm(models)[:with]
		}
		for _, m := range chosen[who] {
			in[m][i] = true
		}
	}
	return in
}

// persons numbers the person that each example is of.
func persons(pool *train.Set) []int {
	numbers := map[string]int{}
	out := make([]int, pool.Len())
	for i := range out {
		who := pool.Person(i)
		n, known := numbers[who]
		if !known {
			n = len(numbers)
			numbers[who] = n
		}
		out[i] = n
	}
	return out
}

// stopped says what is left of a run that was stopped.
func stopped(done, models int, folder string, err error) error {
	if folder == "" {
		return fmt.Errorf("job: stopped at shadow model %d of %d: %w; with a folder to keep them in, the next run would go on from here", done+1, models, err)
	}
	return fmt.Errorf("job: stopped at shadow model %d of %d: %w; %d are kept in %s, and the same command goes on from there", done+1, models, err, done, folder)
}

// shadows are trained, or taken from a folder where an earlier run left them.
type shadows struct {
	privacy.Shadows
	statements []*train.Statement
	reused     int
}

// train trains shadow models; those that the folder has are not trained again.
func (t training) shadows(ctx context.Context, pool *train.Set, models int, share float64, looks int, seed uint64, folder string, progress func(string, float64)) (out *shadows, err error) {
	out = &shadows{}
	out.In, out.Queries = assign(pool, models, share, seed), looks
	if folder != "" {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return nil, fmt.Errorf("job: the folder of shadow models: %w", err)
		}
		held, err := train.HoldOutput(filepath.Join(folder, "shadows.onnx"))
		if err != nil {
			return nil, fmt.Errorf("job: the folder of shadow models: %w", err)
		}
		defer func() { err = errors.Join(err, held.Release()) }()
	}
	whole := pixels(pool)
	size := len(whole) / pool.Len()
	for m := range models {
		if err := ctx.Err(); err != nil {
			return nil, stopped(m, models, folder, err)
		}
		members := 0
		for _, in := range out.In[m] {
			if in {
				members++
			}
		}
		if members < 4 || members > pool.Len()-2 {
			return nil, fmt.Errorf("job: shadow model %d would be trained on %d of %d examples: %w: there are too few, or the share is too near 0 or 1", m, members, pool.Len(), ErrAsk)
		}
		own := seed*1_000_003 + uint64(m) + 1
		graph, n, statement, err := t.kept(folder, pool, out.In[m], own)
		if err != nil {
			return nil, err
		}
		if graph != nil {
			out.reused++
		} else {
			if graph, n, statement, err = t.run(ctx, pool, out.In[m], own, func(done float64) {
				progress("shadow models", (float64(m)+done*0.999)/float64(models))
			}); err != nil && ctx.Err() != nil {
				return nil, stopped(m, models, folder, ctx.Err())
			}
			if err != nil {
				return nil, fmt.Errorf("job: training shadow model %d of %d: %w", m+1, models, err)
			}
			if err := t.keep(folder, pool, out.In[m], own, graph, statement); err != nil {
				return nil, err
			}
		}
		signals := make([]float64, pool.Len()*looks)
		for k := range looks {
			all := make([]float32, 0, len(whole))
			for i := range pool.Len() {
				all = append(all, look(pool, whole[i*size:(i+1)*size], k)...)
			}
			z, err := train.Logits(ctx, graph, n.Input, n.Logits, floats(pool, all))
			if err != nil && ctx.Err() != nil {
				return nil, stopped(m, models, folder, ctx.Err())
			}
			if err != nil {
				return nil, err
			}
			signal, err := privacy.Signal(z, pool.Labels)
			if err != nil {
				return nil, err
			}
			for i, v := range signal {
				signals[i*looks+k] = v
			}
		}
		out.Signals = append(out.Signals, signals)
		out.statements = append(out.statements, statement)
		progress("shadow models", float64(m+1)/float64(models))
	}
	return out, nil
}

// key names a shadow model: all that decides it.
func (t training) key(pool *train.Set, in []bool, seed uint64) (string, error) {
	about, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("job: naming a shadow model: %w", err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "vigie shadow model 1\n%s\n%s\n%d\n", about, pool.Digest(), seed)
	for _, member := range in {
		if member {
			h.Write([]byte{1})
		} else {
			h.Write([]byte{0})
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// kept takes a shadow model from the folder; nil if it is not there.
func (t training) kept(folder string, pool *train.Set, in []bool, seed uint64) (*onnx.Model, *train.Network, *train.Statement, error) {
	if folder == "" {
		return nil, nil, nil, nil
	}
	name, err := t.key(pool, in, seed)
	if err != nil {
		return nil, nil, nil, err
	}
	path := filepath.Join(folder, name+".onnx")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil, nil
	}
	graph, err := onnx.Load(path)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("job: a shadow model of an earlier run: %w; remove it to train it again", err)
	}
	n, err := t.build(pool, seed) // for the names; the weights are the file's
	if err != nil {
		return nil, nil, nil, err
	}
	var statement *train.Statement
	if t.Recipe.Private != nil {
		f, err := os.Open(filepath.Join(folder, name+".json"))
		if err != nil {
			return nil, nil, nil, fmt.Errorf("job: the privacy statement of a shadow model of an earlier run: %w; remove %s to train it again", err, path)
		}
		defer f.Close()
		if err := json.NewDecoder(io.LimitReader(f, 1<<20)).Decode(&statement); err != nil {
			return nil, nil, nil, fmt.Errorf("job: the privacy statement of a shadow model of an earlier run: %w; remove %s to train it again", err, path)
		}
	}
	return graph, n, statement, nil
}

// keep leaves a shadow model in the folder, the model last: a run that was killed
// leaves whole ones only.
func (t training) keep(folder string, pool *train.Set, in []bool, seed uint64, graph *onnx.Model, statement *train.Statement) error {
	if folder == "" {
		return nil
	}
	name, err := t.key(pool, in, seed)
	if err != nil {
		return err
	}
	if statement != nil {
		err := train.WriteWhole(filepath.Join(folder, name+".json"), func(w io.Writer) error { return json.NewEncoder(w).Encode(statement) })
		if err != nil {
			return fmt.Errorf("job: keeping a shadow model: %w", err)
		}
	}
	if err := graph.Save(filepath.Join(folder, name+".onnx")); err != nil {
		return fmt.Errorf("job: keeping a shadow model: %w", err)
	}
	return nil
}
