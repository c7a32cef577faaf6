package report

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"strings"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

var (
	bandColour = color.RGBA{17, 22, 29, 255}
	titleTint  = color.RGBA{255, 255, 255, 255}
	alertTint  = color.RGBA{255, 190, 92, 255}
	textTint   = color.RGBA{205, 212, 220, 255}
	quietTint  = color.RGBA{140, 152, 166, 255}
	warnTint   = color.RGBA{24, 16, 0, 255} // on alertTint
)

// line is a line of the band, already broken to its width.
type line struct {
	text string
	face font.Face
	tint color.RGBA
}

// band is the caption below the image: lines on the left, the scale of the
// heat map on the right; and the warning above the image, if there is one.
type band struct {
	lines, warning       []line
	title, body          font.Face
	width, height        int
	margin, scaleWidth   int
	titleStep, plainStep int
}

func face(ttf []byte, size float64) (font.Face, error) {
	parsed, err := opentype.Parse(ttf)
	if err != nil {
		return nil, fmt.Errorf("report: reading the font of the caption: %w", err)
	}
	f, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: size, DPI: 72, Hinting: font.HintingFull})
	if err != nil {
		return nil, fmt.Errorf("report: preparing the font of the caption: %w", err)
	}
	return f, nil
}

// newBand lays the caption out for an image of that width.
func newBand(c Caption, width int) (*band, error) {
	size := min(max(float64(width)/52, 13), 20)
	b := &band{width: width, margin: int(size), scaleWidth: min(int(13*size), width*3/10)}
	var err error
	if b.title, err = face(gobold.TTF, size*1.25); err != nil {
		return nil, err
	}
	if b.body, err = face(goregular.TTF, size); err != nil {
		return nil, err
	}
	b.titleStep, b.plainStep = int(size*1.75), int(size*1.42)

	tint, state := titleTint, Text{"below the operating point", "sous le seuil"}
	if c.Positive {
		tint, state = alertTint, Text{"at or above the operating point", "au seuil ou au-dessus"}
	}
	if label := both(c.Label, " · "); label != "" {
		b.add(b.title, tint, fmt.Sprintf("%s – %.1f %%", label, 100*c.Probability))
		b.add(b.body, textTint, fmt.Sprintf("%s (%.1f %%) · %s", state.English, 100*c.Threshold, state.French))
	}
	for _, remark := range c.Remarks {
		b.add(b.body, textTint, remark.English)
		b.add(b.body, textTint, remark.French)
	}
	b.add(b.body, titleTint, byAPhysician.English)
	b.add(b.body, titleTint, byAPhysician.French)
	if c.Model != "" {
		b.add(b.body, quietTint, "Vigie · "+c.Model)
	}
	for _, text := range []string{c.Warning.English, c.Warning.French} {
		b.warning = append(b.warning, broken(b.title, warnTint, text, b.width-2*b.margin)...)
	}
	b.height = 2 * b.margin
	for _, l := range b.lines {
		b.height += b.step(l)
	}
	return b, nil
}

func both(t Text, separator string) string {
	if t.French == "" || t.French == t.English {
		return t.English
	}
	return t.English + separator + t.French
}

func (b *band) step(l line) int {
	if l.face == b.title {
		return b.titleStep
	}
	return b.plainStep
}

// add breaks a text into lines that leave room for the scale.
func (b *band) add(f font.Face, tint color.RGBA, text string) {
	b.lines = append(b.lines, broken(f, tint, text, b.width-3*b.margin-b.scaleWidth)...)
}

// broken breaks a text at blanks into lines of at most that many pixels.
func broken(f font.Face, tint color.RGBA, text string, width int) (lines []line) {
	current := ""
	for _, word := range strings.Fields(text) {
		longer := strings.TrimPrefix(current+" "+word, " ")
		if current != "" && font.MeasureString(f, longer) > fixed.I(width) {
			lines = append(lines, line{current, f, tint})
			longer = word
		}
		current = longer
	}
	if current != "" {
		lines = append(lines, line{current, f, tint})
	}
	return lines
}

// warningHeight is that of the bar above the image, 0 without a warning.
func (b *band) warningHeight() int {
	if len(b.warning) == 0 {
		return 0
	}
	return b.margin + len(b.warning)*b.titleStep
}

// warn draws the bar.
func (b *band) warn(out *image.RGBA, height int) {
	draw.Draw(out, image.Rect(0, 0, b.width, height), image.NewUniform(alertTint), image.Point{}, draw.Src)
	for i, l := range b.warning {
		b.print(out, l, b.margin, b.margin/2+(i+1)*b.titleStep-b.titleStep/4)
	}
}

func (b *band) write(out *image.RGBA, top int) {
	y := top + b.margin
	for _, l := range b.lines {
		y += b.step(l)
		b.print(out, l, b.margin, y-b.step(l)/4)
	}
}

func (b *band) print(out *image.RGBA, l line, x, y int) {
	drawer := font.Drawer{Dst: out, Src: image.NewUniform(l.tint), Face: l.face, Dot: fixed.P(x, y)}
	drawer.DrawString(l.text)
}

// scale draws the colours of the map from low to high, as the map shows them
// over mid gray.
func (b *band) scale(out *image.RGBA, top int) {
	left, right := b.width-b.margin-b.scaleWidth, b.width-b.margin
	y := top + b.margin + b.plainStep
	b.print(out, line{"relevance · pertinence", b.body, quietTint}, max(left, right-font.MeasureString(b.body, "relevance · pertinence").Ceil()), y-b.plainStep/4)
	height := b.plainStep * 3 / 4
	for x := left; x < right; x++ {
		c := heatColour(float64(x-left) / float64(right-left-1))
		for dy := range height {
			out.SetRGBA(x, y+dy, c)
		}
	}
	y += height + b.plainStep
	b.print(out, line{"low · faible", b.body, quietTint}, left, y-b.plainStep/4)
	high := "high · forte"
	b.print(out, line{high, b.body, quietTint}, right-font.MeasureString(b.body, high).Ceil(), y-b.plainStep/4+b.shift(high))
}

// shift moves the right label down a line where the two would meet.
func (b *band) shift(high string) int {
	if font.MeasureString(b.body, "low · faible  "+high).Ceil() > b.scaleWidth {
		return b.plainStep
	}
	return 0
}

func (b *band) close() {
	b.title.Close()
	b.body.Close()
}
