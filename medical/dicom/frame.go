package dicom

import (
	"fmt"
)

// Frame is one decoded frame: Rows*Columns pixels of Samples samples each.
type Frame struct {
	Index         int
	Rows, Columns int
	Samples       int    // 1 (grayscale, palette) or 3
	Allocated     int    // bits of a sample in Data: 8, 16 or 32
	Stored        int    // bits of them that count
	High          int    // position of the most significant of those
	Signed        bool   // two's complement in the stored bits
	Photometric   string // photometric interpretation of Data: MONOCHROME1, MONOCHROME2, PALETTE COLOR, RGB, YBR_FULL, YBR_PARTIAL_422
	Data          []byte // little endian, row-major, the samples of a pixel side by side; may alias the file's value: do not change
}

// Values returns the stored values, row-major, the samples of a pixel side by
// side: bits beyond the stored ones (overlays) removed, sign extended.
func (f *Frame) Values() []int32 {
	out := make([]int32, f.Rows*f.Columns*f.Samples)
	value := f.reader()
	switch f.Allocated {
	case 8:
		for i := range out {
			out[i] = value(uint32(f.Data[i]))
		}
	case 16:
		for i := range out {
			out[i] = value(uint32(f.Data[2*i]) | uint32(f.Data[2*i+1])<<8)
		}
	case 32:
		for i := range out {
			p := f.Data[4*i : 4*i+4]
			out[i] = value(uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24)
		}
	}
	return out
}

// reader returns how the bits of a cell become a stored value (PS3.5 8.1.1).
// Unsigned 32-bit values above the largest int32 saturate.
func (f *Frame) reader() func(cell uint32) int32 {
	drop := uint(31 - f.High)
	keep := uint(32 - f.Stored)
	if f.Signed {
		return func(cell uint32) int32 { return int32(cell<<drop) >> keep }
	}
	return func(cell uint32) int32 { return int32(min(cell<<drop>>keep, 1<<31-1)) }
}

// geometry is the image pixel description (PS3.3 C.7.6.3), checked.
type geometry struct {
	Frame
	frames int
	planar bool // samples of one kind side by side
	half   bool // native YBR_FULL_422: two pixels share their chroma
}

func pixelError(tag Tag, format string, arguments ...any) error {
	return fmt.Errorf("dicom: reading pixels, %s: %w: %s", tag, ErrPixels, fmt.Sprintf(format, arguments...))
}

// Frames returns the number of frames: 1 unless (0028,0008) says otherwise.
func (d *DataSet) Frames() int {
	if d.Empty(NumberOfFrames) {
		return 1
	}
	n, _ := d.Int(NumberOfFrames)
	return int(n)
}

func (f *File) geometry(limits Limits) (geometry, error) {
	d := f.DataSet
	var g geometry
	number := func(tag Tag, low, high, otherwise int64) (int, error) {
		if d.Empty(tag) && otherwise >= 0 {
			return int(otherwise), nil
		}
		n, ok := d.Int(tag)
		if !ok {
			return 0, pixelError(tag, "missing or not a number")
		}
		if n < low || n > high {
			return 0, pixelError(tag, "%d is outside %d to %d", n, low, high)
		}
		return int(n), nil
	}
	var planar, signed int
	for _, field := range []struct {
		into                 *int
		tag                  Tag
		low, high, otherwise int64
	}{
		{&g.Rows, Rows, 1, 65535, -1},
		{&g.Columns, Columns, 1, 65535, -1},
		{&g.Samples, SamplesPerPixel, 1, 3, 1},
		{&g.Allocated, BitsAllocated, 1, 32, -1},
		{&g.frames, NumberOfFrames, 1, 1 << 31, 1},
		{&planar, PlanarConfiguration, 0, 1, 0},
		{&signed, PixelRepresentation, 0, 1, 0},
	} {
		var err error
		if *field.into, err = number(field.tag, field.low, field.high, field.otherwise); err != nil {
			return g, err
		}
	}
	switch g.Allocated {
	case 1, 8, 16, 32:
	default:
		return g, pixelError(BitsAllocated, "%d bits a sample; 1, 8, 16 and 32 are read", g.Allocated)
	}
	var err error
	if g.Stored, err = number(BitsStored, 1, int64(g.Allocated), int64(g.Allocated)); err != nil {
		return g, err
	}
	if g.High, err = number(HighBit, int64(g.Stored-1), int64(g.Allocated-1), int64(g.Stored-1)); err != nil {
		return g, err
	}
	g.planar, g.Signed = planar == 1, signed == 1
	g.Photometric = d.String(PhotometricInterpretation)
	if err := g.photometric(); err != nil {
		return g, err
	}
	if size := int64(g.Rows) * int64(g.Columns) * int64(g.Samples) * int64(max(g.Allocated, 8)/8); size > limits.Frame {
		return g, fmt.Errorf("dicom: reading pixels: %w: a frame of %d × %d pixels takes %d bytes, %d are allowed", ErrLimit, g.Columns, g.Rows, size, limits.Frame)
	}
	return g, nil
}

// photometric checks that the interpretation is known and fits the samples.
func (g *geometry) photometric() error {
	samples := 3
	switch g.Photometric {
	case "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR":
		samples = 1
	case "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT":
	case "":
		return pixelError(PhotometricInterpretation, "missing")
	default:
		return pixelError(PhotometricInterpretation, "not one that is read: grayscale, PALETTE COLOR, RGB and YBR are")
	}
	if samples != g.Samples {
		return pixelError(SamplesPerPixel, "%d, but %s has %d", g.Samples, g.Photometric, samples)
	}
	if samples == 3 && g.Allocated == 1 {
		return pixelError(BitsAllocated, "colour with one bit a sample")
	}
	return nil
}

// bytes is the size of a decoded frame whose cells have whole bytes.
func (g *geometry) bytes() int { return g.Rows * g.Columns * g.Samples * (g.Allocated / 8) }

// Frame decodes the frame of that index, from 0. ErrPixels: the pixel data are
// missing or contradict their description. ErrTransferSyntax: no decoder.
// ErrLimit: larger than limits.Frame.
func (f *File) Frame(index int, limits Limits) (*Frame, error) {
	limits = limits.withDefaults()
	ts, known := SyntaxOf(f.TransferSyntax)
	if !known || !ts.Decodable {
		return nil, undecodable(f.TransferSyntax)
	}
	pixels := f.DataSet.Get(PixelData)
	if pixels == nil {
		for _, other := range []Tag{FloatPixelData, DoubleFloatPixelData} {
			if f.DataSet.Has(other) {
				return nil, pixelError(other, "floating point pixels are not read")
			}
		}
		return nil, pixelError(PixelData, "missing")
	}
	g, err := f.geometry(limits)
	if err != nil {
		return nil, err
	}
	if index < 0 || index >= g.frames {
		return nil, pixelError(NumberOfFrames, "frame %d asked, but there are %d", index+1, g.frames)
	}
	g.Index = index
	if ts.BigEndian && g.Allocated == 32 {
		// Some swap whole cells, some the words of OW (PS3.5 7.3): guessing
		// would show a wrong image.
		return nil, pixelError(BitsAllocated, "32-bit cells in big endian, whose word order implementations disagree on")
	}
	if pixels.Fragments == nil {
		if ts.Encapsulated {
			return nil, pixelError(PixelData, "native in %s", ts.Name)
		}
		return g.native(pixels.Value)
	}
	if !ts.Encapsulated {
		return nil, pixelError(PixelData, "encapsulated in %s", ts.Name)
	}
	data, err := f.fragmentsOf(pixels, index, g.frames)
	if err != nil {
		return nil, err
	}
	switch ts.UID {
	case RLELossless:
		return g.rle(data)
	case JPEGBaseline:
		return g.jpeg(data)
	default: // encapsulated uncompressed
		g.Index, g.frames = 0, 1
		frame, err := g.native(data)
		if err == nil {
			frame.Index = index
		}
		return frame, err
	}
}

// native cuts frame g.Index out of uncompressed pixel data (PS3.5 8.1.1, 8.2).
func (g *geometry) native(value []byte) (*Frame, error) {
	if g.Allocated == 1 {
		return g.unpack(value)
	}
	size := g.bytes()
	switch g.Photometric {
	case "YBR_FULL_422", "YBR_PARTIAL_422":
		if g.Allocated != 8 || g.Columns%2 == 1 || g.planar {
			return nil, pixelError(PhotometricInterpretation, "%s needs 8 bits, even columns and interleaved samples", g.Photometric)
		}
		g.half = true
		size = g.Rows * g.Columns * 2
	case "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT":
		return nil, pixelError(PhotometricInterpretation, "%s in native pixel data", g.Photometric)
	}
	total := int64(size) * int64(g.frames)
	if int64(len(value)) < total {
		return nil, pixelError(PixelData, "%d bytes, but %d frames of %d × %d need %d", len(value), g.frames, g.Columns, g.Rows, total)
	}
	if rest := value[total:]; len(rest) > 1 && !zero(rest) {
		return nil, pixelError(PixelData, "%d bytes, but %d frames of %d × %d need only %d", len(value), g.frames, g.Columns, g.Rows, total)
	}
	frame := g.Frame
	frame.Data = value[g.Index*size : (g.Index+1)*size : (g.Index+1)*size]
	switch {
	case g.half:
		frame.Data = expand422(frame.Data)
		if g.Photometric == "YBR_FULL_422" {
			frame.Photometric = "YBR_FULL"
		}
	case g.planar && g.Samples == 3:
		frame.Data = interleave(frame.Data, g.Allocated/8)
	}
	return &frame, nil
}

// unpack spreads one-bit cells, first pixel in the lowest bit, over bytes.
// Frames follow each other without padding between (PS3.5 8.1.1).
func (g *geometry) unpack(value []byte) (*Frame, error) {
	count := g.Rows * g.Columns
	if need := (int64(count)*int64(g.frames) + 7) / 8; int64(len(value)) < need {
		return nil, pixelError(PixelData, "%d bytes, but %d frames of %d × %d bits need %d", len(value), g.frames, g.Columns, g.Rows, need)
	}
	frame := g.Frame
	frame.Allocated, frame.Stored, frame.High, frame.Signed = 8, 1, 0, false
	frame.Data = make([]byte, count)
	first := g.Index * count
	for i := range frame.Data {
		bit := first + i
		frame.Data[i] = value[bit>>3] >> (bit & 7) & 1
	}
	return &frame, nil
}

// interleave turns three planes of cells of that many bytes into pixels.
func interleave(planes []byte, cell int) []byte {
	out := make([]byte, len(planes))
	plane := len(planes) / 3
	for s := range 3 {
		in := planes[s*plane : (s+1)*plane]
		for i := 0; i+cell <= plane; i += cell {
			copy(out[3*i+s*cell:3*i+(s+1)*cell], in[i:i+cell])
		}
	}
	return out
}

// expand422 gives every pixel its chroma: Y Y B R becomes Y B R, Y B R.
func expand422(half []byte) []byte {
	out := make([]byte, 0, len(half)/2*3)
	for ; len(half) >= 4; half = half[4:] {
		y0, y1, b, r := half[0], half[1], half[2], half[3]
		out = append(out, y0, b, r, y1, b, r)
	}
	return out
}
