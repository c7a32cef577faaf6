package train

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// HardenedRecord is what the report of a hardened run says beside the recipe.
type HardenedRecord struct {
	Against   string   `json:"against"`            // in words
	Baseline  Interval `json:"baseline_auc"`       // of the network before, clean validation images
	Budget    float64  `json:"auc_budget"`         // what of it may be lost
	Floor     float64  `json:"auc_floor"`          // and so what must be left
	Met       bool     `json:"auc_budget_met"`     //
	Cost      Interval `json:"auc_cost"`           // baseline less kept, paired bootstrap of 2000
	Candidate string   `json:"candidate"`          // that was kept
	Share     float64  `json:"hardened_share"`     // of the way from the network before to the hardened one
	Withstood Interval `json:"withstood_accuracy"` // share of validation images told right under the training's own adversary
}

// String says in words what a network is hardened against.
func (h *Hardening) String() string {
	if h == nil {
		return "nothing"
	}
	var parts []string
	if h.Method != "" {
		against := fmt.Sprintf("%s of at most %.4g", map[string]string{Linf: "changes of each pixel", L2: "changes of an L2 norm"}[h.Norm], h.Eps)
		if h.Norm == Linf {
			against += fmt.Sprintf(" (%.3g/255)", h.Eps*255)
		}
		if h.Norm == Patch {
			against = fmt.Sprintf("a square of %d×%[1]d pixels of any content", h.Side)
		}
		how := "PGD-AT"
		if h.Method == TRADES {
			how = fmt.Sprintf("TRADES, beta %g", h.Beta)
		}
		how += fmt.Sprintf(", %d steps", h.Steps)
		if h.AWP > 0 {
			how += fmt.Sprintf(", AWP %g", h.AWP)
		}
		parts = append(parts, against+" ("+how+")")
	}
	if o := h.Occlusion; o != nil {
		what := fmt.Sprintf("up to %d masks", o.Masks)
		if o.Patch > 0 {
			what += fmt.Sprintf(" of the %d×%[1]d that cover patches of %d×%[2]d", o.Grid, o.Patch)
		}
		if len(o.Sizes) > 0 {
			what += fmt.Sprintf(" of sides %v", o.Sizes)
		}
		if o.WorstOf > 1 {
			what += fmt.Sprintf(", the worst of %d each", o.WorstOf)
		}
		parts = append(parts, what+fmt.Sprintf(", filled with %s", o.Fill))
	}
	if h.Noise > 0 {
		parts = append(parts, fmt.Sprintf("Gaussian noise of deviation %g", h.Noise))
	}
	text := ""
	for i, p := range parts {
		if i > 0 {
			text += "; "
		}
		text += p
	}
	return text
}

// Withstands says what share of a set a model tells right under what h names, as
// Epoch.Robust does, with Wilson's interval; of labels that do not exclude each
// other, the share of labels. The network says where input and logits are.
func Withstands(ctx context.Context, n *Network, s *Set, h *Hardening, seed uint64) (Interval, error) {
	c := Config{Network: n, Train: s, Validation: s, Recipe: Recipe{Epochs: 1 << 20, Batch: min(evaluationBatch, s.Len()), Parts: 1, Seed: seed, Hardening: h}}
	c.Recipe = c.Recipe.orDefault()
	if err := c.check(); err != nil {
		return Interval{}, err
	}
	t := &trainer{config: c}
	if err := t.fit(); err != nil {
		return Interval{}, err
	}
	if err := t.take(); err != nil {
		return Interval{}, err
	}
	t.batch.inputs = make([]float32, c.Batch*int(product(t.example())))
	var err error
	if t.hardened, err = newHardened(t); err != nil {
		return Interval{}, err
	}
	defer t.close()
	share, err := t.hardened.resists(ctx, t, t.variables())
	if err != nil {
		return Interval{}, err
	}
	of := s.Len()
	if s.Multi() {
		of *= s.Classes
	}
	return Wilson(int(math.Round(share*float64(of))), of), nil
}

// Interpolate is a model between two of one graph: each float constant is a's
// plus share times what b's is away from it. Networks that one was fine-tuned
// from the other keep working on the way, and trade what each is good at
// (Wortsman et al. 2022).
func Interpolate(a, b *onnx.Model, share float64) (*onnx.Model, error) {
	out := a.Clone()
	for _, w := range out.Graph.Initializers {
		if w.Type != onnx.Float {
			continue
		}
		other := b.Graph.Initializer(w.Name)
		if other == nil || !slices.Equal(other.Dims, w.Dims) || other.Type != w.Type {
			return nil, fmt.Errorf("train: between two models: only one has the constant %q as it is in the other", w.Name)
		}
		from, err := onnx.Values[float32](w)
		if err != nil {
			return nil, fmt.Errorf("train: between two models: %w", err)
		}
		to, err := onnx.Values[float32](other)
		if err != nil {
			return nil, fmt.Errorf("train: between two models: %w", err)
		}
		values := make([]float32, len(from))
		for i, v := range from {
			values[i] = float32(float64(v) + share*(float64(to[i])-float64(v)))
		}
		*w = *onnx.NewTensor(w.Name, w.Dims, values)
	}
	return out, nil
}

// AUCCost is how much lower the AUC (Set.MeanAUC) of the second logits is than
// that of the first, with the percentile interval of a bootstrap over the images,
// the same ones for both, each class as often as it is.
func (s *Set) AUCCost(before, after [][]float64, resamples int, seed uint64) (Interval, error) {
	was, err := s.MeanAUC(before)
	if err != nil {
		return Interval{}, err
	}
	is, err := s.MeanAUC(after)
	if err != nil {
		return Interval{}, err
	}
	columns := func(logits [][]float64) []ranked {
		var all []ranked
		for c := range len(logits[0]) {
			if !s.Multi() && s.Classes == 2 && c == 0 { // as MeanAUC has it
				continue
			}
			all = append(all, rank(s.Scores(logits, c)))
		}
		return all
	}
	first, second := columns(before), columns(after)
	strata := make([][]int, 1)
	if !s.Multi() {
		strata = make([][]int, s.Classes)
	}
	for i := range s.Len() {
		k := 0
		if !s.Multi() {
			k = s.Labels[i]
		}
		strata[k] = append(strata[k], i)
	}
	rng := rand.New(rand.NewPCG(seed, 0xc057))
	drawn, values := make([]float64, s.Len()), make([]float64, 0, resamples)
	for tries := 0; len(values) < resamples; tries++ {
		if tries > 20*resamples {
			return Interval{}, fmt.Errorf("train: a label is too rare to resample: %w", ErrOneClass)
		}
		clear(drawn)
		for _, members := range strata {
			for range members {
				drawn[members[rng.IntN(len(members))]]++
			}
		}
		sum := 0.0
		for c := range first {
			sum += first[c].auc(drawn) - second[c].auc(drawn)
		}
		if !math.IsNaN(sum) {
			values = append(values, sum/float64(len(first)))
		}
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[int(math.Round(q*float64(resamples-1)))] }
	return Interval{Value: was - is, Low: at(0.025), High: at(0.975)}, nil
}
