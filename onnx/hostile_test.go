package onnx_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx"
)

func TestAFileOfTwoGigabytesIsRefusedBeforeItIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large.onnx")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 31); err != nil { // a hole: it takes no space
		t.Skipf("SKIPPED, NOTHING PROVED: no sparse files here: %v", err)
	}
	if _, err := onnx.Load(path); !errors.Is(err, onnx.ErrLimit) || !strings.Contains(err.Error(), path) {
		t.Errorf("error is %v", err)
	}
}

// Sizes whose product overflows must not come out as a small, or a negative,
// number of elements.
func TestShapesBeyondAnyMachineAreRefused(t *testing.T) {
	for name, build := range map[string]func(b *onnx.Builder) string{
		"an input": func(b *onnx.Builder) string {
			return b.Op("Flatten", []string{b.Input("x", onnx.Float, number(1<<32), number(1<<32), number(2))})
		},
		"an expansion": func(b *onnx.Builder) string {
			return b.Op("Expand", []string{b.Input("x", onnx.Float, number(1)), b.Ints("to", 1<<31, 1<<31, 1<<31)})
		},
		"tiles": func(b *onnx.Builder) string {
			return b.Op("Tile", []string{b.Input("x", onnx.Float, number(1<<20), number(1<<20)), b.Ints("repeats", 1<<20, 1<<30)})
		},
		"a constant of a shape": func(b *onnx.Builder) string {
			return b.Op("ConstantOfShape", []string{b.Ints("of", math.MaxInt64, 3)})
		},
		"a product of outer vectors": func(b *onnx.Builder) string {
			return b.Op("MatMul", []string{b.Input("x", onnx.Float, number(1<<30), number(1)), b.Input("y", onnx.Float, number(1), number(1<<30))})
		},
		"hidden states": func(b *onnx.Builder) string {
			x := b.Input("x", onnx.Float, number(1<<20), number(1<<20), number(1))
			w, r := b.Input("w", onnx.Float, number(1), number(4<<20), number(1)), b.Input("r", onnx.Float, number(1), number(4<<20), number(1<<20))
			return b.Node(&onnx.Node{OpType: "LSTM", Inputs: []string{x, w, r}, Attributes: []onnx.Attribute{onnx.IntAttribute("hidden_size", 1<<20)}}, 1)[0]
		},
	} {
		if got := inferred(t, nil, build); !strings.Contains(got, onnx.ErrLimit.Error()) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestNotANumberAmongTheWeightsIsFoundInEveryKindOfConstant(t *testing.T) {
	nan := math.NaN()
	for _, w := range []*onnx.Tensor{
		onnx.NewTensor("w", []int64{2}, []float32{float32(math.Inf(1)), float32(nan)}),
		onnx.NewTensor("w", []int64{2}, []float64{math.Inf(-1), nan}),
		{Name: "w", Type: onnx.Float16, Dims: []int64{2}, Raw: []byte{0x00, 0x7c, 0x01, 0xfc}},
		{Name: "w", Type: onnx.Bfloat16, Dims: []int64{2}, Raw: []byte{0x80, 0xff, 0x81, 0x7f}},
	} {
		b := onnx.NewBuilder(17)
		x := b.Input("x", onnx.Float, number(2))
		b.Constant(w)
		b.Output(b.Op("Relu", []string{x}), onnx.Float, number(2))
		m, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.CheckWeights(); !errors.Is(err, onnx.ErrNotFinite) || !strings.Contains(err.Error(), `"w": element 1`) {
			t.Errorf("%v: error is %v", w.Type, err)
		}
		if s, err := onnx.Inspect(m); err != nil || !strings.Contains(s.Problem, `"w"`) {
			t.Errorf("%v: an inspection says %+v, %v", w.Type, s, err)
		}
		w.Raw[len(w.Raw)-1], w.Raw[len(w.Raw)-2] = 0, 0 // what is left is an infinity
		if err := m.CheckWeights(); err != nil {
			t.Errorf("%v: an infinity is refused: %v", w.Type, err)
		}
	}
	// Where a node or a graph within it holds the constant.
	bad := onnx.NewTensor("", []int64{1}, []float32{float32(nan)})
	node := &onnx.Node{OpType: "Constant", Outputs: []string{"c"}, Attributes: []onnx.Attribute{onnx.TensorAttribute("value", bad)}}
	inner := &onnx.Graph{Nodes: []*onnx.Node{node}}
	outer := &onnx.Node{OpType: "If", Attributes: []onnx.Attribute{{Name: "then_branch", Type: onnx.AttributeGraph, Graph: inner}}}
	if err := (&onnx.Model{Graph: &onnx.Graph{Nodes: []*onnx.Node{outer}}}).CheckWeights(); !errors.Is(err, onnx.ErrNotFinite) {
		t.Errorf("a constant in a branch: %v", err)
	}
}

// looped is x ▸ Loop, whose body has a condition, the carried value and one
// value that is collected.
func TestControlFlowHasTheShapesThatCanBeKnown(t *testing.T) {
	body := &onnx.Graph{
		Name:   "body",
		Inputs: []onnx.Value{{Name: "i", Type: onnx.Int64, Shape: []onnx.Dim{}}, {Name: "go", Type: onnx.Bool, Shape: []onnx.Dim{}}, {Name: "carried", Type: onnx.Float}},
		Nodes: []*onnx.Node{
			{OpType: "Identity", Inputs: []string{"go"}, Outputs: []string{"on"}},
			{OpType: "Relu", Inputs: []string{"carried"}, Outputs: []string{"next"}},
			{OpType: "Shape", Inputs: []string{"carried"}, Outputs: []string{"each"}},
		},
		Outputs: []onnx.Value{{Name: "on", Type: onnx.Bool}, {Name: "next", Type: onnx.Float}, {Name: "each", Type: onnx.Int64}},
	}
	loop := func(which int) func(b *onnx.Builder) string {
		return func(b *onnx.Builder) string {
			x := b.Input("x", onnx.Float, number(2))
			n := b.Constant(onnx.NewTensor("n", nil, []int64{3}))
			return b.Node(&onnx.Node{OpType: "Loop", Inputs: []string{n, "", x}, Attributes: []onnx.Attribute{{Name: "body", Type: onnx.AttributeGraph, Graph: body}}}, 2)[which]
		}
	}
	if got := inferred(t, nil, loop(0)); got != "float[…]" {
		t.Errorf("carried: %s", got)
	}
	if got := inferred(t, nil, loop(1)); got != "int64[…]" {
		t.Errorf("collected: %s", got)
	}
	branch := func(name string, dims ...int64) onnx.Attribute {
		return onnx.Attribute{Name: name, Type: onnx.AttributeGraph, Graph: &onnx.Graph{
			Name:         name,
			Initializers: []*onnx.Tensor{onnx.NewTensor(name+" shape", []int64{int64(len(dims))}, dims)},
			Nodes:        []*onnx.Node{{OpType: "Reshape", Inputs: []string{"x", name + " shape"}, Outputs: []string{name + " y"}}},
			Outputs:      []onnx.Value{{Name: name + " y"}},
		}}
	}
	for want, condition := range map[string]func(b *onnx.Builder) string{
		"float[?,6]": func(b *onnx.Builder) string { return b.Input("c", onnx.Bool) },
		"float[1,6]": func(b *onnx.Builder) string { return b.Constant(onnx.NewTensor("c", nil, []bool{true})) },
		"float[2,6]": func(b *onnx.Builder) string { return b.Constant(onnx.NewTensor("c", nil, []bool{false})) },
	} {
		got := inferred(t, nil, func(b *onnx.Builder) string {
			b.Input("x", onnx.Float, anyNumber(), number(6))
			return b.Op("If", []string{condition(b)}, branch("then_branch", 1, 6), branch("else_branch", 2, 6))
		})
		if got != want {
			t.Errorf("If is %s, want %s", got, want)
		}
	}
}

func anyNumber() onnx.Dim { return onnx.Dim{Value: -1} }

func TestEinsumEquationsAreRead(t *testing.T) {
	e, err := onnx.ParseEinsum("b...ij, ...jk -> b...ik", []int{5, 4})
	if err != nil || len(e.Terms) != 2 || len(e.Terms[0]) != 5 || len(e.Result) != 5 || e.Result[1] != -2 || e.Terms[1][0] != -2 {
		t.Errorf("%+v, %v", e, err)
	}
	for _, bad := range []string{"ij,jk->ik,", "i1->i", "ij->ii", "ij->k", "ijk->i", "i..j->i"} {
		if e, err := onnx.ParseEinsum(bad, []int{2}); err == nil {
			t.Errorf("%q is read as %+v", bad, e)
		}
	}
	if e, err := onnx.ParseEinsum("...i->...", []int{-1}); e != nil || err != nil {
		t.Errorf("an unknown rank gives %+v, %v", e, err)
	}
}

func FuzzParseEinsum(f *testing.F) {
	for _, equation := range []string{"bij,bjk->bik", "...ij,jk", "ii->i", "->", "", ",", "a...b...->", "\u00e9->"} {
		f.Add(equation, int8(2), int8(3))
	}
	f.Fuzz(func(t *testing.T, equation string, first, second int8) {
		ranks := []int{int(first), int(second)}
		if !strings.Contains(equation, ",") {
			ranks = ranks[:1]
		}
		e, err := onnx.ParseEinsum(equation, ranks)
		if err != nil || e == nil {
			return
		}
		for i, term := range e.Terms {
			if ranks[i] >= 0 && len(term) != ranks[i] {
				t.Errorf("%q: term %d has %d indices for rank %d", equation, i, len(term), ranks[i])
			}
		}
	})
}

// FuzzCheck rewires a legal graph: whatever names its nodes get, the answer is a
// verdict, and a graph that passes can be written, read and inferred.
func FuzzCheck(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3}, uint8(0))
	f.Add([]byte{3, 3, 3, 3, 3}, uint8(1))
	f.Add([]byte{1, 0, 2, 1, 4, 4}, uint8(7))
	f.Fuzz(func(t *testing.T, wiring []byte, depth uint8) {
		m := everything()
		names := []string{"x", "w", "y", "z", "", "t", "ints", "scalar"}
		next := func(i int) string {
			if len(wiring) == 0 {
				return names[i%len(names)]
			}
			return names[int(wiring[i%len(wiring)])%len(names)]
		}
		for i := range 4 {
			m.Graph.Nodes = append(m.Graph.Nodes, &onnx.Node{OpType: []string{"Relu", "Add", "Identity", "Reshape"}[i], Inputs: []string{next(3 * i), next(3*i + 1)}, Outputs: []string{next(3*i+2) + "'"}})
		}
		g := m.Graph
		for range depth % 32 {
			g = &onnx.Graph{Nodes: []*onnx.Node{{OpType: "If", Inputs: []string{next(1)}, Outputs: []string{"deep"}, Attributes: []onnx.Attribute{{Name: "then_branch", Type: onnx.AttributeGraph, Graph: g}}}}}
		}
		m.Graph = g
		if m.Check() != nil {
			return
		}
		data, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := onnx.Parse(data); err != nil {
			t.Errorf("a graph that passes cannot be read: %v", err)
		}
		onnx.InferShapes(m, nil) // must not panic
	})
}
