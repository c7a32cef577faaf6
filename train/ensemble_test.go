package train

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

func small(members int) CNN {
	return CNN{Channels: 1, Rows: 12, Columns: 12, Classes: 3, Stages: [][]int{{4}, {8}}, GroupSize: 4, Hidden: 8, Mean: 0.5, Deviation: 0.3, Members: members}
}

// Each member learns as it would alone: after some steps its weights are those of
// a run of its own over the same batches, and the ensemble's logits are the mean.
func TestEveryMemberOfAnEnsembleLearnsAsItWouldAlone(t *testing.T) {
	set := noise(64, 12, 3, 5)
	recipe := Recipe{
		Epochs: 2, Batch: 16, Parts: 2, Rate: 0.05, Optimizer: "sgd", Momentum: 0.9, Decay: 0.01, Smoothing: 0.1, Mixup: 0.3, Seed: 3,
		Augmentation: Augmentation{Shift: 1, Mirror: 0.5},
	}
	rng := rand.New(rand.NewPCG(4, 4))
	var alone []*Network
	for range 3 {
		n, err := small(0).Build(rng)
		if err != nil {
			t.Fatal(err)
		}
		alone = append(alone, n)
	}
	joined, err := small(3).Build(rand.New(rand.NewPCG(4, 4)))
	if err != nil {
		t.Fatal(err)
	}
	run := func(n *Network) *trainer {
		c := Config{Network: n, Train: set, Validation: set, Recipe: recipe.orDefault()}
		tr, err := newTrainer(c)
		skipWithoutRuntime(t, err)
		t.Cleanup(tr.close)
		for e := range recipe.Epochs {
			if _, err := tr.epoch(context.Background(), e); err != nil {
				t.Fatal(err)
			}
		}
		return tr
	}
	together := run(joined)
	per := len(alone[0].Weights)
	var mean [][]float64
	loss := 0.0
	for k, n := range alone {
		one := run(n)
		loss += one.state.History.Epochs[1].Loss / 3
		for i, name := range n.Weights {
			if got, want := joined.Weights[k*per+i], "member"+string(rune('1'+k))+"."+name; got != want {
				t.Fatalf("weight is named %q, want %q", got, want)
			}
			for j, want := range one.state.Weights[i] {
				if got := together.state.Weights[k*per+i][j]; math.Abs(float64(got-want)) > 1e-4*(1+math.Abs(float64(want))) {
					t.Fatalf("member %d, %s[%d] is %g, alone it is %g", k+1, name, j, got, want)
				}
			}
		}
		logits, err := one.evaluate(context.Background(), one.variables())
		if err != nil {
			t.Fatal(err)
		}
		if mean == nil {
			mean = make([][]float64, len(logits))
		}
		for i, row := range logits {
			mean[i] = append(mean[i], row...)
		}
	}
	near(t, "loss", together.state.History.Epochs[1].Loss, loss, 1e-4)
	got, err := together.evaluate(context.Background(), together.variables())
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range got {
		for c, v := range row {
			near(t, "logit", v, (mean[i][c]+mean[i][3+c]+mean[i][6+c])/3, 1e-3)
		}
	}
	// They differ, or there would be nothing to average.
	if slices.Equal(together.state.Weights[0], together.state.Weights[per]) {
		t.Error("two members are the same")
	}
}

// One tensor holds the maps of all members, and the answer depends on nothing
// else of the image.
func TestTheLayerOfAnEnsembleIsWhatAllMembersRead(t *testing.T) {
	n, err := small(3).Build(rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	shapes, err := onnx.InferShapes(n.Model, map[string]int64{"batch": 2})
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := shapes[n.Layer].Static(); !ok || !slices.Equal(got, []int64{2, 24, 6, 6}) {
		t.Errorf("layer %q is %v", n.Layer, shapes[n.Layer])
	}
	// Without the layer, no logit is reached from the image.
	reached := map[string]bool{n.Input: true}
	for _, node := range n.Model.Graph.Nodes {
		for _, in := range node.Inputs {
			if reached[in] && in != n.Layer {
				for _, out := range node.Outputs {
					reached[out] = true
				}
			}
		}
	}
	if reached[n.Logits] || !reached[n.Layer] {
		t.Errorf("the logits are reached past the layer: %v; the layer is reached: %v", reached[n.Logits], reached[n.Layer])
	}
	session, err := engine.Open(n.Model, engine.Options{})
	skipWithoutRuntime(t, err)
	session.Close()
}

func TestNetworksThatCannotBeJoinedAreRefused(t *testing.T) {
	build := func() *Network {
		n, err := small(0).Build(rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for says, members := range map[string]func() []*Network{
		"no networks": func() []*Network { return nil },
		"operator sets": func() []*Network {
			other := build()
			other.Model = other.Model.Clone()
			other.Model.Opsets[""] = 18
			return []*Network{build(), other}
		},
		"without the input or output \"nothing\"": func() []*Network {
			other := build()
			other.Logits = "nothing"
			return []*Network{other, build()}
		},
		"second input": func() []*Network {
			other := build()
			other.Model = other.Model.Clone()
			other.Model.Graph.Inputs = append(other.Model.Graph.Inputs, onnx.Value{Name: "age", Type: onnx.Float, Shape: onnx.Fixed(1)})
			return []*Network{other, build()}
		},
		"branches": func() []*Network {
			other := build()
			other.Model = other.Model.Clone()
			other.Model.Graph.Nodes[0].Attributes = append(other.Model.Graph.Nodes[0].Attributes, onnx.Attribute{Name: "then_branch", Graph: &onnx.Graph{}})
			return []*Network{other, build()}
		},
	} {
		if _, err := Ensemble(members()...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
	for _, members := range []int{-1, MaxMembers + 1} {
		if _, err := EnsembleOf(members, func() (*Network, error) { return build(), nil }); err == nil {
			t.Errorf("an ensemble of %d is made", members)
		}
	}
}
