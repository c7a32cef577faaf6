package onnx_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// outputsOf returns the inferred outputs of a drawn graph as text.
func outputsOf(m *onnx.Model) (string, error) {
	c := m.Clone()
	for i := range c.Graph.Outputs {
		c.Graph.Outputs[i].Type, c.Graph.Outputs[i].Shape = onnx.Undefined, nil
	}
	values, err := onnx.InferShapes(c, nil)
	if err != nil {
		return "", err
	}
	texts := make([]string, len(m.Graph.Outputs))
	for i, v := range m.Graph.Outputs {
		texts[i] = values[v.Name].String()
	}
	return strings.Join(texts, " "), nil
}

// ran returns what ONNX Runtime makes of a drawn graph, as text like outputsOf.
func ran(m *onnx.Model) (string, error) {
	c := m.Clone()
	for i := range c.Graph.Outputs {
		c.Graph.Outputs[i].Type, c.Graph.Outputs[i].Shape = onnx.Undefined, nil
	}
	values, err := onnx.InferShapes(c, nil)
	for i, v := range c.Graph.Outputs {
		if c.Graph.Outputs[i].Type = onnx.Float; err == nil {
			c.Graph.Outputs[i].Type = values[v.Name].Type
		}
	}
	s, err := engine.Open(c, engine.Options{Threads: 1})
	if err != nil {
		return "", err
	}
	defer s.Close()
	inputs := map[string]engine.Tensor{}
	for _, v := range s.Inputs() {
		dims, _ := v.Static()
		inputs[v.Name], err = engine.Zeros(v.Type, dims...)
		if err != nil {
			return "", err
		}
	}
	out, err := s.Run(context.Background(), inputs)
	if err != nil {
		return "", err
	}
	texts := make([]string, len(c.Graph.Outputs))
	for i, v := range c.Graph.Outputs {
		texts[i] = out[v.Name].String()
	}
	return strings.Join(texts, " "), nil
}

// undrawn are the operators of the table that no graph is drawn for, and why.
var undrawn = map[string]string{
	"Scatter":                      "gone since operator set 11",
	"Upsample":                     "gone since operator set 10",
	"SimplifiedLayerNormalization": "not an operator of the standard",
	"Loop":                         "its shapes are known only when it runs: TestControlFlow…",
	"Scan":                         "its shapes are known only when it runs: TestControlFlow…",
}

func TestEveryOperatorOfTheTableIsDrawn(t *testing.T) {
	all := drawings()
	for name := range onnx.Operators() {
		_, drawn := all[name]
		if _, excused := undrawn[name]; drawn == excused {
			t.Errorf("%s: drawn is %v, excused is %v", name, drawn, excused)
		}
	}
	for name := range all {
		if _, known := onnx.Operators()[name]; !known {
			t.Errorf("%s is drawn but not in the table", name)
		}
	}
}

func TestInferredShapesAreThoseThatTheRuntimeComputes(t *testing.T) {
	if err := engine.Ready(); err != nil {
		if errors.Is(err, engine.ErrNoRuntime) {
			t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
		}
		t.Fatal(err)
	}
	graphs, err := draw(1, 10, 11, 13, 17, 18, 21, 24)
	if err != nil {
		t.Fatal(err)
	}
	refused, absent := 0, 0
	for _, g := range graphs {
		actual, runError := ran(g.model)
		got, inferError := outputsOf(g.model)
		switch {
		case inferError != nil && runError != nil:
			refused++
		case errors.Is(runError, onnx.ErrUnsupported):
			absent++ // a version of the operator that ONNX Runtime's CPU build lacks
		case (inferError != nil) != (runError != nil):
			t.Errorf("%s: %s\ninferring: %v\nrunning: %v", g.name, describe(g.model), inferError, runError)
		case strings.Contains(got, "?"):
			if !strings.HasPrefix(g.name, "NonZero") {
				t.Errorf("%s: %s\ninferred %s, want %s", g.name, describe(g.model), got, actual)
			}
		case got != actual:
			t.Errorf("%s: %s\ninferred %s\ncomputed %s", g.name, describe(g.model), got, actual)
		}
	}
	t.Logf("%d graphs, of which both refuse %d and ONNX Runtime lacks %d", len(graphs), refused, absent)
	if refused+absent > len(graphs)/10 {
		t.Errorf("%d of %d graphs were not run: the drawings prove little", refused+absent, len(graphs))
	}
}

// describe shows a drawn graph in a line.
func describe(m *onnx.Model) string {
	var b strings.Builder
	for _, v := range m.Graph.Inputs {
		fmt.Fprintf(&b, "%s: %v; ", v.Name, v)
	}
	for _, c := range m.Graph.Initializers {
		ints, _ := c.Ints()
		fmt.Fprintf(&b, "%s: %v%v %v; ", c.Name, c.Type, c.Dims, ints)
	}
	for _, n := range m.Graph.Nodes {
		fmt.Fprintf(&b, "%s(%s)", n.OpType, strings.Join(n.Inputs, ", "))
		for _, a := range n.Attributes {
			fmt.Fprintf(&b, " %s=%v%v%s", a.Name, a.Int, a.Ints, a.String)
		}
	}
	return b.String()
}

// script infers with the onnx package of Python and prints, per file, the
// outputs as this package writes them, "?" where a dimension is not known.
const script = `
import json, os, sys, onnx
from onnx import shape_inference, checker, TensorProto
names = {1:"float",2:"uint8",3:"int8",6:"int32",7:"int64",9:"bool",10:"float16",11:"double",0:"undefined"}
result = {"version": onnx.__version__}
for name in sorted(os.listdir(sys.argv[1])):
    path = os.path.join(sys.argv[1], name)
    try:
        model = onnx.load(path)
        checker.check_model(model)
        outputs = [o.name for o in model.graph.output]
        del model.graph.output[:]
        for o in outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=o))
        model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        texts = []
        for o in model.graph.output:
            t = o.type.tensor_type
            if not t.HasField("shape"):
                texts.append(names[t.elem_type] + "[…]")
                continue
            dims = [str(d.dim_value) if d.HasField("dim_value") else "?" for d in t.shape.dim]
            texts.append(names[t.elem_type] + "[" + ",".join(dims) + "]")
        result[name] = " ".join(texts)
    except Exception as e:
        result[name] = "error: " + str(e).strip().splitlines()[-1]
json.dump(result, sys.stdout)
`

func TestInferredShapesAreThoseOfTheReferenceImplementation(t *testing.T) {
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import onnx").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %s has no onnx package (Debian python3-onnx): %v %s", python, err, out)
	}
	graphs, err := draw(2, 12, 11, 13, 17)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for _, g := range graphs {
		if err := g.model.Save(filepath.Join(folder, g.name)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "infer.py")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(python, file, folder)
	command.Stderr = os.Stderr
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs := map[string]string{}
	if err := json.Unmarshal(out, &theirs); err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, g := range graphs {
		want := theirs[g.name]
		got, err := outputsOf(g.model)
		switch {
		case strings.Contains(want, "?") || strings.Contains(want, "…"):
			// It knows less than we do: nothing to compare.
		case strings.HasPrefix(want, "error"):
			if err == nil {
				t.Errorf("%s: %s\ninferred %s\nreference: %s", g.name, describe(g.model), got, want)
			}
		case err != nil && strings.Contains(err.Error(), "a window of"):
			// The reference implementation of 1.12 divides a negative number of
			// places and rounds it up; ONNX Runtime refuses such a graph, too.
		case err == nil && strings.Contains(describe(g.model), "ceil_mode=1"):
			// Until 1.16 it counts a place that begins in the padding at the end,
			// see window.size; ONNX Runtime does not.
		case err != nil || got != want:
			t.Errorf("%s: %s\ninferred %s, %v\nreference: %s", g.name, describe(g.model), got, err, want)
		default:
			compared++
		}
	}
	t.Logf("onnx %s: %d of %d graphs agree to the last dimension", theirs["version"], compared, len(graphs))
	if compared < len(graphs)/2 {
		t.Errorf("only %d of %d graphs could be compared", compared, len(graphs))
	}
}
