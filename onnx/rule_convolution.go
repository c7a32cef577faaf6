package onnx

import "math"

var convolutions = family{
	"Conv":          {1, convolution},
	"ConvTranspose": {1, transposedConvolution},
}

// window is how an operator slides over the spatial axes.
type window struct {
	kernel, strides, dilations []int64
	begin, end                 []int64 // padding
	auto                       string  // auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER
	ceil                       bool    // ceil_mode
}

// window reads the attributes that describe a window over n spatial axes.
// kernel is that of the weights, nil if only the attribute says it.
func (o *op) window(n int, kernel []int64) (*window, error) {
	w := &window{kernel: kernel, auto: o.Text("auto_pad", "NOTSET"), ceil: o.Int("ceil_mode", 0) != 0}
	given := o.Ints("kernel_shape")
	if kernel == nil {
		w.kernel = given
	}
	if len(w.kernel) != n {
		return nil, mistake("kernel_shape %v for %d spatial axes", w.kernel, n)
	}
	for i, k := range given {
		if i >= n || k != w.kernel[i] {
			return nil, mistake("kernel_shape %v for weights of %v", given, w.kernel)
		}
	}
	var err error
	if w.strides, err = o.positive("strides", n); err != nil {
		return nil, err
	}
	if w.dilations, err = o.positive("dilations", n); err != nil {
		return nil, err
	}
	for _, k := range w.kernel {
		if k < 1 || k > math.MaxInt32 {
			return nil, mistake("kernel_shape %v", w.kernel)
		}
	}
	pads := o.Ints("pads")
	if pads == nil || w.auto == "VALID" {
		pads = make([]int64, 2*n)
	}
	if len(pads) != 2*n {
		return nil, mistake("pads %v for %d spatial axes: want %d numbers", pads, n, 2*n)
	}
	for _, p := range pads {
		if p < 0 || p > math.MaxInt32 {
			return nil, mistake("pads %v: want 0 to 2³¹", pads)
		}
	}
	w.begin, w.end = pads[:n], pads[n:]
	switch w.auto {
	case "NOTSET", "", "VALID", "SAME_UPPER", "SAME_LOWER":
		return w, nil
	}
	return nil, mistake("auto_pad %q", w.auto)
}

// positive returns a list attribute of n numbers above zero, ones if it is
// absent.
func (o *op) positive(name string, n int) ([]int64, error) {
	list := o.Ints(name)
	if list == nil {
		list = make([]int64, n)
		for i := range list {
			list[i] = 1
		}
	}
	if len(list) != n {
		return nil, mistake("%s %v for %d spatial axes", name, list, n)
	}
	for _, v := range list {
		if v < 1 || v > math.MaxInt32 {
			return nil, mistake("%s %v: want numbers from 1 to 2³¹", name, list)
		}
	}
	return list, nil
}

// size returns how many places the window takes along spatial axis i of d
// elements.
func (w *window) size(i int, d Dim) (Dim, error) {
	stride := w.strides[i]
	if w.auto == "SAME_UPPER" || w.auto == "SAME_LOWER" {
		if stride == 1 {
			return d, nil
		}
		if !d.Known() {
			return anyDim, nil
		}
		return Dim{Value: (d.Value + stride - 1) / stride}, nil
	}
	reach := (w.kernel[i]-1)*w.dilations[i] + 1
	pads := w.begin[i] + w.end[i]
	if !d.Known() {
		if stride == 1 && reach == pads+1 {
			return d, nil // the size is kept, whatever it is
		}
		return anyDim, nil
	}
	room := d.Value + pads - reach
	if room < 0 {
		return anyDim, mistake("a window of %d does not fit %d elements padded by %d", reach, d.Value, pads)
	}
	n := room/stride + 1
	// With ceil_mode a last, partial place counts if it begins inside the input
	// or the padding before it, not in that after it (as PyTorch and, since
	// operator set 22, ONNX say).
	if w.ceil && room%stride != 0 && n*stride < d.Value+w.begin[i] {
		n++
	}
	return Dim{Value: n}, nil
}

// slide returns the shape of what a window yields over x, with the given
// number of channels.
func (w *window) slide(x []Dim, channels Dim) ([]Dim, error) {
	out := append(make([]Dim, 0, len(x)), x[0], channels)
	for i, d := range x[2:] {
		size, err := w.size(i, d)
		if err != nil {
			return nil, err
		}
		out = append(out, size)
	}
	return out, nil
}

// channels checks the operands of a convolution. It returns the spatial shape
// of the weights, and false if a shape is not known enough.
func (o *op) channels() (kernel []int64, group int64, ok bool, err error) {
	if err = o.need(2); err != nil {
		return nil, 0, false, err
	}
	x, w := o.x(0), o.x(1)
	if x.typ != w.typ && x.typ != Undefined && w.typ != Undefined {
		return nil, 0, false, mistake("input of type %v and weights of %v", x.typ, w.typ)
	}
	o.set(0, x.typ, nil)
	group = o.Int("group", 1)
	if group < 1 {
		return nil, 0, false, mistake("group %d", group)
	}
	if x.shape == nil || w.shape == nil {
		return nil, 0, false, nil
	}
	if len(x.shape) < 3 || len(x.shape) != len(w.shape) {
		return nil, 0, false, mistake("input %v and weights %v: want the same rank, of 3 or more", x, w)
	}
	o.set(0, x.typ, anyShape(len(x.shape)))
	kernel, ok = Value{Shape: w.shape[2:]}.Static()
	return kernel, group, ok, nil
}

func convolution(o *op) error {
	kernel, group, ok, err := o.channels()
	if err != nil || !ok {
		return err
	}
	x, w := o.x(0), o.x(1)
	if c, per := x.shape[1], w.shape[1]; c.Known() && per.Known() && (c.Value%group != 0 || c.Value/group != per.Value) {
		return mistake("input %v and weights %v in %d groups: %v channels for %v each", x, w, group, c, per)
	}
	if m := w.shape[0]; m.Known() && m.Value%group != 0 {
		return mistake("weights %v in %d groups", w, group)
	}
	if err := o.bias(w.shape[0]); err != nil {
		return err
	}
	win, err := o.window(len(kernel), kernel)
	if err != nil {
		return err
	}
	shape, err := win.slide(x.shape, w.shape[0])
	if err != nil {
		return err
	}
	o.set(0, x.typ, shape)
	return nil
}

// bias checks input 2, one number a channel.
func (o *op) bias(channels Dim) error {
	b := o.x(2)
	if b == nil || b.shape == nil {
		return nil
	}
	if len(b.shape) != 1 {
		return mistake("bias %v: want a list", b)
	}
	if _, ok := same(b.shape[0], channels); !ok {
		return mistake("bias %v for %v channels", b, channels)
	}
	return nil
}

func transposedConvolution(o *op) error {
	kernel, group, ok, err := o.channels()
	if err != nil || !ok {
		return err
	}
	x, w := o.x(0), o.x(1)
	if _, ok := same(x.shape[1], w.shape[0]); !ok {
		return mistake("input %v and weights %v: %v channels for %v", x, w, x.shape[1], w.shape[0])
	}
	n := len(kernel)
	win, err := o.window(n, kernel)
	if err != nil {
		return err
	}
	extra := o.Ints("output_padding")
	if extra == nil {
		extra = make([]int64, n)
	}
	fixed := o.Ints("output_shape")
	if len(extra) != n || fixed != nil && len(fixed) != n {
		return mistake("output_padding %v, output_shape %v for %d spatial axes", extra, fixed, n)
	}
	channels := anyDim
	if w.shape[1].Known() && w.shape[1].Value < math.MaxInt32 && group < math.MaxInt32 {
		channels = Dim{Value: w.shape[1].Value * group}
	}
	if err := o.bias(channels); err != nil {
		return err
	}
	out := []Dim{x.shape[0], channels}
	for i, d := range x.shape[2:] {
		size := anyDim
		switch {
		case fixed != nil:
			size = Dim{Value: fixed[i]}
		case !d.Known():
		case d.Value > math.MaxInt32:
			return mistake("input %v is too large", x)
		case win.auto == "SAME_UPPER" || win.auto == "SAME_LOWER":
			size = Dim{Value: d.Value * win.strides[i]}
		default:
			size = Dim{Value: win.strides[i]*(d.Value-1) + extra[i] + (win.kernel[i]-1)*win.dilations[i] + 1 - win.begin[i] - win.end[i]}
		}
		if size != anyDim && size.Value < 0 {
			return mistake("pads %v and %v leave nothing of %v", win.begin, win.end, x)
		}
		out = append(out, size)
	}
	o.set(0, x.typ, out)
	return nil
}
