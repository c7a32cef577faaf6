package autodiff

import (
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Loss is a model with a loss appended to its logits.
type Loss struct {
	Model *onnx.Model
	// Target is the added input with the shape of the logits: for each example
	// a distribution over the classes (one-hot, smoothed or mixed labels), or
	// for BinaryCrossEntropy a probability for each label.
	Target string
	// Weight is the added input [N]: the weight of every example in Total. With
	// 1/N each, Total is the mean; class weights and parts of a batch that is
	// split over workers are other choices.
	Weight string
	// Each names the loss of every example, [N], unweighted.
	Each string
	// Total names Σ Weight·Each, shape [1].
	Total string
}

// SoftmaxCrossEntropy appends -Σ target·log softmax(logits) over the last axis
// of logits [N, K]. With more logits of the same shape, such as an ensemble's,
// it is the sum of the losses of all. The model is not changed.
func SoftmaxCrossEntropy(m *onnx.Model, logits string, more ...string) (*Loss, error) {
	return appendLoss(m, logits, more, func(b *onnx.Builder, z, target string) string {
		logp := b.Op("LogSoftmax", []string{z}, onnx.IntAttribute("axis", -1))
		return b.Op("Neg", []string{rowSum(b, b.Op("Mul", []string{logp, target}))})
	})
}

// BinaryCrossEntropy appends the sum over labels of
// softplus(z) - target·z, which is the cross-entropy of sigmoid(z), for logits
// [N, K] of K independent labels; more logits as in SoftmaxCrossEntropy. The
// model is not changed.
func BinaryCrossEntropy(m *onnx.Model, logits string, more ...string) (*Loss, error) {
	return appendLoss(m, logits, more, func(b *onnx.Builder, z, target string) string {
		hit := b.Op("Mul", []string{z, target})
		return rowSum(b, b.Op("Sub", []string{b.Op("Softplus", []string{z}), hit}))
	})
}

// rowSum sums [N, K] over K.
func rowSum(b *onnx.Builder, x string) string {
	return b.Op("ReduceSum", []string{x, b.Ints("loss_axes", 1)}, onnx.IntAttribute("keepdims", 0))
}

func appendLoss(m *onnx.Model, logits string, more []string, each func(b *onnx.Builder, z, target string) string) (*Loss, error) {
	shapes, err := onnx.InferShapes(m, nil)
	if err != nil {
		return nil, fmt.Errorf("autodiff: appending a loss to %s: %w", logits, err)
	}
	z, ok := shapes[logits]
	if !ok || len(z.Shape) != 2 {
		return nil, fmt.Errorf("autodiff: appending a loss to %s: want a tensor of shape [N, classes], the model has %v", logits, z)
	}
	for _, name := range more {
		if other := shapes[name]; other.Type != z.Type || !slices.Equal(other.Shape, z.Shape) {
			return nil, fmt.Errorf("autodiff: appending a loss to %s and %s: want the same shape, the model has %v and %v", logits, name, z, other)
		}
	}
	b := onnx.Extend(m.Clone())
	l := &Loss{}
	l.Target = b.Input(spare(m, "target"), z.Type, z.Shape...)
	l.Weight = b.Input(spare(m, "weight"), z.Type, z.Shape[0])
	l.Each = each(b, logits, l.Target)
	for _, name := range more {
		l.Each = b.Op("Add", []string{l.Each, each(b, name, l.Target)})
	}
	weighted := b.Op("Mul", []string{l.Each, l.Weight})
	l.Total = b.Op("ReduceSum", []string{weighted, b.Ints("loss_axes", 0)}, onnx.IntAttribute("keepdims", 1))
	b.Output(l.Each, z.Type, z.Shape[0])
	b.Output(l.Total, z.Type, onnx.Dim{Value: 1})
	if l.Model, err = b.Build(); err != nil {
		return nil, fmt.Errorf("autodiff: appending a loss to %s: %w", logits, err)
	}
	return l, nil
}

// spare returns a name that no tensor of the model has.
func spare(m *onnx.Model, name string) string {
	taken := map[string]bool{}
	for _, v := range m.Graph.Inputs {
		taken[v.Name] = true
	}
	for _, w := range m.Graph.Initializers {
		taken[w.Name] = true
	}
	for _, n := range m.Graph.Nodes {
		for _, out := range n.Outputs {
			taken[out] = true
		}
	}
	for taken[name] {
		name += "_"
	}
	return name
}
