package train

import (
	"context"
	"math"
	"slices"
	"testing"
)

func TestTheRecipesComeInOneOrderAndUnderDifferentNames(t *testing.T) {
	var names []string
	for _, r := range Recipes() {
		names = append(names, r.Name)
		if r.About == "" || r.Recipe.Seed != 1 {
			t.Errorf("%s: about %q, seed %d", r.Name, r.About, r.Recipe.Seed)
		}
	}
	if want := []string{"demo", "breast-28", "private-28", "plain-28"}; !slices.Equal(names, want) {
		t.Errorf("recipes are %v, want %v", names, want)
	}
}

// A recipe without privacy may take the pixel moments of the set that it was
// found on; they are then those of that set, not of another.
func TestPixelMomentsOfTheRecipesAreThoseOfTheirData(t *testing.T) {
	for file, c := range map[string]CNN{"pneumoniamnist-trainval.npz": DemoCNN, "breastmnist-trainval.npz": BreastCNN} {
		set, err := LoadMedMNIST(dataFile(t, file), "train", Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if m, d := set.Moments(); m != c.Mean || d != c.Deviation {
			t.Errorf("%s: mean %g, deviation %g; the recipe's network has %g, %g", file, m, d, c.Mean, c.Deviation)
		}
	}
}

// A few epochs of every recipe without privacy learn something of the data that it
// is for.
func TestEveryRecipeLearnsItsData(t *testing.T) {
	for _, r := range Recipes() {
		file := "breastmnist-trainval.npz"
		if r.Recipe.Private != nil {
			continue // private_test.go
		}
		if r.Name != "breast-28" {
			file = "pneumoniamnist-trainval.npz"
		}
		var sets [2]*Set
		for i, split := range []string{"train", "val"} {
			var err error
			if sets[i], err = LoadMedMNIST(dataFile(t, file), split, Limits{}); err != nil {
				t.Fatal(err)
			}
		}
		var some []int // the classes come one after the other
		for i := 0; i < sets[0].Len(); i += 1 + sets[0].Len()/500 {
			some = append(some, i)
		}
		few := sets[0].Subset(some)
		cnn, recipe := r.Network, r.Recipe
		recipe.Epochs, recipe.Average = 8, 0
		n, err := cnn.ForRecipe(few, recipe)
		if err != nil {
			t.Fatal(err)
		}
		result, err := Run(context.Background(), Config{Network: n, Train: few, Validation: sets[1], Recipe: recipe}, nil)
		skipWithoutRuntime(t, err)
		if auc := result.History.Epochs[result.History.Best-1].ValidationAUC; !(auc > 0.7) {
			t.Errorf("%s: validation AUC %.3f after %d epochs, want more than 0.7", r.Name, auc, recipe.Epochs)
		}
	}
}

// Left becomes right and nothing else changes, about half of the times.
func TestMirroringChangesSides(t *testing.T) {
	const rows, columns = 5, 7
	src := ramp(rows, columns)
	mirrored := 0
	for seed := range uint64(200) {
		got := augmented(Augmentation{Mirror: 0.5}, src, rows, columns, seed)
		same := math.Abs(float64(got[0])-float64(src[0])/255) < 1e-6
		for y := range rows {
			for x := range columns {
				from := x
				if !same {
					from = columns - 1 - x
				}
				near(t, "pixel", float64(got[y*columns+x]), float64(src[y*columns+from])/255, 1e-6)
			}
		}
		if !same {
			mirrored++
		}
	}
	if mirrored < 70 || mirrored > 130 {
		t.Errorf("%d of 200 images mirrored, want about half", mirrored)
	}
}
