package onnx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"google.golang.org/protobuf/encoding/protowire"
)

// Load reads the model in a file, and the weights that it keeps in files of their
// own ("external data") as long as those are in the model's folder or below it: a
// path that leads elsewhere, also by a symbolic link, is refused, and so are local
// functions, sparse tensors and training information, see [ErrUnsupported].
func Load(path string) (*Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("onnx: loading a model: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("onnx: loading %s: %w", path, err)
	}
	if info.Size() > MaxBytes { // before memory is set aside for it
		return nil, fmt.Errorf("onnx: loading %s of %d bytes: %w: at most %d, protobuf's own bound", path, info.Size(), ErrLimit, MaxBytes)
	}
	var data bytes.Buffer
	data.Grow(int(info.Size()) + bytes.MinRead) // so that it is read in one go
	_, err = data.ReadFrom(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("onnx: loading %s: %w", path, err)
	}
	beside, err := openBesides(path)
	if err != nil {
		return nil, fmt.Errorf("onnx: loading %s: %w", path, err)
	}
	defer beside.close()
	m, err := parse(data.Bytes(), beside)
	if err != nil {
		return nil, fmt.Errorf("%w (in %s)", err, path)
	}
	m.External = beside.used
	return m, nil
}

// Parse reads a model in ONNX's file format (onnx.proto of IR versions 3 to
// 13). The model's raw tensors refer to data, which must not be changed as
// long as the model is used. Tensors come out in one form whichever of
// TensorProto's fields held them; documentation strings and annotations are
// dropped. Parse accepts what has the form of a model; Check says whether it is
// one. External data is refused: it is in files that only Load knows of.
func Parse(data []byte) (*Model, error) { return parse(data, nil) }

func parse(data []byte, beside *besides) (*Model, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("onnx: parsing a model of %d bytes: %w: at most %d", len(data), ErrLimit, MaxBytes)
	}
	p := parser{items: MaxItems, besides: beside}
	m, err := p.model(data)
	if err != nil {
		return nil, fmt.Errorf("onnx: parsing a model: %w", err)
	}
	return m, nil
}

// parser counts what it makes.
type parser struct {
	items   int      // that may still be made
	depth   int      // of the graph being read
	besides *besides // where external data is; nil: nowhere
}

// take counts one item.
func (p *parser) take() error {
	p.items--
	if p.items < 0 {
		return fmt.Errorf("%w: more than %d nodes, values and tensors", ErrLimit, MaxItems)
	}
	return nil
}

// message checks and counts a field that holds a message.
func (p *parser) message(f field) error {
	return errors.Join(f.want(protowire.BytesType), p.take())
}

func (p *parser) model(data []byte) (*Model, error) {
	m := &Model{Opsets: map[string]int64{}}
	err := fields(data, func(f field) error {
		switch f.number {
		case 1:
			return f.number64(&m.IRVersion)
		case 2:
			return f.text(&m.ProducerName)
		case 3:
			return f.text(&m.ProducerVersion)
		case 7:
			if m.Graph != nil {
				return fmt.Errorf("%w: two graphs", ErrCorrupt)
			}
			g, err := p.graph(f)
			m.Graph = g
			return err
		case 8:
			return p.opset(f, m.Opsets)
		case 14:
			if m.Metadata == nil {
				m.Metadata = map[string]string{}
			}
			return p.property(f, m.Metadata)
		case 20:
			return fmt.Errorf("%w: training information", ErrUnsupported)
		case 25:
			return fmt.Errorf("%w: local functions: export the model with its functions inlined", ErrUnsupported)
		}
		return nil
	})
	if err == nil && m.Graph == nil {
		err = fmt.Errorf("%w: no graph", ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (p *parser) opset(f field, opsets map[string]int64) error {
	if err := p.message(f); err != nil {
		return err
	}
	var domain string
	var version int64
	err := fields(f.bytes, func(f field) error {
		switch f.number {
		case 1:
			return f.text(&domain)
		case 2:
			return f.number64(&version)
		}
		return nil
	})
	if err != nil {
		return err
	}
	domain = canonicalDomain(domain)
	if seen, ok := opsets[domain]; ok && seen != version {
		return fmt.Errorf("%w: operator set %q imported as version %d and %d", ErrCorrupt, domain, seen, version)
	}
	opsets[domain] = version
	return nil
}

// canonicalDomain returns "" for both spellings of the default domain.
func canonicalDomain(domain string) string {
	if domain == "ai.onnx" {
		return ""
	}
	return domain
}

func (p *parser) property(f field, properties map[string]string) error {
	if err := p.message(f); err != nil {
		return err
	}
	var key, value string
	err := fields(f.bytes, func(f field) error {
		switch f.number {
		case 1:
			return f.text(&key)
		case 2:
			return f.text(&value)
		}
		return nil
	})
	properties[key] = value
	return err
}

func (p *parser) graph(f field) (*Graph, error) {
	if err := p.message(f); err != nil {
		return nil, err
	}
	if p.depth++; p.depth > MaxDepth {
		return nil, fmt.Errorf("%w: graphs nested deeper than %d", ErrLimit, MaxDepth)
	}
	defer func() { p.depth-- }()
	g := &Graph{}
	err := fields(f.bytes, func(f field) error {
		switch f.number {
		case 1:
			n, err := p.node(f)
			g.Nodes = append(g.Nodes, n)
			return err
		case 2:
			return f.text(&g.Name)
		case 5:
			t, err := p.tensor(f)
			if err != nil {
				return fmt.Errorf("initializer: %w", err)
			}
			g.Initializers = append(g.Initializers, t)
		case 11:
			return p.value(f, &g.Inputs)
		case 12:
			return p.value(f, &g.Outputs)
		case 13:
			return p.value(f, &g.ValueInfo)
		case 15:
			return fmt.Errorf("%w: sparse initializers", ErrUnsupported)
		}
		return nil
	})
	return g, err
}

func (p *parser) names(f field, list *[]string) error {
	if err := p.message(f); err != nil {
		return err
	}
	*list = append(*list, string(f.bytes))
	return nil
}

func (p *parser) node(f field) (*Node, error) {
	if err := p.message(f); err != nil {
		return nil, err
	}
	n := &Node{}
	err := fields(f.bytes, func(f field) error {
		switch f.number {
		case 1:
			return p.names(f, &n.Inputs)
		case 2:
			return p.names(f, &n.Outputs)
		case 3:
			return f.text(&n.Name)
		case 4:
			return f.text(&n.OpType)
		case 5:
			if err := p.message(f); err != nil {
				return err
			}
			a, err := p.attribute(f.bytes)
			n.Attributes = append(n.Attributes, a)
			return err
		case 7:
			err := f.text(&n.Domain)
			n.Domain = canonicalDomain(n.Domain)
			return err
		case 8:
			if len(f.bytes) > 0 {
				return fmt.Errorf("%w: node with an overload of a function", ErrUnsupported)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("node %q (%s): %w", n.Name, n.OpType, err)
	}
	return n, nil
}

func (p *parser) attribute(message []byte) (Attribute, error) {
	var a Attribute
	typ := int64(0)
	err := fields(message, func(f field) error {
		switch f.number {
		case 1:
			return f.text(&a.Name)
		case 2:
			a.Float = math.Float32frombits(uint32(f.bits))
			return f.want(protowire.Fixed32Type)
		case 3:
			return f.number64(&a.Int)
		case 4:
			a.String = f.bytes
			return f.want(protowire.BytesType)
		case 5:
			t, err := p.tensor(f)
			a.Tensor = t
			return err
		case 6:
			g, err := p.graph(f)
			a.Graph = g
			return err
		case 7:
			return f.floats(&a.Floats)
		case 8:
			return f.numbers(&a.Ints)
		case 9:
			if err := p.message(f); err != nil {
				return err
			}
			a.Strings = append(a.Strings, f.bytes)
		case 10:
			t, err := p.tensor(f)
			a.Tensors = append(a.Tensors, t)
			return err
		case 11:
			g, err := p.graph(f)
			a.Graphs = append(a.Graphs, g)
			return err
		case 14, 15:
			return fmt.Errorf("%w: attribute that holds a type", ErrUnsupported)
		case 20:
			return f.number64(&typ)
		case 21:
			return fmt.Errorf("%w: attribute that refers to a function's", ErrUnsupported)
		case 22, 23:
			return fmt.Errorf("%w: attribute that holds a sparse tensor", ErrUnsupported)
		}
		return nil
	})
	if err != nil {
		return a, fmt.Errorf("attribute %q: %w", a.Name, err)
	}
	a.Type = AttributeType(typ)
	if typ == 0 { // IR version 1 had no type: the filled field says it
		a.Type = a.guess()
	}
	if typ < 0 || a.Type > AttributeGraphs {
		return a, fmt.Errorf("attribute %q: %w: attribute type %d", a.Name, ErrUnsupported, typ)
	}
	if a.Type == AttributeTensor && a.Tensor == nil || a.Type == AttributeGraph && a.Graph == nil {
		return a, fmt.Errorf("attribute %q: %w: no value of its type", a.Name, ErrCorrupt)
	}
	return a, nil
}

// guess returns the type of an attribute from the field that is filled.
func (a *Attribute) guess() AttributeType {
	switch {
	case a.Tensor != nil:
		return AttributeTensor
	case a.Graph != nil:
		return AttributeGraph
	case len(a.Floats) > 0:
		return AttributeFloats
	case len(a.Ints) > 0:
		return AttributeInts
	case len(a.Strings) > 0:
		return AttributeStrings
	case len(a.Tensors) > 0:
		return AttributeTensors
	case len(a.Graphs) > 0:
		return AttributeGraphs
	case a.String != nil:
		return AttributeString
	case a.Float != 0:
		return AttributeFloat
	}
	return AttributeInt
}

func (p *parser) value(f field, list *[]Value) error {
	if err := p.message(f); err != nil {
		return err
	}
	var v Value
	err := fields(f.bytes, func(f field) error {
		switch f.number {
		case 1:
			return f.text(&v.Name)
		case 2:
			if err := f.want(protowire.BytesType); err != nil {
				return err
			}
			return fields(f.bytes, func(f field) error {
				switch f.number {
				case 1:
					if err := f.want(protowire.BytesType); err != nil {
						return err
					}
					return p.tensorType(f.bytes, &v)
				case 4, 5, 7, 8, 9:
					return fmt.Errorf("%w: a value that is not a tensor", ErrUnsupported)
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("value %q: %w", v.Name, err)
	}
	*list = append(*list, v)
	return nil
}

func (p *parser) tensorType(message []byte, v *Value) error {
	return fields(message, func(f field) error {
		switch f.number {
		case 1:
			n := int64(0)
			err := f.number64(&n)
			v.Type = DataType(n)
			return err
		case 2:
			if err := f.want(protowire.BytesType); err != nil {
				return err
			}
			v.Shape = []Dim{}
			return fields(f.bytes, func(f field) error {
				if f.number != 1 {
					return nil
				}
				if err := p.message(f); err != nil {
					return err
				}
				if len(v.Shape) == MaxRank {
					return fmt.Errorf("%w: more than %d dimensions", ErrLimit, MaxRank)
				}
				d := Dim{Value: -1}
				err := fields(f.bytes, func(f field) error {
					switch f.number {
					case 1:
						d.Param = ""
						return f.number64(&d.Value)
					case 2:
						d.Value = -1
						return f.text(&d.Param)
					}
					return nil
				})
				if d.Value < 0 {
					d.Value = -1 // some exporters write -1 or 0xFFFF… for an unknown one
				}
				v.Shape = append(v.Shape, d)
				return err
			})
		}
		return nil
	})
}
