// Package engine runs ONNX graphs. It is the only package of Vigie that uses
// cgo, and it knows nothing of medicine, files or networks other than those of
// a model server.
//
// A [Session] is a graph made ready to run. [Open] makes one inside this
// process on ONNX Runtime, whose shared library is embedded in the binary
// (`make runtime` fetches it before the build); [OpenRemote] makes one that
// asks a model server which speaks the Open Inference Protocol, such as Triton
// or KServe. Both are used in the same way:
//
//	session, err := engine.Open(model, engine.Options{})
//	if err != nil { … }
//	defer session.Close()
//	out, err := session.Run(ctx, map[string]engine.Tensor{
//		"image": engine.Float32([]int64{1, 1, 28, 28}, pixels),
//	}, "logits")
//	if err != nil { … }
//	logits, err := engine.Values[float32](out["logits"])
//
// A session may be used by many goroutines at once. What a caller passes is
// checked against the graph's declared inputs first, so that a wrong shape is an
// error which names the input ([ErrInput]), not a message from inside a runtime.
//
// A loop that runs the same shapes again and again, such as training, binds
// its buffers once and pays neither copies nor allocation per run:
//
//	binding, err := session.Bind(inputs, outputs)
//	for … {
//		fill the slices behind inputs
//		err := binding.Run(ctx) // the slices behind outputs hold the results
//	}
package engine

import (
	"context"
	"errors"

	"github.com/vigie/vigie/onnx"
)

// Session is a graph that is ready to run.
type Session interface {
	// Run computes the named outputs (all of them if none is named) from
	// inputs, one for each of Inputs. It reads the inputs' slices in place
	// and must be the only one to write them until it returns. The slices of
	// the result belong to the caller. If ctx ends, a run that has begun is
	// stopped at the next operator and ctx's error is returned.
	Run(ctx context.Context, inputs map[string]Tensor, outputs ...string) (map[string]Tensor, error)

	// Bind ties a session to buffers: every input and every output, with the
	// shapes they will have. See Binding.
	Bind(inputs, outputs map[string]Tensor) (Binding, error)

	// Inputs and Outputs declare what the graph takes and gives, in the
	// graph's order. The caller must not change them.
	Inputs() []onnx.Value
	Outputs() []onnx.Value

	// Close waits for runs under way and frees what the session holds.
	// Using the session afterwards gives ErrClosed; closing it twice is
	// harmless.
	Close() error
}

// Binding is a session tied to buffers. Run reads the slices of the bound
// inputs and fills those of the bound outputs, all in place. A binding is for
// one goroutine at a time; bindings of the same session may run at once.
type Binding interface {
	Run(ctx context.Context) error
	// Close lets the buffers go. It does not close the session, and must be
	// called before the session is closed.
	Close() error
}

// Options says how to open a session. The zero value is right for serving.
type Options struct {
	// Threads bounds the threads that one operator may use. 0 means two, or
	// one on a machine with one processor: single predictions gain little
	// beyond that, and cases run beside each other. Training loops use 1 and
	// split the batch.
	Threads int

	// Yield lets threads of the session sleep while they wait for the next
	// operator of a run, which is right where more sessions run at once than
	// there are processors for. Otherwise they wait awake, which shortens a run
	// by a tenth or more. Between runs they sleep in any case.
	Yield bool

	// Outputs keeps only these outputs of the graph; whatever only the others
	// need is not computed. Empty keeps all.
	Outputs []string

	// Dims fixes named dimensions, such as {"batch": 8}. Fixed shapes let
	// ONNX Runtime plan memory once.
	Dims map[string]int64
}

// ErrClosed is returned by a session or a binding that was closed.
var ErrClosed = errors.New("engine: the session is closed")

// ErrInput says that what the caller gave does not fit the graph: a missing or
// unknown name, a wrong type or shape. The message says which and what is
// wanted.
var ErrInput = errors.New("does not fit the graph")
