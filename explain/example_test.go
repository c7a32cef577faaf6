package explain_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
)

// A linear score of three columns, explained against an average patient.
func Example() {
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "N"}
	x := b.Input("x", onnx.Float, batch, onnx.Dim{Value: 3})
	z := b.Op("MatMul", []string{x, b.Weight("w", []int64{3, 1}, []float32{0.5, -2, 0.25})})
	b.Output(z, onnx.Float, batch, onnx.Dim{Value: 1})
	model, err := b.Build()
	if err != nil {
		log.Fatal(err)
	}
	average := engine.Float32([]int64{1, 3}, []float32{60, 1, 5})
	patient := engine.Float32([]int64{1, 3}, []float32{72, 3, 9})
	e, err := explain.New(explain.KernelSHAP, model, explain.Options{Background: explain.References(average)})
	if err != nil {
		log.Fatal(err)
	}
	defer e.Close()
	m, err := e.Explain(context.Background(), patient, 0)
	if err != nil {
		log.Fatal(err)
	}
	features, err := explain.Features(m, patient, []string{"age", "grade", "ward"})
	if err != nil {
		log.Fatal(err)
	}
	if err := explain.WriteFeatures(os.Stdout, features, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("adds up to %.3g\n", m.Additive.Output-m.Additive.Reference)
	// Output:
	// feature  value  attribution
	//       age     72           +6
	//     grade      3           -4
	//      ward      9           +1
	// adds up to 3
}
