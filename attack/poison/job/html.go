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
	"io"

	"github.com/vigie/vigie/attack/poison"
)

//go:embed audit.html
var auditPage string

const (
	shownFindings = 24  // of a kind that the page has pictures of
	shownImages   = 8   // of a finding
	pictureSide   = 192 // pixels that a picture is averaged down to
)

type pictured struct {
	URL     template.URL
	Caption string
}

type told struct {
	Found
	Pictures []pictured
	Left     int // images without a picture
}

type section struct {
	Kind  poison.Kind
	Title string
	Count int
	Told  []told
	Left  int
}

// WriteHTML writes the report as one page that needs nothing else.
func (r *Report) WriteHTML(w io.Writer) error {
	data := struct {
		R        *Report
		Sections []section
		Wrong    string
	}{R: r, Wrong: fmt.Sprintf("%.0f", 100*r.Precision)}
	for _, k := range poison.Kinds() {
		s := section{Kind: k, Title: kindText[k], Count: r.Counts[k]}
		for _, f := range r.Findings {
			if f.Kind != k {
				continue
			}
			if len(s.Told) == shownFindings {
				s.Left++
				continue
			}
			t, err := r.tell(f)
			if err != nil {
				return err
			}
			s.Told = append(s.Told, t)
		}
		if s.Count > 0 {
			data.Sections = append(data.Sections, s)
		}
	}
	page, err := template.New("audit").Funcs(template.FuncMap{
		"percent": func(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) },
		"number":  func(v float64) string { return fmt.Sprintf("%.3g", v) },
	}).Parse(auditPage)
	if err != nil {
		return fmt.Errorf("job: the audit's page: %w", err)
	}
	return page.Execute(w, data)
}

// tell draws a finding's first images, with what is meant framed.
func (r *Report) tell(f Found) (told, error) {
	t := told{Found: f}
	for k, i := range f.Cases {
		if k == shownImages {
			t.Left = len(f.Cases) - k
			break
		}
		var frames []frame
		if f.Mark != nil && !f.Mark.Moves {
			frames = append(frames, frame{f.Mark.Row, f.Mark.Column, f.Mark.Side, f.Mark.Side})
		}
		if f.Copy != nil {
			if k == 0 {
				frames = append(frames, frame{f.Copy.Row, f.Copy.Column, f.Copy.Rows, f.Copy.Columns})
			}
			if k == 1 || f.Copy.First == f.Copy.Second {
				frames = append(frames, frame{f.Copy.OtherRow, f.Copy.OtherColumn, f.Copy.Rows, f.Copy.Columns})
			}
		}
		url, err := r.picture(i, frames)
		if err != nil {
			return t, err
		}
		at := r.caseAt(i)
		caption := at.Place + ": " + at.Label
		if at.Site != "" {
			caption += ", " + at.Site
		}
		t.Pictures = append(t.Pictures, pictured{url, caption})
	}
	return t, nil
}

type frame struct{ row, column, rows, columns int }

// picture draws a case, enlarged by a whole number so that frames fit around
// pixels.
func (r *Report) picture(i int, frames []frame) (template.URL, error) {
	values, rows, columns := r.cases.Grey(i, pictureSide)
	times := max(1, pictureSide/max(rows, columns))
	out := image.NewRGBA(image.Rect(0, 0, columns*times, rows*times))
	for y := range rows * times {
		for x := range columns * times {
			v := uint8(min(max(values[y/times*columns+x/times], 0), 1)*255 + 0.5)
			out.SetRGBA(x, y, color.RGBA{v, v, v, 255})
		}
	}
	red := color.RGBA{0xe0, 0x3c, 0x31, 255}
	sy, sx := float64(rows*times)/float64(r.cases.Set.Rows), float64(columns*times)/float64(r.cases.Set.Columns)
	for _, f := range frames {
		top, left := int(float64(f.row)*sy)-1, int(float64(f.column)*sx)-1
		bottom, right := int(float64(f.row+f.rows)*sy), int(float64(f.column+f.columns)*sx)
		for x := left; x <= right; x++ {
			set(out, x, top, red)
			set(out, x, bottom, red)
		}
		for y := top; y <= bottom; y++ {
			set(out, left, y, red)
			set(out, right, y, red)
		}
	}
	return inline(out)
}

// set keeps a frame at the edge within the picture.
func set(m *image.RGBA, x, y int, c color.RGBA) {
	b := m.Bounds()
	m.SetRGBA(min(max(x, 0), b.Dx()-1), min(max(y, 0), b.Dy()-1), c)
}

func inline(picture image.Image) (template.URL, error) {
	var b bytes.Buffer
	if err := png.Encode(&b, picture); err != nil {
		return "", fmt.Errorf("job: drawing an image: %w", err)
	}
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(b.Bytes())), nil
}
