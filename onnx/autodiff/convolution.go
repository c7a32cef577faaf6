package autodiff

import (
	"slices"

	"github.com/vigie/vigie/onnx"
)

// convRule differentiates Conv in any number of spatial dimensions, grouped,
// dilated, strided, with any padding.
func convRule(o *operation) {
	x, weight, d := o.in(0), o.in(1), o.dy()
	w := o.windowOf(weight.shape[2:], x.shape[2:], d.shape[2:])
	group := o.node.Int("group", 1)
	if o.wants(2) {
		o.give(2, o.sumToChannel(2, d))
	}
	if o.wants(1) {
		o.give(1, o.eachRecord(weight, o.kernelGradient(x, d, weight, w, group, o.perExample(weight))))
	}
	if o.wants(0) {
		o.give(0, o.convInputGradient(d, weight, x.shape, w, group))
	}
}

// convTransposeRule: ConvTranspose is the adjoint of Conv, so its input
// gradient is a Conv and its weight gradient that of the Conv with the roles of
// input and output exchanged.
func convTransposeRule(o *operation) {
	x, weight, d := o.in(0), o.in(1), o.dy()
	w := o.transposedWindow(weight.shape[2:], d.shape[2:], x.shape[2:])
	group := o.node.Int("group", 1)
	if o.wants(2) {
		o.give(2, o.sumToChannel(2, d))
	}
	if o.wants(1) {
		o.give(1, o.eachRecord(weight, o.kernelGradient(d, x, weight, w, group, o.perExample(weight))))
	}
	if o.wants(0) {
		// after is set so that exactly x's positions come out (output_padding).
		padded := o.padToWindows(d, w, 0)
		zero := window{kernel: w.kernel, stride: w.stride, dilation: w.dilation, before: repeat(0, len(w.in)), after: repeat(0, len(w.in))}
		o.give(0, o.conv(padded, weight, x.shape, zero, group))
	}
}

// eachRecord sums a parameter's gradient for each row of the batch axis, [rows, …],
// over the rows of each example. Outside per-example requests there is nothing
// to do.
func (o *operation) eachRecord(parameter, g value) value {
	if !o.perExample(parameter) {
		return g
	}
	return o.foldRows(g, o.layouts[o.out(0).name])
}

// transposedWindow reads ConvTranspose's geometry: pads, or auto_pad and
// output_shape from which they follow (operator ConvTranspose-11).
func (o *operation) transposedWindow(kernel, in, out []int64) window {
	w := window{
		kernel: kernel, in: in, out: out,
		stride:   o.intsAttr("strides", repeat(1, len(in))),
		dilation: o.intsAttr("dilations", repeat(1, len(in))),
	}
	pads := o.intsAttr("pads", repeat(0, 2*len(in)))
	w.before, w.after = slices.Clone(pads[:len(in)]), slices.Clone(pads[len(in):])
	auto := o.node.Text("auto_pad", "NOTSET")
	if o.node.Attribute("output_shape") == nil && (auto == "NOTSET" || auto == "" || auto == "VALID") {
		return w
	}
	extra := o.intsAttr("output_padding", repeat(0, len(in)))
	for i := range in {
		total := w.covered(i) + extra[i] - in[i]
		w.before[i] = total / 2
		if auto != "SAME_UPPER" {
			w.before[i] = total - total/2
		}
		w.after[i] = total - w.before[i]
	}
	return w
}

func (o *operation) allButChannel(bias value, rank int) []int64 {
	var axes []int64
	for i := range rank {
		if i != 1 && !(i == 0 && o.perExample(bias)) {
			axes = append(axes, int64(i))
		}
	}
	return axes
}

// kernelGradient is the weight gradient: the input unfolded into one column per
// output position (Pad, one Slice per kernel tap, Concat), times dy. The batched
// product holds the gradient of every example before they are summed.
//
// x is [N, C, in…], d is [N, O, out…], the kernel [O, C/group, kernel…].
func (o *operation) kernelGradient(x, d, kernel value, w window, group int64, perExample bool) value {
	if w.sharesUnfolding(x.shape[1], d.shape[1], group) {
		return o.sharedKernelGradient(x, d, kernel, w, perExample)
	}
	n, c, out := x.shape[0], x.shape[1], d.shape[1]
	cg, og, positions := c/group, out/group, product(w.out)
	columns, k := o.unfold(x, w, group), product(w.kernel)
	dd := o.reshape(d, n, group, og, positions)
	var g value
	if group == 1 {
		columns, dd = o.reshape(columns, n, k*cg, positions), o.reshape(dd, n, og, positions)
	}
	g = o.matmul(dd, columns, false, true) // [N, group, O/group, taps·C/group]
	if !perExample {
		g = o.sum(g, []int64{0}, false)
		g = o.reshape(g, out, k, cg)
		return o.reshape(o.transpose(g, 0, 2, 1), kernel.shape...)
	}
	g = o.reshape(g, n, out, k, cg)
	return o.reshape(o.transpose(g, 0, 1, 3, 2), append([]int64{n}, kernel.shape...)...)
}

// unfold copies what each window of x sees into a column: [N, group,
// taps·C/group, positions].
func (o *operation) unfold(x value, w window, group int64) value {
	padded := o.padToWindows(x, w, 0)
	var taps []value
	w.taps(func(tap []int64) {
		taps = append(taps, o.reshape(o.tap(padded, w, tap), x.shape[0], group, x.shape[1]/group, product(w.out)))
	})
	return o.concat(2, taps...)
}

// sharesUnfolding says whether sharedKernelGradient applies and copies less.
func (w window) sharesUnfolding(in, out, group int64) bool {
	return group == 1 && len(w.in) > 1 && w.kernel[0] > 1 && w.stride[0] == 1 && out < 2*in
}

// sharedKernelGradient unfolds x along all spatial axes but the first, and dy
// along the first, by shifting it against x. Of a 3×3 kernel each side is
// copied three times instead of one side nine times, and one product of
// [3·O, rows] and [3·C, rows] has the shape that matrix kernels like.
//
// ∂W[o,c,i,j] = Σ dy[o, p]·x[c, p + i, j] = Σ dy[o, q - i]·x[c, q, j], where q
// runs over all padded rows and dy is zero outside its own.
func (o *operation) sharedKernelGradient(x, d, kernel value, w window, perExample bool) value {
	n, c, out := x.shape[0], x.shape[1], d.shape[1]
	rows := w.covered(0)
	padded := o.padToWindows(x, w, 0)
	across := window{kernel: w.kernel[1:], stride: w.stride[1:], dilation: w.dilation[1:], in: w.in[1:], out: w.out[1:]}
	var columns, shifted []value
	across.taps(func(tap []int64) { columns = append(columns, o.tap(padded, across, tap)) })
	for i := range w.kernel[0] {
		before, after := repeat(0, d.rank()), repeat(0, d.rank())
		before[2] = i * w.dilation[0]
		after[2] = rows - d.shape[2] - before[2]
		shifted = append(shifted, o.pad(d, before, after, 0))
	}
	positions := rows * product(across.out)
	left := o.reshape(o.concat(1, shifted...), n, w.kernel[0]*out, positions)
	right := o.reshape(o.concat(1, columns...), n, int64(len(columns))*c, positions)
	g := o.matmul(left, right, false, true) // [N, rows of the kernel·O, columns of the kernel·C]
	if !perExample {
		g = o.reshape(o.sum(g, []int64{0}, false), w.kernel[0], out, int64(len(columns)), c)
		return o.reshape(o.transpose(g, 1, 3, 0, 2), kernel.shape...)
	}
	g = o.reshape(g, n, w.kernel[0], out, int64(len(columns)), c)
	return o.reshape(o.transpose(g, 0, 2, 4, 1, 3), append([]int64{n}, kernel.shape...)...)
}

// convInputGradient: with stride 1 the gradient is itself a convolution, with
// the kernel's taps reversed and its channels exchanged, and runs as fast as
// the forward one. With larger strides it is a ConvTranspose.
func (o *operation) convInputGradient(d, weight value, xShape []int64, w window, group int64) value {
	strided := slices.ContainsFunc(w.stride, func(s int64) bool { return s != 1 })
	if strided {
		return o.convTranspose(d, weight, xShape, w, group)
	}
	n := len(w.in)
	og, cg := weight.shape[0]/group, weight.shape[1]
	kernel := o.reshape(weight, append([]int64{group, og, cg}, w.kernel...)...)
	perm := append([]int64{0, 2, 1}, make([]int64, n)...)
	spatial := make([]int64, n)
	for i := range n {
		perm[3+i] = int64(3 + i)
		spatial[i] = int64(2 + i)
	}
	kernel = o.reshape(o.transpose(kernel, perm...), append([]int64{group * cg, og}, w.kernel...)...)
	kernel = o.flip(kernel, spatial...)
	back := window{
		kernel: w.kernel, stride: w.stride, dilation: w.dilation,
		before: make([]int64, n), after: make([]int64, n),
	}
	cropBefore, cropAfter := repeat(0, 2+n), repeat(0, 2+n)
	for i := range n {
		back.before[i] = w.reach(i) - 1 - w.before[i]
		back.after[i] = w.in[i] + w.reach(i) - 1 - w.out[i] - back.before[i]
		// Padding beyond the kernel's reach: those outputs never saw x.
		cropBefore[2+i], cropAfter[2+i] = min(0, back.before[i]), min(0, back.after[i])
		back.before[i], back.after[i] = max(0, back.before[i]), max(0, back.after[i])
	}
	return o.conv(o.pad(d, cropBefore, cropAfter, 0), kernel, xShape, back, group)
}

func (o *operation) conv(x, kernel value, shape []int64, w window, group int64) value {
	return o.op("Conv", x.typ, shape, []value{x, kernel},
		onnx.IntsAttribute("kernel_shape", w.kernel...), onnx.IntsAttribute("strides", w.stride...), onnx.IntsAttribute("dilations", w.dilation...),
		onnx.IntsAttribute("pads", append(slices.Clone(w.before), w.after...)...), onnx.IntAttribute("group", group))
}

// convTranspose scatters d back to the covered part of the padded input; what
// lies in the padding is cropped and what no window touched is zero.
func (o *operation) convTranspose(d, weight value, xShape []int64, w window, group int64) value {
	n := len(w.in)
	full := append([]int64{}, xShape[:2]...)
	var before, after []int64
	rest := repeat(0, 2+n)
	for i := range n {
		p := w.covered(i) - w.in[i] - w.before[i] // padding that windows touched behind
		b, a := w.before[i], max(0, p)
		before, after = append(before, b), append(after, a)
		full = append(full, w.covered(i)-b-a)
		rest[2+i] = max(0, -p)
	}
	attrs := []onnx.Attribute{
		onnx.IntsAttribute("kernel_shape", w.kernel...), onnx.IntsAttribute("strides", w.stride...), onnx.IntsAttribute("dilations", w.dilation...),
		onnx.IntsAttribute("pads", append(before, after...)...), onnx.IntAttribute("group", group),
	}
	y := o.op("ConvTranspose", d.typ, full, []value{d, weight}, attrs...)
	return o.pad(y, repeat(0, 2+n), rest, 0)
}
