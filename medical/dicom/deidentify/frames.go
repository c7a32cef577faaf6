package deidentify

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vigie/vigie/medical/dicom"
)

// scrubbers returns a compressed frame without what is not picture, by transfer
// syntax. A syntax without one is not passed on: its frames may carry comments.
var scrubbers = map[string]func([]byte) ([]byte, error){
	dicom.RLELossless:         scrubRLE,
	dicom.JPEGBaseline:        scrubJPEG,
	"1.2.840.10008.1.2.4.51":  scrubJPEG,
	"1.2.840.10008.1.2.4.57":  scrubJPEG,
	"1.2.840.10008.1.2.4.70":  scrubJPEG,
	"1.2.840.10008.1.2.4.80":  scrubJPEG, // JPEG-LS shares the segments of JPEG (ISO 14495-1 annex C)
	"1.2.840.10008.1.2.4.81":  scrubJPEG,
	"1.2.840.10008.1.2.4.90":  scrubJPEG2000,
	"1.2.840.10008.1.2.4.91":  scrubJPEG2000,
	"1.2.840.10008.1.2.4.92":  scrubJPEG2000,
	"1.2.840.10008.1.2.4.93":  scrubJPEG2000,
	"1.2.840.10008.1.2.4.201": scrubJPEG2000, // HTJ2K shares the codestream of JPEG 2000 (ISO 15444-15)
	"1.2.840.10008.1.2.4.202": scrubJPEG2000,
	"1.2.840.10008.1.2.4.203": scrubJPEG2000,
}

const encapsulatedUncompressed = "1.2.840.10008.1.2.1.98"

// scrubFrames returns encapsulated pixel data with one scrubbed fragment a
// frame and an empty basic offset table, since the old offsets are void.
func scrubFrames(d *dicom.DataSet, e *dicom.Element, syntax string) (*dicom.Element, error) {
	scrub := scrubbers[syntax]
	if syntax == encapsulatedUncompressed {
		g, err := geometryOf(d)
		if err != nil {
			return nil, err
		}
		count, _ := number(d, dicom.NumberOfFrames, 1, 1<<20, 1)
		g.bytes /= count
		scrub = g.scrub
	}
	if scrub == nil {
		return nil, fmt.Errorf("frames in transfer syntax %s cannot be checked", syntax)
	}
	count, err := number(d, dicom.NumberOfFrames, 1, 1<<20, 1)
	if err != nil {
		return nil, err
	}
	frames, err := framesOf(e.Fragments, int(count))
	if err != nil {
		return nil, err
	}
	out := &dicom.Element{Tag: e.Tag, VR: dicom.OB, Fragments: [][]byte{{}}}
	for i, frame := range frames {
		clean, err := scrub(frame)
		if err != nil {
			return nil, fmt.Errorf("frame %d: %w", i+1, err)
		}
		if len(clean)%2 == 1 {
			clean = append(clean, 0)
		}
		out.Fragments = append(out.Fragments, clean)
	}
	return out, nil
}

// framesOf joins fragments into frames (PS3.5 A.4): all of them for one frame,
// one each where the numbers agree, by the basic offset table otherwise.
func framesOf(fragments [][]byte, count int) ([][]byte, error) {
	table, rest := fragments[0], fragments[1:]
	if len(rest) == count {
		return rest, nil
	}
	if len(rest) < count {
		return nil, errors.New("fewer fragments than frames")
	}
	if count == 1 {
		return [][]byte{join(rest)}, nil
	}
	if len(table) != 4*count {
		return nil, errors.New("more fragments than frames, and no offset table that says which belong together")
	}
	starts := make(map[uint32]bool, count)
	for t := table; len(t) > 0; t = t[4:] {
		starts[binary.LittleEndian.Uint32(t)] = true
	}
	var frames [][]byte
	var offset uint32
	begin := 0
	for i, fragment := range rest {
		if starts[offset] && i > 0 {
			frames, begin = append(frames, join(rest[begin:i])), i
		}
		offset += 8 + uint32(len(fragment)) // item tag and length, then the fragment
	}
	frames = append(frames, join(rest[begin:]))
	if len(frames) != count {
		return nil, errors.New("the offset table does not point at fragments")
	}
	return frames, nil
}

func join(fragments [][]byte) []byte {
	if len(fragments) == 1 {
		return fragments[0]
	}
	var all []byte
	for _, f := range fragments {
		all = append(all, f...)
	}
	return all
}

// scrubRLE keeps the segments and clears what the header has no use for
// (PS3.5 annex G.5: a count up to 15 and as many offsets).
func scrubRLE(frame []byte) ([]byte, error) {
	if len(frame) < 64 {
		return nil, errors.New("an RLE frame shorter than its header")
	}
	n := binary.LittleEndian.Uint32(frame)
	if n < 1 || n > 15 {
		return nil, fmt.Errorf("an RLE frame of %d segments", n)
	}
	clean := append([]byte(nil), frame...)
	clear(clean[4+4*n : 64])
	return clean, nil
}

var (
	errNotJPEG     = errors.New("not a JPEG stream")
	errNotJPEG2000 = errors.New("not a JPEG 2000 codestream")
)

// scrubJPEG copies the segments that make the picture (ISO 10918-1 annex B) and
// drops comments, application segments (Exif, thumbnails, vendors' notes) and
// whatever follows the end of the image. Of the application segments, JFIF,
// Adobe and the JPEG-LS colour transform stay, cut to their fixed parts: they
// say how colours are coded.
func scrubJPEG(frame []byte) ([]byte, error) {
	if len(frame) < 4 || frame[0] != 0xFF || frame[1] != 0xD8 {
		return nil, errNotJPEG
	}
	out := append(make([]byte, 0, len(frame)), 0xFF, 0xD8)
	for i := 2; ; {
		for i < len(frame) && frame[i] == 0xFF && i+1 < len(frame) && frame[i+1] == 0xFF {
			i++ // fill bytes
		}
		if i+1 >= len(frame) || frame[i] != 0xFF {
			return nil, fmt.Errorf("%w: no marker where one must be", errNotJPEG)
		}
		marker := frame[i+1]
		if marker == 0xD9 {
			return append(out, 0xFF, 0xD9), nil
		}
		if i+4 > len(frame) {
			return nil, fmt.Errorf("%w: cut off in a segment", errNotJPEG)
		}
		size := int(binary.BigEndian.Uint16(frame[i+2:]))
		if size < 2 || i+2+size > len(frame) {
			return nil, fmt.Errorf("%w: a segment longer than the stream", errNotJPEG)
		}
		segment := frame[i : i+2+size]
		i += 2 + size
		switch {
		case marker == 0xFE || marker >= 0xE0 && marker <= 0xEF:
			out = append(out, application(segment)...)
		case marker >= 0xC0 && marker <= 0xCF, marker >= 0xDB && marker <= 0xDF, marker == 0xF7, marker == 0xF8: // the last two: JPEG-LS frame and parameters
			out = append(out, segment...)
		case marker == 0xDA:
			out = append(out, segment...)
			end := i
			for end < len(frame) && !(frame[end] == 0xFF && end+1 < len(frame) && ends(frame[end+1])) {
				end++
			}
			out = append(out, frame[i:end]...)
			if end == len(frame) {
				return append(out, 0xFF, 0xD9), nil // encoders forget the end; decoders do not mind
			}
			i = end
		default:
			return nil, fmt.Errorf("%w: marker FF%02X", errNotJPEG, marker)
		}
	}
}

// ends reports whether the byte after FF ends entropy-coded data: not a stuffed
// zero (or, in JPEG-LS, a byte below 80), a restart marker or a fill byte.
func ends(next byte) bool { return next >= 0x80 && next != 0xFF && (next < 0xD0 || next > 0xD7) }

// application returns what stays of an application or comment segment.
func application(segment []byte) []byte {
	body := segment[4:]
	fixed := func(n int) []byte {
		clean := append([]byte{0xFF, segment[1], 0, byte(n + 2)}, body[:n]...)
		return clean
	}
	switch {
	case segment[1] == 0xE0 && len(body) >= 14 && string(body[:5]) == "JFIF\x00":
		clean := fixed(14)
		clean[4+12], clean[4+13] = 0, 0 // no thumbnail
		return clean
	case segment[1] == 0xEE && len(body) >= 6 && string(body[:5]) == "Adobe":
		return fixed(min(len(body), 12)) // some writers leave the last two bytes out
	case segment[1] == 0xE8 && len(body) == 5 && string(body[:4]) == "mrfx":
		return fixed(5)
	}
	return nil
}

// scrubJPEG2000 drops the comments (ISO 15444-1 A.9.2) of the main header, blanks
// those of tile-part headers, whose lengths count, and drops whatever follows
// the end of the codestream.
func scrubJPEG2000(frame []byte) ([]byte, error) {
	frame = codestream(frame)
	if len(frame) < 4 || frame[0] != 0xFF || frame[1] != 0x4F {
		return nil, errNotJPEG2000
	}
	out := append(make([]byte, 0, len(frame)), 0xFF, 0x4F)
	for i := 2; ; {
		if i+2 > len(frame) || frame[i] != 0xFF {
			return nil, fmt.Errorf("%w: no marker where one must be", errNotJPEG2000)
		}
		marker := frame[i+1]
		if marker == 0xD9 {
			return append(out, 0xFF, 0xD9), nil
		}
		if i+4 > len(frame) {
			return nil, fmt.Errorf("%w: cut off in a segment", errNotJPEG2000)
		}
		size := int(binary.BigEndian.Uint16(frame[i+2:]))
		if size < 2 || i+2+size > len(frame) {
			return nil, fmt.Errorf("%w: a segment longer than the stream", errNotJPEG2000)
		}
		if marker != 0x90 {
			if marker != 0x64 {
				out = append(out, frame[i:i+2+size]...)
			}
			i += 2 + size
			continue
		}
		part, err := tilePart(frame[i:], size)
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
		i += len(part)
	}
}

// codestream returns the codestream inside a JP2 file (ISO 15444-1 annex I),
// which PS3.5 A.4.4 forbids in a frame and some writers send all the same;
// anything else is returned as it is.
func codestream(frame []byte) []byte {
	if len(frame) < 12 || string(frame[4:8]) != "jP  " {
		return frame
	}
	for boxes := frame; len(boxes) >= 8; {
		size, header := uint64(binary.BigEndian.Uint32(boxes)), uint64(8)
		if size == 1 && len(boxes) >= 16 {
			size, header = binary.BigEndian.Uint64(boxes[8:]), 16
		}
		if size == 0 {
			size = uint64(len(boxes))
		}
		if size < header || size > uint64(len(boxes)) {
			break
		}
		if string(boxes[4:8]) == "jp2c" {
			return boxes[header:size]
		}
		boxes = boxes[size:]
	}
	return nil
}

// tilePart returns a copy of the tile-part at the start of stream with its
// comments blanked. size is that of its SOT segment.
func tilePart(stream []byte, size int) ([]byte, error) {
	if size != 10 {
		return nil, fmt.Errorf("%w: a tile-part that does not start as one", errNotJPEG2000)
	}
	length := int64(binary.BigEndian.Uint32(stream[6:]))
	if length == 0 { // the last one may leave it open: up to the end of the codestream
		length = int64(len(stream))
		if n := lastEnd(stream); n > 0 {
			length = int64(n)
		}
	}
	if length < 14 || length > int64(len(stream)) {
		return nil, fmt.Errorf("%w: a tile-part longer than the stream", errNotJPEG2000)
	}
	part := append([]byte(nil), stream[:length]...)
	for i := 12; ; {
		if i+2 > len(part) || part[i] != 0xFF {
			return nil, fmt.Errorf("%w: no start of data in a tile-part", errNotJPEG2000)
		}
		if part[i+1] == 0x93 {
			return part, nil
		}
		if i+4 > len(part) {
			return nil, fmt.Errorf("%w: cut off in a tile-part", errNotJPEG2000)
		}
		n := int(binary.BigEndian.Uint16(part[i+2:]))
		if n < 2 || i+2+n > len(part) {
			return nil, fmt.Errorf("%w: a segment longer than its tile-part", errNotJPEG2000)
		}
		if part[i+1] == 0x64 && n > 4 {
			clear(part[i+6 : i+2+n]) // after marker, length and registration
		}
		i += 2 + n
	}
}

// lastEnd returns where the last end of codestream marker begins, or 0.
func lastEnd(stream []byte) int {
	for i := len(stream) - 2; i > 0; i-- {
		if stream[i] == 0xFF && stream[i+1] == 0xD9 {
			return i
		}
	}
	return 0
}
