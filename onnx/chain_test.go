package onnx_test

import (
	"math/rand/v2"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// chain draws a computation on lists of integers, as exporters write them to
// get at a shape, and makes its elements visible as a shape in the end.
func chain(r *random) string {
	x := r.input(onnx.Float, r.dims(4, 1, 6))
	length := 4
	list := r.b.Op("Shape", []string{x})
	for range r.between(2, 8) {
		switch r.IntN(13) {
		case 0:
			i := r.between(-length, length-1)
			one := r.b.Op("Gather", []string{list, r.scalar(i)})
			list = r.b.Op("Concat", []string{list, r.b.Op("Unsqueeze", []string{one, r.b.Ints("axes", 0)})}, onnx.IntAttribute("axis", 0))
			length++
		case 1:
			list, length = r.b.Op("Gather", []string{list, r.b.Ints("i", 0, -1, 1)}), 3
		case 2:
			if length > 2 {
				list = r.b.Op("Slice", []string{list, r.b.Ints("s", 1), r.b.Ints("e", int64(length)+3)})
				length--
			}
		case 3:
			list = r.b.Op("Slice", []string{list, r.b.Ints("s", -1), r.b.Ints("e", -100), r.b.Ints("a", 0), r.b.Ints("t", -1)})
		case 4:
			list = r.b.Op([]string{"Add", "Sub", "Mul", "Div", "Mod", "Min", "Max"}[r.IntN(7)], []string{list, r.scalar(r.between(1, 3))})
		case 5:
			list = r.b.Op([]string{"Add", "Sub", "Mul", "Min", "Max"}[r.IntN(5)], []string{list, r.b.Ints("other", r.dims(length, -3, 3)...)})
		case 6:
			f := r.b.Op("Cast", []string{list}, onnx.IntAttribute("to", 1))
			f = r.b.Op([]string{"Mul", "Div", "Add"}[r.IntN(3)], []string{f, r.floats()})
			f = r.b.Op([]string{"Floor", "Ceil", "Round", "Neg", "Abs"}[r.IntN(5)], []string{f})
			list = r.b.Op("Cast", []string{f}, onnx.IntAttribute("to", 7))
		case 7:
			yes := r.b.Op([]string{"Equal", "Greater", "Less", "LessOrEqual"}[r.IntN(4)], []string{list, r.b.Ints("other", r.dims(length, 0, 5)...)})
			if r.coin() {
				yes = r.b.Op("Not", []string{yes})
			}
			list = r.b.Op("Where", []string{yes, list, r.b.Ints("else", r.dims(length, 0, 5)...)})
		case 8:
			if length%2 == 0 {
				pairs := r.b.Op("Transpose", []string{r.b.Op("Reshape", []string{list, r.b.Ints("to", -1, 2)})})
				if r.coin() {
					pairs = r.b.Op("Concat", []string{pairs, pairs}, onnx.IntAttribute("axis", 1))
					length *= 2
				}
				list = r.b.Op("Reshape", []string{pairs, r.b.Ints("to", -1)})
			}
		case 9:
			all := r.b.Op("ReduceProd", []string{list}, onnx.IntAttribute("keepdims", 1))
			list = r.b.Op("Concat", []string{all, list}, onnx.IntAttribute("axis", 0))
			length++
		case 10:
			ones := r.b.Op("ConstantOfShape", []string{r.b.Op("Shape", []string{list})}, onnx.TensorAttribute("value", onnx.NewTensor("", []int64{1}, []int64{2})))
			list = r.b.Op("Add", []string{ones, list})
		case 11:
			list = r.b.Op("Squeeze", []string{r.b.Op("Unsqueeze", []string{list, r.b.Ints("axes", 1)}), r.b.Ints("axes", -1)})
		case 12:
			if length > 2 {
				parts := r.ops("Split", 2, []string{list, r.b.Ints("parts", 1, int64(length-1))})
				list = r.b.Op("Concat", []string{parts[1], parts[0]}, onnx.IntAttribute("axis", 0))
			}
		}
		if length > 8 {
			list, length = r.b.Op("Gather", []string{list, r.b.Ints("i", 2, 0, 1)}), 3
		}
		// Keep the numbers where a float holds them exactly.
		list = r.b.Op("Max", []string{r.b.Op("Min", []string{list, r.scalar(1000)}), r.scalar(-1000)})
	}
	list = r.b.Op("Mod", []string{list, r.scalar(4)})
	return r.b.Op("ConstantOfShape", []string{list})
}

func TestShapeArithmeticIsEvaluatedAsTheRuntimeDoes(t *testing.T) {
	if err := engine.Ready(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	}
	for seed := range uint64(300) {
		r := &random{rand.New(rand.NewPCG(7, seed)), onnx.NewBuilder(17), 17}
		r.b.Output(chain(r), onnx.Float)
		m, err := r.b.Build()
		if err != nil {
			t.Fatal(err)
		}
		got, inferError := outputsOf(m)
		actual, runError := ran(m)
		if inferError != nil || runError != nil || got != actual {
			t.Errorf("chain %d: %s\ninferred %s %v\ncomputed %s %v", seed, describe(m), got, inferError, actual, runError)
		}
	}
}
