package dicom

import (
	"bytes"
	"encoding/binary"
)

// fragmentsOf joins the fragments of one frame (PS3.5 A.4): by the extended or
// basic offset table where there is one, else one fragment a frame, else by
// where JPEG images start.
func (f *File) fragmentsOf(pixels *Element, index, frames int) ([]byte, error) {
	if len(pixels.Fragments) < 2 {
		return nil, pixelError(PixelData, "encapsulated, but without a fragment")
	}
	table, fragments := pixels.Fragments[0], pixels.Fragments[1:]
	if frames == 1 {
		return join(fragments), nil
	}
	if extended := f.DataSet.Get(ExtendedOffsetTable); extended != nil {
		return byOffset(fragments, offsets(extended.Value, 8), index, frames)
	}
	if len(table) > 0 {
		return byOffset(fragments, offsets(table, 4), index, frames)
	}
	if len(fragments) == frames {
		return fragments[index], nil
	}
	var starts []int
	for i, fragment := range fragments {
		if bytes.HasPrefix(fragment, []byte{0xFF, 0xD8}) {
			starts = append(starts, i)
		}
	}
	if len(starts) != frames || starts[0] != 0 {
		return nil, pixelError(PixelData, "%d fragments for %d frames, and no offset table says which is whose", len(fragments), frames)
	}
	end := len(fragments)
	if index+1 < frames {
		end = starts[index+1]
	}
	return join(fragments[starts[index]:end]), nil
}

func offsets(table []byte, size int) []uint64 {
	out := make([]uint64, 0, len(table)/size)
	for ; len(table) >= size; table = table[size:] {
		if size == 8 {
			out = append(out, binary.LittleEndian.Uint64(table))
		} else {
			out = append(out, uint64(binary.LittleEndian.Uint32(table)))
		}
	}
	return out
}

// byOffset takes the fragments from the one that starts at the frame's offset
// to before the one of the next frame. Offsets count from the first fragment's
// item tag, eight bytes before its value.
func byOffset(fragments [][]byte, table []uint64, index, frames int) ([]byte, error) {
	if len(table) != frames {
		return nil, pixelError(PixelData, "the offset table has %d entries for %d frames", len(table), frames)
	}
	first, last := -1, len(fragments)
	var at uint64
	for i, fragment := range fragments {
		if at == table[index] {
			first = i
		}
		if index+1 < frames && at == table[index+1] {
			last = i
			break
		}
		at += 8 + uint64(len(fragment)+len(fragment)&1)
	}
	if first < 0 || last <= first || (index+1 < frames && last == len(fragments)) {
		return nil, pixelError(PixelData, "the offset of frame %d is not the beginning of a fragment", index+1)
	}
	return join(fragments[first:last]), nil
}

func join(fragments [][]byte) []byte {
	if len(fragments) == 1 {
		return fragments[0]
	}
	return bytes.Join(fragments, nil)
}

// Encapsulate makes the pixel data element of frames that are already
// compressed, one fragment each, with a basic offset table.
func Encapsulate(frames [][]byte) *Element {
	fragments := [][]byte{nil}
	var table []byte
	var at uint32
	for _, frame := range frames {
		frame = pad(OB, frame)
		table = binary.LittleEndian.AppendUint32(table, at)
		at += 8 + uint32(len(frame))
		fragments = append(fragments, frame)
	}
	fragments[0] = table
	return &Element{Tag: PixelData, VR: OB, Fragments: fragments}
}
