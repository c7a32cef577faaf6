package dicom

import (
	"math"
)

// Luminance is one frame as a person is meant to see it: 0 is the darkest, 1
// the brightest the display shows.
type Luminance struct {
	Rows, Columns int
	Values        []float32 // row-major, Rows*Columns, 0..1
	// Stretched says that the file has no window, so that the frame's own darkest
	// and brightest values set the scale: one pixel can change all others.
	Stretched bool
}

// At returns the value at a row and column.
func (l *Luminance) At(row, column int) float32 { return l.Values[row*l.Columns+column] }

// Luminance decodes a frame, from 0, and takes it through the grayscale
// pipeline of PS3.4 N.2 with default Limits. See LuminanceOf.
func (f *File) Luminance(frame int) (*Luminance, error) {
	decoded, err := f.Frame(frame, Limits{})
	if err != nil {
		return nil, err
	}
	return f.LuminanceOf(decoded)
}

// LuminanceOf takes a decoded frame of f through the grayscale pipeline:
//
//   - modality LUT (PS3.3 C.11.1): the LUT sequence, else slope and intercept;
//   - VOI LUT (C.11.2): the first LUT of the sequence, else the first window,
//     by the LINEAR, LINEAR_EXACT or SIGMOID function; a window whose width
//     makes no sense counts as none; with none, the range from the smallest to
//     the largest value of the frame, pixel padding left out;
//   - presentation: MONOCHROME1 or a PresentationLUTShape of INVERSE inverts.
//     Pixel padding is black.
//
// The functional groups of enhanced multi-frame objects are looked into.
// Colour becomes luma (ITU-R BT.601). ErrPixels: a table contradicts its
// descriptor.
func (f *File) LuminanceOf(frame *Frame) (*Luminance, error) {
	out := &Luminance{Rows: frame.Rows, Columns: frame.Columns, Values: make([]float32, frame.Rows*frame.Columns)}
	switch {
	case frame.Photometric == "PALETTE COLOR":
		return out, f.paletteLuma(frame, out.Values)
	case frame.Samples == 3:
		return out, colourLuma(frame, out.Values)
	}
	p, err := f.pipeline(frame)
	if err != nil {
		return nil, err
	}
	p.apply(frame, out.Values)
	out.Stretched = p.stretched
	return out, nil
}

// pipeline maps stored values to luminance.
type pipeline struct {
	modality func(float64) float64
	voi      func(float64) float64 // to 0..1
	invert   bool
	// stretched: voi is the frame's own range
	stretched bool
	padded    func(int32) bool
}

func (p *pipeline) luminance(stored int32) float32 {
	if p.padded(stored) {
		return 0
	}
	y := p.voi(p.modality(float64(stored)))
	if p.invert {
		y = 1 - y
	}
	return float32(min(max(y, 0), 1))
}

func (f *File) pipeline(frame *Frame) (*pipeline, error) {
	d := f.DataSet
	p := &pipeline{padded: padding(d, frame)}
	var err error
	if p.modality, err = modalityOf(f.functional(PixelValueTransformationSequence, frame.Index), frame); err != nil {
		return nil, err
	}
	p.voi, err = voiOf(f.functional(FrameVOILUTSequence, frame.Index), frame)
	if err != nil {
		return nil, err
	}
	if p.voi == nil {
		p.voi, p.stretched = p.fullRange(frame), true
	}
	p.invert = frame.Photometric == "MONOCHROME1" || d.String(PresentationLUTShape) == "INVERSE"
	return p, nil
}

// functional returns the data set that holds a frame's attributes: the item of
// its functional group (PS3.3 C.7.6.16), shared or its own, else the data set.
func (f *File) functional(group Tag, frame int) *DataSet {
	if items := f.DataSet.Items(PerFrameFunctionalGroupsSequence); frame < len(items) {
		if item := items[frame].Item(group); item != nil {
			return item
		}
	}
	if item := f.DataSet.Item(SharedFunctionalGroupsSequence).Item(group); item != nil {
		return item
	}
	return f.DataSet
}

// padding returns whether a stored value is pixel padding (PS3.3 C.7.5.1.1.2).
func padding(d *DataSet, frame *Frame) func(int32) bool {
	low, ok := d.stored(PixelPaddingValue, frame)
	if !ok {
		return func(int32) bool { return false }
	}
	high := low
	if limit, ok := d.stored(PixelPaddingRangeLimit, frame); ok {
		low, high = min(low, limit), max(high, limit)
	}
	return func(v int32) bool { return v >= low && v <= high }
}

// stored reads an attribute that is US or SS as the pixels are, whichever VR
// the file gives it.
func (d *DataSet) stored(tag Tag, frame *Frame) (int32, bool) {
	n, ok := d.Int(tag)
	if !ok {
		return 0, false
	}
	if frame.Signed {
		return int32(int16(n)), true
	}
	return int32(uint16(n)), true
}

func modalityOf(d *DataSet, frame *Frame) (func(float64) float64, error) {
	if item := d.Item(ModalityLUTSequence); item != nil {
		table, err := readLUT(item, frame.Signed)
		if err != nil {
			return nil, err
		}
		return func(v float64) float64 { return float64(table.at(int(v))) }, nil
	}
	slope, ok := d.Float(RescaleSlope)
	if !ok {
		return func(v float64) float64 { return v }, nil
	}
	intercept, _ := d.Float(RescaleIntercept)
	return func(v float64) float64 { return slope*v + intercept }, nil
}

// voiOf returns nil when the data set names no usable VOI.
func voiOf(d *DataSet, frame *Frame) (func(float64) float64, error) {
	if item := d.Item(VOILUTSequence); item != nil {
		// The input of the table is signed when modality values can be.
		intercept, _ := d.Float(RescaleIntercept)
		table, err := readLUT(item, frame.Signed || intercept < 0)
		if err != nil {
			return nil, err
		}
		top := float64(uint64(1)<<table.bits - 1)
		return func(v float64) float64 { return float64(table.at(int(math.Floor(v+0.5)))) / top }, nil
	}
	center, ok := d.Float(WindowCenter)
	if !ok {
		return nil, nil
	}
	width, ok := d.Float(WindowWidth)
	if !ok {
		return nil, nil
	}
	return window(d.String(VOILUTFunction), center, width), nil
}

// window returns the functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, scaled to
// 0..1, or nil for a width outside their domain.
func window(function string, c, w float64) func(float64) float64 {
	switch {
	case function == "SIGMOID" && w > 0:
		return func(x float64) float64 { return 1 / (1 + math.Exp(-4*(x-c)/w)) }
	case function == "LINEAR_EXACT" && w > 0:
		return func(x float64) float64 { return min(max((x-c)/w+0.5, 0), 1) }
	case function == "SIGMOID", function == "LINEAR_EXACT":
		return nil
	case w == 1:
		return func(x float64) float64 {
			if x <= c-0.5 {
				return 0
			}
			return 1
		}
	case w > 1:
		return func(x float64) float64 { return min(max((x-(c-0.5))/(w-1)+0.5, 0), 1) }
	}
	return nil
}

// fullRange spreads the values of the frame over 0..1.
func (p *pipeline) fullRange(frame *Frame) func(float64) float64 {
	low, high := math.Inf(1), math.Inf(-1)
	see := func(stored int32) {
		if !p.padded(stored) {
			v := p.modality(float64(stored))
			low, high = min(low, v), max(high, v)
		}
	}
	if frame.Allocated <= 16 {
		value := frame.reader()
		for cell, there := range frame.histogram() {
			if there {
				see(value(uint32(cell)))
			}
		}
	} else {
		for _, v := range frame.Values() {
			see(v)
		}
	}
	if !(high > low) {
		return func(float64) float64 { return 0 }
	}
	return func(v float64) float64 { return (v - low) / (high - low) }
}

// histogram tells which cells of up to 16 bits occur.
func (f *Frame) histogram() []bool {
	there := make([]bool, 1<<f.Allocated)
	if f.Allocated == 8 {
		for _, b := range f.Data {
			there[b] = true
		}
		return there
	}
	for i := 0; i+2 <= len(f.Data); i += 2 {
		there[uint16(f.Data[i])|uint16(f.Data[i+1])<<8] = true
	}
	return there
}

// apply computes the luminance of every pixel. Cells of up to 16 bits go
// through a table of all their values: 65,536 evaluations instead of millions.
func (p *pipeline) apply(frame *Frame, out []float32) {
	value := frame.reader()
	if frame.Allocated > 16 {
		for i, v := range frame.Values() {
			out[i] = p.luminance(v)
		}
		return
	}
	table := make([]float32, 1<<frame.Allocated)
	for cell := range table {
		table[cell] = p.luminance(value(uint32(cell)))
	}
	if frame.Allocated == 8 {
		lookup := (*[256]float32)(table)
		for i := range out {
			out[i] = lookup[frame.Data[i]]
		}
		return
	}
	lookup := (*[1 << 16]float32)(table)
	data := frame.Data[:2*len(out)]
	for i := range out {
		out[i] = lookup[uint16(data[2*i])|uint16(data[2*i+1])<<8]
	}
}
