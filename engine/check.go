package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vigie/vigie/onnx"
)

// checkInputs reports whether given has exactly the declared inputs, each of
// the declared type and shape, and whether a dimension that is named twice has
// the same size both times.
func checkInputs(declared []onnx.Value, given map[string]Tensor) error {
	if err := checkGiven("input", declared, given); err != nil {
		return err
	}
	sizes := map[string]int64{} // of named dimensions
	for _, v := range declared {
		if err := fit("input", v, given[v.Name], sizes); err != nil {
			return err
		}
	}
	return nil
}

// checkOutputs is checkInputs for buffers that results go to. A name that an
// exporter gave to an output's dimension need not mean the same as in another
// output, so that the sizes are not compared.
func checkOutputs(declared []onnx.Value, given map[string]Tensor) error {
	if err := checkGiven("output", declared, given); err != nil {
		return err
	}
	for _, v := range declared {
		if err := fit("output", v, given[v.Name], map[string]int64{}); err != nil {
			return err
		}
	}
	return nil
}

// checkGiven reports whether given has a tensor for each declared value and no
// others.
func checkGiven(kind string, declared []onnx.Value, given map[string]Tensor) error {
	for _, v := range declared {
		if _, ok := given[v.Name]; !ok {
			return fmt.Errorf("%s %q is missing: %w: want %v", kind, v.Name, ErrInput, v)
		}
	}
	if len(given) != len(declared) {
		for _, name := range slices.Sorted(maps.Keys(given)) {
			if !slices.ContainsFunc(declared, func(v onnx.Value) bool { return v.Name == name }) {
				return fmt.Errorf("%s %q is not one of the graph's: %w: it has %s", kind, name, ErrInput, names(declared))
			}
		}
	}
	return nil
}

// fit reports whether t may stand for v, and notes the sizes of v's named
// dimensions.
func fit(kind string, v onnx.Value, t Tensor, sizes map[string]int64) error {
	if err := t.Check(); err != nil {
		return fmt.Errorf("%s %q: %w: %w: want %v", kind, v.Name, ErrInput, err, v)
	}
	bad := func() error {
		return fmt.Errorf("%s %q is %v: %w: want %v", kind, v.Name, t, ErrInput, v)
	}
	if t.Type() != v.Type {
		return bad()
	}
	if v.Shape == nil {
		return nil
	}
	if len(v.Shape) != len(t.Shape) {
		return bad()
	}
	for i, d := range v.Shape {
		switch size := t.Shape[i]; {
		case d.Value >= 0 && d.Param == "":
			if d.Value != size {
				return bad()
			}
		case d.Param != "":
			if seen, ok := sizes[d.Param]; ok && seen != size {
				return fmt.Errorf("%s %q is %v: %w: dimension %q is already %d", kind, v.Name, t, ErrInput, d.Param, seen)
			}
			sizes[d.Param] = size
		}
	}
	return nil
}

// checkNames reports whether every name is one of the declared values.
func checkNames(declared []onnx.Value, given []string) error {
	for _, name := range given {
		if !slices.ContainsFunc(declared, func(v onnx.Value) bool { return v.Name == name }) {
			return fmt.Errorf("output %q is not one of the graph's: %w: it has %s", name, ErrInput, names(declared))
		}
	}
	return nil
}

func nameList(values []onnx.Value) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = v.Name
	}
	return list
}

func names(values []onnx.Value) string {
	return fmt.Sprintf("%q", strings.Join(nameList(values), ", "))
}
