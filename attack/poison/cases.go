package poison

import (
	"fmt"

	"github.com/vigie/vigie/train"
)

// Cases are the images under audit, of all parts together.
type Cases struct {
	Set    *train.Set // [N] images with labels that exclude each other
	Splits []string   // part that each is in; nil: the data are not divided
	Sites  []string   // who contributed each; nil: not known
	Places []string   // how each is found again, such as a file, or train/12
}

// Len is the number of cases.
func (c *Cases) Len() int { return c.Set.Len() }

// Check finds what the audit would stumble over.
func (c *Cases) Check() error {
	if c.Set.Shape != nil {
		return fmt.Errorf("poison: auditing examples of shape %v: %w: want images", c.Set.Shape, ErrData)
	}
	if c.Set.Multi() {
		return fmt.Errorf("poison: auditing labels that do not exclude each other: %w: audit one label at a time", ErrData)
	}
	n := c.Set.Len()
	if n < fewest {
		return fmt.Errorf("poison: auditing %d images: %w: want at least %d", n, ErrData, fewest)
	}
	if min(c.Set.Rows, c.Set.Columns) < 8 {
		return fmt.Errorf("poison: auditing images of %d×%d: %w: want at least 8 pixels a side", c.Set.Rows, c.Set.Columns, ErrData)
	}
	for _, column := range [][]string{c.Splits, c.Sites, c.Places} {
		if column != nil && len(column) != n {
			return fmt.Errorf("poison: auditing %d images with %d entries of a column: %w", n, len(column), ErrData)
		}
	}
	return nil
}

// fewest is how many images an audit needs to say anything.
const fewest = 20

func (c *Cases) split(i int) string {
	if c.Splits == nil {
		return ""
	}
	return c.Splits[i]
}

// patient of a case; empty: not known.
func (c *Cases) patient(i int) string {
	if c.Set.Patients == nil {
		return ""
	}
	return c.Set.Patients[i]
}

// grey is the mean of an image's channels, 0..1.
func (c *Cases) grey(i int) plane {
	s := c.Set
	area := s.Rows * s.Columns
	all := make([]float32, s.Channels*area)
	s.Fill(all, i)
	if s.Channels > 1 {
		for p := range area {
			sum := float32(0)
			for ch := range s.Channels {
				sum += all[ch*area+p]
			}
			all[p] = sum / float32(s.Channels)
		}
	}
	return plane{s.Rows, s.Columns, all[:area]}
}

// plane is an image of one channel, row-major, 0..1.
type plane struct {
	rows, columns int
	values        []float32
}

// fit brings a plane to at most side pixels a side by averaging areas; a smaller
// one stays.
func (p plane) fit(side int) plane {
	if p.rows <= side && p.columns <= side {
		return p
	}
	rows, columns := min(p.rows, side), min(p.columns, side)
	out := plane{rows, columns, make([]float32, rows*columns)}
	for r := range rows {
		top, bottom := float64(r)*float64(p.rows)/float64(rows), float64(r+1)*float64(p.rows)/float64(rows)
		for c := range columns {
			left, right := float64(c)*float64(p.columns)/float64(columns), float64(c+1)*float64(p.columns)/float64(columns)
			sum, weight := 0.0, 0.0
			for y := int(top); y < p.rows && float64(y) < bottom; y++ {
				h := min(bottom, float64(y+1)) - max(top, float64(y))
				for x := int(left); x < p.columns && float64(x) < right; x++ {
					w := h * (min(right, float64(x+1)) - max(left, float64(x)))
					sum += w * float64(p.values[y*p.columns+x])
					weight += w
				}
			}
			out.values[r*columns+c] = float32(sum / weight)
		}
	}
	return out
}

// at reads a pixel; outside, the border repeats.
func (p plane) at(r, c int) float32 {
	return p.values[min(max(r, 0), p.rows-1)*p.columns+min(max(c, 0), p.columns-1)]
}

// blur is the mean over squares of 2·radius+1 pixels, in two passes.
func (p plane) blur(radius int) plane {
	once, out := plane{p.rows, p.columns, make([]float32, len(p.values))}, plane{p.rows, p.columns, make([]float32, len(p.values))}
	n := float32(2*radius + 1)
	for r := range p.rows {
		for c := range p.columns {
			sum := float32(0)
			for d := -radius; d <= radius; d++ {
				sum += p.at(r, c+d)
			}
			once.values[r*p.columns+c] = sum / n
		}
	}
	for r := range p.rows {
		for c := range p.columns {
			sum := float32(0)
			for d := -radius; d <= radius; d++ {
				sum += once.at(r+d, c)
			}
			out.values[r*p.columns+c] = sum / n
		}
	}
	return out
}

// minus is the difference of two planes of one size.
func (p plane) minus(q plane) plane {
	out := plane{p.rows, p.columns, make([]float32, len(p.values))}
	for i, v := range p.values {
		out.values[i] = v - q.values[i]
	}
	return out
}

// turned is one of the eight ways to lay a picture: turned by quarters, and from
// 4 on mirrored first.
func (p plane) turned(way int) plane {
	out := p
	if way >= 4 {
		out = plane{p.rows, p.columns, make([]float32, len(p.values))}
		for r := range p.rows {
			for c := range p.columns {
				out.values[r*p.columns+c] = p.values[r*p.columns+p.columns-1-c]
			}
		}
	}
	for range way % 4 {
		next := plane{out.columns, out.rows, make([]float32, len(out.values))}
		for r := range out.rows {
			for c := range out.columns {
				next.values[c*next.columns+out.rows-1-r] = out.values[r*out.columns+c]
			}
		}
		out = next
	}
	return out
}

// pool appends means over squares of side pixels.
func (p plane) pool(out []float32, side int) []float32 {
	for r := 0; r+side <= p.rows; r += side {
		for c := 0; c+side <= p.columns; c += side {
			sum := float32(0)
			for y := r; y < r+side; y++ {
				for x := c; x < c+side; x++ {
					sum += p.values[y*p.columns+x]
				}
			}
			out = append(out, sum/float32(side*side))
		}
	}
	return out
}

// Small are the images in grey, averaged down to at most side pixels a side.
func (c *Cases) Small(side int) *train.Set {
	s := *c.Set
	if s.Channels == 1 && s.Rows <= side && s.Columns <= side {
		return &s
	}
	s.Pixels, s.Values, s.Channels = nil, nil, 1
	for i := range c.Len() {
		p := c.grey(i).fit(side)
		s.Rows, s.Columns = p.rows, p.columns
		s.Values = append(s.Values, p.values...)
	}
	return &s
}

// Grey is the mean of an image's channels, 0..1, averaged down to at most side
// pixels a side.
func (c *Cases) Grey(i, side int) (values []float32, rows, columns int) {
	p := c.grey(i).fit(side)
	return p.values, p.rows, p.columns
}
