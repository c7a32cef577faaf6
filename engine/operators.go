package engine

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vigie/vigie/engine/kernel"
	"github.com/vigie/vigie/onnx"
)

// operatorList has a line for each operator that ONNX Runtime registers, in the
// version that is embedded: domain, name, and the first operator set that has it,
// with the last one where later sets dropped it ("Upsample 1-9"). A test holds it
// against the runtime.
//
//go:embed operators.txt
var operatorList string

// newest is the latest operator set of each domain that the embedded ONNX Runtime
// takes. Domains that are not here have no operators in it.
var newest = map[string]int64{"": 26, "ai.onnx.ml": 5, "com.microsoft": 1}

// newestIR is the latest version of the file format that it takes.
const newestIR = 13

type availability struct{ from, to int64 } // operator sets; to 0: all later ones

// operators is the list by domain and name.
var operators = sync.OnceValue(func() map[[2]string]availability {
	table := map[[2]string]availability{}
	for line := range strings.Lines(operatorList) {
		var domain, name, sets string
		if _, err := fmt.Sscan(line, &domain, &name, &sets); err != nil {
			panic("engine: operators.txt: " + line)
		}
		if domain == "ai.onnx" {
			domain = ""
		}
		first, last, _ := strings.Cut(sets, "-")
		var a availability
		a.from, _ = strconv.ParseInt(first, 10, 64)
		a.to, _ = strconv.ParseInt(last, 10, 64)
		table[[2]string{domain, name}] = a
	}
	return table
})

// maxUnknown bounds how many operators one error names.
const maxUnknown = 5

// checkOperators reports what the runtime would not know of a graph, before it is
// asked: operator sets that are newer than it, and operators that their set does
// not have. A library that somebody else chose may know others.
func checkOperators(m *onnx.Model) error {
	if os.Getenv(LibraryVariable) != "" {
		return nil
	}
	if m.IRVersion > newestIR {
		return fmt.Errorf("%w: the file is of ONNX's format %d (IR version), and the newest that this engine takes is %d: export the model with an older onnx, or lower model.ir_version if nothing in it needs the newer one", onnx.ErrUnsupported, m.IRVersion, newestIR)
	}
	for _, domain := range slices.Sorted(maps.Keys(m.Opsets)) {
		if last, ok := newest[domain]; ok && m.Opsets[domain] > last {
			return fmt.Errorf("%w: operator set %d of domain %q, and the newest that this engine knows is %d: export the model with opset_version=%d or less, or convert it with onnx.version_converter", onnx.ErrUnsupported, m.Opsets[domain], named(domain), last, last)
		}
	}
	var problems []string
	seen := map[[2]string]bool{}
	var visit func(g *onnx.Graph)
	visit = func(g *onnx.Graph) {
		if g == nil {
			return
		}
		for _, n := range g.Nodes {
			for _, a := range n.Attributes {
				visit(a.Graph)
				for _, inner := range a.Graphs {
					visit(inner)
				}
			}
			key := [2]string{n.Domain, n.OpType}
			if why := unknown(n, m.Opsets[n.Domain]); why != "" && !seen[key] {
				problems = append(problems, why)
				seen[key] = true
			}
		}
	}
	visit(m.Graph)
	if len(problems) == 0 {
		return nil
	}
	if left := len(problems) - maxUnknown; left > 0 {
		problems = append(problems[:maxUnknown], fmt.Sprintf("and %d more operators", left))
	}
	return fmt.Errorf("%w: %s", onnx.ErrUnknownOperator, strings.Join(problems, "; "))
}

// unknown says why the runtime does not know a node's operator in a version of its
// set; empty if it does.
func unknown(n *onnx.Node, version int64) string {
	if n.Domain == kernel.Domain {
		return ""
	}
	what := fmt.Sprintf("%s of domain %q (node %q, which computes %q)", n.OpType, named(n.Domain), n.Name, strings.Join(n.Outputs, ", "))
	a, known := operators()[[2]string{n.Domain, n.OpType}]
	_, domain := newest[n.Domain]
	switch {
	case !domain:
		return what + ": this engine has no operators of that domain; export the model with standard operators, or replace the node by them"
	case !known && n.Domain == "":
		return what + ": there is no such operator; export the model with standard operators, or replace the node by them"
	case !known:
		return what + ": this engine's ONNX Runtime does not have it; export the model without that optimisation, or with standard operators"
	case version < a.from:
		return fmt.Sprintf("%s: it is in operator sets from %d on, and the model imports %d; export it with opset_version=%d or more, or convert it with onnx.version_converter", what, a.from, version, a.from)
	case a.to > 0 && version > a.to:
		return fmt.Sprintf("%s: it is in operator sets up to %d, and the model imports %d; export the model again, or convert it with onnx.version_converter", what, a.to, version)
	}
	return ""
}

// named is the name of a domain that people know it by.
func named(domain string) string {
	if domain == "" {
		return "ai.onnx"
	}
	return domain
}

var noImplementation = regexp.MustCompile(`Could not find an implementation for ([\w.]+)\((\d+)\) node with name '(.*)'`)

// refused puts into words what the runtime says when it does not take a graph.
func refused(err error) error {
	text := strings.TrimPrefix(err.Error(), "Error creating C session: ")
	if found := noImplementation.FindStringSubmatch(text); found != nil {
		return fmt.Errorf("%w: %s as operator set %s defines it (node %q): ONNX Runtime knows the operator and has no implementation of that version, or for those element types, on the processor; convert the model with onnx.version_converter to operator set 17, or change its element types", onnx.ErrUnsupported, found[1], found[2], found[3])
	}
	return errors.New("ONNX Runtime does not take it: " + text)
}
