package engine

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	ort "github.com/yalue/onnxruntime_go"
)

// bound is a local session with its buffers.
type bound struct {
	session *local
	in, out []ort.Value

	mu     sync.Mutex
	given  holder // inputs
	filled holder // outputs
	closed bool
}

var _ Binding = (*bound)(nil)

func (s *local) Bind(inputs, outputs map[string]Tensor) (Binding, error) {
	if err := checkInputs(s.inputs, inputs); err != nil {
		return nil, fmt.Errorf("engine: binding graph %q: %w", s.name, err)
	}
	if err := checkOutputs(s.outputs, outputs); err != nil {
		return nil, fmt.Errorf("engine: binding graph %q: %w", s.name, err)
	}
	s.life.RLock()
	defer s.life.RUnlock()
	if s.session == nil {
		return nil, ErrClosed
	}
	b := &bound{session: s}
	for _, v := range s.inputs {
		value, err := b.given.value(inputs[v.Name])
		if err != nil {
			b.Close()
			return nil, fmt.Errorf("engine: binding graph %q: input %q: %w", s.name, v.Name, err)
		}
		b.in = append(b.in, value)
	}
	for _, v := range s.outputs {
		value, err := b.filled.value(outputs[v.Name])
		if err != nil {
			b.Close()
			return nil, fmt.Errorf("engine: binding graph %q: output %q: %w", s.name, v.Name, err)
		}
		b.out = append(b.out, value)
	}
	// Pinned memory that is forgotten ends the process (runtime.Pinner): a
	// binding that nobody closed must not.
	runtime.SetFinalizer(b, (*bound).Close)
	return b, nil
}

func (b *bound) Run(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.session.life.RLock()
	defer b.session.life.RUnlock()
	if b.closed || b.session.session == nil {
		return ErrClosed
	}
	for _, s := range b.given.scalars {
		s.load()
	}
	if err := b.session.execute(ctx, b.in, b.out); err != nil {
		return err
	}
	for _, s := range b.filled.scalars {
		s.store()
	}
	return nil
}

func (b *bound) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	runtime.SetFinalizer(b, nil)
	b.closed = true
	b.given.release()
	b.filled.release()
	return nil
}
