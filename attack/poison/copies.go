package poison

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
)

// Copy is a region that is in two images, or twice in one, pixel for pixel but for
// a change of brightness.
type Copy struct {
	First, Second         int // cases; the same for a region moved within an image
	Row, Column           int // of the region in the first
	OtherRow, OtherColumn int // of it in the second
	Rows, Columns         int
	Patches               int // of 5×5 pixels that agree
}

const (
	copySide    = 5   // pixels of the patches that are compared
	copyTexture = 6.0 // grey levels that a patch's pixels deviate: flat ones agree anyway
	copyFewest  = 12  // patches that agree at one displacement: a region of 8×8 has 16
	copyCommon  = 24  // a patch that more images have than this is no copy but a mark
	copyWindows = 3e7 // patches that are held at once; of more, some are left out by their content
)

// copies finds shared regions. Images of one family are copies as a whole, which
// is another finding.
func copies(ctx context.Context, c *Cases, family []int, progress func(float64)) ([]Copy, error) {
	images, rows, columns := c.byteImages(), c.Set.Rows, c.Set.Columns
	thin := uint64(1 + len(images)*rows*columns/copyWindows)
	var all []window
	for i, image := range images {
		if i%64 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			progress(0.7 * float64(i) / float64(len(images)))
		}
		for r := 0; r+copySide <= rows; r++ {
			for x := 0; x+copySide <= columns; x++ {
				first, key, sum, squares := int(image[r*columns+x]), uint64(0), 0, 0
				for y := r; y < r+copySide; y++ {
					for _, v := range image[y*columns+x : y*columns+x+copySide] {
						d := int(v) - first
						key = (key ^ uint64(d+256)) * 1099511628211
						sum += d
						squares += d * d
					}
				}
				key ^= key >> 29
				const n = copySide * copySide
				if key%thin != 0 || float64(squares)/n-math.Pow(float64(sum)/n, 2) < copyTexture*copyTexture {
					continue
				}
				all = append(all, window{key, int32(i), int32(r*columns + x)})
			}
		}
	}
	slices.SortFunc(all, func(a, b window) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.image, b.image), cmp.Compare(a.at, b.at))
	})
	type link struct{ a, b, dy, dx int }
	found := map[link][]int{} // places in the first
	for from := 0; from < len(all); {
		to := from
		for to < len(all) && all[to].key == all[from].key {
			to++
		}
		group := all[from:to]
		from = to
		if len(group) < 2 || len(group) > copyCommon {
			continue
		}
		for k, a := range group {
			for _, b := range group[k+1:] {
				dy, dx := int(b.at)/columns-int(a.at)/columns, int(b.at)%columns-int(a.at)%columns
				if a.image != b.image && family[a.image] == family[b.image] || a.image == b.image && max(dy, -dy) < copySide && max(dx, -dx) < copySide {
					continue
				}
				l := link{int(a.image), int(b.image), dy, dx}
				found[l] = append(found[l], int(a.at))
			}
		}
	}
	var out []Copy
	for l, at := range found {
		slices.Sort(at)
		if at = slices.Compact(at); len(at) < max(4, copyFewest/int(thin)) {
			continue
		}
		top, bottom, left, right := rows, 0, columns, 0
		for _, p := range at {
			top, bottom = min(top, p/columns), max(bottom, p/columns+copySide)
			left, right = min(left, p%columns), max(right, p%columns+copySide)
		}
		out = append(out, Copy{l.a, l.b, top, left, top + l.dy, left + l.dx, bottom - top, right - left, len(at)})
	}
	slices.SortFunc(out, func(a, b Copy) int {
		return cmp.Or(cmp.Compare(b.Patches, a.Patches), cmp.Compare(a.First, b.First), cmp.Compare(a.Second, b.Second), cmp.Compare(a.Row, b.Row), cmp.Compare(a.OtherRow, b.OtherRow), cmp.Compare(a.Column, b.Column))
	})
	progress(1)
	return out, nil
}

// Odd is an image that is not like one that a detector made.
type Odd struct {
	Case  int
	Why   string
	Score float64 // what Why names
}

const noiseAway = 8.0 // robust deviations from which an image's noise is unusual

// oddities finds constant and symmetric images, those of few grey levels among
// many of more, and those whose fine noise is unusual among the others.
func oddities(c *Cases) []Odd {
	n := c.Len()
	noise, levels := make([]float64, n), make([]int, n)
	var out []Odd
	images := c.byteImages()
	constant := make([]bool, n)
	for i, image := range images {
		seen := [256]bool{}
		for _, v := range image {
			seen[v] = true
		}
		for _, s := range seen {
			if s {
				levels[i]++
			}
		}
		if constant[i] = slices.Max(image)-slices.Min(image) <= 2; constant[i] {
			out = append(out, Odd{i, "its pixels are all of one grey value, give or take one level", float64(levels[i])})
		}
		noise[i] = fine(c.grey(i))
	}
	usual := make([]float64, 0, n)
	for i, k := range levels {
		if !constant[i] {
			usual = append(usual, float64(k))
		}
	}
	middle := median(usual)
	logs := make([]float64, n)
	for i, v := range noise {
		logs[i] = math.Log(v + 0.1)
	}
	centre, scale := median(logs), max(spread(logs), 0.05)
	for i, image := range images {
		if constant[i] {
			continue
		}
		if levels[i] <= 8 && middle > 32 {
			out = append(out, Odd{i, fmt.Sprintf("it has %d grey levels, the others %.0f at the median", levels[i], middle), float64(levels[i])})
			continue
		}
		mirrored := true
		for r := range c.Set.Rows {
			row := image[r*c.Set.Columns : (r+1)*c.Set.Columns]
			for x := range len(row) / 2 {
				mirrored = mirrored && row[x] == row[len(row)-1-x]
			}
		}
		if mirrored {
			out = append(out, Odd{i, "its left half is the mirror image of its right half, pixel for pixel", 1})
			continue
		}
		if away := (logs[i] - centre) / scale; math.Abs(away) > noiseAway {
			than := "rougher"
			if away < 0 {
				than = "smoother"
			}
			out = append(out, Odd{i, fmt.Sprintf("its finest detail is %.2g grey levels, %s than the others' (%.2g at the median) by %.0f robust deviations", noise[i], than, median(noise), math.Abs(away)), math.Abs(away)})
		}
	}
	slices.SortStableFunc(out, func(a, b Odd) int { return cmp.Compare(a.Case, b.Case) })
	return out
}

// fine is the median size, in grey levels, of what a 3×3 high-pass filter leaves
// (Immerkær 1996): noise more than anatomy.
func fine(p plane) float64 {
	var sizes []float64
	for r := 1; r+1 < p.rows; r++ {
		for c := 1; c+1 < p.columns; c++ {
			at := r*p.columns + c
			v := p.values
			e := v[at-p.columns-1] - 2*v[at-p.columns] + v[at-p.columns+1] - 2*v[at-1] + 4*v[at] - 2*v[at+1] + v[at+p.columns-1] - 2*v[at+p.columns] + v[at+p.columns+1]
			sizes = append(sizes, math.Abs(float64(e))*255/6)
		}
	}
	return median(sizes)
}
