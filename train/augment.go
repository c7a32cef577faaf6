package train

import (
	"math"
	"math/rand/v2"
)

// Augmentation says how far a training image is moved and changed. Every
// amount is drawn uniformly from its range; the zero value changes nothing.
type Augmentation struct {
	Shift      float64 `json:"shift,omitempty"`      // pixels, along each axis
	Rotation   float64 `json:"rotation,omitempty"`   // degrees, either way
	Zoom       float64 `json:"zoom,omitempty"`       // 0.1: between 1/1.1 and 1.1
	Contrast   float64 `json:"contrast,omitempty"`   // 0.1: factor between 0.9 and 1.1 around the image's mean
	Brightness float64 `json:"brightness,omitempty"` // added, on the scale 0..1
	Noise      float64 `json:"noise,omitempty"`      // standard deviation of Gaussian noise
	Whole      bool    `json:"whole,omitempty"`      // shift by whole pixels: without rotation and zoom every value then stays as sharp as it was
	Mirror     float64 `json:"mirror,omitempty"`     // probability that left and right change places
	Erase      float64 `json:"erase,omitempty"`      // probability of one grey rectangle of up to a quarter of each side
}

func within(rng *rand.Rand, amount float64) float64 { return amount * (2*rng.Float64() - 1) }

// Apply writes the augmented image src [channels, rows, columns] of bytes to
// dst as floats in 0..1. What moves in from outside repeats the border. The same
// rng state gives the same image.
func (a Augmentation) Apply(dst []float32, src []uint8, channels, rows, columns int, rng *rand.Rand) {
	apply(a, dst, src, 255, channels, rows, columns, rng)
}

// ApplyFloats is Apply for an image of floats in 0..1.
func (a Augmentation) ApplyFloats(dst, src []float32, channels, rows, columns int, rng *rand.Rand) {
	apply(a, dst, src, 1, channels, rows, columns, rng)
}

// apply augments an image whose white is the given value.
func apply[T uint8 | float32](a Augmentation, dst []float32, src []T, white float32, channels, rows, columns int, rng *rand.Rand) {
	angle := within(rng, a.Rotation) * math.Pi / 180
	zoom := math.Exp(within(rng, math.Log1p(a.Zoom)))
	dy, dx := within(rng, a.Shift), within(rng, a.Shift)
	if a.Whole {
		dy, dx = math.Round(dy), math.Round(dx)
	}
	gain, offset := 1+within(rng, a.Contrast), within(rng, a.Brightness)
	across := 1.0
	if a.Mirror > 0 && rng.Float64() < a.Mirror {
		across = -1
	}
	cos, sin := math.Cos(angle)/zoom, math.Sin(angle)/zoom
	cy, cx := float64(rows-1)/2, float64(columns-1)/2
	for c := range channels {
		plane := src[c*rows*columns : (c+1)*rows*columns]
		out := dst[c*rows*columns : (c+1)*rows*columns]
		for y := range rows {
			for x := range columns {
				u, v := float64(x)-cx-dx, float64(y)-cy-dy
				out[y*columns+x] = sampleAt(plane, rows, columns, cy+cos*v-sin*u, cx+across*(cos*u+sin*v)) / white
			}
		}
	}
	if gain != 1 || offset != 0 {
		mean := 0.0
		for _, v := range dst {
			mean += float64(v)
		}
		mean /= float64(len(dst))
		for i, v := range dst {
			dst[i] = clamp01(float32((float64(v)-mean)*gain + mean + offset))
		}
	}
	if a.Noise > 0 {
		for i, v := range dst {
			dst[i] = clamp01(v + float32(a.Noise*rng.NormFloat64()))
		}
	}
	if a.Erase > 0 && rng.Float64() < a.Erase {
		erase(dst, channels, rows, columns, rng)
	}
}

func erase(dst []float32, channels, rows, columns int, rng *rand.Rand) {
	h, w := 1+rng.IntN(max(1, rows/4)), 1+rng.IntN(max(1, columns/4))
	top, left := rng.IntN(rows-h+1), rng.IntN(columns-w+1)
	for c := range channels {
		for y := top; y < top+h; y++ {
			for x := left; x < left+w; x++ {
				dst[(c*rows+y)*columns+x] = 0.5
			}
		}
	}
}

// sampleAt interpolates bilinearly, repeating the border.
func sampleAt[T uint8 | float32](plane []T, rows, columns int, y, x float64) float32 {
	y, x = math.Min(math.Max(y, 0), float64(rows-1)), math.Min(math.Max(x, 0), float64(columns-1))
	y0, x0 := int(y), int(x)
	y1, x1 := min(y0+1, rows-1), min(x0+1, columns-1)
	fy, fx := float32(y-float64(y0)), float32(x-float64(x0))
	top := float32(plane[y0*columns+x0])*(1-fx) + float32(plane[y0*columns+x1])*fx
	bottom := float32(plane[y1*columns+x0])*(1-fx) + float32(plane[y1*columns+x1])*fx
	return top*(1-fy) + bottom*fy
}

func clamp01(v float32) float32 { return min(max(v, 0), 1) }

// plain writes the image unchanged as floats in 0..1.
func plain(dst []float32, src []uint8) {
	for i, v := range src {
		dst[i] = float32(v) / 255
	}
}
