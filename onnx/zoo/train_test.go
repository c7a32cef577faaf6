package zoo_test

import (
	"errors"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/train"
)

func TestANetworkOfTheZooLearns(t *testing.T) {
	set := &train.Set{Name: "stripes", Channels: 1, Rows: 28, Columns: 28, Classes: 2}
	for i := range 32 { // horizontal or vertical stripes of different widths
		for r := range 28 {
			for c := range 28 {
				at := r
				if i%2 == 1 {
					at = c
				}
				set.Pixels = append(set.Pixels, uint8(255*(at/(1+i%5)%2)))
			}
		}
		set.Labels = append(set.Labels, i%2)
	}
	n := build(t, "resnet18", zoo.Options{Input: []int64{1, 28, 28}, Classes: 2, Norm: zoo.GroupNorm})
	result, err := train.Run(t.Context(), train.Config{
		Network: &train.Network{Model: n.Model, Input: n.Input, Logits: n.Logits, Weights: n.Weights, Layer: n.Layer},
		Train:   set, Validation: set,
		Recipe: train.Recipe{Epochs: 4, Batch: 16, Rate: 1e-3, Seed: 1},
	}, nil)
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	epochs := result.History.Epochs
	if first, last := epochs[0].Loss, epochs[len(epochs)-1].ValidationLoss; !(last < first/3) {
		t.Errorf("the loss went from %v to %v", first, last)
	}
}
