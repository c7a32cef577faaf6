package job

import (
	"fmt"
	"html/template"
	"math"
	"strings"
)

// line is a curve of a chart, with the ends of its intervals where it has some.
type line struct {
	Name      string
	X, Y      []float64
	Low, High []float64
	Dashed    bool
}

// axes of a chart. Logarithmic ones begin at Low.
type axes struct {
	X, Y                   string
	Logarithmic            [2]bool
	LowX, HighX, LowY, Top float64
	Diagonal               bool // what chance gives
}

var colours = []string{"#1f6f8b", "#b3372f", "#5a8f3c", "#8a5aa8", "#c47f17", "#5b6875", "#2b4c9b", "#9aa5b1"}

// chart draws curves as SVG.
func chart(a axes, lines []line) template.HTML {
	const width, height, left, right, top, bottom = 960.0, 380.0, 62.0, 20.0, 14.0, 46.0
	place := func(v, low, high float64, logarithmic bool) float64 {
		v = max(low, min(high, v))
		if logarithmic {
			return math.Log(v/low) / math.Log(high/low)
		}
		return (v - low) / (high - low)
	}
	x := func(v float64) float64 { return left + (width-left-right)*place(v, a.LowX, a.HighX, a.Logarithmic[0]) }
	y := func(v float64) float64 {
		return top + (height-top-bottom)*(1-place(v, a.LowY, a.Top, a.Logarithmic[1]))
	}
	ticks := func(low, high float64, logarithmic bool) (at []float64) {
		if logarithmic {
			for v := math.Pow(10, math.Ceil(math.Log10(low)-1e-9)); v <= high*1.0001; v *= 10 {
				at = append(at, v)
			}
			return at
		}
		for i := range 5 {
			at = append(at, low+(high-low)*float64(i)/4)
		}
		return at
	}
	var b strings.Builder
	const across = 4 // names of a row, below the chart
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="%s by %s">`, width, height+22*float64((len(lines)+across-1)/across), template.HTMLEscapeString(a.Y), template.HTMLEscapeString(a.X))
	for _, v := range ticks(a.LowY, a.Top, a.Logarithmic[1]) {
		fmt.Fprintf(&b, `<line x1="%g" x2="%g" y1="%.1f" y2="%.1f" stroke="#dde3e9"/><text x="%g" y="%.1f" text-anchor="end">%.3g</text>`, left, width-right, y(v), y(v), left-8, y(v)+4, v)
	}
	for _, v := range ticks(a.LowX, a.HighX, a.Logarithmic[0]) {
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%g" y2="%g" stroke="#eef2f5"/><text x="%.1f" y="%g" text-anchor="middle">%.4g</text>`, x(v), x(v), top, height-bottom, x(v), height-bottom+18, v)
	}
	if a.Diagonal {
		var points []string
		for i := range 101 {
			share := float64(i) / 100
			v := a.LowX + (a.HighX-a.LowX)*share
			if a.Logarithmic[0] {
				v = a.LowX * math.Pow(a.HighX/a.LowX, share)
			}
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(v), y(v)))
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="#9aa5b1" stroke-dasharray="5 4"/>`, strings.Join(points, " "))
	}
	for i, l := range lines {
		colour := colours[i%len(colours)]
		var points, band, back []string
		for k := range l.X {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(l.X[k]), y(l.Y[k])))
			if l.High != nil {
				band = append(band, fmt.Sprintf("%.1f,%.1f", x(l.X[k]), y(l.High[k])))
				back = append([]string{fmt.Sprintf("%.1f,%.1f", x(l.X[k]), y(l.Low[k]))}, back...)
			}
		}
		if band != nil {
			fmt.Fprintf(&b, `<polygon points="%s %s" fill="%s" fill-opacity="0.10"/>`, strings.Join(band, " "), strings.Join(back, " "), colour)
		}
		dash := ""
		if l.Dashed {
			dash = ` stroke-dasharray="5 4"`
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>`, strings.Join(points, " "), colour, dash)
		nameX, nameY := left+(width-left-right)/across*float64(i%across), height+14+22*float64(i/across)
		fmt.Fprintf(&b, `<line x1="%g" x2="%g" y1="%g" y2="%g" stroke="%s" stroke-width="3"%s/><text x="%g" y="%g">%s</text>`,
			nameX, nameX+26, nameY-4, nameY-4, colour, dash, nameX+34, nameY, template.HTMLEscapeString(l.Name))
	}
	fmt.Fprintf(&b, `<text x="%g" y="%g" text-anchor="middle">%s</text>`, (left+width-right)/2, height-6, template.HTMLEscapeString(a.X))
	fmt.Fprintf(&b, `<text x="14" y="%g" text-anchor="middle" transform="rotate(-90 14 %g)">%s</text></svg>`, (top+height-bottom)/2, (top+height-bottom)/2, template.HTMLEscapeString(a.Y))
	return template.HTML(b.String())
}
