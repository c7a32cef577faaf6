package onnx

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Save writes the model to a file, in the form of Marshal. A file that is there
// is replaced whole, or stays as it was: a full disk leaves no half model.
func (m *Model) Save(path string) error {
	data, err := m.Marshal()
	if err != nil {
		return err
	}
	temporary := path + ".part"
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		os.Remove(temporary)
		return fmt.Errorf("onnx: saving a model: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		os.Remove(temporary)
		return fmt.Errorf("onnx: saving a model: %w", err)
	}
	return nil
}

// Marshal returns the model in ONNX's file format. Equal models give equal
// bytes: fields and map keys have a fixed order, and tensors are written raw.
func (m *Model) Marshal() ([]byte, error) {
	if m.Graph == nil {
		return nil, fmt.Errorf("onnx: writing a model: it has no graph")
	}
	w := writer{}
	graph := w.graph(m.Graph)
	if w.err != nil {
		return nil, fmt.Errorf("onnx: writing graph %q: %w", m.Graph.Name, w.err)
	}
	b := make([]byte, 0, len(graph)+1024)
	b = appendInt(b, 1, m.IRVersion)
	b = appendText(b, 2, m.ProducerName)
	b = appendText(b, 3, m.ProducerVersion)
	b = appendBytes(b, 7, graph)
	for _, domain := range slices.Sorted(maps.Keys(m.Opsets)) {
		b = appendBytes(b, 8, appendInt(appendText(nil, 1, domain), 2, m.Opsets[domain]))
	}
	for _, key := range slices.Sorted(maps.Keys(m.Metadata)) {
		b = appendBytes(b, 14, appendText(appendText(nil, 1, key), 2, m.Metadata[key]))
	}
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("onnx: writing graph %q: %d bytes: %w", m.Graph.Name, len(b), ErrLimit)
	}
	return b, nil
}

// writer encodes the parts of a model; the first error sticks.
type writer struct{ err error }

func (w *writer) graph(g *Graph) []byte {
	size := 0
	for _, t := range g.Initializers {
		size += len(t.Raw) + len(t.Name) + 64
	}
	b := make([]byte, 0, size+len(g.Nodes)*96)
	for _, n := range g.Nodes {
		b = appendBytes(b, 1, w.node(n))
	}
	b = appendText(b, 2, g.Name)
	for _, t := range g.Initializers {
		b = w.tensor(b, 5, t)
	}
	for _, v := range g.Inputs {
		b = appendBytes(b, 11, value(v))
	}
	for _, v := range g.Outputs {
		b = appendBytes(b, 12, value(v))
	}
	for _, v := range g.ValueInfo {
		b = appendBytes(b, 13, value(v))
	}
	return b
}

func (w *writer) node(n *Node) []byte {
	var b []byte
	for _, name := range n.Inputs {
		b = appendBytes(b, 1, name) // an empty name counts: it is an omitted input
	}
	for _, name := range n.Outputs {
		b = appendBytes(b, 2, name)
	}
	b = appendText(b, 3, n.Name)
	b = appendText(b, 4, n.OpType)
	for i := range n.Attributes {
		b = appendBytes(b, 5, w.attribute(&n.Attributes[i]))
	}
	return appendText(b, 7, n.Domain)
}

func (w *writer) attribute(a *Attribute) []byte {
	b := appendText(nil, 1, a.Name)
	switch a.Type {
	case AttributeFloat:
		b = protowire.AppendTag(b, 2, protowire.Fixed32Type)
		b = protowire.AppendFixed32(b, math.Float32bits(a.Float))
	case AttributeInt:
		b = appendInt(b, 3, a.Int)
	case AttributeString:
		b = appendBytes(b, 4, a.String)
	case AttributeTensor:
		b = w.tensor(b, 5, a.Tensor)
	case AttributeGraph:
		if a.Graph == nil {
			w.fail("attribute %q has no graph", a.Name)
			break
		}
		b = appendBytes(b, 6, w.graph(a.Graph))
	case AttributeFloats:
		if len(a.Floats) > 0 {
			b = protowire.AppendTag(b, 7, protowire.BytesType)
			b = protowire.AppendVarint(b, uint64(4*len(a.Floats)))
			for _, v := range a.Floats {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
			}
		}
	case AttributeInts:
		b = appendInts(b, 8, a.Ints)
	case AttributeStrings:
		for _, s := range a.Strings {
			b = appendBytes(b, 9, s)
		}
	case AttributeTensors:
		for _, t := range a.Tensors {
			b = w.tensor(b, 10, t)
		}
	case AttributeGraphs:
		for _, g := range a.Graphs {
			if g == nil {
				w.fail("attribute %q has an empty graph", a.Name)
				continue
			}
			b = appendBytes(b, 11, w.graph(g))
		}
	default:
		w.fail("attribute %q is of unknown type %d", a.Name, a.Type)
	}
	return appendInt(b, 20, int64(a.Type))
}

// tensor appends a field that holds t without building it apart first: weights
// are most of a model.
func (w *writer) tensor(b []byte, number protowire.Number, t *Tensor) []byte {
	if t == nil {
		w.fail("a tensor is missing")
		return b
	}
	if err := t.Check(); err != nil && w.err == nil {
		w.err = err
	}
	head := appendInts(nil, 1, t.Dims)
	head = appendInt(head, 2, int64(t.Type))
	for _, s := range t.Strings {
		head = appendBytes(head, 6, s)
	}
	head = appendText(head, 8, t.Name)
	size := len(head)
	if t.Type != String {
		head = protowire.AppendTag(head, 9, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(len(t.Raw)))
		size = len(head) + len(t.Raw)
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = append(b, head...)
	return append(b, t.Raw...)
}

func value(v Value) []byte {
	b := appendText(nil, 1, v.Name)
	if v.Type == Undefined && v.Shape == nil {
		return b
	}
	tensor := appendInt(nil, 1, int64(v.Type))
	if v.Shape != nil {
		shape := []byte{}
		for _, d := range v.Shape {
			var dim []byte
			switch {
			case d.Param != "":
				dim = appendText(nil, 2, d.Param)
			case d.Value >= 0:
				dim = appendInt(nil, 1, d.Value)
			}
			shape = appendBytes(shape, 1, dim)
		}
		tensor = appendBytes(tensor, 2, shape)
	}
	return appendBytes(b, 2, appendBytes(nil, 1, tensor))
}

func (w *writer) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}
