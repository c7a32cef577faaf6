package engine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	ort "github.com/yalue/onnxruntime_go"

	"github.com/vigie/vigie/onnx"
)

// single is a model of one node.
func single(domain, operator string, version int64) *onnx.Model {
	shape := []onnx.Dim{{Value: 3}}
	m := &onnx.Model{IRVersion: 10, Opsets: map[string]int64{"": 17}, Graph: &onnx.Graph{
		Name: "single", Inputs: []onnx.Value{{Name: "x", Type: onnx.Float, Shape: shape}}, Outputs: []onnx.Value{{Name: "z", Type: onnx.Float, Shape: shape}},
		Nodes: []*onnx.Node{{Name: "n1", OpType: operator, Domain: domain, Inputs: []string{"x"}, Outputs: []string{"z"}}},
	}}
	m.Opsets[domain] = version
	return m
}

// said is what the runtime itself says of a model, unasked by us; empty: it takes
// the model.
func said(t *testing.T, m *onnx.Model) string {
	t.Helper()
	data, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	options, err := settings(Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer options.Destroy()
	session, err := ort.NewDynamicAdvancedSessionWithONNXData(data, []string{"x"}, []string{"z"}, options)
	if err != nil {
		return err.Error()
	}
	session.Destroy()
	return ""
}

func needRuntime(t *testing.T) {
	t.Helper()
	if os.Getenv(LibraryVariable) != "" {
		t.Skipf("SKIPPED, NOTHING PROVED: %s names another library than the list is of", LibraryVariable)
	}
	if err := start(); errors.Is(err, ErrNoRuntime) {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// The list of operators is what the runtime knows, at both ends of every line.
func TestTheListOfOperatorsIsTheRuntimes(t *testing.T) {
	needRuntime(t)
	knows := func(domain, operator string, version int64) bool {
		text := said(t, single(domain, operator, version))
		return !strings.Contains(text, "No Op registered for") && !strings.Contains(text, "is not a registered function/op") && !strings.Contains(text, "is deprecated in domain_version")
	}
	for key, a := range operators() {
		last := newest[key[0]]
		if a.to > 0 {
			last = a.to
		}
		for _, at := range []struct {
			version int64
			want    bool
		}{{a.from - 1, false}, {a.from, true}, {last, true}, {a.to + 1, false}} {
			if at.version < 1 || at.version == a.to+1 && a.to == 0 {
				continue
			}
			if got := knows(key[0], key[1], at.version); got != at.want {
				t.Errorf("%v in operator set %d: the runtime says %v", key, at.version, got)
			}
			if got := checkOperators(single(key[0], key[1], at.version)) == nil; got != at.want {
				t.Errorf("%v in operator set %d: the list says %v", key, at.version, got)
			}
		}
	}
	if len(operators()) < 300 || !slices.IsSorted(strings.Split(operatorList, "\n")[:len(operators())]) {
		t.Errorf("%d operators, or not in order", len(operators()))
	}
}

func TestTheNewestVersionsAreTheRuntimes(t *testing.T) {
	needRuntime(t)
	for domain, last := range newest {
		operator := map[string]string{"": "Relu", "ai.onnx.ml": "Scaler", "com.microsoft": "Gelu"}[domain]
		if text := said(t, single(domain, operator, last)); strings.Contains(text, "is under development") {
			t.Errorf("operator set %d of %q: %s", last, domain, text)
		}
		if text := said(t, single(domain, operator, last+1)); !strings.Contains(text, "is under development") {
			t.Errorf("operator set %d of %q is taken: %q", last+1, domain, text)
		}
	}
	m := single("", "Relu", 17)
	for version, taken := range map[int64]bool{newestIR: true, newestIR + 1: false} {
		m.IRVersion = version
		if text := said(t, m); (text == "") != taken {
			t.Errorf("IR version %d: %q", version, text)
		}
	}
}

// What the runtime does not know is said in our own words, with the node and the
// next move, and before a session is made: also where there is no runtime.
func TestWhatTheRuntimeDoesNotKnowIsSaidBeforeItIsAsked(t *testing.T) {
	if os.Getenv(LibraryVariable) != "" {
		t.Skipf("SKIPPED, NOTHING PROVED: %s names another library than the list is of", LibraryVariable)
	}
	inner := single("", "Relu", 17)
	inner.Graph.Nodes[0] = &onnx.Node{OpType: "If", Inputs: []string{"x"}, Outputs: []string{"z"}, Attributes: []onnx.Attribute{
		{Name: "then_branch", Type: onnx.AttributeGraph, Graph: &onnx.Graph{Name: "then", Nodes: []*onnx.Node{{Name: "deep", OpType: "Frobnicate", Inputs: []string{"x"}, Outputs: []string{"y"}}}, Outputs: []onnx.Value{{Name: "y"}}}},
	}}
	many := single("", "A0", 17)
	for i := range 8 {
		many.Graph.Nodes = append(many.Graph.Nodes, &onnx.Node{OpType: fmt.Sprint("A", i), Inputs: []string{"x"}, Outputs: []string{fmt.Sprint("y", i)}})
	}
	format := single("", "Relu", 17)
	format.IRVersion = 99
	for _, test := range []struct {
		model *onnx.Model
		is    error
		says  []string
	}{
		{single("", "Foo", 17), onnx.ErrUnknownOperator, []string{`Foo of domain "ai.onnx" (node "n1", which computes "z")`, "there is no such operator", "replace the node"}},
		{single("my.company", "Bar", 1), onnx.ErrUnknownOperator, []string{`Bar of domain "my.company" (node "n1"`, "no operators of that domain"}},
		{single("com.microsoft", "Nope", 1), onnx.ErrUnknownOperator, []string{`Nope of domain "com.microsoft"`, "does not have it"}},
		{single("", "Gelu", 17), onnx.ErrUnknownOperator, []string{"from 20 on, and the model imports 17", "opset_version=20"}},
		{single("", "Upsample", 17), onnx.ErrUnknownOperator, []string{"up to 9, and the model imports 17"}},
		{single("", "Relu", 99), onnx.ErrUnsupported, []string{`operator set 99 of domain "ai.onnx"`, "opset_version=26 or less"}},
		{inner, onnx.ErrUnknownOperator, []string{`Frobnicate of domain "ai.onnx" (node "deep"`}},
		{many, onnx.ErrUnknownOperator, []string{"A0 of", "A4 of", "and 3 more operators"}},
		{format, onnx.ErrUnsupported, []string{"IR version", "99"}},
	} {
		_, err := Open(test.model, Options{})
		if !errors.Is(err, test.is) {
			t.Errorf("error is %v, want %v", err, test.is)
			continue
		}
		for _, says := range test.says {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%q is not in %v", says, err)
			}
		}
	}
	needRuntime(t)
	if _, err := Open(single("", "Relu", 1), Options{}); !errors.Is(err, onnx.ErrUnsupported) || !strings.Contains(err.Error(), `Relu as operator set 1 defines it (node "n1")`) {
		t.Errorf("an operator without an implementation: %v", err)
	}
	if _, err := Open(single("", "Gemm", 17), Options{}); err == nil || !strings.Contains(err.Error(), "ONNX Runtime does not take it: ") {
		t.Errorf("a node that is wrong otherwise: %v", err)
	}
}
