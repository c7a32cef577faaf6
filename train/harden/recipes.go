package harden

import (
	"fmt"
	"strings"

	"github.com/vigie/vigie/train"
)

// NamedRecipe is a network, how it is trained, and what against.
type NamedRecipe struct {
	train.NamedRecipe
	Hardening train.Hardening
}

// Recipes are the named recipes.
func Recipes() []NamedRecipe {
	return []NamedRecipe{
		{train.NamedRecipe{Name: "hard-28", About: "28×28 radiographs, against 8/255", Network: hardCNN, Recipe: hardRecipe},
			train.Hardening{Method: train.PGDAT, Norm: train.Linf, Eps: 6.0 / 255, Steps: 3, Ramp: 2}},
		{train.NamedRecipe{Name: "masked-28", About: "28×28 images, right under two of 36 masks that cover patches of 3×3", Network: maskedCNN, Recipe: maskedRecipe},
			train.Hardening{Occlusion: &train.Occlusion{Patch: 3, Grid: 6, Masks: 2, Share: 0.9, WorstOf: 4, Fill: train.Grey}}},
	}
}

// RecipeNamed finds a named recipe.
func RecipeNamed(name string) (NamedRecipe, error) {
	var names []string
	for _, r := range Recipes() {
		if r.Name == name {
			return r, nil
		}
		names = append(names, r.Name)
	}
	return NamedRecipe{}, fmt.Errorf("harden: recipe %q: %w: want %s", name, ErrAsk, strings.Join(names, " or "))
}

// SetRecipe takes network, recipe and hardening of a named recipe; of a Model, the
// network stays.
func (o *Options) SetRecipe(r NamedRecipe) error {
	if o.Job.Network != "" {
		return fmt.Errorf("harden: %w: recipe %s has a network of its own; leave the other one out", ErrAsk, r.Name)
	}
	o.Hardening = r.Hardening
	o.Job.TakeRecipe(r.NamedRecipe, o.Model == "")
	return nil
}

// hardCNN averages pixels by twos first, which costs no AUC on PneumoniaMNIST and
// makes adversarial training four times cheaper, and is wider than the demo's: what
// is robust takes more weights to tell.
var hardCNN = train.CNN{
	Channels: 1, Rows: 28, Columns: 28, Classes: 2,
	Shrink: 2, Stages: [][]int{{32, 32}, {64, 64}}, GroupSize: 4, Hidden: 64,
	Mean: 0.5719, Deviation: 0.1684, // of PneumoniaMNIST's training split
}

var hardRecipe = train.Recipe{
	Epochs: 12, Batch: 64, Parts: 2, Rate: 3e-3, Warmup: 1, Optimizer: "adamw", Momentum: 0.9,
	Decay: 0.05, Average: 0.995, Seed: 1,
	Augmentation: train.Augmentation{Shift: 1, Contrast: 0.1},
}

// maskedCNN begins with a fixed histogram of oriented gradients: what a mask hides
// changes the cells under it alone.
var maskedCNN = train.CNN{
	Channels: 1, Rows: 28, Columns: 28, Classes: 2,
	Orientations: 12, Cell: 2, Stages: [][]int{{32}, {64}}, GroupSize: 4, Hidden: 64,
	Mean: 0.5719, Deviation: 0.1684,
}

var maskedRecipe = train.Recipe{
	Epochs: 20, Batch: 64, Parts: 2, Rate: 2e-3, Warmup: 1, Optimizer: "adamw", Momentum: 0.9,
	Decay: 0.05, Average: 0.99, Seed: 1,
	Augmentation: train.Augmentation{Shift: 2.49, Whole: true},
}
