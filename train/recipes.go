package train

import (
	"fmt"
	"strings"
)

// NamedRecipe is a network and how it is trained, found to work.
type NamedRecipe struct {
	Name    string
	About   string
	Network CNN
	Recipe  Recipe
}

// Recipes are the named recipes.
func Recipes() []NamedRecipe {
	return []NamedRecipe{
		{"demo", "28×28 images, as the demo model was made", DemoCNN, DemoRecipe},
		{"breast-28", "28×28 ultrasound images of a few hundred patients", BreastCNN, BreastRecipe},
		{"private-28", "28×28 images under differential privacy, epsilon 8", PrivateCNN, PrivateRecipe},
		{"plain-28", "private-28 without privacy: what privacy costs", PrivateCNN, PrivateRecipe.withoutPrivacy()},
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
	return NamedRecipe{}, fmt.Errorf("train: recipe %q: want %s", name, strings.Join(names, " or "))
}

// BreastCNN is the network of the recipe breast-28: that of the demo model, but
// its last map is averaged instead of going through a hidden layer, because a
// finding counts alike wherever the probe was held.
var BreastCNN = CNN{
	Channels: 1, Rows: 28, Columns: 28, Classes: 2,
	Stages: [][]int{{16, 16}, {32, 32}, {64}}, GroupSize: 4,
	Mean: 0.3276, Deviation: 0.2057, // of BreastMNIST's training split
}

// BreastRecipe is the recipe breast-28, chosen by cross-validation within
// BreastMNIST's training split (docs/measurements.md). Brightness stays as it
// is: how much a tissue echoes is part of the finding. A mirrored breast is the
// other breast, but one upside down is not: shadows fall away from the probe.
var BreastRecipe = Recipe{
	Epochs: 120, Batch: 32, Parts: 2, Rate: 2e-3, Warmup: 1, Optimizer: "adamw", Momentum: 0.9,
	Decay: 0.05, Smoothing: 0.1, Mixup: 0.4, Average: 0.995, Seed: 1,
	Augmentation: Augmentation{Shift: 1.5, Rotation: 5, Zoom: 0.05, Mirror: 0.5},
}
