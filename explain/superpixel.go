package explain

import (
	"math"
	"slices"
)

// superpixels cuts an image into about want connected regions of similar
// brightness by SLIC (Achanta et al. 2012): k-means in brightness and place,
// started from a regular grid, each centre looking no further than twice the
// grid's step. Channels take the place of the paper's CIELAB, scaled to their
// range over the image, so that the cut does not depend on units. The result
// numbers the regions from 0; it is the same for the same image.
func superpixels(values []float32, l layout, want int) []int {
	if want >= l.places() {
		of := make([]int, l.places())
		for i := range of {
			of[i] = i
		}
		return of
	}
	s := newSLIC(values, l, max(1, want))
	for range slicRounds {
		s.assign()
		s.update()
	}
	s.assign()
	return connect(s.of, l.rows, l.columns, int(s.step*s.step/4))
}

const (
	slicRounds = 10
	// slicCompactness is how many tenths of the image's range of values weigh
	// as much as one grid step of distance: the paper's m = 10 of about 100.
	slicCompactness = 0.1
)

type slic struct {
	layout  layout
	colour  []float64 // [places, channels], 0..1 over the image
	step    float64   // between grid points
	centres []float64 // [centres, 2+channels]: row, column, colours
	of      []int
}

func newSLIC(values []float32, l layout, want int) *slic {
	s := &slic{layout: l, colour: make([]float64, l.elements()), of: make([]int, l.places()),
		step: math.Sqrt(float64(l.places()) / float64(want))}
	low, high := float64(slices.Min(values)), float64(slices.Max(values))
	scale := 1 / math.Max(high-low, 1e-30)
	for p := range l.places() {
		for c := range l.channels {
			s.colour[p*l.channels+c] = (float64(values[l.index(p, c)]) - low) * scale / math.Sqrt(float64(l.channels))
		}
	}
	down := max(1, int(math.Round(float64(l.rows)/s.step)))
	across := max(1, int(math.Round(float64(l.columns)/s.step)))
	for i := range down {
		for j := range across {
			y := (float64(i) + 0.5) * float64(l.rows) / float64(down)
			x := (float64(j) + 0.5) * float64(l.columns) / float64(across)
			s.centres = append(s.centres, y-0.5, x-0.5)
			p := min(int(y), l.rows-1)*l.columns + min(int(x), l.columns-1)
			s.centres = append(s.centres, s.colour[p*l.channels:(p+1)*l.channels]...)
		}
	}
	return s
}

// assign gives every place to the nearest centre within reach. The first round
// reaches every place, as centres lie on the grid; later, a place that no centre
// reaches keeps its own.
func (s *slic) assign() {
	l, width := s.layout, 2+s.layout.channels
	nearest := make([]float64, l.places())
	for p := range nearest {
		nearest[p] = math.Inf(1)
	}
	reach := 2 * s.step
	for k := 0; k*width < len(s.centres); k++ {
		centre := s.centres[k*width : (k+1)*width]
		for y := max(0, int(centre[0]-reach)); y <= min(l.rows-1, int(centre[0]+reach)); y++ {
			for x := max(0, int(centre[1]-reach)); x <= min(l.columns-1, int(centre[1]+reach)); x++ {
				p := y*l.columns + x
				dy, dx := float64(y)-centre[0], float64(x)-centre[1]
				d := (dy*dy + dx*dx) / (s.step * s.step) * slicCompactness * slicCompactness
				for c, v := range s.colour[p*l.channels : (p+1)*l.channels] {
					d += (v - centre[2+c]) * (v - centre[2+c])
				}
				if d < nearest[p] {
					nearest[p], s.of[p] = d, k
				}
			}
		}
	}
}

// update moves every centre to the mean of its places.
func (s *slic) update() {
	l, width := s.layout, 2+s.layout.channels
	sums, count := make([]float64, len(s.centres)), make([]float64, len(s.centres)/width)
	for p, k := range s.of {
		sum := sums[k*width : (k+1)*width]
		sum[0] += float64(p / l.columns)
		sum[1] += float64(p % l.columns)
		for c, v := range s.colour[p*l.channels : (p+1)*l.channels] {
			sum[2+c] += v
		}
		count[k]++
	}
	for k, n := range count {
		if n > 0 {
			for i := range width {
				s.centres[k*width+i] = sums[k*width+i] / n
			}
		}
	}
}

// connect numbers the connected regions (of four neighbours) and lets one of
// fewer than least places join the region before it in reading order that
// touches it.
func connect(of []int, rows, columns, least int) []int {
	out := make([]int, len(of))
	for i := range out {
		out[i] = -1
	}
	next := 0
	var region []int
	for start := range of {
		if out[start] >= 0 {
			continue
		}
		neighbour := -1
		region = append(region[:0], start)
		out[start] = next
		for at := 0; at < len(region); at++ {
			p := region[at]
			y, x := p/columns, p%columns
			for _, q := range [4]int{p - columns, p - 1, p + 1, p + columns} {
				if q == p-columns && y == 0 || q == p+columns && y == rows-1 || q == p-1 && x == 0 || q == p+1 && x == columns-1 {
					continue
				}
				switch {
				case out[q] < 0 && of[q] == of[start]:
					out[q] = next
					region = append(region, q)
				case out[q] >= 0 && out[q] != next:
					neighbour = out[q]
				}
			}
		}
		if len(region) < least && neighbour >= 0 {
			for _, p := range region {
				out[p] = neighbour
			}
			continue
		}
		next++
	}
	return out
}
