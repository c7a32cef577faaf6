package engine

import (
	"encoding/json"
	"testing"
)

// FuzzWireTensor reads a tensor that a server sent and writes it again both ways.
func FuzzWireTensor(f *testing.F) {
	f.Add([]byte(`{"name":"y","datatype":"FP32","shape":[1,2],"data":[1,2.5]}`), []byte{})
	f.Add([]byte(`{"name":"y","datatype":"INT64","shape":[2,1],"data":[[1],[-2]]}`), []byte{})
	f.Add([]byte(`{"name":"y","datatype":"BOOL","shape":[2],"parameters":{"binary_data_size":2}}`), []byte{0, 1, 2})
	f.Add([]byte(`{"name":"y","datatype":"UINT8","shape":[0,9],"data":[]}`), []byte{})
	f.Add([]byte(`{"name":"y","datatype":"FP64","shape":[4611686018427387904,4],"data":[[[[{}]]]]}`), []byte{})
	f.Fuzz(func(t *testing.T, text, tail []byte) {
		var w wireTensor
		if json.Unmarshal(text, &w) != nil {
			return
		}
		value, rest, err := w.tensor(tail)
		if err != nil {
			return
		}
		if err := value.Check(); err != nil {
			t.Fatalf("a tensor was read that is none: %v", err)
		}
		if len(rest) > len(tail) {
			t.Fatal("bytes were made up")
		}
		for _, asBytes := range []bool{true, false} {
			again, raw, err := toWire(w.Name, value, asBytes)
			if err != nil {
				continue // NaN has no form in JSON
			}
			back, rest, err := again.tensor(raw)
			if err != nil || len(rest) != 0 || back.String() != value.String() {
				t.Fatalf("%v, as bytes %v, comes back as %v, %v", value, asBytes, back, err)
			}
		}
	})
}
