package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
)

// python is Debian's, which has python3-torch.
const python = "/usr/bin/python3"

// pytorch is bench/engine.py in a process that waits for its turns.
type pytorch struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
	title   string
	peak    int64 // bytes, after the last turn
}

// startPeer starts PyTorch on this work and lets it find its fastest way, or has
// it take the one that is given.
func (w work) startPeer(ctx context.Context, way string) (*pytorch, error) {
	kind := w.kind
	if kind == trainMemory {
		kind = trainStep
	}
	spec := map[string]any{
		"kind": kind, "network": w.network, "norm": w.norm, "input": w.input, "batch": w.batch, "classes": classes, "threads": runtime.NumCPU(),
	}
	if way != "" {
		spec["way"] = way
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	p := &pytorch{command: exec.CommandContext(ctx, python, "-B", "bench/engine.py", string(text))}
	p.command.Env = append(os.Environ(), "OPENBLAS_NUM_THREADS=1")
	p.command.Stderr = os.Stderr
	if p.in, err = p.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.command.Start(); err != nil {
		return nil, fmt.Errorf("starting PyTorch (Debian python3-torch): %w", err)
	}
	p.out = bufio.NewScanner(out)
	p.out.Buffer(nil, 1<<20)
	var ready struct{ Version, Way string }
	if err := p.answer(&ready); err != nil {
		p.close()
		return nil, err
	}
	p.title = fmt.Sprintf("PyTorch %s, %s", ready.Version, ready.Way)
	return p, nil
}

func (p *pytorch) answer(into any) error {
	if !p.out.Scan() {
		return errors.Join(errors.New("PyTorch (Debian python3-torch) stopped without an answer"), p.out.Err())
	}
	return json.Unmarshal(p.out.Bytes(), into)
}

func (p *pytorch) name() string { return p.title }

func (p *pytorch) steps(_ context.Context, n int) (wall, cpu []float64, err error) {
	if _, err := fmt.Fprintln(p.in, n); err != nil {
		return nil, nil, fmt.Errorf("asking PyTorch for %d steps: %w", n, err)
	}
	var times struct {
		Wall, CPU []float64
		Peak      int64
	}
	if err := p.answer(&times); err != nil {
		return nil, nil, err
	}
	if len(times.Wall) != n || len(times.CPU) != n {
		return nil, nil, fmt.Errorf("PyTorch answered %d times for %d steps", len(times.Wall), n)
	}
	p.peak = times.Peak
	return times.Wall, times.CPU, nil
}

func (p *pytorch) close() {
	p.in.Close()
	_ = p.command.Wait()
}
