package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	ort "github.com/yalue/onnxruntime_go"
	"golang.org/x/sys/unix"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/train"
)

// build makes the network of a work with initial weights.
func (w work) build() (*train.Network, error) {
	rng := rand.New(rand.NewPCG(1, 0))
	switch w.network {
	case "small-cnn":
		return train.CNN{
			Channels: int(w.input[0]), Rows: int(w.input[1]), Columns: int(w.input[2]), Classes: classes,
			Stages: [][]int{{32}, {64}, {128}}, Hidden: 128, Mean: 0.5, Deviation: 0.25,
		}.Build(rng)
	case "demo":
		return train.DemoCNN.Build(rng)
	}
	n, err := zoo.Build(w.network, zoo.Options{Input: w.input, Classes: classes, Norm: w.norm}, rng)
	if err != nil {
		return nil, err
	}
	return &train.Network{Model: n.Model, Input: n.Input, Logits: n.Logits, Weights: n.Weights, Layer: n.Layer}, nil
}

// open makes our side of a work.
func (w work) open() (contender, error) {
	n, err := w.build()
	if err != nil {
		return nil, err
	}
	switch w.kind {
	case trainStep, trainMemory:
		return w.openTraining(n)
	case privateStep:
		return w.openPrivate(n)
	case inputGradient:
		return w.openInputGradient(n)
	}
	return w.openSession(n)
}

// system names our side.
func (w work) system() string {
	if w.kernels > 0 {
		return fmt.Sprintf("vigie, %d-term kernels", w.kernels)
	}
	return "vigie"
}

// runner is a contender of this process: one step is one call.
type runner struct {
	title string
	step  func(context.Context) error
	free  []func() error
}

func (r *runner) name() string { return r.title }

func (r *runner) steps(ctx context.Context, n int) (wall, cpu []float64, err error) {
	for range n {
		start, used := time.Now(), processSeconds()
		if err := r.step(ctx); err != nil {
			return nil, nil, err
		}
		wall, cpu = append(wall, time.Since(start).Seconds()), append(cpu, processSeconds()-used)
	}
	return wall, cpu, nil
}

func (r *runner) close() {
	for i := len(r.free) - 1; i >= 0; i-- {
		_ = r.free[i]()
	}
}

// processSeconds is the processor time of all threads of this process.
func processSeconds() float64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return float64(t.Nano()) / 1e9
}

// bind opens a graph and binds it to buffers.
func (r *runner) bind(m *onnx.Model, options engine.Options, inputs, outputs map[string]engine.Tensor) (engine.Binding, error) {
	session, err := engine.Open(m, options)
	if err != nil {
		return nil, err
	}
	r.free = append(r.free, session.Close)
	binding, err := session.Bind(inputs, outputs)
	if err != nil {
		return nil, err
	}
	r.free = append(r.free, binding.Close)
	return binding, nil
}

// examples returns a batch: values in 0..1 and one-hot labels that alternate.
func (w work) examples(n int) (x, y engine.Tensor) {
	rng := rand.New(rand.NewPCG(2, 0))
	shape, count := append([]int64{int64(n)}, w.input...), n
	for _, d := range w.input {
		count *= int(d)
	}
	values, labels := make([]float32, count), make([]float32, n*classes)
	for i := range values {
		values[i] = rng.Float32()
	}
	for i := range n {
		labels[i*classes+i%classes] = 1
	}
	return engine.Float32(shape, values), engine.Float32([]int64{int64(n), classes}, labels)
}

// openInputGradient is the gradient of the loss with respect to the input: the
// weights are constants of the graph.
func (w work) openInputGradient(n *train.Network) (contender, error) {
	loss, err := autodiff.SoftmaxCrossEntropy(n.Model, n.Logits)
	if err != nil {
		return nil, err
	}
	g, err := autodiff.Gradient(loss.Model, autodiff.Request{Loss: loss.Total, WithRespectTo: []string{n.Input}, Batch: int64(w.batch), Keep: []string{loss.Total}, Kernels: w.kernels})
	if err != nil {
		return nil, err
	}
	x, y := w.examples(w.batch)
	weight := make([]float32, w.batch)
	for i := range weight {
		weight[i] = 1 / float32(w.batch)
	}
	r := &runner{title: w.system()}
	out, err := engine.Zeros(onnx.Float, x.Shape...)
	if err != nil {
		return nil, err
	}
	b, err := r.bind(g.Model, engine.Options{},
		map[string]engine.Tensor{n.Input: x, loss.Target: y, loss.Weight: engine.Float32([]int64{int64(w.batch)}, weight)},
		map[string]engine.Tensor{loss.Total: engine.Float32([]int64{1}, make([]float32, 1)), g.Of[n.Input]: out})
	if err != nil {
		r.close()
		return nil, err
	}
	r.step = b.Run
	return r, nil
}

// openSession is a prediction as the product makes it.
func (w work) openSession(n *train.Network) (contender, error) {
	session, err := engine.Open(n.Model, engine.Options{})
	if err != nil {
		return nil, err
	}
	x, _ := w.examples(w.batch)
	inputs := map[string]engine.Tensor{n.Input: x}
	return &runner{title: "vigie session", free: []func() error{session.Close}, step: func(ctx context.Context) error {
		_, err := session.Run(ctx, inputs, n.Logits)
		return err
	}}, nil
}

// openBare runs the same graph in ONNX Runtime without our session: its own
// options but for as many threads as there are processors, tensors made once.
func (w work) openBare() (contender, error) {
	if err := engine.Ready(); err != nil {
		return nil, err
	}
	n, err := w.build()
	if err != nil {
		return nil, err
	}
	data, err := n.Model.Marshal()
	if err != nil {
		return nil, err
	}
	x, _ := w.examples(w.batch)
	r := &runner{title: "bare ONNX Runtime"}
	in, err := ort.NewTensor(ort.Shape(x.Shape), x.Data.([]float32))
	if err != nil {
		return nil, err
	}
	r.free = append(r.free, in.Destroy)
	out, err := ort.NewEmptyTensor[float32](ort.NewShape(int64(w.batch), classes))
	if err == nil {
		r.free = append(r.free, out.Destroy)
		var options *ort.SessionOptions
		if options, err = ort.NewSessionOptions(); err == nil {
			defer options.Destroy()
			if err = options.SetIntraOpNumThreads(runtime.NumCPU()); err == nil {
				var session *ort.AdvancedSession
				session, err = ort.NewAdvancedSessionWithONNXData(data, []string{n.Input}, []string{n.Logits}, []ort.Value{in}, []ort.Value{out}, options)
				if err == nil {
					r.free = append(r.free, session.Destroy)
					r.step = func(context.Context) error { return session.Run() }
				}
			}
		}
	}
	if err != nil {
		r.close()
		return nil, fmt.Errorf("opening a bare session: %w", err)
	}
	return r, nil
}
