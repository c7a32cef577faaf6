package autodiff_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

func TestAnInspectionSaysWhatCannotBeDoneAndWhy(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: 4})
	y := b.Op("MatMul", []string{x, b.Weight("w", []int64{4, 3}, make([]float32, 12))})
	b.Import("elsewhere", 1)
	y = b.Node(&onnx.Node{OpType: "Magic", Domain: "elsewhere", Inputs: []string{b.Op("Hardmax", []string{y})}}, 1)[0]
	b.Output(y, onnx.Float, onnx.Dim{Value: -1, Param: "n"}, onnx.Dim{Value: 3})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	in, err := autodiff.Inspect(m, func(part *onnx.Model) error {
		if slices.ContainsFunc(part.Graph.Nodes, func(n *onnx.Node) bool { return n.Domain == "elsewhere" }) {
			return fmt.Errorf("no kernel of elsewhere")
		}
		return part.Check()
	})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]autodiff.Use{}
	for _, u := range in.Uses {
		found[u.Operator] = u
	}
	if u := found["MatMul"]; u.MACs != 12 || u.Parameters != 12 || u.ActivationBytes != 12 || u.Gradient != "rule" || !u.PerExample || u.Runs != "yes" || u.OperatorSet != 17 {
		t.Errorf("MatMul is %+v", u)
	}
	if u := found["Hardmax"]; u.Gradient != "refused" || u.Reason == "" || u.Runs != "yes" {
		t.Errorf("Hardmax is %+v", u)
	}
	if u := found["elsewhere.Magic"]; u.Gradient != "refused" || u.Reason == "" || u.Runs != "no kernel of elsewhere" {
		t.Errorf("Magic is %+v", u)
	}
	if in.Runs == "yes" || in.Gradient == "yes" || in.PerExample == "yes" {
		t.Errorf("runs %q, gradient %q, per example %q", in.Runs, in.Gradient, in.PerExample)
	}
	if text := in.String(); !strings.Contains(text, "no kernel of elsewhere") || !strings.Contains(text, "elsewhere.Magic") {
		t.Errorf("the text leaves out what matters:\n%s", text)
	}
}

func TestExportedArchitecturesAreInspected(t *testing.T) {
	for _, e := range loadExported(t) {
		in, err := autodiff.Inspect(e.model, nil)
		if err != nil {
			t.Fatal(err)
		}
		if in.Gradient != "yes" || (in.PerExample == "yes") != e.PerExample || in.MACs <= 0 || in.Problem != "" {
			t.Errorf("%s: gradient %s, per example %s, macs %d, problem %q", e.name, in.Gradient, in.PerExample, in.MACs, in.Problem)
		}
	}
}
