package guard

import (
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// What an attacker who knows everything makes of the guards: how far an image is
// from passing the first look, guard by guard, and how that changes with the
// model's input and its inner layers. An attack adds the slopes at those tensors
// to its own and lets the engine carry them back to the pixels; so its gradient
// is that of the very network that is guarded.
//
// Most terms are differentiated as they are, at kinks and maxima by a subgradient
// of what is active. Quantiles are not: they are read off a histogram, whose
// slope is zero nearly everywhere. In their place stands the slope of the mean of
// the order statistics around each (backward pass differentiable approximation;
// Athalye et al. 2018).

// Term is one thing that the first look asks.
type Term struct {
	Guard Name
	Layer int     // of Layers, the number of the layer
	Above float64 // nats of surprise above what passes unasked; at most 0 passes
}

// Strain is how an image stands with the first look. It belongs to one image and
// is not safe for concurrent use.
type Strain struct {
	Terms []Term

	guard  *Guard
	class  int
	layers [][]float64
	plane  plane
	pixels pixels
	far    float64 // from the nearest references
	sparse float64
	more   *second // nil: the second look was not taken
	asked  int     // terms of the first look
}

// Tapped returns the model with one more output for each inner layer that the
// guards look at, [N, channels], and their names. The model is not changed.
func (g *Guard) Tapped() (*onnx.Model, []string, error) {
	m, err := appendTaps(g.network.Model, g.network.Output, g.statistics.Taps)
	if err != nil {
		return nil, nil, fmt.Errorf("guard: showing the inner layers: %w", err)
	}
	names := make([]string, len(g.statistics.Taps))
	for k := range names {
		names[k] = pooledName(k)
	}
	return m, names, nil
}

// Limit is the surprise up to which an image of a leading answer raises no alarm:
// exactly the scores up to it have a p-value above the promise.
func (s *Statistics) Limit(class int) float64 {
	from, to := 0, len(s.total.Scores)
	if last := s.total.Class[to-1]; last > 0 {
		if first, found := slices.BinarySearch(s.total.Class, class); found {
			from = first
			to, _ = slices.BinarySearch(s.total.Class, class+1)
		} else {
			// Scores are sorted within each class only.
			all := slices.Sorted(slices.Values(s.total.Scores))
			return limit(all, s.FalseAlarms)
		}
	}
	return limit(s.total.Scores[from:to], s.FalseAlarms)
}

// limit is the largest score whose p-value, (1 + scores at or above it)/(n + 1),
// is above the promise; infinite if every score's is.
func limit(sorted []float64, falseAlarms float64) float64 {
	if 1/float64(len(sorted)+1) > falseAlarms {
		return math.Inf(1)
	}
	for i := len(sorted) - 1; i >= 0; i-- {
		above := len(sorted) - i
		if float64(1+above)/float64(len(sorted)+1) > falseAlarms {
			return sorted[i]
		}
	}
	return math.Inf(-1)
}

// Unasked is the surprise up to which an image passes without a second look, or
// with one if every image gets it.
func (s *Statistics) Unasked(class int) float64 {
	if limit := s.Limit(class); s.Escalate < -1e8 || limit < s.Escalate {
		return limit
	}
	return s.Escalate
}

// Strain measures an input, [channels, rows, columns] as the model takes it, and
// the inner layers that Tapped shows of it, as an image that is to pass with this
// leading answer. It keeps nothing of the arguments.
func (g *Guard) Strain(input []float32, taps [][]float32, class int) (*Strain, error) {
	if err := g.geometry.check(input); err != nil {
		return nil, fmt.Errorf("guard: measuring an image: %w", err)
	}
	s := g.statistics
	if len(taps) != len(s.Taps) || class < 0 || class >= classes(g.labels) {
		return nil, fmt.Errorf("guard: measuring an image: %d layers of %d, class %d: %w", len(taps), len(s.Taps), class, ErrInput)
	}
	x := &Strain{guard: g, class: class}
	for k, t := range taps {
		if len(t) != s.Taps[k].Channels {
			return nil, fmt.Errorf("guard: measuring an image: layer %d of %d numbers: %w: want %d", k, len(t), ErrInput, s.Taps[k].Channels)
		}
		x.layers = append(x.layers, fold(t))
	}
	x.plane = g.geometry.plane(input)
	x.pixels = x.plane.measure()
	x.far, x.sparse = s.models.References.look(x.layers[len(x.layers)-1])
	x.score()
	return x, nil
}

// As is the same image as one that is to pass with another leading answer.
func (x *Strain) As(class int) *Strain {
	if class == x.class {
		return x
	}
	other := *x
	other.class, other.more = class, nil
	other.score()
	return &other
}

func (x *Strain) score() {
	s, m := x.guard.statistics, &x.guard.statistics.models
	pass := s.Unasked(x.class)
	x.Terms = nil
	term := func(guard Name, layer int, score float64) {
		if guard == Layers {
			score = m.LayerTails[layer].surprise(score)
		}
		x.Terms = append(x.Terms, Term{guard, layer, s.Tails[kindOf(guard)].surprise(score) - pass})
	}
	for k, gaussian := range m.Layers {
		term(Layers, k, gaussian.distance(x.layers[k], x.class))
	}
	term(Neighbours, 0, x.far)
	term(Density, 0, x.sparse)
	term(Texture, 0, m.Texture.distance(x.pixels.texture, 0))
	term(Perturbation, 0, m.Perturbation.score(x.pixels.texture))
	term(Patch, 0, m.Patch.score(x.pixels.peaks))
}

// Leading is the answer that a model's output gives, as the guards tell answers
// apart: the label with the highest output, or of a single label 1 if it is more
// probable than not.
func (g *Guard) Leading(output []float32) int {
	values := make([]float64, len(output))
	for i, v := range output {
		values[i] = float64(v)
	}
	return g.network.leading(values)
}

// Statistics are those that the guards were opened with.
func (g *Guard) Statistics() *Statistics { return g.statistics }

// Surprise is the largest of the terms that were measured: of the first look, or of
// both.
func (x *Strain) Surprise() float64 {
	most := math.Inf(-1)
	for _, t := range x.Terms {
		most = max(most, t.Above)
	}
	return most + x.guard.statistics.Unasked(x.class)
}

// Slopes returns the slope of Σ weights[i]·Terms[i].Above by the input and by the
// inner layers.
func (x *Strain) Slopes(weights []float64) (input []float32, taps [][]float32) {
	s, m := x.guard.statistics, &x.guard.statistics.models
	layers := make([][]float64, len(x.layers))
	for k, v := range x.layers {
		layers[k] = make([]float64, len(v))
	}
	texture, peaks := make([]float64, textureNumbers), make([]float64, peakNumbers)
	pixels := false
	for i, t := range x.Terms {
		w := weights[i]
		if w == 0 {
			continue
		}
		w /= s.Tails[kindOf(t.Guard)].Scale
		last := len(layers) - 1
		switch t.Guard {
		case Layers:
			m.Layers[t.Layer].slope(x.layers[t.Layer], x.class, w/m.LayerTails[t.Layer].Scale, layers[t.Layer])
		case Neighbours:
			m.References.slope(x.layers[last], w, 0, layers[last])
		case Density:
			m.References.slope(x.layers[last], 0, w, layers[last])
		case Texture:
			m.Texture.slope(x.pixels.texture, 0, w, texture)
			pixels = true
		case Perturbation:
			m.Perturbation.slope(w, texture)
			pixels = true
		case Patch:
			m.Patch.slope(w, peaks)
			pixels = true
		}
	}
	for k, v := range layers {
		taps = append(taps, unfold(v, s.Taps[k].Channels))
	}
	if pixels {
		input = x.guard.geometry.spread(x.plane.unmeasure(x.pixels, texture, peaks))
	} else {
		input = make([]float32, x.guard.geometry.elements())
	}
	return input, taps
}

// Represent is where the inner layers lie in the spaces in which the guards
// measure: whitened, layer after layer, each of mean square 1 for usual images.
func (g *Guard) Represent(taps [][]float32) []float32 {
	var out []float32
	for k, gaussian := range g.statistics.models.Layers {
		x := fold(taps[k])
		white := make([]float64, len(x))
		whiten(gaussian.Factor, x, white)
		for _, v := range white {
			out = append(out, float32(v/math.Sqrt(float64(len(x)))))
		}
	}
	return out
}

// RepresentSlopes turns a slope by the representation into slopes by the inner
// layers.
func (g *Guard) RepresentSlopes(slope []float32) [][]float32 {
	var out [][]float32
	for k, gaussian := range g.statistics.models.Layers {
		p := len(gaussian.Means[0])
		white := make([]float64, p)
		for j := range white {
			white[j] = float64(slope[j]) / math.Sqrt(float64(p))
		}
		slope = slope[p:]
		x := make([]float64, p)
		unwhiten(gaussian.Factor, white, x)
		out = append(out, unfold(x, g.statistics.Taps[k].Channels))
	}
	return out
}

// unwhiten adds factorᵀ·y to x.
func unwhiten(factor, y, x []float64) {
	p := len(y)
	for i, v := range y {
		for j, w := range factor[i*p : i*p+i+1] {
			x[j] += w * v
		}
	}
}

// unfold is the transpose of fold.
func unfold(slope []float64, channels int) []float32 {
	out := make([]float32, channels)
	if channels <= maxChannels {
		for i, v := range slope {
			out[i] = float32(v)
		}
		return out
	}
	for i := range out {
		at, sign := sketch(i)
		out[i] = float32(sign * slope[at])
	}
	return out
}

// slope adds weight times the slope of distance by x.
func (g *gaussian) slope(x []float64, class int, weight float64, to []float64) {
	p := len(x)
	centred, white := make([]float64, p), make([]float64, p)
	for j, v := range x {
		centred[j] = v - g.Means[class][j]
	}
	whiten(g.Factor, centred, white)
	sum := 0.0
	for _, v := range white {
		sum += v * v
	}
	scale := weight * 2 / (float64(p) * (sum/float64(p) + 1e-12))
	for j := range white {
		white[j] *= scale
	}
	unwhiten(g.Factor, white, to)
}

func (m *logistic) slope(weight float64, to []float64) {
	for j, w := range m.Weights {
		to[j] += weight * w / m.Scale[j]
	}
}

// slope adds far times the slope of the distance and sparse times that of the
// density, by x.
func (r *references) slope(x []float64, far, sparse float64, to []float64) {
	place := r.place(x)
	d := r.distances(place)
	order := make([]int, len(d))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case d[a] < d[b]:
			return -1
		case d[a] > d[b]:
			return 1
		}
		return 0
	})
	by := make([]float64, len(d)) // slope by each squared distance
	k := min(nearest, len(d))
	sum := 0.0
	for _, i := range order[:k] {
		sum += d[i] / float64(k)
	}
	for _, i := range order[:k] {
		by[i] += far / float64(k) / (sum + 1e-12)
	}
	total, least, width := 0.0, d[order[0]], 2*r.Width*r.Width
	for _, v := range d {
		total += math.Exp(-(v - least) / width)
	}
	energy := least/width - math.Log(total/float64(len(d)))
	for i, v := range d {
		by[i] += sparse / (1 + energy) * math.Exp(-(v-least)/width) / total / width
	}
	slope := make([]float64, len(place))
	for i, p := range r.Points {
		if by[i] == 0 {
			continue
		}
		for j, v := range p {
			slope[j] += by[i] * 2 * (place[j] - v)
		}
	}
	unwhiten(r.Factor, slope, to)
}

// spread is the transpose of plane.
func (g geometry) spread(slope []float64) []float32 {
	out := make([]float32, g.elements())
	for c := range g.channels {
		share := 1 / (float64(g.scale[c]) * float64(g.channels))
		for i, v := range slope {
			out[g.index(c, i)] = float32(v * share)
		}
	}
	return out
}

// unmeasure returns the slope by the pixels of what measure says, given the slope
// by the texture and the peaks. It changes both.
func (p plane) unmeasure(m pixels, texture, peaks []float64) []float64 {
	n := len(p.values)
	out := make([]float64, n)
	high := make([]float64, n) // slope by the first residual
	local := texture[numbersLocal : numbersLocal+7]
	local[6] += peaks[peakNumbers-2] + peaks[peakNumbers-1]
	local[3] -= peaks[peakNumbers-1]
	m.unlocal(p, local, high)
	m.uncorrelate(p, texture[numbersLocal+7:], high)
	p.unspots(peaks[21], peaks[22], out)
	p.unbands(texture[49:numbersLocal], out)
	residual, slope, stride := m.high, high, 1
	for i, k := range kernels {
		if i == 1 {
			stride = max(1, n/enoughPixels)
		}
		if i > 0 {
			residual, slope = make([]float32, n), make([]float64, n)
			p.filter(k, residual, stride)
		}
		by := texture[7*i : 7*i+7]
		peak := peaks[3*i] + peaks[3*i+1] + peaks[3*i+2]
		by[5] -= peaks[3*i+1]
		by[2] -= peaks[3*i+2]
		var h histogram
		most, at, sum, count := float32(0), -1, 0.0, 0
		for r := 0; r < p.rows; r += stride {
			for c := r * p.columns; c < (r+1)*p.columns; c++ {
				h.add(residual[c], c)
				v := float32(math.Abs(float64(residual[c])))
				if sum += float64(v); v > most {
					most, at = v, c
				}
				count++
			}
		}
		h.quantiles(residual, slope, by[:6], 0.1, 0.25, 0.5, 0.75, 0.9, 0.97)
		mean := by[6] / (1 + sum/float64(count)) / float64(count)
		for r := 0; r < p.rows; r += stride {
			for c := r * p.columns; c < (r+1)*p.columns; c++ {
				slope[c] += mean * sign(residual[c])
			}
		}
		if at >= 0 {
			slope[at] += peak / (1 + float64(most)) * sign(residual[at])
		}
		p.unfilter(k, slope, out, stride)
	}
	return out
}

// numbersLocal is where the local noise begins in a texture.
const numbersLocal = 7*7 + 6*3

func sign(v float32) float64 {
	switch {
	case v > 0:
		return 1
	case v < 0:
		return -1
	}
	return 0
}

// unfilter adds the transpose of filter.
func (p plane) unfilter(k [9]float32, slope, out []float64, stride int) {
	for r := 0; r < p.rows; r += stride {
		for i, w := range k {
			if w == 0 {
				continue
			}
			weight := 255 * float64(w)
			row := out[mirror(r+i/3-1, p.rows)*p.columns:][:p.columns]
			from := slope[r*p.columns:][:p.columns]
			for c, v := range from {
				row[mirror(c+i%3-1, p.columns)] += weight * v
			}
		}
	}
}

// histogram is a spread that remembers which element is in which bin.
type histogram struct {
	spread
	of []struct{ bin, at int32 }
}

func (h *histogram) add(v float32, at int) {
	bin := min(int(math.Abs(float64(v))*binsPerUnit), len(h.bins)-1)
	h.bins[bin]++
	h.n++
	h.of = append(h.of, struct{ bin, at int32 }{int32(bin), int32(at)})
}

// rankWidth is the share of the ranks, to either side, that carry the slope of a
// quantile.
const rankWidth = 0.04

// quantiles adds the slope of spread.quantiles by the elements: that of the mean
// of the order statistics around each.
func (h *histogram) quantiles(values []float32, to, slope []float64, shares ...float64) {
	var by [len(h.bins)]float64
	n := float64(h.n)
	for k, share := range shares {
		if slope[k] == 0 {
			continue
		}
		low, high := max(0, share-rankWidth)*n, min(1, share+rankWidth)*n
		quantile, found := 0.0, false
		seen := 0.0
		var within [len(h.bins)]float64 // ranks of each bin that carry
		for bin, count := range h.bins {
			if count == 0 {
				continue
			}
			next := seen + float64(count)
			if !found && next >= share*n {
				quantile, found = (float64(bin)+max(0, share*n-seen)/float64(count))/binsPerUnit, true
			}
			within[bin] = max(0, min(high, next)-max(low, seen))
			seen = next
		}
		for bin, ranks := range within[:len(within)-1] { // the last bin has no end
			if ranks > 0 {
				by[bin] += slope[k] / (1 + quantile) * ranks / (high - low) / float64(h.bins[bin])
			}
		}
	}
	for _, e := range h.of {
		if w := by[e.bin]; w != 0 {
			to[e.at] += w * sign(values[e.at])
		}
	}
}

// unbands adds the slope of bands.
func (p plane) unbands(slope, out []float64) {
	low := p
	var planes []plane // of each octave that there is
	var details [][3][]float32
	for range 3 {
		rows, columns := low.rows/2, low.columns/2
		if rows < 2 || columns < 2 {
			break
		}
		next := plane{rows, columns, make([]float32, rows*columns)}
		var detail [3][]float32
		for k := range detail {
			detail[k] = make([]float32, rows*columns)
		}
		for r := range rows {
			top, bottom := low.values[2*r*low.columns:], low.values[(2*r+1)*low.columns:]
			for c := range columns {
				a, b, d, e := top[2*c], top[2*c+1], bottom[2*c], bottom[2*c+1]
				next.values[r*columns+c] = (a + b + d + e) / 4
				for k, v := range [3]float32{a - b + d - e, a + b - d - e, a - b - d + e} {
					detail[k][r*columns+c] = v * (255.0 / 2)
				}
			}
		}
		planes, details = append(planes, low), append(details, detail)
		low = next
	}
	below := make([]float64, len(low.values)) // slope by the coarser plane
	for o := len(planes) - 1; o >= 0; o-- {
		p := planes[o]
		here := out
		if o > 0 {
			here = make([]float64, len(p.values))
		}
		rows, columns := p.rows/2, p.columns/2
		var by [3][]float64
		for k, detail := range details[o] {
			by[k] = make([]float64, len(detail))
			var h histogram
			sum := 0.0
			for i, v := range detail {
				h.add(v, i)
				sum += math.Abs(float64(v))
			}
			n := float64(len(detail))
			mean := slope[6*o+2*k] / (1 + sum/n) / n
			for i, v := range detail {
				by[k][i] += mean * sign(v)
			}
			h.quantiles(detail, by[k], slope[6*o+2*k+1:6*o+2*k+2], 0.5)
		}
		const half = 255.0 / 2
		for r := range rows {
			for c := range columns {
				i := r*columns + c
				x, y, z, mean := half*by[0][i], half*by[1][i], half*by[2][i], below[i]/4
				top, bottom := 2*r*p.columns+2*c, (2*r+1)*p.columns+2*c
				here[top] += mean + x + y + z
				here[top+1] += mean - x + y - z
				here[bottom] += mean + x - y - z
				here[bottom+1] += mean - x - y + z
			}
		}
		below = here
	}
}

// unlocal adds the slope of localNoise by the residual.
func (m *pixels) unlocal(p plane, slope, high []float64) {
	side := max(4, min(p.rows, p.columns)/8)
	type block struct {
		row, column int
		deviation   float64
	}
	var blocks []block
	for r := 0; r+side <= p.rows; r += side {
		for c := 0; c+side <= p.columns; c += side {
			sum := 0.0
			for y := r; y < r+side; y++ {
				for _, v := range m.high[y*p.columns+c:][:side] {
					sum += float64(v) * float64(v)
				}
			}
			blocks = append(blocks, block{r, c, math.Sqrt(sum / float64(side*side))})
		}
	}
	slices.SortStableFunc(blocks, func(a, b block) int {
		switch {
		case a.deviation < b.deviation:
			return -1
		case a.deviation > b.deviation:
			return 1
		}
		return 0
	})
	for k, share := range []float64{0, 0.05, 0.1, 0.25, 0.5, 0.75, 1} {
		b := blocks[int(share*float64(len(blocks)-1))]
		if slope[k] == 0 || b.deviation == 0 {
			continue
		}
		w := slope[k] / (1 + b.deviation) / b.deviation / float64(side*side)
		for y := b.row; y < b.row+side; y++ {
			for x := b.column; x < b.column+side; x++ {
				high[y*p.columns+x] += w * float64(m.high[y*p.columns+x])
			}
		}
	}
}

// uncorrelate adds the slope of correlations by the residual.
func (m *pixels) uncorrelate(p plane, slope, high []float64) {
	total := 1e-6
	for _, v := range m.high {
		total += float64(v) * float64(v)
	}
	total /= float64(len(m.high))
	less := 0.0 // by each v, of the total
	for k, step := range [][2]int{{0, 1}, {1, 0}, {0, 2}, {2, 0}, {1, 1}} {
		sum, n := 0.0, 0
		for r := step[0]; r < p.rows; r++ {
			here, there := m.high[r*p.columns+step[1]:(r+1)*p.columns], m.high[(r-step[0])*p.columns:]
			for c, v := range here {
				sum += float64(v) * float64(there[c])
			}
			n += len(here)
		}
		w := slope[k] / float64(n) / total
		for r := step[0]; r < p.rows; r++ {
			at, from := r*p.columns+step[1], (r-step[0])*p.columns
			for c := range p.columns - step[1] {
				high[at+c] += w * float64(m.high[from+c])
				high[from+c] += w * float64(m.high[at+c])
			}
		}
		less += slope[k] * sum / float64(n) / (total * total)
	}
	less *= 2 / float64(len(m.high))
	for i, v := range m.high {
		high[i] -= less * float64(v)
	}
}

// unspots adds the slope of spots.
func (p plane) unspots(stick, uneven float64, out []float64) {
	rows, columns := p.rows, p.columns
	at := func(r, c int) float64 { return float64(p.values[r*columns+c]) }
	most, furthest, variance, roughest := 0.0, [2]int{-1, 0}, 0.0, [2]int{-1, 0}
	ring := func(r, c int, visit func(i int, inside bool)) (outside int) {
		r0, c0, r1, c1 := max(0, r-2), max(0, c-2), min(rows, r+5), min(columns, c+5)
		for y := r0; y < r1; y++ {
			for x := c0; x < c1; x++ {
				visit(y*columns+x, y >= r && y < r+3 && x >= c && x < c+3)
			}
		}
		return (r1-r0)*(c1-c0) - 9
	}
	apart := func(r, c int) float64 {
		inside, around := 0.0, 0.0
		n := ring(r, c, func(i int, in bool) {
			if in {
				inside += float64(p.values[i])
			} else {
				around += float64(p.values[i])
			}
		})
		return inside/9 - around/float64(n)
	}
	for r := 0; r+3 <= rows; r++ {
		for c := 0; c+3 <= columns; c++ {
			if stick != 0 {
				if v := math.Abs(apart(r, c)); v > most {
					most, furthest = v, [2]int{r, c}
				}
			}
			sum, square := 0.0, 0.0
			for y := r; y < r+3; y++ {
				for x := c; x < c+3; x++ {
					sum += at(y, x)
					square += at(y, x) * at(y, x)
				}
			}
			if v := square/9 - sum/9*sum/9; v > variance {
				variance, roughest = v, [2]int{r, c}
			}
		}
	}
	if r, c := furthest[0], furthest[1]; r >= 0 && stick != 0 {
		w := stick * 255 / (1 + 255*most)
		if apart(r, c) < 0 {
			w = -w
		}
		n := float64(ring(r, c, func(int, bool) {}))
		ring(r, c, func(i int, in bool) {
			if in {
				out[i] += w / 9
			} else {
				out[i] -= w / n
			}
		})
	}
	if r, c := roughest[0], roughest[1]; r >= 0 && uneven != 0 {
		mean := 0.0
		for y := r; y < r+3; y++ {
			for x := c; x < c+3; x++ {
				mean += at(y, x) / 9
			}
		}
		deviation := math.Sqrt(variance)
		w := uneven * 255 / (1 + 255*deviation) / deviation / 9
		for y := r; y < r+3; y++ {
			for x := c; x < c+3; x++ {
				out[y*columns+x] += w * (at(y, x) - mean)
			}
		}
	}
}

// Names are those of the graph's input and output that the guards read.
func (g *Guard) Names() (input, output string) { return g.network.Input, g.network.Output }

// Shape is that of one input, without the batch.
func (g *Guard) Shape() []int64 { return slices.Clone(g.network.Shape) }
