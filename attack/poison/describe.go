package poison

import (
	"cmp"
	"context"
	"math"
	"math/rand/v2"
	"slices"
)

// described are fixed descriptions of images, of which nothing is learnt from
// labels: so a label cannot be learnt by heart, as a network learns it.
type described struct {
	n       int
	parts   []part
	product *multiplier
}

// part is one description of every image and of its mirror image.
type part struct {
	width    int
	plain    []float32 // [n, width]
	mirrored []float32 // [n, width]
	laplace  bool      // the kernel falls with the distance, not with its square
	sharp    float64   // how fast, in units of the median squared distance
	median   float64
}

// described side: what is larger is averaged down to it.
const side = 32

// describe computes three descriptions: oriented gradients over overlapping cells
// (Dalal and Triggs 2005), local deviation at two scales, and brightness.
func describe(ctx context.Context, c *Cases, progress func(float64)) (*described, error) {
	d := &described{n: c.Len(), parts: []part{{sharp: 3}, {sharp: 2, laplace: true}, {sharp: 4}}}
	for i := range d.n {
		if i%256 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			progress(float64(i) / float64(d.n))
		}
		small := c.grey(i).fit(side)
		for _, way := range []int{0, 4} {
			p := small.turned(way)
			for k, values := range [][]float32{gradients(p), roughness(p), p.blur(1).pool(nil, 2)} {
				d.parts[k].width = len(values)
				if way == 0 {
					d.parts[k].plain = append(d.parts[k].plain, values...)
				} else {
					d.parts[k].mirrored = append(d.parts[k].mirrored, values...)
				}
			}
		}
	}
	var err error
	if d.product, err = newMultiplier(); err != nil {
		return nil, err
	}
	for k := range d.parts {
		d.parts[k].scale()
	}
	return d, nil
}

func (d *described) close() error { return d.product.close() }

// scale finds the median squared distance between images, over pairs that are
// spread over the data.
func (p *part) scale() {
	n := len(p.plain) / p.width
	rng := rand.New(rand.NewPCG(uint64(n), 0x5ca1e))
	var distances []float64
	for range 2000 {
		i, j := rng.IntN(n), rng.IntN(n)
		if i == j {
			continue
		}
		sum := 0.0
		for k, v := range p.plain[i*p.width : (i+1)*p.width] {
			e := float64(v - p.plain[j*p.width+k])
			sum += e * e
		}
		distances = append(distances, sum)
	}
	p.median = max(median(distances), 1e-12)
}

// gradients are root histograms of oriented gradients: 12 directions over cells
// of 8×8 pixels every 4, divided by their root mean square.
func gradients(p plane) []float32 {
	const directions, cell, stride = 12, 8, 4
	area := p.rows * p.columns
	down, across := max(1, (p.rows-cell)/stride+1), max(1, (p.columns-cell)/stride+1)
	out := make([]float32, 0, directions*down*across)
	gx, gy := make([]float32, area), make([]float32, area)
	for r := range p.rows {
		for c := range p.columns {
			gx[r*p.columns+c] = (p.at(r, c+1) - p.at(r, c-1)) / 2
			gy[r*p.columns+c] = (p.at(r+1, c) - p.at(r-1, c)) / 2
		}
	}
	total := 0.0
	for d := range directions {
		sin, cos := math.Sincos(2 * math.Pi * float64(d) / directions)
		dy, dx := float32(sin), float32(cos)
		for r := range down {
			for c := range across {
				sum := float32(0)
				for y := r * stride; y < min(r*stride+cell, p.rows); y++ {
					for x := c * stride; x < min(c*stride+cell, p.columns); x++ {
						sum += max(0, dx*gx[y*p.columns+x]+dy*gy[y*p.columns+x])
					}
				}
				out = append(out, sum)
				total += float64(sum) * float64(sum)
			}
		}
	}
	root := float32(math.Sqrt(total/float64(len(out)))) + 1e-6
	for i, v := range out {
		out[i] = float32(math.Sqrt(float64(v / root)))
	}
	return out
}

// roughness is the local deviation of the fine and of the coarser detail, over
// squares of 4×4 pixels.
func roughness(p plane) []float32 {
	fine := p.minus(p.blur(1))
	for i, v := range fine.values {
		fine.values[i] = v * v
	}
	fine = fine.blur(1)
	squares := plane{p.rows, p.columns, make([]float32, len(p.values))}
	for i, v := range p.values {
		squares.values[i] = v * v
	}
	coarse, mean := squares.blur(2), p.blur(2)
	for i := range fine.values {
		fine.values[i] = float32(math.Sqrt(float64(fine.values[i])))
		coarse.values[i] = float32(math.Sqrt(math.Max(0, float64(coarse.values[i]-mean.values[i]*mean.values[i]))))
	}
	return coarse.pool(fine.pool(nil, 4), 4)
}

// kernel compares images with others: [len(a), len(b)] values in 0..1, the mean
// over the descriptions, and over the other image and its mirror image if asked.
func (d *described) kernel(ctx context.Context, a, b []int, mirror bool, sharper float64) ([]float32, error) {
	out := make([]float32, len(a)*len(b))
	for _, p := range d.parts {
		rows, norms := p.take(p.plain, a)
		sides := [][]float32{p.plain}
		if mirror {
			sides = append(sides, p.mirrored)
		}
		weight := 1 / float32(len(d.parts)*len(sides))
		for _, values := range sides {
			columns, others := p.take(values, b)
			dots, err := d.product.transposed(ctx, rows, columns, p.width)
			if err != nil {
				return nil, err
			}
			for i := range a {
				row := dots[i*len(b) : (i+1)*len(b)]
				for j, dot := range row {
					square := max(0, norms[i]+others[j]-2*float64(dot)) / p.median
					if p.laplace {
						square = math.Sqrt(square)
					}
					out[i*len(b)+j] += weight * float32(math.Exp(-p.sharp*sharper*square))
				}
			}
		}
	}
	return out, nil
}

// take gathers rows and their squared norms.
func (p *part) take(values []float32, at []int) (rows []float32, norms []float64) {
	rows, norms = make([]float32, 0, len(at)*p.width), make([]float64, len(at))
	for k, i := range at {
		row := values[i*p.width : (i+1)*p.width]
		rows = append(rows, row...)
		for _, v := range row {
			norms[k] += float64(v) * float64(v)
		}
	}
	return rows, norms
}

// nearest lists for some images the k others that the kernel finds nearest and
// that are not of the same patient.
func (d *described) nearest(ctx context.Context, of []int, k int, group []int) ([][]int, error) {
	every := make([]int, d.n)
	for i := range every {
		every[i] = i
	}
	out := make([][]int, 0, len(of))
	for part := range slices.Chunk(of, 256) {
		values, err := d.kernel(ctx, part, every, true, 1)
		if err != nil {
			return nil, err
		}
		for r, i := range part {
			row := values[r*d.n : (r+1)*d.n]
			order := slices.Clone(every)
			slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(row[b], row[a]) })
			var best []int
			for _, j := range order {
				if group[j] != group[i] && len(best) < k {
					best = append(best, j)
				}
			}
			out = append(out, best)
		}
	}
	return out, nil
}
