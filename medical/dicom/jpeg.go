package dicom

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/color"
	"image/jpeg"
)

// jpegHeader is what the markers before the first scan say.
type jpegHeader struct {
	rows, columns int
	components    int
	marked        bool // JFIF or Adobe says how colour is coded
}

// scanJPEG reads the markers of a baseline JPEG. Progressive and other
// processes are refused: they are other transfer syntaxes, and cost memory
// before the first pixel.
func scanJPEG(data []byte) (jpegHeader, error) {
	var h jpegHeader
	if !bytes.HasPrefix(data, []byte{0xFF, 0xD8}) {
		return h, pixelError(PixelData, "no JPEG image begins here")
	}
	for at := 2; at+4 <= len(data); {
		if data[at] != 0xFF {
			return h, pixelError(PixelData, "no JPEG marker at byte %d", at)
		}
		marker := data[at+1]
		if marker == 0xFF {
			at++
			continue
		}
		length := int(binary.BigEndian.Uint16(data[at+2:]))
		if length < 2 || at+2+length > len(data) {
			return h, pixelError(PixelData, "a JPEG segment is longer than its frame")
		}
		segment := data[at+4 : at+2+length]
		switch {
		case marker == 0xC0 || marker == 0xC1: // baseline or extended sequential
			if len(segment) < 6 || segment[0] != 8 {
				return h, pixelError(PixelData, "a JPEG of other than 8 bits in the baseline syntax")
			}
			h.rows = int(binary.BigEndian.Uint16(segment[1:]))
			h.columns = int(binary.BigEndian.Uint16(segment[3:]))
			h.components = int(segment[5])
		case marker > 0xC1 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC:
			return h, pixelError(PixelData, "JPEG process %X in the baseline syntax", marker)
		case marker == 0xE0 && bytes.HasPrefix(segment, []byte("JFIF\x00")), marker == 0xEE && bytes.HasPrefix(segment, []byte("Adobe")):
			h.marked = true
		case marker == 0xDA:
			if h.rows == 0 {
				return h, pixelError(PixelData, "a JPEG scan before its frame header")
			}
			return h, nil
		}
		at += 2 + length
	}
	return h, pixelError(PixelData, "a JPEG without a scan")
}

// jpeg decodes a frame of JPEG Baseline (process 1). Colour comes out as RGB.
func (g *geometry) jpeg(data []byte) (*Frame, error) {
	if g.Allocated != 8 {
		return nil, pixelError(BitsAllocated, "%d bits a sample in baseline JPEG", g.Allocated)
	}
	h, err := scanJPEG(data)
	if err != nil {
		return nil, err
	}
	if h.rows != g.Rows || h.columns != g.Columns || h.components != g.Samples {
		return nil, pixelError(PixelData, "a JPEG of %d × %d × %d where %d × %d × %d was described", h.columns, h.rows, h.components, g.Columns, g.Rows, g.Samples)
	}
	// A block of 64 samples takes at least two bits: a DC code and an end.
	if int64(g.Rows)*int64(g.Columns) > 256*int64(len(data)) {
		return nil, pixelError(PixelData, "%d bytes of JPEG cannot hold %d × %d pixels", len(data), g.Columns, g.Rows)
	}
	decoded, err := jpeg.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, pixelError(PixelData, "corrupt JPEG: %v", err)
	}
	frame := g.Frame
	switch m := decoded.(type) {
	case *image.Gray:
		frame.Data = grayBytes(m, g.Rows, g.Columns)
	case *image.YCbCr:
		// Without a marker, decoders take three components for YCbCr; DICOM's
		// own label knows better (PS3.5 8.2.1).
		raw := g.Photometric == "RGB" && !h.marked
		frame.Data, frame.Photometric = colourBytes(m, g.Rows, g.Columns, raw), "RGB"
	case *image.RGBA:
		frame.Data, frame.Photometric = rgbBytes(m, g.Rows, g.Columns), "RGB"
	default:
		return nil, pixelError(PixelData, "a JPEG of an unexpected colour model")
	}
	return &frame, nil
}

func grayBytes(m *image.Gray, rows, columns int) []byte {
	out := make([]byte, 0, rows*columns)
	for y := range rows {
		out = append(out, m.Pix[y*m.Stride:y*m.Stride+columns]...)
	}
	return out
}

func colourBytes(m *image.YCbCr, rows, columns int, raw bool) []byte {
	out := make([]byte, 0, rows*columns*3)
	for y := range rows {
		for x := range columns {
			c := m.COffset(x, y)
			r, g, b := m.Y[m.YOffset(x, y)], m.Cb[c], m.Cr[c]
			if !raw {
				r, g, b = color.YCbCrToRGB(r, g, b)
			}
			out = append(out, r, g, b)
		}
	}
	return out
}

func rgbBytes(m *image.RGBA, rows, columns int) []byte {
	out := make([]byte, 0, rows*columns*3)
	for y := range rows {
		line := m.Pix[y*m.Stride:]
		for x := range columns {
			out = append(out, line[4*x], line[4*x+1], line[4*x+2])
		}
	}
	return out
}
