package onnx_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx"
)

// legal is x ▸ Relu ▸ a ▸ Add w ▸ y.
func legal(t *testing.T) *onnx.Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, number(2))
	w := b.Weight("w", []int64{2}, []float32{1, 2})
	b.Node(&onnx.Node{Name: "first", OpType: "Relu", Inputs: []string{x}, Outputs: []string{"a"}}, 1)
	b.Node(&onnx.Node{Name: "second", OpType: "Add", Inputs: []string{"a", w}, Outputs: []string{"y"}}, 1)
	b.Output("y", onnx.Float, number(2))
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEachBrokenRuleIsNamed(t *testing.T) {
	inner := func(outputs, inputs string) onnx.Attribute {
		return onnx.Attribute{Name: "then_branch", Type: onnx.AttributeGraph, Graph: &onnx.Graph{
			Nodes:   []*onnx.Node{{OpType: "Identity", Inputs: []string{inputs}, Outputs: []string{outputs}}},
			Outputs: []onnx.Value{{Name: outputs}},
		}}
	}
	for _, test := range []struct {
		name  string
		spoil func(m *onnx.Model)
		says  string // "" if the model stays legal
	}{
		{"nothing", func(m *onnx.Model) {}, ""},
		{"no graph", func(m *onnx.Model) { m.Graph = nil }, "no graph"},
		{"no IR version", func(m *onnx.Model) { m.IRVersion = 0 }, "IR version 0"},
		{"no operator set", func(m *onnx.Model) { delete(m.Opsets, "") }, `imports no operator set of domain ""`},
		{"foreign operator set", func(m *onnx.Model) { m.Graph.Nodes[0].Domain = "d" }, `domain "d"`},
		{"version zero", func(m *onnx.Model) { m.Opsets[""] = 0 }, "version 0"},
		{"order", func(m *onnx.Model) {
			m.Graph.Nodes[0], m.Graph.Nodes[1] = m.Graph.Nodes[1], m.Graph.Nodes[0]
		}, `uses "a" before Relu "first"`},
		{"cycle", func(m *onnx.Model) { m.Graph.Nodes[0].Inputs[0] = "y" }, "cycle: second → first → second"},
		{"cycle of one", func(m *onnx.Model) { m.Graph.Nodes[0].Inputs[0] = "a" }, "cycle: first → first"},
		{"unknown input", func(m *onnx.Model) { m.Graph.Nodes[0].Inputs[0] = "q" }, `input 0, "q", does not exist`},
		{"computed twice", func(m *onnx.Model) { m.Graph.Nodes[1].Outputs[0] = "a" }, `"a" is computed twice`},
		{"computed over a constant", func(m *onnx.Model) { m.Graph.Nodes[0].Outputs[0] = "w" }, `computes "w", which is an input or a constant`},
		{"no outputs", func(m *onnx.Model) { m.Graph.Nodes[1].Outputs = []string{""} }, "has no output"},
		{"no operator", func(m *onnx.Model) { m.Graph.Nodes[1].OpType = "" }, "has no operator"},
		{"missing node", func(m *onnx.Model) { m.Graph.Nodes[1] = nil }, "a node is missing"},
		{"constant twice", func(m *onnx.Model) {
			m.Graph.Initializers = append(m.Graph.Initializers, m.Graph.Initializers[0])
		}, `constant "w" is given twice`},
		{"constant too short", func(m *onnx.Model) { m.Graph.Initializers[0].Raw = nil }, "0 bytes for float"},
		{"constant of another type than declared", func(m *onnx.Model) {
			m.Graph.Inputs = append(m.Graph.Inputs, onnx.Value{Name: "w", Type: onnx.Int64})
		}, "declared as int64"},
		{"constant declared as input", func(m *onnx.Model) {
			m.Graph.Inputs = append(m.Graph.Inputs, onnx.Value{Name: "w", Type: onnx.Float})
		}, ""},
		{"untyped input", func(m *onnx.Model) { m.Graph.Inputs[0].Type = onnx.Undefined }, "unknown element undefined"},
		{"untyped output", func(m *onnx.Model) { m.Graph.Outputs[0].Type = 99 }, "unknown element type 99"},
		{"output twice", func(m *onnx.Model) { m.Graph.Outputs = append(m.Graph.Outputs, m.Graph.Outputs[0]) }, "declared twice"},
		{"output from nowhere", func(m *onnx.Model) { m.Graph.Outputs[0].Name = "q" }, `output "q" is never computed`},
		{"attribute twice", func(m *onnx.Model) {
			m.Graph.Nodes[0].Attributes = []onnx.Attribute{onnx.IntAttribute("a", 1), onnx.IntAttribute("a", 1)}
		}, "given twice"},
		{"attribute of no type", func(m *onnx.Model) { m.Graph.Nodes[0].Attributes = []onnx.Attribute{{Name: "a"}} }, "unknown type 0"},
		{"attribute without tensor", func(m *onnx.Model) {
			m.Graph.Nodes[0].Attributes = []onnx.Attribute{onnx.TensorAttribute("a", nil)}
		}, "has no tensor"},
		{"inner graph that uses an outer value", func(m *onnx.Model) { m.Graph.Nodes[1].Attributes = []onnx.Attribute{inner("z", "a")} }, ""},
		{"inner graph that uses a later value", func(m *onnx.Model) { m.Graph.Nodes[0].Attributes = []onnx.Attribute{inner("z", "y")} }, `"y", does not exist`},
		{"rank", func(m *onnx.Model) { m.Graph.Inputs[0].Shape = make([]onnx.Dim, 99) }, "more than 32 dimensions"},
	} {
		m := legal(t)
		test.spoil(m)
		err := m.Check()
		if test.says == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v\nwant %q", test.name, err, test.says)
		}
	}
}

// A message that depends on the order of a map is another one tomorrow.
func TestOfSeveralMistakesTheSameOnesAreNamedInEveryRun(t *testing.T) {
	m, bind := legal(t), map[string]int64{}
	for i := range 8 {
		m.Opsets[fmt.Sprintf("domain%d", i)], bind[fmt.Sprintf("n%d", i)] = -1, -1
	}
	for range 20 {
		err := m.Check()
		if first := strings.Index(err.Error(), `"domain0"`); first < 0 || first > strings.Index(err.Error(), `"domain7"`) {
			t.Fatalf("Check says %v", err)
		}
		if _, err := onnx.InferShapes(m, bind); err == nil || !strings.Contains(err.Error(), `"n0"`) {
			t.Fatalf("InferShapes says %v", err)
		}
	}
}

func TestAGraphWithinItselfIsRefused(t *testing.T) {
	m := legal(t)
	m.Graph.Nodes[0].Attributes = []onnx.Attribute{{Name: "g", Type: onnx.AttributeGraph, Graph: m.Graph}}
	if err := m.Check(); !errors.Is(err, onnx.ErrLimit) {
		t.Errorf("a graph that contains itself gives %v", err)
	}
}

func TestALongChainIsCheckedInReasonableTime(t *testing.T) {
	m := legal(t)
	m.Graph.Nodes = nil
	last := "x"
	for i := range 100_000 {
		name := fmt.Sprint("v", i)
		m.Graph.Nodes = append(m.Graph.Nodes, &onnx.Node{OpType: "Relu", Inputs: []string{last}, Outputs: []string{name}})
		last = name
	}
	m.Graph.Outputs[0].Name = last
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	m.Graph.Nodes[0].Inputs[0] = last // one cycle through all of it
	if err := m.Check(); err == nil || !strings.Contains(err.Error(), "cycle") || len(err.Error()) > 1000 {
		t.Errorf("a cycle of 100,000 nodes gives %.1000v", err)
	}
}

func TestTheBuilderReportsEveryMistake(t *testing.T) {
	b := onnx.NewBuilder(17)
	b.Input("x", onnx.Float, number(2))
	b.Input("x", onnx.Float, number(2))
	b.Weight("w", []int64{3}, []float32{1})
	b.Op("Add", []string{"x", "nowhere"})
	b.Output("neither", onnx.Float)
	_, err := b.Build()
	for _, says := range []string{`input "x": the name is empty or taken`, `tensor "w": 4 bytes`, `"nowhere", does not exist`, `output "neither" does not exist`} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v\nlacks %q", err, says)
		}
	}
}

func TestExtendingAModelNeverReusesAName(t *testing.T) {
	m := legal(t)
	b := onnx.Extend(m)
	for _, taken := range []string{"x", "w", "a", "y"} {
		if got := b.Fresh(taken); got == taken {
			t.Errorf("Fresh(%q) gives it again", taken)
		}
	}
	z := b.Op("Neg", []string{"y"})
	b.Output(z, onnx.Float, number(2))
	if _, err := b.Build(); err != nil {
		t.Error(err)
	}
	if len(m.Graph.Outputs) != 2 || m.Graph.Outputs[1].Name != z {
		t.Errorf("outputs %v", m.Graph.Outputs)
	}
}
