package train

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
)

// adversary looks for the perturbation of each image of a batch that a network
// withstands least: the inner maximisation of adversarial training. The network
// answers as it will when it is used: with running statistics in its batch
// normalisations.
//
// What is climbed is not cross-entropy but the log-odds, of which it is a rising
// function: its slope does not vanish in float32 where the network is sure.
type adversary struct {
	spec   Hardening
	loss   Loss
	shape  []int64 // of an example
	size   int     // examples of a batch
	width  int     // of the logits
	parts  []*adversaryPart
	values [][]float32 // of the network's variables, which the sessions read

	images   []float32 // [N, shape…]
	targets  []float32 // [N, width]: what the images are, which the adversary argues against
	gradient []float32 // of the log-odds by the images
	logits   []float32 // of the images, before the step
}

type adversaryPart struct {
	session engine.Session
	binding engine.Binding
}

func newAdversary(spec Hardening, n *Network, loss Loss, shape []int64, width, size, parts, kernels int) (*adversary, error) {
	a := &adversary{spec: spec, loss: loss, shape: shape, size: size, width: width}
	per := int(product(shape))
	a.images, a.gradient = make([]float32, size*per), make([]float32, size*per)
	a.targets, a.logits = make([]float32, size*width), make([]float32, size*width)
	threads := 1
	if kernels > 0 { // they share out each operator themselves
		parts, threads = 1, runtime.NumCPU()
	}
	m, err := loss.againstLogits(n.variablesAsInputs(), n.Logits, width)
	if err != nil {
		return nil, err
	}
	g, err := autodiff.Gradient(m.model, autodiff.Request{
		Loss: m.objective, WithRespectTo: []string{n.Input}, Batch: int64(size / parts), Keep: []string{n.Logits}, Kernels: kernels,
	})
	if err != nil {
		return nil, fmt.Errorf("train: the gradient by the image: %w", err)
	}
	inputs, outputs := map[string]engine.Tensor{}, map[string]engine.Tensor{}
	for _, name := range n.variables() {
		w := n.Model.Graph.Initializer(name)
		a.values = append(a.values, make([]float32, product(w.Dims)))
		inputs[name] = engine.Float32(w.Dims, a.values[len(a.values)-1])
	}
	rows := size / parts
	for k := range parts {
		p := &adversaryPart{}
		a.parts = append(a.parts, p)
		from, to := k*rows, (k+1)*rows
		images, logits := append([]int64{int64(rows)}, shape...), []int64{int64(rows), int64(width)}
		inputs[n.Input] = engine.Float32(images, a.images[from*per:to*per])
		inputs[m.target] = engine.Float32(logits, a.targets[from*width:to*width])
		outputs[g.Of[n.Input]] = engine.Float32(images, a.gradient[from*per:to*per])
		outputs[n.Logits] = engine.Float32(logits, a.logits[from*width:to*width])
		if p.session, err = engine.Open(g.Model, engine.Options{Threads: threads, Yield: kernels == 0}); err == nil {
			p.binding, err = p.session.Bind(inputs, outputs)
		}
		if err != nil {
			a.close()
			return nil, fmt.Errorf("train: %w", err)
		}
	}
	return a, nil
}

func (a *adversary) close() {
	if a == nil {
		return
	}
	for _, p := range a.parts {
		if p.binding != nil {
			p.binding.Close()
		}
		if p.session != nil {
			p.session.Close()
		}
	}
}

// load takes the values of the network's variables.
func (a *adversary) load(variables [][]float32) {
	for i, v := range variables {
		copy(a.values[i], v)
	}
}

// ask computes logits and gradient at the images.
func (a *adversary) ask(ctx context.Context) error {
	var running sync.WaitGroup
	errs := make([]error, len(a.parts))
	for k, p := range a.parts {
		running.Go(func() { errs[k] = p.binding.Run(ctx) })
	}
	running.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// room is what an adversary may make of a batch: around centre, [N, shape…],
// each pixel between low and high and, by the norm, not further than eps.
type room struct {
	centre, low, high []float32
	eps               float64
}

// newRoom is the range of pixels around a batch; eps of Linf is in it already.
func (a *adversary) newRoom() *room {
	n := len(a.images)
	return &room{make([]float32, n), make([]float32, n), make([]float32, n), 0}
}

// open sets the room of place b around its image in centre: pixels stay in
// 0..1, or, of noisy images, where they come to lie.
func (r *room) open(h *Hardening, b, per int, eps float64) {
	unbounded := float32(math.Inf(1))
	for i := b * per; i < (b+1)*per; i++ {
		x := r.centre[i]
		low, high := float32(0), float32(1)
		if h.Noise > 0 {
			low, high = -unbounded, unbounded
		}
		switch h.Norm {
		case Linf:
			low, high = max(low, within32(x, -eps)), min(high, within32(x, eps))
		case Patch: // until a place is chosen
			low, high = x, x
		}
		r.low[i], r.high[i] = low, high
	}
}

// within32 is the float32 nearest to x + d whose distance from x is at most |d|.
func within32(x float32, d float64) float32 {
	v := float32(float64(x) + d)
	for math.Abs(float64(v)-float64(x)) > math.Abs(d) {
		v = math.Nextafter32(v, x)
	}
	return v
}

// shut leaves place b as it is.
func (r *room) shut(b, per int) {
	copy(r.low[b*per:(b+1)*per], r.centre[b*per:(b+1)*per])
	copy(r.high[b*per:(b+1)*per], r.centre[b*per:(b+1)*per])
}

// shutSquare keeps a mask of place b as it is.
func (r *room) shutSquare(s square, b, channels, rows, columns int) {
	per := channels * rows * columns
	for c := range channels {
		for y := s.row; y < s.row+s.rows; y++ {
			for x := s.column; x < s.column+s.columns; x++ {
				i := b*per + (c*rows+y)*columns + x
				r.low[i], r.high[i] = r.centre[i], r.centre[i]
			}
		}
	}
}

// climb looks for the worst image in each room, from a random start, and leaves
// it in a.images. Targets and variables must be set, and the rooms opened. chance(b) is place b's stream.
func (a *adversary) climb(ctx context.Context, r *room, steps int, chance func(b int) *rand.Rand) error {
	h, per := &a.spec, int(product(a.shape))
	a.each(func(b int) { r.scatter(h, a.images, b, per, chance(b)) })
	length := h.StepSize * r.eps
	if steps != h.Steps {
		length *= float64(h.Steps) / float64(steps)
	}
	if h.Norm == Patch {
		length = h.StepSize * float64(h.Steps) / float64(steps)
	}
	for range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.ask(ctx); err != nil {
			return err
		}
		a.each(func(b int) { r.step(h, a.images, a.gradient, b, per, length) })
	}
	return nil
}

// each calls f for every place of the batch, side by side.
func (a *adversary) each(f func(b int)) {
	workers := min(runtime.GOMAXPROCS(0), a.size)
	var running sync.WaitGroup
	for k := range workers {
		running.Go(func() {
			for b := k * a.size / workers; b < (k+1)*a.size/workers; b++ {
				f(b)
			}
		})
	}
	running.Wait()
}

// scatter draws a start: uniform in the cube of Linf or the square of a patch,
// and in the ball of L2.
func (r *room) scatter(h *Hardening, images []float32, b, per int, rng *rand.Rand) {
	x, c := images[b*per:(b+1)*per], r.centre[b*per:(b+1)*per]
	low, high := r.low[b*per:(b+1)*per], r.high[b*per:(b+1)*per]
	if h.Norm != L2 {
		for i := range x {
			x[i] = min(max(low[i]+(high[i]-low[i])*rng.Float32(), low[i]), high[i])
		}
		return
	}
	drawn, length := make([]float64, per), 0.0
	for i := range drawn {
		drawn[i] = rng.NormFloat64()
		length += drawn[i] * drawn[i]
	}
	scale := r.eps * math.Pow(rng.Float64(), 1/float64(per)) / math.Sqrt(max(length, 1e-300))
	for i := range x {
		drawn[i] *= scale
	}
	r.project(x, c, low, high, drawn)
}

// step moves one image along its slope and back into its room.
func (r *room) step(h *Hardening, images, gradient []float32, b, per int, length float64) {
	x, g := images[b*per:(b+1)*per], gradient[b*per:(b+1)*per]
	low, high := r.low[b*per:(b+1)*per], r.high[b*per:(b+1)*per]
	if h.Norm != L2 {
		size := float32(length)
		for i, v := range g {
			switch {
			case v > 0:
				x[i] = min(x[i]+size, high[i])
			case v < 0:
				x[i] = max(x[i]-size, low[i])
			}
		}
		return
	}
	c := r.centre[b*per : (b+1)*per]
	norm := 0.0
	for _, v := range g {
		norm += float64(v) * float64(v)
	}
	norm = math.Sqrt(norm)
	change := make([]float64, per)
	for i := range x {
		change[i] = float64(x[i]) - float64(c[i])
		if norm > 0 {
			change[i] += length / norm * float64(g[i])
		}
	}
	r.project(x, c, low, high, change)
}

// project brings a change into the ball of L2 and the range of pixels, which only
// shortens it.
func (r *room) project(x, c, low, high []float32, change []float64) {
	norm := 0.0
	for _, v := range change {
		norm += v * v
	}
	scale := 1.0
	if norm = math.Sqrt(norm); norm > r.eps {
		scale = r.eps / norm
	}
	// Rounding to float32 may carry an image out of the ball by parts of 10⁻⁷.
	for range 8 {
		out := 0.0
		for i := range x {
			x[i] = min(max(float32(float64(c[i])+scale*change[i]), low[i]), high[i])
			d := float64(x[i]) - float64(c[i])
			out += d * d
		}
		if math.Sqrt(out) <= r.eps {
			return
		}
		scale *= 1 - 1e-6
	}
	copy(x, c)
}

// place opens the square of each image whose slope is largest: the sum of the
// absolute slopes over all channels.
func (a *adversary) place(ctx context.Context, r *room) error {
	copy(a.images, r.centre)
	if err := a.ask(ctx); err != nil {
		return err
	}
	channels, rows, columns := int(a.shape[0]), int(a.shape[1]), int(a.shape[2])
	per, side := channels*rows*columns, a.spec.Side
	low, high := float32(0), float32(1)
	a.each(func(b int) {
		g := a.gradient[b*per : (b+1)*per]
		sums := make([]float64, (rows+1)*(columns+1)) // of all above and left
		for y := range rows {
			line := 0.0
			for x := range columns {
				for c := range channels {
					line += math.Abs(float64(g[(c*rows+y)*columns+x]))
				}
				sums[(y+1)*(columns+1)+x+1] = sums[y*(columns+1)+x+1] + line
			}
		}
		best, at := -1.0, square{}
		for y := 0; y+side <= rows; y++ {
			for x := 0; x+side <= columns; x++ {
				v := sums[(y+side)*(columns+1)+x+side] - sums[y*(columns+1)+x+side] - sums[(y+side)*(columns+1)+x] + sums[y*(columns+1)+x]
				if v > best {
					best, at = v, square{y, x, side, side}
				}
			}
		}
		for c := range channels {
			for y := at.row; y < at.row+side; y++ {
				for x := at.column; x < at.column+side; x++ {
					i := b*per + (c*rows+y)*columns + x
					r.low[i], r.high[i] = low, high
				}
			}
		}
	})
	return nil
}

// against is a network with what an adversary climbs behind its logits.
type against struct {
	model             *onnx.Model
	target, objective string
}

// againstLogits appends the log-odds against a target t: of classes that exclude
// each other Σ_j t_j·(log Σ_{k≠j} exp z_k - z_j), of labels Σ_k (1 - 2t_k)·z_k.
func (l Loss) againstLogits(m *onnx.Model, logits string, width int) (*against, error) {
	b := onnx.Extend(m.Clone())
	a := &against{target: "adversary/target", objective: "adversary/log-odds"}
	open := onnx.Dim{Value: -1, Param: "batch"}
	for _, in := range m.Graph.Inputs { // as the network's own input has it
		if len(in.Shape) > 0 && in.Shape[0].Param != "" {
			open = in.Shape[0]
		}
	}
	b.Input(a.target, onnx.Float, open, onnx.Dim{Value: int64(width)})
	var terms string
	switch {
	case l == BinaryCrossEntropy:
		one := b.Weight("adversary/one", []int64{}, []float32{1})
		twice := b.Op("Add", []string{a.target, a.target})
		terms = b.Op("Mul", []string{logits, b.Op("Sub", []string{one, twice})})
	case width == 2: // of two classes, the other's logit
		flip := b.Weight("adversary/flip", []int64{2, 2}, []float32{-1, 1, 1, -1}) // z·flip = (z₁ - z₀, z₀ - z₁)
		terms = b.Op("Mul", []string{b.Op("MatMul", []string{logits, flip}), a.target})
	default:
		own := make([]float32, width*width)
		for j := range width {
			own[j*width+j] = -1e30
		}
		others := b.Op("Add", []string{b.Op("Unsqueeze", []string{logits, b.Ints("adversary/middle", 1)}), b.Weight("adversary/own", []int64{1, int64(width), int64(width)}, own)})
		axes, attributes := []string{others}, []onnx.Attribute{onnx.IntAttribute("keepdims", 0)}
		if max(m.Opsets[""], m.Opsets["ai.onnx"]) >= 18 {
			axes = append(axes, b.Ints("adversary/classes", 2))
		} else {
			attributes = append(attributes, onnx.IntsAttribute("axes", 2))
		}
		rest := b.Op("ReduceLogSumExp", axes, attributes...)
		terms = b.Op("Mul", []string{b.Op("Sub", []string{rest, logits}), a.target})
	}
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{terms, b.Ints("adversary/terms", 1)}, Outputs: []string{a.objective},
		Attributes: []onnx.Attribute{onnx.IntAttribute("keepdims", 0)}}, 1)
	b.Output(a.objective, onnx.Float, open)
	var err error
	if a.model, err = b.Build(); err != nil {
		return nil, fmt.Errorf("train: appending log-odds to %s: %w", logits, err)
	}
	return a, nil
}

// logOdds is the value of the log-odds of one example.
func (l Loss) logOdds(z, target []float32) float64 {
	v := 0.0
	for j, t := range target {
		if l == BinaryCrossEntropy {
			v += (1 - 2*float64(t)) * float64(z[j])
			continue
		}
		top := math.Inf(-1)
		for k, other := range z {
			if k != j {
				top = max(top, float64(other))
			}
		}
		sum := 0.0
		for k, other := range z {
			if k != j {
				sum += math.Exp(float64(other) - top)
			}
		}
		v += float64(t) * (top + math.Log(sum) - float64(z[j]))
	}
	return v
}

// answers writes the probabilities that logits mean, row by row.
func (l Loss) answers(logits, out []float32, width int) {
	for from := 0; from < len(logits); from += width {
		z, p := logits[from:from+width], out[from:from+width]
		if l == BinaryCrossEntropy {
			for k, v := range z {
				p[k] = float32(sigmoid(float64(v)))
			}
			continue
		}
		row := make([]float64, width)
		for k, v := range z {
			row[k] = float64(v)
		}
		for k, v := range Softmax(row, 1) {
			p[k] = float32(v)
		}
	}
}
