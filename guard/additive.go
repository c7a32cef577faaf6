package guard

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie"
)

// Some guards can be fitted to images that are in no one place, because all that
// their fit needs of the images are sums: Layers and Texture, which compare with
// means and a covariance, their tails, and the calibration of both together. The
// others cannot: Neighbours and Density keep images' own features as references,
// Perturbation and Patch are told apart from attacks that are made while fitting,
// by steps that look at each image again and again, and Gradient, Focus, Squeezing
// and Occlusion take their calibration from single scores of a second look.
//
// Additive is what is fitted so. Its steps are Step's: each is a vector of sums
// over images, Next takes the total, and the last one ends it.
type Additive struct {
	Classes int            `json:"classes"` // answers that the model has
	Parts   []AdditivePart `json:"parts"`   // inner layers, then the texture
	// Clean is the calibration: how many clean images of each leading answer have a
	// combined surprise in each bin; see surpriseBin.
	Clean [][]float64 `json:"clean"`
	// Step is which sums are wanted next.
	Step AdditiveStep `json:"step"`

	counts []float64 // images of each leading answer, of the first step
}

// AdditivePart is a guard of one kind of feature.
type AdditivePart struct {
	Name    string `json:"name"` // a tensor of the graph, or "texture"
	Width   int    `json:"width"`
	ByClass bool   `json:"by_class"` // compared with images of the same leading answer
	// Means are subtracted, Scale divides, and the squared norm of what Factor makes
	// of it is the squared distance; see whitener.
	Means     [][]float64 `json:"means"`
	Scale     float64     `json:"scale"`
	Factor    []float64   `json:"factor"`
	Threshold float64     `json:"threshold"` // of the tail
	Excess    float64     `json:"excess"`    // its scale
}

// AdditiveStep is a step of the fit.
type AdditiveStep string

// The steps, in their order. All but the last are of the images to fit on, the
// last of those to calibrate on.
const (
	StepMeans   AdditiveStep = "means"   // how many, their sums, and mean squares
	StepScatter AdditiveStep = "scatter" // products of differences from the means
	StepTails   AdditiveStep = "tails"   // histograms of distances
	StepClean   AdditiveStep = "clean"   // histograms of surprises
	StepDone    AdditiveStep = "done"
)

const (
	texturePart   = "texture"
	distanceBins  = 4096
	surpriseBins  = 4096
	leastDistance = -28.0 // the logarithm that a distance of 0 counts as
	mostDistance  = 36.0
)

// Features are what the additive guards look at of some images.
type Features struct {
	answers []int
	parts   [][][]float64 // [part][image][feature]
}

// Len is how many images there are.
func (f *Features) Len() int { return len(f.answers) }

// NewAdditive says what is to be fitted to a network.
func NewAdditive(n Network) (*Additive, error) {
	a := &Additive{Step: StepMeans}
	g, taps, err := openAdditive(n, 1)
	if err != nil {
		return nil, fmt.Errorf("guard: beginning a fit by sums: %w", err)
	}
	defer g.Close()
	a.Classes = classes(g.labels)
	for _, t := range taps {
		a.Parts = append(a.Parts, AdditivePart{Name: t.Tensor, Width: min(t.Channels, maxChannels), ByClass: true})
	}
	flat := plane{rows: g.geometry.rows, columns: g.geometry.columns, values: make([]float32, g.geometry.rows*g.geometry.columns)}
	a.Parts = append(a.Parts, AdditivePart{Name: texturePart, Width: len(flat.measure().texture)})
	return a, nil
}

func openAdditive(n Network, threads int) (*Guard, []tap, error) {
	taps, err := chooseTaps(n.Model, n.Output, 1)
	if err != nil {
		return nil, nil, err
	}
	g, err := open(n, taps, threads)
	return g, taps, err
}

// Measure takes the features of images, prepared as the model takes them.
func Measure(ctx context.Context, n Network, images [][]float32, threads int) (*Features, error) {
	g, taps, err := openAdditive(n, threads)
	if err != nil {
		return nil, fmt.Errorf("guard: measuring images: %w", err)
	}
	defer g.Close()
	f := &Features{parts: make([][][]float64, len(taps)+1)}
	looks, err := g.looks(ctx, images)
	if err != nil {
		return nil, fmt.Errorf("guard: measuring images: %w", err)
	}
	for i, l := range looks {
		if err := l.finite(); err != nil {
			return nil, fmt.Errorf("guard: measuring image %d: %w", i, err)
		}
		f.answers = append(f.answers, l.class)
		for k, layer := range l.layers {
			f.parts[k] = append(f.parts[k], layer)
		}
		p := g.geometry.plane(l.values)
		f.parts[len(taps)] = append(f.parts[len(taps)], p.measure().texture)
	}
	return f, nil
}

// Parameters are what the steps until now have come to, as one vector: what the
// step that is due is taken with.
func (a *Additive) Parameters() []float64 {
	var out []float64
	a.parameters(func(v *float64) { out = append(out, *v) })
	return out
}

// SetParameters is what Parameters of the same network and step returned.
func (a *Additive) SetParameters(step AdditiveStep, v []float64) error {
	if !slices.Contains([]AdditiveStep{StepMeans, StepScatter, StepTails, StepClean}, step) {
		return fmt.Errorf("guard: taking parameters of step %q: there is none", step)
	}
	a.Step = step
	n := 0
	a.parameters(func(*float64) { n++ })
	if len(v) != n {
		return fmt.Errorf("guard: taking %d parameters of step %q, want %d", len(v), step, n)
	}
	a.parameters(func(to *float64) { *to, v = v[0], v[1:] })
	for _, p := range a.Parts {
		if step != StepMeans && !(p.Scale > 0) || step == StepClean && !(p.Excess > 0) {
			return fmt.Errorf("guard: taking parameters of step %q: a scale of %g and a tail of %g, want more than 0", step, p.Scale, p.Excess)
		}
	}
	return nil
}

// parameters visits them in their order, and makes room for them.
func (a *Additive) parameters(visit func(*float64)) {
	room := func(v []float64, n int) []float64 {
		if len(v) != n {
			return make([]float64, n)
		}
		return v
	}
	if a.Step == StepMeans {
		return
	}
	for k := range a.Parts {
		p := &a.Parts[k]
		if groups := a.groups(*p); len(p.Means) != groups {
			p.Means = make([][]float64, groups)
		}
		for c := range p.Means {
			p.Means[c] = room(p.Means[c], p.Width)
			for j := range p.Means[c] {
				visit(&p.Means[c][j])
			}
		}
		visit(&p.Scale)
		if a.Step == StepScatter {
			continue
		}
		p.Factor = room(p.Factor, p.Width*p.Width)
		for i := range p.Width {
			for j := range i + 1 {
				visit(&p.Factor[i*p.Width+j])
			}
		}
		if a.Step != StepTails {
			visit(&p.Threshold)
			visit(&p.Excess)
		}
	}
}

// groups is how many means a part has.
func (a *Additive) groups(p AdditivePart) int {
	if p.ByClass {
		return a.Classes
	}
	return 1
}

// Numbers is how many sums the step that is due has.
func (a *Additive) Numbers() int {
	n := 0
	switch a.Step {
	case StepMeans:
		n = a.Classes
		for _, p := range a.Parts {
			n += a.groups(p)*p.Width + 1
		}
	case StepScatter:
		for _, p := range a.Parts {
			n += p.Width*(p.Width+1)/2 + 1
		}
	case StepTails:
		n = 2 * distanceBins * len(a.Parts)
	case StepClean:
		n = a.Classes * surpriseBins
	}
	return n
}

// Sums are those of some images for the step that is due.
func (a *Additive) Sums(f *Features) ([]float64, error) {
	if len(f.parts) != len(a.Parts) {
		return nil, fmt.Errorf("guard: adding up %d kinds of features, want %d", len(f.parts), len(a.Parts))
	}
	out := make([]float64, a.Numbers())
	rest := out
	take := func(n int) []float64 {
		part := rest[:n]
		rest = rest[n:]
		return part
	}
	switch a.Step {
	case StepMeans:
		counts := take(a.Classes)
		for _, c := range f.answers {
			counts[c]++
		}
		for k, p := range a.Parts {
			sums, square := take(a.groups(p)*p.Width), take(1)
			for i, x := range f.parts[k] {
				at := 0
				if p.ByClass {
					at = f.answers[i] * p.Width
				}
				for j, v := range x {
					sums[at+j] += v
					square[0] += v * v / float64(p.Width)
				}
			}
		}
	case StepScatter:
		for k, p := range a.Parts {
			products, fourth := take(p.Width*(p.Width+1)/2), take(1)
			z := make([]float64, p.Width)
			for i, x := range f.parts[k] {
				norm, at := 0.0, 0
				p.centre(x, f.answers[i], z)
				for j, v := range z {
					norm += v * v / float64(p.Width)
					for _, w := range z[:j+1] {
						products[at] += v * w
						at++
					}
				}
				fourth[0] += norm * norm
			}
		}
	case StepTails:
		for k, p := range a.Parts {
			counts, sums := take(distanceBins), take(distanceBins)
			for i, x := range f.parts[k] {
				d := p.distance(x, f.answers[i])
				counts[distanceBin(d)]++
				sums[distanceBin(d)] += d
			}
		}
	case StepClean:
		for i, c := range f.answers {
			out[c*surpriseBins+surpriseBin(a.surprise(f, i))]++
		}
	default:
		return nil, fmt.Errorf("guard: adding up for step %q: there is none", a.Step)
	}
	return out, nil
}

// centre is x from its mean, on the part's scale.
func (p AdditivePart) centre(x []float64, class int, z []float64) {
	mean := p.Means[0]
	if p.ByClass {
		mean = p.Means[class]
	}
	for j, v := range x {
		z[j] = (v - mean[j]) / p.Scale
	}
}

// distance is gaussian.distance.
func (p AdditivePart) distance(x []float64, class int) float64 {
	z, white := make([]float64, p.Width), make([]float64, p.Width)
	p.centre(x, class, z)
	whiten(p.Factor, z, white)
	sum := 0.0
	for _, v := range white {
		sum += v * v
	}
	return max(leastDistance, min(mostDistance, math.Log(sum/float64(p.Width)+1e-12)))
}

func distanceBin(d float64) int {
	return max(0, min(distanceBins-1, int((d-leastDistance)/(mostDistance-leastDistance)*distanceBins)))
}

// surpriseBin keeps the order of surprises, with the finest bins around 4 nats,
// which one clean image in fifty reaches.
func surpriseBin(s float64) int {
	x := s - 4
	u := 0.5 + 0.5*x/(4+math.Abs(x))
	if math.IsInf(s, 1) || math.IsNaN(s) {
		return surpriseBins - 1
	}
	return max(0, min(surpriseBins-1, int(u*surpriseBins)))
}

// surprise is the largest of an image's parts.
func (a *Additive) surprise(f *Features, i int) float64 {
	most := math.Inf(-1)
	for k, p := range a.Parts {
		t := tail{Threshold: p.Threshold, Scale: p.Excess}
		most = max(most, t.surprise(p.distance(f.parts[k][i], f.answers[i])))
	}
	return most
}

// Next takes the total of the step that is due, and goes on to the one behind.
func (a *Additive) Next(total []float64) error {
	if len(total) != a.Numbers() || a.Step == StepDone {
		return fmt.Errorf("guard: going on with a fit by sums: %d sums for step %q, want %d", len(total), a.Step, a.Numbers())
	}
	rest := total
	take := func(n int) []float64 {
		part := rest[:n]
		rest = rest[n:]
		return part
	}
	switch a.Step {
	case StepMeans:
		a.counts = slices.Clone(take(a.Classes))
		n := 0.0
		for _, c := range a.counts {
			n += c
		}
		if n < 2 {
			return fmt.Errorf("guard: fitting by sums: %w: %g", ErrTooFew, n)
		}
		for k := range a.Parts {
			p := &a.Parts[k]
			sums, square := take(a.groups(*p)*p.Width), take(1)
			p.means(sums, a.counts, n)
			if p.Scale = math.Sqrt(square[0] / n); !(p.Scale > 0) {
				p.Scale = 1
			}
		}
		a.Step = StepScatter
	case StepScatter:
		n := 0.0
		for _, c := range a.counts {
			n += c
		}
		for k := range a.Parts {
			p := &a.Parts[k]
			products, fourth := take(p.Width*(p.Width+1)/2), take(1)
			s := square(p.Width)
			at := 0
			for i := range s {
				for j := 0; j <= i; j++ {
					s[i][j] = products[at] / n
					s[j][i] = s[i][j]
					at++
				}
			}
			width := float64(p.Width)
			if err := tied(s, fourth[0]*width*width, n); err != nil {
				return fmt.Errorf("guard: fitting %s by sums: %w", p.Name, err)
			}
			var err error
			if p.Factor, err = whitener(s); err != nil {
				return fmt.Errorf("guard: fitting %s by sums: %w", p.Name, err)
			}
		}
		a.Step = StepTails
	case StepTails:
		for k := range a.Parts {
			counts, sums := take(distanceBins), take(distanceBins)
			a.Parts[k].tail(counts, sums)
		}
		a.Step = StepClean
	case StepClean:
		a.Clean = nil
		for range a.Classes {
			a.Clean = append(a.Clean, slices.Clone(take(surpriseBins)))
		}
		a.Step = StepDone
	}
	return nil
}

// means are fitGaussian's: classes with few images share the mean of all.
func (p *AdditivePart) means(sums, counts []float64, n float64) {
	const fewest = 10
	all := make([]float64, p.Width)
	for at, v := range sums {
		all[at%p.Width] += v / n
	}
	p.Means = nil
	for c := range len(sums) / p.Width {
		mean := slices.Clone(all)
		if p.ByClass && counts[c] >= fewest {
			for j := range mean {
				mean[j] = sums[c*p.Width+j] / counts[c]
			}
		}
		p.Means = append(p.Means, mean)
	}
}

// tied shrinks a covariance as ledoitWolf does, from the covariance itself and the
// sum of fourth powers of the rows' lengths, and adds what fitGaussian does.
func tied(s [][]float64, fourth, n float64) error {
	p := float64(len(s))
	trace, frobenius := 0.0, 0.0
	for i := range s {
		trace += s[i][i]
		for j := range s[i] {
			frobenius += s[i][j] * s[i][j]
		}
	}
	if !(trace > 0) {
		return errSingular
	}
	mean := trace / p
	distance := (frobenius - mean*trace) / p
	noise, shrinkage := (fourth/n-frobenius)/(n*p), 0.0
	if noise = min(max(noise, 0), distance); noise > 0 {
		shrinkage = noise / distance
	}
	for i := range s {
		for j := range s[i] {
			s[i][j] *= 1 - shrinkage
		}
		s[i][i] += shrinkage*mean + 1e-6*trace/p + 1e-12
	}
	return nil
}

// tail is fitTail, with the threshold at the lower edge of its bin.
func (p *AdditivePart) tail(counts, sums []float64) {
	n := 0.0
	for _, c := range counts {
		n += c
	}
	const width = (mostDistance - leastDistance) / distanceBins
	below, at := 0.0, 0
	for at < distanceBins-1 && below+counts[at] <= math.Floor(n*(1-tailShare)) {
		below += counts[at]
		at++
	}
	p.Threshold = leastDistance + float64(at)*width
	above, excess, first, last := 0.0, 0.0, distanceBins, 0
	for b, c := range counts {
		if c < 0.5 {
			continue
		}
		first, last = min(first, b), max(last, b)
		if b >= at {
			above += c
			excess += sums[b] - c*p.Threshold
		}
	}
	p.Excess = max(excess/max(1, above), 1e-3*float64(last-first)*width, width)
}

// Apart is the largest difference of a distance by two fits to the same network, in
// nats.
func (a *Additive) Apart(b *Additive, f *Features) float64 {
	most := 0.0
	for k, p := range a.Parts {
		for i, x := range f.parts[k] {
			most = max(most, math.Abs(p.distance(x, f.answers[i])-b.Parts[k].distance(x, f.answers[i])))
		}
	}
	return most
}

// PValues are the share, at most, of clean images of the same leading answer that
// are as surprising as each of some images, as conformal p-values (Vovk, Gammerman
// and Shafer 2005, section 4.1): an image counts as less surprising only than
// those of a higher bin, so the promise holds for clean images that are
// exchangeable with those of the calibration.
func (a *Additive) PValues(f *Features) ([]float64, error) {
	if a.Step != StepDone || len(f.parts) != len(a.Parts) {
		return nil, fmt.Errorf("guard: judging by a fit by sums that is at step %q: %w", a.Step, ErrStatistics)
	}
	out := make([]float64, f.Len())
	for i, c := range f.answers {
		above, n := 0.0, 0.0
		bin := surpriseBin(a.surprise(f, i))
		for b, count := range a.Clean[c] {
			n += count
			if b >= bin {
				above += count
			}
		}
		out[i] = (1 + above) / (n + 1)
	}
	return out, nil
}

// Result is the finding's entry of one image: the p-value, and an alarm at a share
// of false alarms.
func (a *Additive) Result(p, falseAlarms float64) vigie.GuardResult {
	r := vigie.GuardResult{Guard: string(Layers), PValue: p}
	if p <= falseAlarms {
		r.Alarm = true
		r.Reason = &vigie.Reason{Code: vigie.ReasonGuard, Text: kinds[kindOf(Layers)].Text, Detail: "layers and texture, fitted by sums"}
	}
	return r
}
