package autodiff

import (
	"slices"
)

// window is the geometry of a convolution or pooling over the trailing axes of
// a [N, C, spatial…] tensor.
type window struct {
	kernel, stride, dilation []int64
	before, after            []int64 // padding of each spatial axis
	in, out                  []int64 // spatial sizes
}

// windowOf reads the attributes that Conv, ConvTranspose and the pools share;
// in is the larger side (the input; ConvTranspose's output).
func (o *operation) windowOf(kernel, in, out []int64) window {
	n := len(in)
	w := window{
		kernel:   kernel,
		stride:   o.intsAttr("strides", repeat(1, n)),
		dilation: o.intsAttr("dilations", repeat(1, n)),
		in:       in, out: out,
	}
	pads := o.intsAttr("pads", repeat(0, 2*n))
	if len(w.kernel) != n || len(w.stride) != n || len(w.dilation) != n || len(pads) != 2*n {
		failf("kernel, strides, dilations or pads do not fit %d spatial dimensions", n)
	}
	w.before, w.after = slices.Clone(pads[:n]), slices.Clone(pads[n:])
	auto := o.node.Text("auto_pad", "NOTSET")
	for i := range n {
		switch auto {
		case "NOTSET", "":
		case "VALID":
			w.before[i], w.after[i] = 0, 0
		case "SAME_UPPER", "SAME_LOWER":
			total := max(0, (w.out[i]-1)*w.stride[i]+w.reach(i)-w.in[i])
			w.before[i] = total / 2
			if auto == "SAME_LOWER" {
				w.before[i] = total - total/2
			}
			w.after[i] = total - w.before[i]
		default:
			failf("auto_pad %q is not known", auto)
		}
	}
	return w
}

// reach is how many input positions one window spans along axis i.
func (w window) reach(i int) int64 { return w.dilation[i]*(w.kernel[i]-1) + 1 }

// covered is the padded size along axis i that the windows actually touch. It
// is smaller than the padded input when strides leave a rest, and larger in
// ceil mode.
func (w window) covered(i int) int64 { return (w.out[i]-1)*w.stride[i] + w.reach(i) }

// taps calls f with the position inside the kernel of every tap, row-major.
func (w window) taps(f func(tap []int64)) {
	bounded("taps of a kernel", product(w.kernel))
	tap := make([]int64, len(w.kernel))
	for {
		f(tap)
		i := len(tap) - 1
		for ; i >= 0; i-- {
			tap[i]++
			if tap[i] < w.kernel[i] {
				break
			}
			tap[i] = 0
		}
		if i < 0 {
			return
		}
	}
}

// padToWindows pads x so that every window lies inside, dropping what no window
// touches: spatial sizes become covered.
func (o *operation) padToWindows(x value, w window, fill float64) value {
	lead := x.rank() - len(w.in)
	before, after := repeat(0, x.rank()), repeat(0, x.rank())
	for i := range w.in {
		before[lead+i] = w.before[i]
		after[lead+i] = w.covered(i) - w.in[i] - w.before[i]
	}
	return o.pad(x, before, after, fill)
}

// cropFromWindows is the adjoint of padToWindows.
func (o *operation) cropFromWindows(x value, w window) value {
	lead := x.rank() - len(w.in)
	before, after := repeat(0, x.rank()), repeat(0, x.rank())
	for i := range w.in {
		before[lead+i] = -w.before[i]
		after[lead+i] = w.in[i] + w.before[i] - w.covered(i)
	}
	return o.pad(x, before, after, 0)
}

// tap picks, from x padded to its windows, the element that each window sees at
// one position of the kernel: spatial sizes become out.
func (o *operation) tap(padded value, w window, tap []int64) value {
	n := len(w.in)
	axes, starts, ends := make([]int64, n), make([]int64, n), make([]int64, n)
	for i := range n {
		axes[i] = int64(padded.rank() - n + i)
		starts[i] = tap[i] * w.dilation[i]
		ends[i] = starts[i] + (w.out[i]-1)*w.stride[i] + 1
	}
	return o.slice(padded, axes, starts, ends, w.stride)
}

// untap is the adjoint of tap: it places values at one kernel position of every
// window, zero elsewhere. dilated is dilate of the values, shared by all taps.
func (o *operation) untap(dilated value, w window, tap []int64) value {
	lead := dilated.rank() - len(w.in)
	before, after := repeat(0, dilated.rank()), repeat(0, dilated.rank())
	for i := range w.in {
		before[lead+i] = tap[i] * w.dilation[i]
		after[lead+i] = w.covered(i) - before[lead+i] - dilated.shape[lead+i]
	}
	return o.pad(dilated, before, after, 0)
}

// dilate puts stride-1 zeros between neighbours along the spatial axes.
func (o *operation) dilate(x value, w window) value {
	lead := x.rank() - len(w.in)
	for i, s := range w.stride {
		x = o.interleaveZeros(x, lead+i, s)
	}
	return x
}

// interleaveZeros puts step-1 zeros between neighbours along one axis: pad a
// new axis behind it, fold that axis in, and crop the zeros behind the last.
func (e *emitter) interleaveZeros(x value, ax int, step int64) value {
	n := x.shape[ax]
	if step == 1 || n == 1 {
		return x
	}
	apart := e.reshape(x, insert(x.shape, ax+1, 1)...)
	after := repeat(0, apart.rank())
	after[ax+1] = step - 1
	apart = e.pad(apart, repeat(0, apart.rank()), after, 0)
	folded := slices.Clone(x.shape)
	folded[ax] = n * step
	out := e.reshape(apart, folded...)
	return e.slice(out, []int64{int64(ax)}, []int64{0}, []int64{(n-1)*step + 1}, []int64{1})
}
