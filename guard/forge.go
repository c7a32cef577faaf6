package guard

import (
	"context"
	"math/rand/v2"
)

// forger makes the attacked images that two of the guards are fitted with. They
// are what an attacker without knowledge of the guards would do; what an
// attacker does who knows them, nothing here has seen.
type forger struct {
	network  *Network
	geometry geometry
	slope    *slope // nil: noise stands in for the gradient
	seed     uint64
}

// sizes are the largest changes of a pixel that the perturbations have, in 1/255
// of the brightness range. Each image gets two of them.
var sizes = []float32{1.5, 8, 2, 4}

// ascent is how many steps an attack takes.
const ascent = 6

// forge adds to each example the texture of perturbed copies and the peaks of a
// patched one.
func (f *forger) forge(ctx context.Context, examples []example, tick func(int)) error {
	batch := 16
	if f.slope != nil {
		batch = f.slope.batch
	}
	per := f.geometry.elements()
	for from := 0; from < len(examples); from += batch {
		part := examples[from:min(from+batch, len(examples))]
		for round := range 2 {
			images := make([]float32, batch*per)
			size := make([]float32, batch)
			for i := range batch {
				copy(images[i*per:], part[i%len(part)].values)
				size[i] = sizes[2*round+(from+i)%2] / 255
			}
			if err := f.perturb(ctx, images, size, part, uint64(from)<<8|uint64(round)); err != nil {
				return err
			}
			for i := range part {
				part[i].perturbed = append(part[i].perturbed, f.geometry.plane(images[i*per:(i+1)*per]).measure().texture)
			}
		}
		images := make([]float32, batch*per)
		for i := range batch {
			copy(images[i*per:], part[i%len(part)].values)
		}
		if err := f.paste(ctx, images, part, uint64(from)<<8|2); err != nil {
			return err
		}
		for i := range part {
			part[i].patched = append(part[i].patched, f.geometry.plane(images[i*per:(i+1)*per]).measure().peaks)
		}
		tick(len(part))
	}
	return nil
}

// direction is the sign with which each number of the input makes the answer
// change; without a gradient, random signs.
func (f *forger) direction(ctx context.Context, images, selector []float32, part []example, outputs []float32, rng *rand.Rand) (gradient, next []float32, err error) {
	if f.slope == nil {
		gradient = make([]float32, len(images))
		for i := range gradient {
			gradient[i] = float32(2*rng.IntN(2) - 1)
		}
		return gradient, nil, nil
	}
	labels := f.slope.labels
	row := make([]float64, labels)
	for i := range f.slope.batch {
		e := part[i%len(part)]
		copy(row, e.output)
		if outputs != nil {
			for k := range row {
				row[k] = float64(outputs[i*labels+k])
			}
		}
		towards(selector[i*labels:(i+1)*labels], row, e.class)
	}
	next, gradient, err = f.slope.run(ctx, images, selector)
	return gradient, next, err
}

func (f *forger) selector() []float32 {
	if f.slope == nil {
		return nil
	}
	return make([]float32, f.slope.batch*f.slope.labels)
}

// perturb is projected gradient ascent with a random start (Madry et al. 2018),
// within size of each pixel's brightness.
func (f *forger) perturb(ctx context.Context, images, size []float32, part []example, stream uint64) error {
	rng := rand.New(rand.NewPCG(f.seed, 0xf0e1<<32|stream))
	per, g := f.geometry.elements(), f.geometry
	original := append([]float32{}, images...)
	clip := func(i int) {
		channel := g.channelOf(i % per)
		black, scale := g.black[channel], g.scale[channel]
		b, o, s := (images[i]-black)/scale, (original[i]-black)/scale, size[i/per]
		b = min(max(b, o-s), o+s)
		images[i] = black + scale*min(max(b, 0), 1)
	}
	for i := range images {
		channel := g.channelOf(i % per)
		images[i] += g.scale[channel] * size[i/per] * (2*rng.Float32() - 1)
		clip(i)
	}
	selector := f.selector()
	var outputs []float32
	for range ascent {
		gradient, next, err := f.direction(ctx, images, selector, part, outputs, rng)
		if err != nil {
			return err
		}
		outputs = next
		for i, v := range gradient {
			scale := g.scale[g.channelOf(i%per)]
			step := size[i/per] / 3 * scale
			switch {
			case v*scale > 0:
				images[i] += step
			case v*scale < 0:
				images[i] -= step
			}
			clip(i)
		}
	}
	return nil
}

// paste puts a patch of a few pixels at a random place of each image, as the
// same ascent finds it without a limit on the change.
func (f *forger) paste(ctx context.Context, images []float32, part []example, stream uint64) error {
	rng := rand.New(rand.NewPCG(f.seed, 0xf0e1<<32|stream))
	per, g := f.geometry.elements(), f.geometry
	count := len(images) / per
	side := plane{g.rows, g.columns, nil}.patchSide()
	places := make([]window, count)
	for i := range places {
		places[i] = window{rng.IntN(g.rows - side + 1), rng.IntN(g.columns - side + 1), side}
	}
	within := func(visit func(i int)) {
		for k, w := range places {
			for r := w.top; r < w.top+w.side; r++ {
				for c := w.left; c < w.left+w.side; c++ {
					for channel := range g.channels {
						visit(k*per + g.index(channel, r*g.columns+c))
					}
				}
			}
		}
	}
	within(func(i int) {
		channel := g.channelOf(i % per)
		images[i] = g.black[channel] + g.scale[channel]*rng.Float32()
	})
	selector := f.selector()
	var outputs []float32
	for range ascent {
		gradient, next, err := f.direction(ctx, images, selector, part, outputs, rng)
		if err != nil {
			return err
		}
		outputs = next
		within(func(i int) {
			channel := g.channelOf(i % per)
			black, scale := g.black[channel], g.scale[channel]
			b := (images[i] - black) / scale
			if v := gradient[i] * scale; v > 0 {
				b += 0.3
			} else if v < 0 {
				b -= 0.3
			}
			images[i] = black + scale*min(max(b, 0), 1)
		})
	}
	return nil
}

// channelOf is the channel of an element of an example.
func (g geometry) channelOf(i int) int {
	if g.last {
		return i % g.channels
	}
	return i / (g.rows * g.columns)
}
