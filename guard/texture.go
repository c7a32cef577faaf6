package guard

import (
	"math"
	"slices"
)

// plane is an image in brightness 0..1, row-major, as the model sees it.
type plane struct {
	rows, columns int
	values        []float32
}

// at reads a pixel, mirrored at the edges without repeating them.
func mirror(i, n int) int {
	if n == 1 {
		return 0
	}
	for i < 0 || i >= n {
		if i < 0 {
			i = -i
		}
		if i >= n {
			i = 2*(n-1) - i
		}
	}
	return i
}

// kernels are the 3×3 high-pass filters of camera forensics, of unit norm: what
// is left of an image where a neighbourhood predicts its centre (Fridrich and
// Kodovský 2012, section II-B). Anatomy is smooth and nearly vanishes in them;
// noise that was added to pixels one by one does not.
var kernels = [][9]float32{
	unit(-1, 2, -1, 2, -4, 2, -1, 2, -1),
	unit(0, 0, 0, -1, 2, -1, 0, 0, 0),
	unit(0, -1, 0, 0, 2, 0, 0, -1, 0),
	unit(-1, 0, 0, 0, 2, 0, 0, 0, -1),
	unit(0, 0, -1, 0, 2, 0, -1, 0, 0),
	unit(0, 0, 0, 0, 1, -1, 0, -1, 1),
	unit(0, -1, 0, -1, 4, -1, 0, -1, 0),
}

func unit(k ...float32) (out [9]float32) {
	norm := 0.0
	for _, v := range k {
		norm += float64(v) * float64(v)
	}
	for i, v := range k {
		out[i] = v / float32(math.Sqrt(norm))
	}
	return out
}

// filter computes a residual of the image in units of 1/255 of the brightness
// range, of every stride-th row.
func (p plane) filter(k [9]float32, out []float32, stride int) {
	for i := range k {
		k[i] *= 255
	}
	columns := p.columns
	for r := 0; r < p.rows; r += stride {
		rows := [3][]float32{
			p.values[mirror(r-1, p.rows)*columns:][:columns], p.values[r*columns:][:columns], p.values[mirror(r+1, p.rows)*columns:][:columns],
		}
		to := out[r*columns:][:columns]
		clear(to)
		for i, w := range k { // most weights of most kernels are zero
			if w == 0 {
				continue
			}
			from := rows[i/3]
			switch i % 3 {
			case 0:
				to[0] += w * from[1]
				for c, v := range from[:columns-1] {
					to[c+1] += w * v
				}
			case 1:
				for c, v := range from {
					to[c] += w * v
				}
			case 2:
				for c, v := range from[1:] {
					to[c] += w * v
				}
				to[columns-1] += w * from[columns-2]
			}
		}
	}
}

// spread is a histogram of sizes, fine enough for quantiles of 8-bit images.
type spread struct {
	bins [1024]int32
	n    int32
}

const binsPerUnit = 4

func (s *spread) add(v float32) {
	if v < 0 {
		v = -v
	}
	s.bins[min(int(v*binsPerUnit), len(s.bins)-1)]++
	s.n++
}

// quantiles appends log(1+q) of each share asked for, in ascending order.
func (s *spread) quantiles(out []float64, shares ...float64) []float64 {
	seen, bin := int32(0), 0
	for _, share := range shares {
		want := share * float64(s.n)
		for bin < len(s.bins)-1 && float64(seen+s.bins[bin]) < want {
			seen += s.bins[bin]
			bin++
		}
		within := 0.5
		if s.bins[bin] > 0 {
			within = max(0, want-float64(seen)) / float64(s.bins[bin])
		}
		out = append(out, math.Log1p((float64(bin)+within)/binsPerUnit))
	}
	return out
}

// enoughPixels is from how many pixels the spread of a residual is told: of
// larger images, all residuals but the first are of some of the rows.
const enoughPixels = 4096

// minSide is the shortest side of an image whose texture is measured.
const minSide = 8

// pixels is what the pixels of an image say of its noise.
type pixels struct {
	texture []float64 // quantiles of residuals, energies of frequency bands, local noise, correlation of noise
	peaks   []float64 // how far single places stick out of the rest
	high    []float32 // the first residual, in 1/255
}

// measure computes them in a few passes over the image.
func (p plane) measure() pixels {
	var m pixels
	n := len(p.values)
	m.texture = make([]float64, 0, 96)
	m.high = make([]float32, n)
	residual, stride := m.high, 1
	for i, k := range kernels {
		if i == 1 {
			residual, stride = make([]float32, n), max(1, n/enoughPixels)
		}
		p.filter(k, residual, stride)
		var s spread
		sum, most := 0.0, float32(0)
		for r := 0; r < p.rows; r += stride { // a row's sum fits a float32
			part := float32(0)
			for _, v := range residual[r*p.columns : (r+1)*p.columns] {
				v = math.Float32frombits(math.Float32bits(v) &^ (1 << 31))
				s.bins[min(uint32(v*binsPerUnit), uint32(len(s.bins)-1))]++
				part += v
				if v > most {
					most = v
				}
			}
			sum += float64(part)
		}
		n := (p.rows + stride - 1) / stride * p.columns
		s.n = int32(n)
		before := len(m.texture)
		m.texture = s.quantiles(m.texture, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97)
		m.texture = append(m.texture, math.Log1p(sum/float64(n)))
		peak := math.Log1p(float64(most))
		m.peaks = append(m.peaks, peak, peak-m.texture[before+5], peak-m.texture[before+2])
	}
	m.texture = p.bands(m.texture)
	local := m.localNoise(p)
	m.texture = append(m.texture, local...)
	m.texture = m.correlations(p, m.texture)
	m.peaks = append(m.peaks, p.spots()...)
	m.peaks = append(m.peaks, local[len(local)-1], local[len(local)-1]-local[len(local)/2])
	return m
}

// bands appends mean and median of the energies of the octaves of an undecimated
// look at half, quarter and eighth resolution: Haar's wavelets, three
// orientations each.
func (p plane) bands(out []float64) []float64 {
	low := p
	for range 3 {
		rows, columns := low.rows/2, low.columns/2
		if rows < 2 || columns < 2 {
			// Too small for this octave: a place holder keeps the length.
			for range 6 {
				out = append(out, 0)
			}
			continue
		}
		next := plane{rows, columns, make([]float32, rows*columns)}
		var sizes [3]spread
		var sums [3]float64
		for r := range rows {
			top, bottom := low.values[2*r*low.columns:], low.values[(2*r+1)*low.columns:]
			for c := range columns {
				a, b, d, e := top[2*c], top[2*c+1], bottom[2*c], bottom[2*c+1]
				next.values[r*columns+c] = (a + b + d + e) / 4
				for k, v := range [3]float32{a - b + d - e, a + b - d - e, a - b - d + e} {
					v *= 255.0 / 2
					sizes[k].add(v)
					sums[k] += math.Abs(float64(v))
				}
			}
		}
		for k := range sizes {
			out = append(out, math.Log1p(sums[k]/float64(rows*columns)))
			out = sizes[k].quantiles(out, 0.5)
		}
		low = next
	}
	return out
}

// localNoise is the distribution of the residual's deviation over blocks: a
// detector's noise is everywhere, and nowhere zero.
func (m *pixels) localNoise(p plane) []float64 {
	side := max(4, min(p.rows, p.columns)/8)
	var deviations []float64
	for r := 0; r+side <= p.rows; r += side {
		for c := 0; c+side <= p.columns; c += side {
			sum := 0.0
			for y := r; y < r+side; y++ {
				for _, v := range m.high[y*p.columns+c:][:side] {
					sum += float64(v) * float64(v)
				}
			}
			deviations = append(deviations, math.Log1p(math.Sqrt(sum/float64(side*side))))
		}
	}
	slices.Sort(deviations)
	out := make([]float64, 0, 7)
	for _, share := range []float64{0, 0.05, 0.1, 0.25, 0.5, 0.75, 1} {
		out = append(out, deviations[int(share*float64(len(deviations)-1))])
	}
	return out
}

// correlations appends how alike the residual is at small distances.
func (m *pixels) correlations(p plane, out []float64) []float64 {
	total := 1e-6
	for _, v := range m.high {
		total += float64(v) * float64(v)
	}
	total /= float64(len(m.high))
	for _, step := range [][2]int{{0, 1}, {1, 0}, {0, 2}, {2, 0}, {1, 1}} {
		sum, n := 0.0, 0
		for r := step[0]; r < p.rows; r++ {
			here, there := m.high[r*p.columns+step[1]:(r+1)*p.columns], m.high[(r-step[0])*p.columns:]
			part := float32(0)
			for c, v := range here {
				part += v * there[c]
			}
			sum += float64(part)
			n += len(here)
		}
		out = append(out, sum/float64(n)/total)
	}
	return out
}

// spots compares every 3×3 place with the ring of 7×7 around it, and appends how
// far the furthest sticks out, and how uneven a place is inside at most.
func (p plane) spots() []float64 {
	rows, columns := p.rows, p.columns
	integral := make([]float64, (rows+1)*(columns+1))
	squares := make([]float64, (rows+1)*(columns+1))
	for r := range rows {
		sum, square := 0.0, 0.0
		for c := range columns {
			v := float64(p.values[r*columns+c])
			sum += v
			square += v * v
			integral[(r+1)*(columns+1)+c+1] = integral[r*(columns+1)+c+1] + sum
			squares[(r+1)*(columns+1)+c+1] = squares[r*(columns+1)+c+1] + square
		}
	}
	box := func(table []float64, r0, c0, r1, c1 int) float64 {
		return table[r1*(columns+1)+c1] - table[r0*(columns+1)+c1] - table[r1*(columns+1)+c0] + table[r0*(columns+1)+c0]
	}
	out, uneven := 0.0, 0.0
	for r := 0; r+3 <= rows; r++ {
		for c := 0; c+3 <= columns; c++ {
			inside, squared := box(integral, r, c, r+3, c+3), box(squares, r, c, r+3, c+3)
			mean := inside / 9
			uneven = max(uneven, squared/9-mean*mean)
			r0, c0, r1, c1 := max(0, r-2), max(0, c-2), min(rows, r+5), min(columns, c+5)
			ring := (box(integral, r0, c0, r1, c1) - inside) / float64((r1-r0)*(c1-c0)-9)
			out = max(out, math.Abs(mean-ring))
		}
	}
	return []float64{math.Log1p(255 * out), math.Log1p(255 * math.Sqrt(max(0, uneven)))}
}

// How many numbers measure gives.
const (
	textureNumbers = 79 // 7 of each of 7 residuals, 6 of each of 3 octaves, 7 of local noise, 5 correlations
	peakNumbers    = 25 // 3 of each of 7 residuals, 2 of spots, 2 of local noise
)
