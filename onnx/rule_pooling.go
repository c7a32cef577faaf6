package onnx

var pools = family{
	"MaxPool":           {1, pool},
	"AveragePool":       {1, pool},
	"LpPool":            {2, pool},
	"GlobalMaxPool":     {1, globalPool},
	"GlobalAveragePool": {1, globalPool},
	"GlobalLpPool":      {2, globalPool},
}

func pool(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	o.set(1, Int64, nil) // MaxPool's Indices
	if x.shape == nil {
		return nil
	}
	if len(x.shape) < 3 {
		return mistake("input %v: want 3 dimensions or more", x)
	}
	w, err := o.window(len(x.shape)-2, nil)
	if err != nil {
		return err
	}
	shape, err := w.slide(x.shape, x.shape[1])
	if err != nil {
		return err
	}
	o.set(0, x.typ, shape)
	o.set(1, Int64, shape)
	return nil
}

func globalPool(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, nil)
	if x.shape == nil {
		return nil
	}
	if len(x.shape) < 3 {
		return mistake("input %v: want 3 dimensions or more", x)
	}
	shape := append([]Dim{}, x.shape...)
	for i := range shape[2:] {
		shape[i+2] = Dim{Value: 1}
	}
	o.set(0, x.typ, shape)
	return nil
}
