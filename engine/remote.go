package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vigie/vigie/onnx"
)

// RemoteOptions says how to reach a model server. The zero value works for one
// that needs no authentication.
type RemoteOptions struct {
	// Version asks for one version of the model; empty leaves it to the server.
	Version string

	// Client carries the requests, with its TLS configuration, its limits in
	// time and its credentials. nil is http.DefaultClient. The server sees the
	// images: it belongs inside the same boundary of trust as the caller.
	Client *http.Client

	// MaxResponse bounds what is read of an answer, in bytes. 0 means 256 MiB.
	MaxResponse int64
}

// binaryExtension is the name by which servers announce that tensors may
// travel as bytes after the JSON, and headerLength the HTTP header that says
// where the JSON ends (Open Inference Protocol, binary tensor data extension).
const (
	binaryExtension = "binary_tensor_data"
	headerLength    = "Inference-Header-Content-Length"
)

// remote is a session of a model server that speaks the Open Inference
// Protocol, version 2, over HTTP.
type remote struct {
	model   string
	address string // of the model, without a verb
	client  *http.Client
	limit   int64
	binary  bool
	inputs  []onnx.Value
	outputs []onnx.Value

	life   sync.RWMutex // held for reading by every run
	closed bool
}

var _ Session = (*remote)(nil)

// OpenRemote returns a session of a model on a server that speaks the Open
// Inference Protocol version 2 over HTTP, such as Triton or KServe. It asks the
// server what the model takes and gives, and whether tensors may travel as
// bytes; otherwise they travel as JSON, which cannot express NaN or infinity.
// Binding such a session saves allocations but still copies.
func OpenRemote(ctx context.Context, server, model string, options RemoteOptions) (Session, error) {
	base, err := url.Parse(server)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("engine: opening model %q on %q: want an address such as https://host:8000", model, server)
	}
	r := &remote{model: model, client: options.Client, limit: options.MaxResponse}
	if r.client == nil {
		r.client = http.DefaultClient
	}
	if r.limit == 0 {
		r.limit = 256 << 20
	}
	path := []string{"v2", "models", url.PathEscape(model)}
	if options.Version != "" {
		path = append(path, "versions", url.PathEscape(options.Version))
	}
	r.address = base.JoinPath(path...).String()

	var about struct {
		Extensions []string `json:"extensions"`
	}
	if err := r.get(ctx, base.JoinPath("v2").String(), &about); err != nil {
		return nil, fmt.Errorf("engine: opening model %q: asking what the server can do: %w", model, err)
	}
	r.binary = slices.Contains(about.Extensions, binaryExtension)
	var metadata struct {
		Inputs, Outputs []wireTensor
	}
	if err := r.get(ctx, r.address, &metadata); err != nil {
		return nil, fmt.Errorf("engine: opening model %q: asking what it takes: %w", model, err)
	}
	if r.inputs, err = declarations(metadata.Inputs); err != nil {
		return nil, fmt.Errorf("engine: opening model %q: %w", model, err)
	}
	if r.outputs, err = declarations(metadata.Outputs); err != nil {
		return nil, fmt.Errorf("engine: opening model %q: %w", model, err)
	}
	if len(r.inputs) == 0 || len(r.outputs) == 0 {
		return nil, fmt.Errorf("engine: opening model %q: the server declares %d inputs and %d outputs", model, len(r.inputs), len(r.outputs))
	}
	return r, nil
}

// declarations reads what the server says of the model's inputs or outputs.
func declarations(list []wireTensor) ([]onnx.Value, error) {
	values := make([]onnx.Value, len(list))
	for i, t := range list {
		typ, ok := protoType(t.Datatype)
		if !ok {
			return nil, fmt.Errorf("%q is of type %q, which is not supported", t.Name, t.Datatype)
		}
		values[i] = onnx.Value{Name: t.Name, Type: typ, Shape: make([]onnx.Dim, len(t.Shape))}
		for j, d := range t.Shape {
			values[i].Shape[j] = onnx.Dim{Value: max(d, -1)}
		}
	}
	return values, nil
}

func (r *remote) get(ctx context.Context, address string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	body, _, err := r.do(request)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("reading the answer of %s: %w", address, err)
	}
	return nil
}

// do carries out a request and returns the body of a good answer and where its
// JSON ends.
func (r *remote) do(request *http.Request) (body []byte, header int, err error) {
	response, err := r.client.Do(request)
	if err != nil {
		return nil, 0, err
	}
	defer response.Body.Close()
	body, err = io.ReadAll(io.LimitReader(response.Body, r.limit+1))
	if err != nil {
		return nil, 0, fmt.Errorf("reading the answer of %s: %w", request.URL, err)
	}
	if int64(len(body)) > r.limit {
		return nil, 0, fmt.Errorf("the answer of %s is larger than %d bytes", request.URL, r.limit)
	}
	if response.StatusCode != http.StatusOK {
		var reason struct {
			Error string `json:"error"`
		}
		// A body that is not the protocol's error leaves the status to speak.
		_ = json.Unmarshal(body, &reason)
		return nil, 0, fmt.Errorf("%s answers %s %.200q", request.URL, response.Status, reason.Error)
	}
	header = len(body)
	if text := response.Header.Get(headerLength); text != "" {
		if header, err = strconv.Atoi(text); err != nil || header < 0 || header > len(body) {
			return nil, 0, fmt.Errorf("%s answers with %s %q for %d bytes", request.URL, headerLength, text, len(body))
		}
	}
	return body, header, nil
}

func (r *remote) Inputs() []onnx.Value  { return r.inputs }
func (r *remote) Outputs() []onnx.Value { return r.outputs }

func (r *remote) Run(ctx context.Context, inputs map[string]Tensor, outputs ...string) (map[string]Tensor, error) {
	if err := checkInputs(r.inputs, inputs); err != nil {
		return nil, fmt.Errorf("engine: running model %q: %w", r.model, err)
	}
	if err := checkNames(r.outputs, outputs); err != nil {
		return nil, fmt.Errorf("engine: running model %q: %w", r.model, err)
	}
	r.life.RLock()
	defer r.life.RUnlock()
	if r.closed {
		return nil, ErrClosed
	}
	if len(outputs) == 0 {
		outputs = nameList(r.outputs)
	}
	result, err := r.infer(ctx, inputs, outputs)
	if err != nil {
		return nil, fmt.Errorf("engine: running model %q: %w", r.model, err)
	}
	return result, nil
}

func (r *remote) infer(ctx context.Context, inputs map[string]Tensor, outputs []string) (map[string]Tensor, error) {
	question := wireRequest{}
	var tail []byte
	for _, v := range r.inputs {
		t, raw, err := toWire(v.Name, inputs[v.Name], r.binary)
		if err != nil {
			return nil, fmt.Errorf("input %q: %w", v.Name, err)
		}
		question.Inputs = append(question.Inputs, t)
		tail = append(tail, raw...)
	}
	for _, name := range outputs {
		t := wireOutput{Name: name}
		if r.binary {
			t.Parameters = map[string]any{"binary_data": true}
		}
		question.Outputs = append(question.Outputs, t)
	}
	head, err := json.Marshal(question)
	if err != nil {
		return nil, fmt.Errorf("writing the request: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.address+"/infer", bytes.NewReader(append(head, tail...)))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if r.binary {
		request.Header.Set("Content-Type", "application/octet-stream")
		request.Header.Set(headerLength, strconv.Itoa(len(head)))
	}
	body, end, err := r.do(request)
	if err != nil {
		return nil, err
	}
	var answer struct{ Outputs []wireTensor }
	if err := json.Unmarshal(body[:end], &answer); err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	result := map[string]Tensor{}
	rest := body[end:]
	for _, t := range answer.Outputs {
		var value Tensor
		if value, rest, err = t.tensor(rest); err != nil {
			return nil, fmt.Errorf("output %q: %w", t.Name, err)
		}
		i := slices.IndexFunc(r.outputs, func(v onnx.Value) bool { return v.Name == t.Name })
		if i < 0 || !slices.Contains(outputs, t.Name) {
			continue // a server may give more than it was asked for
		}
		if err := fit("output", r.outputs[i], value, map[string]int64{}); err != nil {
			return nil, fmt.Errorf("the server's answer: %v", err) // not the caller's ErrInput
		}
		result[t.Name] = value
	}
	for _, name := range outputs {
		if _, ok := result[name]; !ok {
			return nil, fmt.Errorf("the server's answer lacks output %q", name)
		}
	}
	return result, nil
}

func (r *remote) Close() error {
	r.life.Lock()
	defer r.life.Unlock()
	r.closed = true
	return nil
}

// copied is a binding of a session that has no buffers of its own.
type copied struct {
	session         *remote
	inputs, outputs map[string]Tensor
	closed          bool
}

func (r *remote) Bind(inputs, outputs map[string]Tensor) (Binding, error) {
	if err := checkInputs(r.inputs, inputs); err != nil {
		return nil, fmt.Errorf("engine: binding model %q: %w", r.model, err)
	}
	if err := checkOutputs(r.outputs, outputs); err != nil {
		return nil, fmt.Errorf("engine: binding model %q: %w", r.model, err)
	}
	return &copied{session: r, inputs: inputs, outputs: outputs}, nil
}

func (c *copied) Run(ctx context.Context) error {
	if c.closed {
		return ErrClosed
	}
	result, err := c.session.Run(ctx, c.inputs)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.outputs)) {
		t := c.outputs[name]
		if !slices.Equal(t.Shape, result[name].Shape) {
			return fmt.Errorf("engine: running model %q: output %q is %v: the bound buffer is %v", c.session.model, name, result[name], t)
		}
		elements[t.Type()].copy(t.Data, result[name].Data)
	}
	return nil
}

func (c *copied) Close() error {
	c.closed = true
	return nil
}

// protoType returns the element type that the protocol calls by that name.
func protoType(name string) (onnx.DataType, bool) {
	for typ, row := range elements {
		if strings.EqualFold(row.proto, name) {
			return typ, true
		}
	}
	return onnx.Undefined, false
}
