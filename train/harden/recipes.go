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
		{train.NamedRecipe{Name: "hard-28", About: "28×28 images, against 8/255", Network: hardCNN, Recipe: hardRecipe},
			train.Hardening{Method: train.PGDAT, Norm: train.Linf, Eps: 8.0 / 255, Steps: 5, Ramp: 4}},
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

var hardCNN = train.CNN{
	Channels: 1, Rows: 28, Columns: 28, Classes: 2,
	Stages: [][]int{{16}, {32}, {64}}, GroupSize: 4, Hidden: 64,
	Mean: 0.5719, Deviation: 0.1684,
}

var hardRecipe = func() train.Recipe {
	r := train.DemoRecipe
	r.Epochs = 12
	return r
}()
