package report

import (
	"errors"
	"fmt"
	"image"
	"image/color"
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
	Remarks     []Text // further lines: a reason for review, the method of the map
}

// The sentence under every image.
var byAPhysician = Text{
	English: "AI result – for review by a physician. Not for diagnosis without review.",
	French:  "Résultat d’IA – à vérifier par un médecin. Pas de diagnostic sans vérification.",
}

// Overlay draws the image in gray with the heat map over it, a scale beside the
// map's colours, and the caption in a band below, where it covers no anatomy.
// Without heat the image is drawn alone. The longer side has at most 1024
// pixels, not counting the band.
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
	out := image.NewRGBA(image.Rect(0, 0, columns, rows+band.height))
	for y := range rows {
		for x := range columns {
			v := gray[y*columns+x]
			r, g, b := v*255, v*255, v*255
			if heat != nil {
				// the pixel of the source image under this one
				sx := (float64(x) + 0.5) * float64(l.Columns) / float64(columns)
				sy := (float64(y) + 0.5) * float64(l.Rows) / float64(rows)
				h := heat.at(sx, sy, l.Rows, l.Columns)
				if a := heatOpacity(h); a > 0 {
					c := heatColour(h)
					r, g, b = r*(1-a)+float64(c.R)*a, g*(1-a)+float64(c.G)*a, b*(1-a)+float64(c.B)*a
				}
			}
			out.SetRGBA(x, y, color.RGBA{uint8(r + 0.5), uint8(g + 0.5), uint8(b + 0.5), 255})
		}
	}
	draw.Draw(out, image.Rect(0, rows, columns, rows+band.height), image.NewUniform(bandColour), image.Point{}, draw.Src)
	if heat != nil {
		band.scale(out, rows)
	}
	band.write(out, rows)
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

// at is the relevance, 0..1, at a point of the image in pixels.
func (h *Heat) at(x, y float64, rows, columns int) float64 {
	w := h.Window
	if w.Empty() {
		w = image.Rect(0, 0, columns, rows)
	}
	fx := (x - float64(w.Min.X)) / float64(w.Dx())
	fy := (y - float64(w.Min.Y)) / float64(w.Dy())
	if fx < 0 || fx >= 1 || fy < 0 || fy >= 1 {
		return 0
	}
	value := func(r, c int) float64 { return float64(h.Values[r*h.Columns+c]) / 255 }
	return between(fy*float64(h.Rows)-0.5, fx*float64(h.Columns)-0.5, h.Rows, h.Columns, value)
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
