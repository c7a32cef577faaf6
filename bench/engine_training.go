package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
	"github.com/vigie/vigie/train"
)

// trainer is a training loop's state for measuring: weights, gradients of the
// parts of a batch, and the optimiser.
type trainer struct {
	runner
	weights, sum [][]float32
	decay        []bool
	parts        []trainerPart
	optimiser    train.AdamW
}

type trainerPart struct {
	binding   engine.Binding
	gradients [][]float32
}

const rate = 1e-4

// openTraining splits the batch over the processors where no layer needs the
// statistics of all of it, as package train does.
func (w work) openTraining(n *train.Network) (contender, error) {
	t := &trainer{runner: runner{title: "vigie"}, optimiser: train.AdamW{Decay: 0.01}}
	model, statistics := withBatchStatistics(n.Model)
	parts := runtime.NumCPU()
	if len(statistics) > 0 {
		parts = 1
	}
	if err := t.openParts(w, n, model, parts, statistics, false); err != nil {
		t.close()
		return nil, err
	}
	t.step = func(ctx context.Context) error {
		if err := t.run(ctx); err != nil {
			return err
		}
		for k, p := range t.parts {
			for i, g := range p.gradients {
				if k == 0 {
					copy(t.sum[i], g)
					continue
				}
				for j, v := range g {
					t.sum[i][j] += v
				}
			}
		}
		t.optimiser.Step(rate, t.weights, t.sum, t.decay)
		return nil
	}
	return t, nil
}

// openPrivate clips the gradient of each example to norm 1 over all weights.
func (w work) openPrivate(n *train.Network) (contender, error) {
	t := &trainer{runner: runner{title: "vigie"}, optimiser: train.AdamW{Decay: 0.01}}
	const micro = 8
	parts := w.batch / micro
	if err := t.openParts(w, n, n.Model, parts, nil, true); err != nil {
		t.close()
		return nil, err
	}
	noise := rand.New(rand.NewPCG(3, 0))
	t.step = func(ctx context.Context) error {
		for _, s := range t.sum {
			clear(s)
		}
		if err := t.run(ctx); err != nil {
			return err
		}
		for _, p := range t.parts {
			t.addClipped(p, micro)
		}
		for _, s := range t.sum {
			for j := range s {
				s[j] = (s[j] + float32(noise.NormFloat64())) / float32(w.batch)
			}
		}
		t.optimiser.Step(rate, t.weights, t.sum, t.decay)
		return nil
	}
	return t, nil
}

func (t *trainer) addClipped(p trainerPart, examples int) {
	for e := range examples {
		squares := 0.0
		for i, g := range p.gradients {
			n := len(t.sum[i])
			for _, v := range g[e*n : (e+1)*n] {
				squares += float64(v * v)
			}
		}
		scale := float32(min(1, 1/(math.Sqrt(squares)+1e-6)))
		for i, g := range p.gradients {
			s := t.sum[i]
			for j, v := range g[e*len(s) : (e+1)*len(s)] {
				s[j] += scale * v
			}
		}
	}
}

func (t *trainer) openParts(w work, n *train.Network, model *onnx.Model, parts int, statistics []string, perExample bool) error {
	loss, err := autodiff.SoftmaxCrossEntropy(model, n.Logits)
	if err != nil {
		return err
	}
	size := w.batch / parts
	if size*parts != w.batch {
		return fmt.Errorf("%d examples do not divide into %d parts", w.batch, parts)
	}
	request := autodiff.Request{
		Loss: loss.Total, WithRespectTo: n.Weights, Batch: int64(size), Keep: append([]string{loss.Total}, statistics...), WeightsAsInputs: true,
	}
	if perExample {
		request.Loss, request.PerExample, request.Keep[0] = loss.Each, true, loss.Each
	}
	g, err := autodiff.Gradient(loss.Model, request)
	if err != nil {
		return err
	}
	for _, name := range n.Weights {
		w := n.Model.Graph.Initializer(name)
		values, err := onnx.Values[float32](w)
		if err != nil {
			return err
		}
		wide := 0
		for _, d := range w.Dims {
			if d > 1 {
				wide++
			}
		}
		t.weights, t.sum, t.decay = append(t.weights, values), append(t.sum, make([]float32, len(values))), append(t.decay, wide > 1)
	}
	threads := 1
	if parts == 1 {
		threads = 0
	}
	for range parts {
		var p trainerPart
		x, y := w.examples(size)
		inputs, outputs := map[string]engine.Tensor{n.Input: x}, map[string]engine.Tensor{}
		for _, in := range g.Model.Graph.Inputs {
			switch in.Name {
			case loss.Target:
				inputs[in.Name] = y
			case loss.Weight:
				share := make([]float32, size)
				for i := range share {
					share[i] = 1 / float32(w.batch)
				}
				inputs[in.Name] = engine.Float32([]int64{int64(size)}, share)
			}
		}
		gradients := map[string]int{}
		for i, name := range n.Weights {
			inputs[name] = engine.Float32(n.Model.Graph.Initializer(name).Dims, t.weights[i])
			gradients[g.Of[name]] = i
		}
		p.gradients = make([][]float32, len(n.Weights))
		for _, out := range g.Model.Graph.Outputs {
			var shape []int64
			for _, d := range out.Shape {
				shape = append(shape, d.Value)
			}
			tensor, err := engine.Zeros(out.Type, shape...)
			if err != nil {
				return err
			}
			outputs[out.Name] = tensor
			if i, ok := gradients[out.Name]; ok {
				p.gradients[i] = tensor.Data.([]float32)
			}
		}
		if p.binding, err = t.bind(g.Model, threads, inputs, outputs); err != nil {
			return err
		}
		t.parts = append(t.parts, p)
	}
	return nil
}

// run computes the parts, as many at once as there are processors.
func (t *trainer) run(ctx context.Context) error {
	errs := make([]error, len(t.parts))
	var running sync.WaitGroup
	slots := make(chan struct{}, runtime.NumCPU())
	for k, p := range t.parts {
		slots <- struct{}{}
		running.Go(func() {
			errs[k] = p.binding.Run(ctx)
			<-slots
		})
	}
	running.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// withBatchStatistics puts batch normalisations into training mode and names
// the statistics they return.
func withBatchStatistics(m *onnx.Model) (*onnx.Model, []string) {
	m = m.Clone()
	var statistics []string
	for _, node := range m.Graph.Nodes {
		if node.OpType == "BatchNormalization" {
			mean, variance := node.Outputs[0]+"/mean", node.Outputs[0]+"/variance"
			node.Outputs = append(node.Outputs[:1:1], mean, variance)
			node.Set(onnx.IntAttribute("training_mode", 1))
			statistics = append(statistics, mean, variance)
		}
	}
	return m, statistics
}
