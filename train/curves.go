package train

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// curve is one line of a chart.
type curve struct {
	name   string
	colour string // #rrggbb
	values []float64
}

// The colours keep apart for people who see red and green alike (Okabe and Ito
// 2008).
const (
	blue   = "#0072b2"
	orange = "#d55e00"
	green  = "#009e73"
	ink    = "#222222"
	quiet  = "#777777"
	grid   = "#dddddd"
	paper  = "#ffffff"
)

const (
	chartWidth  = 900.0
	chartHeight = 380.0
)

// curves draws loss on the left, and the validation AUC on the right, by epoch. Of
// a private run there is no training loss to draw, and the title says so.
func (h History) curves() *drawing {
	var training, loss, auc []float64
	for _, e := range h.Epochs {
		training, loss, auc = append(training, e.Loss), append(loss, e.ValidationLoss), append(auc, e.ValidationAUC)
	}
	d := &drawing{width: chartWidth, height: chartHeight}
	title, lines := "loss", []curve{{"training", blue, training}, {"validation", orange, loss}}
	if h.Recipe.Private != nil {
		title, lines = "loss (that of training is private: not released)", lines[1:]
	}
	d.panel(panel{left: 70, top: 50, width: 350, height: 270, title: title, best: h.Best}, lines...)
	d.panel(panel{left: 510, top: 50, width: 350, height: 270, title: "validation AUC", best: h.Best},
		curve{"", green, auc})
	return d
}

// SVG draws the learning curves as a scalable picture.
func (h History) SVG() []byte { return h.curves().svg() }

// PNG draws the learning curves as an image of 1800×760 pixels.
func (h History) PNG() ([]byte, error) { return h.curves().png(2) }

type panel struct {
	left, top, width, height float64
	title                    string
	best                     int // epoch to mark; 0 for none
}

// panel draws axes, a grid and curves. The vertical axis spans the finite values,
// without the first epochs if those would flatten all others.
func (d *drawing) panel(p panel, curves ...curve) {
	epochs := 0
	var all []float64
	for _, c := range curves {
		epochs = max(epochs, len(c.values))
		for _, v := range c.values {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				all = append(all, v)
			}
		}
	}
	d.text(p.left+p.width/2, p.top-18, 15, middle, ink, p.title)
	if len(all) == 0 {
		d.text(p.left+p.width/2, p.top+p.height/2, 13, middle, quiet, "no epochs")
		return
	}
	ticks := axis(slices.Min(all), slices.Max(all))
	low, high := ticks[0], ticks[len(ticks)-1]
	x := func(epoch float64) float64 {
		return p.left + p.width*(epoch-1)/math.Max(1, float64(epochs-1))
	}
	y := func(v float64) float64 {
		return p.top + p.height*(1-(math.Min(math.Max(v, low), high)-low)/(high-low))
	}
	digits := max(0, -int(math.Floor(math.Log10((high-low)/float64(len(ticks)-1))+1e-9)))
	for _, v := range ticks {
		d.line(grid, 1, point{p.left, y(v)}, point{p.left + p.width, y(v)})
		d.text(p.left-8, y(v)+4, 12, end, quiet, fmt.Sprintf("%.*f", digits, v))
	}
	step := max(1, int(math.Ceil(float64(epochs)/8)))
	for e := 1; e <= epochs; e += step {
		d.text(x(float64(e)), p.top+p.height+18, 12, middle, quiet, fmt.Sprint(e))
	}
	d.text(p.left+p.width/2, p.top+p.height+38, 12, middle, quiet, "epoch")
	if p.best > 0 && p.best <= epochs {
		d.line(quiet, 1, point{x(float64(p.best)), p.top}, point{x(float64(p.best)), p.top + p.height})
		d.text(x(float64(p.best)), p.top-4, 11, middle, quiet, fmt.Sprintf("best %d", p.best))
	}
	for i, c := range curves {
		var points []point
		flush := func() {
			if len(points) == 1 {
				points = append(points, point{points[0].x + 2, points[0].y})
			}
			if len(points) > 0 {
				d.line(c.colour, 2, points...)
			}
			points = nil
		}
		for e, v := range c.values {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				flush()
				continue
			}
			points = append(points, point{x(float64(e + 1)), y(v)})
		}
		flush()
		if c.name != "" {
			at := p.left + p.width - 110
			row := p.top + 16 + 18*float64(i)
			d.line(c.colour, 2, point{at, row - 4}, point{at + 22, row - 4})
			d.text(at+28, row, 12, start, ink, c.name)
		}
	}
	d.line(ink, 1, point{p.left, p.top}, point{p.left, p.top + p.height}, point{p.left + p.width, p.top + p.height})
}

// axis returns about five round values that enclose low and high.
func axis(low, high float64) []float64 {
	if high-low < 1e-9*math.Max(1, math.Abs(high)) {
		margin := math.Max(math.Abs(high)*0.1, 1e-3)
		low, high = low-margin, high+margin
	}
	rough := (high - low) / 5
	unit := math.Pow(10, math.Floor(math.Log10(rough)))
	step := 10 * unit
	for _, m := range []float64{1, 2, 5} {
		if m*unit >= rough {
			step = m * unit
			break
		}
	}
	first, last := math.Floor(low/step+1e-9), math.Ceil(high/step-1e-9)
	var out []float64
	for k := first; k <= last; k++ {
		out = append(out, k*step)
	}
	return out
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}
