package onnx

import "slices"

// matrices are the products.
var matrices = family{
	"MatMul": {1, matmul},
	"Gemm":   {7, gemm},
	"Einsum": {12, einsum},
}

// matmul is numpy.matmul; FusedMatMul can transpose either operand first.
func matmul(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	a, b := o.x(0), o.x(1)
	if a.typ != b.typ && a.typ != Undefined && b.typ != Undefined {
		return mistake("operands of types %v and %v", a.typ, b.typ)
	}
	o.set(0, a.typ, nil)
	if a.shape == nil || b.shape == nil {
		return nil
	}
	if len(a.shape) == 0 || len(b.shape) == 0 {
		return mistake("product with a scalar")
	}
	x, y := slices.Clone(a.shape), slices.Clone(b.shape)
	if o.Int("transBatchA", 0) != 0 || o.Int("transBatchB", 0) != 0 {
		o.set(0, a.typ, anyShape(max(len(x), len(y))))
		return nil
	}
	vectorA, vectorB := len(x) == 1, len(y) == 1
	if vectorA {
		x = slices.Insert(x, 0, Dim{Value: 1})
	} else if o.Int("transA", 0) != 0 {
		x[len(x)-1], x[len(x)-2] = x[len(x)-2], x[len(x)-1]
	}
	if vectorB {
		y = append(y, Dim{Value: 1})
	} else if o.Int("transB", 0) != 0 {
		y[len(y)-1], y[len(y)-2] = y[len(y)-2], y[len(y)-1]
	}
	if _, ok := same(x[len(x)-1], y[len(y)-2]); !ok {
		return mistake("product of %v and %v: inner dimensions %v and %v differ", a, b, x[len(x)-1], y[len(y)-2])
	}
	shape, err := broadcast(x[:len(x)-2], y[:len(y)-2])
	if err != nil {
		return err
	}
	if !vectorA {
		shape = append(shape, x[len(x)-2])
	}
	if !vectorB {
		shape = append(shape, y[len(y)-1])
	}
	o.set(0, a.typ, shape)
	return nil
}

func gemm(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	a, b := o.x(0), o.x(1)
	if a.typ != b.typ && a.typ != Undefined && b.typ != Undefined {
		return mistake("operands of types %v and %v", a.typ, b.typ)
	}
	out := anyShape(2)
	var inner [2]Dim = [2]Dim{anyDim, anyDim}
	for i, f := range []*fact{a, b} {
		if f.shape == nil {
			continue
		}
		if len(f.shape) != 2 {
			return mistake("operand %v: want a matrix", f)
		}
		rows, columns := f.shape[0], f.shape[1]
		if o.Int([]string{"transA", "transB"}[i], 0) != 0 {
			rows, columns = columns, rows
		}
		if i == 0 {
			out[0], inner[0] = rows, columns
		} else {
			inner[1], out[1] = rows, columns
		}
	}
	if _, ok := same(inner[0], inner[1]); !ok {
		return mistake("product of %v and %v: inner dimensions %v and %v differ", a, b, inner[0], inner[1])
	}
	if c := o.x(2); c != nil && c.shape != nil {
		stretched, err := broadcast(out, c.shape)
		if err != nil {
			return err
		}
		if len(stretched) != 2 || stretched[0].Known() && out[0].Known() && stretched[0] != out[0] ||
			stretched[1].Known() && out[1].Known() && stretched[1] != out[1] {
			return mistake("bias %v does not broadcast to %v", c, out)
		}
	}
	o.set(0, a.typ, out)
	return nil
}

// einsum follows the indices of the equation.
func einsum(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	ranks := make([]int, len(o.in))
	for i := range o.in {
		if o.x(i) == nil {
			return mistake("input %d is missing", i)
		}
		ranks[i] = o.x(i).rank()
	}
	o.set(0, o.x(0).typ, nil)
	e, err := ParseEinsum(o.Text("equation", ""), ranks)
	if err != nil {
		return err
	}
	if e == nil {
		return nil // an ellipsis over an unknown rank
	}
	sizes := map[int]Dim{}
	for i, term := range e.Terms {
		x := o.x(i)
		for j, index := range term {
			d := anyDim
			if x.shape != nil {
				d = x.shape[j]
			}
			if seen, ok := sizes[index]; ok {
				if d, ok = stretch(seen, d); !ok {
					return mistake("equation %q: an index is %v and %v", o.Text("equation", ""), seen, x.shape[j])
				}
			}
			sizes[index] = d
		}
	}
	shape := []Dim{}
	for _, index := range e.Result {
		shape = append(shape, sizes[index])
	}
	o.set(0, o.x(0).typ, shape)
	return nil
}
