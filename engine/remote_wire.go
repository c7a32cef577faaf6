package engine

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
)

// The messages of the Open Inference Protocol, as far as they are used here.

type wireRequest struct {
	Inputs  []wireTensor `json:"inputs"`
	Outputs []wireOutput `json:"outputs"`
}

type wireOutput struct {
	Name       string         `json:"name"`
	Parameters map[string]any `json:"parameters,omitempty"`
}

type wireTensor struct {
	Name       string          `json:"name"`
	Datatype   string          `json:"datatype"`
	Shape      []int64         `json:"shape"`
	Parameters wireParameters  `json:"parameters,omitzero"`
	Data       json.RawMessage `json:"data,omitempty"`
}

type wireParameters struct {
	Size *int64 `json:"binary_data_size,omitempty"` // the elements follow the JSON, so many bytes
}

// toWire returns a tensor as the protocol writes it, and its elements apart if
// they travel as bytes.
func toWire(name string, t Tensor, asBytes bool) (wireTensor, []byte, error) {
	shape := t.Shape
	if shape == nil {
		shape = []int64{}
	}
	row := elements[t.Type()]
	w := wireTensor{Name: name, Datatype: row.proto, Shape: shape}
	if asBytes {
		raw, err := binary.Append(nil, binary.LittleEndian, t.Data)
		if err != nil {
			return w, nil, err
		}
		size := int64(len(raw))
		w.Parameters.Size = &size
		return w, raw, nil
	}
	data := t.Data
	if octets, ok := data.([]uint8); ok { // encoding/json would make a string of them
		numbers := make([]uint16, len(octets))
		for i, v := range octets {
			numbers[i] = uint16(v)
		}
		data = numbers
	}
	text, err := json.Marshal(data)
	if err != nil {
		return w, nil, fmt.Errorf("writing the elements: %w", err)
	}
	w.Data = text
	return w, nil, nil
}

// tensor returns what the protocol's tensor stands for. If its elements travel
// as bytes they are the first ones of tail, of which the rest is returned.
func (w wireTensor) tensor(tail []byte) (Tensor, []byte, error) {
	typ, ok := protoType(w.Datatype)
	if !ok {
		return Tensor{}, nil, fmt.Errorf("type %q is not supported", w.Datatype)
	}
	n, err := count(w.Shape)
	if err != nil {
		return Tensor{}, nil, err
	}
	row := elements[typ]
	if w.Parameters.Size != nil {
		size := *w.Parameters.Size
		if size < 0 || size > int64(len(tail)) {
			return Tensor{}, nil, fmt.Errorf("%d bytes of elements announced, %d sent", size, len(tail))
		}
		if int64(n) != size/int64(typ.Size()) || size%int64(typ.Size()) != 0 {
			return Tensor{}, nil, fmt.Errorf("%d bytes of elements for %s", size, describe(typ, w.Shape))
		}
		data := row.make(n) // at most as large as what was sent
		if _, err := binary.Decode(tail[:size], binary.LittleEndian, data); err != nil {
			return Tensor{}, nil, fmt.Errorf("reading the elements: %w", err)
		}
		return Tensor{w.Shape, data}, tail[size:], nil
	}
	data, err := row.parse(w.Data, n)
	if err != nil {
		return Tensor{}, nil, fmt.Errorf("reading the elements of %s: %w", describe(typ, w.Shape), err)
	}
	return Tensor{w.Shape, data}, tail, nil
}

// parseElements reads n elements from JSON, flat or in nested lists: the
// protocol allows both.
func parseElements[T Element](text []byte, n int) (any, error) {
	if n > len(text) {
		return nil, fmt.Errorf("%d bytes cannot hold %d elements", len(text), n)
	}
	data := make([]T, 0, n)
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	for decoder.More() {
		if len(data) > n {
			break
		}
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		if delim, ok := token.(json.Delim); ok {
			if delim != '[' {
				return nil, fmt.Errorf("%v among the elements", delim)
			}
			continue
		}
		v, err := element[T](token)
		if err != nil {
			return nil, err
		}
		data = append(data, v)
		for !decoder.More() { // close the lists that end here
			if _, err := decoder.Token(); err != nil {
				break
			}
		}
	}
	if len(data) != n {
		return nil, fmt.Errorf("%d elements or more, want %d", len(data), n)
	}
	return data, nil
}

// element returns one token of JSON as an element.
func element[T Element](token json.Token) (T, error) {
	var v T
	var err error
	number, _ := token.(json.Number)
	text := number.String()
	switch p := any(&v).(type) {
	case *bool:
		truth, ok := token.(bool)
		if !ok {
			return v, fmt.Errorf("%v is not a truth value", token)
		}
		*p = truth
	case *float32:
		var f float64
		f, err = strconv.ParseFloat(text, 32)
		*p = float32(f)
	case *float64:
		*p, err = strconv.ParseFloat(text, 64)
	case *int64:
		*p, err = strconv.ParseInt(text, 10, 64)
	case *int32:
		var i int64
		i, err = strconv.ParseInt(text, 10, 32)
		*p = int32(i)
	case *int8:
		var i int64
		i, err = strconv.ParseInt(text, 10, 8)
		*p = int8(i)
	case *uint8:
		var i uint64
		i, err = strconv.ParseUint(text, 10, 8)
		*p = uint8(i)
	}
	return v, err
}
