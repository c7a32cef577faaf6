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
		{"private-28", "28×28 images under differential privacy, epsilon 8", PrivateCNN, PrivateRecipe},
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
