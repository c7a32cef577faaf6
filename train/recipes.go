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

// BreastCNN is the network of the recipe breast-28: a fixed histogram of oriented
// gradients in the place of the first convolutions, because a few hundred images
// teach a network less about edges than is known beforehand, and five members,
// because so few images leave much to where a network begins.
var BreastCNN = CNN{
	Channels: 1, Rows: 28, Columns: 28, Classes: 2,
	Orientations: 12, Cell: 2, Stages: [][]int{{32}, {64}}, GroupSize: 4, Hidden: 64, Members: 5,
	Mean: 0.3276, Deviation: 0.2057, // of BreastMNIST's training split
}

// BreastRecipe is the recipe breast-28, chosen by cross-validation within
// BreastMNIST's training split (docs/measurements.md). Brightness stays as it
// is: how much a tissue echoes is part of the finding. A mirrored breast is the
// other breast, but one upside down is not: shadows fall away from the probe.
// Turning and zooming, which blur, and mixup lowered the figure.
var BreastRecipe = Recipe{
	Epochs: 40, Batch: 32, Parts: 2, Rate: 2e-3, Warmup: 1, Optimizer: "adamw", Momentum: 0.9,
	Decay: 0.05, Average: 0.98, Seed: 1,
	Augmentation: Augmentation{Shift: 2.49, Whole: true, Mirror: 0.5},
}
