package dicom

import "encoding/binary"

// rle decodes a frame of RLE Lossless (PS3.5 annex G): a segment for each byte
// of each sample, most significant byte first, each a run-length coded plane.
func (g *geometry) rle(data []byte) (*Frame, error) {
	if g.Allocated == 1 {
		return nil, pixelError(BitsAllocated, "RLE with one bit a sample")
	}
	cell := g.Allocated / 8
	segments := g.Samples * cell
	plane := g.Rows * g.Columns
	// A pair of bytes makes at most 128: what claims more is not worth an
	// allocation.
	if len(data) < 64 || int64(g.bytes()) > 64*int64(len(data)) {
		return nil, pixelError(PixelData, "%d bytes of RLE cannot hold %d × %d pixels", len(data), g.Columns, g.Rows)
	}
	if n := binary.LittleEndian.Uint32(data); int64(n) != int64(segments) {
		return nil, pixelError(PixelData, "%d RLE segments where %d samples of %d bits need %d", n, g.Samples, g.Allocated, segments)
	}
	frame := g.Frame
	frame.Data = make([]byte, g.bytes())
	for s := range segments {
		start := int64(binary.LittleEndian.Uint32(data[4+4*s:]))
		end := int64(len(data))
		if s+1 < segments {
			end = int64(binary.LittleEndian.Uint32(data[8+4*s:]))
		}
		if start < 64 || end < start || end > int64(len(data)) {
			return nil, pixelError(PixelData, "RLE segment %d lies outside its frame", s+1)
		}
		sample, byteOf := s/cell, cell-1-s%cell
		if n := unpackBits(frame.Data, sample*cell+byteOf, g.Samples*cell, plane, data[start:end]); n < plane {
			return nil, pixelError(PixelData, "RLE segment %d ends after %d of %d pixels", s+1, n, plane)
		}
	}
	frame.normalizeYBR()
	return &frame, nil
}

// normalizeYBR names full-resolution chroma: RLE and JPEG decoders deliver
// every sample of every pixel whatever the label says.
func (f *Frame) normalizeYBR() {
	if f.Photometric == "YBR_FULL_422" {
		f.Photometric = "YBR_FULL"
	}
}

// unpackBits decodes one segment into every step-th byte of out from first on
// and returns how many bytes of count it made. Runs beyond count are ignored:
// encoders pad.
func unpackBits(out []byte, first, step, count int, in []byte) int {
	n, at := 0, first
	for len(in) > 0 && n < count {
		code := in[0]
		in = in[1:]
		switch {
		case code < 128:
			length := min(int(code)+1, len(in), count-n)
			if step == 1 {
				copy(out[at:], in[:length])
				at += length
			} else {
				for _, b := range in[:length] {
					out[at] = b
					at += step
				}
			}
			n += length
			in = in[length:]
		case code > 128:
			if len(in) == 0 {
				return n
			}
			length := min(257-int(code), count-n)
			b := in[0]
			for range length {
				out[at] = b
				at += step
			}
			n += length
			in = in[1:]
		}
	}
	return n
}

// EncodeRLE compresses a frame for RLE Lossless. The header has room for 15
// segments; three samples of four bytes are 12.
func EncodeRLE(f *Frame) []byte {
	cell := f.Allocated / 8
	segments := f.Samples * cell
	out := make([]byte, 64, 64+len(f.Data))
	binary.LittleEndian.PutUint32(out, uint32(segments))
	row := make([]byte, f.Columns)
	for s := range segments {
		binary.LittleEndian.PutUint32(out[4+4*s:], uint32(len(out)))
		at := s/cell*cell + cell - 1 - s%cell
		for range f.Rows { // a row is coded on its own (PS3.5 G.3.1)
			for c := range row {
				row[c] = f.Data[at]
				at += segments
			}
			out = packBits(out, row)
		}
		if len(out)&1 == 1 {
			out = append(out, 0)
		}
	}
	return out
}

// packBits appends the run-length code of row: runs of three and more are
// replicated, the rest is literal.
func packBits(out, row []byte) []byte {
	for len(row) > 0 {
		run := 1
		for run < len(row) && run < 128 && row[run] == row[0] {
			run++
		}
		if run >= 3 || run == len(row) && run == 2 {
			out = append(out, byte(257-run), row[0])
			row = row[run:]
			continue
		}
		literal := run
		for literal < len(row) && literal < 128 {
			if literal+2 < len(row) && row[literal] == row[literal+1] && row[literal] == row[literal+2] {
				break
			}
			literal++
		}
		out = append(out, byte(literal-1))
		out = append(out, row[:literal]...)
		row = row[literal:]
	}
	return out
}
