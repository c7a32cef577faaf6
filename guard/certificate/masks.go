package certificate

import (
	"errors"
	"fmt"
)

// ErrAsk says that what was asked does not fit the model or the image; the
// message says what would.
var ErrAsk = errors.New("cannot be certified like this")

// Size is a rectangle's, in pixels of a model's input.
type Size struct{ Rows, Columns int }

// Region is where in a model's input an image lies; the rest of it is padding,
// which no patch of the image reaches.
type Region struct{ Top, Left, Rows, Columns int }

// Whole is the region of an input without padding.
func Whole(rows, columns int) Region { return Region{Rows: rows, Columns: columns} }

// Mask is a rectangle of a model's input that is covered; bottom and right are
// excluded.
type Mask struct{ Top, Left, Bottom, Right int }

// Holds reports whether a pixel is covered.
func (m Mask) Holds(row, column int) bool {
	return row >= m.Top && row < m.Bottom && column >= m.Left && column < m.Right
}

// Cover is a set of masks of one size such that each rectangle of the patch's
// size in the region lies wholly within one of them (an R-covering mask set:
// Xiang et al. 2022, definition 2 and section 3.4).
type Cover struct {
	Patch Size
	Mask  Size // of each mask
	Masks []Mask
}

// Covering makes the cover of a region for patches of a size, with at most k
// masks along each axis. Of an axis of n pixels and a patch of p, the masks are
// p + s - 1 long and begin s apart, s = ⌈(n - p + 1) / k⌉: a mask that begins
// at a holds every patch that begins at a to a + s - 1. Fewer masks are larger,
// and hide more of the image. ErrAsk: the patch does not fit, or a mask would
// hide the whole image, which says nothing.
func Covering(region Region, patch Size, k int) (Cover, error) {
	if region.Rows < 1 || region.Columns < 1 || region.Top < 0 || region.Left < 0 {
		return Cover{}, fmt.Errorf("certificate: covering %d by %d pixels: %w: want an image", region.Rows, region.Columns, ErrAsk)
	}
	if patch.Rows < 1 || patch.Columns < 1 || patch.Rows > region.Rows || patch.Columns > region.Columns {
		return Cover{}, fmt.Errorf("certificate: covering patches of %d by %d in %d by %d pixels: %w: want a patch within the image", patch.Rows, patch.Columns, region.Rows, region.Columns, ErrAsk)
	}
	if k < 2 || k > MaxMasks {
		return Cover{}, fmt.Errorf("certificate: %d masks along an axis: %w: want 2 to %d", k, ErrAsk, MaxMasks)
	}
	tops, height := along(region.Rows, patch.Rows, k)
	lefts, width := along(region.Columns, patch.Columns, k)
	if height == region.Rows && width == region.Columns {
		return Cover{}, fmt.Errorf("certificate: patches of %d by %d in %d by %d pixels, %d masks along an axis: %w: a mask would hide the whole image; want smaller patches or more masks",
			patch.Rows, patch.Columns, region.Rows, region.Columns, k, ErrAsk)
	}
	c := Cover{Patch: patch, Mask: Size{height, width}}
	for _, top := range tops {
		for _, left := range lefts {
			c.Masks = append(c.Masks, Mask{region.Top + top, region.Left + left, region.Top + top + height, region.Left + left + width})
		}
	}
	return c, nil
}

// MaxMasks bounds the masks along an axis: 24 make 576, and 165,600 pairs.
const MaxMasks = 24

// along covers one axis: where its masks begin, and how long they are.
func along(n, p, k int) (starts []int, length int) {
	step := (n - p + k) / k // ⌈(n - p + 1) / k⌉
	length = p + step - 1
	for at := 0; at <= n-p; at += step {
		starts = append(starts, min(at, n-length)) // the last one ends at the border
	}
	return starts, length
}

// Pairs is how many masks are put over each other two by two in a second round.
func (c Cover) Pairs() int { return len(c.Masks) * (len(c.Masks) - 1) / 2 }

// Touched is how many of m pixels along an axis, to which n were brought by
// area averaging, size neighbouring ones of the n reach at most, wherever they
// lie. Each of the m is the mean over its share of the axis and over nothing
// else, so that every other one stays as it was, bit for bit.
func Touched(n, m, size int) int {
	most := 0
	for at := 0; at+size <= n; at++ {
		// In units of 1/(n·m) of the axis, pixel s of the n is [s·m, (s+1)·m) and
		// pixel t of the m is [t·n, (t+1)·n).
		most = max(most, ((at+size)*m-1)/n-at*m/n+1)
	}
	return most
}

// Longest is the largest number of neighbouring pixels of n that touch at most
// cells of m; 0 if a single one touches more.
func Longest(n, m, cells int) int {
	low, high := 0, n // Touched rises with the size
	for low < high {
		middle := (low + high + 1) / 2
		if Touched(n, m, middle) <= cells {
			low = middle
		} else {
			high = middle - 1
		}
	}
	return low
}
