package dicom

import "encoding/binary"

// The weights of red, green and blue in luma (ITU-R BT.601), which YBR_FULL's
// Y has too (PS3.3 C.7.6.3.1.2).
const (
	lumaRed   = 0.299
	lumaGreen = 0.587
	lumaBlue  = 0.114
)

// colourLuma computes the luma of a frame of three samples a pixel.
func colourLuma(frame *Frame, out []float32) error {
	value := frame.reader()
	top := float32(uint64(1)<<frame.Stored - 1)
	sample := func(i int) float32 { return float32(value(uint32(frame.Data[i]))) }
	switch frame.Allocated {
	case 16:
		sample = func(i int) float32 { return float32(value(uint32(binary.LittleEndian.Uint16(frame.Data[2*i:])))) }
	case 32:
		sample = func(i int) float32 { return float32(value(binary.LittleEndian.Uint32(frame.Data[4*i:]))) }
	}
	var luma func(i int) float32
	switch frame.Photometric {
	case "RGB":
		luma = func(i int) float32 {
			return (lumaRed*sample(i) + lumaGreen*sample(i+1) + lumaBlue*sample(i+2)) / top
		}
	case "YBR_FULL":
		luma = func(i int) float32 { return sample(i) / top }
	case "YBR_PARTIAL_422": // Y from 16 to 235 of 255
		luma = func(i int) float32 { return (sample(i)/top*255 - 16) / 219 }
	default:
		return pixelError(PhotometricInterpretation, "%s pixels in %d samples", frame.Photometric, frame.Samples)
	}
	for i := range out {
		out[i] = min(max(luma(3*i), 0), 1)
	}
	return nil
}

// paletteLuma computes the luma of indices into colour tables (PS3.3
// C.7.6.3.1.5, C.7.9).
func (f *File) paletteLuma(frame *Frame, out []float32) error {
	if frame.Allocated > 16 {
		return pixelError(BitsAllocated, "palette indices of %d bits", frame.Allocated)
	}
	weights := [3]float32{lumaRed, lumaGreen, lumaBlue}
	descriptors := [3]Tag{RedPaletteColorLookupTableDescriptor, GreenPaletteColorLookupTableDescriptor, BluePaletteColorLookupTableDescriptor}
	data := [3]Tag{RedPaletteColorLookupTableData, GreenPaletteColorLookupTableData, BluePaletteColorLookupTableData}
	if f.DataSet.Has(SegmentedRedPaletteColorLookupTableData) {
		return pixelError(SegmentedRedPaletteColorLookupTableData, "segmented palettes are not read")
	}
	var tables [3]*lut
	for i := range tables {
		var err error
		if tables[i], err = readTable(f.DataSet, descriptors[i], data[i], frame.Signed); err != nil {
			return err
		}
	}
	value := frame.reader()
	lookup := make([]float32, 1<<frame.Allocated)
	for cell := range lookup {
		stored := int(value(uint32(cell)))
		for i, table := range tables {
			top := float32(uint32(1)<<table.bits - 1)
			lookup[cell] += weights[i] * float32(table.at(stored)) / top
		}
		lookup[cell] = min(lookup[cell], 1)
	}
	for i := range out {
		cell := int(frame.Data[i*frame.Allocated/8])
		if frame.Allocated == 16 {
			cell |= int(frame.Data[2*i+1]) << 8
		}
		out[i] = lookup[cell]
	}
	return nil
}
