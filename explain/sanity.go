package explain

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// Sanity says whether a map depends on what the model has learnt: its
// similarity to maps of the model with randomised weights (Adebayo et al.
// 2018). A map that stays the same explains the input, not the model.
type Sanity struct {
	// Cascading randomises from the output back to the named layer, each
	// similarity being the mean over the randomisations. The last has no learnt
	// weight left.
	Cascading []Stage
	// Independent randomises the named layer alone, once.
	Independent []Stage
	// Similarity is that of the last stage of the cascade, by what the map is
	// read by: ranks, of sizes for a sensitivity. Error is its standard error.
	Similarity, Error float64
}

// Stage is one randomisation.
type Stage struct {
	Layer string `json:"layer"` // node of the graph
	Similarity
}

// ErrNoWeights: the model has no layer whose weights can be randomised, as trees
// have none.
var ErrNoWeights = errors.New("no weights to randomise")

// Randomise compares a map with those that the same method makes of the model
// with randomised weights. made is what New(method, m, o) explains.
func Randomise(ctx context.Context, method Method, m *onnx.Model, input engine.Tensor, made *Map, o Options, c CheckOptions) (*Sanity, error) {
	s, err := randomise(ctx, method, m, input, made, o, c)
	if err != nil {
		return nil, fmt.Errorf("explain: randomising the weights under %s: %w", method, err)
	}
	return s, nil
}

func randomise(ctx context.Context, method Method, m *onnx.Model, input engine.Tensor, made *Map, o Options, c CheckOptions) (*Sanity, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	subject, err := describeSubject(m, o)
	if err != nil {
		return nil, err
	}
	layers := layersOf(m, subject.logits)
	if len(layers) == 0 {
		return nil, ErrNoWeights
	}
	stages, repeats := min(or(c.Layers, 6), len(layers)), or(c.Randomisations, 5)
	progress, done, total := o.Progress, 0, stages*(repeats+1)
	o.Progress = nil
	compare := func(names map[string]bool, rng *rand.Rand) (Similarity, error) {
		random, err := randomised(m, names, rng)
		if err != nil {
			return Similarity{}, err
		}
		e, err := New(method, random, o)
		if err != nil {
			return Similarity{}, err
		}
		defer e.Close()
		other, err := e.Explain(ctx, input, made.Class)
		if err != nil {
			return Similarity{}, err
		}
		if done++; progress != nil {
			progress(done, total)
		}
		return Compare(made, other), nil
	}
	s := &Sanity{}
	var last []float64
	for stage := range stages {
		// The last layer of each stage: evenly through the depth, down to all.
		until := (stage+1)*len(layers)/stages - 1
		names := map[string]bool{}
		for _, l := range layers[:until+1] {
			for _, w := range l.weights {
				names[w] = true
			}
		}
		mean := Stage{Layer: layers[until].name}
		for r := range repeats {
			one, err := compare(names, rand.New(rand.NewPCG(o.Seed+uint64(r), 0xADEB)))
			if err != nil {
				return nil, err
			}
			mean.Rank += one.Rank / float64(repeats)
			mean.AbsRank += one.AbsRank / float64(repeats)
			mean.SSIM += one.SSIM / float64(repeats)
			if stage == stages-1 {
				last = append(last, one.read(made.Kind))
			}
		}
		s.Cascading = append(s.Cascading, mean)
		alone := map[string]bool{}
		for _, w := range layers[until].weights {
			alone[w] = true
		}
		one, err := compare(alone, rand.New(rand.NewPCG(o.Seed, 0x1DE9)))
		if err != nil {
			return nil, err
		}
		s.Independent = append(s.Independent, Stage{layers[until].name, one})
	}
	s.Similarity, s.Error = meanError(last)
	return s, nil
}

// read is the similarity of what a map of that kind is read by.
func (s Similarity) read(k Kind) float64 {
	if k == Sensitivity {
		return s.AbsRank
	}
	return s.Rank
}

// meanError is the mean and its standard error, 0 of a single number.
func meanError(values []float64) (mean, deviation float64) {
	n := float64(len(values))
	for _, v := range values {
		mean += v / n
	}
	if n < 2 {
		return mean, 0
	}
	for _, v := range values {
		deviation += (v - mean) * (v - mean)
	}
	return mean, math.Sqrt(deviation / (n - 1) / n)
}
