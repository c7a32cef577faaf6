package probe

import (
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Limits of what is read: a gigabyte and more of numbers, beyond which a
// comparison belongs on a smaller batch.
var (
	arrayLimits  = train.Limits{Elements: 1 << 30}
	tensorLimits = safetensors.Limits{}
)

// ReadArray reads an .npy file.
func ReadArray(path string) (engine.Tensor, error) {
	f, err := os.Open(path)
	if err != nil {
		return engine.Tensor{}, fmt.Errorf("probe: reading an array: %w", err)
	}
	defer f.Close()
	a, err := train.ReadNPY(f, arrayLimits)
	if err != nil {
		return engine.Tensor{}, fmt.Errorf("probe: reading %s: %w", path, err)
	}
	return engine.Tensor{Shape: a.Shape, Data: a.Data}, nil
}

// Inputs reads the inputs of the model from files, each given as "x.npy" for
// the only input, as "NAME=x.npy", or as "x.safetensors" for all inputs that
// it names, and turns their elements into the types that the model declares.
// Whole numbers become floats as they are, without scaling. A table, "x.csv", is
// read by the encoding that the model keeps, as Evaluate reads it, or as numbers
// under a header if it keeps none.
func (m *Model) Inputs(files ...string) (map[string]engine.Tensor, error) {
	declared := m.inputs()
	inputs := map[string]engine.Tensor{}
	add := func(name string, t engine.Tensor, file string) error {
		at := slices.IndexFunc(declared, func(v onnx.Value) bool { return v.Name == name })
		if at < 0 {
			return fmt.Errorf("probe: input %q: %w: it has %s", name, ErrAsk, list(declared))
		}
		if _, twice := inputs[name]; twice {
			return fmt.Errorf("probe: input %q is given twice", name)
		}
		t, err := fit(t, declared[at])
		if err != nil {
			return fmt.Errorf("probe: input %q from %s: %w", name, file, err)
		}
		inputs[name] = t
		return nil
	}
	for _, file := range files {
		name, path, named := strings.Cut(file, "=")
		if !named {
			path = file
		}
		extension := strings.ToLower(filepath.Ext(path))
		if extension != ".csv" {
			var err error
			if extension, err = format(path); err != nil {
				return nil, fmt.Errorf("%w; a table .csv", err)
			}
		}
		switch {
		case extension == ".npz":
			return nil, fmt.Errorf("probe: %s: inputs are read from .npy, one each, or from .safetensors", path)
		case extension == ".safetensors" && named:
			return nil, fmt.Errorf("probe: %s: a .safetensors file names its tensors itself: leave %q away", path, name+"=")
		case extension == ".safetensors":
			held, err := readTensors(path)
			if err != nil {
				return nil, err
			}
			for _, name := range slices.Sorted(maps.Keys(held)) {
				if err := add(name, held[name], path); err != nil {
					return nil, err
				}
			}
			continue
		case !named && len(declared) != 1:
			return nil, fmt.Errorf("probe: %s: %w: it has %d inputs, say which with NAME=%s: %s", path, ErrAsk, len(declared), path, list(declared))
		case !named:
			name = declared[0].Name
		}
		var t engine.Tensor
		var err error
		if extension == ".csv" {
			var read *sheet
			if read, err = m.sheet(path); err == nil {
				t = read.numbers
			}
		} else {
			t, err = ReadArray(path)
		}
		if err != nil {
			return nil, err
		}
		if err := add(name, t, path); err != nil {
			return nil, err
		}
	}
	for _, v := range declared {
		if _, ok := inputs[v.Name]; !ok {
			return nil, fmt.Errorf("probe: input %q is missing: %w: want %v", v.Name, ErrAsk, v)
		}
	}
	return inputs, nil
}

func readTensors(path string) (map[string]engine.Tensor, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("probe: reading tensors: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("probe: reading tensors: %w", err)
	}
	held, err := safetensors.Read(f, info.Size(), tensorLimits)
	if err != nil {
		return nil, fmt.Errorf("probe: reading %s: %w", path, err)
	}
	return held.Tensors, nil
}

// fit checks a tensor's shape against a declaration and converts its elements.
func fit(t engine.Tensor, v onnx.Value) (engine.Tensor, error) {
	matches := v.Shape == nil || len(v.Shape) == len(t.Shape)
	for i, d := range v.Shape {
		matches = matches && (!d.Known() || d.Value == t.Shape[i])
	}
	if !matches {
		return t, fmt.Errorf("shape %v: %w: want %v", t.Shape, ErrAsk, v)
	}
	out, err := convert(t, v.Type)
	if err != nil {
		return t, fmt.Errorf("%w: want %v", err, v)
	}
	return out, nil
}

// convert turns the elements into another type. Floats may lose precision;
// whole numbers must stay what they are.
func convert(t engine.Tensor, typ onnx.DataType) (engine.Tensor, error) {
	if t.Type() == typ {
		return t, nil
	}
	out, err := engine.Zeros(typ, t.Shape...)
	if err != nil {
		return t, err
	}
	if isFloat(t.Type()) && !isFloat(typ) {
		return t, fmt.Errorf("elements of type %v: %w", t.Type(), ErrAsk)
	}
	switch from := t.Data.(type) {
	case []float32:
		err = assign(out.Data, from)
	case []float64:
		err = assign(out.Data, from)
	case []int64:
		err = assign(out.Data, from)
	case []int32:
		err = assign(out.Data, from)
	case []uint8:
		err = assign(out.Data, from)
	case []int8:
		err = assign(out.Data, from)
	default:
		err = fmt.Errorf("elements of type %v: %w", t.Type(), ErrAsk)
	}
	return out, err
}

func isFloat(typ onnx.DataType) bool { return typ == onnx.Float || typ == onnx.Double }

type number interface {
	float32 | float64 | int64 | int32 | uint8 | int8
}

func assign[F number](to any, from []F) error {
	switch to := to.(type) {
	case []float32:
		for i, v := range from {
			to[i] = float32(v)
		}
	case []float64:
		for i, v := range from {
			to[i] = float64(v)
		}
	case []int64:
		return narrow(to, from, math.MinInt64, math.MaxInt64)
	case []int32:
		return narrow(to, from, math.MinInt32, math.MaxInt32)
	case []uint8:
		return narrow(to, from, 0, math.MaxUint8)
	case []int8:
		return narrow(to, from, math.MinInt8, math.MaxInt8)
	case []bool:
		for i, v := range from {
			if v != 0 && v != 1 {
				return fmt.Errorf("element %d is %v, not a truth value: %w", i, v, ErrAsk)
			}
			to[i] = v == 1
		}
	}
	return nil
}

// narrow is only reached from whole numbers, so that the way over int64 is exact.
func narrow[T int64 | int32 | uint8 | int8, F number](to []T, from []F, low, high int64) error {
	for i, v := range from {
		w := int64(v)
		if w < low || w > high {
			return fmt.Errorf("element %d is %d, outside %d to %d: %w", i, w, low, high, ErrAsk)
		}
		to[i] = T(w)
	}
	return nil
}

// Save writes tensors to a file in the format that its name says: .safetensors
// (with metadata), .npz, or .npy for a single tensor. The file appears whole or
// not at all.
func Save(path string, tensors map[string]engine.Tensor, metadata map[string]string) error {
	extension, err := format(path)
	if err != nil {
		return err
	}
	if extension == ".npy" && len(tensors) != 1 {
		return fmt.Errorf("probe: writing %s: %d tensors; .npy holds one: use .npz or .safetensors, or ask for one", path, len(tensors))
	}
	if err := train.WriteWhole(path, func(w io.Writer) error { return encode(w, extension, tensors, metadata) }); err != nil {
		return fmt.Errorf("probe: writing %s: %w", path, err)
	}
	return nil
}

func encode(w io.Writer, extension string, tensors map[string]engine.Tensor, metadata map[string]string) error {
	if extension == ".safetensors" {
		return safetensors.Write(w, tensors, metadata)
	}
	arrays := make(map[string]train.Array, len(tensors))
	for name, t := range tensors {
		arrays[name] = train.Array{Shape: t.Shape, Data: t.Data}
		if extension == ".npy" {
			return train.WriteNPY(w, arrays[name])
		}
	}
	return train.WriteNPZ(w, arrays)
}
