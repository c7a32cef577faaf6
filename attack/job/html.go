package job

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/train"
)

//go:embed report.html
var page string

// shown is how many fooled images the report has pictures of.
const shown = 12

// pictured is a fooled image in the report.
type pictured struct {
	Index                     int
	From, To                  string
	Before, After, Difference template.URL
	Times                     int
	Largest                   string
	L2                        float64
	Changed                   int
	Place                     *attack.Place
}

// guardedRow is an attacker at a bound.
type guardedRow struct {
	Bound, Attacker string
	P               *Passing
}

// SaveHTML writes the report as one page that needs nothing else: figures with
// intervals, a curve over the bounds, pictures, and how to get it again. The file
// appears whole or not at all.
func (r *Report) SaveHTML(path string) error {
	type row struct {
		Bound string
		P     Point
	}
	type distance struct {
		Norm attack.Norm
		Q    Quantiles
	}
	data := struct {
		R         *Report
		Name      string
		Within    string
		Chart     template.HTML
		Rows      []row
		Guarded   []guardedRow
		Distances []distance
		Cases     []pictured
	}{R: r, Name: filepath.Base(r.Model), Within: r.within(r.Point), Chart: r.chart()}
	for _, p := range r.Curve {
		data.Rows = append(data.Rows, row{r.within(p), p})
		if p.Guarded != nil {
			for _, c := range p.Guarded.columns() {
				data.Guarded = append(data.Guarded, guardedRow{r.within(p), c.Attacker, c.Passing})
			}
		}
	}
	for _, norm := range []attack.Norm{attack.Linf, attack.L2, attack.L1, attack.L0} {
		if q, ok := r.Distances[norm]; ok {
			data.Distances = append(data.Distances, distance{norm, q})
		}
	}
	var err error
	if data.Cases, err = r.pictures(); err != nil {
		return err
	}
	t, err := template.New("report").Funcs(template.FuncMap{
		"percent":  func(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) },
		"interval": func(v train.Interval) string { return fmt.Sprintf("%.1f to %.1f", 100*v.Low, 100*v.High) },
		"number":   func(v float64) string { return fmt.Sprintf("%.4g", v) },
	}).Parse(page)
	if err != nil {
		return fmt.Errorf("job: the report's page: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return fmt.Errorf("job: writing the report: %w", err)
	}
	temporary := path + ".part"
	if err := os.WriteFile(temporary, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("job: writing the report: %w", err)
	}
	return os.Rename(temporary, path)
}

// checkReport says before the attack that the report cannot be written after it.
func (o Options) checkReport() error {
	if o.Report == "" {
		return nil
	}
	if !strings.EqualFold(filepath.Ext(o.Report), ".html") {
		return fmt.Errorf("job: report %s: %w: name a .html file", o.Report, ErrAsk)
	}
	if _, err := os.Stat(filepath.Dir(o.Report)); err != nil {
		return fmt.Errorf("job: report: %w", err)
	}
	return nil
}

// within is a bound in words.
func (r *Report) within(p Point) string {
	switch {
	case r.Side > 0:
		return fmt.Sprintf("by a patch of %d×%d pixels", r.Side, r.Side)
	case p.Eps == 0:
		return "at any distance"
	}
	return fmt.Sprintf("within %s %s", r.Norm, p.EpsText)
}

func (r *Report) pictures() ([]pictured, error) {
	class := func(c int) string {
		if c < len(r.Classes) {
			return r.Classes[c]
		}
		return fmt.Sprintf("class %d", c)
	}
	var all []pictured
	for i, c := range r.result.Cases {
		if !c.Fooled || len(all) == shown {
			continue
		}
		d, before, after := r.subject.pair(i, r.result)
		if len(d.Shape) != 3 {
			return nil, nil
		}
		p := pictured{Index: r.subject.index[i], From: class(c.Answer), To: class(c.After), L2: c.Distance[attack.L2],
			Changed: int(c.Distance[attack.L0]), Place: c.Place}
		largest := attack.Linf.Distance(before, after) / (d.High - d.Low)
		p.Largest = fmt.Sprintf("%.3g/255", 255*largest)
		p.Times = max(1, int(0.5/max(largest, 1e-4)))
		var err error
		for _, part := range []struct {
			to      *template.URL
			picture image.Image
		}{{&p.Before, picture16(d, before)}, {&p.After, picture16(d, after)}, {&p.Difference, difference(d, before, after, float64(p.Times))}} {
			if *part.to, err = inline(part.picture); err != nil {
				return nil, err
			}
		}
		all = append(all, p)
	}
	return all, nil
}

// pair is an image before and after, as it is shown: of a DICOM file what a
// person sees, made small.
func (s *subject) pair(i int, r *attack.Result) (attack.Description, []float32, []float32) {
	if !s.dicom {
		d := s.target.Describe()
		return d, s.pixels[i*d.Size() : (i+1)*d.Size()], r.Pixels[i*d.Size() : (i+1)*d.Size()]
	}
	f := s.files[i]
	step := max(1, max(f.before.Rows, f.before.Columns)/300)
	rows, columns := f.before.Rows/step, f.before.Columns/step
	small := func(l *dicom.Luminance) []float32 {
		out := make([]float32, 0, rows*columns)
		for row := range rows {
			for column := range columns {
				out = append(out, l.At(row*step, column*step))
			}
		}
		return out
	}
	return attack.Description{Shape: []int64{1, int64(rows), int64(columns)}, High: 1}, small(f.before), small(f.after)
}

// difference draws what was added in red and what was taken away in blue, on
// white; of several channels the mean.
func difference(d attack.Description, before, after []float32, times float64) image.Image {
	planes, rows, columns := int(d.Shape[0]), int(d.Shape[1]), int(d.Shape[2])
	out := image.NewRGBA(image.Rect(0, 0, columns, rows))
	for i := range rows * columns {
		sum := 0.0
		for c := range planes {
			sum += (float64(after[c*rows*columns+i]) - float64(before[c*rows*columns+i])) / (d.High - d.Low) / float64(planes)
		}
		share := math.Min(1, 2*times*math.Abs(sum))
		towards := color.RGBA{R: 0xb3, G: 0x37, B: 0x2f, A: 0xff}
		if sum < 0 {
			towards = color.RGBA{R: 0x1f, G: 0x5f, B: 0xa8, A: 0xff}
		}
		mix := func(v uint8) uint8 { return uint8(math.Round(255 + share*(float64(v)-255))) }
		out.SetRGBA(i%columns, i/columns, color.RGBA{R: mix(towards.R), G: mix(towards.G), B: mix(towards.B), A: 0xff})
	}
	return out
}

func inline(picture image.Image) (template.URL, error) {
	var b bytes.Buffer
	if err := png.Encode(&b, picture); err != nil {
		return "", fmt.Errorf("job: drawing an image: %w", err)
	}
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(b.Bytes())), nil
}

// curve is accuracy by bound: the bounds attacked, and for an attack without a
// bound every distance at which an image falls.
func (r *Report) curve() []Point {
	var points []Point
	if !r.Bounded && r.Side == 0 {
		q, ok := r.Distances[r.Norm]
		if !ok {
			return nil
		}
		const steps = 60
		for i := range steps {
			points = append(points, point(within(r.result, q.Most*1.05*float64(i+1)/steps), Eps{Value: q.Most * 1.05 * float64(i+1) / steps}))
		}
		return points
	}
	for _, p := range r.Curve {
		if p.Eps > 0 {
			points = append(points, p)
		}
	}
	return points
}

// chart draws the curve as SVG.
func (r *Report) chart() template.HTML {
	points := r.curve()
	if len(points) == 0 {
		return ""
	}
	const width, height, left, right, top, bottom = 960.0, 320.0, 56.0, 20.0, 14.0, 46.0
	most := points[len(points)-1].Eps
	x := func(eps float64) float64 { return left + (width-left-right)*eps/most }
	y := func(share float64) float64 { return top + (height-top-bottom)*(1-share) }
	clean := Point{RobustAccuracy: r.CleanAccuracy}
	clean.Intervals.RobustAccuracy = r.Intervals.CleanAccuracy
	points = append([]Point{clean}, points...)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="accuracy under attack by bound">`, width, height)
	for share := 0.0; share <= 1; share += 0.25 {
		fmt.Fprintf(&b, `<line x1="%g" x2="%g" y1="%.1f" y2="%.1f" stroke="#dde3e9"/><text x="%g" y="%.1f" text-anchor="end">%.0f %%</text>`,
			left, width-right, y(share), y(share), left-8, y(share)+4, 100*share)
	}
	var upper, lower, line []string
	for _, p := range points {
		upper = append(upper, fmt.Sprintf("%.1f,%.1f", x(p.Eps), y(p.Intervals.RobustAccuracy.High)))
		lower = append([]string{fmt.Sprintf("%.1f,%.1f", x(p.Eps), y(p.Intervals.RobustAccuracy.Low))}, lower...)
		line = append(line, fmt.Sprintf("%.1f,%.1f", x(p.Eps), y(p.RobustAccuracy)))
	}
	fmt.Fprintf(&b, `<polygon points="%s %s" fill="#1f6f8b" fill-opacity="0.15"/>`, strings.Join(upper, " "), strings.Join(lower, " "))
	fmt.Fprintf(&b, `<line x1="%g" x2="%g" y1="%.1f" y2="%.1f" stroke="#5b6875" stroke-dasharray="5 4"/>`, left, width-right, y(r.CleanAccuracy), y(r.CleanAccuracy))
	fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="#1f6f8b" stroke-width="2"/>`, strings.Join(line, " "))
	every := max(1, len(points)/10)
	for i, p := range points {
		label := p.EpsText
		if label == "" {
			label = fmt.Sprintf("%.3g", p.Eps)
		}
		if len(points) <= 20 {
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="4" fill="#1f6f8b"><title>%s: %.1f %%</title></circle>`, x(p.Eps), y(p.RobustAccuracy), template.HTMLEscapeString(label), 100*p.RobustAccuracy)
		}
		if i%every == 0 {
			fmt.Fprintf(&b, `<text x="%.1f" y="%g" text-anchor="middle">%s</text>`, x(p.Eps), height-bottom+20, template.HTMLEscapeString(label))
		}
	}
	fmt.Fprintf(&b, `<text x="%g" y="%g" text-anchor="middle">bound on the perturbation, %s</text></svg>`, (left+width-right)/2, height-6, r.Norm)
	return template.HTML(b.String())
}
