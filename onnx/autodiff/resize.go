package autodiff

import (
	"math"
	"slices"
)

// Resize is linear in its input and works along each axis by itself: y = M·x
// with a matrix M of one row per output position. The gradient is Mᵀ·dy, axis
// by axis, with M computed here from the operator's definition (Resize-13, -18
// and -19), its coordinates in single precision as the runtime computes them.

// resizeMatrix is M of one axis, row-major [out, in].
type resizeMatrix struct {
	in, out int64
	m       []float64
}

func (r resizeMatrix) add(row, column int64, weight float64) {
	r.m[row*r.in+min(max(column, 0), r.in-1)] += weight
}

func (r resizeMatrix) identity() bool {
	for i := range r.m {
		if r.in != r.out || r.m[i] != bool01(int64(i)/r.in == int64(i)%r.in) {
			return false
		}
	}
	return true
}

// tiles says that every input element is repeated the same number of times.
func (r resizeMatrix) tiles() bool {
	if r.out%r.in != 0 {
		return false
	}
	for i := range r.m {
		if r.m[i] != bool01(int64(i)/r.in/(r.out/r.in) == int64(i)%r.in) {
			return false
		}
	}
	return true
}

func bool01(b bool) float64 { return float64(bit(b)) }

// largestResize bounds the matrix of an axis: 4096 elements to 4096.
const largestResize = 1 << 24

func resizeRule(o *operation) {
	d := o.dy()
	matrices := o.resizeMatrices()
	var apart, over, shape []int64
	allTiles := true
	for _, m := range matrices {
		allTiles = allTiles && m.tiles()
		over = append(over, int64(len(apart)+1))
		apart = append(apart, m.in, m.out/m.in)
		shape = append(shape, m.in)
	}
	if allTiles { // the decoder of a U-Net: each window's sum
		o.give(0, o.reshape(o.sum(o.reshape(d, apart...), over, false), shape...))
		return
	}
	for ax, m := range matrices {
		if !m.identity() {
			d = o.applyTransposed(d, ax, m)
		}
	}
	o.give(0, d)
}

// applyTransposed multiplies one axis of d by Mᵀ.
func (o *operation) applyTransposed(d value, ax int, m resizeMatrix) value {
	shape := slices.Clone(d.shape)
	shape[ax] = m.in
	lead, tail := product(d.shape[:ax]), product(d.shape[ax+1:])
	if tail == 1 {
		right := o.floats(d.typ, []int64{m.out, m.in}, m.m...)
		return o.reshape(o.matmul(o.reshape(d, lead, m.out), right, false, false), shape...)
	}
	transposed := make([]float64, len(m.m))
	for i := range m.out {
		for j := range m.in {
			transposed[j*m.out+i] = m.m[i*m.in+j]
		}
	}
	left := o.floats(d.typ, []int64{m.in, m.out}, transposed...)
	return o.reshape(o.matmul(left, o.reshape(d, lead, m.out, tail), false, false), shape...)
}

func (o *operation) resizeMatrices() []resizeMatrix {
	x, y := o.in(0), o.out(0)
	if o.node.Int("antialias", 0) != 0 {
		failf("antialias: %w", ErrNotDifferentiable)
	}
	axes := iota64(x.rank())
	if list := o.node.Ints("axes"); list != nil {
		axes = slices.Clone(list)
		for i := range axes {
			axes[i] = axis(axes[i], x.rank())
		}
	}
	var scales, roi []float64
	if o.has(2) && o.in(2).size() > 0 {
		var ok bool
		if scales, ok = o.foldFloats(2); !ok || len(scales) != len(axes) {
			failf("the scales must be constant, one for each axis")
		}
	}
	crop := o.node.Text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
	if crop {
		var ok bool
		if roi, ok = o.foldFloats(1); !ok || len(roi) != 2*len(axes) {
			failf("the region of interest must be constant, two numbers for each axis")
		}
	}
	matrices := make([]resizeMatrix, x.rank())
	for ax := range matrices {
		place := slices.Index(axes, int64(ax))
		r := resizeMatrix{in: x.shape[ax], out: y.shape[ax]}
		if r.in == 0 || r.out == 0 || r.in > largestResize/r.out {
			failf("resizing %d elements to %d: %w", r.in, r.out, ErrNotDifferentiable)
		}
		r.m = make([]float64, r.in*r.out)
		scale := float32(r.out) / float32(r.in)
		if place >= 0 && scales != nil {
			scale = float32(scales[place])
		}
		region := [2]float32{0, 1}
		if place >= 0 && crop {
			region = [2]float32{float32(roi[place]), float32(roi[len(axes)+place])}
		}
		untouched := place < 0 || scale == 1 && !crop
		for i := range r.out {
			if untouched {
				r.add(i, i, 1)
			} else {
				o.resizeRow(r, i, scale, region)
			}
		}
		matrices[ax] = r
	}
	return matrices
}

// foldFloats returns the elements of a constant input of floats.
func (o *operation) foldFloats(i int) ([]float64, bool) {
	if v, ok := o.inferred.Floats(o.in(i).name); ok {
		return v, true
	}
	if w := o.inits[o.in(i).name]; w != nil {
		v, err := w.Floats()
		return v, err == nil
	}
	return nil, false
}

// resizeRow fills the row of M for output position i.
func (o *operation) resizeRow(r resizeMatrix, i int64, scale float32, region [2]float32) {
	at := o.resizeOrigin(r, float32(i), scale, region)
	last := float32(r.in - 1)
	if o.node.Text("coordinate_transformation_mode", "") == "tf_crop_and_resize" && (at < 0 || at > last) {
		return // the extrapolation value, which does not depend on x
	}
	switch mode := o.node.Text("mode", "nearest"); mode {
	case "nearest":
		r.add(i, o.nearest(at), 1)
	case "linear":
		at = min(max(at, 0), last)
		low := float32(math.Floor(float64(at)))
		fraction := float64(at - low)
		r.add(i, int64(low), 1-fraction)
		r.add(i, int64(low)+1, fraction)
	case "cubic":
		low := math.Floor(float64(at))
		weights := cubicWeights(float64(at)-low, o.floatAttr("cubic_coeff_a", -0.75))
		exclude := o.node.Int("exclude_outside", 0) != 0
		sum := 0.0
		for k := range weights {
			if column := int64(low) + int64(k) - 1; exclude && (column < 0 || column >= r.in) {
				weights[k] = 0
			}
			sum += weights[k]
		}
		for k, w := range weights {
			if exclude {
				w /= sum
			}
			r.add(i, int64(low)+int64(k)-1, w)
		}
	default:
		failf("mode %q: %w", mode, ErrNotDifferentiable)
	}
}

// resizeOrigin is the place in the input of an output position.
func (o *operation) resizeOrigin(r resizeMatrix, i, scale float32, region [2]float32) float32 {
	in, out := float32(r.in), float32(r.out)
	switch mode := o.node.Text("coordinate_transformation_mode", "half_pixel"); mode {
	case "half_pixel":
		return (i+0.5)/scale - 0.5
	case "half_pixel_symmetric":
		centre := in / 2
		return centre*(1-out/(scale*in)) + (i+0.5)/scale - 0.5
	case "pytorch_half_pixel":
		if r.out == 1 {
			return 0
		}
		return (i+0.5)/scale - 0.5
	case "tf_half_pixel_for_nn":
		return (i + 0.5) / scale
	case "asymmetric":
		return i / scale
	case "align_corners":
		if r.out == 1 {
			return 0
		}
		return i * (in - 1) / (out - 1)
	case "tf_crop_and_resize":
		if r.out == 1 {
			return 0.5 * (region[0] + region[1]) * (in - 1)
		}
		return region[0]*(in-1) + i*(region[1]-region[0])*(in-1)/(out-1)
	default:
		failf("coordinate_transformation_mode %q: %w", mode, ErrNotDifferentiable)
		return 0
	}
}

func (o *operation) nearest(at float32) int64 {
	v := float64(at)
	switch mode := o.node.Text("nearest_mode", "round_prefer_floor"); mode {
	case "round_prefer_floor":
		return int64(math.Ceil(v - 0.5))
	case "round_prefer_ceil":
		return int64(math.Floor(v + 0.5))
	case "floor":
		return int64(math.Floor(v))
	case "ceil":
		return int64(math.Ceil(v))
	default:
		failf("nearest_mode %q: %w", mode, ErrNotDifferentiable)
		return 0
	}
}

// cubicWeights are of the four neighbours of a place t beyond the second
// (Keys, "Cubic convolution interpolation", 1981, eq. 4).
func cubicWeights(t, a float64) [4]float64 {
	far := func(d float64) float64 { return ((a*d-5*a)*d+8*a)*d - 4*a }
	near := func(d float64) float64 { return ((a+2)*d-(a+3))*d*d + 1 }
	return [4]float64{far(t + 1), near(t), near(1 - t), far(2 - t)}
}
