package train

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// behindHead are operators that may stand between the last layer with weights
// and the logits.
var behindHead = map[string]bool{
	"Identity": true, "Flatten": true, "Reshape": true, "Squeeze": true, "Relu": true, "Dropout": true,
	"GlobalAveragePool": true, "ReduceMean": true, "AveragePool": true, "Softmax": true, "Sigmoid": true,
}

// ReplaceHead gives a model fresh last-layer weights for another number of
// classes: transfer learning. The last layer is the last Gemm, MatMul or Conv
// before the logits; its new weights are drawn from a normal distribution of
// variance 1/fan-in, and its bias is 0. It changes m and returns the names of
// the new weights.
func ReplaceHead(m *onnx.Model, logits string, classes int, rng *rand.Rand) ([]string, error) {
	if classes < 1 || classes > 1<<20 {
		return nil, fmt.Errorf("train: a head of %d classes; want 1 to %d", classes, 1<<20)
	}
	g := m.Graph
	layer, bias, between, err := findHead(g, logits)
	if err != nil {
		return nil, err
	}
	weightAt := 1
	if layer.OpType == "MatMul" && g.Initializer(layer.Input(1)) == nil {
		return nil, fmt.Errorf("train: replacing the head: %v multiplies by %q, which is not a constant", layer, layer.Input(1))
	}
	old := g.Initializer(layer.Input(weightAt))
	if old == nil || old.Type != onnx.Float || len(old.Dims) < 2 {
		return nil, fmt.Errorf("train: replacing the head: the weight %q of %v is not a float constant of two or more dimensions", layer.Input(weightAt), layer)
	}
	dims := slices.Clone(old.Dims)
	out := len(dims) - 1 // MatMul and Gemm hold [in, out]
	if layer.OpType == "Conv" || layer.OpType == "Gemm" && layer.Int("transB", 0) != 0 {
		out = 0
	}
	if layer.OpType == "Conv" && layer.Int("group", 1) != 1 {
		return nil, fmt.Errorf("train: replacing the head: the last convolution %v is grouped; name another output or build the head in the exporting program", layer)
	}
	before := dims[out]
	dims[out] = int64(classes)
	scale := 1 / math.Sqrt(float64(product(dims)/int64(classes)))
	values := make([]float32, product(dims))
	for i := range values {
		values[i] = float32(rng.NormFloat64() * scale)
	}
	b := onnx.Extend(m)
	fresh := func(name string, dims []int64, values []float32) string {
		t := onnx.NewTensor(b.Fresh(name), dims, values)
		g.Initializers = append(g.Initializers, t)
		return t.Name
	}
	added := []string{fresh("head.weight", dims, values)}
	layer.Inputs = slices.Clone(layer.Inputs)
	layer.Inputs[weightAt] = added[0]
	zeros := make([]float32, classes)
	switch {
	case layer.Input(2) != "":
		added = append(added, fresh("head.bias", []int64{int64(classes)}, zeros))
		layer.Inputs[2] = added[1]
	case bias != nil:
		at := 1
		if g.Initializer(bias.Input(1)) == nil {
			at = 0
		}
		added = append(added, fresh("head.bias", []int64{int64(classes)}, zeros))
		bias.Inputs = slices.Clone(bias.Inputs)
		bias.Inputs[at] = added[1]
	}
	for _, node := range between {
		if node.OpType == "Reshape" {
			resize(g, b, node, before, int64(classes))
		}
	}
	g.ValueInfo = nil
	for i := range g.Outputs {
		if g.Outputs[i].Name == logits && len(g.Outputs[i].Shape) > 1 {
			g.Outputs[i].Shape = append(slices.Clone(g.Outputs[i].Shape[:1]), onnx.Dim{Value: int64(classes)})
		}
	}
	dropUnused(g)
	shapes, err := onnx.InferShapes(m, map[string]int64{"batch": 3})
	if err != nil {
		return nil, fmt.Errorf("train: replacing the head: the graph does not take %d classes: %w", classes, err)
	}
	if z := shapes[logits].Shape; len(z) != 2 || z[1].Known() && z[1].Value != int64(classes) {
		return nil, fmt.Errorf("train: replacing the head: the output became %v, not [N, %d]", shapes[logits], classes)
	}
	return added, nil
}

// findHead walks from the logits back to the last layer with weights. bias is
// the Add behind a MatMul, if there is one.
func findHead(g *onnx.Graph, logits string) (layer, bias *onnx.Node, between []*onnx.Node, err error) {
	name := logits
	for {
		node, _ := g.Producer(name)
		if node == nil || node.Domain != "" {
			return nil, nil, nil, fmt.Errorf("train: replacing the head: no Gemm, MatMul or Conv was found before %q; name another output", logits)
		}
		switch {
		case node.OpType == "Gemm" || node.OpType == "MatMul" || node.OpType == "Conv":
			return node, bias, between, nil
		case node.OpType == "Add" && bias == nil && (g.Initializer(node.Input(0)) == nil) != (g.Initializer(node.Input(1)) == nil):
			bias = node
			name = node.Input(0)
			if g.Initializer(name) != nil {
				name = node.Input(1)
			}
		case behindHead[node.OpType]:
			between = append(between, node)
			name = node.Input(0)
		default:
			return nil, nil, nil, fmt.Errorf("train: replacing the head: %v stands between the last layer and %q; name an output before it", node, logits)
		}
	}
}

// resize changes the old number of classes in the constant shape of a Reshape.
func resize(g *onnx.Graph, b *onnx.Builder, node *onnx.Node, before, classes int64) {
	shape := g.Initializer(node.Input(1))
	if shape == nil {
		return // the shape is computed: InferShapes says whether it still fits
	}
	dims, err := onnx.Values[int64](shape)
	if err != nil {
		return
	}
	for i, d := range dims {
		if d == before {
			dims[i] = classes
		}
	}
	node.Inputs = slices.Clone(node.Inputs)
	node.Inputs[1] = b.Ints("head.shape", dims...)
}

// dropUnused removes constants that no node reads any more.
func dropUnused(g *onnx.Graph) {
	used := map[string]bool{}
	var visit func(*onnx.Graph)
	visit = func(g *onnx.Graph) {
		for _, v := range g.Outputs {
			used[v.Name] = true
		}
		for _, node := range g.Nodes {
			for _, in := range node.Inputs {
				used[in] = true
			}
			for _, a := range node.Attributes {
				for _, inner := range append(slices.Clone(a.Graphs), a.Graph) {
					if inner != nil {
						visit(inner)
					}
				}
			}
		}
	}
	visit(g)
	g.Initializers = slices.DeleteFunc(g.Initializers, func(w *onnx.Tensor) bool { return !used[w.Name] })
	g.Inputs = slices.DeleteFunc(g.Inputs, func(v onnx.Value) bool { // weights that were inputs, too
		return !used[v.Name] && g.Initializer(v.Name) == nil
	})
}
