package simulate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/train"
)

// workshop is where virtual sites train: by the engine, or by a program that
// finds a site's examples in a file of a folder that ends with the simulation.
type workshop struct {
	engine  *federate.Engine
	command string
	dir     string
	program *federate.Program // once a trainer was made
	sites   int
}

func newWorkshop(engine *federate.Engine, command string) (*workshop, error) {
	w := &workshop{engine: engine, command: command}
	if command == "" {
		return w, nil
	}
	var err error
	if w.dir, err = os.MkdirTemp("", "vigie-sites-"); err != nil {
		return nil, fmt.Errorf("simulate: making a folder for the sites' program: %w", err)
	}
	return w, nil
}

func (w *workshop) close() error {
	if w.dir == "" {
		return nil
	}
	return os.RemoveAll(w.dir)
}

// trainer is that of a site with a set. A program is told of a file examples.npz
// with x, float32 values (of images from 0 to 1) of one example after the other,
// and y, the classes, or zeros and ones where labels do not exclude each other.
func (w *workshop) trainer(s *train.Set) (federate.Trainer, error) {
	if w.command == "" {
		return w.engine.Trainer(s), nil
	}
	w.sites++
	path := filepath.Join(w.dir, fmt.Sprintf("site-%04d", w.sites), "examples.npz")
	if err := writeExamples(path, s); err != nil {
		return nil, fmt.Errorf("simulate: writing the examples of %q: %w", s.Name, err)
	}
	t, err := federate.NewCommandTrainer(federate.CommandOptions{Command: w.command, Form: w.engine.Form(), Data: path, Examples: s.Len(), Dir: w.dir})
	if err != nil {
		return nil, err
	}
	if p, is := t.(interface{ Program() federate.Program }); is {
		program := p.Program()
		w.program = &program
	}
	return t, nil
}

func writeExamples(path string, s *train.Set) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	shape := append([]int64{int64(s.Len())}, s.Example()...)
	size := 1
	for _, d := range s.Example() {
		size *= int(d)
	}
	x := make([]float32, s.Len()*size)
	for i := range s.Len() {
		s.Fill(x[i*size:(i+1)*size], i)
	}
	y := train.Array{Shape: []int64{int64(s.Len())}}
	if s.Multi() {
		y.Shape = append(y.Shape, int64(s.Classes))
		y.Data = s.Marks
	} else {
		labels := make([]int64, s.Len())
		for i, l := range s.Labels {
			labels[i] = int64(l)
		}
		y.Data = labels
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(train.WriteNPZ(f, map[string]train.Array{"x": {Shape: shape, Data: x}, "y": y}), f.Close())
}
