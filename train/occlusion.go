package train

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/vigie/vigie/engine"
)

// Occlusion hides squares of training images, so that the model stays right when
// it sees an image through the masks that a certificate against patches lays
// over it: one or two at a time (double masking, Xiang et al. 2022, PatchCleanser,
// section 3). Zero fields take the values in brackets.
type Occlusion struct {
	// Sizes are sides of squares in pixels, at any place.
	Sizes []int `json:"sizes,omitempty"`
	// Patch and Grid name the masks of MaskSet: those that cover every patch of
	// Patch pixels a side with Grid masks along each axis.
	Patch int `json:"patch,omitempty"`
	Grid  int `json:"grid,omitempty"` // [6]
	// Masks is how many an image gets: 1 to Masks, as often each [2].
	Masks int     `json:"masks"`
	Share float64 `json:"share"` // of the images that get any [1]
	// WorstOf, if more than 1, draws so many masks and takes the one that raises
	// the loss most, one mask after the other (greedy cutout, Saha et al. 2023).
	WorstOf int `json:"worst_of,omitempty"`
	// Fill is what is seen in a mask's place: Grey, Black or Mean, as the certificate
	// will fill them. [mean]
	Fill string `json:"fill"`
}

// The fillings of a mask.
const (
	Grey  = "grey"  // 0.5
	Black = "black" // 0
	Mean  = "mean"  // in each channel the mean of what stays to be seen
)

func (o *Occlusion) orDefault() *Occlusion {
	if o == nil {
		return nil
	}
	out := *o
	if out.Patch > 0 && out.Grid == 0 {
		out.Grid = 6
	}
	if out.Masks == 0 {
		out.Masks = 2
	}
	if len(out.Sizes) == 0 {
		out.Sizes = nil // as a checkpoint gives it back
	}
	out.Share = orElse(out.Share, 1)
	if out.Fill == "" {
		out.Fill = Mean
	}
	return &out
}

func (o *Occlusion) check(rows, columns int) error {
	side := min(rows, columns)
	for _, s := range o.Sizes {
		if s < 1 || s >= side {
			return fmt.Errorf("train: hardening: a mask of side %d on images of %d×%d: %w: want 1 to %d pixels", s, rows, columns, ErrHardening, side-1)
		}
	}
	switch {
	case len(o.Sizes) == 0 && o.Patch == 0:
		return fmt.Errorf("train: hardening: masks of no size: %w: give their sizes, or the patch that they are to cover", ErrHardening)
	case o.Masks < 1 || o.Masks > 8:
		return fmt.Errorf("train: hardening: %d masks on an image: %w: want 1 to 8", o.Masks, ErrHardening)
	case !(o.Share > 0 && o.Share <= 1):
		return fmt.Errorf("train: hardening: masks on a share of %v of the images: %w: want more than 0, at most 1", o.Share, ErrHardening)
	case o.WorstOf < 0 || o.WorstOf > 1<<10:
		return fmt.Errorf("train: hardening: the worst of %d masks: %w: want 0 to %d", o.WorstOf, ErrHardening, 1<<10)
	case o.Fill != Grey && o.Fill != Black && o.Fill != Mean:
		return fmt.Errorf("train: hardening: masks filled with %q: %w: want %s, %s or %s", o.Fill, ErrHardening, Grey, Black, Mean)
	case o.Patch == 0:
		return nil
	}
	for _, n := range []int{rows, columns} {
		if _, _, err := MaskSet(n, o.Patch, o.Grid); err != nil {
			return err
		}
	}
	return nil
}

// MaskSet gives the masks along one axis of n pixels, at most count of one size,
// such that each patch of the given side lies within one of them wherever it is
// (PatchCleanser, section 3.3): at are the first pixels of each.
func MaskSet(n, patch, count int) (size int, at []int, err error) {
	if n < 2 || patch < 1 || patch >= n || count < 1 {
		return 0, nil, fmt.Errorf("train: hardening: %d masks against a patch of %d on %d pixels: %w: want a patch smaller than the image, and a mask or more", count, patch, n, ErrHardening)
	}
	stride := (n - patch + count) / count // ⌈(n - patch + 1)/count⌉
	size = stride + patch - 1
	for from := 0; ; from += stride {
		if from+size >= n {
			return size, append(at, n-size), nil
		}
		at = append(at, from)
	}
}

// square is a mask's place.
type square struct{ row, column, rows, columns int }

// draw draws a mask: of the sizes and the set alike, where there are both.
func (o *Occlusion) draw(rng *rand.Rand, rows, columns int) square {
	if o.Patch > 0 && (len(o.Sizes) == 0 || rng.IntN(2) == 0) {
		height, down, _ := MaskSet(rows, o.Patch, o.Grid) // was checked
		width, across, _ := MaskSet(columns, o.Patch, o.Grid)
		return square{down[rng.IntN(len(down))], across[rng.IntN(len(across))], height, width}
	}
	side := o.Sizes[rng.IntN(len(o.Sizes))]
	return square{rng.IntN(rows - side + 1), rng.IntN(columns - side + 1), side, side}
}

// hide writes an image [channels, rows, columns] with masks over it to dst, which
// may be the image.
func (m *masker) hide(dst, image []float32, masks ...square) {
	plane := m.rows * m.columns
	hidden := make([]bool, plane)
	for _, s := range masks {
		for y := s.row; y < s.row+s.rows; y++ {
			for x := s.column; x < s.column+s.columns; x++ {
				hidden[y*m.columns+x] = true
			}
		}
	}
	for c := range m.channels {
		from, to := image[c*plane:(c+1)*plane], dst[c*plane:(c+1)*plane]
		fill := float32(0)
		switch m.spec.Fill {
		case Grey:
			fill = 0.5
		case Mean:
			sum, n := 0.0, 0
			for i, v := range from {
				if !hidden[i] {
					sum += float64(v)
					n++
				}
			}
			if n > 0 {
				fill = float32(sum / float64(n))
			}
		}
		for i, v := range from {
			if hidden[i] {
				v = fill
			}
			to[i] = v
		}
	}
}

// masker lays masks over batches.
type masker struct {
	spec                    Occlusion
	channels, rows, columns int
	classes                 int
	all                     bool     // every image gets Masks of them
	worst                   *forward // nil where masks are drawn only
}

// masks draws the masks of each image, lays them over it and returns them. images
// are [n, channels, rows, columns], targets [n, classes], chance(i) the stream of
// image i.
func (m *masker) masks(ctx context.Context, images, targets []float32, variables [][]float32, chance func(i int) *rand.Rand) ([][]square, error) {
	per := m.channels * m.rows * m.columns
	n := len(images) / per
	streams, counts := make([]*rand.Rand, n), make([]int, n)
	for i := range n {
		streams[i] = chance(i)
		if counts[i] = m.spec.Masks; m.all {
			continue
		}
		if counts[i] = 0; streams[i].Float64() < m.spec.Share {
			counts[i] = 1 + streams[i].IntN(m.spec.Masks)
		}
	}
	laid := make([][]square, n)
	for round := range m.spec.Masks {
		var of []int // images that get one more
		for i, count := range counts {
			if round < count {
				of = append(of, i)
			}
		}
		chosen := make([]square, len(of))
		for j, i := range of {
			chosen[j] = m.spec.draw(streams[i], m.rows, m.columns)
		}
		if m.worst != nil && len(of) > 0 {
			if err := m.choose(ctx, images, targets, variables, of, streams, laid, chosen); err != nil {
				return nil, err
			}
		}
		for j, i := range of {
			laid[i] = append(laid[i], chosen[j])
		}
	}
	for i, masks := range laid {
		image := images[i*per : (i+1)*per]
		m.hide(image, image, masks...)
	}
	return laid, nil
}

// choose replaces each image's next mask by the worst of WorstOf, of which the one
// that was drawn is the first; laid are those that it has.
func (m *masker) choose(ctx context.Context, images, targets []float32, variables [][]float32, of []int, streams []*rand.Rand, laid [][]square, chosen []square) error {
	per := m.channels * m.rows * m.columns
	tried := make([]float32, len(of)*per)
	highest := make([]float64, len(of))
	for k := range m.spec.WorstOf {
		candidates := slices.Clone(chosen)
		for j, i := range of {
			if k > 0 {
				candidates[j] = m.spec.draw(streams[i], m.rows, m.columns)
			}
			m.hide(tried[j*per:(j+1)*per], images[i*per:(i+1)*per], append(slices.Clone(laid[i]), candidates[j])...)
		}
		logits, err := m.worst.run(ctx, tried, variables)
		if err != nil {
			return err
		}
		width := len(logits) / len(of)
		for j, i := range of {
			v := m.worst.loss.logOdds(logits[j*width:(j+1)*width], targets[i*width:(i+1)*width])
			if k == 0 || v > highest[j] {
				highest[j], chosen[j] = v, candidates[j]
			}
		}
	}
	return nil
}

// forward answers for any number of images, in parts of a fixed size side by
// side in a session of one thread: how many processors there are does not show.
type forward struct {
	session       engine.Session
	network       *Network
	loss          Loss
	shape         []int64 // of an example
	parts         int
	input, logits string
}

func newForward(n *Network, loss Loss, shape []int64, parts int) (*forward, error) {
	session, err := engine.Open(n.variablesAsInputs(), engine.Options{Outputs: []string{n.Logits}, Threads: 1})
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	return &forward{session, n, loss, shape, parts, n.Input, n.Logits}, nil
}

func (f *forward) run(ctx context.Context, images []float32, variables [][]float32) ([]float32, error) {
	per := int(product(f.shape))
	n := len(images) / per
	size := (n + f.parts - 1) / f.parts
	outs, errs := make([][]float32, f.parts), make([]error, f.parts)
	var running sync.WaitGroup
	for k := range f.parts {
		from, to := min(n, k*size), min(n, (k+1)*size)
		if from == to {
			continue
		}
		running.Go(func() {
			feed := map[string]engine.Tensor{f.input: engine.Float32(append([]int64{int64(to - from)}, f.shape...), images[from*per:to*per])}
			for i, name := range f.network.variables() {
				feed[name] = engine.Float32(f.network.Model.Graph.Initializer(name).Dims, variables[i])
			}
			out, err := f.session.Run(ctx, feed, f.logits)
			if err != nil {
				errs[k] = err
				return
			}
			outs[k], errs[k] = engine.Values[float32](out[f.logits])
		})
	}
	running.Wait()
	var all []float32
	for k := range f.parts {
		if errs[k] != nil {
			return nil, errs[k]
		}
		all = append(all, outs[k]...)
	}
	return all, nil
}

func (f *forward) close() {
	if f != nil {
		f.session.Close()
	}
}
