package report

import (
	"errors"
	"fmt"
	"image"
	"image/draw"
	"math"

	"github.com/vigie/vigie/medical/dicom"
)

// Sides of the drawn image, in pixels: large images are averaged down, small
// ones enlarged until a caption can be read under them.
const (
	largestSide  = 1024
	smallestSide = 640
)

// Heat is a map of relevance over a part of the image.
type Heat struct {
	Rows, Columns int
	Values        []uint8         // row-major, 0 (none) .. 255 (strongest)
	Window        image.Rectangle // the pixels of the image that the map covers; empty: all
}

// Caption is what stands below the image. It must hold no identity: the
// Secondary Capture declares that none is burned in.
type Caption struct {
	Model       string // "chest-pneumonia-28 1.0.0"
	Label       Text   // "Pneumonia", "Pneumonie"
	Probability float64
	Threshold   float64
	Positive    bool
	Warning     Text   // in a bar above the image: why the map must not be relied on; empty: no bar
	Remarks     []Text // further lines: a reason for review, the method of the map
}

// The sentence under every image.
var byAPhysician = Text{
	English: "AI result – for review by a physician. Not for diagnosis without review.",
	French:  "Résultat d’IA – à vérifier par un médecin. Pas de diagnostic sans vérification.",
}

// Overlay draws the image in gray with the heat map over it, a scale beside the
// map's colours, and the caption in a band below, where it covers no anatomy. A
// warning stands in a bar above, where it is read first. Without heat the image
// is drawn alone. The longer side has at most 1024 pixels, not counting the
// bands.
func Overlay(l *dicom.Luminance, heat *Heat, caption Caption) (*image.RGBA, error) {
	if l == nil || l.Rows < 1 || l.Columns < 1 || len(l.Values) != l.Rows*l.Columns {
		return nil, errors.New("report: drawing an overlay: the image has no pixels")
	}
	if heat != nil && (heat.Rows < 1 || heat.Columns < 1 || len(heat.Values) != heat.Rows*heat.Columns) {
		return nil, fmt.Errorf("report: drawing an overlay: a map of %d × %d has %d values", heat.Columns, heat.Rows, len(heat.Values))
	}
	rows, columns := drawnSize(l.Rows, l.Columns)
	gray := resize(l, rows, columns)
	band, err := newBand(caption, columns)
	if err != nil {
		return nil, err
	}
	defer band.close()
	top := band.warningHeight()
	out := image.NewRGBA(image.Rect(0, 0, columns, top+rows+band.height))
	picture := out.SubImage(image.Rect(0, top, columns, top+rows)).(*image.RGBA)
	paint(picture, gray, rows, columns)
	if heat != nil {
		heat.blend(picture, l, rows, columns)
	}
	draw.Draw(out, image.Rect(0, top+rows, columns, top+rows+band.height), image.NewUniform(bandColour), image.Point{}, draw.Src)
	if heat != nil {
		band.scale(out, top+rows)
	}
	band.warn(out, top)
	band.write(out, top+rows)
	return out, nil
}

// drawnSize keeps the proportions within the bounds of the drawn image.
func drawnSize(rows, columns int) (int, int) {
	long := float64(max(rows, columns))
	scale := 1.0
	switch {
	case long > largestSide:
		scale = largestSide / long
	case columns < smallestSide:
		scale = min(smallestSide/float64(columns), largestSide/long)
	}
	size := func(n int) int { return max(int(math.Round(float64(n)*scale)), 1) }
	return size(rows), max(size(columns), smallestSide/2)
}

// paint fills the image part of out with gray values of 0..1.
func paint(out *image.RGBA, gray []float64, rows, columns int) {
	for y := range rows {
		line := out.Pix[y*out.Stride:]
		for x := range columns {
			v := uint8(gray[y*columns+x]*255 + 0.5)
			line[4*x], line[4*x+1], line[4*x+2], line[4*x+3] = v, v, v, 255
		}
	}
}

// blend lays the map over the image part of out. The map is far coarser than
// the image; a cubic joins its cells without the creases of a linear one.
func (h *Heat) blend(out *image.RGBA, l *dicom.Luminance, rows, columns int) {
	w := h.Window
	if w.Empty() {
		w = image.Rect(0, 0, l.Columns, l.Rows)
	}
	// where a pixel of out lies in the window, as a fraction of it
	inside := func(i, drawn, source, low, size int) float64 {
		return ((float64(i)+0.5)*float64(source)/float64(drawn) - float64(low)) / float64(size)
	}
	line := make([]float64, h.Columns) // the map at the height of one row of out
	for y := range rows {
		fy := inside(y, rows, l.Rows, w.Min.Y, w.Dy())
		if fy < 0 || fy >= 1 {
			continue
		}
		for c := range line {
			line[c] = cubic(fy*float64(h.Rows)-0.5, h.Rows, func(r int) float64 { return float64(h.Values[r*h.Columns+c]) / 255 })
		}
		for x := range columns {
			fx := inside(x, columns, l.Columns, w.Min.X, w.Dx())
			if fx < 0 || fx >= 1 {
				continue
			}
			v := cubic(fx*float64(h.Columns)-0.5, h.Columns, func(c int) float64 { return line[c] })
			alpha := heatOpacity(v)
			if alpha == 0 {
				continue
			}
			c := heatColour(v)
			p := out.Pix[y*out.Stride+4*x:]
			mix := func(under, over uint8) uint8 {
				return uint8(float64(under)*(1-alpha) + float64(over)*alpha + 0.5)
			}
			p[0], p[1], p[2] = mix(p[0], c.R), mix(p[1], c.G), mix(p[2], c.B)
		}
	}
}

// cubic interpolates n values at a position among them (Catmull-Rom), the last
// values going on beyond the ends, within 0..1.
func cubic(at float64, n int, value func(i int) float64) float64 {
	i := int(math.Floor(at))
	f := at - float64(i)
	v := func(k int) float64 { return value(min(max(i+k, 0), n-1)) }
	a, b, c, d := v(-1), v(0), v(1), v(2)
	y := b + 0.5*f*(c-a+f*(2*a-5*b+4*c-d+f*(3*(b-c)+d-a)))
	return min(max(y, 0), 1)
}

// between interpolates linearly among the four cells around a point.
func between(row, column float64, rows, columns int, value func(r, c int) float64) float64 {
	row, column = min(max(row, 0), float64(rows-1)), min(max(column, 0), float64(columns-1))
	r0, c0 := int(row), int(column)
	r1, c1 := min(r0+1, rows-1), min(c0+1, columns-1)
	fr, fc := row-float64(r0), column-float64(c0)
	return (value(r0, c0)*(1-fc)+value(r0, c1)*fc)*(1-fr) + (value(r1, c0)*(1-fc)+value(r1, c1)*fc)*fr
}

// resize averages areas where the image shrinks and interpolates where it
// grows.
func resize(l *dicom.Luminance, rows, columns int) []float64 {
	out := make([]float64, rows*columns)
	if rows >= l.Rows && columns >= l.Columns {
		value := func(r, c int) float64 { return float64(l.At(r, c)) }
		for y := range rows {
			for x := range columns {
				sy := (float64(y)+0.5)*float64(l.Rows)/float64(rows) - 0.5
				sx := (float64(x)+0.5)*float64(l.Columns)/float64(columns) - 0.5
				out[y*columns+x] = between(sy, sx, l.Rows, l.Columns, value)
			}
		}
		return out
	}
	for y := range rows {
		r0, r1 := y*l.Rows/rows, max((y+1)*l.Rows/rows, y*l.Rows/rows+1)
		for x := range columns {
			c0, c1 := x*l.Columns/columns, max((x+1)*l.Columns/columns, x*l.Columns/columns+1)
			sum := 0.0
			for r := r0; r < r1; r++ {
				for _, v := range l.Values[r*l.Columns+c0 : r*l.Columns+c1] {
					sum += float64(v)
				}
			}
			out[y*columns+x] = sum / float64((r1-r0)*(c1-c0))
		}
	}
	return out
}
