package engine

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

	ort "github.com/yalue/onnxruntime_go"

	"github.com/vigie/vigie/onnx"
)

// local is a session inside this process.
type local struct {
	name    string
	inputs  []onnx.Value
	outputs []onnx.Value

	// life is held for reading by every run and for writing by Close.
	life    sync.RWMutex
	session *ort.DynamicAdvancedSession // nil once closed

	// idle keeps run options between runs: each serves one run at a time.
	idle chan *ort.RunOptions
}

var _ Session = (*local)(nil)

// Open checks a graph and makes it ready to run in this process. It does not
// keep m.
func Open(m *onnx.Model, options Options) (Session, error) { return prepare(m, nil, options) }

// OpenBytes is Open for a graph in ONNX's file format. Unless options change
// the graph, it is these very bytes that ONNX Runtime reads.
func OpenBytes(data []byte, options Options) (Session, error) {
	m, err := onnx.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("engine: opening a graph: %w", err)
	}
	return prepare(m, data, options)
}

// prepare opens m, of which data is the file or nil.
func prepare(m *onnx.Model, data []byte, options Options) (Session, error) {
	if m.Graph == nil {
		return nil, fmt.Errorf("engine: opening a model: %w: it has no graph", onnx.ErrInvalid)
	}
	if len(options.Outputs) > 0 || len(options.Dims) > 0 {
		narrowed, err := narrow(m, options)
		if err != nil {
			return nil, err
		}
		m, data = narrowed, nil
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("engine: opening graph %q: %w", m.Graph.Name, err)
	}
	if data == nil {
		var err error
		if data, err = m.Marshal(); err != nil {
			return nil, fmt.Errorf("engine: opening graph %q: %w", m.Graph.Name, err)
		}
	}
	return open(m, data, options)
}

// narrow returns a shallow copy of m that has only the outputs asked for and
// whose named dimensions are fixed.
func narrow(m *onnx.Model, options Options) (*onnx.Model, error) {
	graph := *m.Graph
	if len(options.Outputs) > 0 {
		graph.Outputs = nil
		for _, name := range options.Outputs {
			i := slices.IndexFunc(m.Graph.Outputs, func(v onnx.Value) bool { return v.Name == name })
			if i < 0 {
				return nil, fmt.Errorf("engine: opening graph %q: output %q: %w: it has %s", graph.Name, name, ErrInput, names(m.Graph.Outputs))
			}
			graph.Outputs = append(graph.Outputs, m.Graph.Outputs[i])
		}
	}
	fix := func(values []onnx.Value) []onnx.Value {
		values = slices.Clone(values)
		for i := range values {
			values[i].Shape = slices.Clone(values[i].Shape)
			for j, d := range values[i].Shape {
				if n, ok := options.Dims[d.Param]; ok && d.Param != "" {
					values[i].Shape[j] = onnx.Dim{Value: n}
				}
			}
		}
		return values
	}
	graph.Inputs, graph.Outputs, graph.ValueInfo = fix(graph.Inputs), fix(graph.Outputs), fix(graph.ValueInfo)
	narrowed := *m
	narrowed.Graph = &graph
	return &narrowed, nil
}

func open(m *onnx.Model, data []byte, options Options) (Session, error) {
	s := &local{name: m.Graph.Name, outputs: slices.Clone(m.Graph.Outputs), idle: make(chan *ort.RunOptions, 16)}
	for _, v := range m.Graph.Inputs {
		if m.Graph.Initializer(v.Name) == nil { // otherwise it is a default, not an input to give
			s.inputs = append(s.inputs, v)
		}
	}
	// An output declared without a rank may turn out a scalar, which has to be
	// known before a run. Only shapes are taken: whether the graph is right is
	// for ONNX Runtime to say.
	if slices.ContainsFunc(s.outputs, func(v onnx.Value) bool { return v.Shape == nil }) {
		inferred, _ := onnx.InferShapes(m, nil)
		for i, v := range s.outputs {
			if v.Shape == nil {
				s.outputs[i].Shape = inferred[v.Name].Shape
			}
		}
	}
	for _, v := range slices.Concat(s.inputs, s.outputs) {
		if _, ok := elements[v.Type]; !ok {
			return nil, fmt.Errorf("engine: opening graph %q: %q is of type %v, which is not supported as input or output", s.name, v.Name, v.Type)
		}
	}
	if len(s.inputs) == 0 {
		return nil, fmt.Errorf("engine: opening graph %q: it has no input", s.name)
	}
	if err := checkOperators(m); err != nil {
		return nil, fmt.Errorf("engine: opening graph %q: %w", s.name, err)
	}
	if err := start(); err != nil {
		return nil, fmt.Errorf("engine: opening graph %q: %w", s.name, err)
	}
	settings, err := settings(options)
	if err != nil {
		return nil, fmt.Errorf("engine: opening graph %q: %w", s.name, err)
	}
	defer settings.Destroy()
	if err := addKernels(m, settings); err != nil {
		return nil, fmt.Errorf("engine: opening graph %q: %w", s.name, err)
	}
	s.session, err = ort.NewDynamicAdvancedSessionWithONNXData(data, nameList(s.inputs), nameList(s.outputs), settings)
	if err != nil {
		return nil, fmt.Errorf("engine: opening graph %q: %w", s.name, refused(err))
	}
	return s, nil
}

// settings turns Options into ONNX Runtime's.
func settings(options Options) (*ort.SessionOptions, error) {
	threads := options.Threads
	switch {
	case threads < 0:
		return nil, fmt.Errorf("%d threads: want 0 (automatic) or more", threads)
	case threads == 0:
		threads = min(2, runtime.NumCPU())
	}
	spin := "1"
	if options.Yield {
		spin = "0"
	}
	so, err := ort.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	for _, set := range []func() error{
		func() error { return so.SetIntraOpNumThreads(threads) },
		func() error { return so.SetInterOpNumThreads(1) },
		func() error { return so.SetLogSeverityLevel(ort.LoggingLevelFatal) },
		func() error { return so.AddSessionConfigEntry("session.intra_op.allow_spinning", spin) },
		func() error { return so.AddSessionConfigEntry("session.inter_op.allow_spinning", "0") },
		// Between two runs the processors are the caller's.
		func() error { return so.AddSessionConfigEntry("session.force_spinning_stop", spin) },
	} {
		if err := set(); err != nil {
			so.Destroy()
			return nil, fmt.Errorf("configuring ONNX Runtime: %w", err)
		}
	}
	return so, nil
}

func (s *local) Inputs() []onnx.Value  { return s.inputs }
func (s *local) Outputs() []onnx.Value { return s.outputs }

func (s *local) Run(ctx context.Context, inputs map[string]Tensor, outputs ...string) (map[string]Tensor, error) {
	if err := checkInputs(s.inputs, inputs); err != nil {
		return nil, fmt.Errorf("engine: running graph %q: %w", s.name, err)
	}
	if err := checkNames(s.outputs, outputs); err != nil {
		return nil, fmt.Errorf("engine: running graph %q: %w", s.name, err)
	}
	s.life.RLock()
	defer s.life.RUnlock()
	if s.session == nil {
		return nil, ErrClosed
	}

	var given, filled holder
	defer given.release()
	defer filled.release()
	in := make([]ort.Value, len(s.inputs))
	for i, v := range s.inputs {
		value, err := given.value(inputs[v.Name])
		if err != nil {
			return nil, fmt.Errorf("engine: running graph %q: input %q: %w", s.name, v.Name, err)
		}
		in[i] = value
	}
	// ONNX Runtime allocates the outputs, whose shapes it alone knows; only a
	// scalar must be given, for the wrapper cannot take one over.
	out := make([]ort.Value, len(s.outputs))
	result := make(map[string]Tensor, len(s.outputs))
	for i, v := range s.outputs {
		if v.Shape == nil || len(v.Shape) > 0 {
			continue
		}
		t := Tensor{[]int64{}, elements[v.Type].make(1)}
		value, err := filled.value(t)
		if err != nil {
			return nil, fmt.Errorf("engine: running graph %q: output %q: %w", s.name, v.Name, err)
		}
		out[i], result[v.Name] = value, t
	}
	err := s.execute(ctx, in, out)
	for i, v := range s.outputs {
		if _, given := result[v.Name]; given || out[i] == nil {
			continue
		}
		filled.values = append(filled.values, out[i])
		t, wrong := taken(out[i])
		if err == nil && wrong != nil {
			err = fmt.Errorf("engine: running graph %q: output %q: %w", s.name, v.Name, wrong)
		}
		result[v.Name] = t
	}
	if err != nil {
		return nil, err
	}
	for _, scalar := range filled.scalars {
		scalar.store()
	}
	if len(outputs) > 0 {
		maps.DeleteFunc(result, func(name string, _ Tensor) bool { return !slices.Contains(outputs, name) })
	}
	return result, nil
}

// execute runs the session once. If ctx can end, it does so with run options
// through which the run is told to stop.
func (s *local) execute(ctx context.Context, in, out []ort.Value) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("engine: running graph %q: %w", s.name, err)
	}
	if ctx.Done() == nil {
		if err := s.session.Run(in, out); err != nil {
			return fmt.Errorf("engine: running graph %q: %w", s.name, err)
		}
		return nil
	}
	options, err := s.runOptions()
	if err != nil {
		return fmt.Errorf("engine: running graph %q: %w", s.name, err)
	}
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		options.Terminate()
		close(told)
	})
	err = s.session.RunWithOptions(in, out, options)
	if !stop() {
		<-told // nobody may touch the options once they are put back
		options.UnsetTerminate()
	}
	s.putBack(options)
	if err != nil {
		if ended := ctx.Err(); ended != nil {
			return fmt.Errorf("engine: running graph %q: stopped: %w", s.name, ended)
		}
		return fmt.Errorf("engine: running graph %q: %w", s.name, err)
	}
	return nil
}

func (s *local) runOptions() (*ort.RunOptions, error) {
	select {
	case options := <-s.idle:
		return options, nil
	default:
		return ort.NewRunOptions()
	}
}

func (s *local) putBack(options *ort.RunOptions) {
	select {
	case s.idle <- options:
	default:
		options.Destroy()
	}
}

func (s *local) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.session == nil {
		return nil
	}
	session := s.session
	s.session = nil
	for len(s.idle) > 0 {
		(<-s.idle).Destroy()
	}
	if err := session.Destroy(); err != nil {
		return fmt.Errorf("engine: closing graph %q: %w", s.name, err)
	}
	return nil
}
