package explain

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"math"
	"slices"
	"strings"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"

	"github.com/vigie/vigie/engine"
)

// Picture turns an image input [1, channels, rows, columns] into pixels for Draw:
// one channel is grey, three are red, green and blue, of others the mean is
// shown. The range of the values becomes that from black to white.
func Picture(input engine.Tensor, channelsLast bool) (*image.RGBA, error) {
	values, err := engine.Values[float32](input)
	if err == nil {
		err = input.Check()
	}
	if err != nil || len(input.Shape) != 4 || input.Shape[0] != 1 || len(values) == 0 {
		return nil, fmt.Errorf("explain: drawing an input of shape %v: want one image [1, channels, rows, columns]: %w", input.Shape, errors.Join(err, ErrInput))
	}
	l, err := layoutOf(input.Shape[1:], channelsLast)
	if err != nil {
		return nil, fmt.Errorf("explain: drawing an input: %w", err)
	}
	low, high := slices.Min(values), slices.Max(values)
	level := func(v float64) uint8 {
		return uint8(math.Round(255 * (v - float64(low)) / math.Max(float64(high-low), 1e-30)))
	}
	out := image.NewRGBA(image.Rect(0, 0, l.columns, l.rows))
	for p := range l.places() {
		var pixel color.RGBA
		if l.channels == 3 {
			pixel = color.RGBA{level(float64(values[l.index(p, 0)])), level(float64(values[l.index(p, 1)])), level(float64(values[l.index(p, 2)])), 255}
		} else {
			mean := 0.0
			for c := range l.channels {
				mean += float64(values[l.index(p, c)]) / float64(l.channels)
			}
			pixel = color.RGBA{level(mean), level(mean), level(mean), 255}
		}
		out.SetRGBA(p%l.columns, p/l.columns, pixel)
	}
	return out, nil
}

// The drawing's measures, in pixels.
const (
	drawnSide = 420 // of the longer side of a panel, at least, for small images
	gap       = 8
	lineStep  = 18
)

// Draw shows the picture beside the same picture with the map over it, and below
// the lines and the verdict in both languages, in amber unless the map explains:
// a map is not drawn without its label. The picture must have the map's size. Red speaks for the class
// and blue against it; the stronger, the less of the picture shows through. A
// sensitivity is drawn by its size, a relevance from its least on. The scale is that of the 99th percentile, so
// that one strong pixel does not hide the others.
func Draw(picture image.Image, m *Map, verdict Verdict, lines ...string) (*image.RGBA, error) {
	bounds := picture.Bounds()
	if bounds.Dx() != m.Columns || bounds.Dy() != m.Rows || len(m.Values) != m.Rows*m.Columns || len(m.Values) == 0 {
		return nil, fmt.Errorf("explain: drawing a map of %d×%d with %d values over a picture of %d×%d", m.Columns, m.Rows, len(m.Values), bounds.Dx(), bounds.Dy())
	}
	scale := max(1, (drawnSide+max(m.Rows, m.Columns)-1)/max(m.Rows, m.Columns))
	width, height := m.Columns*scale, m.Rows*scale
	face, err := textFace()
	if err != nil {
		return nil, err
	}
	defer face.Close()
	var wrapped []string
	for _, text := range lines {
		wrapped = append(wrapped, wrap(text, face, 2*width-gap)...)
	}
	plain := len(wrapped)
	for _, text := range []string{verdict.Text.English, verdict.Text.French} {
		wrapped = append(wrapped, wrap(text, face, 2*width-gap)...)
	}
	band := len(wrapped)*lineStep + gap
	out := image.NewRGBA(image.Rect(0, 0, 2*width+gap, height+band))
	for i := range out.Pix {
		out.Pix[i] = 255
		if i%4 != 3 {
			out.Pix[i] = 24
		}
	}
	values := m.evidence()
	low, top := 0.0, quantile(sizes(values), 0.99)
	if m.Kind == Relevance { // nowhere 0 after rollout: what stands out is shown
		low = float64(slices.Min(values))
	}
	for y := range height {
		for x := range width {
			row, column := y/scale, x/scale
			under := color.RGBAModel.Convert(picture.At(bounds.Min.X+column, bounds.Min.Y+row)).(color.RGBA)
			out.SetRGBA(x, y, under)
			out.SetRGBA(width+gap+x, y, tint(under, float64(values[row*m.Columns+column])-low, top-low))
		}
	}
	for i, text := range wrapped {
		ink := color.RGBA{225, 228, 232, 255}
		if i >= plain && !verdict.Explains {
			ink = color.RGBA{255, 190, 92, 255}
		}
		d := font.Drawer{Dst: out, Src: image.NewUniform(ink), Face: face, Dot: fixed.P(gap, height+(i+1)*lineStep-3)}
		d.DrawString(text)
	}
	return out, nil
}

// tint lays red or blue over a pixel, as strongly as the value.
func tint(under color.RGBA, value, top float64) color.RGBA {
	if !(top > 0) || value == 0 || math.IsNaN(value) {
		return under
	}
	strength := 0.75 * min(math.Abs(value)/top, 1)
	over := [3]float64{230, 50, 30}
	if value < 0 {
		over = [3]float64{40, 110, 240}
	}
	mix := func(v uint8, c int) uint8 { return uint8(math.Round(float64(v)*(1-strength) + over[c]*strength)) }
	return color.RGBA{mix(under.R, 0), mix(under.G, 1), mix(under.B, 2), 255}
}

// quantile is the value below which that part of the positive ones lies; 0 if
// none is positive.
func quantile(values []float32, part float64) float64 {
	positive := slices.DeleteFunc(slices.Clone(values), func(v float32) bool { return !(v > 0) })
	if len(positive) == 0 {
		return 0
	}
	slices.Sort(positive)
	return float64(positive[int(part*float64(len(positive)-1))])
}

func textFace() (font.Face, error) {
	parsed, err := opentype.Parse(goregular.TTF)
	if err != nil {
		return nil, fmt.Errorf("explain: loading the font: %w", err)
	}
	face, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: 13, DPI: 72, Hinting: font.HintingFull})
	if err != nil {
		return nil, fmt.Errorf("explain: loading the font: %w", err)
	}
	return face, nil
}

// wrap breaks a text at spaces so that no line is wider than the given pixels.
func wrap(text string, face font.Face, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Split(text, " ") {
		longer := word
		if line != "" {
			longer = line + " " + word
		}
		if line != "" && font.MeasureString(face, longer).Ceil() > width {
			lines, longer = append(lines, line), word
		}
		line = longer
	}
	return append(lines, line)
}
