package studies

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"image"
	"image/color"
	_ "image/jpeg" // registers the decoder
	_ "image/png"
	"io"
	"os"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/train"
)

// Limits of one image file.
const (
	maxFileBytes = 1 << 30
	maxPixels    = 1 << 27 // 134 million
)

// picture is one image, brought to size.
type picture struct {
	rows, columns int
	planes        [][]float32 // one of luminance, or red, green, blue; 0..1
	deep          bool        // has more than 8 bits
	patient       string
	digest        [sha256.Size]byte
}

// channel returns the plane for channel c of n.
func (p *picture) channel(c, n int) []float32 {
	if len(p.planes) == n {
		return p.planes[c]
	}
	if n == 3 { // grey in colour
		return p.planes[0]
	}
	grey := make([]float32, len(p.planes[0])) // luma, ITU-R BT.601
	for i := range grey {
		grey[i] = 0.299*p.planes[0][i] + 0.587*p.planes[1][i] + 0.114*p.planes[2][i]
	}
	return grey
}

// Image is an image file as Open puts it into a set.
type Image struct {
	Rows, Columns int
	Planes        [][]float32 // one of luminance, or red, green and blue; 0..1
}

// ReadImage reads one DICOM, PNG or JPEG file by its content, as Open reads those
// of a folder: brought to Rows and Columns, and to Channels, where the options
// have them. The path is the caller's, and may be anywhere.
func ReadImage(path string, o Options) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("studies: opening an image: %w", err)
	}
	defer f.Close()
	p, err := decode(f, o)
	if err != nil {
		return nil, fmt.Errorf("studies: reading %s: %w", path, err)
	}
	m := &Image{Rows: p.rows, Columns: p.columns, Planes: p.planes}
	if o.Channels > 0 {
		m.Planes = make([][]float32, o.Channels)
		for c := range m.Planes {
			m.Planes[c] = p.channel(c, o.Channels)
		}
	}
	return m, nil
}

// readPicture reads a file within the data folder.
func readPicture(root *os.Root, name string, o Options) (*picture, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return decode(f, o)
}

// decode reads a DICOM, PNG or JPEG file by its content, not its name, and brings
// it to size.
func decode(f io.Reader, o Options) (*picture, error) {
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrData, maxFileBytes)
	}
	var p *picture
	if bytes.HasPrefix(data, []byte("\x89PNG\r\n\x1a\n")) || bytes.HasPrefix(data, []byte("\xff\xd8\xff")) {
		p, err = fromImage(data)
	} else {
		p, err = fromDICOM(data)
	}
	if err != nil {
		return nil, err
	}
	p.digest = sha256.Sum256(data)
	if o.Rows > 0 && o.Columns > 0 {
		for i, plane := range p.planes {
			if p.planes[i], err = resample(plane, p.rows, p.columns, o); err != nil {
				return nil, err
			}
		}
		p.rows, p.columns = o.Rows, o.Columns
	}
	return p, nil
}

func fromDICOM(data []byte) (*picture, error) {
	file, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		return nil, fmt.Errorf("%w: neither PNG nor JPEG, and as DICOM: %w", ErrData, err)
	}
	l, err := file.Luminance(0)
	if err != nil {
		return nil, err
	}
	return &picture{rows: l.Rows, columns: l.Columns, planes: [][]float32{l.Values}, deep: true, patient: file.DataSet.String(dicom.PatientID)}, nil
}

func fromImage(data []byte) (*picture, error) {
	size, _, err := image.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrData, err)
	}
	if size.Width <= 0 || size.Height <= 0 || size.Width > maxPixels/size.Height {
		return nil, fmt.Errorf("%w: an image of %d×%d pixels", ErrData, size.Height, size.Width)
	}
	decoded, _, err := image.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrData, err)
	}
	b := decoded.Bounds()
	p := &picture{rows: b.Dy(), columns: b.Dx()}
	planes := make([][]float32, 3)
	for c := range planes {
		planes[c] = make([]float32, p.rows*p.columns)
	}
	colourful := false
	for y := range p.rows {
		for x := range p.columns {
			r, g, bl, _ := decoded.At(b.Min.X+x, b.Min.Y+y).RGBA() // on black where transparent
			at := y*p.columns + x
			planes[0][at], planes[1][at], planes[2][at] = float32(r)/0xffff, float32(g)/0xffff, float32(bl)/0xffff
			colourful = colourful || r != g || g != bl
		}
	}
	switch decoded.ColorModel() {
	case color.Gray16Model, color.RGBA64Model, color.NRGBA64Model:
		p.deep = true
	}
	p.planes = planes
	if !colourful {
		p.planes = planes[:1]
	}
	return p, nil
}

// resample brings a plane to the size that the options ask for, as a case's
// image is when the model serves.
func resample(plane []float32, rows, columns int, o Options) ([]float32, error) {
	if rows == o.Rows && columns == o.Columns {
		return plane, nil
	}
	m := model.Manifest{Input: model.Input{
		Layout: "NCHW", Rows: o.Rows, Columns: o.Columns, Channels: 1, Aspect: o.Aspect, Range: model.Range{High: 1},
	}}
	if o.Aspect == "" {
		m.Input.Aspect = model.Stretch
	}
	t, err := m.Prepare(&dicom.Luminance{Rows: rows, Columns: columns, Values: plane})
	if err != nil {
		return nil, err
	}
	return engine.Values[float32](t)
}

// resizeSet brings the images of a set to the size that the options ask for.
func resizeSet(s *train.Set, o Options) error {
	if o.Rows <= 0 || o.Columns <= 0 || s.Shape != nil || s.Rows == o.Rows && s.Columns == o.Columns {
		return nil
	}
	per := s.Rows * s.Columns
	image := make([]float32, s.Channels*per)
	var pixels []uint8
	var values []float32
	for i := range s.Len() {
		s.Fill(image, i)
		for c := range s.Channels {
			plane, err := resample(image[c*per:(c+1)*per], s.Rows, s.Columns, o)
			if err != nil {
				return err
			}
			if s.Pixels == nil {
				values = append(values, plane...)
				continue
			}
			for _, v := range plane {
				pixels = append(pixels, uint8(v*255+0.5))
			}
		}
	}
	s.Pixels, s.Values, s.Rows, s.Columns = pixels, values, o.Rows, o.Columns
	return nil
}
