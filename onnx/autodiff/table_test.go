package autodiff_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

var update = flag.Bool("update", false, "write docs/operators.md again")

// operatorsDocument renders docs/operators.md from the table and its claims.
func operatorsDocument(t *testing.T) string {
	names := claimed(t)
	count := map[string]int{}
	var rows, refusals strings.Builder
	for _, o := range autodiff.Operators() {
		count[o.Gradient]++
		if o.Gradient == "refused" {
			shape := "no"
			if o.Shapes > 0 {
				shape = fmt.Sprintf("from %d", o.Shapes)
			}
			fmt.Fprintf(&refusals, "| `%s` | %s | %s |\n", o.Name, shape, o.Reason)
			continue
		}
		gradient, per := o.Gradient, "yes"
		if o.Since > 0 {
			gradient = fmt.Sprintf("%s, from %d", o.Gradient, o.Since)
		}
		if !o.PerExample {
			per = "no"
		}
		tests := "drawn graphs"
		if n := len(names[o.Name]); o.Gradient != "none" {
			tests = fmt.Sprintf("%d: %s", n, names[o.Name][0])
		}
		fmt.Fprintf(&rows, "| `%s` | from %d | %s | %s | %s |\n", o.Name, o.Shapes, gradient, per, tests)
	}
	return "# Operators\n\n" +
		"Generated from the tables of packages `onnx` and `onnx/autodiff`; `go test ./onnx/autodiff -run OperatorsDocument -update` writes it again. " +
		"`vigie model inspect FILE` says the same of one file.\n\n" +
		fmt.Sprintf("%d operators are differentiated by a rule, %d are lowered to those before anything else, %d have nothing to differentiate "+
			"(integers, truth values, shapes, random numbers) and %d are refused by name. Numbers are versions of the operator set, of the default domain or of the one named; "+
			"the gradient of a graph of operator set 13 to 15 is one of operator set 16.\n\n", count["rule"], count["lowered"], count["none"], count["refused"]) +
		"- **Shapes**: inferred shapes are those that ONNX Runtime computes and, where it has the operator, the reference implementation infers, for graphs drawn at random (`onnx/oracle_test.go`).\n" +
		"- **Gradient**: compared with central differences, in double precision wherever the runtime has a kernel for it (`onnx/autodiff/difference_test.go`; the number of cases and the first are given), " +
		"and with PyTorch on whole exported networks (`onnx/autodiff/testdata/exported.py`).\n" +
		"- **Per example**: gradients for each example pass it, as long as the examples stay apart.\n\n" +
		"| operator | shapes | gradient | per example | tests |\n| --- | --- | --- | --- | --- |\n" + rows.String() +
		"\n## Refused by name\n\n| operator | shapes | why there is no gradient, and what to do |\n| --- | --- | --- |\n" + refusals.String()
}

func TestTheOperatorsDocumentIsTheTable(t *testing.T) {
	const path = "../../docs/operators.md"
	want := operatorsDocument(t)
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Fatal("docs/operators.md does not match the tables: run go test ./onnx/autodiff -run OperatorsDocument -update")
	}
}

func TestEveryOperatorHasAShapeRuleOrAReason(t *testing.T) {
	for _, o := range autodiff.Operators() {
		if o.Shapes == 0 && o.Reason == "" {
			t.Errorf("%s has a gradient but no shape rule", o.Name)
		}
		if o.Gradient == "refused" && o.Reason == "" {
			t.Errorf("%s is refused without a reason", o.Name)
		}
	}
}

// Dropout's mask differs from run to run, so no central difference exists; but
// y = x·mask/(1-ratio), so dy/dx is y/x.
func TestDropoutInTrainingPassesTheGradientThroughItsMask(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Fixed(4, 50)...)
	training := b.Input("training", onnx.Bool)
	y := b.Op("Dropout", []string{x, b.Weight("ratio", nil, []float32{0.3}), training}, i("seed", 7))
	b.Output(y, onnx.Float, onnx.Fixed(4, 50)...)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	g, err := autodiff.Gradient(m, autodiff.Request{Loss: y, WithRespectTo: []string{"x"}, Keep: []string{y}})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]float64, 200)
	for k := range data {
		data[k] = float64(k%7) + 1
	}
	s := open(t, g.Model)
	for _, mode := range []bool{true, false} {
		out := run(t, s, map[string]engine.Tensor{"x": numbers(onnx.Float, []int64{4, 50}, data), "training": {Shape: []int64{}, Data: []bool{mode}}})
		zeros := 0
		for k, got := range elements(out[g.Of["x"]]) {
			if want := elements(out[y])[k] / data[k]; math.Abs(got-want) > 1e-6 {
				t.Errorf("training %v: gradient %d is %g, want %g", mode, k, got, want)
			}
			if got == 0 {
				zeros++
			}
		}
		if mode && (zeros < 30 || zeros > 90) || !mode && zeros > 0 {
			t.Errorf("training %v: %d of 200 gradients are 0", mode, zeros)
		}
	}
}

// Clip and PerExample are two ways to the same gradients, also where a graph
// moves the batch about.
func TestClippedNormsAreThoseOfTheGradientsPerExample(t *testing.T) {
	for _, e := range loadExported(t) {
		if !e.PerExample {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			l, err := autodiff.SoftmaxCrossEntropy(e.model, "logits")
			if err != nil {
				t.Fatal(err)
			}
			weights, _ := e.asked()
			n := e.batch()
			each, err := autodiff.Gradient(l.Model, autodiff.Request{Loss: l.Each, WithRespectTo: weights, Batch: n, PerExample: true})
			if err != nil {
				t.Fatal(err)
			}
			clip, err := autodiff.Clip(l.Model, autodiff.ClipRequest{Loss: l.Each, Weights: weights, Batch: n})
			if err != nil {
				t.Fatal(err)
			}
			feed := e.feed(l, 0, n)
			feed[clip.Bound] = numbers(onnx.Float, []int64{1}, []float64{1e9})
			feed[clip.Mask] = numbers(onnx.Float, []int64{n}, ones(int(n)))
			s, clipped := open(t, each.Model), open(t, clip.Model)
			gradients, out := run(t, s, only(feed, s)), run(t, clipped, only(feed, clipped))
			squares := make([]float64, n)
			for _, name := range weights {
				g := elements(gradients[each.Of[name]])
				size := len(g) / int(n)
				sum := make([]float64, size)
				for k, v := range g {
					squares[k/size] += v * v
					sum[k%size] += v
				}
				against(t, "sum of "+name, elements(out[clip.Of[name]]), sum, e.gradients())
			}
			for k, norm := range elements(out[clip.Norms]) {
				if want := math.Sqrt(squares[k]); math.Abs(norm-want) > 1e-4*want {
					t.Errorf("norm of example %d is %g, want %g", k, norm, want)
				}
			}
		})
	}
}

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

func TestAWeightThatIsNotANumberIsAnErrorBeforeAnythingRuns(t *testing.T) {
	m := built(t, []int64{2, 3}, func(b *onnx.Builder, x string) string {
		return b.Op("Mul", []string{x, b.Weight("w", []int64{3}, []float32{1, float32(math.NaN()), 2})})
	})
	_, err := autodiff.Gradient(m, autodiff.Request{Loss: m.Graph.Outputs[0].Name, WithRespectTo: []string{"w"}})
	if err == nil || !strings.Contains(err.Error(), `"w": element 1`) {
		t.Errorf("error is %v", err)
	}
}

// FuzzGradient puts hostile numbers wherever an exported network has one. The
// answer is a graph that is legal, or an error; never a panic.
func FuzzGradient(f *testing.F) {
	all := loadExported(f)
	var losses []*autodiff.Loss
	for i, e := range all {
		l, err := autodiff.SoftmaxCrossEntropy(e.model, "logits")
		if err != nil {
			f.Fatal(err)
		}
		losses = append(losses, l)
		f.Add(uint8(i), uint16(7*i), int64(-1), true)
		f.Add(uint8(i), uint16(31*i+3), int64(1<<62), false)
		f.Add(uint8(i), uint16(11*i+1), int64(0), false)
	}
	f.Fuzz(func(t *testing.T, which uint8, where uint16, number int64, perExample bool) {
		e, l := all[int(which)%len(all)], losses[int(which)%len(all)]
		m := l.Model.Clone()
		var places []func()
		constant := func(w *onnx.Tensor) {
			if w != nil && w.Type == onnx.Int64 {
				for at := 0; at+8 <= len(w.Raw); at += 8 {
					places = append(places, func() { w.Raw = bytes.Clone(w.Raw); binary.LittleEndian.PutUint64(w.Raw[at:], uint64(number)) })
				}
			}
		}
		for _, n := range m.Graph.Nodes {
			for i := range n.Attributes {
				a := &n.Attributes[i]
				places = append(places, func() { a.Int = number })
				constant(a.Tensor)
				for j := range a.Ints {
					places = append(places, func() { a.Ints[j] = number })
				}
			}
			for i := range n.Inputs {
				places = append(places, func() { n.Inputs[i] = "" })
			}
		}
		for _, w := range m.Graph.Initializers {
			constant(w)
			for i := range w.Dims {
				places = append(places, func() { w.Dims[i] = number })
			}
		}
		places[int(where)%len(places)]()
		weights, _ := e.asked()
		request := autodiff.Request{Loss: l.Total, WithRespectTo: weights, Batch: e.batch(), PerExample: perExample}
		if perExample {
			request.Loss = l.Each
		}
		g, err := autodiff.Gradient(m, request)
		if err != nil && strings.Contains(err.Error(), "internal:") {
			t.Errorf("a rule met what it did not expect: %v", err)
		}
		if err != nil || m.Check() != nil {
			return
		}
		if err := g.Model.Check(); err != nil {
			t.Errorf("the gradient of a legal graph is not legal: %v", err)
		}
	})
}
