package autodiff

import (
	"math"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// maxPoolRule shares a window's gradient among the elements that reach its
// maximum. X-rays have flat backgrounds, so ties are common, and one winner
// would depend on the runtime's scan order. MaxPool's Indices output is not
// used: computing it disables the fast kernels.
func maxPoolRule(o *operation) {
	if len(o.outputs) > 1 && len(o.gradients) > 1 && !o.gradients[1].none() {
		failf("gradient through MaxPool's Indices: %w", ErrNotDifferentiable)
	}
	if o.node.Int("storage_order", 0) != 0 {
		failf("storage_order 1: %w", ErrNotDifferentiable)
	}
	x, y := o.in(0), o.out(0)
	d := o.gatePool(o.dy())
	w := o.windowOf(o.intsAttr("kernel_shape", nil), x.shape[2:], y.shape[2:])
	if w.tiles() {
		o.give(0, o.maxPoolTiles(x, y, d, w))
		return
	}
	padded := o.padToWindows(x, w, lowest(x.typ))
	var hits []value
	w.taps(func(tap []int64) {
		hits = append(hits, o.cast(o.compare("Equal", o.tap(padded, w, tap), y), x.typ))
	})
	d = o.div(d, o.total(hits))
	var parts []value
	i := 0
	w.taps(func(tap []int64) {
		parts = append(parts, o.untap(o.dilate(o.mul(hits[i], d), w), w, tap))
		i++
	})
	o.give(0, o.cropFromWindows(o.total(parts), w))
}

// tiles says that windows neither overlap nor leave gaps nor need padding.
func (w window) tiles() bool {
	for i := range w.in {
		if w.kernel[i] != w.stride[i] || w.dilation[i] != 1 || w.before[i] != 0 || w.covered(i) > w.in[i] {
			return false
		}
	}
	return true
}

// maxPoolTiles repeats each maximum over its window and compares.
func (o *operation) maxPoolTiles(x, y, d value, w window) value {
	cropped := o.padToWindows(x, w, 0) // drops the rest that fills no window
	hit := o.cast(o.compare("Equal", cropped, o.repeatTiles(y, w)), x.typ)
	n := len(w.in)
	var count value
	if x.typ == onnx.Float && n <= 3 { // the runtime averages windows of float only
		share := o.op("AveragePool", x.typ, y.shape, []value{hit},
			onnx.IntsAttribute("kernel_shape", w.kernel...), onnx.IntsAttribute("strides", w.stride...))
		count = o.scale(share, float64(product(w.kernel)))
	} else {
		count = o.sumTiles(hit, w)
	}
	d = o.div(d, count)
	g := o.mul(hit, o.repeatTiles(d, w))
	return o.cropFromWindows(g, w)
}

// repeatTiles writes every element over its whole window. Resize does it an
// order of magnitude faster than Expand, whose inner loop copies a window's row
// at a time, but in float only.
func (o *operation) repeatTiles(a value, w window) value {
	lead := a.rank() - len(w.in)
	if a.typ == onnx.Float && a.rank() == 4 {
		grown := slices.Clone(a.shape[:lead])
		factors := []float64{1, 1}
		for i, k := range w.kernel {
			grown = append(grown, w.out[i]*k)
			factors = append(factors, float64(k))
		}
		return o.op("Resize", a.typ, grown, []value{a, {}, o.floats(onnx.Float, []int64{4}, factors...)},
			onnx.TextAttribute("mode", "nearest"), onnx.TextAttribute("nearest_mode", "floor"),
			onnx.TextAttribute("coordinate_transformation_mode", "asymmetric"))
	}
	apart, grown := slices.Clone(a.shape[:lead]), slices.Clone(a.shape[:lead])
	final := slices.Clone(a.shape[:lead])
	for i := range w.in {
		apart = append(apart, w.out[i], 1)
		grown = append(grown, w.out[i], w.kernel[i])
		final = append(final, w.out[i]*w.kernel[i])
	}
	return o.reshape(o.expand(o.reshape(a, apart...), grown), final...)
}

func (o *operation) sumTiles(a value, w window) value {
	lead := a.rank() - len(w.in)
	apart := slices.Clone(a.shape[:lead])
	var axes []int64
	for i := range w.in {
		axes = append(axes, int64(len(apart)+1))
		apart = append(apart, w.out[i], w.kernel[i])
	}
	return o.sum(o.reshape(a, apart...), axes, false)
}

func lowest(typ onnx.DataType) float64 {
	if typ == onnx.Double {
		return -math.MaxFloat64
	}
	return -math.MaxFloat32
}

// averagePoolRule spreads dy evenly over each window. The sum over taps is
// separable, so each spatial axis is spread on its own.
func averagePoolRule(o *operation) {
	x, d := o.in(0), o.dy()
	w := o.windowOf(o.intsAttr("kernel_shape", nil), x.shape[2:], d.shape[2:])
	d = o.mul(d, o.windowShares(x.typ, w))
	if w.tiles() {
		o.give(0, o.cropFromWindows(o.repeatTiles(d, w), w))
		return
	}
	for i := range w.in {
		d = o.spreadAxis(d, w, i)
	}
	o.give(0, o.cropFromWindows(d, w))
}

// spreadAxis adds each element to every position of its window along one axis.
func (o *operation) spreadAxis(d value, w window, i int) value {
	ax := d.rank() - len(w.in) + i
	d = o.interleaveZeros(d, ax, w.stride[i])
	var parts []value
	bounded("taps of a kernel", w.kernel[i])
	for tap := range w.kernel[i] {
		before, after := repeat(0, d.rank()), repeat(0, d.rank())
		before[ax] = tap * w.dilation[i]
		after[ax] = w.covered(i) - before[ax] - d.shape[ax]
		parts = append(parts, o.pad(d, before, after, 0))
	}
	return o.total(parts)
}

// windowShares is 1/(number of elements averaged) for every output position, a
// constant of shape [out…] that broadcasts over N and C. Padding counts only
// with count_include_pad, and what ceil mode adds behind the padding never does.
func (o *operation) windowShares(typ onnx.DataType, w window) value {
	includePad := o.node.Int("count_include_pad", 0) != 0
	n := len(w.in)
	if product(w.out) > largestResize {
		failf("%d positions of a pool: %w", product(w.out), ErrNotDifferentiable)
	}
	shares := []float64{1}
	for i := range n {
		row := make([]float64, w.out[i])
		for p := range row {
			var count float64
			for tap := range w.kernel[i] {
				at := int64(p)*w.stride[i] + tap*w.dilation[i] - w.before[i]
				if at >= 0 && at < w.in[i] || includePad && at >= -w.before[i] && at < w.in[i]+w.after[i] {
					count++
				}
			}
			row[p] = 1 / count
		}
		var next []float64
		for _, s := range shares {
			for _, r := range row {
				next = append(next, s*r)
			}
		}
		shares = next
	}
	if uniform := !slices.ContainsFunc(shares, func(s float64) bool { return s != shares[0] }); uniform {
		return o.scalar(typ, shares[0])
	}
	return o.floats(typ, w.out, shares...)
}

func spatialAxes(rank int) []int64 { return iota64(rank)[2:] }

func globalAveragePoolRule(o *operation) {
	x := o.in(0)
	o.give(0, o.expand(o.scale(o.dy(), 1/float64(product(x.shape[2:]))), x.shape))
}

func globalMaxPoolRule(o *operation) {
	x := o.in(0)
	hit := o.cast(o.compare("Equal", x, o.out(0)), x.typ)
	o.give(0, o.mul(hit, o.div(o.dy(), o.sum(hit, spatialAxes(x.rank()), true))))
}
