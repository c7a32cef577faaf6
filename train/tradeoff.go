package train

import (
	"fmt"
	"math"
	"slices"
)

// TradeOff is a picture of what hardening costs and what it buys: each candidate
// is a point for each bound, its clean AUC across and its robust accuracy up.
type TradeOff struct {
	Floor  float64 // AUC that must be kept; 0: none is drawn
	Bounds []string
	Points []TradePoint // in the order in which lines join them
}

// TradePoint is a candidate.
type TradePoint struct {
	Name   string
	Kept   bool // the one that was chosen
	AUC    Interval
	Robust []Interval // by bound
}

// SVG draws it as a scalable picture.
func (t TradeOff) SVG() []byte { return t.draw().svg() }

// PNG draws it as an image of 1520×960 pixels.
func (t TradeOff) PNG() ([]byte, error) { return t.draw().png(2) }

func (t TradeOff) draw() *drawing {
	const left, top, width, height = 80.0, 50.0, 500.0, 350.0
	d := &drawing{width: 760, height: 480}
	d.text(left+width/2, 26, 15, middle, ink, "what is kept, and what is withstood (validation, bars 95 %)")
	d.text(left+width/2, top+height+42, 13, middle, ink, "AUC of clean images")
	d.text(left, top-8, 13, middle, ink, "accuracy under attack")
	var across []float64
	for _, p := range t.Points {
		across = append(across, p.AUC.Low, p.AUC.High)
	}
	if t.Floor > 0 {
		across = append(across, t.Floor)
	}
	if len(t.Points) == 0 {
		d.text(left+width/2, top+height/2, 13, middle, quiet, "no candidates")
		return d
	}
	ticks := axis(slices.Min(across), slices.Max(across))
	low, high := ticks[0], ticks[len(ticks)-1]
	x := func(v float64) float64 { return left + width*(v-low)/(high-low) }
	y := func(v float64) float64 { return top + height*(1-v) }
	digits := max(0, -int(math.Floor(math.Log10((high-low)/float64(len(ticks)-1))+1e-9)))
	for _, v := range ticks {
		d.line(grid, 1, point{x(v), top}, point{x(v), top + height})
		d.text(x(v), top+height+18, 12, middle, quiet, fmt.Sprintf("%.*f", digits, v))
	}
	for k := range 6 {
		v := float64(k) / 5
		d.line(grid, 1, point{left, y(v)}, point{left + width, y(v)})
		d.text(left-8, y(v)+4, 12, end, quiet, fmt.Sprintf("%.1f", v))
	}
	if t.Floor > 0 {
		d.line(quiet, 1.5, point{x(t.Floor), top}, point{x(t.Floor), top + height})
		d.text(x(t.Floor)+4, top+height-6, 12, start, quiet, "AUC that must be kept")
	}
	colours := []string{blue, orange, green, ink, quiet}
	for b, bound := range t.Bounds {
		colour := colours[b%len(colours)]
		var line []point
		for _, p := range t.Points {
			at := point{x(p.AUC.Value), y(p.Robust[b].Value)}
			line = append(line, at)
			d.line(colour, 1, point{at.x, y(p.Robust[b].Low)}, point{at.x, y(p.Robust[b].High)})
			size := 3.0
			if p.Kept {
				size = 6
			}
			d.line(colour, size, point{at.x - size, at.y}, point{at.x + size, at.y})
		}
		d.line(colour, 1.5, line...)
		d.text(left+width+16, top+18*float64(b)+10, 13, start, colour, bound)
	}
	names := slices.Clone(t.Points)
	slices.SortStableFunc(names, func(a, b TradePoint) int { return int(math.Copysign(1, b.AUC.Value-a.AUC.Value)) })
	below := top + 18*float64(len(t.Bounds)) + 30
	d.text(left+width+16, below, 12, start, ink, "from right to left:")
	for i, p := range names {
		name := p.Name
		if p.Kept {
			name += " (kept)"
		}
		d.text(left+width+16, below+16*float64(i+1), 12, start, quiet, name)
	}
	return d
}
