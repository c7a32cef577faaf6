package guard

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// header returns the JSON header of a safetensors file, and a way to put another
// in its place.
func header(t testing.TB, data []byte) (map[string]json.RawMessage, func(map[string]json.RawMessage) []byte) {
	t.Helper()
	n := binary.LittleEndian.Uint64(data)
	h := map[string]json.RawMessage{}
	if err := json.Unmarshal(data[8:8+n], &h); err != nil {
		t.Fatal(err)
	}
	return h, func(h map[string]json.RawMessage) []byte {
		text, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		out := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
		return append(append(out, text...), data[8+n:]...)
	}
}

// withSettings replaces one piece of the settings' text.
func withSettings(t testing.TB, data []byte, old, now string) []byte {
	t.Helper()
	h, put := header(t, data)
	var metadata map[string]string
	if err := json.Unmarshal(h["__metadata__"], &metadata); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(metadata["guard"], old) {
		t.Fatalf("the settings do not hold %s: %s", old, metadata["guard"])
	}
	metadata["guard"] = strings.Replace(metadata["guard"], old, now, 1)
	h["__metadata__"], _ = json.Marshal(metadata)
	return put(h)
}

func TestAFileThatContradictsItselfIsRefused(t *testing.T) {
	good, err := fittedStatistics(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if same := withSettings(t, good, `"schema":2`, `"schema":2`); func() error { _, err := Parse(same); return err }() != nil {
		t.Fatal("the file cannot be taken apart and put together")
	}
	renamed := func() []byte {
		h, put := header(t, good)
		h["layer9.means"] = h["layer0.means"]
		delete(h, "layer0.means")
		return put(h)
	}
	for name, data := range map[string][]byte{
		"empty":             {},
		"cut":               good[:len(good)-8],
		"longer":            append(bytes.Clone(good), 0, 0, 0, 0, 0, 0, 0, 0),
		"another schema":    withSettings(t, good, `"schema":2`, `"schema":3`),
		"an unknown field":  withSettings(t, good, `"schema":2`, `"schema":2,"more":2`),
		"spelled otherwise": withSettings(t, good, `"schema":2`, `"schema": 2`),
		"twice":             withSettings(t, good, `"schema":2`, `"schema":2,"schema":2`),
		"something after":   withSettings(t, good, `"bias":`, `"bias":[0,0]} {"bias":`),
		"a missing array":   renamed(),
		"more layers":       withSettings(t, good, `"layer_tails":[`, `"layer_tails":[{"threshold":0,"scale":1},`),
		"no subject":        withSettings(t, good, string(testSubject), "sha256:1"),
		"a promise of all":  withSettings(t, good, `"false_alarms":0.05`, `"false_alarms":0.95`),
		"an empty promise":  withSettings(t, good, `"false_alarms":0.05`, `"false_alarms":0.0001`),
		"no brightness":     withSettings(t, good, `"white":[3]`, `"white":[-1]`),
		"other guards":      withSettings(t, good, `"name":"layers"`, `"name":"players"`),
		"other channels":    withSettings(t, good, `"channels":8`, `"channels":9`),
		"more calibration":  withSettings(t, good, `"calibrated":178`, `"calibrated":180`),
	} {
		if _, err := Parse(data); !errors.Is(err, ErrStatistics) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A number that is none, in the middle of the arrays.
	bad := bytes.Clone(good)
	copy(bad[len(bad)-20*8:], []byte{0, 0, 0, 0, 0, 0, 0xf8, 0x7f})
	n := binary.LittleEndian.Uint64(good)
	copy(bad[8+n:], []byte{0, 0, 0, 0, 0, 0, 0xf8, 0x7f})
	if _, err := Parse(bad); !errors.Is(err, ErrStatistics) {
		t.Errorf("NaN: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	good, err := fittedStatistics(f).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:200])
	f.Add([]byte{})
	f.Add(withSettings(f, good, `"schema":2`, `"schema":2,"schema":2`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse(data)
		if err != nil {
			if !errors.Is(err, ErrStatistics) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		// What is accepted can be used without a panic, and written again.
		again, err := s.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(again); err != nil {
			t.Fatal(err)
		}
		look := &Look{layers: make([][]float64, len(s.Taps)), pixels: pixels{texture: make([]float64, textureNumbers), peaks: make([]float64, peakNumbers)}}
		for i, tap := range s.Taps {
			look.layers[i] = make([]float64, min(tap.Channels, maxChannels))
		}
		of := unasked()
		s.models.first(look, of)
		for _, second := range []bool{false, true} {
			for _, r := range s.results(of, 0, second) {
				if !(r.PValue > 0 && r.PValue <= 1) {
					t.Fatalf("p-value %v", r.PValue)
				}
			}
		}
	})
}
