package engine_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
)

// server is a model server written from the protocol's text, not with the
// package's own types: model "double" gives y = 2·x of [-1,2] floats and
// sign = x < 0 as bool.
type server struct {
	binary bool
	nested bool                         // JSON answers in nested lists
	spoil  func(answer map[string]any)  // before an answer is sent
	cut    int                          // bytes to withhold of an answer
	asked  func(request map[string]any) // sees each request
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	send := func(v any) { json.NewEncoder(w).Encode(v) }
	switch r.URL.Path {
	case "/v2":
		extensions := []string{"model_configuration"}
		if s.binary {
			extensions = append(extensions, "binary_tensor_data")
		}
		send(map[string]any{"name": "test", "version": "1", "extensions": extensions})
	case "/v2/models/double":
		send(map[string]any{"name": "double", "platform": "go",
			"inputs":  []any{map[string]any{"name": "x", "datatype": "FP32", "shape": []int{-1, 2}}},
			"outputs": []any{map[string]any{"name": "y", "datatype": "FP32", "shape": []int{-1, 2}}, map[string]any{"name": "sign", "datatype": "BOOL", "shape": []int{-1, 2}}}})
	case "/v2/models/double/infer":
		s.infer(w, r)
	default:
		w.WriteHeader(http.StatusNotFound)
		send(map[string]any{"error": "unknown model"})
	}
}

func (s *server) infer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	head := len(body)
	if text := r.Header.Get("Inference-Header-Content-Length"); text != "" {
		head, _ = strconv.Atoi(text)
	}
	var request map[string]any
	if err := json.Unmarshal(body[:head], &request); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":%q}`, err)
		return
	}
	if s.asked != nil {
		s.asked(request)
	}
	input := request["inputs"].([]any)[0].(map[string]any)
	var x []float64
	if s.binary {
		for raw := body[head:]; len(raw) > 0; raw = raw[4:] {
			x = append(x, float64(math.Float32frombits(binary.LittleEndian.Uint32(raw))))
		}
	} else {
		for _, v := range input["data"].([]any) {
			x = append(x, v.(float64))
		}
	}
	var outputs []any
	var tail []byte
	for _, asked := range request["outputs"].([]any) {
		name := asked.(map[string]any)["name"].(string)
		out := map[string]any{"name": name, "shape": input["shape"], "datatype": map[string]string{"y": "FP32", "sign": "BOOL"}[name]}
		var raw []byte
		var data []any
		for _, v := range x {
			if name == "y" {
				raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(float32(2*v)))
				data = append(data, 2*v)
			} else {
				raw = append(raw, map[bool]byte{true: 1}[v < 0])
				data = append(data, v < 0)
			}
		}
		if s.nested {
			rows := []any{}
			for row := range slices.Chunk(data, 2) {
				rows = append(rows, row)
			}
			data = rows
		}
		if s.binary {
			out["parameters"] = map[string]any{"binary_data_size": len(raw)}
			tail = append(tail, raw...)
		} else {
			out["data"] = data
		}
		outputs = append(outputs, out)
	}
	answer := map[string]any{"model_name": "double", "outputs": outputs}
	if s.spoil != nil {
		s.spoil(answer)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		panic(err)
	}
	if s.binary {
		w.Header().Set("Inference-Header-Content-Length", strconv.Itoa(len(text)))
	}
	w.Write(append(text, tail[:len(tail)-s.cut]...))
}

func serve(t *testing.T, s *server) engine.Session {
	t.Helper()
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	session, err := engine.OpenRemote(context.Background(), h.URL, "double", engine.RemoteOptions{Client: h.Client()})
	if err != nil {
		t.Fatal(err)
	}
	return session
}

func TestARemoteModelAnswersAsALocalOne(t *testing.T) {
	for name, s := range map[string]*server{"json": {}, "nested json": {nested: true}, "binary": {binary: true}} {
		session := serve(t, s)
		if got := fmt.Sprint(session.Inputs(), session.Outputs()); got != "[float[?,2]] [float[?,2] bool[?,2]]" {
			t.Errorf("%s: declared as %s", name, got)
		}
		x := map[string]engine.Tensor{"x": engine.Float32([]int64{2, 2}, []float32{1, -2, 0.1, 4})}
		out, err := session.Run(context.Background(), x)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		y, _ := engine.Values[float32](out["y"])
		sign, _ := engine.Values[bool](out["sign"])
		if !slices.Equal(y, []float32{2, -4, 0.2, 8}) || !slices.Equal(sign, []bool{false, true, false, false}) || !slices.Equal(out["y"].Shape, []int64{2, 2}) {
			t.Errorf("%s: %v", name, out)
		}
		if out, err := session.Run(context.Background(), x, "sign"); err != nil || len(out) != 1 {
			t.Errorf("%s: asked for sign: %v, %v", name, out, err)
		}
		bufferY, bufferSign := make([]float32, 4), make([]bool, 4)
		b, err := session.Bind(x, map[string]engine.Tensor{"y": engine.Float32([]int64{2, 2}, bufferY), "sign": engine.Bool([]int64{2, 2}, bufferSign)})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Run(context.Background()); err != nil || !slices.Equal(bufferY, y) || !slices.Equal(bufferSign, sign) {
			t.Errorf("%s: bound: %v, %v, %v", name, err, bufferY, bufferSign)
		}
		if _, err := session.Run(context.Background(), map[string]engine.Tensor{"x": engine.Float32([]int64{1, 3}, make([]float32, 3))}); !errors.Is(err, engine.ErrInput) {
			t.Errorf("%s: a wrong shape gives %v", name, err)
		}
		session.Close()
		if _, err := session.Run(context.Background(), x); !errors.Is(err, engine.ErrClosed) {
			t.Errorf("%s: closed, it gives %v", name, err)
		}
	}
}

func TestAServersMistakesAreErrors(t *testing.T) {
	output := func(answer map[string]any) map[string]any { return answer["outputs"].([]any)[0].(map[string]any) }
	for name, test := range map[string]struct {
		server *server
		says   string
	}{
		"missing output": {&server{spoil: func(a map[string]any) { a["outputs"] = []any{} }}, `lacks output "y"`},
		"wrong shape":    {&server{spoil: func(a map[string]any) { output(a)["shape"] = []int{2} }}, "does not fit"},
		"wrong type":     {&server{spoil: func(a map[string]any) { output(a)["datatype"] = "INT64" }}, "does not fit"},
		"unknown type":   {&server{spoil: func(a map[string]any) { output(a)["datatype"] = "BYTES" }}, `type "BYTES"`},
		"too few":        {&server{spoil: func(a map[string]any) { output(a)["data"] = []any{1} }}, "want 2"},
		"too many":       {&server{spoil: func(a map[string]any) { output(a)["data"] = []any{1, 2, 3, 4} }}, "want 2"},
		"huge":           {&server{spoil: func(a map[string]any) { output(a)["shape"] = []int64{1 << 40, 2} }}, "cannot hold"},
		"negative":       {&server{spoil: func(a map[string]any) { output(a)["shape"] = []int64{-1, 2} }}, "negative"},
		"cut bytes":      {&server{binary: true, cut: 3}, "announced"},
		"wrong size": {&server{binary: true, spoil: func(a map[string]any) {
			output(a)["parameters"] = map[string]any{"binary_data_size": 7}
		}}, "7 bytes of elements"},
		"negative size": {&server{binary: true, spoil: func(a map[string]any) {
			output(a)["parameters"] = map[string]any{"binary_data_size": -1}
		}}, "announced"},
	} {
		_, err := serve(t, test.server).Run(context.Background(), map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, []float32{1.5, 2})})
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v\nwant %q", name, err, test.says)
		}
		if errors.Is(err, engine.ErrInput) {
			t.Errorf("%s: %v\nblames the caller", name, err)
		}
	}
	h := httptest.NewServer(&server{})
	defer h.Close()
	if _, err := engine.OpenRemote(context.Background(), h.URL, "absent", engine.RemoteOptions{}); err == nil || !strings.Contains(err.Error(), "unknown model") {
		t.Errorf("an unknown model gives %v", err)
	}
	if _, err := engine.OpenRemote(context.Background(), h.URL, "double", engine.RemoteOptions{MaxResponse: 10}); err == nil || !strings.Contains(err.Error(), "larger than 10 bytes") {
		t.Errorf("an answer beyond the limit gives %v", err)
	}
	if _, err := engine.OpenRemote(context.Background(), "localhost:8000", "double", engine.RemoteOptions{}); err == nil {
		t.Error("an address without a scheme is taken")
	}
	if _, err := serve(t, &server{}).Run(context.Background(), map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, []float32{float32(math.NaN()), 0})}); err == nil {
		t.Error("NaN was sent as JSON")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := serve(t, &server{}).Run(ended, map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, make([]float32, 2))}); !errors.Is(err, context.Canceled) {
		t.Errorf("a run with an ended context gives %v", err)
	}
}
