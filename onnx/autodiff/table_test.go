package autodiff_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

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
