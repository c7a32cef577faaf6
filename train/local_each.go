package train

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx/autodiff"
)

// EachRun asks for gradients of single records at a Local's current weights.
type EachRun struct {
	// Records says which examples are of one record, as positions in the set: a
	// record is a patient, or one example. None may be empty.
	Records [][]int
	Views   int // augmentations of each example, averaged; 0 is 1
	// Seed and Round decide the augmentation. It depends on them and on what the
	// example is, not on its place in the set nor on any other.
	Seed  uint64
	Round int
}

// eachRows is how many rows are computed at a time: of any records.
const eachRows = 32

// eachStep is the session that computes gradients row by row.
type eachStep struct {
	session   engine.Session
	binding   engine.Binding
	inputs    []float32 // [rows, example shape…]
	targets   []float32
	gradients [][]float32 // by weight: [rows, shape…]
}

// Each calls yield with the gradient of every record's mean loss, one after the
// other in their order, the weights' one after the other as in Names; the slice
// is good until yield returns. An error of yield ends it.
//
// A record's gradient depends on its own examples only, bit for bit: rows are
// computed alike wherever they are in a batch and whoever is beside them. That
// makes what a record adds to a sum exact, and is tested. Networks in which it
// cannot be are refused with ErrMixes.
func (l *Local) Each(ctx context.Context, s *Set, o EachRun, yield func(gradient []float32) error) error {
	t := l.trainer
	if err := l.fits(s); err != nil {
		return err
	}
	if l.each == nil {
		e, err := newEach(t)
		if err != nil {
			return err
		}
		l.each = e
	}
	e, views := l.each, max(1, o.Views)
	t.config.Train, t.config.Seed = s, o.Seed
	size := 0
	for _, w := range t.state.Weights {
		size += len(w)
	}
	gradient, sum := make([]float32, size), make([]float64, size)
	pixels := len(e.inputs) / eachRows
	type place struct{ record, example, view int }
	var rows []place
	for r, record := range o.Records {
		if len(record) == 0 {
			return fmt.Errorf("train: record %d has no examples", r)
		}
		for _, at := range record {
			if at < 0 || at >= s.Len() {
				return fmt.Errorf("train: record %d has example %d of %d", r, at, s.Len())
			}
			for v := range views {
				rows = append(rows, place{r, at, v})
			}
		}
	}
	open := 0 // rows of the current record in sum
	for from := 0; from < len(rows); from += eachRows {
		if err := ctx.Err(); err != nil {
			return err
		}
		now := rows[from:min(len(rows), from+eachRows)]
		for i, p := range now {
			t.augmentedAlone(e.inputs[i*pixels:(i+1)*pixels], p.example, o.Seed, uint64(o.Round*views+p.view))
			target := e.targets[i*t.outputs : (i+1)*t.outputs]
			clear(target)
			t.label(target, p.example, 1)
		}
		if err := e.binding.Run(ctx); err != nil {
			return fmt.Errorf("train: gradients of single records: %w", err)
		}
		for i, p := range now {
			last := from+i+1 == len(rows) || rows[from+i+1].record != p.record
			at := 0
			for _, g := range e.gradients {
				n := len(g) / eachRows
				row := g[i*n : (i+1)*n]
				switch {
				case open == 0 && last:
					copy(gradient[at:], row)
				case open == 0:
					for j, v := range row {
						sum[at+j] = float64(v)
					}
				default:
					for j, v := range row {
						sum[at+j] += float64(v)
					}
				}
				at += n
			}
			open++
			if !last {
				continue
			}
			if open > 1 {
				for j, v := range sum {
					gradient[j] = float32(v / float64(open))
				}
			}
			open = 0
			if err := yield(gradient); err != nil {
				return err
			}
		}
	}
	return nil
}

// augmentedAlone augments an example by its content, so that it is augmented alike
// in a set with others or without them.
func (t *trainer) augmentedAlone(dst []float32, at int, seed, turn uint64) {
	if t.config.Augmentation == (Augmentation{}) {
		t.config.Train.Fill(dst, at)
		return
	}
	content := t.config.Train.fingerprint(at)
	t.augmentedBy(dst, at, rand.New(rand.NewPCG(seed^binary.LittleEndian.Uint64(content[:]), turn^binary.LittleEndian.Uint64(content[8:]))))
}

func newEach(t *trainer) (*eachStep, error) {
	n := t.network
	if len(n.norms) > 0 {
		return nil, fmt.Errorf("train: %q is a batch normalisation, which makes every example's output depend on the others of its batch: %w; build the network with group normalisation, or freeze that layer", n.Model.Graph.Nodes[n.norms[0].node].Name, ErrMixes)
	}
	loss, err := t.loss.appendTo(n.Model, n.heads()...)
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	kernels := t.config.Kernels
	g, err := autodiff.Gradient(loss.Model, autodiff.Request{Loss: loss.Each, WithRespectTo: n.Weights, PerExample: true, Batch: eachRows, WeightsAsInputs: true, Kernels: kernels})
	if errors.Is(err, autodiff.ErrMixesExamples) {
		err = fmt.Errorf("%w: %w", ErrMixes, err)
	}
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	example := t.example()
	e := &eachStep{inputs: make([]float32, eachRows*int(product(example))), targets: make([]float32, eachRows*t.outputs)}
	inputs := map[string]engine.Tensor{
		n.Input:     engine.Float32(append([]int64{eachRows}, example...), e.inputs),
		loss.Target: engine.Float32([]int64{eachRows, int64(t.outputs)}, e.targets),
	}
	outputs := map[string]engine.Tensor{}
	for i, name := range n.Weights {
		shape := n.Model.Graph.Initializer(name).Dims
		inputs[name] = engine.Float32(shape, t.state.Weights[i])
		e.gradients = append(e.gradients, make([]float32, eachRows*len(t.state.Weights[i])))
		outputs[g.Of[name]] = engine.Float32(append([]int64{eachRows}, shape...), e.gradients[i])
	}
	options := engine.Options{Threads: 1}
	if kernels > 0 { // they share out each operator themselves
		options.Threads = runtime.NumCPU()
	}
	if e.session, err = engine.Open(g.Model, options); err == nil {
		e.binding, err = e.session.Bind(inputs, outputs)
	}
	if err != nil {
		e.close()
		return nil, fmt.Errorf("train: %w", err)
	}
	return e, nil
}

func (e *eachStep) close() {
	if e == nil {
		return
	}
	if e.binding != nil {
		e.binding.Close()
	}
	if e.session != nil {
		e.session.Close()
	}
}
