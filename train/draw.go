package train

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"math"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
)

// drawing is a list of lines and texts, which is all that a chart needs, to be
// written as SVG or painted as PNG.
type drawing struct {
	width, height float64
	lines         []stroke
	texts         []caption
}

type point struct{ x, y float64 }

type stroke struct {
	colour string
	width  float64
	points []point
}

type anchor string

const (
	start  anchor = "start"
	middle anchor = "middle"
	end    anchor = "end"
)

type caption struct {
	at     point // on the baseline
	size   float64
	anchor anchor
	colour string
	text   string
}

func (d *drawing) line(colour string, width float64, points ...point) {
	d.lines = append(d.lines, stroke{colour, width, points})
}

func (d *drawing) text(x, y, size float64, a anchor, colour, text string) {
	d.texts = append(d.texts, caption{point{x, y}, size, a, colour, text})
}

func (d *drawing) svg() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="sans-serif">`+"\n", d.width, d.height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="%s"/>`+"\n", paper)
	for _, l := range d.lines {
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="%g" points="`, l.colour, l.width)
		for _, p := range l.points {
			fmt.Fprintf(&b, "%.1f,%.1f ", p.x, p.y)
		}
		b.WriteString("\"/>\n")
	}
	for _, t := range d.texts {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" font-size="%g" text-anchor="%s" fill="%s">%s</text>`+"\n", t.at.x, t.at.y, t.size, t.anchor, t.colour, escape(t.text))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// png paints the drawing at scale pixels a unit.
func (d *drawing) png(scale float64) ([]byte, error) {
	img := image.NewRGBA(image.Rect(0, 0, int(d.width*scale), int(d.height*scale)))
	draw.Draw(img, img.Bounds(), image.NewUniform(tint(paper)), image.Point{}, draw.Src)
	for _, l := range d.lines {
		for i := 1; i < len(l.points); i++ {
			segment(img, l.points[i-1], l.points[i], l.width*scale, scale, tint(l.colour))
		}
	}
	parsed, err := opentype.Parse(goregular.TTF)
	if err != nil {
		return nil, fmt.Errorf("train: reading the font of the curves: %w", err)
	}
	faces := map[float64]font.Face{}
	for _, t := range d.texts {
		face := faces[t.size]
		if face == nil {
			if face, err = opentype.NewFace(parsed, &opentype.FaceOptions{Size: t.size * scale, DPI: 72, Hinting: font.HintingFull}); err != nil {
				return nil, fmt.Errorf("train: preparing the font of the curves: %w", err)
			}
			defer face.Close()
			faces[t.size] = face
		}
		x := t.at.x * scale
		switch width := float64(font.MeasureString(face, t.text)) / 64; t.anchor {
		case middle:
			x -= width / 2
		case end:
			x -= width
		}
		pen := font.Drawer{Dst: img, Src: image.NewUniform(tint(t.colour)), Face: face, Dot: fixed.P(int(math.Round(x)), int(math.Round(t.at.y*scale)))}
		pen.DrawString(t.text)
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		return nil, fmt.Errorf("train: painting the curves: %w", err)
	}
	return out.Bytes(), nil
}

// segment paints a line of some width with butt ends, a little longer so that
// the segments of a curve meet.
func segment(img *image.RGBA, from, to point, width, scale float64, c color.Color) {
	x0, y0, x1, y1 := from.x*scale, from.y*scale, to.x*scale, to.y*scale
	length := math.Hypot(x1-x0, y1-y0)
	if length == 0 {
		return
	}
	dx, dy := (x1-x0)/length*width/2, (y1-y0)/length*width/2
	x0, y0, x1, y1 = x0-dx/2, y0-dy/2, x1+dx/2, y1+dy/2
	corners := []point{{x0 - dy, y0 + dx}, {x1 - dy, y1 + dx}, {x1 + dy, y1 - dx}, {x0 + dy, y0 - dx}}
	box := image.Rectangle{Min: image.Pt(math.MaxInt32, math.MaxInt32)}
	for _, p := range corners {
		box.Min.X, box.Min.Y = min(box.Min.X, int(math.Floor(p.x))), min(box.Min.Y, int(math.Floor(p.y)))
		box.Max.X, box.Max.Y = max(box.Max.X, int(math.Ceil(p.x))), max(box.Max.Y, int(math.Ceil(p.y)))
	}
	r := vector.NewRasterizer(box.Dx(), box.Dy())
	for i, p := range corners {
		x, y := float32(p.x-float64(box.Min.X)), float32(p.y-float64(box.Min.Y))
		if i == 0 {
			r.MoveTo(x, y)
		} else {
			r.LineTo(x, y)
		}
	}
	r.ClosePath()
	r.Draw(img, box, image.NewUniform(c), image.Point{})
}

// tint reads #rrggbb.
func tint(colour string) color.RGBA {
	var c color.RGBA
	fmt.Sscanf(colour, "#%02x%02x%02x", &c.R, &c.G, &c.B)
	c.A = 0xff
	return c
}
