package guard

import (
	"math"
	"slices"
)

// maxReferences is how many validation images are kept as neighbours.
const maxReferences = 256

// nearest is how many neighbours count.
const nearest = 3

// references are validation images in the whitened space of the embedding.
type references struct {
	Mean   []float64
	Factor []float64   // see whitener
	Points [][]float64 // at most maxReferences
	Width  float64     // of the kernel: the median distance to the nearest neighbours
}

func fitReferences(rows [][]float64) (*references, error) {
	g, err := fitGaussian(rows, make([]int, len(rows)), 1)
	if err != nil {
		return nil, err
	}
	r := &references{Mean: g.Means[0], Factor: g.Factor}
	step := float64(max(1, len(rows))) / float64(min(maxReferences, len(rows)))
	for k := range min(maxReferences, len(rows)) {
		r.Points = append(r.Points, r.place(rows[int(float64(k)*step)]))
	}
	var widths []float64
	for i, p := range r.Points {
		d := r.distances(p)
		d[i] = math.Inf(1)
		slices.Sort(d)
		widths = append(widths, d[min(nearest, len(d)-1)-1])
	}
	slices.Sort(widths)
	r.Width = math.Sqrt(max(widths[len(widths)/2], 1e-12))
	return r, nil
}

// place brings an embedding to the whitened space.
func (r *references) place(x []float64) []float64 {
	centred, out := make([]float64, len(x)), make([]float64, len(x))
	for j, v := range x {
		centred[j] = v - r.Mean[j]
	}
	whiten(r.Factor, centred, out)
	return out
}

// distances are squared.
func (r *references) distances(place []float64) []float64 {
	out := make([]float64, len(r.Points))
	for i, p := range r.Points {
		sum := 0.0
		for j, v := range p {
			sum += (v - place[j]) * (v - place[j])
		}
		out[i] = sum
	}
	return out
}

// look returns the logarithm of the mean squared distance to the nearest
// references, and the negative logarithm of the density around x.
func (r *references) look(x []float64) (far, sparse float64) {
	d := r.distances(r.place(x))
	slices.Sort(d)
	sum := 0.0
	k := min(nearest, len(d))
	for _, v := range d[:k] {
		sum += v / float64(k)
	}
	// log Σ exp(-d/2w²), relative to the nearest so that nothing underflows
	total := 0.0
	for _, v := range d {
		total += math.Exp(-(v - d[0]) / (2 * r.Width * r.Width))
	}
	energy := d[0]/(2*r.Width*r.Width) - math.Log(total/float64(len(d)))
	return math.Log(sum + 1e-12), math.Log1p(energy) // a density of the kernel's height has energy 0
}
