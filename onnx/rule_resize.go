package onnx

import (
	"math"
	"slices"
)

var resizes = family{
	"Resize":   {10, resize},
	"Upsample": {7, upsample},
}

// resize takes scales in input 1 in version 10; since 11 scales in input 2 or
// sizes in input 3; since 18 possibly for some axes only and with a policy on
// the aspect ratio.
func resize(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	scales, sizes := o.x(2), o.x(3)
	if o.version < 11 {
		scales, sizes = o.x(1), nil
	}
	if scales != nil && len(scales.shape) == 1 && scales.shape[0] == (Dim{Value: 0}) {
		scales = nil // the older way to leave it out
	}
	if (scales == nil) == (sizes == nil) {
		return mistake("want either scales or sizes")
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	if x.shape == nil {
		return nil
	}
	o.set(0, x.typ, anyShape(len(x.shape)))
	over := make([]int, len(x.shape))
	for i := range over {
		over[i] = i
	}
	if list := o.Ints("axes"); list != nil {
		var err error
		if over, err = axes(list, len(x.shape)); err != nil {
			return err
		}
	}
	shape := slices.Clone(x.shape)
	if sizes != nil {
		if sizes.data.ints == nil {
			return nil
		}
		if len(sizes.data.ints) != len(over) {
			return mistake("%d sizes for %v", len(sizes.data.ints), x)
		}
		for i, a := range over {
			shape[a] = sizes.data.ints[i].dim()
		}
		if policy := o.Text("keep_aspect_ratio_policy", "stretch"); policy != "stretch" {
			keepRatio(x.shape, shape, over, policy == "not_larger")
		}
		o.set(0, x.typ, shape)
		return nil
	}
	if o.Text("coordinate_transformation_mode", "") == "tf_crop_and_resize" {
		return nil // the region of interest takes part
	}
	return o.scale(shape, over, scales.data.floats)
}

// keepRatio replaces the sizes asked for by those that keep the proportions:
// the largest that fit, or the smallest that cover.
func keepRatio(from, shape []Dim, over []int, fit bool) {
	ratio := math.Inf(1)
	if !fit {
		ratio = 0
	}
	for _, a := range over {
		if !from[a].Known() || !shape[a].Known() || from[a].Value == 0 {
			for _, a := range over {
				shape[a] = anyDim
			}
			return
		}
		r := float64(shape[a].Value) / float64(from[a].Value)
		if fit {
			ratio = min(ratio, r)
		} else {
			ratio = max(ratio, r)
		}
	}
	for _, a := range over {
		shape[a] = Dim{Value: int64(math.Round(ratio * float64(from[a].Value)))}
	}
}

// upsample takes scales from an attribute before version 9.
func upsample(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, x.shape)
	if x.shape == nil {
		return nil
	}
	over := make([]int, len(x.shape))
	for i := range over {
		over[i] = i
	}
	var scales []float64
	if o.version < 9 {
		for _, s := range o.Floats("scales") {
			scales = append(scales, float64(s))
		}
	} else if o.x(1) != nil {
		scales = o.x(1).data.floats
	}
	o.set(0, x.typ, anyShape(len(x.shape)))
	return o.scale(slices.Clone(x.shape), over, scales)
}

// scale sets output 0 to the shape with the axes in over scaled: the products,
// in single precision as the runtime computes them, rounded down.
func (o *op) scale(shape []Dim, over []int, scales []float64) error {
	if scales == nil {
		return nil
	}
	if len(scales) != len(over) {
		return mistake("%d scales for %d axes", len(scales), len(over))
	}
	for i, a := range over {
		switch s := scales[i]; {
		case !(s > 0) || s > math.MaxInt32:
			return mistake("scale %v", s)
		case s == 1:
		case !shape[a].Known() || shape[a].Value > math.MaxInt32:
			shape[a] = anyDim
		default:
			shape[a] = Dim{Value: int64(float32(shape[a].Value) * float32(s))}
		}
	}
	o.set(0, o.x(0).typ, shape)
	return nil
}
