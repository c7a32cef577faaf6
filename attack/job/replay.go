package job

import (
	"context"
	"fmt"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
)

// replay is the model's own path from an image to an answer.
type replay struct {
	session engine.Session
	options attack.NetworkOptions
	input   onnx.Value
	output  string
	rows    int
	columns int
	label   *int
	prob    bool // the output holds probabilities
}

// openReplay makes the graph ready as it was delivered.
func openReplay(m *probe.Model, o attack.NetworkOptions, set *train.Set) (*replay, error) {
	r := &replay{options: o, rows: set.Rows, columns: set.Columns, label: o.Label}
	for _, v := range m.Graph.Graph.Inputs {
		if m.Graph.Graph.Initializer(v.Name) == nil {
			r.input = v
		}
	}
	switch {
	case o.Output != "":
		r.output = o.Output
	case o.Manifest != nil:
		r.output = o.Manifest.Output.Name
	default:
		r.output = m.Graph.Graph.Outputs[0].Name
	}
	if n, _ := m.Graph.Graph.Producer(r.output); n != nil {
		r.prob = n.OpType == "Softmax" || n.OpType == "Sigmoid"
	}
	if o.Manifest != nil {
		r.prob = o.Manifest.Output.Activation == model.None
	}
	var err error
	r.session, err = engine.Open(m.Graph, engine.Options{Outputs: []string{r.output}})
	return r, err
}

func (r *replay) close() error { return r.session.Close() }

// answer is the class of one image.
func (r *replay) answer(ctx context.Context, pixels []float32) (int, error) {
	in, err := r.prepare(pixels)
	if err != nil {
		return 0, err
	}
	return r.class(ctx, in)
}

// luminance is the class of one image of any size, as the manifest prepares it.
func (r *replay) luminance(ctx context.Context, l *dicom.Luminance) (int, error) {
	in, err := r.options.Manifest.Prepare(l)
	if err != nil {
		return 0, err
	}
	return r.class(ctx, in)
}

// class asks about one prepared image.
func (r *replay) class(ctx context.Context, in engine.Tensor) (int, error) {
	if n := r.input.Shape[0]; n.Known() && n.Value > 1 { // a batch of fixed size
		row := in.Data.([]float32)
		all := make([]float32, 0, len(row)*int(n.Value))
		for range n.Value {
			all = append(all, row...)
		}
		in = engine.Float32(append([]int64{n.Value}, in.Shape[1:]...), all)
	}
	out, err := r.session.Run(ctx, map[string]engine.Tensor{r.input.Name: in})
	if err != nil {
		return 0, err
	}
	z, err := engine.Values[float32](out[r.output])
	if err != nil {
		return 0, err
	}
	z = z[:len(z)/int(in.Shape[0])]
	if r.label != nil {
		z = z[*r.label : *r.label+1]
	}
	half := float32(0)
	if r.prob {
		half = 0.5
	}
	if len(z) == 1 {
		z = []float32{half, z[0]}
	}
	if r.options.Bias != nil {
		if r.prob {
			return 0, fmt.Errorf("an operating point on probabilities: %w", ErrAsk)
		}
		shifted := make([]float32, len(z))
		for i := range z {
			shifted[i] = z[i] + float32(r.options.Bias[i])
		}
		z = shifted
	}
	best := 0
	for c, v := range z {
		if v > z[best] {
			best = c
		}
	}
	return best, nil
}

// prepare makes the input of an image: as the package does, or normalised,
// repeated and laid out as a bare graph wants it.
func (r *replay) prepare(pixels []float32) (engine.Tensor, error) {
	if m := r.options.Manifest; m != nil {
		return m.Prepare(&dicom.Luminance{Rows: r.rows, Columns: r.columns, Values: pixels})
	}
	declared := r.input.Shape
	shape := []int64{1}
	size := int64(1)
	for i, d := range declared[1:] {
		n := d.Value
		if !d.Known() {
			n = r.options.Shape[i]
		}
		shape, size = append(shape, n), size*n
	}
	values := pixels
	if len(r.options.Shape) == 3 {
		channels, plane := int(r.options.Shape[0]), len(pixels)/int(r.options.Shape[0])
		wants := int(size) / plane
		last := len(shape) == 4 && (shape[1] != int64(wants) || shape[2] != r.options.Shape[1])
		values = make([]float32, size)
		for c := range wants {
			mean, deviation := number(r.options.Mean, c, 0), number(r.options.Std, c, 1)
			for i := range plane {
				at := c*plane + i
				if last {
					at = i*wants + c
				}
				values[at] = (pixels[min(c, channels-1)*plane+i] - mean) / deviation
			}
		}
	}
	return engine.Float32(shape, values), nil
}

func number(list []float64, c int, otherwise float32) float32 {
	switch {
	case len(list) == 0:
		return otherwise
	case c < len(list):
		return float32(list[c])
	}
	return float32(list[0])
}

// recount asks the model's own path about each image that was fooled, and about
// as many that were not touched, so that a path that answers otherwise than the
// target is an error and not a rate.
func (s *subject) recount(ctx context.Context, r *attack.Result, report *Report) error {
	size := s.target.Describe().Size()
	clean := 0
	for i := range r.Cases {
		c := &r.Cases[i]
		if c.Fooled {
			answer, err := s.replay.answer(ctx, r.Pixels[i*size:(i+1)*size])
			if err != nil {
				return fmt.Errorf("job: replaying image %d: %w", s.index[i], err)
			}
			if answer != c.After {
				c.Fooled = false
				report.Unconfirmed++
				copy(r.Pixels[i*size:(i+1)*size], s.pixels[i*size:(i+1)*size])
			}
		}
		if clean < 16 {
			clean++
			answer, err := s.replay.answer(ctx, s.pixels[i*size:(i+1)*size])
			if err != nil {
				return fmt.Errorf("job: replaying image %d: %w", s.index[i], err)
			}
			if answer != c.Answer && c.Margin*c.Margin > 1e-4 {
				return fmt.Errorf("job: image %d of the split is class %d for the model and %d for the attack: the attack would say nothing of this model; report it", s.index[i], answer, c.Answer)
			}
		}
	}
	return nil
}
